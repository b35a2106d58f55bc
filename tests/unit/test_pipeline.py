"""The compiled pipeline, as Kubeflow Pipelines will be given it."""

import difflib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from taylorglo.errors import InputError
from taylorglo.settings import SweepSettings
from taylorglo_pipelines import config
from taylorglo_pipelines.compiling import compile_sweep

GOLDEN = Path(__file__).parents[1] / "golden"
_spec = importlib.util.spec_from_file_location("write_golden", GOLDEN / "write.py")
assert _spec is not None
assert _spec.loader is not None
write = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(write)

TYPES = {str: "STRING", bool: "BOOLEAN", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE"}
TRAINING = {"exec-evaluate-baselines", "exec-evaluate-candidates", "exec-train-champion", "exec-attack"}
ARGO_LIMIT = 700_000
GENERATION_LIMIT = 15_000  # bytes; 40 of them, and everything else, stay below Argo's limit


def compiled(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """The default sweep with these settings, compiled."""
    path, output = tmp_path / "config.yaml", tmp_path / "pipeline.yaml"
    path.write_text("name: digits\n")
    size = compile_sweep(config.load(path, overrides), output)
    assert size == output.stat().st_size
    return yaml.safe_load(output.read_text())


def executors(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each["container"] for name, each in pipeline["deploymentSpec"]["executors"].items()}


def trains(executor: str) -> bool:
    return re.sub(r"-\d+$", "", executor) in TRAINING


def tasks(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task of the pipeline and of the sub-pipelines, by component and name."""
    dags = {"root": pipeline["root"], **pipeline["components"]}
    return {
        f"{component}/{name}": task
        for component, each in dags.items()
        for name, task in each.get("dag", {}).get("tasks", {}).items()
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compiled(tmp_path_factory.mktemp("plain"), "pipeline.generations=3", "pipeline.shards=2")


@pytest.mark.parametrize("path", write.CONFIGS, ids=lambda path: path.name)
def test_golden(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where it is compiled must not matter
    expected, found = write.golden_of(path).read_text(), write.compiled(path)
    difference = difflib.unified_diff(expected.splitlines(), found.splitlines(), "golden", "compiled now", lineterm="")
    assert expected == found, "\n".join(["the compiled pipeline changed; if that is meant: make golden", *difference])


def test_parameters_are_typed_scalars_with_the_settings_as_defaults(plain: dict[str, Any]) -> None:
    parameters = plain["root"]["inputDefinitions"]["parameters"]
    expected = SweepSettings().parameters()
    assert {name: each["parameterType"] for name, each in parameters.items()} == {
        name: TYPES[type(value)] for name, value in expected.items()
    }
    assert {name: each["defaultValue"] for name, each in parameters.items()} == expected
    assert "artifacts" not in plain["root"]["inputDefinitions"]


def test_the_defaults_are_those_of_the_configuration(tmp_path: Path) -> None:
    pipeline = compiled(
        tmp_path, "search.popsize=5", "search.mean=[1, 2, -3, 0.5]", "training.nesterov=false", "seed=7"
    )
    parameters = {k: v["defaultValue"] for k, v in pipeline["root"]["inputDefinitions"]["parameters"].items()}
    again = SweepSettings.from_parameters(parameters)
    assert (again.search.popsize, again.search.mean, again.training.nesterov, again.seed) == (
        5,
        [1.0, 2.0, -3.0, 0.5],
        False,
        7,
    )


def test_the_front_door_is_given_every_parameter(plain: dict[str, Any]) -> None:
    given = plain["root"]["dag"]["tasks"]["prepare-dataset"]["inputs"]["parameters"]
    assert given.pop("generations") == {"runtimeValue": {"constant": 3}}
    assert given == {name: {"componentInputParameter": name} for name in SweepSettings().parameters()}


def test_nothing_is_cached(plain: dict[str, Any]) -> None:
    # kfp writes {} for a task that is not cached; a loop is a group of tasks and has no options of its own.
    options = {name: task.get("cachingOptions") for name, task in tasks(plain).items()}
    assert {name for name, option in options.items() if option not in ({}, None)} == set()
    assert all("for-loop" in name.rpartition("/")[2] for name, option in options.items() if option is None)


def test_every_task_has_a_name_for_people(plain: dict[str, Any]) -> None:
    names = {name: task["taskInfo"]["name"] for name, task in plain["root"]["dag"]["tasks"].items()}
    assert sorted(names.values()) == [
        "Attack",
        "Generation 1",
        "Generation 2",
        "Generation 3",
        "Prepare data set",
        "Report",
        "Train champion and baselines",
        "Tune baselines",
    ]
    inner = {task["taskInfo"]["name"] for key, task in tasks(plain).items() if not key.startswith("root/")}
    assert inner == {"Propose candidates", "Filter candidates", "Evaluate candidates", "shards"}


def test_generations_are_unrolled_each_after_the_former(plain: dict[str, Any]) -> None:
    by_name = {task["taskInfo"]["name"]: (key, task) for key, task in plain["root"]["dag"]["tasks"].items()}
    for number in (1, 2, 3):
        task = by_name[f"Generation {number}"][1]
        assert task["inputs"]["parameters"]["number"]["runtimeValue"]["constant"] == number
        if number > 1:
            former = by_name[f"Generation {number - 1}"][0]
            assert task["inputs"]["artifacts"]["previous"]["taskOutputArtifact"]["producerTask"] == former
            assert former in task["dependentTasks"]
    assert by_name["Generation 3"][0] in by_name["Train champion and baselines"][1]["dependentTasks"]


@pytest.mark.parametrize("shards", [1, 3])
def test_the_shards_of_a_generation_are_a_parallel_loop(tmp_path: Path, shards: int) -> None:
    pipeline = compiled(tmp_path, "pipeline.generations=2", f"pipeline.shards={shards}")
    loops = [task for task in tasks(pipeline).values() if "parameterIterator" in task]
    assert [task["parameterIterator"]["items"]["raw"] for task in loops] == [str(list(range(shards)))] * 2
    evaluations = [task for key, task in tasks(pipeline).items() if key.rpartition("/")[2] == "evaluate-candidates"]
    assert [task["inputs"]["parameters"]["shards"]["runtimeValue"]["constant"] for task in evaluations] == [shards] * 2


def test_the_search_is_not_given_the_test_split(plain: dict[str, Any]) -> None:
    seeing = {name.rpartition("/")[2] for name, task in tasks(plain).items() if "full_data" in str(task.get("inputs"))}
    assert seeing == {"train-champion", "attack"}


def test_the_project_image_and_no_resources_by_default(plain: dict[str, Any]) -> None:
    assert {each["image"] for each in executors(plain).values()} == {"taylorglo:0.1.0"}
    assert not any("resources" in each for each in executors(plain).values())


def test_resources_are_asked_for_by_the_tasks_that_train_alone(tmp_path: Path) -> None:
    pipeline = compiled(
        tmp_path,
        "pipeline.generations=2",
        "pipeline.image=registry.example.org/other:1",
        "pipeline.cpu=1500m",
        "pipeline.memory=4Gi",
        "pipeline.accelerator=nvidia.com/gpu",
    )
    assert {each["image"] for each in executors(pipeline).values()} == {"registry.example.org/other:1"}
    for name, each in executors(pipeline).items():
        if not trains(name):
            assert "resources" not in each, name
            continue
        asked = each["resources"]
        assert asked["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert asked["accelerator"]["resourceCount"] == "1"
        assert (asked["resourceCpuRequest"], asked["resourceMemoryRequest"]) == ("1500m", "4Gi")
    assert sum(trains(name) for name in executors(pipeline)) == 5  # two generations, and the three that come once


def test_each_setting_of_the_resources_stands_for_itself(tmp_path: Path) -> None:
    pipeline = compiled(tmp_path, "pipeline.generations=1", "pipeline.cpu=2")
    asked = [each["resources"] for name, each in executors(pipeline).items() if trains(name)]
    assert {tuple(sorted(each)) for each in asked} == {("cpuRequest", "resourceCpuRequest")}


def test_neither_services_nor_secrets_nor_paths_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "SECRET-OF-THE-ENVIRONMENT")
    for name in ("TAYLORGLO_STUDY_URL", "TAYLORGLO_STORE_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "sqlite:///SERVICE-OF-THE-ENVIRONMENT")
    compiled(
        tmp_path,
        "pipeline.generations=1",
        "services.work_dir=SERVICE",
        "services.study_url=postgresql://SERVICE/study",
        "services.store_uri=s3://SERVICE/store",
        "services.tracking_uri=http://SERVICE:5000",
    )
    text = (tmp_path / "pipeline.yaml").read_text()
    assert not re.findall(r"SERVICE|SECRET", text)
    assert not [
        path for path in (str(tmp_path), str(Path.home()), str(GOLDEN.parents[1])) if len(path) > 1 and path in text
    ]


def test_forty_generations_fit_into_argo(tmp_path: Path) -> None:
    def size(generations: int) -> int:
        compiled(tmp_path, f"pipeline.generations={generations}", "pipeline.accelerator=nvidia.com/gpu")
        return (tmp_path / "pipeline.yaml").stat().st_size

    two, forty = size(2), size(40)
    assert forty < ARGO_LIMIT
    assert (forty - two) / 38 < GENERATION_LIMIT


def test_what_does_not_fit_is_refused_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taylorglo_pipelines.compiling._ARGO_LIMIT", 50_000)
    with pytest.raises(InputError, match=r"lower pipeline\.generations \(4\)"):
        compiled(tmp_path, "pipeline.generations=4")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
