"""What each component of the pipeline does: the method below it, with the study, the store and MLflow around it."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from taylorglo import environment
from taylorglo.environment import Sweep, say
from taylorglo.errors import InputError, TaylorgloError
from taylorglo.mlflow_connection import LOSS
from taylorglo.settings import AttackSettings, DataSettings, Scalar, SweepSettings
from taylorglo.telling import tell_generation

NETWORK = "model.safetensors"
_OTHERS_SECONDS = 1.0  # between looks at what another run is training
_SMALL_BYTES = 2**28  # of weights and activations: where there is no room for them, there is none for PyTorch

if TYPE_CHECKING:
    from torch import nn

    from taylorglo.comparison import Trained
    from taylorglo.data import Dataset
    from taylorglo.engine import Engine
    from taylorglo.loss import TaylorLoss
    from taylorglo.search import Candidate, Search


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
    import torch

    from taylorglo import data, models
    from taylorglo.memory import check_memory
    from taylorglo.storage import fetch

    with tempfile.TemporaryDirectory() as folder:
        local = fetch(data_settings.root, Path(folder)) if "://" in data_settings.root else None
        dataset = data.load(data_settings, seed, local)
    # Of the smallest batch, and here: how large one is, and where it will be trained, is not known yet.
    memory = check_memory(model, dataset.image_shape, dataset.num_classes, 2, torch.device("cpu"))
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
        "memory": {"weights": memory.weights, "activations_per_image": memory.activations // 2},
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
    settings.training.check_data(description["splits"]["train"])
    if os.environ.get(environment.LOCAL_RUN):
        _check_machine(settings, description, full_data)
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


def _check_machine(settings: SweepSettings, description: Mapping[str, Any], full_data: str) -> None:
    """Refuse what could not be trained here, before any task that trains finds it; quick where nothing can be wrong."""
    training, memory = settings.training, description["memory"]
    large = memory["weights"] + training.batch_size * memory["activations_per_image"] > _SMALL_BYTES
    if not large and training.precision in ("auto", "float32") and training.device != "cuda":
        return
    from taylorglo.engine import plan
    from taylorglo.training import read_resident

    plan(settings, read_resident(full_data, training))


def evaluate_shard(sweep: Sweep, generation: int, trials: Sequence[int], search_data: str) -> "list[Candidate]":
    """Train those of the candidates that have no result yet; the study knows each result at once.

    A candidate that another run of the sweep is training is left to it, and waited for. With
    ``evaluation.max_attempts``, the shard that completes a generation trains its leaders more often, if their order is
    noise, and tells the study of all.

    Raises:
        InputError: the search was trained in another precision so far.
        TaylorgloError: all trainings failed, by which no candidate can be judged; the study is not told.
    """
    settings, search = sweep.settings, sweep.search
    before = [c for c in search.candidates(generation) if c.trial in trials and not c.finished]
    if before:
        from taylorglo.evaluation import attempts_wanted  # torch, only for a shard that has something to do

        with environment.engine_of(search_data, sweep) as engine:
            _train(sweep, generation, dict.fromkeys(trials, settings.evaluation.attempts), engine)
            everybody = [c for c in search.candidates(generation) if not c.rejected]
            while settings.evaluation.max_attempts and all(c.result is not None for c in everybody):
                more = attempts_wanted({c.trial: c.result for c in everybody if c.result is not None}, settings)
                if not more:
                    # Its own last: whoever tells the study the last one, speaks of the generation.
                    for candidate in sorted(everybody, key=lambda c: c.trial in trials):
                        search.tell(candidate.trial, (candidate.result or {})["fitness"], candidate.result or {})
                    break
                _train(sweep, generation, more, engine)
                everybody = [c for c in search.candidates(generation) if not c.rejected]
    everybody = search.candidates(generation)
    trained = [c for c in everybody if c.result is not None]
    if trained and all(c.finished for c in everybody) and max(trained, key=lambda c: c.ended or "").trial in trials:
        tell_generation(sweep, generation, everybody, new=bool(before))
    return [c for c in everybody if c.trial in trials]


def _train(sweep: Sweep, generation: int, wanted: Mapping[int, int], engine: "Engine") -> None:
    """Train candidates until each has as many attempts as are wanted of it; those that others train are waited for."""
    from taylorglo.evaluation import evaluate

    search, final = sweep.search, not sweep.settings.evaluation.max_attempts
    claims: dict[int, ExitStack] = {}
    failed: dict[int, dict[str, Any]] = {}  # held back until something is seen to train here
    told = works = False

    def missing(candidate: "Candidate") -> bool:
        result = candidate.result
        enough = result and (result["status"] != "ok" or len(result["accuracies"]) >= wanted[candidate.trial])
        return not candidate.finished and not enough

    def claimed() -> "Iterator[tuple[int, Sequence[float], int]]":
        for trial, attempts in wanted.items():
            with ExitStack() as claim:
                candidate = claim.enter_context(search.claimed(trial))
                if candidate and missing(candidate):
                    claims[trial] = claim.pop_all()
                    yield trial, candidate.theta, attempts

    def keep(trial: int, result: dict[str, Any]) -> None:
        if final:
            search.tell(trial, result["fitness"], result)
        else:
            search.note(trial, result)
        claims.pop(trial).close()

    def keep_failed() -> None:
        for trial in list(failed):
            keep(trial, failed.pop(trial))

    if any(missing(c) for c in search.candidates(generation) if c.trial in wanted):
        _check_precision(search, engine.plan.precision)
    while True:
        try:
            for trial, evaluation in evaluate(claimed(), generation, engine, sweep.evaluations):
                result = {**evaluation.as_dict(), "run": sweep.run_id}
                if evaluation.status == "failed" and not works:
                    failed[trial] = result
                    continue
                works = True
                keep_failed()
                keep(trial, result)
            _check_failed(generation, failed, search.candidates(generation))
            keep_failed()
        finally:
            for claim in claims.values():
                claim.close()
        own = [c for c in search.candidates(generation) if c.trial in wanted]
        for candidate in own:
            if final and candidate.result and not candidate.finished:  # of a process that was killed before it told
                search.tell(candidate.trial, candidate.result["fitness"], candidate.result)
        waiting = [c for c in own if missing(c)]
        if not waiting:
            return
        if not told:
            say(f"generation {generation}: waiting for {len(waiting)} candidates that another run is training")
        told = True
        time.sleep(_OTHERS_SECONDS)


def _check_precision(search: "Search", precision: str) -> None:
    """Refuse to train in another precision than that of the results so far, which may be another machine's."""
    known = search.precisions()
    if known - {precision}:
        raise InputError(
            f"search {search.study!r} was trained in {' and '.join(sorted(known))} so far, and this machine would "
            f"train in {precision}, which cannot be compared: set training.precision to the former, if the machine "
            "has arithmetic for it, or give the new sweep another name"
        )


def _check_failed(generation: int, failed: Mapping[int, Mapping[str, Any]], known: "Sequence[Candidate]") -> None:
    """Refuse to blame the candidates where nothing was trained: it is the network then, or the machine.

    What failed is to blame where another one of the generation was trained, by whatever task. Not so leaders, which
    are trained more often, where all of them fail: they were trained themselves.
    """
    trained = {c.trial for c in known if c.result is not None and c.result["status"] != "failed"}
    if failed and (not trained or failed.keys() <= trained):
        reason = next(iter(failed.values()))["reason"]
        raise TaylorgloError(
            f"generation {generation}: every training failed, the first with: {reason}; none of them counts, so put "
            "that right and run the sweep again, which goes on from here"
        )


@dataclass(frozen=True)
class Outcome:
    """The champion, and every training in full that chose it (finalists) or compares it (trainings).

    ``standing`` are those of the champion in MLflow's model registry, on the same data and from the same seeds; none
    where there is no such one, where it is the same loss, and where the search is not complete, but goes on in a later
    run.
    """

    champion: "Candidate"
    loss: "TaylorLoss"
    finalists: "list[Trained]"
    trainings: "list[Trained]"
    standing: "list[Trained]"
    network: bytes
    complete: bool

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
            "complete": self.complete,
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

    settings, memo, complete = sweep.settings, sweep.memo, sweep.complete
    best = sweep.search.best(settings.champion.finalists)
    if not best:
        raise InputError("the filters rejected every candidate, so none was trained; choose others in a new sweep")
    finalists: list[Trained] = []
    champion = best[0]
    if len(best) > 1:
        with environment.engine_of(search_data, sweep) as engine:
            finalists = comparison.train_finalists([c.theta for c in best], engine, memo)
        winner = comparison.best_contender(finalists)
        champion = next(c for c in best if c.theta == winner.theta)
    tuned = [comparison.Trained.from_dict(values) for values in tuning]
    names = list(dict.fromkeys(training.contender.name for training in tuned))
    contenders = [
        comparison.Contender("champion", "taylor", settings.training.learning_rate, theta=champion.theta),
        *(comparison.best_contender([t for t in tuned if t.contender.name == name]) for name in names),
    ]

    def compared(contender: "comparison.Contender") -> "list[Trained]":
        own = comparison.compare(contender, engine, memo)
        mean = fmean(t.test_accuracy or 0.0 for t in own)
        say(f"{contender.name}: trained in full {len(own)} times, test accuracy {mean:.2%}")
        return own

    standing: list[Trained] = []
    with environment.engine_of(full_data, sweep) as engine:
        trainings = [training for contender in contenders for training in compared(contender)]
        if sweep.standing and sweep.standing["theta"] != champion.theta and complete:
            rate = sweep.standing["learning_rate"] or settings.training.learning_rate
            former = comparison.Contender("standing champion", "taylor", rate, theta=sweep.standing["theta"])
            standing = compared(former)
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
    outcome = Outcome(champion, loss, finalists, trainings, standing, memo.weights(trainings[0].key), complete)
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
    from taylorglo.batches import scaled
    from taylorglo.devices import computing

    assert dataset.test is not None
    drawn = torch.randperm(len(dataset.test), generator=torch.Generator().manual_seed(seed))[: settings.images]
    drawn = drawn.to(dataset.test.labels.device)
    with computing("float32", drawn.device):  # cuDNN's own default is TF32
        return robust_accuracy(
            network.to(drawn.device),
            scaled(dataset.test.images[drawn]),
            dataset.test.labels[drawn],
            epsilons=settings.epsilons,
            pgd_steps=settings.pgd_steps,
            pgd_restarts=settings.pgd_restarts,
            seed=seed,
        )
