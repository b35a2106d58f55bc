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
from taylorglo.errors import InputError, ServiceError
from taylorglo.mlflow_connection import LOSS
from taylorglo.settings import AttackSettings, DataSettings, Scalar, SweepSettings

NETWORK = "model.safetensors"
_OTHERS_SECONDS = 1.0  # between looks at what another run is training

if TYPE_CHECKING:
    from torch import nn

    from taylorglo.comparison import Trained
    from taylorglo.data import Dataset
    from taylorglo.loss import TaylorLoss
    from taylorglo.report import SweepRecord
    from taylorglo.search import Candidate


def check(parameters: Mapping[str, Scalar], settings: str) -> str:
    """Check every parameter before anything is computed; returns the version of the data as they are now.

    Args:
        parameters: ``SweepSettings.parameters()``.
        settings: where to write them.
    """
    from importlib.metadata import version as release

    from taylorglo.storage import version

    checked = SweepSettings.from_parameters(parameters)
    environment.write_json(settings, checked.parameters())
    if checked.data.name == "digits":
        return f"scikit-learn {release('scikit-learn')}"
    return version(checked.data.root)


def prepare(
    data_settings: DataSettings, seed: int, model: str, description: str, search_data: str, full_data: str
) -> None:
    """Read and split the data, and check that the network fits them. It depends on nothing but its arguments.

    Args:
        data_settings: the section ``data``.
        seed: of the splits.
        model: the network's name.
        description: where to write what later tasks have to know of the data.
        search_data: where to write the data without the test split.
        full_data: where to write the data with it.
    """
    from taylorglo import data, models
    from taylorglo.storage import fetch

    with tempfile.TemporaryDirectory() as folder:
        local = fetch(data_settings.root, Path(folder)) if "://" in data_settings.root else None
        dataset = data.load(data_settings, seed, local)
    models.check(model, dataset.image_shape, dataset.num_classes)
    data.save(data.without_test(dataset), Path(search_data))
    data.save(dataset, Path(full_data))
    splits = {"train": len(dataset.train), "validation": len(dataset.validation)}
    if dataset.test:
        splits["test"] = len(dataset.test)
    content = {
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "splits": splits,
        "fingerprint": dataset.fingerprint,
        "provenance": dataset.provenance,
    }
    environment.write_json(description, content)


def open_sweep(
    parameters: Mapping[str, Scalar], description: Mapping[str, Any], full_data: str, generations: int, sweep: str
) -> None:
    """Open the study and the MLflow run, before anything is trained.

    Args:
        parameters: ``SweepSettings.parameters()``.
        description: of the data, as :func:`prepare` wrote it.
        full_data: the data with the test split, which are kept in the store.
        generations: how many the pipeline has.
        sweep: where to write the :class:`~taylorglo.environment.Sweep`.
    """
    started = float(os.environ.get(environment.STARTED) or time.time())
    settings = SweepSettings.from_parameters(parameters)
    search = environment.begin_search(settings, description["fingerprint"])
    total = max(settings.search.generations, generations)
    # A run begins where the last one stopped, but ends no later than the search: what is known is shown again.
    first = min(search.complete_generations() + 1, max(1, total - generations + 1))
    environment.open_store().upload(Path(full_data), f"{settings.name}/data.safetensors")
    tracker = environment.open_tracker(settings, search.study)
    tracker.log_settings({**settings.parameters(), "study": search.study, "generations": total})
    tracker.log_dataset(
        name=description["name"],
        fingerprint=description["fingerprint"],
        source=description["provenance"]["source"],
        splits=description["splits"],
        num_classes=description["num_classes"],
    )
    Sweep(
        settings=settings,
        study=search.study,
        generations=total,
        first=first,
        num_classes=description["num_classes"],
        fingerprint=description["fingerprint"],
        provenance=description["provenance"],
        run_id=tracker.run_id,
        started=started,
        standing=tracker.standing_champion(environment.registered_name(settings.name)),
    ).write(sweep)
    sizes = ", ".join(f"{size} {name}" for name, size in description["splits"].items())
    say(
        f"data: {description['name']}, {description['num_classes']} classes, {sizes} images; "
        f"network: {settings.model.name}"
    )
    if search.source:
        say(f"search {search.study!r}, warm-started from {search.source!r}")
    if first > 1 or total > generations:
        say(f"this run: generations {first} to {min(first + generations - 1, total)} of {total}")


def evaluate_shard(sweep: Sweep, generation: int, trials: Sequence[int], search_data: str) -> "list[Candidate]":
    """Train those of the candidates that have no result yet, telling the study each one at once.

    A candidate that another run of the sweep is training is left to it, and waited for.
    """
    wanted = set(trials)
    waiting = [c for c in sweep.search.candidates(generation) if c.trial in wanted and not c.finished]
    new, dataset = bool(waiting), None
    while waiting:
        for trial in (c.trial for c in waiting):
            with sweep.search.claimed(trial) as candidate:
                if candidate is None or candidate.finished:
                    continue
                result = candidate.result
                if result is None:  # else of a process that was killed before it could tell
                    from taylorglo.training import evaluate_candidate  # torch, only for a shard that has to train

                    dataset = dataset or environment.dataset_of(search_data, sweep)
                    evaluation = evaluate_candidate(candidate.theta, generation, dataset, sweep.settings)
                    result = {**evaluation.as_dict(), "run": sweep.run_id}
                sweep.search.tell(trial, result["fitness"], result)
        waiting = [c for c in sweep.search.candidates(generation) if c.trial in wanted and not c.finished]
        if waiting:
            time.sleep(_OTHERS_SECONDS)
    everybody = sweep.search.candidates(generation)
    trained = [c for c in everybody if c.result is not None]
    if trained and all(c.finished for c in everybody) and max(trained, key=lambda c: c.ended or "").trial in wanted:
        _tell_generation(sweep, generation, everybody, new=new)
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
    try:
        track_generations(sweep, generation, patience=30)
    except ServiceError as error:  # what counts is in the study
        say(f"{error}; the results are kept, and MLflow is told of them once it answers")


def track_generations(sweep: Sweep, last: int, *, patience: float = 0) -> None:
    """Tell MLflow of the candidates of this pipeline run that it does not know yet, up to generation ``last``.

    Connecting to MLflow takes a task seconds, so short generations are told together: not before the oldest news has
    waited for ``patience`` seconds.

    Raises:
        ServiceError: MLflow, the study or the store still fails after a few tries.
    """
    with sweep.search.exclusively():
        _track_generations(sweep, last, patience)


def _track_generations(sweep: Sweep, last: int, patience: float) -> None:
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
    """The champion, and every training in full that chose it (finalists) or compares it (trainings).

    ``standing`` are those of the champion in MLflow's model registry, on the same data and from the same seeds; none
    where there is no such one, where it is the same loss, and where the search goes on in a later run.
    """

    champion: "Candidate"
    loss: "TaylorLoss"
    finalists: "list[Trained]"
    trainings: "list[Trained]"
    standing: "list[Trained]"
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
            "standing": [training.as_dict() for training in self.standing],
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

    def compared(contender: "comparison.Contender") -> "list[Trained]":
        own = comparison.compare(contender, dataset, settings, memo)
        mean = fmean(t.test_accuracy or 0.0 for t in own)
        say(f"{contender.name}: trained in full {len(own)} times, test accuracy {mean:.2%}")
        return own

    trainings = [training for contender in contenders for training in compared(contender)]
    standing: list[Trained] = []
    if sweep.standing and sweep.standing["theta"] != champion.theta and sweep.complete:
        rate = sweep.standing["learning_rate"] or settings.training.learning_rate
        standing = compared(comparison.Contender("standing champion", "taylor", rate, theta=sweep.standing["theta"]))
    loss = TaylorLoss(
        champion.theta,
        settings.search.order,
        classes=sweep.num_classes,
        provenance={
            "sweep": settings.name,
            "study": sweep.study,
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
    outcome = Outcome(champion, loss, finalists, trainings, standing, memo.weights(trainings[0].key))
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
    from taylorglo.report import render, standing_verdict, table, verdict

    record = sweep_record(sweep, tuning, comparison, robustness)
    Path(page).write_text(render(record))
    sweep.store.upload(Path(page), sweep.key("report.html"))
    track_generations(sweep, sweep.generations)
    run_id = _track_outcome(sweep, comparison["trainings"])
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
    outcome = [table(record), verdict(record)]
    if sweep.complete:
        outcome.append("\n".join(filter(None, [standing_verdict(record), _register(sweep, record, run_id)])))
    else:
        done = sweep.search.complete_generations()
        outcome.append(f"The search goes on: {done} of {sweep.generations} generations are done; run it again.")
    sweep.finish()
    say("\n" + "\n\n".join(outcome))
    say(f"{record.training_share:.0%} of {record.wall_seconds:.0f} s were spent inside trainings")


def _register(sweep: Sweep, record: "SweepRecord", run_id: str) -> str:
    """Register the champion in MLflow; it becomes the standing one if there is none, or if it beats that."""
    from taylorglo.report import beats_standing

    name = environment.registered_name(sweep.settings.name)
    version = sweep.tracker.register_loss(name, run_id, sweep.study, record.champion.theta)
    known = sweep.standing["version"] if sweep.standing else None
    if version == known:
        return f"models:/{name}@champion is version {version}, as before"
    if known is not None and not beats_standing(record):
        return f"models:/{name}/{version} is registered; models:/{name}@champion stays version {known}"
    if sweep.tracker.move_champion(name, version, former=known):
        return f"models:/{name}@champion is version {version} now"
    return f"models:/{name}/{version} is registered; models:/{name}@champion was moved by somebody else in between"


def _track_outcome(sweep: Sweep, trainings: Sequence[Mapping[str, Any]]) -> str:
    """Tell MLflow of the champion and the baselines; returns the id of the champion's run."""
    from taylorglo.record import by_contender
    from taylorglo.statistics import mean_curve

    runs: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in (LOSS, NETWORK)}
        for name, path in files.items():
            sweep.store.download(sweep.key(f"champion/{name}"), path)
        for own in by_contender(trainings):
            contender, accuracies = own[0]["contender"], [t["test_accuracy"] for t in own]
            champion = contender["name"] == "champion"
            runs[contender["name"]] = sweep.tracker.log_final(
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
    return runs["champion"]
