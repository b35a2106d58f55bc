"""The sweep as a Kubeflow pipeline: wiring only, from top to bottom.

check -> prepare (cached) -> open -> baselines, tuned
        -> generation 1..G: propose -> filter -> shards: evaluate -> ... -> champion -> attack -> report
"""

import inspect
from typing import Any, List  # noqa: UP035

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input

from taylorglo.components.attack import attack
from taylorglo.components.check_inputs import check_inputs
from taylorglo.components.evaluate_baselines import evaluate_baselines
from taylorglo.components.evaluate_candidates import evaluate_candidates
from taylorglo.components.filter_candidates import filter_candidates
from taylorglo.components.open_sweep import open_sweep
from taylorglo.components.prepare_dataset import prepare_dataset
from taylorglo.components.propose_candidates import propose_candidates
from taylorglo.components.report import report
from taylorglo.components.train_champion import train_champion
from taylorglo.settings import Scalar
from taylorglo_pipelines.config import Config, PipelineSettings
from taylorglo_pipelines.resources import place, place_training, uncached
from taylorglo_pipelines.sharing import shared


def sweep_pipeline(config: Config) -> Any:
    """The pipeline of a sweep; its run-time parameters are the settings, with the configured values as defaults."""
    layout = config.pipeline
    first_generation, next_generation = _generations(layout)
    defaults = config.sweep.parameters()

    def sweep(*values: Any) -> None:
        given = dict(zip(defaults, values, strict=True))
        checked = place(check_inputs(**given), "Check inputs", layout).outputs
        prepared = place(
            prepare_dataset(
                version=checked["Output"],
                seed=given["seed"],
                model_name=given["model_name"],
                **{name: value for name, value in given.items() if name.startswith("data_")},
            ),
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
        baselines = place_training(
            evaluate_baselines(sweep=context, search_data=search_data), "Tune baselines", layout
        ).outputs
        generation = first_generation(sweep=context, search_data=search_data, number=1)
        uncached(generation, "Generation 1")
        for number in range(2, layout.generations + 1):
            generation = next_generation(
                sweep=context, search_data=search_data, number=number, previous=generation.output
            )
            uncached(generation, f"Generation {number}")
        champion = place_training(
            train_champion(
                sweep=context,
                search_data=search_data,
                full_data=full_data,
                tuning=baselines["tuning"],
                results=generation.output,
            ),
            "Train champion and baselines",
            layout,
        ).outputs
        attacked = place_training(
            attack(sweep=context, full_data=full_data, comparison=champion["comparison"]), "Attack", layout
        ).outputs
        place(
            report(
                sweep=context,
                tuning=baselines["tuning"],
                comparison=champion["comparison"],
                robustness=attacked["robustness"],
            ),
            "Report",
            layout,
        )

    sweep.__signature__ = _signature(defaults)  # type: ignore[attr-defined]
    describe = dsl.pipeline(name=f"taylorglo-{config.name}", description="Search for a loss function with TaylorGLO")
    return shared(describe(sweep))


def _generations(layout: PipelineSettings) -> tuple[Any, Any]:
    """A generation as a sub-pipeline: the first one, and one that follows the results of another."""

    def evaluate(sweep: Any, search_data: Any, number: Any, candidates: Any) -> Any:
        screened = place(
            filter_candidates(sweep=sweep, generation=number, candidates=candidates), "Filter candidates", layout
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
    def first_generation(sweep: Input[Artifact], search_data: Input[Dataset], number: int) -> List[Artifact]:  # noqa: UP006
        proposed = place(propose_candidates(sweep=sweep, generation=number), "Propose candidates", layout)
        results: List[Artifact] = evaluate(sweep, search_data, number, proposed.outputs["candidates"])  # noqa: UP006
        return results

    @dsl.pipeline(name="next-generation")
    def next_generation(
        sweep: Input[Artifact],
        search_data: Input[Dataset],
        number: int,
        previous: Input[List[Artifact]],  # noqa: UP006
    ) -> List[Artifact]:  # noqa: UP006
        proposed = place(
            propose_candidates(sweep=sweep, generation=number, previous=previous), "Propose candidates", layout
        )
        results: List[Artifact] = evaluate(sweep, search_data, number, proposed.outputs["candidates"])  # noqa: UP006
        return results

    return first_generation, next_generation


def _signature(defaults: dict[str, Scalar]) -> inspect.Signature:
    """kfp reads a pipeline's parameters off its signature, which here follows from the settings."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [inspect.Parameter(name, kind, default=value, annotation=type(value)) for name, value in defaults.items()]
    )
