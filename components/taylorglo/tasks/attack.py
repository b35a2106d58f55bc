"""The task that attacks networks of the champion and of each baseline."""

import time
from collections.abc import Iterator, Sequence
from statistics import fmean

from taylorglo.data.dataset import Dataset
from taylorglo.errors import InputError
from taylorglo.evaluation.robustness import attack_all, attack_keys
from taylorglo.results import (
    Attacked,
    Comparison,
    FullTraining,
    Robustness,
    RobustnessRow,
    epsilon_text,
    epsilon_unit,
    read_json,
    write_json,
)
from taylorglo.tasks.console import Progress, say, show, task
from taylorglo.tasks.context import Passed, Sweep
from taylorglo.training.engine import read_resident


@task
def run(full_data_path: str, comparison_path: str, robustness_path: str) -> None:
    """Attack networks of every contender and write the accuracy that is left.

    Args:
        full_data_path: the data with the test split.
        comparison_path: the trainings whose networks are attacked.
        robustness_path: where to write the accuracies by loss, attack and epsilon.
    """
    sweep, comparison = read_json(comparison_path, Passed[Comparison]).both
    write_json(robustness_path, attack_networks(sweep, full_data_path, comparison.trainings))


def attack_networks(sweep: Sweep, full_data: str, trainings: Sequence[FullTraining]) -> Robustness:
    """Attack the networks of the first ``attack.seeds`` seeds of every contender.

    Nothing is attacked if a function of the user trained, and there are no images or no networks.

    Args:
        sweep: the context of the sweep.
        full_data: path of the data with the test split.
        trainings: the trainings of champion and baselines.
    """
    started, settings = time.time(), sweep.settings.attack
    if sweep.settings.data.name == "own":
        return _nothing("the data are the training's own, and no other task sees them", started)
    dataset = read_resident(full_data, sweep.settings.training)
    seeds = list(dict.fromkeys(training.seed for training in trainings))[: settings.seeds]
    attacked = [training for training in trainings if training.seed in seeds]
    networks = [sweep.full_trainings.weights(training.key) for training in attacked]
    if not all(networks):
        return _nothing("the training returned no network", started)
    accuracies: dict[tuple[str, str, float], list[float]] = {}
    doubts: dict[tuple[str, str], int] = {}
    try:
        results = _results(sweep, attacked, networks, full_data=full_data, dataset=dataset)
        for training, result in zip(attacked, results, strict=True):
            for sentence in result.suspicions:
                doubt = (training.contender.name, sentence)
                doubts[doubt] = doubts.get(doubt, 0) + 1
            for attack, by_epsilon in result.accuracies.items():
                for epsilon, accuracy in by_epsilon.items():
                    place = (training.contender.name, attack, epsilon)
                    accuracies.setdefault(place, []).append(accuracy)
    except InputError as error:
        if not sweep.settings.training.function:
            raise
        return _nothing(f"the training returned another network: {error}", started)
    rows = [
        RobustnessRow(loss=loss, attack=attack, epsilon=epsilon, accuracies=values)
        for (loss, attack, epsilon), values in accuracies.items()
    ]
    suspicions = [f"{loss} (n = {count}): {sentence}" for (loss, sentence), count in doubts.items()]
    _announce(rows, settings.seeds, epsilon_unit(dataset.provenance))
    for suspicion in suspicions:
        say(f"suspect: {suspicion}")
    return Robustness(rows=rows, started=started, ended=time.time(), suspicions=suspicions)


def _results(
    sweep: Sweep,
    trainings: Sequence[FullTraining],
    networks: Sequence[bytes],
    *,
    full_data: str,
    dataset: Dataset,
) -> Iterator[Attacked]:
    """Yield what is left of each network, which the store remembers if it was attacked before."""
    keys = attack_keys(networks, dataset, sweep.settings)
    memo, stage, total = sweep.attacks, "attacking the networks", len(keys)
    recalled = [memo.recall(t.key, key) for t, key in zip(trainings, keys, strict=True)]
    known = {key: result for key, result in zip(keys, recalled, strict=True) if result is not None}
    remembered = sum(key in known for key in keys)
    if remembered:
        say(f"the attacks on {remembered} of {total} networks are known from before")
    missing = [network for key, network in zip(keys, networks, strict=True) if key not in known]
    new = attack_all(missing, full_data, dataset, sweep.settings)
    show(Progress(stage, done=remembered, total=total, known=remembered))
    done = remembered
    for training, key in zip(trainings, keys, strict=True):
        if key in known:
            yield known[key]
            continue
        result = next(new)
        memo.record(training.key, key, result)
        done += 1
        show(Progress(stage, done=done, total=total, known=remembered))
        yield result


def _nothing(reason: str, started: float) -> Robustness:
    """Return the record of a sweep in which nothing could be attacked."""
    sentence = f"Nothing was attacked: {reason}."
    say(sentence)
    return Robustness(rows=[], started=started, ended=time.time(), reason=sentence)


def _announce(rows: Sequence[RobustnessRow], networks: int, unit: str) -> None:
    """Print what the worst of the attacks left at the largest epsilon, which is in this unit."""
    largest = max(row.epsilon for row in rows)
    left = ", ".join(
        f"{row.loss} {fmean(row.accuracies):.1%}"
        for row in rows
        if (row.attack, row.epsilon) == ("worst", largest)
    )
    say(
        f"attacked {networks} networks per loss; accuracy left at epsilon {epsilon_text(largest)} "
        f"({unit}): {left}"
    )
