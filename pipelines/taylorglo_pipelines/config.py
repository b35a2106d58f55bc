"""A sweep's YAML file: what it computes (``taylorglo.settings``), its layout, and where its services are."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import Field, model_validator

from taylorglo.errors import InputError
from taylorglo.presets import PRESETS, Name, with_preset
from taylorglo.services.variables import STORE_URI, STUDY_URL, TRACKING_URI
from taylorglo.settings import Section, SweepSettings, validated

_CPU = r"^(\d+(\.\d+)?|\d+m)?$"
_MEMORY = r"^(\d+(\.\d+)?[KMGT]i?)?$"
_OBJECT_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"


class Toleration(Section):
    """A taint of nodes that tasks which train put up with, as in a pod's specification."""

    key: str = Field("", description="of the taint; empty, with `Exists`: any")
    operator: Literal["Equal", "Exists"] = Field(
        "Equal", description="`Exists`: whatever the value"
    )
    value: str = Field("", description="of the taint, for `Equal`")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        "", description="empty: any"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Toleration":
        if self.operator == "Exists" and self.value:
            raise ValueError("value: should be empty where the operator is Exists")
        if self.operator == "Equal" and not self.key:
            raise ValueError("key: should be given where the operator is Equal")
        return self


class PipelineSettings(Section):
    """What has to be known when the pipeline is compiled; what is asked of Kubernetes has no effect on a laptop."""

    generations: int = Field(
        8,
        ge=1,
        description="of one run, unrolled when compiling, which warns near Argo's limit; see `search.generations`",
    )
    shards: int = Field(
        1,
        ge=1,
        description="tasks that share a generation's candidates, at most `search.popsize`; one on a laptop, where a "
        "task uses all CPUs",
    )
    image: str = Field("", description="container image of all tasks; empty: `taylorglo:VERSION`")
    cpu: str = Field(
        "",
        pattern=_CPU,
        coerce_numbers_to_str=True,
        description="requested for a task that trains, such as `2` or `500m`; empty: nothing",
    )
    cpu_limit: str = Field(
        "", pattern=_CPU, coerce_numbers_to_str=True, description="likewise, the limit; empty: none"
    )
    memory: str = Field(
        "",
        pattern=_MEMORY,
        description="requested for a task that trains, such as `4Gi`; empty: nothing",
    )
    memory_limit: str = Field("", pattern=_MEMORY, description="likewise, the limit; empty: none")
    accelerator: Literal["", "nvidia.com/gpu", "amd.com/gpu"] = Field(
        "",
        description="kind of GPU for a task that trains, which gets one; its processes share it (`training.workers`)",
    )
    shared_memory: str = Field(
        "1Gi",
        pattern=_MEMORY,
        description="size of /dev/shm in a task that trains; empty: 64 MiB, as containers have it",
    )
    node_selector: dict[str, str] = Field(
        {}, description="labels of the nodes for tasks that train"
    )
    tolerations: list[Toleration] = Field([], description="of tasks that train")
    timeout: int = Field(
        86_400, ge=0, description="seconds after which Kubernetes ends a task; 0: never"
    )
    retries: int = Field(
        2,
        ge=0,
        le=10,
        description="how often a task that fails is tried again; in a shard, only where a service failed it",
    )
    service_account: str = Field("", description="of the pods; empty: the one that Kubeflow takes")
    secret: str = Field(
        "taylorglo",
        pattern=_OBJECT_NAME,
        description="the Secret with the credentials of the services",
    )
    config_map: str = Field(
        "taylorglo", pattern=_OBJECT_NAME, description="the ConfigMap with the URIs of the services"
    )


class ServiceSettings(Section):
    """Where a local run keeps things. What is empty is taken from the environment, or else lies under work_dir."""

    work_dir: str = Field(
        "runs", min_length=1, description="folder in which everything lies that is not elsewhere"
    )
    study_url: str = Field(
        "",
        description="`sqlite:///FILE` or `postgresql://HOST/DATABASE`, never with a password; else `study.db`",
    )
    store_uri: str = Field("", description="a folder or `s3://BUCKET/PREFIX`; else `store/`")
    tracking_uri: str = Field(
        "",
        description="`sqlite:///FILE`, or `http(s)://HOST` of an MLflow server; else `mlruns.db`",
    )

    def variables(self) -> dict[str, str]:
        """The environment of a task of a local run."""
        work = Path(self.work_dir).absolute()
        chosen = {
            STUDY_URL: (self.study_url, f"sqlite:///{work / 'study.db'}"),
            STORE_URI: (self.store_uri, str(work / "store")),
            TRACKING_URI: (self.tracking_uri, f"sqlite:///{work / 'mlruns.db'}"),
        }
        return {
            name: value or os.environ.get(name) or default
            for name, (value, default) in chosen.items()
        }


class Config(SweepSettings):
    """The whole file."""

    preset: Literal["", Name] = Field(
        "",
        description="a published network and its training, for all keys of theirs that are not set here",
    )
    pipeline: PipelineSettings = PipelineSettings()
    services: ServiceSettings = ServiceSettings()

    @property
    def sweep(self) -> SweepSettings:
        """The part that decides what is computed."""
        return SweepSettings(**{name: getattr(self, name) for name in SweepSettings.model_fields})

    @model_validator(mode="before")
    @classmethod
    def _filled_from_preset(cls, content: Any) -> Any:
        named = content.get("preset") if isinstance(content, dict) else None
        return (
            with_preset(cast(Name, named), content)
            if isinstance(named, str) and named in PRESETS
            else content
        )

    @model_validator(mode="after")
    def _layout_fits_search(self) -> "Config":
        if self.pipeline.shards > self.search.popsize:
            raise ValueError(
                f"pipeline.shards: should be at most search.popsize ({self.search.popsize})"
            )
        if 0 < self.search.generations < self.pipeline.generations:
            raise ValueError(
                f"pipeline.generations: should be at most search.generations ({self.search.generations})"
            )
        return self


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys: PyYAML would quietly take the last one."""

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
        path: of the YAML file.
        overrides: ``section.key=value``, the value in YAML, in place of what the file says.

    Raises:
        InputError: listing every problem by its path, a line each.
    """
    try:
        content = yaml.load(Path(path).read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = (
            f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
            if mark
            else " ".join(str(error).split())
        )
        raise InputError(f"{path}: is not YAML: {where}") from None
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path}: should be a mapping of sections, is a {type(content).__name__}")
    return validated(Config, with_overrides(content or {}, overrides), str(path))


def with_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested mappings with ``section.key=value`` settings put in."""
    changed: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in content.items()}
    for override in overrides:
        path, equals, text = override.partition("=")
        section, dot, key = path.strip().partition(".")
        if not equals or not section or (dot and not key):
            raise InputError(f"--set {override}: should be section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {override}: the value is not YAML") from None
        if not dot:
            changed[section] = value
        elif isinstance(changed.setdefault(section, {}), dict):
            changed[section][key] = value
        else:
            raise InputError(f"--set {override}: {section} is not a section")
    return changed
