"""What each component of the pipeline does: the method below it, with the study, the store and MLflow around it."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from taylorglo import environment
from taylorglo.environment import Sweep, say
from taylorglo.settings import Scalar, SweepSettings

if TYPE_CHECKING:
    from taylorglo.comparison import Trained
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

    started = time.time()
    settings = SweepSettings.from_parameters(parameters)
    with tempfile.TemporaryDirectory() as folder:
        root = settings.data.root
        local = fetch(root, Path(folder)) if root.startswith("s3://") else None
        dataset = data.load(settings.data, settings.seed, local)
    models.check(settings.model.name, dataset.image_shape, dataset.num_classes)
    environment.open_search(settings, dataset.fingerprint)
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
    dataset = environment.dataset_of(search_data, sweep) if any(c.result is None for c in waiting) else None
    for candidate in waiting:
        result = candidate.result  # of a process that was killed before it could tell
        if result is None:
            from taylorglo.training import evaluate_candidate

            assert dataset is not None
            evaluation = evaluate_candidate(candidate.theta, generation, dataset, sweep.settings)
            result = {**evaluation.as_dict(), "run": sweep.run_id}
        sweep.search.tell(candidate.trial, result["fitness"], result)
    everybody = sweep.search.candidates(generation)
    own = [c for c in everybody if c.trial in wanted]
    here = [c for c in own if c.result and c.result["run"] == sweep.run_id]
    if here:
        sweep.tracker.log_candidates(generation, [_tracked(c, sweep.num_classes) for c in here])
    if all(c.finished for c in everybody):
        _tell_progress(sweep, generation, everybody, bool(waiting), bool(here))
    return own


def _tell_progress(sweep: Sweep, generation: int, candidates: "Sequence[Candidate]", new: bool, track: bool) -> None:
    from taylorglo.search import summary

    numbers = summary(candidates)
    if track:
        names = ("best", "median", "drawn", "rejected", "diverged", "failed")
        sweep.tracker.log_metrics({f"generation_{name}": numbers[name] for name in names}, step=generation)
    if new:
        spans = [(c.result["started"], c.result["ended"]) for c in candidates if c.result]
        seconds = f"{max(end for _, end in spans) - min(start for start, _ in spans):.0f} s" if spans else ""
    else:
        seconds = "known from before"
    say(
        f"generation {generation:>{len(str(sweep.generations))}}/{sweep.generations}  "
        f"best {numbers['best']:7.2%}  median {numbers['median']:7.2%}  "
        f"rejected {numbers['rejected']:.0f} of {numbers['drawn']:.0f}  "
        f"diverged {numbers['diverged']:.0f}  {seconds}"
    )


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
    _keep(sweep, outcome)
    return outcome


def _keep(sweep: Sweep, outcome: Outcome) -> None:
    from taylorglo.training import mean_curve

    with tempfile.TemporaryDirectory() as folder:
        files = {"loss.json": Path(folder) / "loss.json", "model.safetensors": Path(folder) / "model.safetensors"}
        outcome.loss.save(files["loss.json"])
        outcome.save_network(str(files["model.safetensors"]))
        for name, path in files.items():
            sweep.store.upload(path, sweep.key(f"champion/{name}"))
        for name in dict.fromkeys(t.contender.name for t in outcome.trainings):
            own = [t for t in outcome.trainings if t.contender.name == name]
            contender = own[0].contender
            accuracies = [t.test_accuracy or 0.0 for t in own]
            sweep.tracker.log_final(
                "champion" if name == "champion" else "baseline",
                name,
                params=asdict(contender),
                metrics={"test_accuracy": fmean(accuracies)},
                curves={
                    "validation_accuracy": [point[:2] for point in mean_curve([t.curve for t in own])],
                    "test_accuracy_by_seed": list(enumerate(accuracies)),
                },
                files=files if name == "champion" else {},
            )


def attack_networks(sweep: Sweep, full_data: str, trainings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Attack networks of every contender with FGSM and PGD; rows of loss, attack, epsilon, and accuracies by seed."""
    from taylorglo.attacks import robust_accuracy
    from taylorglo.comparison import Trained, restore_network
    from taylorglo.training import scaled

    started, settings = time.time(), sweep.settings.attack
    dataset = environment.dataset_of(full_data, sweep)
    assert dataset.test is not None
    images = scaled(dataset.test.images[: settings.images])
    labels = dataset.test.labels[: settings.images]
    found: dict[tuple[str, str, float], list[float]] = {}
    seeds = list(dict.fromkeys(values["seed"] for values in trainings))[: settings.seeds]
    for training in (Trained.from_dict(values) for values in trainings if values["seed"] in seeds):
        network = restore_network(sweep.memo.weights(training.key), sweep.settings, dataset).to(images.device)
        robust = robust_accuracy(
            network,
            images,
            labels,
            epsilons=settings.epsilons,
            pgd_steps=settings.pgd_steps,
            pgd_restarts=settings.pgd_restarts,
            seed=sweep.settings.seed,
        )
        for attack, by_epsilon in robust.items():
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
    sweep.tracker.log_metrics(
        {f"robust_accuracy/{loss}/{attack}/{epsilon:g}": fmean(own) for (loss, attack, epsilon), own in found.items()}
    )
    return {"rows": rows, "started": started, "ended": time.time()}


def write_report(
    sweep: Sweep,
    tuning: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any],
    robustness: Mapping[str, Any],
    page: str,
) -> None:
    """Write the report, keep it in the store and in MLflow, print its table, and end the MLflow run."""
    from taylorglo.record import sweep_record
    from taylorglo.report import render, table, verdict

    record = sweep_record(sweep, tuning, comparison, robustness)
    Path(page).write_text(render(record))
    sweep.store.upload(Path(page), sweep.key("report.html"))
    sweep.tracker.log_files({"report.html": Path(page)})
    sweep.tracker.log_metrics({"training_share": record.training_share, "wall_seconds": record.wall_seconds})
    environment.close_tracker(sweep)
    say("\n" + table(record) + "\n\n" + verdict(record))
    say(f"{record.training_share:.0%} of {record.wall_seconds:.0f} s were spent inside trainings")
