"""A sweep's YAML file: what it computes (``taylorglo.settings``), its layout, and where its services are."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from taylorglo.environment import STORE_URI, STUDY_URL, TRACKING_URI
from taylorglo.errors import InputError
from taylorglo.settings import Section, SweepSettings, validated


class PipelineSettings(Section):
    """What has to be known when the pipeline is compiled."""

    generations: int = Field(8, ge=1, description="unrolled; about 50 of them are more than Argo can hold")
    shards: int = Field(2, ge=1, description="tasks that share the candidates of a generation")
    image: str = Field("", description="container image of all tasks; empty: the component's own")
    cpu: str = Field(
        "",
        pattern=r"^(\d+(\.\d+)?|\d+m)?$",
        coerce_numbers_to_str=True,
        description="requested for a task that trains, such as 2",
    )
    memory: str = Field("", pattern=r"^(\d+(\.\d+)?[KMGT]i?)?$", description="likewise, such as 4Gi")
    accelerator: Literal["", "nvidia.com/gpu", "amd.com/gpu"] = Field("", description="one of these for such a task")
    service_account: str = Field("", description="service account of the pods; empty: Kubeflow's own")


class ServiceSettings(Section):
    """Where a local run keeps things. What is empty is taken from the environment, or else lies under work_dir."""

    work_dir: str = Field("runs", min_length=1)
    study_url: str = Field("", description="sqlite:///FILE or postgresql://HOST/DATABASE, without a password")
    store_uri: str = Field("", description="folder or s3://BUCKET/PREFIX")
    tracking_uri: str = Field("", description="sqlite:///FILE or http(s)://HOST of an MLflow server")

    def variables(self) -> dict[str, str]:
        """The environment of a task of a local run."""
        work = Path(self.work_dir).absolute()
        chosen = {
            STUDY_URL: (self.study_url, f"sqlite:///{work / 'study.db'}"),
            STORE_URI: (self.store_uri, str(work / "store")),
            TRACKING_URI: (self.tracking_uri, f"sqlite:///{work / 'mlruns.db'}"),
        }
        return {name: value or os.environ.get(name) or default for name, (value, default) in chosen.items()}


class Config(SweepSettings):
    """The whole file."""

    pipeline: PipelineSettings = PipelineSettings()
    services: ServiceSettings = ServiceSettings()

    @property
    def sweep(self) -> SweepSettings:
        """The part that decides what is computed."""
        return SweepSettings(**{name: getattr(self, name) for name in SweepSettings.model_fields})

    @model_validator(mode="after")
    def _shards_have_work(self) -> "Config":
        if self.pipeline.shards > self.search.popsize:
            raise ValueError(f"pipeline.shards: should be at most search.popsize ({self.search.popsize})")
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
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
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
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else " ".join(str(error).split())
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
