"""The compiled pipeline, as Kubeflow Pipelines will be given it."""

import difflib
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl, kubernetes

from taylorglo.errors import InputError
from taylorglo.settings import SweepSettings
from taylorglo_pipelines import config
from taylorglo_pipelines.cli import main
from taylorglo_pipelines.pipeline.compile import compile_sweep
from taylorglo_pipelines.pipeline.deduplicate import shared
from taylorglo_pipelines.pipeline.resources import OPTIONAL_SECRET_KEYS, SECRET_KEYS

GOLDEN = Path(__file__).parents[2] / "golden"
_spec = importlib.util.spec_from_file_location("write_golden", GOLDEN / "write.py")
assert _spec is not None
assert _spec.loader is not None
write = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(write)

TYPES = {str: "STRING", bool: "BOOLEAN", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE"}
TRAINING = {
    "exec-evaluate-baselines",
    "exec-evaluate-candidates",
    "exec-train-champion",
    "exec-attack",
}
SIZE_LIMIT = 400_000  # bytes
GENERATION_LIMIT = (
    1_000  # bytes; a generation is little more than a reference to the first one's components
)


def compiled(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """The default sweep with these settings, compiled; what is asked of Kubernetes is under
    "kubernetes"."""
    path, output = tmp_path / "config.yaml", tmp_path / "pipeline.yaml"
    path.write_text("name: digits\n")
    size = compile_sweep(config.load(path, overrides), output)
    assert size == output.stat().st_size
    pipeline, platforms = yaml.safe_load_all(output.read_text())
    assert set(platforms["platforms"]) == {"kubernetes"}
    return {
        **pipeline,
        "kubernetes": platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"],
    }


def executors(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: each["container"] for name, each in pipeline["deploymentSpec"]["executors"].items()
    }


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
    difference = difflib.unified_diff(
        expected.splitlines(), found.splitlines(), "golden", "compiled now", lineterm=""
    )
    assert expected == found, "\n".join(
        ["the compiled pipeline changed; if that is meant: make golden", *difference]
    )


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
        tmp_path,
        "search.popsize=5",
        "search.mean=[1, 2, -3, 0.5]",
        "training.nesterov=false",
        "seed=7",
    )
    parameters = {
        k: v["defaultValue"] for k, v in pipeline["root"]["inputDefinitions"]["parameters"].items()
    }
    again = SweepSettings.from_parameters(parameters)
    assert (again.search.popsize, again.search.mean, again.training.nesterov, again.seed) == (
        5,
        [1.0, 2.0, -3.0, 0.5],
        False,
        7,
    )


def test_the_front_door_is_given_every_parameter(plain: dict[str, Any]) -> None:
    inputs = {
        name: task["inputs"]
        for name, task in plain["root"]["dag"]["tasks"].items()
        if "inputs" in task
    }
    assert inputs["check-inputs"]["parameters"] == {
        name: {"componentInputParameter": name} for name in SweepSettings().parameters()
    }
    assert inputs["open-sweep"]["parameters"] == {"generations": {"runtimeValue": {"constant": 3}}}
    assert (
        inputs["open-sweep"]["artifacts"]["settings"]["taskOutputArtifact"]["producerTask"]
        == "check-inputs"
    )


def test_prepared_data_alone_are_cached_and_by_the_version_of_their_source(
    plain: dict[str, Any],
) -> None:
    # kfp writes {} for a task that is not cached; a loop is a group of tasks and has no options of
    # its own.
    options = {name: task.get("cachingOptions") for name, task in tasks(plain).items()}
    assert {name: option for name, option in options.items() if option not in ({}, None)} == {
        "root/prepare-dataset": {"enableCache": True}
    }
    assert all(
        "for-loop" in name.rpartition("/")[2] for name, option in options.items() if option is None
    )
    decisive = plain["root"]["dag"]["tasks"]["prepare-dataset"]["inputs"]["parameters"]
    assert decisive.pop("version")["taskOutputParameter"]["producerTask"] == "check-inputs"
    assert set(decisive) == {
        "seed",
        "model_name",
        *(k for k in SweepSettings().parameters() if k.startswith("data_")),
    }


def test_every_task_has_a_name_for_people(plain: dict[str, Any]) -> None:
    names = {name: task["taskInfo"]["name"] for name, task in plain["root"]["dag"]["tasks"].items()}
    assert sorted(names.values()) == [
        "Attack",
        "Check inputs",
        "Generation 1",
        "Generation 2",
        "Generation 3",
        "Open study and MLflow run",
        "Prepare data set",
        "Report",
        "Train champion and baselines",
        "Tune baselines",
    ]
    inner = {
        task["taskInfo"]["name"]
        for key, task in tasks(plain).items()
        if not key.startswith("root/")
    }
    assert inner == {"Propose candidates", "Filter candidates", "Evaluate candidates", "shards"}


def test_generations_are_unrolled_each_after_the_former(plain: dict[str, Any]) -> None:
    by_name = {
        task["taskInfo"]["name"]: (key, task) for key, task in plain["root"]["dag"]["tasks"].items()
    }
    for number in (1, 2, 3):
        task = by_name[f"Generation {number}"][1]
        assert task["inputs"]["parameters"]["number"]["runtimeValue"]["constant"] == number
        if number > 1:
            former = by_name[f"Generation {number - 1}"][0]
            assert (
                task["inputs"]["artifacts"]["previous"]["taskOutputArtifact"]["producerTask"]
                == former
            )
            assert former in task["dependentTasks"]
    assert (
        by_name["Generation 3"][0] in by_name["Train champion and baselines"][1]["dependentTasks"]
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_the_shards_of_a_generation_are_a_parallel_loop(tmp_path: Path, shards: int) -> None:
    pipeline = compiled(tmp_path, "pipeline.generations=2", f"pipeline.shards={shards}")
    loops = [task for task in tasks(pipeline).values() if "parameterIterator" in task]
    assert [task["parameterIterator"]["items"]["raw"] for task in loops] == [
        str(list(range(shards)))
    ] * 2
    # The backend names templates after a loop's component, so each task that is a loop has one of
    # its own.
    assert len({task["componentRef"]["name"] for task in loops}) == 2
    evaluation, _ = [
        task
        for key, task in tasks(pipeline).items()
        if key.rpartition("/")[2] == "evaluate-candidates"
    ]
    constants = {k: v["runtimeValue"]["constant"] for k, v in evaluation["inputs"]["parameters"].items() if len(v) == 1
                 and "runtimeValue" in v}  # fmt: skip
    assert constants == {"shards": shards, "retries": 2}


def test_the_search_is_not_given_the_test_split(plain: dict[str, Any]) -> None:
    seeing = {
        name.rpartition("/")[2]
        for name, task in tasks(plain).items()
        if "full_data" in str(task.get("inputs"))
    }
    assert seeing == {
        "open-sweep",
        "train-champion",
        "attack",
    }  # open-sweep keeps them in the store


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
    assert {each["image"] for each in executors(pipeline).values()} == {
        "registry.example.org/other:1"
    }
    for name, each in executors(pipeline).items():
        if not trains(name):
            assert "resources" not in each, name
            continue
        asked = each["resources"]
        assert asked["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert asked["accelerator"]["resourceCount"] == "1"
        assert (asked["resourceCpuRequest"], asked["resourceMemoryRequest"]) == ("1500m", "4Gi")
    assert sum(trains(name) for name in executors(pipeline)) == 4


def test_limits_nodes_and_shared_memory_are_those_of_the_tasks_that_train(tmp_path: Path) -> None:
    pipeline = compiled(
        tmp_path,
        "pipeline.generations=1",
        "pipeline.cpu=2",
        "pipeline.cpu_limit=4",
        "pipeline.memory_limit=8Gi",
        "pipeline.accelerator=nvidia.com/gpu",
        "pipeline.shared_memory=2Gi",
        "pipeline.node_selector={gpu: a100}",
        "pipeline.tolerations=[{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}, {key: team, value: ml}]",
    )
    for name, each in pipeline["kubernetes"].items():
        volumes = {volume["mountPath"]: volume for volume in each["emptyDirMounts"]}
        assert "/tmp" in volumes
        if not trains(name):
            assert set(volumes) == {"/tmp"}
            assert not {"nodeSelector", "tolerations"} & set(each)
            continue
        assert volumes["/dev/shm"] == {
            "medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "2Gi", "volumeName": "shm"
        }  # fmt: skip
        assert each["nodeSelector"]["labels"] == {"gpu": "a100"}
        assert each["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "team", "operator": "Equal", "value": "ml"},
        ]
        asked = executors(pipeline)[name]["resources"]
        assert (
            asked["resourceCpuRequest"],
            asked["resourceCpuLimit"],
            asked["resourceMemoryLimit"],
        ) == (
            "2",
            "4",
            "8Gi",
        )
        assert asked["accelerator"]["resourceCount"] == "1"


def test_every_task_gets_credentials_uris_labels_and_limits(tmp_path: Path) -> None:
    pipeline = compiled(
        tmp_path,
        "pipeline.generations=2",
        "pipeline.timeout=600",
        "pipeline.retries=3",
        "pipeline.secret=my-secret",
        "pipeline.config_map=my-uris",
    )
    assert set(pipeline["kubernetes"]) == set(executors(pipeline))
    for each in pipeline["kubernetes"].values():
        secret, config_map = ({}, {})
        for found, sources in ((secret, each["secretAsEnv"]), (config_map, each["configMapAsEnv"])):
            for source in sources:
                name = source.get("secretName") or source.get("configMapName")
                keys = source["keyToEnv"]
                assert all(set(key.values()) == {key["envVar"]} for key in keys)
                found.setdefault(name, []).append(
                    (source.get("optional", False), [key["envVar"] for key in keys])
                )
        assert secret == {
            "my-secret": [
                (False, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PGUSER", "PGPASSWORD"]),
                (
                    True,
                    ["AWS_SESSION_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"],
                ),
            ]
        }
        assert config_map == {
            "my-uris": [
                (False, ["TAYLORGLO_STUDY_URL", "TAYLORGLO_STORE_URI", "MLFLOW_TRACKING_URI"]),
                (True, ["AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"]),
            ]
        }
        assert each["podMetadata"]["labels"] == {"app.kubernetes.io/part-of": "taylorglo"}
        assert each["securityContext"] == {"runAsNonRoot": True}
        assert each["activeDeadlineSeconds"] == "600"
    retried = {name.rpartition("/")[2]: task["retryPolicy"]["maxRetryCount"] for name, task in tasks(pipeline).items()
               if "retryPolicy" in task}  # fmt: skip
    assert set(retried) == {label.removeprefix("exec-") for label in executors(pipeline)} - {
        "check-inputs"
    }
    assert set(retried.values()) == {3}


def test_no_limits_where_none_are_wanted(tmp_path: Path) -> None:
    pipeline = compiled(
        tmp_path,
        "pipeline.generations=1",
        "pipeline.timeout=0",
        "pipeline.retries=0",
        "pipeline.shared_memory=''",
    )
    assert not any("activeDeadlineSeconds" in each for each in pipeline["kubernetes"].values())
    assert not any("retryPolicy" in task for task in tasks(pipeline).values())
    assert {
        v["mountPath"] for each in pipeline["kubernetes"].values() for v in each["emptyDirMounts"]
    } == {"/tmp"}


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
    assert not re.findall(r"SERVICE|SECRET-OF", text)
    # Credentials are there by reference alone: as keys of the Secret, and as the variables that
    # they become.
    for name in (*SECRET_KEYS, *OPTIONAL_SECRET_KEYS):
        assert {line.strip() for line in text.splitlines() if name in line} == {
            f"- envVar: {name}", f"secretKey: {name}"
        }  # fmt: skip
    assert not [
        path
        for path in (str(tmp_path), str(Path.home()), str(GOLDEN.parents[1]))
        if len(path) > 1 and path in text
    ]


def test_what_is_the_same_is_there_once(plain: dict[str, Any]) -> None:
    def distinct(values: Iterable[Any]) -> bool:
        texts = [json.dumps(value, sort_keys=True) for value in values]
        return len(set(texts)) == len(texts)

    loops = {
        task["componentRef"]["name"]
        for task in tasks(plain).values()
        if "parameterIterator" in task
    }
    assert distinct(
        component for name, component in plain["components"].items() if name not in loops
    )
    assert distinct(
        [executor, plain["kubernetes"][label]]
        for label, executor in plain["deploymentSpec"]["executors"].items()
    )
    # And all that is left is used.
    used = {task["componentRef"]["name"] for task in tasks(plain).values()}
    assert used == set(plain["components"])
    labels = {
        each["executorLabel"] for each in plain["components"].values() if "executorLabel" in each
    }
    assert labels == set(plain["deploymentSpec"]["executors"]) == set(plain["kubernetes"])


def test_executors_that_differ_in_what_they_ask_of_kubernetes_alone_stay_apart() -> None:
    @dsl.component(base_image="python:3.11")
    def work() -> None:
        pass

    @dsl.pipeline(name="three")
    def three() -> None:
        first, second, third = work(), work(), work()
        for task, label in ((first, "a"), (second, "b"), (third, "a")):
            kubernetes.add_pod_label(task, "kind", label)

    pipeline = shared(three)
    names = {
        task: spec.component_ref.name
        for task, spec in pipeline.pipeline_spec.root.dag.tasks.items()
    }
    assert names == {"work": "comp-work", "work-2": "comp-work-2", "work-3": "comp-work"}
    assert set(pipeline.pipeline_spec.components) == {"comp-work", "comp-work-2"}
    assert set(pipeline.pipeline_spec.deployment_spec["executors"].fields) == {
        "exec-work",
        "exec-work-2",
    }
    assert set(pipeline.platform_spec.platforms["kubernetes"].deployment_spec.executors) == {
        "exec-work",
        "exec-work-2",
    }


def test_forty_generations_of_eight_shards_fit_into_argo(tmp_path: Path) -> None:
    def size(generations: int) -> int:
        compiled(
            tmp_path,
            f"pipeline.generations={generations}",
            "pipeline.shards=8",
            "pipeline.accelerator=nvidia.com/gpu",
            "pipeline.node_selector={gpu: a100}",
        )
        return (tmp_path / "pipeline.yaml").stat().st_size

    two, forty = size(2), size(40)
    assert forty < SIZE_LIMIT
    assert (forty - two) / 38 < GENERATION_LIMIT


def test_what_does_not_fit_is_refused_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taylorglo_pipelines.pipeline.compile._ARGO_LIMIT", 50_000)
    with pytest.raises(
        InputError,
        match=r"lower pipeline\.generations \(4\), and chain runs with search\.generations",
    ):
        compiled(tmp_path, "pipeline.generations=4")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_what_is_far_too_much_is_refused_before_it_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "taylorglo_pipelines.pipeline.sweep.sweep_pipeline",
        lambda _: pytest.fail("it was compiled"),
    )
    with pytest.raises(
        InputError, match=r"are 3000 tasks, .*: chain runs with search\.generations=1000"
    ):
        compiled(tmp_path, "pipeline.generations=1000")


@pytest.mark.parametrize(
    ("generations", "shards", "fitting"), [(40, 8, None), (41, 8, 40), (100, 4, 66)]
)
def test_compile_warns_of_too_many_tasks_and_says_how_to_chain_runs(
    generations: int,
    shards: int,
    fitting: int | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"name: digits\npipeline: {{generations: {generations}, shards: {shards}}}\n")
    assert main(["compile", str(path), "-o", str(tmp_path / "pipeline.yaml")]) == 0
    warning = capsys.readouterr().err
    if fitting is None:
        assert warning == ""
        return
    assert warning.startswith(
        f"taylorglo: warning: {generations} generations of {shards} shards are "
    )
    chained = [f"search.generations={generations}", f"pipeline.generations={fitting}"]
    assert all(setting in warning for setting in chained)
    words = [word for setting in chained for word in ("--set", setting)]
    assert main(["compile", str(path), "-o", str(tmp_path / "pipeline.yaml"), *words]) == 0
    assert capsys.readouterr().err == ""
