"""The YAML file of a sweep: the settings of ``taylorglo.settings``, its layout and its services."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import Field, model_validator

from taylorglo.errors import InputError, one_line
from taylorglo.presets import PRESETS, Name, with_preset
from taylorglo.settings import Section, SweepSettings, validated
from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI

_CPU = r"^(\d+(\.\d+)?|\d+m)?$"
_MEMORY = r"^(\d+(\.\d+)?[KMGT]i?)?$"
_OBJECT_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"


class Toleration(Section):
    """A taint of nodes that the tasks which train tolerate, as in the specification of a pod."""

    key: str = Field(
        "", description="Key of the taint. Empty, with the operator `Exists`: any key."
    )
    operator: Literal["Equal", "Exists"] = Field(
        "Equal",
        description="How the taint is compared. `Equal`: it has this value; `Exists`: it has any "
        "value.",
    )
    value: str = Field("", description="Value of the taint, for the operator `Equal`.")
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
        description="Number of generations of one run; see `search.generations`.",
    )
    shards: int = Field(
        1,
        ge=1,
        description="Number of tasks that share the candidates of a generation, at most "
        "`search.popsize`. One is right on a laptop, where a task uses all CPUs.",
    )
    image: str = Field("", description="Container image of all tasks. Empty: `taylorglo:VERSION`.")
    cpu: str = Field(
        "",
        pattern=_CPU,
        coerce_numbers_to_str=True,
        description="CPUs requested for a task that trains, such as `2` or `500m`. Empty: no "
        "request.",
    )
    cpu_limit: str = Field(
        "",
        pattern=_CPU,
        coerce_numbers_to_str=True,
        description="Limit of the CPUs of a task that trains. Empty: no limit.",
    )
    memory: str = Field(
        "",
        pattern=_MEMORY,
        description="Memory requested for a task that trains, such as `4Gi`. Empty: no request.",
    )
    memory_limit: str = Field(
        "",
        pattern=_MEMORY,
        description="Limit of the memory of a task that trains. Empty: no limit.",
    )
    accelerator: Literal["", "nvidia.com/gpu", "amd.com/gpu"] = Field(
        "",
        description="Kind of GPU for a task that trains. Each task gets one GPU, which its "
        "processes share (`training.workers`). Empty: no GPU.",
    )
    shared_memory: str = Field(
        "1Gi",
        pattern=_MEMORY,
        description="Size of /dev/shm in a task that trains. Empty: the 64 MiB that containers "
        "have by default.",
    )
    node_selector: dict[str, str] = Field(
        {}, description="Labels of the nodes for tasks that train."
    )
    tolerations: list[Toleration] = Field([], description="Tolerations of tasks that train.")
    timeout: int = Field(
        86_400,
        ge=0,
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
        description="Seconds for which a task waits, inside, for a service that fails: the "
        "study's database, the store, MLflow, or the host of the data.",
    )
    service_account: str = Field(
        "", description="Service account of the pods. Empty: the one that Kubeflow chooses."
    )
    secret: str = Field(
        "taylorglo",
        pattern=_OBJECT_NAME,
        description="Name of the Secret with the credentials of the services.",
    )
    config_map: str = Field(
        "taylorglo",
        pattern=_OBJECT_NAME,
        description="Name of the ConfigMap with the URIs of the services.",
    )


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
        """Return the environment variables with the services of a local run."""
        folder = Path(self.work_dir).absolute()
        return {
            STUDY_URL: _first(self.study_url, STUDY_URL, f"sqlite:///{folder / 'study.db'}"),
            STORE_URI: _first(self.store_uri, STORE_URI, str(folder / "store")),
            TRACKING_URI: _first(
                self.tracking_uri or os.environ.get(TRACKING_URI, ""),
                "MLFLOW_TRACKING_URI",
                f"sqlite:///{folder / 'mlruns.db'}",
            ),
        }


def _first(setting: str, variable: str, default: str) -> str:
    """Return the first address that is not empty: the setting, the variable, or the default."""
    return setting or os.environ.get(variable) or default


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


class _Loader(yaml.SafeLoader):
    """A loader that refuses repeated keys, of which PyYAML would take the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(
                    problem=problem, problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read and validate a configuration.

    Args:
        path: path of the YAML file.
        overrides: ``section.key=value``, with the value in YAML, which replaces that of the file.

    Raises:
        InputError: listing every problem by its path, a line each.
    """
    try:
        content = yaml.load(Path(path).read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML: {_yaml_problem(error)}") from None
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path}: should be a mapping of sections, is a {type(content).__name__}")
    return validated(Config, with_overrides(content or {}, overrides), str(path))


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Return the problem of a YAML file in one line, after its place in the file if it has one."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return one_line(error)
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def with_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of nested mappings with other values.

    Args:
        content: sections, and their values by key.
        overrides: ``section.key=value`` or ``key=value``, with the value in YAML; nothing after
            the equals sign is the empty text.

    Raises:
        InputError: an override is malformed.
    """
    changed = {k: dict(v) if isinstance(v, dict) else v for k, v in content.items()}
    for override in overrides:
        path, equals, text = override.partition("=")
        section, dot, key = path.strip().partition(".")
        if not equals or not section or (dot and not key):
            raise InputError(f"--set {override}: should be section.key=value")
        try:
            value = yaml.safe_load(text) if text.strip() else ""
        except yaml.YAMLError:
            raise InputError(f"--set {override}: the value is not YAML") from None
        if not dot:
            changed[section] = value
        elif isinstance(changed.setdefault(section, {}), dict):
            changed[section][key] = value
        else:
            raise InputError(f"--set {override}: {section} is not a section")
    return changed
