"""The choice of the champion, and its comparison with the baselines.

The trainings are real and have three steps. Their results in the store are then rewritten, because
a later choice recalls them from there.
"""

import json

import pytest
from mlflow import MlflowClient
from small_sweeps import Work, begin_generation, changed, evaluation, full_training, small_settings

from taylorglo.errors import InputError
from taylorglo.loss.dynamics import learning_drive
from taylorglo.report.text import expectation
from taylorglo.results import Candidate, Champion, Comparison, FullTraining
from taylorglo.scores import worst
from taylorglo.services import layout
from taylorglo.tasks.champion import Outcome, choose_champion, crown, run
from taylorglo.tasks.context import Sweep
from taylorglo.variables import TRACKING_URI, required

RATES = {  # the worse learning rate of a baseline, and the better one
    "cross-entropy": (0.1, 0.3),
    "squared error": (0.3, 0.1),
}
# Cross-entropy, the first of the two that tuned best, at three times the candidates' rate.
TUNED = [*[0.0] * 8, 0.3 / 0.1]


@pytest.fixture
def candidates(sweep: Sweep) -> list[Candidate]:
    """The trained candidates of a generation, best first."""
    fitnesses = (0.5, 0.9, 0.7, 0.8)
    begin_generation(sweep, 1, [evaluation(sweep, fitness) for fitness in fitnesses])
    scored = [c for c in sweep.search.candidates() if c.fitness is not None]
    return sorted(scored, key=lambda c: -(c.fitness or 0.0))


@pytest.fixture
def tuning() -> list[FullTraining]:
    return [
        full_training(name, accuracy, learning_rate=rate)
        for name, rates in RATES.items()
        for rate, accuracy in zip(rates, (0.6, 0.7), strict=True)
    ]


def as_champion(candidate: Candidate) -> Champion:
    """Return the candidate as the winner of a search without finalists."""
    assert candidate.fitness is not None
    return Champion(
        theta=candidate.theta,
        order=3,
        fitness=candidate.fitness,
        generation=candidate.generation,
        trial=candidate.trial,
    )


def rewrite(sweep: Sweep, finalists: list[FullTraining], accuracies: list[float]) -> None:
    """Put other validation accuracies of the finalists into the store, in their order."""
    for full, accuracy in zip(finalists, accuracies, strict=True):
        training = full.training.model_copy(update={"accuracy": accuracy})
        content = full.model_copy(update={"training": training}).model_dump_json()
        sweep.store.write(layout.training(sweep.settings.name, full.key), content.encode())


def on_test(full: FullTraining, accuracy: float) -> FullTraining:
    """Return a training in full with another test accuracy."""
    training = full.training.model_copy(update={"test_accuracy": accuracy})
    return full.model_copy(update={"training": training})


def accuracies_of_champion(comparison: Comparison) -> list[float]:
    """Return the champion's test accuracies."""
    return [t.test_accuracy for t in comparison.trainings if t.contender.name == "champion"]


def test_the_finalist_of_highest_accuracy_in_full_wins_and_of_equals_the_mean(
    sweep: Sweep, work: Work, candidates: list[Candidate], tuning: list[FullTraining]
) -> None:
    outcome = crown(sweep, work.search_data, work.full_data, tuning)
    finalists = outcome.comparison.finalists
    thetas = [sweep.search.mean(), *(c.theta for c in candidates[:2]), TUNED]
    assert [t.contender.theta for t in finalists] == thetas
    assert all(t.training.test_accuracy is None for t in finalists)
    for accuracies, winner in (
        ([0.1, 0.2, 0.3, 0.1], 2),
        ([0.1, 0.3, 0.2, 0.1], 1),
        ([0.3, 0.3, 0.3, 0.3], 0),
        ([0.1, 0.3, 0.3, 0.1], 1),
        ([0.1, 0.2, 0.3, 0.4], 3),
    ):
        rewrite(sweep, finalists, accuracies)
        again = crown(sweep, work.search_data, work.full_data, tuning)
        assert again.comparison.champion == Champion(
            theta=thetas[winner] or [],
            order=3,
            fitness=max(accuracies),
            generation=1,
            trial=(None, candidates[0].trial, candidates[1].trial, None)[winner],
            trainings=1,
            baseline="cross-entropy" if winner == 3 else "",
        )
        assert again.loss.theta.tolist() == thetas[winner]
        saved = json.loads((work.folder / "store/digits/champion/loss.json").read_text())
        assert saved["theta"] == thetas[winner]
        assert saved["provenance"].get("baseline") == ("cross-entropy" if winner == 3 else None)
        program = (work.folder / "store/digits/champion/loss.py").read_text()
        assert program == again.loss.source()


def test_mlflow_knows_the_candidates_before_the_report(
    sweep: Sweep, work: Work, candidates: list[Candidate], tuning: list[FullTraining]
) -> None:
    sweep.write(work.folder / "tuning", tuning)
    run(
        search_data_path=work.search_data,
        full_data_path=work.full_data,
        tuning_path=str(work.folder / "tuning"),
        **{f"{name}_path": str(work.folder / name) for name in ("comparison", "loss", "model")},
    )
    assert sweep.tracked() == candidates[0].generation
    client = MlflowClient(required(TRACKING_URI))
    nested = client.search_runs([sweep.tracker.experiment_id], "tags.`taylorglo.trial` != ''")
    assert {int(r.data.tags["taylorglo.trial"]) for r in nested} == {c.trial for c in candidates}


def test_one_finalist_needs_no_choice(
    sweep: Sweep, work: Work, candidates: list[Candidate], tuning: list[FullTraining]
) -> None:
    settings = small_settings(champion={"finalists": 1})
    one = changed(sweep, settings=settings)
    comparison = crown(one, work.search_data, work.full_data, tuning).comparison
    assert comparison.champion == as_champion(candidates[0])
    assert comparison.finalists == []


def test_baselines_train_with_their_better_learning_rate_from_the_seeds_of_the_champion(
    sweep: Sweep, work: Work, candidates: list[Candidate], tuning: list[FullTraining]
) -> None:
    outcome = crown(sweep, work.search_data, work.full_data, tuning)
    comparison = outcome.comparison
    trainings = comparison.trainings
    rates = {t.contender.name: t.contender.learning_rate for t in trainings}
    assert rates == {"champion": 0.1, **{name: better for name, (_, better) in RATES.items()}}
    seeds = {name: [t.seed for t in trainings if t.contender.name == name] for name in rates}
    assert len(set(seeds["champion"])) == 2
    assert set(map(tuple, seeds.values())) == {tuple(seeds["champion"])}
    assert not set(seeds["champion"]) & {t.seed for t in comparison.finalists}
    accuracies = accuracies_of_champion(comparison)
    assert outcome.mean_score == pytest.approx(sum(accuracies) / 2)
    assert outcome.network == sweep.full_trainings.weights(trainings[0].key)


def test_with_adam_every_record_has_the_rate_of_the_loss_that_was_found(
    sweep: Sweep, work: Work, candidates: list[Candidate], tuning: list[FullTraining]
) -> None:
    rate = 0.003
    adam = changed(
        sweep, settings=small_settings(training={"optimizer": "adam", "learning_rate": rate})
    )
    outcome = crown(adam, work.search_data, work.full_data, tuning)
    comparison, n = outcome.comparison, 10

    def scale(theta: list[float]) -> float:
        return learning_drive(theta, n) / n

    champion = comparison.champion.theta
    for full in comparison.finalists:
        found = full.contender
        assert found.learning_rate == pytest.approx(rate * scale(found.theta))
    assert len({full.contender.learning_rate for full in comparison.finalists}) == 4
    # Cross-entropy has the rate that it was tuned to.
    assert comparison.finalists[-1].contender.learning_rate == pytest.approx(0.3)
    for full in comparison.trainings:
        if full.contender.name == "champion":
            assert full.contender.learning_rate == pytest.approx(rate * scale(champion))
    saved = json.loads((work.folder / "store/digits/champion/loss.json").read_text())
    assert saved["provenance"]["optimizer"] == "adam"
    assert saved["provenance"]["learning_rate"] == comparison.trainings[0].contender.learning_rate
    default = crown(sweep, work.search_data, work.full_data, tuning)
    assert default.loss.provenance["optimizer"] == "sgd"
    assert {t.contender.learning_rate for t in default.comparison.finalists} == {0.1}


def test_a_diverged_candidate_is_no_finalist(
    sweep: Sweep, work: Work, tuning: list[FullTraining]
) -> None:
    results = [evaluation(sweep, fitness) for fitness in (0.5, 0.9, 0.7, 0.8)]
    results[1] = results[1].model_copy(update={"status": "diverged", "reason": "loss is nan"})
    trials = begin_generation(sweep, 1, results)
    finalists = crown(sweep, work.search_data, work.full_data, tuning).comparison.finalists
    thetas = {c.trial: c.theta for c in sweep.search.candidates()}
    order = [sweep.search.mean(), *(thetas[trials[index]] for index in (3, 2)), TUNED]
    assert [full.contender.theta for full in finalists] == order


def test_the_expected_fitness_has_the_interval_of_its_trainings(
    sweep: Sweep, work: Work, candidates: list[Candidate], tuning: list[FullTraining]
) -> None:
    settings = small_settings(baselines={"attempts": 3}, champion={"finalists": 2})
    several = changed(sweep, settings=settings)
    finalists = crown(several, work.search_data, work.full_data, tuning).comparison.finalists
    rewrite(several, finalists, [0.6, 0.5, 0.7, 0.1, 0.2, 0.3, 0.1, 0.1, 0.1])
    champion = crown(several, work.search_data, work.full_data, tuning).comparison.champion
    assert (champion.trial, champion.trainings) == (None, 3)
    assert champion.fitness == pytest.approx(0.6)
    # The quantile of Student's t for 2 degrees of freedom is 4.3027.
    reach = 4.30265 * 0.1 / 3**0.5
    assert champion.interval == pytest.approx((0.6 - reach, 0.6 + reach), rel=1e-5)


def test_a_training_without_a_score_counts_in_the_choice_and_in_no_figure(
    sweep: Sweep, work: Work, candidates: list[Candidate], tuning: list[FullTraining]
) -> None:
    missing = worst("log likelihood")
    settings = small_settings(baselines={"attempts": 3}, champion={"finalists": 2, "seeds": 3})
    several = changed(sweep, settings=settings)
    outcome = crown(several, work.search_data, work.full_data, tuning)
    # Without the baseline, which choose_champion is not told of.
    finalists = outcome.comparison.finalists[:-3]

    def champion(accuracies: list[float]) -> Champion:
        rewrite(several, finalists, accuracies)
        return choose_champion(several, work.search_data)[0]

    # The mean of the search would be the better one, had it not diverged once.
    steady = champion([0.9, missing, 0.9, 0.1, 0.2, 0.3])
    assert (steady.trial, steady.trainings) == (candidates[0].trial, 3)
    assert steady.fitness == pytest.approx(0.2)
    best = champion([0.6, missing, 0.7, 0.1, missing, 0.2])
    assert (best.trial, best.trainings, best.fitness) == (None, 2, pytest.approx(0.65))
    assert best.interval is not None
    assert sum(best.interval) / 2 == pytest.approx(0.65)
    lost = champion([missing] * 6)
    assert (lost.trainings, lost.interval) == (0, None)
    assert "no expected fitness" in expectation(lost, share=False)

    def mean(*accuracies: float) -> float | None:
        scored = iter(accuracies)
        trainings = [
            on_test(full, next(scored)) if full.contender.name == "champion" else full
            for full in outcome.comparison.trainings
        ]
        compared = outcome.comparison.model_copy(update={"trainings": trainings})
        return Outcome(compared, outcome.loss, b"").mean_score

    assert mean(0.8, missing, 0.6) == pytest.approx(0.7)
    assert mean(missing, missing, missing) is None


def test_the_network_of_a_former_champion_does_not_stay_beside_a_loss_without_one(
    sweep: Sweep, work: Work, candidates: list[Candidate], tuning: list[FullTraining]
) -> None:
    outcome = crown(sweep, work.search_data, work.full_data, tuning)
    network = layout.champion("digits", layout.NETWORK)
    assert sweep.store.read(network) == outcome.network != b""
    # A function that returns no network leaves an empty file, and no checksum of it here.
    first = outcome.comparison.trainings[0]
    rewrite(sweep, [first], [first.training.accuracy])
    sweep.store.write(layout.weights("digits", first.key), b"")
    assert crown(sweep, work.search_data, work.full_data, tuning).network == b""
    assert not sweep.store.exists(network)
    assert sweep.store.exists(layout.champion("digits"))


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_search_in_which_nothing_was_trained_fails_with_the_reason(
    status: str, sweep: Sweep, work: Work, tuning: list[FullTraining]
) -> None:
    reasons = ("loss is nan at step 1", "no learning", "no learning", "no learning")
    results = [
        evaluation(sweep, 0.1).model_copy(update={"status": status, "reason": reason})
        for reason in reasons
    ]
    begin_generation(sweep, 1, results)
    with pytest.raises(
        InputError,
        match=r"no candidate learned: of 4 that were trained, all diverged or failed, the first "
        "with: loss is nan at step 1; .* give the sweep another name",
    ):
        crown(sweep, work.search_data, work.full_data, tuning)
    assert not sweep.store.exists(layout.champion("digits"))


def test_lost_weights_are_named(
    sweep: Sweep, work: Work, candidates: list[Candidate], tuning: list[FullTraining]
) -> None:
    outcome = crown(sweep, work.search_data, work.full_data, tuning)
    key = outcome.comparison.trainings[0].key
    (work.folder / "store" / layout.weights("digits", key)).unlink()
    with pytest.raises(
        InputError, match=rf"trainings/{key}\.safetensors is gone; remove the \.json beside it"
    ):
        crown(sweep, work.search_data, work.full_data, tuning)
