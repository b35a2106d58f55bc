"""The sweep as a Kubeflow pipeline: wiring only, from top to bottom.

check -> prepare (cached) -> open -> baselines, tuned
        -> layout "workers": shards x search
        -> layout "generations": generation 1..G: propose -> filter -> shards x evaluate
        -> champion -> attack -> report

All tasks are in one graph, because each nested graph and each loop costs pods and a part of Argo's
state. The context of the sweep goes from task to task with the results. The tasks of the search
have their data from the store: Kubeflow's graph would have an edge to each of them.
"""

from collections.abc import Sequence
from typing import Any

from kfp import dsl

from taylorglo.components.attack import attack as attack_networks
from taylorglo.components.check_inputs import check_inputs
from taylorglo.components.evaluate_baselines import evaluate_baselines
from taylorglo.components.evaluate_candidates import evaluate_candidates
from taylorglo.components.filter_candidates import filter_candidates
from taylorglo.components.open_sweep import open_sweep
from taylorglo.components.prepare_dataset import prepare_dataset
from taylorglo.components.propose_candidates import propose_candidates
from taylorglo.components.report import report
from taylorglo.components.search_candidates import search_candidates
from taylorglo.components.train_champion import train_champion
from taylorglo_pipelines.config import Config, PipelineSettings
from taylorglo_pipelines.pipeline.deduplicate import deduplicated
from taylorglo_pipelines.pipeline.resources import (
    ALL_SERVICES,
    STORE,
    STUDY,
    place,
    place_training,
    tell_origin,
)


def sweep_pipeline(config: Config) -> Any:
    """Return the pipeline of a sweep; its parameters are the sections of the settings."""
    layout = config.pipeline
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
        place(checked, "Check inputs", layout, ALL_SERVICES, retried=False)
        version = checked.outputs["Output"]
        prepared = prepare_dataset(version=version, seed=seed, data=data, model=model)
        place(prepared, "Prepare data set", layout, STORE, cached=True)
        _search_and_compare(checked.outputs, prepared.outputs, layout)

    return deduplicated(sweep)


def _search_and_compare(checked: Any, prepared: Any, layout: PipelineSettings) -> None:
    """Add the tasks that follow on checked settings and prepared data, from top to bottom."""
    search_data, full_data = prepared["search_data"], prepared["full_data"]
    opened = open_sweep(
        settings=checked["settings"],
        description=prepared["description"],
        search_data=search_data,
        full_data=full_data,
        generations=layout.generations,
        shards=layout.shards,
    )
    context = place(opened, "Open study and MLflow run", layout, ALL_SERVICES).outputs["sweep"]
    tell_origin(opened, layout)
    tuned = evaluate_baselines(sweep=context, search_data=search_data)
    tuning = place_training(tuned, "Tune baselines", layout).outputs["tuning"]
    if layout.layout == "workers":
        searched = _add_workers(context, layout)
    else:
        searched = _add_generations(context, layout)
    crowned = train_champion(search_data=search_data, full_data=full_data, tuning=tuning)
    crowned.after(*searched)
    champion = place_training(crowned, "Train champion and baselines", layout).outputs
    attacked = attack_networks(full_data=full_data, comparison=champion["comparison"])
    robustness = place_training(attacked, "Attack", layout).outputs["robustness"]
    reported = report(
        tuning=tuning,
        comparison=champion["comparison"],
        robustness=robustness,
        loss=champion["loss"],
        model=champion["model"],
    )
    place(reported, "Report", layout, ALL_SERVICES)


def _add_workers(context: Any, layout: PipelineSettings) -> Sequence[dsl.PipelineTask]:
    """Add the tasks that share the whole search, and return them."""
    workers = []
    for worker in range(layout.shards):
        task = search_candidates(sweep=context, worker=worker)
        of = f": worker {worker + 1} of {layout.shards}" if layout.shards > 1 else ""
        workers.append(place_training(task, f"Search{of}", layout))
    return workers


def _add_generations(context: Any, layout: PipelineSettings) -> Sequence[dsl.PipelineTask]:
    """Add the tasks of each generation, one generation after another; return those of the last."""
    previous = context
    shards: list[dsl.PipelineTask] = []
    for generation in range(1, layout.generations + 1):
        name = f"generation {generation}"
        proposed = propose_candidates(previous=previous, generation=generation).after(*shards)
        candidates = place(proposed, f"Propose candidates: {name}", layout, STUDY).outputs
        filtered = filter_candidates(candidates=candidates["candidates"])
        place(filtered, f"Filter candidates: {name}", layout, STUDY)
        screened = filtered.outputs["screened"]
        shards = []
        for shard in range(layout.shards):
            task = evaluate_candidates(screened=screened, shard=shard)
            of = f", shard {shard + 1} of {layout.shards}" if layout.shards > 1 else ""
            shards.append(place_training(task, f"Evaluate candidates: {name}{of}", layout))
        previous = screened
    return shards
