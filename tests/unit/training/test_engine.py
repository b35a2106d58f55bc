"""The engine: the same results however it trains."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_runs import assert_same, recipe, recipes, results, settings_of
from safetensors.torch import load
from trainings import BACKWARDS, GOOD, OTHER, steps_counted

from taylorglo.data.dataset import Dataset
from taylorglo.loss.classic import CrossEntropy
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe

LOSSES: tuple[Loss, ...] = (
    TaylorLoss(GOOD),
    CrossEntropy(),
    TaylorLoss(OTHER),
    CrossEntropy(0.1),
    TaylorLoss(BACKWARDS),
)


def assert_close_weights(weights: bytes, expected: bytes, rtol: float, atol: float) -> None:
    """Compare two networks, as safetensors, up to rounding."""
    others = load(expected)
    for name, value in load(weights).items():
        torch.testing.assert_close(value, others[name], rtol=rtol, atol=atol)


def test_the_parallel_engine_gives_the_results_of_the_sequential_one(saved_digits: Path) -> None:
    recipes = {
        f"loss {number}, seed {seed}": recipe(loss, seed)
        for seed in (1, 2)
        for number, loss in enumerate(LOSSES)
    }
    recipes["given up"] = recipe(TaylorLoss(BACKWARDS), give_up=(5, 0.15))
    expected = results(settings_of("cnn"), saved_digits, recipes)
    parallel = settings_of("cnn", engine="parallel", workers=2)
    assert_same(results(parallel, saved_digits, recipes), expected)
    assert expected["given up"].training.status == "diverged"
    assert len({result.weights for result in expected.values()}) == len(recipes)


def test_the_parallel_engine_trains_in_other_processes(saved_digits: Path, networks: Path) -> None:
    settings = settings_of("engine_networks:visible", engine="parallel", workers=2)
    with Engine.open(settings, saved_digits) as engine:
        assert engine.plan.workers == 2
        # The plan has computed the network in this process.
        for path in networks.glob("pid-*"):
            path.unlink()
        with steps_counted() as steps:
            trained = dict(engine.run(recipes().items()))
    assert steps == []
    assert {path.name for path in networks.glob("pid-*")}.isdisjoint({f"pid-{os.getpid()}"})
    assert {result.training.method for result in trained.values()} == {"parallel, float32, cpu"}


def test_the_fused_engine_gives_the_same_results_in_two_processes_as_in_one(
    saved_digits: Path,
) -> None:
    one = results(settings_of(engine="fused", workers=1), saved_digits, recipes(12))
    two = results(settings_of(engine="fused", workers=2), saved_digits, recipes(12))
    assert_same(two, one)
    assert {result.training.method for result in one.values()} == {"fused, float32, cpu"}
    sequential = results(settings_of(), saved_digits, recipes(12))
    for key, result in one.items():
        assert result.training.accuracy == sequential[key].training.accuracy
        assert_close_weights(result.weights, sequential[key].weights, rtol=1e-4, atol=1e-5)


def test_recipes_that_differ_in_more_than_the_loss_are_not_stacked(digits: Dataset) -> None:
    """Recipes of other rates, lengths and so on come out of one call as they would alone."""
    recipes = {
        "plain": recipe(LOSSES[0]),
        "longer": recipe(LOSSES[0], steps=30),
        "horizon": recipe(LOSSES[0], horizon=50),
        "rate": replace(recipe(LOSSES[0]), learning_rate=0.05),
        "given up": recipe(LOSSES[4], give_up=(5, 0.15)),
        "validated": recipe(LOSSES[0], validations=4),
        "seed": recipe(LOSSES[0], seed=2),
        "attacked": recipe(LOSSES[0], epsilon=0.1, kept=False),
        "kept": recipe(LOSSES[0]),
    }
    with Engine(settings_of(engine="fused"), lambda: digits) as engine:
        together = dict(engine.run(recipes.items()))
        apart = dict(next(engine.run([item])) for item in recipes.items())
    assert_same(together, apart)
    assert together["longer"].training.curve[-1][0] == 30
    assert together["attacked"].training.robust_accuracy is not None
    assert together["plain"].training.robust_accuracy is None
    assert together["attacked"].weights == b""


def test_dropout_is_drawn_as_in_a_training_alone(digits: Dataset) -> None:
    recipes = {
        (seed, number): recipe(loss, seed, steps=3)
        for number, loss in enumerate(LOSSES[:2])
        for seed in (1, 2)
    }
    with Engine(settings_of("mnist-cnn", engine="fused"), lambda: digits) as engine:
        assert engine.plan.same_seed_only
        together = dict(engine.run(recipes.items()))
    with Engine(settings_of("mnist-cnn"), lambda: digits) as engine:
        for key, alone in engine.run(recipes.items()):
            assert_close_weights(alone.weights, together[key].weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "workers", "chunk"), [("sequential", 1, 1), ("fused", 1, 3), ("fused", 2, 3)]
)
def test_recipes_are_taken_when_there_is_room(
    saved_digits: Path, kind: str, workers: int, chunk: int
) -> None:
    taken, results, ahead = 0, 0, []

    def source() -> Iterator[tuple[str, Recipe]]:
        nonlocal taken
        for item in recipes(14, steps=2).items():
            taken += 1
            ahead.append(taken - results)
            yield item

    with Engine.open(settings_of(engine=kind, workers=workers), saved_digits) as engine:
        engine.plan = replace(engine.plan, chunk=chunk)
        assert engine.plan.workers == workers
        for _ in engine.run(source()):
            results += 1
    assert results == 14
    assert max(ahead) == workers * chunk


def test_an_engine_that_has_nothing_to_train_reads_no_data() -> None:
    def read() -> Dataset:
        raise AssertionError("the data were read")

    nothing: list[tuple[str, Recipe]] = []
    with Engine(settings_of(), read) as engine:
        assert list(engine.run(nothing)) == []


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.long,
                pytest.mark.skipif(
                    not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler"
                ),
            ],
        ),
    ],
)
def test_one_compiled_graph_serves_all_candidates(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    from torch._dynamo.utils import counters

    compiler = torch.compile
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "compile", lambda f, mode: compiler(f, mode=None, backend=backend))
    recipes = {seed: recipe(loss, seed) for seed, loss in enumerate(LOSSES[0::2])}
    with Engine(settings_of(), lambda: digits) as engine:
        eager = dict(engine.run(recipes.items()))
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    with Engine(settings_of(compile=True), lambda: digits) as engine:
        for key, compiled in engine.run(recipes.items()):
            graphs.append(counters["stats"]["unique_graphs"])
            expected = eager[key]
            accuracy = pytest.approx(expected.training.accuracy, abs=0.01)
            assert compiled.training.accuracy == accuracy
            assert_close_weights(compiled.weights, expected.weights, rtol=1e-3, atol=1e-4)
    assert graphs == [1, 1, 1]
    torch._dynamo.reset()
