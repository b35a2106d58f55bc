"""The study of the fitness for robustness: its tables from known rows, and a small one."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "studies"))

import robust_fitness
from robust_fitness import (
    EPSILONS,
    FITNESSES,
    SHORT,
    Size,
    attacks_table,
    champions_table,
    settings_of,
    with_interval,
)
from studies import Row, Study

SMALL = Size(
    repetitions=1,
    images=300,
    steps=60,
    generations=1,
    popsize=2,
    candidates=1,
    seeds=2,
    attacked=20,
    iterations=2,
    queries=5,
)


def cells_of(path: Path) -> list[list[str]]:
    """Return the cells of a table by line, without its head."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_fitnesses_differ_by_their_settings_alone() -> None:
    by_name = {name: settings_of(Size(), 3, sections) for name, sections in FITNESSES.items()}
    assert by_name["accuracy"].evaluation.adversarial_weight == 0
    assert by_name["accuracy and FGSM"].evaluation.adversarial_steps == 1
    assert by_name["accuracy and PGD"].evaluation.adversarial_steps == 5
    assert by_name["two objectives"].search.two_objectives
    one, two = by_name["accuracy and PGD"], by_name["two objectives"]
    assert one.evaluation == two.evaluation
    assert len({settings.evaluation.steps for settings in by_name.values()}) == 1


def test_a_champion_is_compared_with_that_of_the_accuracy_in_its_repetition(
    tmp_path: Path,
) -> None:
    gains = dict(zip(FITNESSES, (0.0, 0.0, 0.1, 0.2), strict=True))
    rows: list[Row] = [
        {
            "repetition": repetition,
            "fitness": name,
            "network": network,
            "test": 0.8 + 0.01 * network - gain / 10,
            # One of the repetitions is harder for all.
            **{f"{e:g}": 0.5 - 0.2 * repetition + gain for e in EPSILONS},
        }
        for name, gain in gains.items()
        for repetition in range(2)
        for network in range(3)
    ]
    champions_table(Study("robust-fitness", 1, tmp_path), rows, Size(repetitions=2))
    lines = cells_of(tmp_path / "champions.md")
    assert [line[0] for line in lines] == list(FITNESSES)
    assert lines[0] == ["accuracy", "81.0", "40.0", "40.0", "", "", ""]
    assert lines[3][:4] == ["two objectives", "79.0", "60.0", "60.0"]
    assert lines[3][4].startswith("-2.0 (-2.0 to")
    assert lines[3][6] == "+20.0 (+20.0 to +20.0)"


def test_an_attack_that_ranks_as_the_suite_does_has_rank_correlation_one(tmp_path: Path) -> None:
    left = [0.1, 0.2, 0.3]
    rows: list[Row] = [
        {
            "repetition": 0,
            "loss": str(number),
            "accuracy": 1 - suite,
            **dict.fromkeys(SHORT, suite + 0.1 * number),
            "suite": suite,
        }
        for number, suite in enumerate(left)
    ]
    attacks_table(Study("robust-fitness", 1, tmp_path), rows, Size())
    first, *others = cells_of(tmp_path / "attacks.md")
    assert first == ["none: validation accuracy", "-1.00", "", ""]
    assert [line[1:] for line in others] == [["1.00", "10.0", "20.0"]] * len(SHORT)


def test_a_gain_has_its_interval() -> None:
    assert with_interval([1.0, 2.0]) == "+1.5 (-4.9 to +7.9)"
    assert with_interval([-1.0]) == "-1.0"


@pytest.mark.long
def test_a_small_study_is_done_and_goes_on(tmp_path: Path) -> None:
    study = Study("robust-fitness", 1, tmp_path)
    robust_fitness.run(study, SMALL)
    written = (tmp_path / "champions.csv").read_bytes()
    assert len(written.splitlines()) == 1 + len(FITNESSES) * SMALL.seeds
    assert [line[0] for line in cells_of(tmp_path / "champions.md")] == list(FITNESSES)
    assert len(cells_of(tmp_path / "attacks.md")) == 1 + len(SHORT)
    robust_fitness.run(study, SMALL)
    assert (tmp_path / "champions.csv").read_bytes() == written
