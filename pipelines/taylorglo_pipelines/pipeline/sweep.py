"""The sweep as a Kubeflow pipeline: wiring only, from top to bottom.

check -> prepare (cached) -> open -> baselines, tuned
        -> generation 1..G: propose -> filter -> shards: evaluate -> ... -> champion -> attack -> report
"""

from typing import Any, List  # noqa: UP035

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
    """Return the pipeline of a sweep.

    Its parameters are the sections of the settings, with the configured values as defaults.
    """
    layout = config.pipeline
    first_generation, next_generation = _generations(layout)
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
        # Not retried: what this task finds is mostly bad input, which is as bad a minute later.
        checked = place(
            check_inputs(
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
            ),
            "Check inputs",
            layout,
            retried=False,
        ).outputs
        prepared = place(
            prepare_dataset(version=checked["Output"], seed=seed, data=data, model=model),
            "Prepare data set",
            layout,
            cached=True,
        ).outputs
        search_data, full_data = prepared["search_data"], prepared["full_data"]
        context = place(
            open_sweep(
                settings=checked["settings"],
                description=prepared["description"],
                full_data=full_data,
                generations=layout.generations,
            ),
            "Open study and MLflow run",
            layout,
        ).outputs["sweep"]
        tuned = place_training(
            evaluate_baselines(sweep=context, search_data=search_data), "Tune baselines", layout
        ).outputs
        generation = first_generation(sweep=context, search_data=search_data, number=1)
        uncached(generation, "Generation 1")
        for number in range(2, layout.generations + 1):
            generation = next_generation(
                sweep=context, search_data=search_data, number=number, previous=generation.output
            )
            uncached(generation, f"Generation {number}")
        crowned = place_training(
            train_champion(
                sweep=context,
                search_data=search_data,
                full_data=full_data,
                tuning=tuned["tuning"],
                results=generation.output,
            ),
            "Train champion and baselines",
            layout,
        ).outputs
        attacked = place_training(
            attack_networks(sweep=context, full_data=full_data, comparison=crowned["comparison"]),
            "Attack",
            layout,
        ).outputs
        place(
            report(
                sweep=context,
                tuning=tuned["tuning"],
                comparison=crowned["comparison"],
                robustness=attacked["robustness"],
                loss=crowned["loss"],
                model=crowned["model"],
            ),
            "Report",
            layout,
        )

    return deduplicated(sweep)


def _generations(layout: PipelineSettings) -> tuple[Any, Any]:
    """Return a generation as a sub-pipeline: the first one, and one that follows another."""

    def evaluate(sweep: Any, search_data: Any, number: Any, candidates: Any) -> Any:
        screened = place(
            filter_candidates(sweep=sweep, generation=number, candidates=candidates),
            "Filter candidates",
            layout,
        ).outputs["screened"]
        with dsl.ParallelFor(items=list(range(layout.shards)), name="shards") as shard:
            evaluated = place_training(
                evaluate_candidates(
                    sweep=sweep,
                    search_data=search_data,
                    generation=number,
                    screened=screened,
                    shard=shard,
                    shards=layout.shards,
                    retries=layout.retries,
                ),
                "Evaluate candidates",
                layout,
            )
        return dsl.Collected(evaluated.outputs["results"])

    @dsl.pipeline(name="first-generation")
    def first_generation(
        sweep: Input[Artifact], search_data: Input[Dataset], number: int
    ) -> List[Artifact]:  # noqa: UP006
        proposed = place(
            propose_candidates(sweep=sweep, generation=number), "Propose candidates", layout
        )
        results: List[Artifact] = evaluate(  # noqa: UP006
            sweep, search_data, number, proposed.outputs["candidates"]
        )
        return results

    @dsl.pipeline(name="next-generation")
    def next_generation(
        sweep: Input[Artifact],
        search_data: Input[Dataset],
        number: int,
        previous: Input[List[Artifact]],  # noqa: UP006
    ) -> List[Artifact]:  # noqa: UP006
        proposed = place(
            propose_candidates(sweep=sweep, generation=number, previous=previous),
            "Propose candidates",
            layout,
        )
        results: List[Artifact] = evaluate(  # noqa: UP006
            sweep, search_data, number, proposed.outputs["candidates"]
        )
        return results

    return first_generation, next_generation
