"""The search as a call, and by ask and tell."""

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import notebook_trainings
import pytest
import torch
from notebook_trainings import CALLS, Constant, broken, constant, endless, pull

import taylorglo
from taylorglo.errors import InputError, TaylorgloError

SMALL: dict[str, Any] = {
    "classes": 3,
    "generations": 2,
    "popsize": 4,
    "steps": 30,
    "settings": {
        "baselines": {"attempts": 2},
        "champion": {"finalists": 2, "seeds": 2},
        "training": {"workers": 1},
    },
}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which each call of :func:`notebook_trainings.pull` adds a line."""
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv(CALLS, str(path))
    return path


def number(calls: Path) -> int:
    return len(calls.read_text().splitlines())


class TestSearch:
    def test_it_finds_a_loss_prints_progress_and_goes_on_from_its_folder(
        self, tmp_path: Path, calls: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "found"
        result = taylorglo.search(pull, **SMALL, folder=folder)
        output = capsys.readouterr().out
        assert "taylorglo: generation 1/2  best  " in output
        assert "taylorglo: champion: " in output
        # Two generations of four, and two finalists twice.
        assert number(calls) == 2 * 4 + 2 * 2
        assert 0.8 < result.score <= 1
        assert result.interval is not None
        assert result.interval[0] <= result.score <= result.interval[1]
        assert (result.table, result.verdict) == ("", "")
        assert result.loss.classes == 3
        again = taylorglo.search(pull, **SMALL, folder=folder)
        assert number(calls) == 2 * 4 + 2 * 2
        assert torch.equal(again.loss.theta, result.loss.theta)
        assert (again.score, again.interval) == (result.score, result.interval)
        longer = taylorglo.search(pull, **{**SMALL, "generations": 3}, folder=folder)
        assert 12 + 4 <= number(calls) <= 12 + 4 + 2 * 2
        assert longer.score > 0.8
        saved = taylorglo.load_loss(folder / "loss.json")
        assert torch.equal(saved.theta, longer.loss.theta)

    def test_the_loss_is_that_of_the_same_search_elsewhere(self, tmp_path: Path) -> None:
        def local(loss: torch.nn.Module, **arguments: Any) -> float:
            return pull(loss, **arguments)

        results = [taylorglo.search(train, **SMALL) for train in (pull, local)]
        assert torch.equal(results[0].loss.theta, results[1].loss.theta)
        assert results[0].score == results[1].score

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"popsize": 5}, "search_popsize 4, now 5"),
            ({"seed": 1}, "seed 0, now 1"),
            ({"classes": 4}, "begun with data_classes 3, now 4; give"),
            ({"steps": 31}, "evaluation_steps 30, now 31, training_steps 30, now 31"),
            ({"learning_rate": 0.2}, r"training_learning_rate 0\.1, now 0\.2"),
            ({"score": "F1"}, "evaluation_score 'accuracy', now 'F1'"),
        ],
    )
    def test_other_arguments_are_refused(
        self, folder_with_search: Path, other: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=f"^{folder_with_search}: the search was .*{message}"):
            taylorglo.search(pull, **{**SMALL, **other}, folder=folder_with_search)

    @pytest.mark.parametrize("kind", ["partial", "object", "method", "no source"])
    def test_another_function_of_the_same_name_does_not_get_the_scores_of_the_first(
        self, kind: str, tmp_path: Path
    ) -> None:
        def made(score: float) -> Any:
            if kind == "partial":
                return partial(constant, score=score)
            if kind == "no source":
                known = (lambda loss, **_: 0.25) if score == 0.25 else (lambda loss, **_: 0.75)
                return FunctionType(known.__code__.replace(co_filename="nowhere"), {})
            trainer = Constant(score)
            return trainer if kind == "object" else trainer.train

        folder = tmp_path / "found"
        first = taylorglo.search(made(0.25), **SMALL, folder=folder)
        again = taylorglo.search(made(0.25), **SMALL, folder=folder)
        assert first.score == again.score == 0.25
        message = "the search was begun with another version of the training function, whose"
        with pytest.raises(InputError, match=message):
            taylorglo.search(made(0.75), **SMALL, folder=folder)

    def test_a_function_whose_module_cannot_be_imported_trains_in_this_process(self) -> None:
        def train(loss: torch.nn.Module, **_: Any) -> float:
            return 0.5

        train.__module__ = train.__qualname__ = "loaded_by_path"
        assert taylorglo.search(train, **SMALL).score == 0.5

    def test_it_is_compared_with_baselines_on_the_test_split_if_asked(self, calls: Path) -> None:
        result = taylorglo.search(
            pull,
            **{**SMALL, "settings": {**SMALL["settings"], "baselines": {"attempts": 1}}},
            compare=True,
        )
        assert [line.split("  ")[0] for line in result.table.splitlines()[2:]] == [
            "champion",
            "cross-entropy",
            "label-smoothed cross-entropy",
            "squared error",
        ]
        assert result.verdict.endswith(".")
        # Tested are four losses from two seeds, and nothing else.
        assert calls.read_text().split().count("test") == 4 * 2

    def test_it_runs_in_another_thread_with_a_function_that_cannot_be_imported(self) -> None:
        seen: list[int] = []

        def local(loss: torch.nn.Module, **arguments: Any) -> float:
            seen.append(threading.get_ident())
            return pull(loss, **arguments)

        results: list[taylorglo.SearchResult] = []
        thread = threading.Thread(target=lambda: results.append(taylorglo.search(local, **SMALL)))
        thread.start()
        thread.join()
        assert results[0].score > 0.8
        # All trainings were in that thread of this process.
        assert len(seen) == 12
        assert len(set(seen)) == 1
        assert threading.get_ident() not in seen

    @pytest.mark.parametrize(
        ("train", "message"),
        [
            (broken, r"every training failed, the first with: .* raised ValueError .*: no data; "),
            (endless, "every training failed, the first with: .* gave the score nan; it should"),
        ],
    )
    def test_a_function_that_never_gives_a_score_ends_it_with_the_reason(
        self, train: Any, message: str
    ) -> None:
        with pytest.raises(TaylorgloError, match=f"^generation 1: {message}"):
            taylorglo.search(train, **SMALL)

    @pytest.mark.parametrize(
        ("train", "arguments", "message"),
        [
            (7, {}, "train: should be a function, is a int"),
            (
                lambda loss: 0.5,
                {},
                r"test_notebook:TestSearch\.<lambda>: should be callable as train\(",
            ),
            (
                pull,
                {"classes": 1},
                r"taylorglo\.search: classes: should be greater",
            ),
            (pull, {"popsize": 1}, r"taylorglo\.search: popsize: should be greater"),
            (
                pull,
                {"settings": {"training": 5}},
                r"taylorglo\.search: training: should be a group of settings",
            ),
            (
                pull,
                {"settings": {"trainings": {}}},
                r"taylorglo\.search: trainings: unknown key",
            ),
            (pull, {"generations": 0}, r"taylorglo\.search: generations: should be greater"),
            *(
                (pull, {key: value}, rf"taylorglo\.search: {key}: should [^\n]+$")
                for key, value in (
                    ("generations", "a"),
                    ("generations", None),
                    ("generations", 1.5),
                    ("steps", 0),
                    ("learning_rate", "a"),
                    ("learning_rate", 0),
                    ("learning_rate", float("nan")),
                    ("learning_rate", 1e6),
                    ("classes", 2.5),
                    ("classes", "10"),
                    ("popsize", "4"),
                    ("seed", "1"),
                    ("steps", "30"),
                    ("learning_rate", "0.1"),
                    ("score", ""),
                    ("score", None),
                    ("score", "a\nb"),
                    ("folder", ""),
                    ("folder", 3),
                    ("settings", "a"),
                )
            ),
            *(
                (pull, {"settings": {section: values}}, rf"taylorglo\.search: settings: {section}")
                for section, values in (
                    ("name", "other"),
                    ("data", {"name": "digits"}),
                    ("search", {"popsize": 5}),
                    ("training", {"function": "a:b"}),
                )
            ),
            (
                pull,
                {"settings": {"training": {"momentum": 0.5}}},
                r"taylorglo\.search: training\.momentum: has no effect with a training\.function",
            ),
        ],
    )
    def test_bad_arguments_are_refused_in_one_line(
        self, train: Any, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=f"^{message}"):
            taylorglo.search(train, **{**SMALL, **arguments})

    def test_a_script_without_a_guard_does_not_begin_again_in_its_processes(
        self, tmp_path: Path
    ) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "import sys\n"
            f"sys.path.insert(0, {str(Path(notebook_trainings.__file__).parent)!r})\n"
            "import taylorglo\n"
            "from notebook_trainings import pull\n"
            "print('begun')\n"
            f"print(taylorglo.search(pull, **{SMALL!r}).score > 0.8)\n"
        )
        process = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, timeout=240
        )
        assert process.returncode == 0, process.stderr
        lines = process.stdout.splitlines()
        assert (lines.count("begun"), lines[-1]) == (1, "True")


@pytest.fixture(scope="module")
def folder_with_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that was done."""
    folder = tmp_path_factory.mktemp("done")
    taylorglo.search(pull, **SMALL, folder=folder)
    return folder


def score(candidate: taylorglo.Proposal) -> float:
    return pull(candidate.loss, seed=0, steps=30, split=taylorglo.Split("validation"))


class TestSearcher:
    def test_ask_and_tell_find_a_loss(self) -> None:
        searcher = taylorglo.Searcher(classes=3, popsize=6)
        for generation in range(1, 5):
            candidates = searcher.ask()
            assert {candidate.generation for candidate in candidates} == {generation}
            assert len({candidate.seed for candidate in candidates}) == 1
            for candidate in candidates:
                searcher.tell(candidate, score(candidate))
            assert searcher.generations == generation
        found = searcher.recommended()
        confidence = score(taylorglo.Proposal(0, 1, found, 0))
        assert confidence > 0.95

    def test_it_asks_again_for_what_was_not_told_and_goes_on_from_its_folder(
        self, tmp_path: Path
    ) -> None:
        first = taylorglo.Searcher(classes=3, popsize=4, folder=tmp_path)
        asked = first.ask()
        for candidate in asked[:3]:
            first.tell(candidate, score(candidate))
        second = taylorglo.Searcher(classes=3, popsize=4, folder=tmp_path)
        (left,) = second.ask()
        assert left.number == asked[3].number
        assert torch.equal(left.loss.theta, asked[3].loss.theta)
        second.tell(left, score(left))
        assert first.generations == second.generations == 1
        # The first score counts.
        first.tell(left, 0.0)
        assert torch.equal(first.recommended().theta, second.recommended().theta)

    def test_the_first_generation_is_that_of_the_search_by_call(
        self, folder_with_search: Path
    ) -> None:
        from taylorglo.search.study import Search
        from taylorglo.settings import SearchSettings

        search = Search(
            f"sqlite:///{folder_with_search}/study.db",
            "search",
            SearchSettings(popsize=4),
            0,
            num_classes=3,
        )
        thetas = [candidate.theta for candidate in search.candidates(1) if not candidate.rejected]
        asked = taylorglo.Searcher(classes=3, popsize=4).ask()
        assert [candidate.loss.theta.tolist() for candidate in asked] == thetas

    def test_a_training_that_diverged_is_the_worst_whatever_the_scores_are(self) -> None:
        searcher = taylorglo.Searcher(classes=3, popsize=4, score="log likelihood")
        for _ in range(2):
            *others, last = searcher.ask()
            for candidate in others:
                searcher.tell(candidate, -1e6 * (2 - score(candidate)))
            searcher.tell(last, float("nan"))
        best = searcher._search.best(100)
        assert len(best) == 6
        ranked = sorted(searcher._search.candidates(1), key=lambda c: c.fitness or 0.0)
        assert ranked[0].trial == max(c.trial for c in ranked)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (None, "gave None as the score; it should be a number"),
            (torch.tensor(0.5), r"gave a tensor of shape \(\) as the score; .* value\.item\(\)"),
            ("0.5", "gave '0.5', a str, as the score"),
            (63.2, r"gave 63\.2 as the accuracy, which should be from 0 to 1"),
        ],
    )
    def test_what_is_no_score_is_refused_and_changes_nothing(
        self, given: Any, message: str
    ) -> None:
        searcher = taylorglo.Searcher(classes=3, popsize=2)
        (first, _) = searcher.ask()
        with pytest.raises(InputError, match=f"^candidate {first.number}: {message}"):
            searcher.tell(first, given)
        assert next(candidate.number for candidate in searcher.ask()) == first.number

    def test_other_mistakes_are_refused_in_one_line(self, tmp_path: Path) -> None:
        searcher = taylorglo.Searcher(classes=3, popsize=2, folder=tmp_path)
        with pytest.raises(InputError, match="no generation has all its scores yet"):
            searcher.recommended()
        loss = searcher.ask()[0].loss
        with pytest.raises(InputError, match="candidate 99: this search has no such candidate"):
            searcher.tell(taylorglo.Proposal(99, 1, loss, 0), 0.5)
        with pytest.raises(InputError, match="begun with search_popsize 2, now 3; give it another"):
            taylorglo.Searcher(classes=3, popsize=3, folder=tmp_path)
        foreign = taylorglo.Searcher(classes=3, popsize=2, seed=5).ask()[0]
        assert foreign.number in {candidate.number for candidate in searcher.ask()}
        with pytest.raises(InputError, match="candidate 0: this search has no such candidate"):
            searcher.tell(foreign, 0.5)
        with pytest.raises(InputError, match=r"candidate: should be one that ask\(\) ret"):
            searcher.tell(0, 0.5)  # type: ignore[arg-type]
        for key, value in (
            ("classes", 1),
            ("classes", "x"),
            ("popsize", 1),
            ("score", 3),
            ("settings", "a"),
        ):
            given: dict[str, Any] = {"classes": 3, key: value}
            with pytest.raises(InputError, match=rf"taylorglo\.Searcher: {key}: should [^\n]+$"):
                taylorglo.Searcher(**given)
        with pytest.raises(InputError, match="settings: popsize: is the argument popsize"):
            taylorglo.Searcher(classes=3, settings={"popsize": 4})


def test_the_package_is_imported_without_pytorch_and_the_search_is_found_in_any_order() -> None:
    program = (
        "import sys, taylorglo\n"
        "assert 'torch' not in sys.modules\n"
        "import taylorglo.search.study\n"
        "assert callable(taylorglo.search)\n"
        "from taylorglo import search\n"
        "assert search is taylorglo.search\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
