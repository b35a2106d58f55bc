"""Where the time of one candidate goes, in the usual loop and in the engine."""

import time
from dataclasses import replace
from typing import Any

import torch
from cases import Case, thetas
from reference import Reference
from torch.profiler import ProfilerActivity, profile

from taylorglo.data.dataset import Dataset
from taylorglo.training.loop import build_network, train_network
from taylorglo.training.plan import Plan
from taylorglo.training.stacked import train_stack

KINDS = {
    "convolution": ("conv",),
    "matrix product": ("mm", "addmm", "bmm", "linear"),
    "pooling": ("pool",),
    "optimizer": ("sgd", "optimizer", "_foreach"),
    "dropout": ("bernoulli", "dropout", "random_"),
    "copies and casts": ("copy_", "index", "_to_copy", "contiguous", "cat", "stack"),
}


def print_profiles(case: Case, reference: Reference, dataset: Dataset, plan: Plan) -> None:
    """Print where the time of one candidate goes, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    short = replace(case, steps=max(3, case.steps // 4))
    _print_reference(reference.of(short), max(1, reference.workers))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        _train(short, dataset, plan)
    print(f"  engine: {_listed(profiler)}")
    torch.set_num_threads(threads)


def _print_reference(reference: Reference, workers: int) -> None:
    """Print the profile of the usual loop.

    At least one worker loads the images, so that the transforms are not in the profile.
    """
    reference.workers = workers
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        reference.train(thetas(1)[0])
        seconds = time.perf_counter() - started
    print(
        f"  reference, the loader (workers: {workers}) {reference.waited / seconds:.0%} of the "
        f"time; the rest of it: {_listed(profiler)}"
    )


def _train(case: Case, dataset: Dataset, plan: Plan) -> None:
    """Train as the plan says: the whole generation in one program, or one candidate."""
    settings, recipes = case.settings(), [recipe for _, recipe in case.recipes()]
    if plan.engine == "fused":
        train_stack(recipes, dataset, settings, plan.precision)
    else:
        network = build_network(settings, dataset, 0)
        train_network(network, recipes[0], dataset, settings, precision=plan.precision)


def _shares(events: Any) -> dict[str, float]:
    """Return the shares of a profile's time by kind of operation, without the wait for a loader."""
    times: dict[str, float] = {}
    for event in events:
        name = event.key.lower()
        if "dataloader" in name:
            continue
        kinds = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
        kind = next(kinds, "the rest")
        times[kind] = times.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    return {kind: value / total for kind, value in times.items()}


def _listed(profiler: Any) -> str:
    """Return the shares of a profile in words, the largest first."""
    shares = sorted(_shares(profiler.key_averages()).items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares if share >= 0.01)
