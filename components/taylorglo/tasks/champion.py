"""The task that chooses the champion, and tests it beside the tuned baselines."""

import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from threading import Thread

from taylorglo.errors import InputError, TaylorgloError
from taylorglo.evaluation.comparison import (
    best_contender,
    compare,
    fitnesses,
    found,
    train_finalists,
    tuned_member,
)
from taylorglo.loss.functions import TaylorLoss
from taylorglo.report.text import expectation, origin
from taylorglo.results import (
    Candidate,
    Champion,
    Comparison,
    Contender,
    FullTraining,
    StandingChampion,
    read_json,
)
from taylorglo.retries import without_waiting
from taylorglo.scores import is_known, is_share, known, metric, words
from taylorglo.services import layout
from taylorglo.services.models import NETWORK, save_network
from taylorglo.services.registry import load_network
from taylorglo.stats import mean_interval
from taylorglo.tasks.console import say, task
from taylorglo.tasks.context import Passed, Sweep, software
from taylorglo.tasks.progress import WatchedTrainings, track_generations
from taylorglo.training.engine import Engine


@dataclass(frozen=True)
class Outcome:
    """The trainings that compare the champion, its loss, and one network trained with it.

    ``network`` is the weights as safetensors; empty if a function of a user returned no network.
    """

    comparison: Comparison
    loss: TaylorLoss
    network: bytes

    @property
    def mean_score(self) -> float | None:
        """The champion's test score, such as its accuracy in [0, 1]: the mean over its seeds.

        It is over those trainings that have a score; None if none has.
        """
        trainings = self.comparison.trainings
        measured = known(t.test_accuracy for t in trainings if t.contender.name == "champion")
        return fmean(measured) if measured else None

    def save_program(self, path: str | Path) -> None:
        """Write the champion's loss as a Python program."""
        Path(path).write_text(self.loss.source())

    def save_network(self, path: str | Path) -> None:
        """Write the weights of the champion's first network, as safetensors."""
        Path(path).write_bytes(self.network)


@task
def run(
    *,
    search_data_path: str,
    full_data_path: str,
    tuning_path: str,
    comparison_path: str,
    loss_path: str,
    model_path: str,
) -> dict[str, float]:
    """Choose, train and test the champion, and write the comparison, its loss and a network.

    Args:
        search_data_path: the data without the test split.
        full_data_path: the data with the test split.
        tuning_path: the trainings that tuned the baselines.
        comparison_path: where to write the trainings.
        loss_path: where to write the champion's loss as JSON.
        model_path: where to write the weights of a network trained with that loss.

    Returns:
        The champion's test score by its name among metrics, such as its accuracy in [0, 1]; the
        mean over its seeds. Nothing if no training of it has a score.
    """
    sweep, tuning = read_json(tuning_path, Passed[list[FullTraining]]).both
    with _telling(Sweep.read(tuning_path)):
        outcome = crown(sweep, search_data_path, full_data_path, tuning)
    sweep.write(comparison_path, outcome.comparison)
    outcome.loss.save(loss_path)
    outcome.save_network(model_path)
    if outcome.network and sweep.run_id:
        _log_network(sweep, Path(model_path), outcome.comparison.champion)
    mean = outcome.mean_score
    return {} if mean is None else {metric(sweep.settings.evaluation.score): mean}


@contextmanager
def _telling(sweep: Sweep) -> Iterator[None]:
    """Tell MLflow of the candidates while the block trains.

    Args:
        sweep: a context that nothing else uses.
    """

    def tell() -> None:
        # The report tells MLflow of what is left, or a person why it cannot.
        with suppress(TaylorgloError), without_waiting():
            track_generations(sweep, sweep.generations)

    thread = Thread(target=tell)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def crown(
    sweep: Sweep, search_data: str, full_data: str, tuning: Sequence[FullTraining]
) -> Outcome:
    """Choose the champion on the validation split, then train and test it beside the baselines.

    Args:
        sweep: the context of the sweep.
        search_data: path of the data without the test split, on which the champion is chosen.
        full_data: path of the data with the test split.
        tuning: the trainings that tuned the baselines.

    Raises:
        InputError: no candidate was trained to the end.
    """
    complete = sweep.complete
    champion, finalists = choose_champion(sweep, search_data, tuning)
    winner = found("champion", champion.theta, sweep.settings.training, sweep.num_classes)
    contenders = [
        winner,
        *_tuned_baselines(tuning),
    ]
    standing: list[FullTraining] = []
    memo = WatchedTrainings(
        sweep.full_trainings,
        "training in full",
        "champion",
        len(contenders) * sweep.settings.champion.seeds,
    )
    with Engine.open(sweep.settings, full_data) as engine:
        trainings = [
            training
            for contender in contenders
            for training in _compared(contender, engine, sweep, memo)
        ]
        former = sweep.standing
        if complete and former and not former.lost and former.theta != champion.theta:
            standing = _compared(_standing_contender(former, sweep), engine, sweep, memo)
    outcome = Outcome(
        comparison=Comparison(
            champion=champion,
            finalists=finalists,
            trainings=trainings,
            standing=standing,
            complete=complete,
        ),
        loss=loss_of_champion(champion, sweep),
        network=sweep.full_trainings.weights(trainings[0].key),
    )
    _keep(outcome, sweep)
    return outcome


def _standing_contender(standing: StandingChampion, sweep: Sweep) -> Contender:
    """Return the registry's champion as a contender, at the learning rate that it was found at.

    A rate of another optimizer says nothing: it gets the rate that it would have as a candidate.
    """
    training = sweep.settings.training
    contender = found("standing champion", standing.theta, training, sweep.num_classes)
    if standing.learning_rate is None or standing.optimizer != training.optimizer:
        return contender
    return contender.model_copy(update={"learning_rate": standing.learning_rate})


def choose_champion(
    sweep: Sweep, search_data: str, tuning: Sequence[FullTraining] = ()
) -> tuple[Champion, list[FullTraining]]:
    """Return what the search recommends, and the trainings in full that chose it.

    The fitness that the search measured is not what decides: the highest of many noisy measurements
    is a lucky one. The best tuned baseline that is in the family of the search is one finalist
    more, so that the search does not recommend a loss that is known to be worse.

    Args:
        sweep: the context of the sweep.
        search_data: path of the data without the test split.
        tuning: the trainings that tuned the baselines, if there were any.

    Raises:
        InputError: no candidate was trained to the end.
    """
    sweep.search.check_trained()
    number, order = sweep.settings.champion.finalists, sweep.settings.search.order
    if number == 1:
        return _of_candidate(sweep.search.best(1)[0], order), []
    mean = sweep.search.mean()
    generations = sweep.search.complete_generations()
    entrants = [
        _of_candidate(candidate, order)
        for candidate in sweep.search.leaders(number if mean is None else number - 1)
    ]
    if mean is not None:
        of_mean = Champion(theta=mean, order=order, fitness=0, generation=generations, trial=None)
        entrants.insert(0, of_mean)
    tuned = tuned_member(tuning, sweep.settings, sweep.num_classes)
    if tuned is not None:
        entrants.append(
            Champion(
                theta=tuned[1],
                order=order,
                fitness=0,
                generation=generations,
                trial=None,
                baseline=tuned[0],
            )
        )
    memo = WatchedTrainings(
        sweep.full_trainings,
        "choosing the champion",
        "finalists",
        len(entrants) * sweep.settings.baselines.attempts,
    )
    with Engine.open(sweep.settings, search_data) as engine:
        thetas = [entrant.theta for entrant in entrants]
        finalists = train_finalists(thetas, engine, memo)
    # A training without a score counts here, as lower than every score: it must not be an advantage
    # to diverge. What is reported is the mean of the others.
    weight = sweep.settings.evaluation.adversarial_weight
    theta = best_contender(finalists, weight).theta
    scores = fitnesses([t for t in finalists if t.contender.theta == theta], weight)
    measured = known(scores)
    winner = next(entrant for entrant in entrants if entrant.theta == theta)
    chosen = winner.model_copy(
        update={
            "fitness": fmean(measured or scores),
            "interval": mean_interval(measured),
            "trainings": len(measured),
        }
    )
    expected = expectation(chosen, is_share(sweep.settings.evaluation.score))
    say(f"champion: {origin(chosen)}, chosen among {len(entrants)} finalists; {expected}")
    return chosen, finalists


def _of_candidate(candidate: Candidate, order: int) -> Champion:
    """Return a candidate as the champion that it would be without further trainings."""
    assert candidate.fitness is not None
    return Champion(
        theta=candidate.theta,
        order=order,
        fitness=candidate.fitness,
        generation=candidate.generation,
        trial=candidate.trial,
    )


def _tuned_baselines(tuning: Sequence[FullTraining]) -> list[Contender]:
    """Return each baseline with its best learning rate."""
    names = dict.fromkeys(training.contender.name for training in tuning)
    return [best_contender([t for t in tuning if t.contender.name == name]) for name in names]


def _compared(
    contender: Contender, engine: Engine, sweep: Sweep, memo: WatchedTrainings
) -> list[FullTraining]:
    """Train and test a contender over the seeds, and print its mean score."""
    trainings = compare(contender, engine, memo)
    measured = known(t.test_accuracy for t in trainings)
    mean = fmean(measured) if measured else math.nan
    times, score = len(trainings), sweep.settings.evaluation.score
    shown = f"{mean:.2%}" if is_share(score) else f"{mean:.5g}"
    say(f"{contender.name}: trained in full {times} times, test {words(score)} {shown}")
    return trainings


def loss_of_champion(champion: Champion, sweep: Sweep) -> TaylorLoss:
    """Return the champion's loss, with the provenance that its file keeps."""
    settings = sweep.settings
    winner = found("champion", champion.theta, settings.training, sweep.num_classes)
    function = settings.training.function
    return TaylorLoss(
        champion.theta,
        settings.search.order,
        classes=sweep.num_classes,
        provenance={
            "sweep": settings.name,
            "study": sweep.study,
            "seed": settings.seed,
            "data": settings.data.name,
            "fingerprint": sweep.fingerprint,
            **(
                {"function": function}
                if function
                else {"model": settings.model.name, "optimizer": settings.training.optimizer}
            ),
            "learning_rate": winner.learning_rate,
            "generation": champion.generation,
            "trial": champion.trial,
            **({"baseline": champion.baseline} if champion.baseline else {}),
            "fitness": champion.fitness if is_known(champion.fitness) else None,
            "fitness_interval": list(champion.interval or ()),
            **software(),
        },
    )


def _log_network(sweep: Sweep, weights: Path, champion: Champion) -> None:
    """Log the champion's network to MLflow as a model, here because the report has no PyTorch.

    Raises:
        ServiceError: MLflow or the store of its artifacts still fails after a few tries.
    """
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    tags = {
        "taylorglo.sweep": sweep.settings.name,
        "taylorglo.network": sweep.settings.model.name,
        "taylorglo.theta": ", ".join(map(repr, champion.theta)),
    }
    with tempfile.TemporaryDirectory(prefix="taylorglo-") as name:
        folder = Path(name) / NETWORK
        try:
            # A function of a user may return the weights of another network.
            network = load_network(weights, sweep.settings.model.name)
            save_network(network, weights, folder)
        except InputError as error:
            say(f"the champion's network is not logged to MLflow: {error}")
            return
        sweep.tracker.models.log(NETWORK, folder, digest=digest, tags=tags)


def _keep(outcome: Outcome, sweep: Sweep) -> None:
    """Put the champion's loss and network into the store, in place of a former champion's."""
    with tempfile.TemporaryDirectory() as folder:
        for name, save in (
            (layout.LOSS, outcome.loss.save),
            (layout.PROGRAM, outcome.save_program),
            (layout.NETWORK, outcome.save_network),
        ):
            path = Path(folder) / name
            save(path)
            key = layout.champion(sweep.settings.name, name)
            if path.stat().st_size:
                sweep.store.upload(path, key)
            else:
                # A function of a user returned no network. One of a former champion may be there,
                # which was not trained with this loss.
                sweep.store.delete(key)
