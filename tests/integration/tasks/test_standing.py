"""The champion of an earlier search, which the new champion has to beat."""

from pathlib import Path

import pytest
from small_sweeps import (
    NO_ATTACK,
    Work,
    begin_generation,
    changed,
    evaluation,
    full_training,
    mlflow_client,
)

import taylorglo
from taylorglo.report.record import sweep_record
from taylorglo.results import Comparison, FullTraining, StandingChampion
from taylorglo.services import layout
from taylorglo.stats import paired
from taylorglo.tasks.champion import Outcome, crown
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.report import write_report

THETA = [0.0, 0.0, 0.0, -2.0, 0.0, 4.0, -1.0, 0.0]
TUNING = [full_training("cross-entropy", 0.6)]


def crowned(sweep: Sweep, work: Work) -> Outcome:
    """Crown the champion of a search of one generation."""
    if sweep.search.complete_generations() < 1:
        fitnesses = (0.5, 0.6, 0.7, 0.8)
        begin_generation(sweep, 1, [evaluation(sweep, fitness) for fitness in fitnesses])
    return crown(sweep, work.search_data, work.full_data, TUNING)


def with_standing(sweep: Sweep, theta: list[float], generations: int = 1) -> Sweep:
    """Return the sweep with a champion in the registry when it began."""
    standing = StandingChampion(version="7", study="digits", theta=theta, learning_rate=0.2)
    return changed(sweep, generations=generations, standing=standing)


def champion_files(outcome: Outcome, folder: Path) -> dict[str, Path]:
    """Write the champion's files as the task does; return their paths by name."""
    files = {name: folder / name for name in (layout.LOSS, layout.PROGRAM, layout.NETWORK)}
    outcome.loss.save(files[layout.LOSS])
    outcome.save_program(files[layout.PROGRAM])
    outcome.save_network(files[layout.NETWORK])
    return files


def report(sweep: Sweep, work: Work, outcome: Outcome, comparison: Comparison) -> None:
    """Report a comparison, which may be another one than the outcome's."""
    write_report(
        sweep,
        tuning=TUNING,
        comparison=comparison,
        robustness=NO_ATTACK,
        champion=champion_files(outcome, work.folder),
        page=work.folder / "page",
    )


def outdone(comparison: Comparison, gain: float) -> Comparison:
    """Return the comparison with the standing champion this much below the new one."""
    standing: list[FullTraining] = []
    pairs = zip(comparison.trainings, comparison.standing, strict=False)
    for index, (new, former) in enumerate(pairs):
        # The differences differ a little, as in reality: a test needs some variance.
        accuracy = new.test_accuracy - gain - 1e-4 * index
        training = former.training.model_copy(update={"test_accuracy": accuracy})
        standing.append(former.model_copy(update={"training": training}))
    return comparison.model_copy(update={"standing": standing})


def test_it_is_trained_from_the_seeds_of_the_champion_with_its_own_learning_rate(
    sweep: Sweep, work: Work
) -> None:
    second = with_standing(sweep, THETA)
    comparison = crowned(second, work).comparison
    champion = [t for t in comparison.trainings if t.contender.name == "champion"]
    assert [t.seed for t in comparison.standing] == [t.seed for t in champion]
    assert {t.contender.learning_rate for t in comparison.standing} == {0.2}
    assert {tuple(t.contender.theta) for t in comparison.standing} == {tuple(THETA)}
    record = sweep_record(
        second.settings,
        candidates=second.search.candidates(),
        tuning=TUNING,
        comparison=comparison,
        robustness=NO_ATTACK,
        generations=second.generations,
        num_classes=second.num_classes,
        provenance=second.provenance,
        guessing=second.guessing,
        software={},
        started=second.started,
        standing=second.standing,
    )
    assert record.standing is not None
    assert (record.standing.version, record.standing.study) == ("7", "digits")
    assert record.standing.p_value == paired(
        [t.test_accuracy for t in champion], [t.test_accuracy for t in comparison.standing]
    )
    assert [row.loss for row in record.comparison] == ["champion", "cross-entropy"]


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.2), ("adamw", 0.1)])
def test_the_learning_rate_of_another_optimizer_does_not_count(
    sweep: Sweep, work: Work, optimizer: str, rate: float
) -> None:
    standing = StandingChampion(
        version="7", study="digits", theta=THETA, learning_rate=0.2, optimizer=optimizer
    )
    comparison = crowned(changed(sweep, generations=1, standing=standing), work).comparison
    assert {t.contender.learning_rate for t in comparison.standing} == {rate}


def test_it_is_not_trained_if_it_is_the_same_loss_or_the_search_goes_on(
    sweep: Sweep, work: Work
) -> None:
    same = crowned(sweep, work).comparison.champion.theta
    assert crowned(with_standing(sweep, same), work).comparison.standing == []
    unfinished = with_standing(sweep, THETA, generations=2)
    assert crowned(unfinished, work).comparison.standing == []


def test_a_champion_that_learned_nothing_is_not_registered(
    sweep: Sweep, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = changed(sweep, generations=1)
    outcome = crowned(sweep, work)
    trainings = [
        full.model_copy(
            update={"training": full.training.model_copy(update={"test_accuracy": 0.1})}
        )
        for full in outcome.comparison.trainings
    ]
    report(sweep, work, outcome, outcome.comparison.model_copy(update={"trainings": trainings}))
    output = capsys.readouterr().out
    assert "The champion learned nothing: its test accuracy of 10.00" in output
    assert "It is not registered as a version of digits-loss." in output
    assert "The champion learned nothing" in (work.folder / "page").read_text()
    assert mlflow_client().search_registered_models() == []


def test_the_alias_moves_to_a_better_champion_alone(
    sweep: Sweep, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    first = changed(sweep, generations=1)
    outcome = crowned(first, work)
    # The second time is that of a task that is tried again.
    for _ in range(2):
        report(first, work, outcome, outcome.comparison)
        assert "models:/digits-loss@champion is version 1 now" in capsys.readouterr().out
    assert work.sweep().search.finished

    theta = outcome.comparison.champion.theta
    for version, gain, holder in ((2, -0.2, "digits"), (3, 0.2, "digits.3")):
        sweep = work.open(1, search={"renew": True})
        assert sweep.study == f"digits.{version}"
        assert sweep.standing == StandingChampion(
            version="1", study="digits", theta=theta, learning_rate=0.1
        )
        outcome = crowned(sweep, work)
        report(sweep, work, outcome, outdone(outcome.comparison, gain))
        beats = "beats" if gain > 0 else "does not beat"
        output = capsys.readouterr().out
        assert f"The new champion {beats} the standing one (version 1, " in output
        loss = taylorglo.load_loss("models:/digits-loss@champion")
        assert loss.provenance["study"] == holder
        registered = taylorglo.load_loss(f"models:/digits-loss/{version}")
        assert registered.theta.tolist() == outcome.comparison.champion.theta
