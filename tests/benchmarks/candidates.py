"""What is spent per candidate, and whether it is safe to spend less (`make bench-candidates`).

precision: is bfloat16 as accurate as float32? The same trainings in both, from the same seeds.
ranks: does bfloat16 change the ranks in a generation more than another seed does? stopping: of the
candidates that a rule gives up, how many would have ended in the better half of their generation?
noise: equal searches with 1, 2 and 4 attempts, and with more for the leaders alone
(evaluation.max_attempts). adversarial: what the accuracy under FGSM in the fitness costs.

Data: scikit-learn's digits, and Fashion-MNIST (Debian's package dataset-fashion-mnist).
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau, ttest_rel
from torch.nn import functional

from taylorglo.data import dataset as data
from taylorglo.data.batches import derived_seed
from taylorglo.data.dataset import Dataset
from taylorglo.data.sources import Split, digest_of
from taylorglo.evaluation.fitness import attempts_wanted, evaluate, short_training
from taylorglo.loss.functions import CrossEntropy, TaylorLoss
from taylorglo.loss.polynomial import from_coefficients
from taylorglo.search.study import Search
from taylorglo.settings import DataSettings, SweepSettings
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, read_resident

FASHION = "/usr/share/datasets/fashion-mnist"
GOOD = from_coefficients(4.0, -4.0, -1.0, 0.0)


class Nothing:
    """A cache that forgets: everything is trained."""

    def recall(self, key: str) -> None:
        """Nothing is known."""

    def record(self, key: str, result: Any) -> None:
        """Nothing is kept."""


def fashion(train: int, validation: int, shrink: int = 1) -> Dataset:
    """A part of Fashion-MNIST, its images averaged over squares of ``shrink`` pixels."""
    whole = data.without_test(data.load(DataSettings(name="fashion-mnist", root=FASHION), 0))

    def part(split: Split, number: int) -> Split:
        images = functional.avg_pool2d(split.images[:number].float(), shrink).round().byte()
        return Split(images, split.labels[:number])

    parts = {"train": part(whole.train, train), "validation": part(whole.validation, validation)}
    return replace(
        whole, **parts, provenance={**whole.provenance, "fingerprint": digest_of(**parts)}
    )


def digits() -> Dataset:
    """Scikit-learn's digits."""
    return data.without_test(data.load(DataSettings(), 0))


def settings_of(model: str, steps: int, **sections: Any) -> SweepSettings:
    """The settings of a sweep with this network."""
    values: dict[str, Any] = {
        "model": {"name": model},
        "training": {"steps": steps, "learning_rate": 0.05},
        "evaluation": {"steps": steps, "give_up_step": 0},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return SweepSettings.model_validate(values)


class Bench:
    """A folder with data sets, and engines on them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def engine(self, settings: SweepSettings, dataset: Dataset) -> Engine:
        """An engine on a data set."""
        path = self._folder / f"{dataset.fingerprint[:12]}.safetensors"
        if not path.exists():
            data.save(dataset, path)
        return Engine(settings, partial(read_resident, str(path), settings.training))


def precision(bench: Bench) -> None:
    """Print the accuracies in both precisions, and a paired test."""
    print(
        "\nprecision: validation accuracy (%), mean of n seeds; difference: paired, with its 95 % interval"
    )
    whole, small = fashion(20_000, 4_000), fashion(20_000, 4_000, shrink=2)
    cases = (
        ("cnn", whole, 400, 0.05, 8),
        ("mnist-cnn", whole, 100, 0.05, 8),
        ("allcnn-c", small, 200, 0.01, 6),
    )
    for model, dataset, steps, rate, seeds in cases:
        for name, loss in (("cross-entropy", CrossEntropy()), ("a candidate", TaylorLoss(GOOD))):
            found = {}
            for kind in ("float32", "bfloat16"):
                own = settings_of(model, steps, training={"precision": kind, "batch_size": 100})
                with bench.engine(own, dataset) as engine:
                    recipes = [
                        (seed, Recipe(loss, rate, seed, steps, steps, 1)) for seed in range(seeds)
                    ]
                    trained = dict(engine.train(recipes))
                found[kind] = [100 * trained[seed].training.accuracy for seed in range(seeds)]
            single, half = found["float32"], found["bfloat16"]
            difference = statistics.mean(half) - statistics.mean(single)
            interval = ttest_rel(half, single).confidence_interval()
            print(
                f"  {model:<13} {name:<14} {steps} steps, n = {seeds}: float32 {statistics.mean(single):.2f}, "
                f"bfloat16 {statistics.mean(half):.2f}; difference {difference:+.2f} "
                f"({interval.low:+.2f} to {interval.high:+.2f})",
                flush=True,
            )


def ranks(bench: Bench) -> None:
    """Print how far float32 and bfloat16 agree on a generation, and how far float32 does with
    itself on two seeds."""
    print(
        "\nranks: in a first generation of n candidates (reduced, filters learnable, stable), by validation accuracy:\n"
        "  Kendall's tau-b, and how many of the better half are the same"
    )
    number, dataset = 24, fashion(20_000, 4_000)
    candidates = drawn(number, "reduced", ["learnable", "stable"], 0)
    for model, steps in (("cnn", 200), ("mnist-cnn", 100)):
        found = []
        for kind, seed in (("float32", 1), ("bfloat16", 1), ("float32", 2)):
            own = settings_of(model, steps, training={"precision": kind, "batch_size": 100})
            with bench.engine(own, dataset) as engine:
                recipes = (
                    (i, short_training(theta, seed, engine)) for i, theta in enumerate(candidates)
                )
                trained = dict(engine.train(recipes))
            found.append([trained[index].training.accuracy for index in range(number)])
        base, half, again = found
        print(
            f"  {model:<13} {steps} steps, n = {number}: float32 and bfloat16, one seed {agreement(base, half)}; "
            f"float32, two seeds {agreement(base, again)}",
            flush=True,
        )


def agreement(one: list[float], other: list[float]) -> str:
    """Kendall's tau-b of two lists of accuracies, and how many candidates are in the better half of
    both."""
    half = len(one) // 2
    best, best_of_other = (
        set(sorted(range(len(values)), key=values.__getitem__)[half:]) for values in (one, other)
    )
    return f"{kendalltau(one, other).statistic:.2f}, {len(best & best_of_other)} of {half}"


def drawn(number: int, coordinates: str, filters: list[str], seed: int) -> list[list[float]]:
    """Candidates of a first generation, as the search draws them."""
    own = SweepSettings.model_validate(
        {
            "search": {
                "coordinates": coordinates,
                "filters": filters,
                "popsize": number,
                "max_draws": 10_000,
            }
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        search = Search(f"sqlite:///{folder}/study.db", "drawn", own.search, seed, identity={})
        search.propose(1)
        return [c.theta for c in search.screen(1, 10) if not c.rejected]


def stopping(bench: Bench) -> None:
    """Print, by rule, how many candidates are stopped, how many of them wrongly, and what is
    saved."""
    print(
        "\nstopping: a rule stops what is not above chance + gain at one, two or three tenths of the steps; false: a\n"
        "  stopped candidate that would have ended in the better half of its generation of 12"
    )
    sets = (("mlp", digits(), 300), ("cnn", fashion(8_000, 500), 200))
    for model, dataset, steps in sets:
        for coordinates, filters in (("reduced", ["learnable", "stable"]), ("theta", ["none"])):
            number = 240 if model == "mlp" else 60
            own = settings_of(model, steps)
            with bench.engine(own, dataset) as engine:
                candidates = drawn(number, coordinates, filters, 0)
                recipes = [
                    (index, replace(short_training(theta, 1, engine), validations=10))
                    for index, theta in enumerate(candidates)
                ]
                trained = dict(engine.train(recipes))
            curves = [
                {
                    round(10 * step / steps): accuracy
                    for step, accuracy, _ in trained[index].training.curve
                }
                for index in range(number)
            ]
            final = [curve.get(10, 0.0) for curve in curves]
            print(
                f"  {model}, {steps} steps, n = {number} candidates, {coordinates}, filters {', '.join(filters)}:"
            )
            for tenth in (1, 2, 3):
                for gain in (0.02, 0.05, 0.1):
                    stopped = [i for i in range(number) if curves[i].get(tenth, 0.0) <= 0.1 + gain]
                    false = [i for i in stopped if better_half(i, final)]
                    saved = sum(1 - tenth / 10 for i in stopped) / number
                    best = max((final[i] for i in stopped), default=0.0)
                    print(
                        f"    at {tenth}/10, gain {gain:.2f}: stopped {len(stopped) / number:4.0%}, false {len(false)} "
                        f"of {len(stopped)}, best of the stopped {best:.1%}, steps saved {saved:.0%}",
                        flush=True,
                    )


def better_half(index: int, final: list[float], popsize: int = 12) -> bool:
    """Whether a candidate ends in the better half of its generation, the twelve that it was drawn
    with."""
    first = index - index % popsize
    generation = sorted(final[first : first + popsize], reverse=True)
    return final[index] >= generation[popsize // 2 - 1] and final[index] > 0.15


def noise(bench: Bench) -> None:
    """Print what searches find and spend, by how noise is handled."""
    dataset, generations, seeds, steps = digits(), 6, 12, 100
    variants = {
        "1 attempt": {"attempts": 1},
        "2 attempts": {"attempts": 2},
        "4 attempts": {"attempts": 4},
        "2, up to 8 for leaders": {"attempts": 2, "max_attempts": 8},
    }
    print(
        f"\nnoise: digits, mlp, {generations} generations of 12, {steps} steps per attempt, n = {seeds} searches; "
        "true fitness: of the best\n  candidate of the last generation, from 20 seeds that no search has seen"
    )
    found: dict[str, list[float]] = {name: [] for name in variants}
    spent: dict[str, list[int]] = {name: [] for name in variants}
    for seed in range(seeds):
        for name, evaluation in variants.items():
            own = settings_of("mlp", steps, seed=seed, evaluation=evaluation)
            with bench.engine(own, dataset) as engine, tempfile.TemporaryDirectory() as folder:
                search = Search(
                    f"sqlite:///{folder}/study.db", "noise", own.search, seed, identity={}
                )
                done = 0
                for generation in range(1, generations + 1):
                    done += searched(search, generation, engine)
                best = max(search.candidates(generations), key=lambda c: c.fitness or 0.0)
                recipes = [
                    (index, short_training(best.theta, derived_seed(10_000 + seed, index), engine))
                    for index in range(20)
                ]
                accuracies = [result.training.accuracy for _, result in engine.train(recipes)]
            found[name].append(100 * statistics.mean(accuracies))
            spent[name].append(done)
    base = found["2 attempts"]
    for name, values in found.items():
        difference = ttest_rel(values, base).pvalue if name != "2 attempts" else 1.0
        print(
            f"  {name:<24} true fitness {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %, "
            f"trainings {statistics.mean(spent[name]):.0f}, against 2 attempts p = {difference:.2f}",
            flush=True,
        )


def searched(search: Search, generation: int, engine: Engine) -> int:
    """One generation of a search, as the pipeline does it; returns how many trainings it took."""
    search.propose(generation)
    kept = [c for c in search.screen(generation, engine.dataset.num_classes) if not c.rejected]
    attempts = engine.settings.evaluation.attempts
    results = {
        number: evaluation.as_dict()
        for number, evaluation in evaluate(
            ((c.trial, c.theta, attempts) for c in kept), generation, engine, Nothing()
        )
    }
    done = len(kept) * attempts
    theta = {c.trial: c.theta for c in kept}
    while more := attempts_wanted(results, engine.settings):
        done += sum(wanted - len(results[number]["accuracies"]) for number, wanted in more.items())
        again = ((number, theta[number], wanted) for number, wanted in more.items())
        results |= {
            number: e.as_dict() for number, e in evaluate(again, generation, engine, Nothing())
        }
    for number, result in results.items():
        search.tell(number, result["fitness"], result)
    return done


def adversarial(bench: Bench) -> None:
    """Print the cost of the accuracy under FGSM, as a factor."""
    print(
        "\nadversarial: time of an evaluation with FGSM in the fitness, over that without; median (range) of 5 pairs"
    )
    for model, dataset, steps in (("mlp", digits(), 300), ("cnn", fashion(8_000, 2_000), 300)):
        ratios = []
        engines = []
        for weight in (0.0, 0.5):
            own = settings_of(
                model, steps, evaluation={"adversarial_weight": weight, "attempts": 1}
            )
            engines.append(bench.engine(own, dataset))
        with engines[0], engines[1]:
            for repetition in range(6):
                seconds = []
                for engine in engines:
                    started = time.perf_counter()
                    for _ in evaluate(
                        ((i, GOOD, 1) for i in range(8)), repetition + 1, engine, Nothing()
                    ):
                        pass
                    seconds.append(time.perf_counter() - started)
                if repetition:  # the first one starts the processes
                    ratios.append(seconds[1] / seconds[0])
        print(
            f"  {model}, 8 candidates of {steps} steps, {len(dataset.validation)} validation images: "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


STUDIES: dict[str, Callable[[Bench], None]] = {
    "precision": precision,
    "ranks": ranks,
    "stopping": stopping,
    "noise": noise,
    "adversarial": adversarial,
}


def main() -> None:
    """Run the studies that are asked for, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "studies", nargs="*", metavar="STUDY", default=list(STUDIES), help=", ".join(STUDIES)
    )
    chosen = parser.parse_args().studies
    if unknown := sorted(set(chosen) - STUDIES.keys()):
        parser.error(f"no study {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    print(
        f"{platform.machine()}, {torch.get_num_threads()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            STUDIES[name](Bench(Path(folder)))


if __name__ == "__main__":
    main()
