"""How a search is cut into runs and followed by another one, and which MLflow run a run gets."""

import pytest
from small_sweeps import Work, begin_generation, evaluation, mlflow_client, small_settings

from taylorglo.errors import InputError
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.open import PreparedData, open_sweep, open_tracker


def complete(sweep: Sweep, numbers: range) -> None:
    """Tell the study the results of whole generations."""
    for number in numbers:
        begin_generation(sweep, number, [evaluation(sweep, 0.5 + 0.01 * number)] * 4)


def run_id_of_next_run(sweep: Sweep) -> str:
    """Return the MLflow run in which the next run of the same search goes on."""
    return open_tracker(sweep.store, sweep.settings, sweep.study).run_id


def test_each_run_goes_on_after_the_last_one(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    firsts = []
    for _ in range(4):
        sweep = work.open(2, search={"generations": 5})
        firsts.append(sweep.first)
        assert (sweep.study, sweep.generations) == ("digits", 5)
        assert [sweep.generation(number) for number in (1, 2)] == [sweep.first, sweep.first + 1]
        complete(sweep, range(sweep.first, sweep.first + 2))
    # The last run ends with the search; once the search is complete, its end is shown again.
    assert firsts == [1, 3, 4, 4]
    assert sweep.complete
    assert "this run: generations 4 to 5 of 5" in capsys.readouterr().out


def test_half_a_run_is_not_lost(work: Work) -> None:
    sweep = work.open(3, search={"generations": 7})
    complete(sweep, range(1, 3))
    sweep.search.propose(3)
    assert work.open(3, search={"generations": 7}).first == 3


def test_one_run_shows_all_of_its_search_again(work: Work) -> None:
    complete(work.open(3), range(1, 3))
    assert work.open(3).first == 1
    longer = work.open(5)
    assert (longer.first, longer.generations, longer.complete) == (1, 5, False)


def test_a_finished_search_is_followed_by_another_one_if_asked(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    first = work.open(2, search={"renew": True})
    complete(first, range(1, 3))
    first.finish(search=True)
    assert work.open(2, search={"renew": False}).study == "digits"
    second = work.open(2, search={"renew": True})
    assert (second.study, second.first) == ("digits.2", 1)
    assert second.run_id != first.run_id
    assert "search 'digits.2', warm-started from 'digits'" in capsys.readouterr().out
    assert mlflow_client().get_run(second.run_id).data.params["study"] == "digits.2"


def test_an_unfinished_search_goes_on_in_a_new_mlflow_run(work: Work) -> None:
    search = {"generations": 2, "renew": True}
    sweep = work.open(1, search=search)
    complete(sweep, range(1, 2))
    sweep.finish(search=False)
    again = work.open(1, search=search)
    assert (again.study, again.first) == ("digits", 2)
    assert again.run_id != sweep.run_id


def test_an_unfinished_run_goes_on_in_its_mlflow_run_and_the_next_one_in_a_new_one(
    sweep: Sweep,
) -> None:
    assert run_id_of_next_run(sweep) == sweep.run_id
    sweep.set_tracked(1)
    assert run_id_of_next_run(sweep) == sweep.run_id
    assert sweep.tracked() == 1
    sweep.finish(search=False)
    assert run_id_of_next_run(sweep) != sweep.run_id
    assert sweep.tracked() == 0


def test_a_new_mlflow_run_is_begun_if_the_unfinished_one_was_deleted(sweep: Sweep) -> None:
    mlflow_client().delete_run(sweep.run_id)
    again = run_id_of_next_run(sweep)
    assert again != sweep.run_id
    assert run_id_of_next_run(sweep) == again


def test_a_deleted_experiment_is_an_error(sweep: Sweep) -> None:
    mlflow_client().delete_experiment(sweep.tracker.experiment_id)
    with pytest.raises(InputError, match="experiment 'digits': was deleted"):
        run_id_of_next_run(sweep)


KEPT = "data: the validation split of the source is kept, so that evaluation.folds has no effect"


@pytest.mark.parametrize(
    ("origin", "folds", "said"),
    [("of the source", 3, True), ("of the source", 0, False), ("held out", 3, False)],
)
def test_a_validation_split_of_the_source_is_kept_and_the_log_says_so(
    work: Work, capsys: pytest.CaptureFixture[str], origin: str, folds: int, said: bool
) -> None:
    description = work.description()
    provenance = {**description.provenance, "validation_split": origin}
    own = description.model_copy(update={"provenance": provenance})
    settings = small_settings("folded", evaluation={"folds": folds})
    open_sweep(settings, own, PreparedData(work.search_data, work.full_data), 2)
    assert (KEPT in capsys.readouterr().out) is said


def test_changes_of_images_are_refused_for_features_before_a_study_is_opened(work: Work) -> None:
    own = work.description().model_copy(update={"features": 5})
    settings = small_settings("features", augmentation={"flip": True})
    with pytest.raises(InputError, match=r"^augmentation.flip: changes images, .* 5 features"):
        open_sweep(settings, own, PreparedData(work.search_data, work.full_data), 2)
