"""Trainings by a function of a user: what it gets, what it may return, and what goes wrong."""

import os
import random
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import own_trainings
import pytest
import torch
from engine_runs import assert_same, recipe
from safetensors.numpy import save_file

from taylorglo.data import dataset as datasets
from taylorglo.data import own
from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset, Split, without_test
from taylorglo.data.folds import Fold
from taylorglo.errors import InputError
from taylorglo.evaluation.comparison import restore_network
from taylorglo.loss.classic import CrossEntropy
from taylorglo.loss.functions import TaylorLoss
from taylorglo.scores import worst
from taylorglo.services.registry import load_network
from taylorglo.settings import SweepSettings
from taylorglo.training import function
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, TrainedNetwork

CROSS_ENTROPY = CrossEntropy()


def settings_of(name: str, score: str = "log likelihood", **training: Any) -> SweepSettings:
    return SweepSettings.model_validate(
        {
            "data": {"name": "own", "classes": 4},
            "training": {"function": f"own_trainings:{name}", "engine": "sequential", **training},
            "evaluation": {"score": score},
        }
    )


def trained(
    name: str, recipe: Recipe, dataset: Dataset | None = None, **options: Any
) -> TrainedNetwork:
    """Do one training by a function of :mod:`own_trainings`."""
    (result,) = all_trained(settings_of(name, **options), {0: recipe}, dataset).values()
    return result


def all_trained(
    settings: SweepSettings, recipes: Mapping[int, Recipe], dataset: Dataset | None = None
) -> dict[int, TrainedNetwork]:
    data = dataset or own.stand_in(4)
    with Engine(settings, lambda: data) if dataset else Stand(settings) as engine:
        return dict(engine.run(recipes.items()))


def is_at_work(process: int) -> bool:
    """Return whether a process is there, and has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Stand(Engine):
    """An engine on the data that stand for those of a user, which worker processes can make."""

    def __init__(self, settings: SweepSettings) -> None:
        super().__init__(settings, stand_in)


def stand_in() -> Dataset:
    return without_test(own.stand_in(4))


class TestCall:
    @pytest.mark.parametrize("fold", [None, Fold(seed=6, count=5, index=3)])
    def test_the_function_gets_what_the_recipe_says(self, fold: Fold | None) -> None:
        loss = TaylorLoss([0, 0, 0, -1, 0, 2, 0, 0])
        result = trained("echo", recipe(loss, seed=11, steps=20, fold=fold, kept=False))
        expected = 11 + 2.0 + 0.1e-2
        # Squared error of uniform outputs for four classes, without the constant of the target.
        value = 4 * 0.25**2 - 2 * 0.25
        expected += value * 1e-6
        if fold is not None:
            expected += 4e-3 + 5e-4 + 6e-5
        assert result.training.accuracy == pytest.approx(-expected, abs=1e-9)
        assert result.training.test_accuracy is None
        assert result.weights == b""

    def test_the_number_of_the_fold_alone_does_not_stay_the_same(self) -> None:
        """A candidate has one attempt by default, which is the first one of every generation."""

        def number(seed: int, index: int) -> int:
            fold = Fold(seed=seed, count=5, index=index)
            score = trained("fold", recipe(CROSS_ENTROPY, fold=fold)).training.accuracy
            return round(5 * score)

        assert {number(seed, 0) for seed in range(5)} == set(range(5))
        assert {number(3, index) for index in range(5)} == set(range(5))

    @pytest.mark.parametrize("kept", [True, False])
    @pytest.mark.parametrize("has_test", [True, False])
    def test_the_test_split_is_for_trainings_that_are_kept_on_data_with_a_test_split(
        self, kept: bool, has_test: bool
    ) -> None:
        data = own.stand_in(4) if has_test else stand_in()
        result = trained("echo", recipe(CROSS_ENTROPY, kept=kept), data)
        on_test = result.training.accuracy < -1e5
        assert on_test is (kept and has_test)
        assert result.training.test_accuracy == (result.training.accuracy if on_test else None)

    def test_its_generators_are_seeded_and_those_of_the_program_left_as_they_were(self) -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        expected = random.random(), np.random.rand(), torch.rand(()).item()
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        scores = [
            trained("drawn", recipe(CROSS_ENTROPY, seed=seed)).training.accuracy
            for seed in (1, 2, 1)
        ]
        assert scores[0] == scores[2] != scores[1]
        assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected

    def test_the_sequential_engine_trains_in_this_process(self) -> None:
        threads = torch.get_num_threads()
        result = trained("process", recipe(CROSS_ENTROPY))
        assert result.training.accuracy == os.getpid()
        assert result.training.method == "sequential, cpu"
        assert torch.get_num_threads() == threads


class TestProcesses:
    def test_each_trains_one_after_another_and_none_is_this_one(self) -> None:
        settings = settings_of("process", engine="auto", workers=2)
        results = all_trained(settings, {n: recipe(CROSS_ENTROPY) for n in range(6)})
        processes = [result.training.accuracy for result in results.values()]
        assert len(set(processes)) == 2
        assert os.getpid() not in processes
        assert {r.training.method for r in results.values()} == {"parallel, cpu"}

    def test_the_results_are_those_of_the_sequential_engine(self) -> None:
        recipes = {n: recipe(CROSS_ENTROPY, seed=n) for n in range(4)}
        parallel = all_trained(settings_of("echo", engine="parallel", workers=2), recipes)
        sequential = all_trained(settings_of("echo"), recipes)
        assert_same(parallel, sequential)

    def test_a_training_may_have_processes_of_its_own(self) -> None:
        settings = settings_of("helped", engine="auto", workers=1)
        (result,) = all_trained(settings, {0: recipe(CROSS_ENTROPY)}).values()
        assert result.training.accuracy == 0.5


# What is said of each way to go wrong, and how often it is tried.
FAULTS = {
    1: (r"raised ValueError in line \d+ of \S+own_trainings\.py: broken in two", 2),
    2: ("gave None as the score; it should be a number", 1),
    3: (
        r"gave a tensor of shape \(\) as the score; it should be a number: value\.item\(\)",
        1,
    ),
    4: ("gave '0\\.5', a str, as the score; it should be a number", 1),
    5: ("gave 63\\.2 as the accuracy, which should be from 0 to 1; another score should have", 1),
    6: ("gave the score nan; it should be finite", 1),
    7: ("the process that trained it was killed by signal 9", 2),
    8: (r"took longer than training\.timeout \(3 s\), and was ended", 2),
    9: ("the process that trained it ended with status 3", 2),
    10: (r"raised SystemExit in line \d+ of \S+own_trainings\.py: enough", 2),
    12: (r"gave the curve \[1, 2\], which should be pairs of step and score", 1),
    13: (r"raised InputError in line \d+ of \S+: ", 2),
}
GOOD = (14, 20, 21, 22)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the trainings of :func:`results` leave a file for each try."""
    return tmp_path_factory.mktemp("tries")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[int, TrainedNetwork]:
    """The results of trainings of which most go wrong, in two processes."""
    settings = settings_of("odd", "accuracy", engine="auto", workers=2, timeout=3)
    recipes = {seed: recipe(CROSS_ENTROPY, seed=seed) for seed in (*FAULTS, *GOOD)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(own_trainings.FOLDER, str(folder))
        return all_trained(settings, recipes)


class TestFaults:
    @pytest.mark.parametrize("seed", FAULTS)
    def test_each_is_one_line(self, seed: int, results: dict[int, TrainedNetwork]) -> None:
        training = results[seed].training
        assert training.status == ("diverged" if seed == 6 else "failed")
        assert training.accuracy == 0
        assert re.search(FAULTS[seed][0], training.reason), training.reason
        assert "\n" not in training.reason
        assert seed in (7, 8, 9) or "training.function 'own_trainings:odd'" in training.reason

    @pytest.mark.parametrize("seed", FAULTS)
    def test_what_may_be_bad_luck_is_tried_once_more(
        self, seed: int, folder: Path, results: dict[int, TrainedNetwork]
    ) -> None:
        assert len(list(folder.glob(f"{seed}-*"))) == FAULTS[seed][1]

    def test_the_others_go_on(self, results: dict[int, TrainedNetwork], folder: Path) -> None:
        assert {seed: results[seed].training.status for seed in GOOD} == dict.fromkeys(GOOD, "ok")
        assert all(results[seed].training.accuracy == 0.5 for seed in GOOD)
        # None of them was begun again because another one died, but the one that died itself.
        tries = [len(list(folder.glob(f"{seed}-*"))) for seed in GOOD]
        assert tries == [2, 1, 1, 1]

    def test_a_missing_score_that_may_be_negative_is_below_all_scores(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(own_trainings.FOLDER, str(tmp_path))
        for seed in (1, 2, 6):
            training = trained("odd", recipe(CROSS_ENTROPY, seed=seed)).training
            assert training.accuracy == worst("log likelihood") < -1e12

    def test_data_that_are_gone_when_its_processes_start_end_it_with_the_reason(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "data.safetensors"
        datasets.save(stand_in(), path)
        with Engine.open(settings_of("fold", engine="auto", workers=1), path) as engine:
            path.unlink()
            with pytest.raises(InputError, match=re.escape(str(path))):
                list(engine.run({0: recipe(CROSS_ENTROPY)}.items()))

    def test_what_a_training_started_ends_with_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(own_trainings.FOLDER, str(tmp_path))
        with Stand(settings_of("parent", engine="auto", workers=1, timeout=2)) as engine:
            ((_, result),) = engine.run({0: recipe(CROSS_ENTROPY)}.items())
        assert "took longer than" in result.training.reason
        children = [int(path.name) for path in tmp_path.iterdir()]
        assert len(children) == 2  # of two tries
        deadline = time.monotonic() + 20
        while any(is_at_work(child) for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_a_model_that_is_none_fails_where_it_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(own_trainings.FOLDER, str(tmp_path))
        # Also in the search, which does not keep the network.
        for data in (own.stand_in(4), stand_in()):
            training = trained("odd", recipe(CROSS_ENTROPY, seed=11), data).training
            assert training.status == "failed"
            assert training.reason.endswith(
                "gave a str as the model; it should be a torch.nn.Module"
            )


class TestName:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nowhere:train", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
            ("own_trainings:none", "cannot be imported from .*own_trainings.py: AttributeError"),
            ("own_trainings:NUMBER", r"should be callable as train\(loss, \*, seed, steps, "),
            (
                "own_trainings:few",
                r"should be callable as train\(.*\): got an unexpected keyword argument 'steps'; "
                r"\*\*_ takes what it does not need",
            ),
        ],
    )
    def test_one_that_stands_for_no_training_is_refused(self, name: str, message: str) -> None:
        with pytest.raises(InputError, match=f"^training.function '{name}': {message}"):
            function.check(name)

    @pytest.mark.parametrize("name", ["echo", "drawn", "odd"])
    def test_a_training_is_accepted(self, name: str) -> None:
        function.check(f"own_trainings:{name}")

    def test_its_revision_is_that_of_its_file(self, tmp_path: Path) -> None:
        assert function.revision("") == ""
        assert len(function.revision("own_trainings:echo")) == 64
        assert function.revision("own_trainings:echo") == function.revision("own_trainings:odd")


class TestNetwork:
    def test_on_own_data_its_weights_are_kept_by_their_names(self) -> None:
        from safetensors.torch import load

        result = trained("whole", recipe(CROSS_ENTROPY), own.stand_in(4))
        expected = own_trainings.network().state_dict()
        kept = load(result.weights)
        assert kept.keys() == expected.keys()
        assert all(torch.equal(kept[name], value) for name, value in expected.items())
        assert result.training.curve == [(1, 0.25, None), (3, 0.5, None)]

    def test_on_images_it_takes_pixels_and_is_restored_by_the_name_of_the_model(
        self, digits: Dataset, tmp_path: Path
    ) -> None:
        settings = SweepSettings.model_validate(
            {
                "model": {"name": "own_trainings:factory"},
                "training": {"function": "own_trainings:whole", "engine": "sequential"},
            }
        )
        with Engine(settings, lambda: digits) as engine:
            ((_, result),) = engine.run({0: recipe(CROSS_ENTROPY)}.items())
        assert isinstance(digits.test, Split)
        images = scaled(digits.test.images[:5])
        restored = restore_network(result.weights, settings.model.name, digits)
        with torch.no_grad():
            assert torch.equal(restored(images), own_trainings.network()(images))
        (tmp_path / "model.safetensors").write_bytes(result.weights)
        loaded = load_network(tmp_path, model=settings.model.name)
        with torch.no_grad():
            assert torch.equal(loaded(images), restored(images))

    def test_on_features_it_takes_them_as_they_are(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        tensors = {"features": generator.normal(5, 3, (200, 64)), "labels": np.arange(200) % 10}
        save_file(tensors, tmp_path / "x.safetensors")
        data = {"name": "safetensors", "root": str(tmp_path / "x.safetensors")}
        settings = SweepSettings.model_validate(
            {
                "data": data,
                "model": {"name": "own_trainings:factory"},
                "training": {"function": "own_trainings:whole", "engine": "sequential"},
            }
        )
        dataset = datasets.load(settings.data, 0)
        with Engine(settings, lambda: dataset) as engine:
            ((_, result),) = engine.run({0: recipe(CROSS_ENTROPY)}.items())
        assert isinstance(dataset.test, Split)
        features = dataset.test.images
        restored = restore_network(result.weights, settings.model.name, dataset)
        with torch.no_grad():
            assert torch.equal(restored(features), own_trainings.network()(features))
