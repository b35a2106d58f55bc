"""What is spent per candidate, and whether it is safe to spend less (`make bench-candidates`).

precision: is bfloat16 as accurate as float32? The same trainings in both, from the same seeds.
ranks: does bfloat16 change the ranks in a generation more than another seed does?
stopping: of the candidates that a rule gives up, how many would have ended in the better half of
their generation?
noise: equal searches with 1, 2 and 4 attempts, and with more for the leaders alone
(evaluation.max_attempts).
adversarial: what the accuracy under FGSM in the fitness costs.

Data: scikit-learn's digits, and Fashion-MNIST (Debian's package dataset-fashion-mnist).
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from fashion import fashion_mnist
from scipy.stats import kendalltau, ttest_rel
from torch import Tensor
from torch.nn import functional

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.data.seeds import derived_seed
from taylorglo.evaluation.fitness import Assignment, attempts_wanted, evaluate, short_training
from taylorglo.loss.classic import CrossEntropy
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.loss.polynomial import from_coefficients
from taylorglo.results import Evaluation, Training
from taylorglo.search.study import Search
from taylorglo.settings import DataSettings, SweepSettings
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe

GOOD = from_coefficients(4.0, -4.0, -1.0, 0.0)
BASE = "2 attempts"  # that the other ways to handle noise are compared with

Curve = dict[int, float]  # accuracy by tenth of the training


class Nothing:
    """A cache that forgets: everything is trained."""

    def recall(self, key: str) -> Training | None:
        """Return None."""

    def record(self, key: str, training: Training) -> None:
        """Forget the training."""


def digits() -> Dataset:
    """Return scikit-learn's digits, without their test split."""
    return datasets.without_test(datasets.load(DataSettings(), 0))


def shrunk(images: Tensor) -> Tensor:
    """Return images of half the side, averaged over squares of 2 pixels."""
    return functional.avg_pool2d(images.float(), 2).round().byte()


def settings_of(model: str, steps: int, **sections: Any) -> SweepSettings:
    """Return the settings of a sweep with this network, and other settings by section."""
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
        """Return an engine on a data set."""
        path = self._folder / f"{dataset.fingerprint[:12]}.safetensors"
        if not path.exists():
            datasets.save(dataset, path)
        return Engine.open(settings, path)


def accuracies_of(engine: Engine, recipes: Iterable[Recipe]) -> list[float]:
    """Return the validation accuracies of trainings, in their order."""
    results = dict(engine.run(enumerate(recipes)))
    return [results[number].training.accuracy for number in sorted(results)]


def drawn(number: int, coordinates: str, filters: Sequence[str], seed: int) -> list[list[float]]:
    """Return the accepted candidates of a first generation, as the search draws them."""
    search = {
        "family": "taylor",
        "coordinates": coordinates,
        "filters": list(filters),
        "popsize": number,
        "max_draws": 10_000,
    }
    settings = SweepSettings.model_validate({"seed": seed, "search": search})
    with tempfile.TemporaryDirectory() as folder:
        study = opened(folder, settings)
        study.propose(1)
        return [c.theta for c in study.screen(1) if not c.rejected]


def opened(folder: str, settings: SweepSettings) -> Search:
    """Return a new search with its study in a folder."""
    identity = settings.identity("benchmark")
    url = f"sqlite:///{folder}/study.db"
    return Search(url, settings.name, settings.search, settings.seed, identity, num_classes=10)


def precision(bench: Bench) -> None:
    """Print the accuracies in both precisions, and a paired test."""
    print(
        "\nprecision: validation accuracy (%), mean of n seeds; difference: paired, with its "
        "95 % interval"
    )
    whole, small = fashion_mnist(20_000, 4_000), fashion_mnist(20_000, 4_000, shrunk)
    for model, dataset, steps, rate, seeds in (
        ("cnn", whole, 400, 0.05, 8),
        ("mnist-cnn", whole, 100, 0.05, 8),
        ("allcnn-c", small, 200, 0.01, 6),
    ):
        losses: dict[str, Loss] = {"cross-entropy": CrossEntropy(), "a candidate": TaylorLoss(GOOD)}
        for name, loss in losses.items():
            recipes = [Recipe(loss, rate, seed, steps, steps, 1) for seed in range(seeds)]
            accuracies = []
            for kind in ("float32", "bfloat16"):
                training = {"precision": kind, "batch_size": 100}
                with bench.engine(settings_of(model, steps, training=training), dataset) as engine:
                    accuracies.append([100 * value for value in accuracies_of(engine, recipes)])
            print(f"  {model:<13} {name:<14} {steps} steps, {compared(*accuracies)}", flush=True)


def compared(single: Sequence[float], half: Sequence[float]) -> str:
    """Return the means in both precisions and their difference in words."""
    interval = ttest_rel(half, single).confidence_interval()
    difference = mean(half) - mean(single)
    return (
        f"n = {len(single)}: float32 {mean(single):.2f}, bfloat16 {mean(half):.2f}; "
        f"difference {difference:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
    )


def ranks(bench: Bench) -> None:
    """Print how far two precisions agree on a generation, and how far two seeds do in float32."""
    print(
        "\nranks: in a first generation of n candidates (reduced, filters learnable, stable), by "
        "validation accuracy:\n  Kendall's tau-b, and how many of the better half are the same"
    )
    number, dataset = 24, fashion_mnist(20_000, 4_000)
    candidates = drawn(number, "reduced", ["learnable", "stable"], 0)
    for model, steps in (("cnn", 200), ("mnist-cnn", 100)):
        accuracies = []
        for kind, seed in (("float32", 1), ("bfloat16", 1), ("float32", 2)):
            training = {"precision": kind, "batch_size": 100}
            with bench.engine(settings_of(model, steps, training=training), dataset) as engine:
                recipes = [short_training(theta, seed, engine) for theta in candidates]
                accuracies.append(accuracies_of(engine, recipes))
        single, half, other_seed = accuracies
        print(
            f"  {model:<13} {steps} steps, n = {number}: float32 and bfloat16, one seed "
            f"{agreement(single, half)}; float32, two seeds {agreement(single, other_seed)}",
            flush=True,
        )


def agreement(one: Sequence[float], other: Sequence[float]) -> str:
    """Return Kendall's tau-b, and how many candidates are in the better half of both."""
    half = len(one) // 2

    def better(values: Sequence[float]) -> set[int]:
        return set(sorted(range(len(values)), key=values.__getitem__)[half:])

    same = len(better(one) & better(other))
    return f"{kendalltau(one, other).statistic:.2f}, {same} of {half}"


def stopping(bench: Bench) -> None:
    """Print, by rule, how many candidates are stopped, how many wrongly, and what is saved."""
    print(
        "\nstopping: a rule stops what is not above chance + gain at one, two or three tenths of "
        "the steps; false: a\n  stopped candidate that would have ended in the better half of its "
        "generation of 12"
    )
    for model, dataset, steps, number in (
        ("mlp", digits(), 300, 240),
        ("cnn", fashion_mnist(8_000, 500), 200, 60),
    ):
        for coordinates, filters in (("reduced", ["learnable", "stable"]), ("theta", ["none"])):
            candidates = drawn(number, coordinates, filters, 0)
            with bench.engine(settings_of(model, steps), dataset) as engine:
                curves = curves_of(engine, candidates)
            print(
                f"  {model}, {steps} steps, n = {number} candidates, {coordinates}, "
                f"filters {', '.join(filters)}:"
            )
            for tenth in (1, 2, 3):
                for gain in (0.02, 0.05, 0.1):
                    print(f"    {rule(curves, tenth, gain)}", flush=True)


def curves_of(engine: Engine, candidates: Sequence[Sequence[float]]) -> list[Curve]:
    """Train candidates to the end; return their curves, in their order."""
    recipes = [replace(short_training(theta, 1, engine), validations=10) for theta in candidates]
    results = dict(engine.run(enumerate(recipes)))
    steps = engine.settings.evaluation.steps
    return [
        {round(10 * step / steps): accuracy for step, accuracy, _ in results[number].training.curve}
        for number in sorted(results)
    ]


def rule(curves: Sequence[Curve], tenth: int, gain: float) -> str:
    """Return in words what stopping by a rule does."""
    final = [curve.get(10, 0.0) for curve in curves]
    number = len(curves)
    stopped = [i for i, curve in enumerate(curves) if curve.get(tenth, 0.0) <= 0.1 + gain]
    false = [index for index in stopped if better_half(index, final)]
    saved = len(stopped) * (1 - tenth / 10) / number
    best = max((final[index] for index in stopped), default=0.0)
    return (
        f"at {tenth}/10, gain {gain:.2f}: stopped {len(stopped) / number:4.0%}, false {len(false)} "
        f"of {len(stopped)}, best of the stopped {best:.1%}, steps saved {saved:.0%}"
    )


def better_half(index: int, final: Sequence[float], popsize: int = 12) -> bool:
    """Return whether a candidate ends in the better half of the generation it was drawn with."""
    first = index - index % popsize
    generation = sorted(final[first : first + popsize], reverse=True)
    return final[index] >= generation[popsize // 2 - 1] and final[index] > 0.15


def noise(bench: Bench) -> None:
    """Print what searches find and spend, by how noise is handled."""
    dataset, generations, seeds, steps = digits(), 6, 12, 100
    variants: dict[str, dict[str, int]] = {
        "1 attempt": {"attempts": 1},
        BASE: {"attempts": 2},
        "4 attempts": {"attempts": 4},
        "2, up to 8 for leaders": {"attempts": 2, "max_attempts": 8},
    }
    print(
        f"\nnoise: digits, mlp, {generations} generations of 12, {steps} steps per attempt, "
        f"n = {seeds} searches; true fitness: of the best\n  candidate of the last generation, "
        "from 20 seeds that no search has seen"
    )
    fitnesses: dict[str, list[float]] = {name: [] for name in variants}
    trainings: dict[str, list[int]] = {name: [] for name in variants}
    for seed in range(seeds):
        for name, evaluation in variants.items():
            settings = settings_of("mlp", steps, seed=seed, evaluation=evaluation)
            with bench.engine(settings, dataset) as engine:
                fitness, number = whole_search(engine, generations)
            fitnesses[name].append(fitness)
            trainings[name].append(number)
    for name, values in fitnesses.items():
        p = ttest_rel(values, fitnesses[BASE]).pvalue if name != BASE else 1.0
        print(
            f"  {name:<24} true fitness {mean(values):.2f} ± {stdev(values):.2f} %, "
            f"trainings {mean(trainings[name]):.0f}, against {BASE} p = {p:.2f}",
            flush=True,
        )


def whole_search(engine: Engine, generations: int) -> tuple[float, int]:
    """Search; return the true fitness of the result in %, and the number of trainings."""
    settings = engine.settings
    with tempfile.TemporaryDirectory() as folder:
        search = opened(folder, settings)
        trainings = sum(searched(search, number, engine) for number in range(1, generations + 1))
        best = max(search.candidates(generations), key=lambda c: c.fitness or 0.0)
    seeds = [derived_seed(10_000 + settings.seed, index) for index in range(20)]
    accuracies = accuracies_of(engine, [short_training(best.theta, seed, engine) for seed in seeds])
    return 100 * mean(accuracies), trainings


def searched(search: Search, generation: int, engine: Engine) -> int:
    """Run one generation as the pipeline does; return the number of trainings."""
    search.propose(generation)
    accepted = [c for c in search.screen(generation) if not c.rejected]
    thetas = {c.trial: c.theta for c in accepted}
    missing = dict.fromkeys(thetas, engine.settings.evaluation.attempts)
    results: dict[int, Evaluation] = {}
    trainings = 0
    while missing:
        done = sum(len(results[trial].accuracies) for trial in missing if trial in results)
        trainings += sum(missing.values()) - done
        assignments = [Assignment(t, thetas[t], attempts) for t, attempts in missing.items()]
        results |= dict(evaluate(assignments, search.group(generation), engine, Nothing()))
        missing = attempts_wanted(results, engine.settings)
    for trial, evaluation in results.items():
        search.tell(trial, evaluation)
    return trainings


def adversarial(bench: Bench) -> None:
    """Print the cost of the accuracy under FGSM, as a factor."""
    print(
        "\nadversarial: time of an evaluation with FGSM in the fitness, over that without; median "
        "(range) of 5 pairs"
    )
    for model, dataset, steps in (
        ("mlp", digits(), 300),
        ("cnn", fashion_mnist(8_000, 2_000), 300),
    ):

        def settings(weight: float, model: str = model, steps: int = steps) -> SweepSettings:
            evaluation = {"adversarial_weight": weight, "attempts": 1}
            return settings_of(model, steps, evaluation=evaluation)

        with (
            bench.engine(settings(0.0), dataset) as plain,
            bench.engine(settings(0.5), dataset) as attacked,
        ):
            # The first pair starts the processes, and is not counted.
            pairs = [(seconds_of(plain, n), seconds_of(attacked, n)) for n in range(1, 7)][1:]
        ratios = [with_attack / without for without, with_attack in pairs]
        print(
            f"  {model}, 8 candidates of {steps} steps, {len(dataset.validation)} validation "
            f"images: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def seconds_of(engine: Engine, generation: int) -> float:
    """Return the seconds that the evaluation of 8 candidates takes."""
    started = time.perf_counter()
    assignments = [Assignment(number, GOOD, 1) for number in range(8)]
    for _ in evaluate(assignments, generation, engine, Nothing()):
        pass
    return time.perf_counter() - started


STUDIES: Mapping[str, Callable[[Bench], None]] = {
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
        f"{platform.machine()}, {torch.get_num_threads()} cores; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            STUDIES[name](Bench(Path(folder)))


if __name__ == "__main__":
    main()
