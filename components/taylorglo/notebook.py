"""The search as a call, and as ask and tell, for a notebook or a program of one's own.

Both keep everything in a folder, and go on from there if they are called again. There is no MLflow,
and no environment variable is read. The work is done by the same functions as in a sweep.
"""

import hashlib
import inspect
import marshal
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from taylorglo.addresses import expanded, sqlite_url
from taylorglo.data import dataset as datasets
from taylorglo.data import own
from taylorglo.data.seeds import derived_seed
from taylorglo.errors import InputError
from taylorglo.evaluation.comparison import tune_baselines
from taylorglo.imports import lent
from taylorglo.loss.functions import TaylorLoss
from taylorglo.report.record import sweep_record
from taylorglo.report.verdict import table, verdict
from taylorglo.results import Champion, Evaluation, Robustness
from taylorglo.scores import is_known, worst
from taylorglo.search.study import Search
from taylorglo.services import layout
from taylorglo.services.storage import FolderStore, Store
from taylorglo.settings import (
    HIGHEST_RATE,
    Identity,
    SearchSettings,
    Section,
    SweepSettings,
    validated,
)
from taylorglo.tasks.champion import choose_champion, crown, loss_of_champion
from taylorglo.tasks.context import Sweep, software
from taylorglo.tasks.open import identity_of
from taylorglo.tasks.search import search as run_generations
from taylorglo.training import function
from taylorglo.training.engine import Engine

_NAME, _ASKED = "search", "asked"  # the studies of a folder
_RATES = (0.1, 0.3, 1.0, 3.0)  # of the baselines, by the learning rate of the candidates


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        loss: the loss that it recommends.
        score: its expected validation score, the mean over those of its trainings as a finalist
            that have a score; NaN if none has.
        interval: the 95 % interval of that mean; None if it is over one training, or none.
        table: the comparison with tuned baselines on the test split as text; empty if it was not
            asked for.
        verdict: its outcome in a sentence; empty if it was not asked for.
    """

    loss: TaylorLoss
    score: float
    interval: tuple[float, float] | None
    table: str = ""
    verdict: str = ""


# What an argument of a call decides, and the further settings may not decide again.
_BY_ARGUMENTS = {
    "name": "folder",
    "seed": "seed",
    "data": "classes",
    "training.function": "train",
    "training.learning_rate": "learning_rate",
    "evaluation.score": "score",
    "search.popsize": "popsize",
}


def _path(value: Any) -> Any:
    """Accept a path as text or as an object, and nothing else that has a text."""
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("should be a path, or None")
    return expanded(value)


class _Arguments(Section):
    """What a search by call and one by ask and tell have in common."""

    classes: int = Field(ge=2)
    popsize: int = Field(ge=2)
    seed: int = Field(ge=0, lt=2**31)
    score: str = Field(min_length=1)
    folder: Annotated[Path | None, BeforeValidator(_path)]
    settings: dict[str, Any]

    @field_validator("*", mode="before")
    @classmethod
    def _texts_are_no_numbers(cls, value: object, info: ValidationInfo) -> object:
        """Refuse a text for a number: YAML may have quotes around one, and Python has no need."""
        annotation = cls.model_fields[info.field_name].annotation if info.field_name else None
        if isinstance(value, str) and annotation in (int, float):
            whole = "whole " if annotation is int else ""
            raise ValueError(f"should be a {whole}number, not a text")
        return value


class _SearchArguments(_Arguments):
    """The arguments of a search by call."""

    generations: int = Field(ge=1)
    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=HIGHEST_RATE / max(_RATES))


def search(
    train: Callable[..., Any],
    *,
    classes: int,
    generations: int = 8,
    popsize: int = 8,
    seed: int = 0,
    steps: int = 1000,
    learning_rate: float = 0.1,
    score: str = "accuracy",
    folder: str | Path | None = None,
    compare: bool = False,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> SearchResult:
    """Search a loss for a training of your own, and print the progress.

    A function that can be imported trains in several processes, unless ``training.engine`` is
    ``sequential``. One that cannot, such as one of a notebook or of the script that is run, trains
    in this process, one training after another.

    Args:
        train: called as ``train(loss, *, seed, steps, learning_rate, split, device)``; returns a
            score, which is maximised, or a :class:`taylorglo.Result`. ``split`` is a
            :class:`taylorglo.Split`.
        classes: number of classes, at least 2.
        generations: number of generations.
        popsize: number of candidates of a generation, at least 2.
        seed: decides the candidates, and the seeds of the trainings.
        steps: passed on to the function.
        learning_rate: passed on to the function.
        score: name of the score that the function returns.
        folder: where everything is kept. The same call goes on from there. None: nothing is kept.
        compare: whether to tune the baselines, and to compare the champion with them on the test
            split.
        settings: further settings of a sweep, a mapping for each section.

    Raises:
        InputError: an argument is wrong, the function cannot be called so, or the folder has a
            search that was begun with other arguments.
        TaylorgloError: every training of a generation failed.
    """
    arguments = validated(
        _SearchArguments,
        {
            "classes": classes,
            "generations": generations,
            "popsize": popsize,
            "seed": seed,
            "steps": steps,
            "learning_rate": learning_rate,
            "score": score,
            "folder": folder,
            "settings": {} if settings is None else settings,
        },
        "taylorglo.search",
    )
    _check_further(arguments.settings)
    given: dict[str, Any] = {
        "data": {"name": "own", "classes": arguments.classes},
        "training": {"steps": arguments.steps, "learning_rate": arguments.learning_rate},
        "evaluation": {"steps": arguments.steps, "score": arguments.score},
        "search": {"popsize": arguments.popsize},
        "baselines": {"learning_rates": [rate * arguments.learning_rate for rate in _RATES]},
        # Nothing is attacked; there are to be no more of its networks than of the champion's.
        "attack": {"seeds": 1},
    }
    for section, values in arguments.settings.items():
        # Anything else is an error, which the validation reports.
        is_section = isinstance(values, Mapping)
        given[section] = {**given.get(section, {}), **values} if is_section else values
    with ExitStack() as stack:
        named = stack.enter_context(_named(train))
        if isinstance(given["training"], Mapping):
            given["training"] = {**given["training"], **named}
        sections = {"name": _NAME, "seed": arguments.seed, **given}
        checked = validated(SweepSettings, sections, "taylorglo.search")
        kept = stack.enter_context(_kept(arguments.folder))
        sweep = _begun(checked, arguments.generations, kept)
        run_generations(sweep, sweep.search_data_path)
        if compare:
            return _compared(sweep)
        champion, _ = choose_champion(sweep, sweep.search_data_path)
        return _result(champion, sweep)


def _check_further(settings: Mapping[str, Any]) -> None:
    """Refuse further settings that an argument of the call decides.

    Raises:
        InputError: naming the argument.
    """
    for path, argument in _BY_ARGUMENTS.items():
        section, _, key = path.partition(".")
        values = settings.get(section)
        if section in settings and (not key or (isinstance(values, Mapping) and key in values)):
            raise InputError(f"taylorglo.search: settings: {path}: is the argument {argument}")


class _LocalSweep(Sweep):
    """A sweep whose study and store are in a folder, and that has no MLflow run."""

    folder: Path

    @cached_property
    def search(self) -> Search:
        """The study."""
        settings, classes = self.settings, self.num_classes
        return _study(self.folder, self.study, settings.search, settings.seed, classes=classes)

    @cached_property
    def store(self) -> Store:
        """The folder with the finished trainings."""
        return FolderStore(self.folder / "store")

    @property
    def search_data_path(self) -> str:
        """The path of the data without the test split."""
        return str(self.folder / "search-data.safetensors")

    @property
    def full_data_path(self) -> str:
        """The path of the data with the test split."""
        return str(self.folder / "data.safetensors")


@contextmanager
def _kept(folder: Path | None) -> Iterator[Path]:
    """Yield the folder, which is made; or one that is removed at the end of the block."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="taylorglo-") as temporary:
            yield Path(temporary)
        return
    path = folder.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from None
    yield path


@contextmanager
def _named(train: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Yield the settings of a training by a function, which has a name in the block."""
    if not callable(train):
        raise InputError(f"train: should be a function, is a {type(train).__name__}")
    module = getattr(train, "__module__", None) or "__main__"
    attribute = getattr(train, "__qualname__", type(train).__qualname__)
    name = f"{module}:{attribute}".replace("<locals>", "locals").replace(" ", "")
    function.check_call(train, name)
    if _is_importable(train, module, attribute):
        yield {"function": name}
        return
    with lent(name, train, _digest(train)):
        # The threads of this process stay as they are.
        threads = torch.get_num_threads()
        yield {"function": name, "engine": "sequential", "threads": threads}


def _is_importable(train: Callable[..., Any], module: str, attribute: str) -> bool:
    """Return whether another process finds the function by its name."""
    # What is the main module here, is another one there.
    if module == "__main__":
        return False
    try:
        return getattr(import_module(module), attribute, None) is train
    except ImportError:
        # A module that was loaded by its path, or made by a program.
        return False


def _digest(train: Callable[..., Any]) -> str:
    """Return a text that changes if a function is another one, as far as that can be seen.

    What counts is the source. Of a partial function the arguments count, too, and of an object and
    of a method the attributes, as far as they are plain values.
    """
    return hashlib.sha256("\n".join(_parts(train)).encode()).hexdigest()


def _parts(train: Any) -> Iterator[str]:
    if isinstance(train, partial):
        yield from _parts(train.func)
        yield _plain([train.args, train.keywords])
    elif isinstance(train, MethodType):
        yield from _parts(train.__func__)
        yield _plain(getattr(train.__self__, "__dict__", {}))
    elif hasattr(train, "__code__"):
        yield _source(train) or marshal.dumps(train.__code__).hex()
    else:
        yield _source(type(train)) or type(train).__qualname__
        yield _plain(getattr(train, "__dict__", {}))


def _source(thing: Any) -> str:
    """Return the source of a function or of a class; empty if Python does not have it."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return ""


def _plain(value: Any) -> str:
    """Return a value as text; of a thing that is no plain value, the name of its type.

    The text of any other thing may have its address in memory, or a part of its content alone.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_plain, value))})"
    if isinstance(value, dict):
        pairs = sorted(f"{_plain(key)}: {_plain(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    return type(value).__qualname__


def _begun(settings: SweepSettings, generations: int, folder: Path) -> _LocalSweep:
    """Open the study in a folder, and write the data that stand for those of the function."""
    dataset = own.stand_in(settings.data.classes)
    begun = _study(
        folder,
        _NAME,
        settings.search,
        settings.seed,
        classes=dataset.num_classes,
        identity=identity_of(settings, dataset.fingerprint),
    )
    sweep = _LocalSweep(
        settings=settings,
        study=begun.study,
        generations=generations,
        first=1,
        last=generations,
        shards=1,
        num_classes=dataset.num_classes,
        fingerprint=dataset.fingerprint,
        provenance=dataset.provenance,
        guessing=None,
        run_id="",
        started=time.time(),
        folder=folder,
    )
    datasets.save(datasets.without_test(dataset), Path(sweep.search_data_path))
    datasets.save(dataset, Path(sweep.full_data_path))
    return sweep


def _study(
    folder: Path,
    name: str,
    settings: SearchSettings,
    seed: int,
    *,
    classes: int,
    identity: Identity | None = None,
) -> Search:
    """Open a study in a folder; without an identity, one that was opened before.

    Raises:
        InputError: it was begun with other arguments.
    """
    file = folder / "study.db"
    url = sqlite_url(file)
    if identity is not None and file.exists():
        known = Search(url, name, settings, seed, num_classes=classes)
        if changed := known.changes(identity):
            raise InputError(
                f"{folder}: the search was begun with {', '.join(changed)}; give it another "
                "folder, or the same arguments"
            )
    return Search(url, name, settings, seed, identity, num_classes=classes)


def _compared(sweep: _LocalSweep) -> SearchResult:
    """Tune the baselines, compare the champion with them, and return the result."""
    with Engine.open(sweep.settings, sweep.search_data_path) as engine:
        tuning = tune_baselines(engine, sweep.full_trainings)
    outcome = crown(sweep, sweep.search_data_path, sweep.full_data_path, tuning)
    now = time.time()
    record = sweep_record(
        sweep.settings,
        candidates=sweep.search.candidates(),
        tuning=tuning,
        comparison=outcome.comparison,
        robustness=Robustness(rows=[], started=now, ended=now),
        generations=sweep.generations,
        num_classes=sweep.num_classes,
        provenance=sweep.provenance,
        guessing=None,
        software=software(),
        started=sweep.started,
        standing=None,
    )
    return _result(outcome.comparison.champion, sweep, table(record), verdict(record))


def _result(
    champion: Champion, sweep: _LocalSweep, compared: str = "", outcome: str = ""
) -> SearchResult:
    """Return the result of a search, whose loss is kept in the folder, as a program, too."""
    loss = loss_of_champion(champion, sweep)
    loss.save(sweep.folder / layout.LOSS)
    (sweep.folder / layout.PROGRAM).write_text(loss.source())
    expected = champion.fitness if is_known(champion.fitness) else math.nan
    return SearchResult(loss, expected, champion.interval, compared, outcome)


@dataclass(frozen=True)
class Proposal:
    """A candidate to train.

    Attributes:
        number: of the candidate in the search.
        generation: number of its generation, from 1.
        loss: its loss.
        seed: for the training. All candidates that are compared have the same one.
    """

    number: int
    generation: int
    loss: TaylorLoss
    seed: int


class Searcher:
    """A search by ask and tell, for a program that owns the loop.

    ::

        searcher = taylorglo.Searcher(classes=10, folder="found")
        for generation in range(8):
            for candidate in searcher.ask():
                searcher.tell(candidate, train(candidate.loss))
        loss = searcher.recommended()

    Args:
        classes: number of classes, at least 2.
        popsize: number of candidates of a generation, at least 2.
        seed: decides the candidates, and the seeds of the trainings.
        score: name of the score, which is maximised.
        folder: where everything is kept; a searcher with the same arguments goes on from there.
            None: nothing is kept.
        settings: further settings of the section ``search`` of a sweep.

    Raises:
        InputError: an argument is wrong, or the folder has a search with other arguments.
    """

    def __init__(
        self,
        *,
        classes: int,
        popsize: int = 8,
        seed: int = 0,
        score: str = "accuracy",
        folder: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        arguments = validated(
            _Arguments,
            {
                "classes": classes,
                "popsize": popsize,
                "seed": seed,
                "score": score,
                "folder": folder,
                "settings": {} if settings is None else settings,
            },
            "taylorglo.Searcher",
        )
        if "popsize" in arguments.settings:
            raise InputError("taylorglo.Searcher: settings: popsize: is the argument popsize")
        given = {
            "seed": arguments.seed,
            "search": {"popsize": arguments.popsize, **arguments.settings},
        }
        checked = validated(SweepSettings, given, "taylorglo.Searcher")
        self._kept = ExitStack()
        self._folder = self._kept.enter_context(_kept(arguments.folder))
        self._score = arguments.score
        self._seed = arguments.seed
        self._classes = arguments.classes
        self._settings = checked.search
        decisive = {**checked.identity("own").candidates, "classes": self._classes}
        identity = Identity(decisive, {"score": self._score}, "own")
        self._search = _study(
            self._folder,
            _ASKED,
            checked.search,
            self._seed,
            classes=self._classes,
            identity=identity,
        )

    @property
    def generations(self) -> int:
        """The number of generations that have all their scores."""
        return self._search.complete_generations()

    def ask(self) -> list[Proposal]:
        """Return the candidates of the present generation that have no score yet.

        If all have theirs, the next generation is drawn. Asking again gives the same candidates.

        Raises:
            InputError: the filters reject too many candidates.
        """
        generation = self.generations + 1
        candidates = self._search.candidates(generation)
        if not self._search.is_screened(candidates):
            self._search.propose(generation)
            candidates = self._search.screen(generation)
        seed = derived_seed(self._seed, self._search.group(generation), 0)
        return [
            Proposal(c.trial, generation, self._loss(c.theta), seed)
            for c in candidates
            if not c.finished
        ]

    def tell(self, candidate: Proposal, score: float) -> None:
        """Record the score of a candidate.

        NaN and infinity say that the training diverged. Telling a candidate again changes nothing.

        Args:
            candidate: that was asked for.
            score: of a training with its loss; higher is better.

        Raises:
            InputError: the score is no number, or the search has no such candidate.
        """
        if not isinstance(candidate, Proposal):
            raise InputError(
                f"candidate: should be one that ask() returned, is a {type(candidate).__name__}"
            )
        try:
            value = function.checked_score(score, self._score)
        except InputError as error:
            raise InputError(f"candidate {candidate.number}: {error}") from None
        known = {c.trial: list(c.theta) for c in self._search.candidates()}
        # Another search has candidates of the same numbers.
        if known.get(candidate.number) != candidate.loss.theta.tolist():
            raise InputError(f"candidate {candidate.number}: this search has no such candidate")
        finite, now = math.isfinite(value), time.time()
        fitness = value if finite else worst(self._score)
        self._search.tell(
            candidate.number,
            Evaluation(
                status="ok" if finite else "diverged",
                fitness=fitness,
                accuracies=[fitness],
                robust_accuracies=[],
                curve=[],
                started=now,
                ended=now,
                seconds=0.0,
                reason="" if finite else f"the score is {value}",
            ),
        )

    def recommended(self) -> TaylorLoss:
        """Return the loss that the complete generations lead to.

        It is the mean of the search's distribution, or the best candidate of the last generation
        if the filters reject the mean.

        Raises:
            InputError: no generation is complete, or no candidate has a score.
        """
        if not self.generations:
            raise InputError("no generation has all its scores yet; tell them first")
        self._search.check_trained()
        return self._loss(self._search.mean() or self._search.leaders(1)[0].theta)

    def _loss(self, theta: Sequence[float]) -> TaylorLoss:
        return TaylorLoss(theta, self._settings.order, classes=self._classes)
