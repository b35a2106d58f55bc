"""The task that attacks networks of the champion and of each baseline."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from taylorglo.attacks.suite import WORST
from taylorglo.data.dataset import Dataset
from taylorglo.errors import InputError
from taylorglo.evaluation.attacked_images import NetworkImages, table_of, write_parquet
from taylorglo.evaluation.robustness import attack_all, attack_keys
from taylorglo.results import (
    Attacked,
    Comparison,
    CorruptionRow,
    Example,
    FullTraining,
    Robustness,
    RobustnessRow,
    epsilon_text,
    epsilon_unit,
    read_json,
    write_json,
)
from taylorglo.services import layout
from taylorglo.tasks.console import Progress, say, show, task
from taylorglo.tasks.context import Passed, Sweep
from taylorglo.training.engine import read_resident

_Pair = tuple[FullTraining, Attacked]

_MOST_LOSSES = 4  # whose attacked images are shown


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
    try:
        results = _results(sweep, attacked, networks, full_data=full_data, dataset=dataset)
        pairs = list(zip(attacked, results, strict=True))
    except InputError as error:
        if not sweep.settings.training.function:
            raise
        return _nothing(f"the training returned another network: {error}", started)
    rows, corruptions, suspicions = _rows(pairs), _corruptions(pairs), _doubts(pairs)
    unit = epsilon_unit(dataset.provenance)
    _announce(rows, settings.seeds, unit)
    _announce_corruptions(corruptions)
    for suspicion in suspicions:
        say(f"suspect: {suspicion}")
    return Robustness(
        rows=rows,
        started=started,
        ended=time.time(),
        suspicions=suspicions,
        corruptions=corruptions,
        examples=_examples(pairs),
        images=_write_images(sweep, pairs, unit),
    )


def _rows(pairs: Sequence[_Pair]) -> list[RobustnessRow]:
    """Return the accuracies of all networks of a loss by attack and epsilon."""
    accuracies: dict[tuple[str, str, float], list[float]] = {}
    for training, result in pairs:
        for attack, by_epsilon in result.accuracies.items():
            for epsilon, accuracy in by_epsilon.items():
                place = (training.contender.name, attack, epsilon)
                accuracies.setdefault(place, []).append(accuracy)
    return [
        RobustnessRow(loss=loss, attack=attack, epsilon=epsilon, accuracies=values)
        for (loss, attack, epsilon), values in accuracies.items()
    ]


def _corruptions(pairs: Sequence[_Pair]) -> list[CorruptionRow]:
    """Return the accuracies of all networks of a loss by corruption and strength."""
    accuracies: dict[tuple[str, str, int], list[float]] = {}
    for training, result in pairs:
        for corruption, by_strength in result.corruptions.items():
            for strength, accuracy in enumerate(by_strength, start=1):
                place = (training.contender.name, corruption, strength)
                accuracies.setdefault(place, []).append(accuracy)
    return [
        CorruptionRow(loss=loss, corruption=corruption, strength=strength, accuracies=values)
        for (loss, corruption, strength), values in accuracies.items()
    ]


def _doubts(pairs: Sequence[_Pair]) -> list[str]:
    """Return the signs that attacks went astray, with the number of networks that show each."""
    doubts = Counter(
        (training.contender.name, sentence)
        for training, result in pairs
        for sentence in result.suspicions
    )
    return [f"{loss} (n = {count}): {sentence}" for (loss, sentence), count in doubts.items()]


def _examples(pairs: Sequence[_Pair]) -> dict[str, list[Example]]:
    """Return the examples of the first network of the first few losses, for a small report."""
    examples: dict[str, list[Example]] = {}
    for training, result in pairs:
        if result.examples and len(examples) < _MOST_LOSSES:
            examples.setdefault(training.contender.name, result.examples)
    return examples


def _write_images(sweep: Sweep, pairs: Sequence[_Pair], unit: str) -> str:
    """Keep the results by image in the store; return the address of their table."""
    networks = [
        NetworkImages(training.contender.name, training.seed, result.images)
        for training, result in pairs
    ]
    epsilon = max(pairs[0][1].accuracies[WORST])
    norm = sweep.settings.attack.norm
    table = table_of(networks, sweep=sweep.settings.name, epsilon=epsilon, norm=norm, unit=unit)
    key = layout.attacked_images(sweep.settings.name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / layout.ATTACKED_IMAGES
        write_parquet(table, path)
        sweep.store.upload(path, key)
    address = f"{sweep.store.uri}/{key}"
    say(f"what the attacks found for each sample is in the store: {key}")
    return address


def _results(
    sweep: Sweep,
    trainings: Sequence[FullTraining],
    networks: Sequence[bytes],
    *,
    full_data: str,
    dataset: Dataset,
) -> Iterator[Attacked]:
    """Yield what is left of each network, which the store remembers if it was attacked before."""
    twins = _twins(trainings, networks)
    keys = attack_keys(networks, dataset, sweep.settings, twins=twins)
    memo, stage, total = sweep.attacks, "attacking the networks", len(keys)
    recalled = [memo.recall(t.key, key) for t, key in zip(trainings, keys, strict=True)]
    known = {key: result for key, result in zip(keys, recalled, strict=True) if result is not None}
    remembered = sum(key in known for key in keys)
    if remembered:
        say(f"the attacks on {remembered} of {total} networks are known from before")
    missing = [number for number, key in enumerate(keys) if key not in known]
    new = attack_all(
        [networks[number] for number in missing],
        full_data,
        dataset,
        sweep.settings,
        twins=[twins[number] for number in missing],
    )
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


def _twins(trainings: Sequence[FullTraining], networks: Sequence[bytes]) -> list[bytes]:
    """Return for each network that of plain cross-entropy from the same seed; empty without one."""
    plain: dict[int, int] = {}
    for number, training in enumerate(trainings):
        contender = training.contender
        if contender.loss == "cross-entropy" and contender.label_smoothing == 0:
            plain.setdefault(training.seed, number)
    twins = [plain.get(training.seed, number) for number, training in enumerate(trainings)]
    return [b"" if twin == number else networks[twin] for number, twin in enumerate(twins)]


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
        if (row.attack, row.epsilon) == (WORST, largest)
    )
    say(
        f"attacked {networks} networks per loss; accuracy left at epsilon {epsilon_text(largest)} "
        f"({unit}): {left}"
    )


def _announce_corruptions(rows: Sequence[CorruptionRow]) -> None:
    """Print the mean accuracy of each loss over all corruptions and strengths."""
    by_loss: dict[str, list[float]] = {}
    for row in rows:
        by_loss.setdefault(row.loss, []).extend(row.accuracies)
    names = ", ".join(dict.fromkeys(row.corruption for row in rows))
    left = ", ".join(f"{loss} {fmean(accuracies):.1%}" for loss, accuracies in by_loss.items())
    say(f"mean accuracy with {names} at five strengths: {left}")
