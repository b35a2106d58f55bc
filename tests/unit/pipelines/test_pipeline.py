"""The compiled pipeline, as Kubeflow Pipelines will be given it."""

import difflib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format, struct_pb2
from kfp import components, dsl, kubernetes

from taylorglo import __version__
from taylorglo.components.propose_candidates import propose_candidates
from taylorglo.errors import InputError
from taylorglo.settings import SweepSettings
from taylorglo_pipelines.cli import main
from taylorglo_pipelines.config import Config, load
from taylorglo_pipelines.pipeline.compile import compile_sweep
from taylorglo_pipelines.pipeline.deduplicate import deduplicated
from taylorglo_pipelines.pipeline.resources import OPTIONAL_SECRET_KEYS, SECRET_KEYS

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "pipelines" / "configs").glob("*.yaml"))
GOLDEN = ROOT / "tests" / "golden"
_spec = importlib.util.spec_from_file_location("write_golden", GOLDEN / "write.py")
assert _spec is not None
assert _spec.loader is not None
write = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(write)

TYPES = {str: "STRING", int: "NUMBER_INTEGER", dict: "STRUCT"}
TRAINING = {
    "exec-evaluate-baselines",
    "exec-evaluate-candidates",
    "exec-train-champion",
    "exec-attack",
}
SIZE_LIMIT = 400_000  # bytes
# A generation is little more than a reference to the components of the first one.
GENERATION_LIMIT = 1_000  # bytes


def loaded(tmp_path: Path, *overrides: str) -> Config:
    """Return the default sweep with these settings."""
    path = tmp_path / "config.yaml"
    path.write_text("name: digits\n")
    return load(path, overrides)


def compiled(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """Return the default sweep with these settings, compiled to ``pipeline.yaml``.

    The requests of Kubernetes are under the key "kubernetes".
    """
    return compiled_config(loaded(tmp_path, *overrides), tmp_path / "pipeline.yaml")


def compiled_config(config: Config, output: Path) -> dict[str, Any]:
    size = compile_sweep(config, output)
    assert size == output.stat().st_size
    pipeline, platforms = yaml.safe_load_all(output.read_text())
    assert set(platforms["platforms"]) == {"kubernetes"}
    return {
        **pipeline,
        "kubernetes": platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"],
    }


def executors(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: executor["container"]
        for name, executor in pipeline["deploymentSpec"]["executors"].items()
    }


def defaults(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of the pipeline's parameters, by name."""
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    return {name: parameter["defaultValue"] for name, parameter in parameters.items()}


def exact(settings: SweepSettings) -> str:
    """Return settings as JSON, in which 64, 64.0 and "64" differ, and 1 and true."""
    return json.dumps(settings.model_dump(mode="json"))


def trains(executor: str) -> bool:
    return re.sub(r"-\d+$", "", executor) in TRAINING


def tasks(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every task of the pipeline and of the sub-pipelines, by component and name."""
    components = {"root": pipeline["root"], **pipeline["components"]}
    return {
        f"{label}/{name}": task
        for label, component in components.items()
        for name, task in component.get("dag", {}).get("tasks", {}).items()
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compiled(tmp_path_factory.mktemp("plain"), "pipeline.generations=3", "pipeline.shards=2")


@pytest.mark.parametrize("path", write.CONFIGS, ids=lambda path: path.name)
def test_golden(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The folder in which a sweep is compiled must not matter.
    monkeypatch.chdir(tmp_path)
    written = write.golden_of(path).read_text()
    compiled_now = write.golden(path)
    difference = difflib.unified_diff(
        written.splitlines(), compiled_now.splitlines(), "golden", "compiled now", lineterm=""
    )
    assert written == compiled_now, "\n".join(
        ["the compiled pipeline changed; if that is meant: make golden", *difference]
    )


@pytest.mark.parametrize("path", write.CONFIGS, ids=lambda path: path.name)
def test_a_golden_file_is_short_enough_to_be_read(path: Path) -> None:
    assert len(write.golden_of(path).read_text().splitlines()) < 420


def test_kfp_loads_the_compiled_pipeline(tmp_path: Path) -> None:
    compiled(tmp_path, "pipeline.generations=2", "pipeline.shards=2")
    pipeline = components.load_component_from_file(str(tmp_path / "pipeline.yaml"))
    assert pipeline.name == "taylorglo-digits"
    assert set(pipeline.component_spec.inputs) == set(SweepSettings.model_fields)


def test_a_task_runs_the_source_of_its_component_and_installs_nothing(
    plain: dict[str, Any],
) -> None:
    for label, executor in executors(plain).items():
        function = executor["args"][executor["args"].index("--function_to_execute") + 1]
        assert label == f"exec-{function.replace('_', '-')}"
        assert f"\ndef {function}(" in executor["command"][-1]
        assert "pip install" not in "".join(executor["command"])
    source = inspect.getsource(propose_candidates.python_func).partition("\n")[2]
    assert source in executors(plain)["exec-propose-candidates"]["command"][-1]


def test_the_parameters_are_a_name_a_seed_and_a_struct_for_each_section(
    plain: dict[str, Any],
) -> None:
    parameters = plain["root"]["inputDefinitions"]["parameters"]
    expected = SweepSettings().model_dump(mode="json")
    assert {name: parameter["parameterType"] for name, parameter in parameters.items()} == {
        name: TYPES[type(value)] for name, value in expected.items()
    }
    assert defaults(plain) == expected
    assert "artifacts" not in plain["root"]["inputDefinitions"]


def test_the_defaults_are_those_of_the_configuration(tmp_path: Path) -> None:
    pipeline = compiled(
        tmp_path,
        "search.popsize=5",
        "search.mean=[1, 2, -3, 0.5]",
        "training.nesterov=false",
        "seed=7",
    )
    again = SweepSettings.model_validate(defaults(pipeline))
    assert (again.search.popsize, again.search.mean, again.training.nesterov, again.seed) == (
        5,
        [1.0, 2.0, -3.0, 0.5],
        False,
        7,
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_numbers_come_back_as_configured_from_the_compiled_file(path: Path, tmp_path: Path) -> None:
    """The file has a double for each number, such as 64.0."""
    config = load(path, ["pipeline.generations=1"])
    values = defaults(compiled_config(config, tmp_path / "pipeline.yaml"))
    assert isinstance(values["training"]["batch_size"], float)
    assert isinstance(values["training"]["nesterov"], bool)
    assert exact(SweepSettings.model_validate(values)) == exact(config.sweep)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_numbers_come_back_as_configured_from_a_protobuf_struct(path: Path) -> None:
    """Kubeflow keeps a parameter in a Struct, in which every number is a double."""
    settings = load(path).sweep
    values = {}
    for name, value in settings.model_dump(mode="json").items():
        message = json_format.ParseDict({name: value}, struct_pb2.Struct())
        values |= json_format.MessageToDict(
            struct_pb2.Struct.FromString(message.SerializeToString())
        )
    assert isinstance(values["seed"], float)
    assert isinstance(values["training"]["batch_size"], float)
    assert exact(SweepSettings.model_validate(values)) == exact(settings)


def test_the_front_door_is_given_every_parameter(plain: dict[str, Any]) -> None:
    inputs = {
        name: task["inputs"]
        for name, task in plain["root"]["dag"]["tasks"].items()
        if "inputs" in task
    }
    assert inputs["check-inputs"]["parameters"] == {
        name: {"componentInputParameter": name} for name in SweepSettings.model_fields
    }
    assert inputs["open-sweep"]["parameters"] == {"generations": {"runtimeValue": {"constant": 3}}}
    assert (
        inputs["open-sweep"]["artifacts"]["settings"]["taskOutputArtifact"]["producerTask"]
        == "check-inputs"
    )


def test_prepared_data_alone_are_cached_and_by_the_version_of_their_source(
    plain: dict[str, Any],
) -> None:
    # kfp writes {} for a task that is not cached, and no options for a loop, which is a group of
    # tasks.
    options = {name: task.get("cachingOptions") for name, task in tasks(plain).items()}
    assert {name: option for name, option in options.items() if option not in ({}, None)} == {
        "root/prepare-dataset": {"enableCache": True}
    }
    assert all(
        "for-loop" in name.rpartition("/")[2] for name, option in options.items() if option is None
    )
    decisive = plain["root"]["dag"]["tasks"]["prepare-dataset"]["inputs"]["parameters"]
    assert decisive.pop("version")["taskOutputParameter"]["producerTask"] == "check-inputs"
    assert decisive == {
        name: {"componentInputParameter": name} for name in ("seed", "data", "model")
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


def test_generations_are_unrolled_one_after_another(plain: dict[str, Any]) -> None:
    by_name = {
        task["taskInfo"]["name"]: (key, task) for key, task in plain["root"]["dag"]["tasks"].items()
    }
    for number in (1, 2, 3):
        task = by_name[f"Generation {number}"][1]
        assert task["inputs"]["parameters"]["number"]["runtimeValue"]["constant"] == number
        if number > 1:
            previous = by_name[f"Generation {number - 1}"][0]
            results = task["inputs"]["artifacts"]["previous"]["taskOutputArtifact"]
            assert results["producerTask"] == previous
            assert previous in task["dependentTasks"]
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
    # The backend names templates after a loop's component, so two loops cannot share one.
    assert len({task["componentRef"]["name"] for task in loops}) == 2
    evaluation, _ = [
        task
        for key, task in tasks(pipeline).items()
        if key.rpartition("/")[2] == "evaluate-candidates"
    ]
    constants = {
        name: value["runtimeValue"]["constant"]
        for name, value in evaluation["inputs"]["parameters"].items()
        if set(value) == {"runtimeValue"}
    }
    assert constants == {"shards": shards, "retries": 2}


def test_the_search_is_not_given_the_test_split(plain: dict[str, Any]) -> None:
    seeing = {
        name.rpartition("/")[2]
        for name, task in tasks(plain).items()
        if "full_data" in str(task.get("inputs"))
    }
    # open-sweep keeps the data in the store.
    assert seeing == {"open-sweep", "train-champion", "attack"}


def test_the_project_image_and_no_resources_by_default(plain: dict[str, Any]) -> None:
    images = {executor["image"] for executor in executors(plain).values()}
    assert images == {f"taylorglo:{__version__}"}
    assert not any("resources" in executor for executor in executors(plain).values())


def test_resources_are_asked_for_by_the_tasks_that_train_alone(tmp_path: Path) -> None:
    pipeline = compiled(
        tmp_path,
        "pipeline.generations=2",
        "pipeline.image=registry.example.org/other:1",
        "pipeline.cpu=1500m",
        "pipeline.memory=4Gi",
        "pipeline.accelerator=nvidia.com/gpu",
    )
    images = {executor["image"] for executor in executors(pipeline).values()}
    assert images == {"registry.example.org/other:1"}
    for name, executor in executors(pipeline).items():
        if not trains(name):
            assert "resources" not in executor, name
            continue
        resources = executor["resources"]
        assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert resources["accelerator"]["resourceCount"] == "1"
        assert resources["resourceCpuRequest"] == "1500m"
        assert resources["resourceMemoryRequest"] == "4Gi"
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
        "pipeline.tolerations=[{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}, "
        "{key: team, value: ml}]",
    )
    for name, requests in pipeline["kubernetes"].items():
        volumes = {volume["mountPath"]: volume for volume in requests["emptyDirMounts"]}
        assert "/tmp" in volumes
        if not trains(name):
            assert set(volumes) == {"/tmp"}
            assert not {"nodeSelector", "tolerations"} & set(requests)
            continue
        assert volumes["/dev/shm"] == {
            "medium": "Memory",
            "mountPath": "/dev/shm",
            "sizeLimit": "2Gi",
            "volumeName": "shm",
        }
        assert requests["nodeSelector"]["labels"] == {"gpu": "a100"}
        assert requests["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "team", "operator": "Equal", "value": "ml"},
        ]
        resources = executors(pipeline)[name]["resources"]
        assert resources["resourceCpuRequest"] == "2"
        assert resources["resourceCpuLimit"] == "4"
        assert resources["resourceMemoryLimit"] == "8Gi"
        assert resources["accelerator"]["resourceCount"] == "1"


def variables(sources: Iterable[dict[str, Any]], name: str) -> dict[str, list[Any]]:
    """Return whether a Secret or a ConfigMap is optional, and its variables, by its name.

    Args:
        sources: the Secrets or ConfigMaps of a task.
        name: key of the name.
    """
    by_name: dict[str, list[Any]] = {}
    for source in sources:
        keys = source["keyToEnv"]
        assert all(set(key.values()) == {key["envVar"]} for key in keys)
        entry = (source.get("optional", False), [key["envVar"] for key in keys])
        by_name.setdefault(source[name], []).append(entry)
    return by_name


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
    for requests in pipeline["kubernetes"].values():
        assert variables(requests["secretAsEnv"], "secretName") == {
            "my-secret": [
                (False, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PGUSER", "PGPASSWORD"]),
                (
                    True,
                    ["AWS_SESSION_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"],
                ),
            ]
        }
        assert variables(requests["configMapAsEnv"], "configMapName") == {
            "my-uris": [
                (False, ["TAYLORGLO_STUDY_URL", "TAYLORGLO_STORE_URI", "MLFLOW_TRACKING_URI"]),
                (True, ["AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"]),
            ]
        }
        assert requests["podMetadata"]["labels"] == {"app.kubernetes.io/part-of": "taylorglo"}
        assert requests["securityContext"] == {"runAsNonRoot": True}
        assert requests["activeDeadlineSeconds"] == "600"
    retried = {
        name.rpartition("/")[2]: task["retryPolicy"]["maxRetryCount"]
        for name, task in tasks(pipeline).items()
        if "retryPolicy" in task
    }
    assert set(retried) == {label.removeprefix("exec-") for label in executors(pipeline)} - {
        "check-inputs"
    }
    assert set(retried.values()) == {3}


def test_there_are_no_limits_if_none_are_set(tmp_path: Path) -> None:
    pipeline = compiled(
        tmp_path,
        "pipeline.generations=1",
        "pipeline.timeout=0",
        "pipeline.retries=0",
        "pipeline.shared_memory=''",
    )
    requests = pipeline["kubernetes"].values()
    assert not any("activeDeadlineSeconds" in request for request in requests)
    assert not any("retryPolicy" in task for task in tasks(pipeline).values())
    mounts = [mount["mountPath"] for request in requests for mount in request["emptyDirMounts"]]
    assert set(mounts) == {"/tmp"}


def test_one_resource_can_be_set_without_the_others(tmp_path: Path) -> None:
    pipeline = compiled(tmp_path, "pipeline.generations=1", "pipeline.cpu=2")
    keys = {
        tuple(sorted(executor["resources"]))
        for name, executor in executors(pipeline).items()
        if trains(name)
    }
    assert keys == {("cpuRequest", "resourceCpuRequest")}


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
    # Credentials are references: the keys of the Secret, and the variables that they become.
    for name in (*SECRET_KEYS, *OPTIONAL_SECRET_KEYS):
        lines = {line.strip() for line in text.splitlines() if name in line}
        assert lines == {f"- envVar: {name}", f"secretKey: {name}"}
    assert not [
        path
        for path in (str(tmp_path), str(Path.home()), str(ROOT))
        if len(path) > 1 and path in text
    ]


def test_equal_parts_are_there_once(plain: dict[str, Any]) -> None:
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
    # Nothing is left that is not used.
    used = {task["componentRef"]["name"] for task in tasks(plain).values()}
    assert used == set(plain["components"])
    labels = {
        component["executorLabel"]
        for component in plain["components"].values()
        if "executorLabel" in component
    }
    assert labels == set(plain["deploymentSpec"]["executors"]) == set(plain["kubernetes"])


def test_executors_that_differ_in_their_requests_of_kubernetes_stay_apart() -> None:
    @dsl.component(base_image="python:3.11")
    def work() -> None:
        pass

    @dsl.pipeline(name="three")
    def three() -> None:
        first, second, third = work(), work(), work()
        for task, label in ((first, "a"), (second, "b"), (third, "a")):
            kubernetes.add_pod_label(task, "kind", label)

    pipeline = deduplicated(three)
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


def test_a_pipeline_that_is_too_large_is_refused_and_not_written(tmp_path: Path) -> None:
    config = loaded(tmp_path, "pipeline.generations=4")
    with pytest.raises(
        InputError,
        match=r"^the pipeline is \d+ kB, and Argo takes about 20; lower pipeline\.generations "
        r"\(4\), and chain runs with search\.generations$",
    ):
        compile_sweep(config, tmp_path / "pipeline.yaml", largest=20_000)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_far_too_many_tasks_are_refused_before_they_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "taylorglo_pipelines.pipeline.compile.sweep_pipeline",
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
