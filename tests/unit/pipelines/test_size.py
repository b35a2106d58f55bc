"""The size of Argo's Workflow, predicted and measured on a real Kubeflow Pipelines 2.17.0."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl

from taylorglo.errors import InputError
from taylorglo_pipelines.cli import main
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.pipeline.compile import compile_sweep
from taylorglo_pipelines.pipeline.size import LIMIT, Size, workflow_size

DATA = Path(__file__).parent / "data"
CONFIGS = Path(__file__).parents[3] / "pipelines" / "configs"


def predicted(text: str) -> Size:
    pipeline, *platform = yaml.load_all(text, yaml.CSafeLoader)
    executors: dict[str, Any] = {}
    if platform:
        executors = platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return workflow_size(pipeline, executors)


def compiled_by_0_1_0(name: str) -> str:
    return gzip.decompress((DATA / f"version-0.1.0-{name}.yaml.gz").read_bytes()).decode()


def test_two_generations_of_two_shards_as_measured() -> None:
    """A sweep of version 0.1.0, which has nested pipelines and loops: 138 nodes."""
    size = predicted(compiled_by_0_1_0("2x2"))
    assert size.specification == pytest.approx(128_000, rel=0.1)
    assert size.nodes == pytest.approx(1_188_000, rel=0.1)
    assert size.compressed == pytest.approx(118_000, rel=0.1)


def test_the_sweep_that_died_in_generation_13_as_measured() -> None:
    """Argo: "workflow is longer than maximum allowed size. compressed size 1050613"."""
    size = predicted(compiled_by_0_1_0("13x10"))
    assert size.nodes == pytest.approx(13_200_000, rel=0.1)
    assert size.packed == pytest.approx(1_050_613, rel=0.1)


def test_a_flat_and_bare_pipeline_as_measured(tmp_path: Path) -> None:
    """The prototype of 3 generations of 4 shards: 32 kB a task, 1.5 kB compressed."""
    first, link = bare_components()

    @dsl.pipeline(name="prototype")
    def prototype() -> None:
        previous, shards = first().output, []
        for _ in range(3):
            proposed = link(before=previous, number=1).after(*shards)
            filtered = link(before=proposed.output, number=2)
            shards = [link(before=filtered.output, number=shard) for shard in range(4)]
            previous = shards[0].output

    compiler.Compiler().compile(prototype, str(tmp_path / "prototype.yaml"))
    size, tasks = predicted((tmp_path / "prototype.yaml").read_text()), 19
    assert size.nodes / tasks == pytest.approx(32_000, rel=0.1)
    # An overestimate is the safe side.
    assert 1_500 <= size.compressed / tasks <= 1_500 * 1.3


def bare_components() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return a component without inputs, and one with an artifact and a number."""

    @dsl.container_component
    def first(after: dsl.Output[dsl.Artifact]) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="x:1", command=["true"], args=[after.path])

    @dsl.container_component
    def link(
        before: dsl.Input[dsl.Artifact], number: int, after: dsl.Output[dsl.Artifact]
    ) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="x:1", command=["true"], args=[before.path, number])

    return first, link


def size_of(tmp_path: Path, **layout: Any) -> Size:
    config = Config(pipeline=layout, search={"popsize": 64})
    return compile_sweep(config, tmp_path / "pipeline.yaml").size


def test_a_task_of_a_generation_needs_little_state(tmp_path: Path) -> None:
    """The goal: 2.5 kB compressed; 0.1.0 needed 5 to 6."""
    sizes = [
        size_of(tmp_path, layout="generations", shards=4, generations=number) for number in (10, 20)
    ]
    added = (sizes[1].compressed - sizes[0].compressed) / (10 * 6)
    assert added < 2_500


def test_thirty_generations_of_four_shards_fit(tmp_path: Path) -> None:
    assert size_of(tmp_path, layout="generations", shards=4, generations=30).packed < 0.85 * LIMIT


def test_workers_fit_twice_whatever_the_number_of_generations(tmp_path: Path) -> None:
    few, many = (
        size_of(tmp_path, layout="workers", shards=32, generations=generations)
        for generations in (1, 1000)
    )
    assert many.packed < LIMIT / 2
    assert many.packed == pytest.approx(few.packed, rel=0.01)


def test_the_digits_sweep_needs_no_compression(tmp_path: Path) -> None:
    """Kubeflow sees the states of the tasks as long as Argo does not compress them."""
    path = tmp_path / "pipeline.yaml"
    assert main(["compile", str(CONFIGS / "digits.yaml"), "-o", str(path)]) == 0
    assert predicted(path.read_text()).plain < LIMIT


@pytest.mark.parametrize("generations", [36, 1000])
def test_generations_that_do_not_fit_are_refused_and_workers_recommended(
    tmp_path: Path, generations: int
) -> None:
    with pytest.raises(InputError, match=f"^{generations} generations of 4 shards .*Argo") as error:
        size_of(tmp_path, layout="generations", shards=4, generations=generations)
    assert str(error.value).endswith(
        "; set pipeline.layout to workers, whose tasks do not grow with the generations"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_fit_is_refused_before_it_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "taylorglo_pipelines.pipeline.compile.sweep_pipeline",
        lambda _: pytest.fail("it was compiled"),
    )
    with pytest.raises(InputError, match="more tasks than Argo can keep"):
        size_of(tmp_path, layout="generations", shards=4, generations=60)


def test_too_many_workers_are_refused(tmp_path: Path) -> None:
    config = Config(pipeline={"shards": 400}, search={"popsize": 400})
    with pytest.raises(InputError, match=r"^400 workers .*; lower pipeline\.shards$"):
        compile_sweep(config, tmp_path / "pipeline.yaml")


def test_the_prediction_is_the_same_each_time(tmp_path: Path) -> None:
    first = size_of(tmp_path, shards=2)
    random.seed(7)
    assert size_of(tmp_path, shards=2) == first
