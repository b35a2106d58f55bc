"""A Taylor loss beside nn.CrossEntropyLoss, forward and backward: ``make bench-losses``.

The losses take turns on the same logits, so that all of them see the same machine. A row has the
times of a call with its gradient, and the ratio of the times of each turn.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from taylorglo.loss.functions import TaylorLoss

SHAPES = {(64, 10): 50, (32, 50_257): 1}  # logits, with the number of calls in a turn
Objective = Callable[[Tensor, Tensor], Tensor]


def losses() -> dict[str, nn.Module]:
    """Return the losses to compare, the reference first."""
    return {
        "nn.CrossEntropyLoss": nn.CrossEntropyLoss(),
        "TaylorLoss, taylor": TaylorLoss.from_coefficients(1.0, -0.5, 0.2, 0.1),
        "TaylorLoss, taylor-log": TaylorLoss.from_coefficients(1.0, -0.5, 0.2, 0.1, log_weight=0.5),
    }


def seconds_of(loss: Objective, logits: Tensor, targets: Tensor, calls: int) -> float:
    """Return the seconds of a call with its gradient, the mean of a few calls."""
    started = time.perf_counter()
    for _ in range(calls):
        logits.grad = None
        loss(logits, targets).backward()  # type: ignore[no-untyped-call]
    return (time.perf_counter() - started) / calls


def compare(shape: tuple[int, int], *, kind: str, turns: int, compiled: bool) -> None:
    """Print a row for each loss on logits of a shape."""
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=source).requires_grad_()
    targets = torch.randint(shape[1], shape[:1], generator=source)
    if kind == "distributions":
        targets = torch.randn(shape, generator=source).softmax(dim=1)
    objectives: dict[str, Objective] = {
        name: torch.compile(loss) if compiled else loss for name, loss in losses().items()
    }
    for objective in objectives.values():
        seconds_of(objective, logits, targets, 3)
    times: dict[str, list[float]] = {name: [] for name in objectives}
    for _ in range(turns):
        for name, objective in objectives.items():
            times[name].append(seconds_of(objective, logits, targets, SHAPES[shape]))
    reference = next(iter(times.values()))
    for name, values in times.items():
        ratios = [value / usual for value, usual in zip(values, reference, strict=True)]
        print(
            f"{'compiled' if compiled else 'eager':<8}  {shape[0]} x {shape[1]:<6}  {kind:<13}  "
            f"{name:<22}  {1e6 * min(values):7.0f}  {1e6 * median(values):7.0f}  "
            f"{min(values) / min(reference):5.2f}  {median(ratios):5.2f}",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, float32, {arguments.turns} turns")
    print(f"{'microseconds':>76}{'ratio':>15}")
    print(
        f"{'mode':<8}  {'logits':<10}  {'targets':<13}  {'loss':<22}    {'least':<6} {'median':<8} "
        "least  median"
    )
    for compiled in (False, True):
        for kind in ("indices", "distributions"):
            for shape in SHAPES:
                compare(shape, kind=kind, turns=arguments.turns, compiled=compiled)


if __name__ == "__main__":
    main()
