"""The sweep as a Kubeflow pipeline: wiring only, from top to bottom.

check -> prepare (cached) -> open -> baselines, tuned
        -> generation 1..G: propose -> filter -> shards: evaluate
        -> champion -> attack -> report
"""

from typing import Any, List, NamedTuple  # noqa: UP035

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input

from taylorglo.components.attack import attack as attack_networks
from taylorglo.components.check_inputs import check_inputs
from taylorglo.components.evaluate_baselines import evaluate_baselines
from taylorglo.components.evaluate_candidates import evaluate_candidates
from taylorglo.components.filter_candidates import filter_candidates
from taylorglo.components.open_sweep import open_sweep
from taylorglo.components.prepare_dataset import prepare_dataset
from taylorglo.components.propose_candidates import propose_candidates
from taylorglo.components.report import report
from taylorglo.components.train_champion import train_champion
from taylorglo_pipelines.config import Config, PipelineSettings
from taylorglo_pipelines.pipeline.deduplicate import deduplicated
from taylorglo_pipelines.pipeline.resources import place, place_training, uncached


def sweep_pipeline(config: Config) -> Any:
    """Return the pipeline of a sweep; its parameters are the sections of the settings."""
    layout = config.pipeline
    # kfp does not allow a pipeline to be defined while another one is built.
    generations = _generations(layout)
    default = config.sweep.model_dump(mode="json")

    @dsl.pipeline(
        name=f"taylorglo-{config.name}", description="Search for a loss function with TaylorGLO"
    )
    def sweep(
        name: str = default["name"],
        seed: int = default["seed"],
        data: dict[str, Any] = default["data"],
        model: dict[str, Any] = default["model"],
        training: dict[str, Any] = default["training"],
        augmentation: dict[str, Any] = default["augmentation"],
        evaluation: dict[str, Any] = default["evaluation"],
        search: dict[str, Any] = default["search"],
        baselines: dict[str, Any] = default["baselines"],
        champion: dict[str, Any] = default["champion"],
        attack: dict[str, Any] = default["attack"],
    ) -> None:
        checked = check_inputs(
            name=name,
            seed=seed,
            data=data,
            model=model,
            training=training,
            augmentation=augmentation,
            evaluation=evaluation,
            search=search,
            baselines=baselines,
            champion=champion,
            attack=attack,
        )
        # Not retried: what this task finds is mostly bad input, which is as bad a minute later.
        place(checked, "Check inputs", layout, retried=False)
        version = checked.outputs["Output"]
        prepared = prepare_dataset(version=version, seed=seed, data=data, model=model)
        place(prepared, "Prepare data set", layout, cached=True)
        _search_and_compare(checked.outputs, prepared.outputs, generations, layout)

    return deduplicated(sweep)


def _search_and_compare(
    checked: Any, prepared: Any, generations: "_Generations", layout: PipelineSettings
) -> None:
    """Add the tasks that follow on checked settings and prepared data, from top to bottom."""
    search_data, full_data = prepared["search_data"], prepared["full_data"]
    opened = open_sweep(
        settings=checked["settings"],
        description=prepared["description"],
        full_data=full_data,
        generations=layout.generations,
    )
    context = place(opened, "Open study and MLflow run", layout).outputs["sweep"]
    tuned = evaluate_baselines(sweep=context, search_data=search_data)
    tuning = place_training(tuned, "Tune baselines", layout).outputs["tuning"]
    results = _search(context, search_data, generations, layout.generations)
    crowned = train_champion(
        sweep=context,
        search_data=search_data,
        full_data=full_data,
        tuning=tuning,
        results=results,
    )
    champion = place_training(crowned, "Train champion and baselines", layout).outputs
    attacked = attack_networks(
        sweep=context, full_data=full_data, comparison=champion["comparison"]
    )
    robustness = place_training(attacked, "Attack", layout).outputs["robustness"]
    reported = report(
        sweep=context,
        tuning=tuning,
        comparison=champion["comparison"],
        robustness=robustness,
        loss=champion["loss"],
        model=champion["model"],
    )
    place(reported, "Report", layout)


def _search(context: Any, search_data: Any, generations: "_Generations", number: int) -> Any:
    """Add ``number`` generations, one after another; return the results of the last one."""
    task = generations.first(sweep=context, search_data=search_data, number=1)
    uncached(task, "Generation 1")
    for generation in range(2, number + 1):
        task = generations.next(
            sweep=context, search_data=search_data, number=generation, previous=task.output
        )
        uncached(task, f"Generation {generation}")
    return task.output


class _Generations(NamedTuple):
    """A generation as a sub-pipeline: the first one, and one that follows another."""

    first: Any
    next: Any


def _generations(layout: PipelineSettings) -> _Generations:
    """Return the sub-pipelines of a layout."""

    @dsl.pipeline(name="first-generation")
    def first_generation(
        sweep: Input[Artifact], search_data: Input[Dataset], number: int
    ) -> List[Artifact]:  # noqa: UP006
        proposed = propose_candidates(sweep=sweep, generation=number)
        results: List[Artifact] = _evaluate(  # noqa: UP006
            proposed, sweep, search_data, number, layout
        )
        return results

    @dsl.pipeline(name="next-generation")
    def next_generation(
        sweep: Input[Artifact],
        search_data: Input[Dataset],
        number: int,
        previous: Input[List[Artifact]],  # noqa: UP006
    ) -> List[Artifact]:  # noqa: UP006
        proposed = propose_candidates(sweep=sweep, generation=number, previous=previous)
        results: List[Artifact] = _evaluate(  # noqa: UP006
            proposed, sweep, search_data, number, layout
        )
        return results

    return _Generations(first_generation, next_generation)


def _evaluate(
    proposed: dsl.PipelineTask,
    sweep: Any,
    search_data: Any,
    number: Any,
    layout: PipelineSettings,
) -> Any:
    """Add the tasks of a generation; return the results of all its shards."""
    candidates = place(proposed, "Propose candidates", layout).outputs["candidates"]
    filtered = filter_candidates(sweep=sweep, generation=number, candidates=candidates)
    screened = place(filtered, "Filter candidates", layout).outputs["screened"]
    with dsl.ParallelFor(items=list(range(layout.shards)), name="shards") as shard:
        evaluated = evaluate_candidates(
            sweep=sweep,
            search_data=search_data,
            generation=number,
            screened=screened,
            shard=shard,
            shards=layout.shards,
            retries=layout.retries,
        )
        place_training(evaluated, "Evaluate candidates", layout)
    return dsl.Collected(evaluated.outputs["results"])
