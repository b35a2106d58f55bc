"""Trainings of a user, for the tests. Worker processes can import them."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import taylorglo
from taylorglo import Result, Split

FOLDER = "OWN_TRAININGS"  # the variable with the folder that trainings leave files in


def echo(
    loss: nn.Module,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    split: Split,
    device: str,
) -> float:
    """Return a score that depends on every argument."""
    value = float(loss(torch.zeros(1, 4), torch.tensor([1])))
    assert device == "cpu"
    parts = (seed, steps, learning_rate, split.fold, split.folds, split.seed, value)
    return -sum(part * 10.0**-place for place, part in enumerate(parts)) - 1e6 * (
        split.name == "test"
    )


def parent(loss: nn.Module, **_: Any) -> float:
    """Start a process that leaves its number in a file, and hang with it."""
    child = subprocess.Popen(["sleep", "600"])
    (Path(os.environ[FOLDER]) / str(child.pid)).touch()
    time.sleep(600)
    return 0.5


def fold(loss: nn.Module, *, split: Split, **_: Any) -> float:
    """Return the number of the fold, as a share of their number."""
    return split.fold / split.folds


def drawn(loss: nn.Module, **_: Any) -> float:
    """Return a score from the generators of Python, NumPy and PyTorch."""
    return random.random() + np.random.rand() + torch.rand(()).item()


def process(loss: nn.Module, **_: Any) -> float:
    """Return the number of the process."""
    return float(os.getpid())


def helped(loss: nn.Module, **_: Any) -> float:
    """Return what a process of its own says, as those that load data do."""
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=queue.put, args=(0.5,))
    child.start()
    child.join()
    return float(queue.get())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def factory(image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build the network of :func:`whole`, as ``model.name`` does."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def whole(loss: nn.Module, **_: Any) -> Result:
    """Return a score, a network and a curve with a point that is not finite."""
    return Result(np.float32(0.5), network(), [(1, 0.25), (2, float("nan")), (3, 0.5)])


def odd(loss: nn.Module, *, seed: int, **_: Any) -> Any:
    """Go wrong in the way that the seed names, and leave a file for each try."""
    folder = Path(os.environ[FOLDER])
    tries = len(list(folder.glob(f"{seed}-*")))
    (folder / f"{seed}-{tries}").touch()
    match seed:
        case 1:
            raise ValueError("broken\nin two")
        case 2:
            return None
        case 3:
            return torch.tensor(0.5)
        case 4:
            return "0.5"
        case 5:
            return 63.2
        case 6:
            return float("nan")
        case 7:
            os.kill(os.getpid(), signal.SIGKILL)
        case 8:
            time.sleep(600)
        case 9:
            os._exit(3)
        case 10:
            raise SystemExit("enough")
        case 11:
            return Result(0.5, model="a network")  # type: ignore[arg-type]
        case 12:
            return Result(0.5, curve=[1, 2])  # type: ignore[list-item]
        case 13:
            return taylorglo.CrossEntropy()(torch.zeros(2, 3), torch.tensor([0.5]))
        case 14 if tries == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return 0.5


def few(loss: nn.Module, seed: int) -> float:
    """Take too few arguments."""
    return 0.5


NUMBER = 0.5
