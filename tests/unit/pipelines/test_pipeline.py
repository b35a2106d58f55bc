"""The compiled pipeline, as Kubeflow Pipelines will be given it."""

import difflib
import importlib
import importlib.util
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
from taylorglo.components import IMAGE
from taylorglo.settings import SweepSettings
from taylorglo.variables import IMAGE as IMAGE_VARIABLE
from taylorglo.variables import KFP_PAGES
from taylorglo_pipelines.config import Config, load
from taylorglo_pipelines.pipeline.compile import compile_sweep
from taylorglo_pipelines.pipeline.deduplicate import deduplicated
from taylorglo_pipelines.pipeline.resources import STORE, STUDY, TRACKING

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
    "exec-search-candidates",
    "exec-train-champion",
    "exec-attack",
}
# What a task uses beside the image; tasks that are not named here use all services.
SERVICES = {
    "prepare-dataset": [STORE],
    "propose-candidates": [STUDY],
    "filter-candidates": [STUDY],
}
GENERATIONS = ("pipeline.layout=generations",)


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
    content, _ = compile_sweep(config, output)
    assert content == output.read_bytes()
    pipeline, platforms = yaml.load_all(output.read_text(), yaml.CSafeLoader)
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
    """Return every task of the pipeline by its name."""
    found: dict[str, dict[str, Any]] = pipeline["root"]["dag"]["tasks"]
    return found


def names(pipeline: dict[str, Any]) -> dict[str, str]:
    """Return the name of each task by the name that people see."""
    return {task["taskInfo"]["name"]: name for name, task in tasks(pipeline).items()}


def constants(task: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a task that are constants."""
    return {
        name: value["runtimeValue"]["constant"]
        for name, value in task["inputs"].get("parameters", {}).items()
        if "runtimeValue" in value
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three generations of two shards."""
    folder = tmp_path_factory.mktemp("plain")
    return compiled(folder, *GENERATIONS, "pipeline.generations=3", "pipeline.shards=2")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three workers."""
    return compiled(tmp_path_factory.mktemp("workers"), "pipeline.shards=3")


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
    assert len(write.golden_of(path).read_text().splitlines()) < 500


def test_kfp_loads_the_compiled_pipeline(tmp_path: Path) -> None:
    compiled(tmp_path, "pipeline.generations=2", "pipeline.shards=2")
    pipeline = components.load_component_from_file(str(tmp_path / "pipeline.yaml"))
    assert pipeline.name == "taylorglo-digits"
    assert set(pipeline.component_spec.inputs) == set(SweepSettings.model_fields)


def test_a_task_runs_its_component_in_the_image_and_its_source_stays_there(
    plain: dict[str, Any], workers: dict[str, Any]
) -> None:
    for pipeline in (plain, workers):
        for label, executor in executors(pipeline).items():
            name = label.removeprefix("exec-").replace("-", "_")
            assert executor["command"] == [
                "python3", "-m", "taylorglo.components", "kfp.dsl.executor_main"
            ]  # fmt: skip
            assert executor["args"] == [
                "--executor_input", "{{$}}", "--function_to_execute", name
            ]  # fmt: skip
            module = importlib.import_module(f"taylorglo.components.{name}")
            assert getattr(module, name).python_func.__name__ == name
    text = json.dumps([plain, workers])
    assert not [words for words in ("def ", "import ", '"""', "\\n") if words in text]


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
        "search.mean=[1, 2, -3, 0.5, 0]",
        "training.nesterov=false",
        "seed=7",
    )
    again = SweepSettings.model_validate(defaults(pipeline))
    assert (again.search.popsize, again.search.mean, again.training.nesterov, again.seed) == (
        5,
        [1.0, 2.0, -3.0, 0.5, 0.0],
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
    assert constants(tasks(plain)["open-sweep"]) == {"generations": 3, "shards": 2}
    assert (
        inputs["open-sweep"]["artifacts"]["settings"]["taskOutputArtifact"]["producerTask"]
        == "check-inputs"
    )


def test_prepared_data_alone_are_cached_and_by_the_version_of_their_source(
    plain: dict[str, Any],
) -> None:
    # kfp writes {} for a task that is not cached.
    options = {name: task["cachingOptions"] for name, task in tasks(plain).items()}
    assert {name: option for name, option in options.items() if option} == {
        "prepare-dataset": {"enableCache": True}
    }
    decisive = plain["root"]["dag"]["tasks"]["prepare-dataset"]["inputs"]["parameters"]
    assert decisive.pop("version")["taskOutputParameter"]["producerTask"] == "check-inputs"
    assert decisive == {
        name: {"componentInputParameter": name} for name in ("seed", "data", "model")
    }


def test_every_task_has_a_name_for_people(plain: dict[str, Any], workers: dict[str, Any]) -> None:
    around = {
        "Attack",
        "Check inputs",
        "Open study and MLflow run",
        "Prepare data set",
        "Report",
        "Train champion and baselines",
        "Tune baselines",
    }
    inner = {
        name
        for generation in (1, 2, 3)
        for name in (
            f"Propose candidates: generation {generation}",
            f"Filter candidates: generation {generation}",
            f"Evaluate candidates: generation {generation}, shard 1 of 2",
            f"Evaluate candidates: generation {generation}, shard 2 of 2",
        )
    }
    assert set(names(plain)) == around | inner
    assert set(names(workers)) == around | {f"Search: worker {n} of 3" for n in (1, 2, 3)}


def test_one_worker_and_one_shard_have_no_number(tmp_path: Path) -> None:
    assert "Search" in names(compiled(tmp_path))
    pipeline = compiled(tmp_path, *GENERATIONS, "pipeline.generations=1")
    assert "Evaluate candidates: generation 1" in names(pipeline)


def test_there_is_one_graph_without_loops_conditions_and_nested_pipelines(
    plain: dict[str, Any], workers: dict[str, Any]
) -> None:
    """Each of these costs pods and a part of Argo's state, and spoils the names of artifacts."""
    for pipeline in (plain, workers):
        assert not any("dag" in component for component in pipeline["components"].values())
        for task in tasks(pipeline).values():
            assert not {"parameterIterator", "artifactIterator", "triggerPolicy"} & set(task)
        assert "pipelinechannel" not in json.dumps(pipeline)


def test_generations_follow_one_another(plain: dict[str, Any]) -> None:
    """Six pods in a row for a generation: three tasks, each with its driver."""
    by_name = names(plain)
    previous = ["open-sweep"]
    for number in (1, 2, 3):
        proposed, filtered, *shards = (
            by_name[f"{task}: generation {number}{shard}"]
            for task, shard in (
                ("Propose candidates", ""),
                ("Filter candidates", ""),
                ("Evaluate candidates", ", shard 1 of 2"),
                ("Evaluate candidates", ", shard 2 of 2"),
            )
        )
        assert constants(tasks(plain)[proposed]) == {"generation": number}
        assert set(previous) <= set(tasks(plain)[proposed]["dependentTasks"])
        assert tasks(plain)[filtered]["dependentTasks"] == [proposed]
        for shard, name in enumerate(shards):
            assert tasks(plain)[name]["dependentTasks"] == [filtered]
            assert constants(tasks(plain)[name]) == {"shard": shard}
        previous = shards
    assert set(previous) <= set(tasks(plain)["train-champion"]["dependentTasks"])


def test_workers_share_the_search_and_the_champion_waits_for_all(workers: dict[str, Any]) -> None:
    found = [name for name in tasks(workers) if name.startswith("search-candidates")]
    assert [constants(tasks(workers)[name]) for name in found] == [
        {"worker": worker} for worker in (0, 1, 2)
    ]
    for name in found:
        assert tasks(workers)[name]["dependentTasks"] == ["open-sweep"]
    assert set(found) <= set(tasks(workers)["train-champion"]["dependentTasks"])


def test_the_number_of_tasks_of_workers_does_not_depend_on_the_generations(
    tmp_path: Path,
) -> None:
    few, many = (
        compiled(tmp_path, f"pipeline.generations={generations}", "pipeline.shards=2")
        for generations in (1, 1000)
    )
    assert set(tasks(few)) == set(tasks(many))


def test_the_context_of_the_sweep_is_no_edge_to_every_task(
    plain: dict[str, Any], workers: dict[str, Any]
) -> None:
    for pipeline, first in (
        (plain, {"propose-candidates"}),
        (workers, {f"search-candidates{number}" for number in ("", "-2", "-3")}),
    ):
        given = {
            name for name, task in tasks(pipeline).items() if "open-sweep" in json.dumps(task)
        } - {"open-sweep"}
        assert given == first | {"evaluate-baselines"}


def test_the_search_is_not_given_the_test_split(plain: dict[str, Any]) -> None:
    seeing = {name for name, task in tasks(plain).items() if "full_data" in str(task["inputs"])}
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


def variables(pipeline: dict[str, Any], label: str) -> dict[str, tuple[str, str, bool]]:
    """Return Secret or ConfigMap, key, and whether it may be missing, by variable of a task."""
    requests = pipeline["kubernetes"][label]
    return {
        entry["envVar"]: (source[name], entry[key], source["optional"])
        for kind, name, key in (
            ("secretAsEnv", "secretName", "secretKey"),
            ("configMapAsEnv", "configMapName", "configMapKey"),
        )
        for source in requests.get(kind, [])
        for entry in source["keyToEnv"]
    }


@pytest.mark.parametrize("layout", ["workers", "generations"])
def test_every_task_gets_credentials_uris_labels_and_limits(tmp_path: Path, layout: str) -> None:
    pipeline = compiled(
        tmp_path,
        f"pipeline.layout={layout}",
        "pipeline.generations=2",
        "pipeline.timeout=600",
        "pipeline.retries=3",
        "pipeline.service_timeout=77",
        "pipeline.secret=my-secret",
        "pipeline.config_map=my-uris",
    )
    assert set(pipeline["kubernetes"]) == set(executors(pipeline))
    for label, requests in pipeline["kubernetes"].items():
        expected: dict[str, tuple[str, str, bool]] = {}
        for service in SERVICES.get(label.removeprefix("exec-"), [STUDY, STORE, TRACKING]):
            for source, keys, optional in (
                ("my-secret", service.secret, False),
                ("my-secret", service.optional_secret, True),
                ("my-uris", service.config, False),
                ("my-uris", service.optional_config, True),
            ):
                expected |= {name: (source, key, optional) for name, key in keys.items()}
        env = [{"name": "TAYLORGLO_SERVICE_TIMEOUT", "value": "77"}]
        if label == "exec-open-sweep":
            # It tells MLflow where the run comes from.
            expected[KFP_PAGES] = ("my-uris", KFP_PAGES, True)
            env.append({"name": IMAGE_VARIABLE, "value": IMAGE})
        assert variables(pipeline, label) == expected
        assert requests["podMetadata"]["labels"] == {"app.kubernetes.io/part-of": "taylorglo"}
        assert requests["securityContext"] == {"runAsNonRoot": True}
        assert requests["activeDeadlineSeconds"] == "600"
        assert executors(pipeline)[label]["env"] == env
    retried = {
        name: task["retryPolicy"]["maxRetryCount"]
        for name, task in tasks(pipeline).items()
        if "retryPolicy" in task
    }
    assert set(retried) == set(tasks(pipeline)) - {"check-inputs"}
    assert set(retried.values()) == {3}


def test_the_variables_of_a_pod_have_names_of_our_own_and_the_keys_those_of_version_0_1_0(
    plain: dict[str, Any],
) -> None:
    """KFP's launcher, its MLflow plugin and clouds set the usual names in the same container."""
    found = variables(plain, "exec-report")
    assert all(name.startswith("TAYLORGLO_") for name in found)
    assert {key for _, key, optional in found.values() if not optional} == {
        "TAYLORGLO_STUDY_URL",
        "TAYLORGLO_STORE_URI",
        "MLFLOW_TRACKING_URI",
        "PGUSER",
        "PGPASSWORD",
    }
    assert {key for _, key, optional in found.values() if optional} == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    }


@pytest.mark.parametrize(
    ("timeout", "retries"), [(86_400, 2), (1, 1), (600, 10), (604_800, 10), (0, 2), (0, 10)]
)
def test_the_window_of_retries_holds_every_attempt_until_its_timeout(
    tmp_path: Path, timeout: int, retries: int
) -> None:
    """Argo kills the attempt that is running when the window closes, which the first one opens."""
    pipeline = compiled(tmp_path, f"pipeline.timeout={timeout}", f"pipeline.retries={retries}")
    policies = [task["retryPolicy"] for task in tasks(pipeline).values() if "retryPolicy" in task]
    assert len(policies) == len(tasks(pipeline)) - 1
    for policy in policies:
        pause, factor = float(policy["backoffDuration"].rstrip("s")), policy["backoffFactor"]
        assert policy["maxRetryCount"] == retries
        pauses = sum(pause * factor**retry for retry in range(retries))
        attempts = (retries + 1) * timeout if timeout else 7 * 86_400
        assert float(policy["backoffMaxDuration"].rstrip("s")) >= attempts + pauses


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
        monkeypatch.setenv(name, "sqlite:///ADDRESS-OF-THE-ENVIRONMENT")
    compiled(
        tmp_path,
        "pipeline.generations=1",
        "services.work_dir=ADDRESS",
        "services.study_url=postgresql://ADDRESS/study",
        "services.store_uri=s3://ADDRESS/store",
        "services.tracking_uri=http://ADDRESS:5000",
    )
    text = (tmp_path / "pipeline.yaml").read_text()
    assert not re.findall(r"ADDRESS|SECRET-OF", text)
    # Credentials are references: the keys of the Secret, and the variables that they become.
    for service in (STUDY, STORE, TRACKING):
        for name, key in {**service.secret, **service.optional_secret}.items():
            lines = {line.strip() for line in text.splitlines() if key in line or name in line}
            assert lines == {f"- envVar: {name}", f"secretKey: {key}"}
    assert not [
        path
        for path in (str(tmp_path), str(Path.home()), str(ROOT))
        if len(path) > 1 and path in text
    ]


def test_equal_parts_are_there_once(plain: dict[str, Any]) -> None:
    def distinct(values: Iterable[Any]) -> bool:
        texts = [json.dumps(value, sort_keys=True) for value in values]
        return len(set(texts)) == len(texts)

    assert distinct(plain["components"].values())
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
