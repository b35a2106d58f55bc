"""A training by a function of a user: how it is found, called and judged."""

import inspect
import math
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from taylorglo import scores
from taylorglo.data.dataset import Dataset
from taylorglo.errors import InputError, TaylorgloError, described, quoted
from taylorglo.imports import imported, revision_of
from taylorglo.networks.weights import Origin, packed
from taylorglo.results import Curve, Status, Training
from taylorglo.settings import SweepSettings
from taylorglo.training.contract import Result, Split
from taylorglo.training.loop import Recipe, TrainedNetwork, seeded

CALL = "train(loss, *, seed, steps, learning_rate, split, device)"
_ROUNDING = 1e-6  # of a share: a mean in float32 may be as much above 1
_ARGUMENTS = ("seed", "steps", "learning_rate", "split", "device")


def check(name: str) -> None:
    """Refuse a name that stands for no function, or for one that cannot be called as needed.

    Raises:
        InputError: naming what is wrong.
    """
    check_call(_find(name), _subject(name))


def check_call(function: Callable[..., Any], subject: str) -> None:
    """Refuse a function that does not take the arguments of a training.

    Args:
        function: of a user.
        subject: its name, for the error.

    Raises:
        InputError: it does not take them.
    """
    try:
        inspect.signature(function).bind(None, **dict.fromkeys(_ARGUMENTS))
    except TypeError as error:
        raise InputError(
            f"{subject}: should be callable as {CALL}: {error}; **_ takes what it does not need"
        ) from None
    except ValueError:
        # A function in C may have no signature. It is tried as it is.
        return


def revision(name: str) -> str:
    """Return the checksum of the file of a function; empty if there is no function.

    Raises:
        InputError: there is no such function.
    """
    if not name:
        return ""
    _find(name)
    return revision_of(name)


def train_by_function(
    recipe: Recipe, dataset: Dataset, settings: SweepSettings, device: str
) -> TrainedNetwork:
    """Do one training by the function that the settings name.

    Python's, NumPy's and PyTorch's generators are seeded for it, and restored afterwards. The score
    is the test score if the recipe keeps the network and the data set has its test split, else the
    validation score.

    Args:
        recipe: the training to do.
        dataset: that the sweep knows.
        settings: of the sweep.
        device: ``cpu`` or ``cuda``.

    Returns:
        A training of the status ``failed`` if what the function returned is no result, and
        ``diverged`` if its score is NaN or infinite: it would be so again.

    Raises:
        TaylorgloError: the function raised an error.
    """
    function = _find(settings.training.function)
    tested = recipe.kept and dataset.test is not None
    split = Split("test" if tested else "validation", *_fold(recipe))
    started = time.time()
    with _seeded(recipe.seed, torch.device(device)):
        returned = _called(function, settings.training.function, recipe, split, device)
    outcome = _judged(returned, settings, dataset if tested else None)
    now = time.time()
    training = Training(
        status=outcome.status,
        accuracy=outcome.score,
        test_accuracy=outcome.score if tested else None,
        curve=outcome.curve,
        started=started,
        ended=now,
        seconds=now - started,
        reason=outcome.reason,
    )
    return TrainedNetwork(training, outcome.weights)


def _fold(recipe: Recipe) -> tuple[int, ...]:
    """Return number, count and seed of the fold of a training; nothing without folds.

    The numbers go around from another start in each order. So a function that divides its data by
    the number alone is not validated on one and the same part in the first attempt of each group.
    """
    fold = recipe.fold
    return () if fold is None else ((fold.index + fold.seed) % fold.count, fold.count, fold.seed)


class _Outcome(NamedTuple):
    """What a function returned, as a result: its fields are those of the training and its network.

    ``score`` is that of a training without a score unless ``status`` is ``ok``.
    """

    status: Status
    score: float
    curve: Curve
    reason: str = ""
    weights: bytes = b""


def _judged(returned: Any, settings: SweepSettings, dataset: Dataset | None) -> _Outcome:
    """Return the outcome of a training.

    Args:
        returned: by the function.
        settings: of the sweep.
        dataset: that the sweep knows, if the network is kept; else None.
    """
    name = settings.evaluation.score
    subject, missing = _subject(settings.training.function), scores.worst(name)
    result = returned if isinstance(returned, Result) else Result(returned)
    try:
        score, curve = checked_score(result.score, name), _curve(result.curve)
        # In every training, so that a mistake is found in the first one and not in the last ones.
        _check_model(result.model)
        weights = b"" if dataset is None else _weights(result.model, dataset, settings)
    except InputError as error:
        return _Outcome("failed", missing, [], f"{subject}: {error}")
    if not math.isfinite(score):
        reason = f"{subject}: gave the score {score}; it should be finite"
        return _Outcome("diverged", missing, curve, reason)
    return _Outcome("ok", score, curve, weights=weights)


def checked_score(value: Any, name: str) -> float:
    """Return a score as a number of Python, which may be NaN or infinite.

    Args:
        value: what a user gave as a score.
        name: of the score.

    Raises:
        InputError: it is no number, or none that a score of this name may be.
    """
    if isinstance(value, Tensor):
        hint = "value.item()" if value.numel() == 1 else "the mean of its values, perhaps"
        raise InputError(
            f"gave a tensor of shape {tuple(value.shape)} as the score; it should be a number: "
            f"{hint}"
        )
    is_number = isinstance(value, int | float | np.floating | np.integer)
    if not is_number or isinstance(value, bool):
        shown = "None" if value is None else f"{quoted(value)}, a {type(value).__name__},"
        raise InputError(f"gave {shown} as the score; it should be a number")
    try:
        number = float(value)
    except OverflowError:
        raise InputError(f"gave a number of {len(str(abs(value)))} digits as the score") from None
    if not math.isfinite(number):
        return number
    if scores.is_share(name) and -_ROUNDING <= number <= 1 + _ROUNDING:
        return min(1.0, max(0.0, number))
    if scores.is_share(name):
        raise InputError(
            f"gave {number:g} as the {scores.words(name)}, which should be from 0 to 1; another "
            "score should have another name (evaluation.score)"
        )
    if abs(number) > scores.MOST:
        raise InputError(f"gave {number:g} as the score; it should be within {scores.MOST:g}")
    return number


def _subject(name: str) -> str:
    return f"training.function {name!r}"


def _find(name: str) -> Callable[..., Any]:
    return imported(name, _subject(name), CALL)


_printed: set[str] = set()  # the errors whose tracebacks this process has printed


def _called(
    function: Callable[..., Any], name: str, recipe: Recipe, split: Split, device: str
) -> Any:
    """Call a function; an error of it becomes one line that names the place in its file."""
    try:
        return function(
            recipe.loss.to(device),
            seed=recipe.seed,
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            split=split,
            device=device,
        )
    except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError):
        # The engine deals with these.
        raise
    except (Exception, SystemExit) as error:
        kind, _, message = described(error).partition(": ")
        line = f"{_subject(name)}: raised {kind}{_place(error, function)}: {message}"
        # A person who mends the function wants the whole of it, once.
        if line not in _printed:
            _printed.add(line)
            traceback.print_exc()
    # Raised outside of the handler: the handled error would keep all tensors of its frames.
    raise TaylorgloError(line)


def _place(error: BaseException, function: Callable[..., Any]) -> str:
    """Return the last line of a function's own file that an error went through, in words."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    return f" in line {own[-1].lineno} of {own[-1].filename}" if own else ""


def _curve(points: Any) -> Curve:
    """Return a learning curve as the report draws it, without points that are not finite."""
    try:
        pairs = [(int(step), float(score)) for step, score in points or ()]
    except (TypeError, ValueError):
        raise InputError(
            f"gave the curve {quoted(points)}, which should be pairs of step and score"
        ) from None
    return [(step, score, None) for step, score in pairs if math.isfinite(score)]


def _check_model(model: Any) -> None:
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(
            f"gave a {type(model).__name__} as the model; it should be a torch.nn.Module"
        )


def _weights(model: nn.Module | None, dataset: Dataset, settings: SweepSettings) -> bytes:
    """Return the state of a network as safetensors; empty without a network.

    On data that the sweep knows, the network takes pixels in [0, 1], or features as they are, so
    its weights get a normalisation that changes nothing. So they are those of ``model.name``, as a
    built-in training keeps them.
    """
    if model is None:
        return b""
    # A module may put other things into its state.
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if settings.data.name == "own":
        return packed(state, Origin(None, None, dataset.num_classes))
    state = {f"network.{name}": value for name, value in state.items()}
    channels, *sides = dataset.image_shape
    by_channel = [channels, *(1 for _ in sides)]
    state["normalize.mean"] = torch.zeros(by_channel)
    state["normalize.std"] = torch.ones(by_channel)
    origin = Origin(settings.model.name, dataset.image_shape, dataset.num_classes)
    return packed(state, origin)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch; restore them afterwards."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        with seeded(seed, device):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
