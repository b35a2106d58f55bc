"""Bad input that a task finds: the data, the services, the network, and the machine.

The task ends with status 2 and a line per problem that a person can act on, and nothing else.
"""

import gzip
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from error_lines import problems
from safetensors.torch import save_file
from servers import free_ports
from sweeps import Sweeps

from taylorglo.components.check_inputs import check_inputs
from taylorglo.components.open_sweep import open_sweep
from taylorglo.components.prepare_dataset import prepare_dataset
from taylorglo.data import dataset as datasets
from taylorglo.errors import InputError
from taylorglo.results import DatasetDescription, Evaluation, read_json
from taylorglo.settings import SweepSettings
from taylorglo.tasks import open as opening
from taylorglo.variables import LOCAL_RUN

SECRET = "c0rrect-horse"
S3 = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}

Sections = dict[str, Any]


class Case(NamedTuple):
    """Bad input: settings by section, made in the test's folder, and variables of the environment.

    ``line`` is a pattern that the one line of the error has to match.
    """

    settings: Callable[[Path], Sections]
    variables: Callable[[], dict[str, str]]
    line: str


def no_settings(_: Path) -> Sections:
    return {}


def no_variables() -> dict[str, str]:
    return {}


def closed_address() -> str:
    """Return an address that refuses connections."""
    (port,) = free_ports(1)
    return f"127.0.0.1:{port}"


def truncated_gz(folder: Path) -> Sections:
    """Write the four files of Fashion-MNIST; the images of the training are cut off half-way."""
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        content = gzip.compress(os.urandom(20_000))
        size = 10_000 if name == "train-images-idx3" else len(content)
        (folder / f"{name}-ubyte.gz").write_bytes(content[:size])
    return {"data": {"name": "fashion-mnist", "root": str(folder)}}


def one_class(folder: Path) -> Sections:
    """Write a data set whose labels are all 0."""
    path = folder / "digits.safetensors"
    images = torch.zeros(40, 8, 8, dtype=torch.uint8)
    save_file({"images": images, "labels": torch.zeros(40, dtype=torch.int64)}, path)
    return {"data": {"name": "safetensors", "root": str(path)}}


def truncated_safetensors(folder: Path) -> Sections:
    """Write a data set that is cut off half-way."""
    sections = one_class(folder)
    path = Path(sections["data"]["root"])
    path.write_bytes(path.read_bytes()[:1000])
    return sections


def user_network(source: str) -> Callable[[Path], Sections]:
    """Return settings that name a network of the user's own with this source."""

    def written(folder: Path) -> Sections:
        (folder / "my_network.py").write_text(source)
        return {"model": {"name": "my_network:build"}}

    return written


ELEVEN_CLASSES = """
from torch import nn

def build(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))
"""
IN_A_TASK = {
    "truncated gz": Case(
        truncated_gz,
        no_variables,
        r"/train-images-idx3-ubyte\.gz: damaged: should be a whole, readable gzip file: ",
    ),
    "truncated safetensors": Case(
        truncated_safetensors,
        no_variables,
        r"/digits\.safetensors: should be a whole \.safetensors file",
    ),
    "one class": Case(
        one_class,
        no_variables,
        r"/digits\.safetensors: labels should be 0\.\.n-1, for at least 2 c",
    ),
    "no data": Case(
        lambda folder: {"data": {"name": "mnist", "root": str(folder / "nowhere")}},
        no_variables,
        r"^data\.root: /.*/nowhere should be a folder that holds mnist$",
    ),
    "wrong checksum": Case(
        lambda _: {"data": {"sha256": "ab" * 32}},
        no_variables,
        r"^data\.sha256: expected (ab){32}, but digits has [0-9a-f]{64} \(of its tensors\)$",
    ),
    "S3 refuses": Case(
        lambda _: {"data": {"name": "safetensors", "root": "s3://bucket/digits.safetensors"}},
        lambda: {**S3, "AWS_ENDPOINT_URL": f"http://{closed_address()}"},
        r"^s3://bucket: EndpointConnectionError at http://127\.0\.0\.1:\d+ after 3 tries; "
        r".*AWS_ENDPOINT_URL right\?$",
    ),
    "database refuses": Case(
        no_settings,
        lambda: {
            "TAYLORGLO_STUDY_URL": f"postgresql://{closed_address()}/study",
            "PGPASSWORD": SECRET,
        },
        r"^postgresql:.*after 4 tries.*[Cc]onnection refused",
    ),
    "password in a URL": Case(
        no_settings,
        lambda: {"TAYLORGLO_STUDY_URL": f"postgresql://somebody:{SECRET}@127.0.0.1/study"},
        r"^postgresql://somebody:\*\*\*@127\.0\.0\.1/study: leave the password out of the URL "
        r"and set PGPASSWORD",
    ),
    "MLflow refuses": Case(
        no_settings,
        lambda: {
            "TAYLORGLO_TRACKING_URI": f"http://somebody:{SECRET}@{closed_address()}",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        },
        r"^MLflow at http://127\.0\.0\.1:\d+: .*Connection refused",
    ),
    "no such module": Case(
        lambda _: {"model": {"name": "nowhere_at_all:build"}},
        no_variables,
        r"^model 'nowhere_at_all:build': cannot be imported: ModuleNotFoundError: "
        r"No module named 'nowhere_at_all'$",
    ),
    "wrong number of outputs": Case(
        user_network(ELEVEN_CLASSES),
        no_variables,
        r"^model 'my_network:build': should return logits, .*\(2, 10\) for 2 images; "
        r".* torch\.float32 \(2, 11\)$",
    ),
    "no such network": Case(
        lambda _: {"model": {"name": "resnet"}},
        no_variables,
        r"^model 'resnet': unknown; there are mlp, ",
    ),
}


def too_wide(folder: Path) -> Sections:
    """Write a network that two images fit in, but a thousand take twice this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    channels = 2 * memory // (1000 * 64 * 4)
    source = f"""
from torch import nn

def build(shape, classes):
    wide = nn.Conv2d(1, {channels}, 3, padding=1)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(wide, nn.ReLU(), pool, nn.Flatten(), nn.Linear({channels}, classes))
"""
    training = {"batch_size": 1000, "device": "cpu"}
    return {**user_network(source)(folder), "training": training}


# The machine of the command refuses these before there is a study.
ON_THIS_MACHINE = {
    "batch larger than the data": Case(
        lambda _: {"training": {"batch_size": 5000}},
        no_variables,
        r"^training\.batch_size: 5000 is more than the \d+ training samples$",
    ),
    "network too large": Case(
        too_wide,
        no_variables,
        r"^model 'my_network:build': training it in batches of 1000 takes about [\d.]+ GiB, and "
        r"[\d.]+ GiB of memory",
    ),
    "no arithmetic in bfloat16": Case(
        lambda _: {"training": {"precision": "bfloat16", "device": "cpu"}},
        lambda: {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        r"^training\.precision is bfloat16, and the CPU here has no arithmetic for it; "
        r"use auto or float32$",
    ),
    "no arithmetic in TF32": Case(
        lambda _: {"training": {"precision": "tf32", "device": "cpu"}},
        no_variables,
        r"^training\.precision is tf32, and the CPU here has no arithmetic for it; "
        r"use auto or float32$",
    ),
}
# Starting the command and its tasks takes seconds. So every case is tried in a task, and only this
# one by the command too. It needs a process of its own, because of its variable.
ON_THIS_MACHINE_BY_COMMAND = ("no arithmetic in bfloat16",)


class Tasks:
    """The tasks before all training, as they would run, with artifacts and services in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def artifacts(self, *names: str) -> dict[str, SimpleNamespace]:
        return {name: SimpleNamespace(path=str(self.folder / name)) for name in names}

    def prepare(self, sections: Sections) -> None:
        """Run the tasks that check the settings and prepare the data.

        Args:
            sections: settings by section, in place of the defaults.
        """
        parameters = SweepSettings().model_dump(mode="json")
        for name, values in sections.items():
            parameters[name] = (
                {**parameters[name], **values} if isinstance(values, dict) else values
            )
        version = check_inputs.python_func(**parameters, **self.artifacts("settings"))
        prepare_dataset.python_func(
            version=version,
            seed=parameters["seed"],
            data=parameters["data"],
            model=parameters["model"],
            **self.artifacts("description", "search_data", "full_data"),
        )

    def open(self, sections: Sections) -> None:
        """Run these tasks, and then the one that opens the sweep."""
        self.prepare(sections)
        names = ("settings", "description", "search_data", "full_data", "sweep")
        open_sweep.python_func(generations=2, shards=1, **self.artifacts(*names))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tasks]:
    monkeypatch.setenv("TAYLORGLO_STUDY_URL", f"sqlite:///{tmp_path / 'study.db'}")
    monkeypatch.setenv("TAYLORGLO_STORE_URI", str(tmp_path / "store"))
    monkeypatch.setenv("TAYLORGLO_TRACKING_URI", f"sqlite:///{tmp_path / 'mlruns.db'}")
    for name in (LOCAL_RUN, "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield Tasks(tmp_path)
    sys.modules.pop("my_network", None)


def leftovers(folder: Path) -> list[str]:
    """Return the temporary files in a folder, under all names that they may have."""
    names = re.compile(r"\.part$|\.tmp$|^\.[^.]+\.(ya?ml|json)\.")
    return [str(path) for path in folder.rglob("*") if names.search(path.name)]


@pytest.mark.parametrize("case", IN_A_TASK)
def test_in_a_task(
    case: str,
    tasks: Tasks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings, variables, expected = IN_A_TASK[case]
    for name, value in variables().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        tasks.open(settings(tmp_path))
    assert exit_.value.code == 2
    output = capfd.readouterr()
    (line,) = problems(output.out)
    assert re.search(expected, line)
    assert SECRET not in line + output.err
    assert not (tmp_path / "sweep").exists()
    assert leftovers(tmp_path) == []


def test_wrong_secret(
    tasks: Tasks, s3: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**s3.env(), "AWS_SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    uri = f"s3://{s3.bucket}/digits.safetensors"
    with pytest.raises(SystemExit):
        tasks.open({"data": {"name": "safetensors", "root": uri}})
    (line,) = problems(capfd.readouterr().out)
    assert re.search(r"access denied \(\w+\); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY", line)
    assert SECRET not in line
    monkeypatch.setenv("TAYLORGLO_STORE_URI", f"s3://{s3.bucket}/{secrets.token_hex(4)}")
    with pytest.raises(SystemExit):
        tasks.open({})
    (line,) = problems(capfd.readouterr().out)
    assert "access denied" in line


def test_a_key_without_the_right_to_write(
    tasks: Tasks, s3: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = f"s3://{s3.bucket}/{secrets.token_hex(4)}"
    access_key, secret_key = s3.reader
    reader = {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "TAYLORGLO_STORE_URI": store,
    }
    for name, value in {**s3.env(), **reader}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        tasks.open({})
    assert exit_.value.code == 2
    output = capfd.readouterr()
    (line,) = problems(output.out)
    assert line.startswith(f"{store}: access denied (AccessDenied); check ")
    assert line.endswith("the rights of that key on the bucket")
    assert secret_key not in output.out + output.err


def test_changed_settings_of_a_sweep(
    tasks: Tasks, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = SweepSettings()
    fingerprint = datasets.load(settings.data, settings.seed).fingerprint
    search = opening.begin_search(settings, fingerprint, num_classes=10)
    trained = Evaluation(
        status="ok",
        fitness=0.5,
        accuracies=[0.5],
        robust_accuracies=[],
        curve=[],
        started=0.0,
        ended=1.0,
        seconds=1.0,
    )
    search.note(search.propose(1)[0].trial, trained)
    for sections, expected in (
        ({"search": {"popsize": 5}}, "search_popsize 8, now 5"),
        ({"augmentation": {"cutout": 2}}, "augmentation_cutout 0, now 2"),
        (
            {"training": {"learning_rate": 0.2}, "seed": 3},
            "seed 0, now 3, training_learning_rate 0.1, now 0.2",
        ),
        (
            {"data": {"train_fraction": 0.5}},
            "begun with other samples, labels or splits of the data 'digits': its candidates",
        ),
    ):
        with pytest.raises(SystemExit):
            tasks.open(sections)
        (line,) = problems(capfd.readouterr().out)
        assert line.startswith("sweep 'digits' was begun with ")
        assert expected in line
        assert line.endswith("give the new sweep another name")
    assert not (tmp_path / "sweep").exists()
    assert not (tmp_path / "store").exists()


def test_wrong_parameters_of_a_pipeline_run(
    tasks: Tasks, capfd: pytest.CaptureFixture[str]
) -> None:
    sections = {
        "training": {"steps": "many"},
        "search": {"popsize": 1},
        "attack": {"epsilons": "0.1, much"},
        "data": {"roof": "/data"},
    }
    with pytest.raises(SystemExit):
        tasks.open(sections)
    lines = [line.partition(" (")[0] for line in problems(capfd.readouterr().out)]
    assert sorted(lines) == [
        "parameters: attack.epsilons.1: should be a number",
        "parameters: data.roof: unknown key",
        "parameters: search.popsize: should be greater than or equal to 2",
        "parameters: training.steps: should be a whole number",
    ]


@pytest.mark.parametrize(
    "name", ["TAYLORGLO_STUDY_URL", "TAYLORGLO_STORE_URI", "TAYLORGLO_TRACKING_URI"]
)
def test_a_cluster_that_names_no_service(
    name: str, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(SystemExit):
        tasks.open({})
    (line,) = problems(capfd.readouterr().out)
    assert line == f"the environment variable {name} is not set; every task of a sweep needs it"


@pytest.mark.parametrize(
    "case", [name for name in ON_THIS_MACHINE if name not in ON_THIS_MACHINE_BY_COMMAND]
)
def test_input_that_this_machine_cannot_train_is_refused_before_there_is_a_study(
    case: str, tasks: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _, expected = ON_THIS_MACHINE[case]
    tasks.prepare(settings(tmp_path))
    monkeypatch.setenv(LOCAL_RUN, "1")
    checked = read_json(tmp_path / "settings", SweepSettings)
    description = read_json(tmp_path / "description", DatasetDescription)
    data = opening.PreparedData(str(tmp_path / "search_data"), str(tmp_path / "full_data"))
    with pytest.raises(InputError, match=expected) as refused:
        opening.open_sweep(checked, description, data, 2)
    assert "\n" not in str(refused.value)
    for name in ("study.db", "store", "mlruns.db"):
        assert not (tmp_path / name).exists()


def test_another_machine_of_a_cluster_may_train_it(tasks: Tasks, tmp_path: Path) -> None:
    tasks.open({"training": {"precision": "tf32", "device": "cpu"}})
    assert (tmp_path / "sweep").exists()


def refused_by_command(case: Case, folder: Path) -> None:
    """Run the command with this bad input, and check what it prints and leaves."""
    settings, variables, expected = case
    overrides = [
        f"{section}.{key}={value}"
        for section, values in settings(folder).items()
        for key, value in values.items()
    ]
    process = Sweeps(folder / "work", tuple(overrides), variables()).run()
    assert process.returncode == 2
    (line,) = problems(process.stderr)
    assert re.search(expected, line)
    # Only the line that says what was started.
    assert re.fullmatch(r"taylorglo [\d.]+: sweep 'digits', .*\n", process.stdout)
    log = (folder / "work" / "logs" / "digits.log").read_text()
    assert SECRET not in process.stdout + process.stderr + log
    assert leftovers(folder) == []


@pytest.mark.long
@pytest.mark.parametrize("case", IN_A_TASK)
def test_by_command(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    refused_by_command(IN_A_TASK[case], tmp_path)


def check_refused_by_machine(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the command refuses input for this machine in one line, and makes no study."""
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{inherited}")
    refused_by_command(ON_THIS_MACHINE[case], folder)
    left = sorted(path.name for path in (folder / "work").iterdir())
    assert left == [".digits.lock", "logs", "pipeline"]


@pytest.mark.parametrize("case", ON_THIS_MACHINE_BY_COMMAND)
def test_by_command_on_this_machine(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_refused_by_machine(case, tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize(
    "case", [name for name in ON_THIS_MACHINE if name not in ON_THIS_MACHINE_BY_COMMAND]
)
def test_by_command_on_this_machine_the_others(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_refused_by_machine(case, tmp_path, monkeypatch)


def test_a_task_that_dies_is_named_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "my_network.py").write_text(
        "import os\nprint('last words', flush=True)\nos._exit(9)\n"
    )
    process = Sweeps(tmp_path / "work", ("model.name=my_network:build",)).run()
    assert process.returncode == 2
    shown, _, rest = process.stderr.partition("\n")
    assert shown == "  | last words"
    (line,) = problems(rest)
    log = tmp_path / "work" / "logs" / "digits.log"
    assert line == (
        "unexpected end: the task prepare_dataset ended with exit status 9; the last that it "
        f"printed is: last words; what the tasks printed is in {log}"
    )
    assert "\x1b" not in line
    assert "last words" in log.read_text()


FAILS_THE_SECOND_TIME = """
import pathlib
from torch import nn

checked = pathlib.Path(__file__).with_suffix('.checked')
good = not checked.exists()
checked.touch()

def build(shape, classes):
    if not good:
        raise RuntimeError('no such layer')
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


@pytest.mark.long
def test_shards_with_the_same_error_report_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "my_network.py").write_text(FAILS_THE_SECOND_TIME)
    settings = ("model.name=my_network:build", "pipeline.shards=2")
    process = Sweeps(tmp_path / "work", settings).run()
    assert process.returncode == 2
    (line,) = problems(process.stderr)
    assert line == (
        "model 'my_network:build': cannot be built for images (1, 8, 8): RuntimeError: no such "
        "layer"
    )
    assert "Traceback" not in process.stdout
