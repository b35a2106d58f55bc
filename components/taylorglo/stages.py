"""What each component of the pipeline does: the method below it, with the study, the store and MLflow around it."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from taylorglo import environment
from taylorglo.environment import Sweep, say
from taylorglo.errors import InputError
from taylorglo.settings import AttackSettings, Scalar, SweepSettings

LOSS, NETWORK = "loss.json", "model.safetensors"

if TYPE_CHECKING:
    from torch import nn

    from taylorglo.comparison import Trained
    from taylorglo.data import Dataset
    from taylorglo.loss import TaylorLoss
    from taylorglo.search import Candidate


def prepare(parameters: Mapping[str, Scalar], generations: int, sweep: str, search_data: str, full_data: str) -> None:
    """Check the parameters, prepare the data and open the study and the MLflow run, before anything is trained.

    Args:
        parameters: ``SweepSettings.parameters()``.
        generations: how many the pipeline has.
        sweep: where to write the :class:`~taylorglo.environment.Sweep`.
        search_data: where to write the data without the test split.
        full_data: where to write the data with it.
    """
    from taylorglo import data, models
    from taylorglo.storage import fetch

    started = float(os.environ.get(environment.STARTED) or time.time())
    settings = SweepSettings.from_parameters(parameters)
    with tempfile.TemporaryDirectory() as folder:
        root = settings.data.root
        local = fetch(root, Path(folder)) if "://" in root else None
        dataset = data.load(settings.data, settings.seed, local)
    models.check(settings.model.name, dataset.image_shape, dataset.num_classes)
    environment.create_search(settings, dataset.fingerprint)
    data.save(data.without_test(dataset), Path(search_data))
    data.save(dataset, Path(full_data))
    environment.open_store().upload(Path(full_data), f"{settings.name}/data.safetensors")
    tracker = environment.open_tracker(settings)
    tracker.log_settings({**settings.parameters(), "generations": generations})
    splits = {"train": len(dataset.train), "validation": len(dataset.validation)}
    if dataset.test:
        splits["test"] = len(dataset.test)
    tracker.log_dataset(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        source=dataset.provenance["source"],
        splits=splits,
        num_classes=dataset.num_classes,
    )
    Sweep(
        settings=settings,
        generations=generations,
        num_classes=dataset.num_classes,
        fingerprint=dataset.fingerprint,
        provenance=dataset.provenance,
        run_id=tracker.run_id,
        started=started,
    ).write(sweep)
    sizes = ", ".join(f"{size} {name}" for name, size in splits.items())
    say(f"data: {dataset.name}, {dataset.num_classes} classes, {sizes} images; network: {settings.model.name}")


def evaluate_shard(sweep: Sweep, generation: int, trials: Sequence[int], search_data: str) -> "list[Candidate]":
    """Train those of the candidates that have no result yet, telling the study each one at once."""
    wanted = set(trials)
    own = [c for c in sweep.search.candidates(generation) if c.trial in wanted]
    waiting = [c for c in own if not c.finished]
    for candidate in waiting:
        if candidate.result is not None:  # of a process that was killed before it could tell
            sweep.search.tell(candidate.trial, candidate.result["fitness"], candidate.result)
    untrained = [c for c in waiting if c.result is None]
    if untrained:  # torch, and the data, only for a shard that has to train
        from taylorglo.training import evaluate_candidate

        dataset = environment.dataset_of(search_data, sweep)
        for candidate in untrained:
            evaluation = evaluate_candidate(candidate.theta, generation, dataset, sweep.settings)
            sweep.search.tell(candidate.trial, evaluation.fitness, {**evaluation.as_dict(), "run": sweep.run_id})
    everybody = sweep.search.candidates(generation)
    trained = [c for c in everybody if c.result is not None]
    if trained and all(c.finished for c in everybody) and max(trained, key=lambda c: c.ended or "").trial in wanted:
        _tell_generation(sweep, generation, everybody, new=bool(waiting))
    return [c for c in everybody if c.trial in wanted]


def _tell_generation(sweep: Sweep, generation: int, candidates: "Sequence[Candidate]", *, new: bool) -> None:
    """What the task that told the study the last result of a generation does for all of its tasks."""
    from taylorglo.search import summary
    from taylorglo.statistics import covered

    numbers = summary(candidates)
    results = [c.result for c in candidates if c.result is not None]
    spent = f"{covered((r['started'], r['ended']) for r in results):.0f} s"
    say(
        f"generation {generation:>{len(str(sweep.generations))}}/{sweep.generations}  "
        f"best {numbers['best']:7.2%}  median {numbers['median']:7.2%}  "
        f"rejected {numbers['rejected']:.0f} of {numbers['drawn']:.0f}  "
        f"diverged {numbers['diverged']:.0f}  {spent if new else 'known from before'}"
    )
    track_generations(sweep, generation, patience=30)


def track_generations(sweep: Sweep, last: int, *, patience: float = 0) -> None:
    """Tell MLflow of the candidates of this pipeline run that it does not know yet, up to generation ``last``.

    Connecting to MLflow takes a task seconds, so short generations are told together: not before the oldest news has
    waited for ``patience`` seconds.
    """
    from taylorglo.search import summary

    first = sweep.tracked() + 1
    candidates = [c for c in sweep.search.candidates() if first <= c.generation <= last]
    news = [c for c in candidates if c.result is not None and c.result["run"] == sweep.run_id]
    if not news or time.time() - min(c.result["ended"] for c in news if c.result) < patience:
        return
    for generation in sorted({c.generation for c in news}):
        own = [_tracked(c, sweep.num_classes) for c in news if c.generation == generation]
        sweep.tracker.log_candidates(generation, own)
        numbers = summary([c for c in candidates if c.generation == generation])
        sweep.tracker.log_metrics({f"generation_{name}": value for name, value in numbers.items()}, step=generation)
    sweep.set_tracked(last)


def _tracked(candidate: "Candidate", num_classes: int) -> dict[str, Any]:
    from taylorglo.dynamics import collapse_rate, learning_drive

    assert candidate.result is not None
    dynamics = {"A": learning_drive(candidate.theta, num_classes), "B": collapse_rate(candidate.theta, num_classes)}
    return {**candidate.result, "trial": candidate.trial, "theta": candidate.theta, "coefficients": dynamics}


@dataclass(frozen=True)
class Outcome:
    """The champion, and every training in full that chose it (finalists) or compares it (trainings)."""

    champion: "Candidate"
    loss: "TaylorLoss"
    finalists: "list[Trained]"
    trainings: "list[Trained]"
    network: bytes

    @property
    def mean_accuracy(self) -> float:
        """The champion's test accuracy, the mean over its seeds."""
        return fmean(t.test_accuracy or 0.0 for t in self.trainings if t.contender.name == "champion")

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return {
            "champion": {
                "theta": self.champion.theta,
                "order": self.loss.order,
                "fitness": self.champion.fitness,
                "generation": self.champion.generation,
                "trial": self.champion.trial,
            },
            "finalists": [training.as_dict() for training in self.finalists],
            "trainings": [training.as_dict() for training in self.trainings],
        }

    def save_network(self, path: str) -> None:
        """Write the weights of the champion's first network, as safetensors."""
        Path(path).write_bytes(self.network)


def crown(sweep: Sweep, search_data: str, full_data: str, tuning: Sequence[Mapping[str, Any]]) -> Outcome:
    """Choose the champion on the validation split, then train it and the tuned baselines in full and test them.

    Args:
        sweep: the sweep.
        search_data: path of the data without the test split, which the choice is made on.
        full_data: path of the data with it.
        tuning: the trainings of the baselines, as evaluate_baselines wrote them.
    """
    from taylorglo import comparison
    from taylorglo.loss import TaylorLoss

    settings, memo = sweep.settings, sweep.memo
    best = sweep.search.best(settings.champion.finalists)
    if not best:
        raise InputError("the filters rejected every candidate, so none was trained; choose others in a new sweep")
    finalists: list[Trained] = []
    champion = best[0]
    if len(best) > 1:
        dataset = environment.dataset_of(search_data, sweep)
        finalists = comparison.train_finalists([c.theta for c in best], dataset, settings, memo)
        winner = comparison.best_contender(finalists)
        champion = next(c for c in best if c.theta == winner.theta)
    tuned = [comparison.Trained.from_dict(values) for values in tuning]
    names = list(dict.fromkeys(training.contender.name for training in tuned))
    contenders = [
        comparison.Contender("champion", "taylor", settings.training.learning_rate, theta=champion.theta),
        *(comparison.best_contender([t for t in tuned if t.contender.name == name]) for name in names),
    ]
    dataset = environment.dataset_of(full_data, sweep)
    trainings = []
    for contender in contenders:
        own = comparison.compare(contender, dataset, settings, memo)
        trainings += own
        mean = fmean(t.test_accuracy or 0.0 for t in own)
        say(f"{contender.name}: trained in full {len(own)} times, test accuracy {mean:.2%}")
    loss = TaylorLoss(
        champion.theta,
        settings.search.order,
        classes=sweep.num_classes,
        provenance={
            "sweep": settings.name,
            "seed": settings.seed,
            "data": settings.data.name,
            "fingerprint": sweep.fingerprint,
            "model": settings.model.name,
            "learning_rate": settings.training.learning_rate,
            "generation": champion.generation,
            "trial": champion.trial,
            "fitness": champion.fitness,
            **environment.software(),
        },
    )
    outcome = Outcome(champion, loss, finalists, trainings, memo.weights(trainings[0].key))
    with tempfile.TemporaryDirectory() as folder:
        for name, save in ((LOSS, loss.save), (NETWORK, outcome.save_network)):
            save(path := str(Path(folder) / name))
            sweep.store.upload(Path(path), sweep.key(f"champion/{name}"))
    return outcome


def attack_networks(sweep: Sweep, full_data: str, trainings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Attack networks of every contender with FGSM and PGD; rows of loss, attack, epsilon, and accuracies by seed."""
    from taylorglo.comparison import Trained, restore_network

    started, settings = time.time(), sweep.settings.attack
    dataset = environment.dataset_of(full_data, sweep)
    found: dict[tuple[str, str, float], list[float]] = {}
    seeds = list(dict.fromkeys(values["seed"] for values in trainings))[: settings.seeds]
    for training in (Trained.from_dict(values) for values in trainings if values["seed"] in seeds):
        network = restore_network(sweep.memo.weights(training.key), sweep.settings.model.name, dataset)
        for attack, by_epsilon in attack_network(network, dataset, settings, sweep.settings.seed).items():
            for epsilon, accuracy in by_epsilon.items():
                found.setdefault((training.contender.name, attack, epsilon), []).append(accuracy)
    rows = [
        {"loss": loss, "attack": attack, "epsilon": epsilon, "accuracies": accuracies}
        for (loss, attack, epsilon), accuracies in found.items()
    ]
    largest = settings.epsilons[-1]
    left = {
        loss: fmean(own) for (loss, attack, epsilon), own in found.items() if (attack, epsilon) == ("worst", largest)
    }
    say(
        f"attacked {settings.seeds} networks per loss; accuracy left at epsilon {largest:g}: "
        + ", ".join(f"{loss} {accuracy:.1%}" for loss, accuracy in left.items())
    )
    return {"rows": rows, "started": started, "ended": time.time()}


def attack_network(
    network: "nn.Module", dataset: "Dataset", settings: AttackSettings, seed: int
) -> dict[str, dict[float, float]]:
    """Accuracy left by attack and epsilon, on ``settings.images`` test images drawn with the seed.

    Args:
        network: images in [0, 1] to logits; it is moved to the data's device.
        dataset: with its test split.
        settings: of the attacks.
        seed: of the images and of the random starts.
    """
    import torch

    from taylorglo.attacks import robust_accuracy
    from taylorglo.training import scaled

    assert dataset.test is not None
    drawn = torch.randperm(len(dataset.test), generator=torch.Generator().manual_seed(seed))[: settings.images]
    drawn = drawn.to(dataset.test.labels.device)
    return robust_accuracy(
        network.to(drawn.device),
        scaled(dataset.test.images[drawn]),
        dataset.test.labels[drawn],
        epsilons=settings.epsilons,
        pgd_steps=settings.pgd_steps,
        pgd_restarts=settings.pgd_restarts,
        seed=seed,
    )


def write_report(
    sweep: Sweep,
    tuning: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any],
    robustness: Mapping[str, Any],
    page: str,
) -> None:
    """Write the report, keep it in the store, tell MLflow what came out and end its run, print the table."""
    from taylorglo.record import sweep_record
    from taylorglo.report import render, table, verdict

    track_generations(sweep, sweep.generations)
    record = sweep_record(sweep, tuning, comparison, robustness)
    Path(page).write_text(render(record))
    sweep.store.upload(Path(page), sweep.key("report.html"))
    _track_outcome(sweep, comparison["trainings"])
    sweep.tracker.log_files({"report.html": Path(page)})
    sweep.tracker.log_metrics(
        {
            **{
                f"robust_accuracy/{row.loss}/{row.attack}/{row.epsilon:g}": fmean(row.accuracies)
                for row in record.robustness
            },
            "training_share": record.training_share,
            "wall_seconds": record.wall_seconds,
        }
    )
    sweep.finish()
    say("\n" + table(record) + "\n\n" + verdict(record))
    say(f"{record.training_share:.0%} of {record.wall_seconds:.0f} s were spent inside trainings")


def _track_outcome(sweep: Sweep, trainings: Sequence[Mapping[str, Any]]) -> None:
    from taylorglo.record import by_contender
    from taylorglo.statistics import mean_curve

    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in (LOSS, NETWORK)}
        for name, path in files.items():
            sweep.store.download(sweep.key(f"champion/{name}"), path)
        for own in by_contender(trainings):
            contender, accuracies = own[0]["contender"], [t["test_accuracy"] for t in own]
            champion = contender["name"] == "champion"
            sweep.tracker.log_final(
                "champion" if champion else "baseline",
                contender["name"],
                params=contender,
                metrics={"test_accuracy": fmean(accuracies)},
                curves={
                    "validation_accuracy": [point[:2] for point in mean_curve([t["curve"] for t in own])],
                    "test_accuracy_by_seed": list(enumerate(accuracies)),
                },
                files=files if champion else {},
            )
