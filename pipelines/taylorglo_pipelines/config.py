"""The YAML file of a sweep: the settings of ``taylorglo.settings``, its layout and its services."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from pydantic import Field, model_validator

from taylorglo.addresses import expanded, is_sqlite, sqlite_file, sqlite_url
from taylorglo.errors import InputError, shortened
from taylorglo.presets import PRESETS, Name, with_preset
from taylorglo.reading import read_bytes
from taylorglo.settings import YEAR, Section, SweepSettings, validated
from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI
from taylorglo_pipelines.forms import (
    Bytes,
    Cpus,
    Image,
    LabelKey,
    LabelValue,
    ObjectName,
    OptionalKey,
    OptionalName,
    amount,
)
from taylorglo_pipelines.parsing import parse, parse_value

_MAX_BYTES = 1_000_000
_MOST_ITEMS = 100  # labels of nodes, or tolerations
_MAX_OVERRIDE = 100  # characters of an override that an error shows


class Toleration(Section):
    """A taint of nodes that the tasks which train tolerate, as in the specification of a pod."""

    key: OptionalKey = Field(
        "", description="Key of the taint. Empty, with the operator `Exists`: any key."
    )
    operator: Literal["Equal", "Exists"] = Field(
        "Equal",
        description="How the taint is compared. `Equal`: it has this value; `Exists`: it has any "
        "value.",
    )
    value: LabelValue = Field("", description="Value of the taint, for the operator `Equal`.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        "", description="Effect of the taint. Empty: any effect."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Toleration":
        if self.operator == "Exists" and self.value:
            raise ValueError("value: should be empty where the operator is Exists")
        if self.operator == "Equal" and not self.key:
            raise ValueError("key: should be given where the operator is Equal")
        return self


class PipelineSettings(Section):
    """The layout of the compiled pipeline, and its requests of Kubernetes.

    The requests have no effect on a laptop.
    """

    layout: Literal["workers", "generations"] = Field(
        "workers",
        description="Tasks of the search. `workers`: `shards` tasks that share the whole search "
        "through the study, however many generations there are. `generations`: in each generation, "
        "a task that proposes, one that filters, and `shards` tasks that evaluate.",
    )
    generations: int = Field(
        8,
        ge=1,
        le=1_000_000,
        description="Number of generations of one run; see `search.generations`.",
    )
    shards: int = Field(
        1,
        ge=1,
        le=10_000,
        description="Number of tasks that share the candidates of a generation, at most "
        "`search.popsize`. One is right on a laptop, where a task uses all CPUs.",
    )
    image: Image = Field(
        "", description="Container image of all tasks. Empty: `taylorglo:VERSION`."
    )
    cpu: Cpus = Field(
        "",
        coerce_numbers_to_str=True,
        description="CPUs requested for a task that trains, such as `2` or `500m`. Empty: no "
        "request.",
    )
    cpu_limit: Cpus = Field(
        "",
        coerce_numbers_to_str=True,
        description="Limit of the CPUs of a task that trains. Empty: no limit.",
    )
    memory: Bytes = Field(
        "",
        coerce_numbers_to_str=True,
        description="Memory requested for a task that trains, such as `4Gi`. Empty: no request.",
    )
    memory_limit: Bytes = Field(
        "",
        coerce_numbers_to_str=True,
        description="Limit of the memory of a task that trains. Empty: no limit.",
    )
    accelerator: Literal["", "nvidia.com/gpu", "amd.com/gpu"] = Field(
        "",
        description="Kind of GPU for a task that trains. Each task gets one GPU, which its "
        "processes share (`training.workers`). Empty: no GPU.",
    )
    shared_memory: Bytes = Field(
        "1Gi",
        coerce_numbers_to_str=True,
        description="Size of /dev/shm in a task that trains. Empty: the 64 MiB that containers "
        "have by default.",
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        {}, max_length=_MOST_ITEMS, description="Labels of the nodes for tasks that train."
    )
    tolerations: list[Toleration] = Field(
        [], max_length=_MOST_ITEMS, description="Tolerations of tasks that train."
    )
    timeout: int = Field(
        86_400,
        ge=0,
        le=YEAR,
        description="Seconds after which Kubernetes ends a task; 0: never. A worker of the layout "
        "`workers` is one task for all generations of the run.",
    )
    retries: int = Field(
        2,
        ge=0,
        le=10,
        description="Number of times that a task is tried again if its pod is lost. Kubeflow does "
        "not try a task again that ended with an error, unless Argo's retry policy says so.",
    )
    service_timeout: int = Field(
        900,
        ge=0,
        le=YEAR,
        description="Seconds for which a task waits, inside, for a service that fails: the "
        "study's database, the store, MLflow, or the host of the data.",
    )
    service_account: OptionalName = Field(
        "", description="Service account of the pods. Empty: the one that Kubeflow chooses."
    )
    secret: ObjectName = Field(
        "taylorglo",
        description="Name of the Secret with the credentials of the services.",
    )
    config_map: ObjectName = Field(
        "taylorglo",
        description="Name of the ConfigMap with the URIs of the services.",
    )

    @model_validator(mode="after")
    def _requests_are_within_limits(self) -> "PipelineSettings":
        for request, limit in (
            ("cpu", "cpu_limit"),
            ("memory", "memory_limit"),
            # /dev/shm is a part of the memory of a task.
            ("shared_memory", "memory_limit"),
        ):
            # A default that is larger than the limit does no harm.
            requested = getattr(self, request) if request in self.model_fields_set else ""
            most = getattr(self, limit)
            if requested and most and amount(requested) > amount(most):
                raise ValueError(f"{request}: {requested} is more than {limit} ({most})")
        return self


class ServiceSettings(Section):
    """The places in which a local run keeps things.

    The environment gives an address that is empty here (`TAYLORGLO_STUDY_URL`,
    `TAYLORGLO_STORE_URI`, and `TAYLORGLO_TRACKING_URI` or `MLFLOW_TRACKING_URI`), or else it lies
    in `work_dir`.
    """

    work_dir: str = Field(
        "runs",
        min_length=1,
        description="Folder of the logs, and of every service that has no address.",
    )
    study_url: str = Field(
        "",
        description="Database of the study, `sqlite:///FILE` or `postgresql://HOST/DATABASE`, "
        "without a password. Empty: `study.db`.",
    )
    store_uri: str = Field(
        "", description="Object store, a folder or `s3://BUCKET/PREFIX`. Empty: `store/`."
    )
    tracking_uri: str = Field(
        "",
        description="MLflow, `sqlite:///FILE` or the `http(s)://HOST` of a server. Empty: "
        "`mlruns.db`.",
    )

    def variables(self) -> dict[str, str]:
        """Return the environment variables with the services of a local run.

        Raises:
            InputError: an address in a file is malformed.
        """
        folder = self.folder
        return {
            STUDY_URL: _address(self.study_url, STUDY_URL) or sqlite_url(folder / "study.db"),
            STORE_URI: _address(self.store_uri, STORE_URI) or str(folder / "store"),
            TRACKING_URI: _address(self.tracking_uri, TRACKING_URI, "MLFLOW_TRACKING_URI")
            or sqlite_url(folder / "mlruns.db"),
        }

    @property
    def folder(self) -> Path:
        """The absolute path of ``work_dir``.

        Raises:
            InputError: it begins with the home of a user that does not exist.
        """
        return expanded(self.work_dir).absolute()


def _address(setting: str, *variables: str) -> str:
    """Return the first address that is not empty, of the setting and the variables.

    A ``~`` in it is expanded: a task in a container has another home.
    """
    addresses = (setting, *(os.environ.get(variable, "") for variable in variables))
    address = next(filter(None, addresses), "")
    if is_sqlite(address):
        return sqlite_url(sqlite_file(address))
    return str(expanded(address)) if address.startswith("~") else address


class Config(SweepSettings):
    """The whole file: the settings of the sweep, its preset, its layout and its services."""

    preset: Literal["", Name] = Field(
        "",
        description="Published network whose training gives the values that are not set here.",
    )
    pipeline: PipelineSettings = PipelineSettings()
    services: ServiceSettings = ServiceSettings()

    @property
    def sweep(self) -> SweepSettings:
        """The settings that decide what is computed, without preset, layout and services."""
        return SweepSettings.model_validate(
            self.model_dump(include=set(SweepSettings.model_fields))
        )

    @model_validator(mode="before")
    @classmethod
    def _filled_from_preset(cls, content: Any) -> Any:
        name = content.get("preset") if isinstance(content, dict) else None
        # Any other name is an error, which the validation of the field reports.
        if isinstance(name, str) and name in PRESETS:
            return with_preset(cast(Name, name), content)
        return content

    @model_validator(mode="after")
    def _layout_fits_search(self) -> "Config":
        if self.pipeline.shards > self.search.popsize:
            raise ValueError(
                f"pipeline.shards: should be at most search.popsize ({self.search.popsize})"
            )
        if 0 < self.search.generations < self.pipeline.generations:
            raise ValueError(
                "pipeline.generations: should be at most search.generations "
                f"({self.search.generations})"
            )
        return self


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read and validate a configuration.

    Args:
        path: path of the YAML file.
        overrides: ``section.key=value``, with the value in YAML, which replaces that of the file.

    Raises:
        InputError: listing every problem by its path, a line each.
    """
    try:
        content = parse(read_bytes(path, _MAX_BYTES).decode())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from None
    except ValueError as error:
        raise InputError(f"{path}: is not YAML: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path}: should be a mapping of sections, is a {type(content).__name__}")
    changed = with_overrides(content or {}, overrides)
    return validated(Config, changed, str(path), origins(overrides))


def origins(overrides: Sequence[str]) -> dict[str, str]:
    """Return the options ``--set`` by the paths of the settings that they give, for an error."""
    return {override.path: override.shown for override in _parsed(overrides)}


def with_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of nested mappings with other values.

    Args:
        content: sections, and their values by key.
        overrides: ``section.key=value`` or ``key=value``, with the value in YAML, in which a number
            sign begins no comment; nothing after the equals sign is the empty text.

    Raises:
        InputError: an override is malformed, or gives what another one gives.
    """
    changed = {k: dict(v) if isinstance(v, dict) else v for k, v in content.items()}
    for override in _parsed(overrides):
        if not override.key:
            changed[override.section] = override.value
        elif isinstance(changed.setdefault(override.section, {}), dict):
            changed[override.section][override.key] = override.value
        else:
            raise InputError(f"{override.shown}: {shortened(override.section)} is not a section")
    return changed


class _Override(NamedTuple):
    """An option ``--set``.

    Attributes:
        section: name of the section, or of a key that is in none.
        key: name of the key in the section; empty if a whole section is given.
        value: the value.
        shown: the option, for an error.
    """

    section: str
    key: str
    value: Any
    shown: str

    @property
    def path(self) -> str:
        """The path of what is given."""
        return f"{self.section}.{self.key}" if self.key else self.section


def _parsed(overrides: Sequence[str]) -> Iterator[_Override]:
    """Yield the overrides.

    Raises:
        InputError: one is malformed, or gives what another one gives.
    """
    seen: list[_Override] = []
    for text in overrides:
        shown = f"--set {shortened(text, _MAX_OVERRIDE)}"
        path, equals, value = text.partition("=")
        section, dot, key = path.strip().partition(".")
        if not equals or not section or (dot and not key):
            raise InputError(f"{shown}: should be section.key=value")
        try:
            override = _Override(section, key, parse_value(value), shown)
        except ValueError as error:
            raise InputError(f"{shown}: the value is not YAML: {error}") from None
        for other in seen:
            if f"{other.path}.".startswith(f"{override.path}.") or f"{override.path}.".startswith(
                f"{other.path}."
            ):
                raise InputError(f"{shown}: {other.shown} gives it already; one of them should go")
        seen.append(override)
        yield override
