"""Bad input ends the command with status 2 and a line per problem that a person can act on, and
nothing else."""

import gzip
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sweeps import Sweeps

from taylorglo.components.check_inputs import check_inputs
from taylorglo.components.open_sweep import open_sweep
from taylorglo.components.prepare_dataset import prepare_dataset
from taylorglo.data import dataset as data
from taylorglo.loss.functions import TaylorLoss
from taylorglo.settings import SweepSettings
from taylorglo.tasks import context as environment
from taylorglo_pipelines import config
from taylorglo_pipelines.cli import main

SECRET = "c0rrect-horse"


def problems(stderr: str) -> list[str]:
    """The lines, each of them an error of ours."""
    lines = stderr.splitlines()
    assert all(line.startswith("taylorglo: error: ") for line in lines), stderr
    return [line.removeprefix("taylorglo: error: ") for line in lines]


def leftovers(folder: Path) -> list[str]:
    """Temporary files, under whatever name."""
    return [
        str(path)
        for path in folder.rglob("*")
        if re.search(r"\.part$|\.tmp$|^\.[^.]+\.(ya?ml|json)\.", path.name)
    ]


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: digits\n")
    return path


class TestBeforeAnythingRuns:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            (["nonsense=1"], ["nonsense: unknown key (got 1)"]),
            (["search.popsise=3"], ["search.popsise: unknown key (got 3)"]),
            (["services.bucket=x"], ["services.bucket: unknown key (got 'x')"]),
            (["training.steps=many"], ["training.steps: should be a valid integer"]),
            (["training.nesterov=perhaps"], ["training.nesterov: should be a valid boolean"]),
            (["search=3"], ["search: should be a group of settings (got 3)"]),
            (
                ["search.popsize=1"],
                ["search.popsize: should be greater than or equal to 2 (got 1)"],
            ),
            (["search.sigma=0"], ["search.sigma: should be greater than 0 (got 0)"]),
            (["search.sigma=.nan"], ["search.sigma: should be a finite number"]),
            (["search.filters=astrology"], ["search.filters: unknown filter 'astrology'"]),
            (["search.mean=[1, 2]"], ["search.mean: should have 4 numbers, has 2"]),
            (["search.max_draws=3"], ["search.max_draws: should be at least popsize"]),
            (
                ["attack.epsilons=[0.1, 2]"],
                ["attack.epsilons.1: should be less than or equal to 1 (got 2)"],
            ),
            (["evaluation.steps=5000"], ["evaluation.steps: should be at most training.steps"]),
            (["attack.seeds=11"], ["attack.seeds: should be at most champion.seeds (10)"]),
            (
                ["baselines.learning_rates=[]"],
                ["baselines.learning_rates: should be one or more positive numbers"],
            ),
            (["data.name=imagenet"], ["data.name: should be 'digits', 'mnist'"]),
            (
                ["data.name=mnist"],
                ["data.root: data set 'mnist' needs a folder, a file or an s3:// URI"],
            ),
            (["data.sha256=abc"], ["data.sha256: "]),
            (
                ["pipeline.generations=0"],
                ["pipeline.generations: should be greater than or equal to 1 (got 0)"],
            ),
            (["pipeline.shards=13"], ["pipeline.shards: should be at most search.popsize (12)"]),
            (
                ["pipeline.accelerator=tpu"],
                ["pipeline.accelerator: should be '', 'nvidia.com/gpu' or 'amd.com/gpu'"],
            ),
            (["pipeline.memory=lots"], ["pipeline.memory: "]),
            (["name=My Sweep"], ["name: "]),
            (
                ["seed=-1", "name=null"],
                ["name: should be a valid string", "seed: should be greater than or equal to 0"],
            ),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else None,
    )
    @pytest.mark.parametrize("command", ["run", "compile"])
    def test_settings(
        self,
        command: str,
        settings: list[str],
        expected: list[str],
        sweep_file: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        words = [word for setting in settings for word in ("--set", setting)]
        words += (
            ["--set", f"services.work_dir={tmp_path / 'runs'}"]
            if command == "run"
            else ["-o", f"{tmp_path}/p.yaml"]
        )
        assert main([command, str(sweep_file), *words]) == 2
        output = capsys.readouterr()
        found = problems(output.err)
        assert len(found) == len(expected), output.err
        for line, wanted in zip(found, expected, strict=True):
            assert line.startswith(f"{sweep_file}: {wanted}")
        assert output.out == ""
        assert list(tmp_path.iterdir()) == [sweep_file]

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("nonsense", "--set nonsense: should be section.key=value"),
            ("=3", "--set =3: should be section.key=value"),
            ("search.=3", "--set search.=3: should be section.key=value"),
            ("search.popsize={", "--set search.popsize={: the value is not YAML"),
            ("name.popsize=3", "--set name.popsize=3: name is not a section"),
        ],
    )
    def test_set(
        self, override: str, expected: str, sweep_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["run", str(sweep_file), "--set", override]) == 2
        assert problems(capsys.readouterr().err) == [expected]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"a: [1\nb: 2", "is not YAML: line 2, column 2: expected ',' or ']', but got ':'"),
            (
                b"search: {popsize: 4}\nsearch: {sigma: 1}",
                "is not YAML: line 2, column 1: the key 'search' is there twice",
            ),
            (
                b"a: !!python/object/apply:os.getcwd []",
                "is not YAML: line 1, column 4: could not determine a constructor",
            ),
            (b"\xff\xfe\x00", "cannot be read: 'utf-8' codec can't decode"),
            (b"- digits", "should be a mapping of sections, is a list"),
            (b"1: 2", "1: Keys should be strings (got 1)"),
        ],
    )
    def test_file(
        self, content: bytes, expected: str, sweep_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sweep_file.write_bytes(content)
        assert main(["run", str(sweep_file)]) == 2
        (line,) = problems(capsys.readouterr().err)
        assert line.startswith(f"{sweep_file}: {expected}")

    @pytest.mark.parametrize("name", ["missing.yaml", ""])
    def test_no_file(self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run", str(tmp_path / name)]) == 2
        (line,) = problems(capsys.readouterr().err)
        assert line.startswith(f"{tmp_path / name}: cannot be read: ")

    @pytest.mark.parametrize(
        ("work", "expected"),
        [
            ("sweep.yaml", "sweep.yaml: cannot be made: File exists"),
            ("here", ".digits.lock: cannot be written: Is a dir"),
        ],
    )
    def test_work_folder(
        self,
        work: str,
        expected: str,
        sweep_file: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "here" / ".digits.lock").mkdir(parents=True)
        assert main(["run", str(sweep_file), "--set", f"services.work_dir={tmp_path / work}"]) == 2
        (line,) = problems(capsys.readouterr().err)
        assert expected in line

    @pytest.mark.parametrize(
        ("output", "expected"),
        [
            ("p.json", "a compiled pipeline should be a .yaml file"),
            ("no/p.yaml", "cannot be written: No such file or directory"),
            ("folder.yaml", "cannot be written: Is a directory"),
        ],
    )
    def test_compile_output(
        self,
        output: str,
        expected: str,
        sweep_file: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "folder.yaml").mkdir()
        assert main(["compile", str(sweep_file), "-o", str(tmp_path / output)]) == 2
        assert problems(capsys.readouterr().err) == [f"{tmp_path / output}: {expected}"]
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.yaml", "sweep.yaml"]

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (
                "1 2 3 4 5 6 7",
                "theta has 7 numbers; there should be 5, 8, 12, 17, ... for order 2, 3, 4, 5, ...",
            ),
            ("1 2 3 4 5 6 7 nan", "theta[7] is nan; it should be a number between"),
            ("1,2,3,4,5,6,7,-inf", "theta[7] is -inf; it should be a number between"),
            ("1 2 3 4 5 6 7 eight", "theta[7] is 'eight', which is not a number"),
            (
                "hinge",
                "unknown loss 'hinge'; there are cross-entropy, squared-error, baikal, saved losses",
            ),
            ("missing.json", "missing.json: is not a saved loss: "),
            ("baikal --classes 1", "number of classes should be at least 2, is 1"),
            ("1 2 3 4 5 --plot loss.gif", "loss.gif: a plot should be a .svg, .png or .pdf file"),
            (
                "1 2 3 4 5 --plot no/loss.svg",
                "no/loss.svg: cannot be written: No such file or directory",
            ),
        ],
    )
    def test_inspect(
        self,
        words: str,
        expected: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["inspect", *words.split()]) == 2
        output = capsys.readouterr()
        (line,) = problems(output.err)
        assert line.startswith(expected)
        assert (output.out, list(tmp_path.iterdir())) == ("", [])

    @pytest.mark.parametrize(
        "content",
        ["{", '{"format": "other"}', '{"format": "taylorglo.loss/1", "theta": [1, 2], "order": 3}'],
    )
    def test_inspect_damaged_loss(
        self, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "loss.json").write_text(content)
        assert main(["inspect", str(tmp_path / "loss.json")]) == 2
        (line,) = problems(capsys.readouterr().err)
        assert line.startswith(f"{tmp_path / 'loss.json'}: ")

    def test_attack(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        weights, dataset = tmp_path / "a" / "model.safetensors", tmp_path / "data.safetensors"
        weights.parent.mkdir()

        def problem(*words: str) -> str:
            assert main(["attack", str(weights.parent), *words]) == 2
            (line,) = problems(capsys.readouterr().err)
            return line

        assert problem() == f"{weights}: no such file or folder"
        weights.write_bytes(b"\x10")
        assert problem().startswith(f"{weights}: ")
        save_file({"network.1.weight": torch.zeros(2, 3)}, weights)
        assert problem() == f"{weights}: do not name their network; give it with --model-name"
        assert problem("--model-name=mlp") == f"{dataset}: no such file or folder"
        save_file({"images": torch.zeros(2, 2)}, dataset)
        assert problem("--model-name=mlp").startswith(
            f"{dataset}: should be a data set as prepared for a sweep"
        )
        whole = data.load(config.load(_minimal(tmp_path)).data, seed=0)
        data.save(whole, dataset)
        assert problem("--model-name=mlp").startswith(
            "these weights do not fit model 'mlp' and data set 'digits': "
        )
        assert problem("--model-name=mlp", "--set", "epsilons=[2]").startswith(
            "--set: epsilons.0: should be less than"
        )
        assert problem("--model-name=mlp", "--set", "images=0").startswith(
            "--set: images: should be greater than"
        )


def _minimal(folder: Path) -> Path:
    path = folder / "minimal.yaml"
    path.write_text("name: digits\n")
    return path


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _fashion_mnist(folder: Path) -> None:
    """The four files of Fashion-MNIST, the images of the training cut off in the middle."""
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        content = gzip.compress(os.urandom(20_000))
        (folder / f"{name}-ubyte.gz").write_bytes(
            content[: 10_000 if name == "train-images-idx3" else None]
        )


# What a task finds: settings and environment as functions of the test's folder, and what the one
# line has to match.
Case = tuple[Callable[[Path], dict[str, object]], Callable[[Path], dict[str, str]], str]


def _nothing(_: Path) -> dict[str, Any]:
    return {}


def _truncated_gz(folder: Path) -> dict[str, object]:
    _fashion_mnist(folder)
    return {"data_name": "fashion-mnist", "data_root": str(folder)}


def _safetensors(content: Callable[[Path], None]) -> Callable[[Path], dict[str, object]]:
    def prepared(folder: Path) -> dict[str, object]:
        path = folder / "digits.safetensors"
        content(path)
        return {"data_name": "safetensors", "data_root": str(path)}

    return prepared


def _cut(path: Path) -> None:
    save_file(
        {
            "images": torch.zeros(40, 8, 8, dtype=torch.uint8),
            "labels": torch.zeros(40, dtype=torch.int64),
        },
        path,
    )
    path.write_bytes(path.read_bytes()[:1000])


def _one_class(path: Path) -> None:
    save_file(
        {
            "images": torch.zeros(40, 8, 8, dtype=torch.uint8),
            "labels": torch.zeros(40, dtype=torch.int64),
        },
        path,
    )


def _factory(source: str) -> Callable[[Path], dict[str, object]]:
    def prepared(folder: Path) -> dict[str, object]:
        (folder / "my_network.py").write_text(source)
        return {"model_name": "my_network:build"}

    return prepared


S3 = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}
IN_A_TASK: dict[str, Case] = {
    "truncated gz": (
        _truncated_gz,
        _nothing,
        r"/train-images-idx3-ubyte\.gz: damaged: should be a whole, readable gzip file: ",
    ),
    "truncated safetensors": (
        _safetensors(_cut),
        _nothing,
        r"/digits\.safetensors: should be a whole \.safetensors file",
    ),
    "one class": (
        _safetensors(_one_class),
        _nothing,
        r"/digits\.safetensors: labels should be 0\.\.n-1, for at least 2 c",
    ),
    "no data": (
        lambda folder: {"data_name": "mnist", "data_root": str(folder / "nowhere")},
        _nothing,
        r"^data\.root: /.*/nowhere should be a folder that holds mnist$",
    ),
    "wrong checksum": (
        lambda _: {"data_sha256": "ab" * 32},
        _nothing,
        r"^data\.sha256: expected (ab){32}, but digits has [0-9a-f]{64} \(of its tensors\)$",
    ),
    "S3 refuses": (
        lambda _: {"data_name": "safetensors", "data_root": "s3://bucket/digits.safetensors"},
        lambda _: {**S3, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{_closed_port()}"},
        r"^s3://bucket: EndpointConnectionError at http://127\.0\.0\.1:\d+ after 4 tries; .*AWS_ENDPOINT_URL right\?$",
    ),
    "database refuses": (
        _nothing,
        lambda _: {
            "TAYLORGLO_STUDY_URL": f"postgresql://127.0.0.1:{_closed_port()}/study",
            "PGPASSWORD": SECRET,
        },
        r"^(?=.*\bdatabase\b)(?=.*after 4 tries).*[Cc]onnection refused",
    ),
    "password in a URL": (
        _nothing,
        lambda _: {"TAYLORGLO_STUDY_URL": f"postgresql://somebody:{SECRET}@127.0.0.1/study"},
        r"^postgresql://somebody:\*\*\*@127\.0\.0\.1/study: leave the password out of the URL and set PGPASSWORD",
    ),
    "MLflow refuses": (
        _nothing,
        lambda _: {
            "MLFLOW_TRACKING_URI": f"http://somebody:{SECRET}@127.0.0.1:{_closed_port()}",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        },
        r"^MLflow at http://127\.0\.0\.1:\d+: .*Connection refused",
    ),
    "no such module": (
        lambda _: {"model_name": "nowhere_at_all:build"},
        _nothing,
        r"^model 'nowhere_at_all:build': cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'$",
    ),
    "wrong number of outputs": (
        _factory(
            "from torch import nn\n"
            "def build(shape, classes):\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))\n"
        ),
        _nothing,
        r"^model 'my_network:build': should return logits, .*\(2, 10\) for 2 images; .* torch\.float32 \(2, 11\)$",
    ),
    "no such network": (
        lambda _: {"model_name": "resnet"},
        _nothing,
        r"^model 'resnet': unknown; there are mlp, ",
    ),
}


def _too_wide(folder: Path) -> dict[str, object]:
    """A network that two images fit in, and a thousand in twice the memory of this machine do
    not."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (folder / "my_network.py").write_text(
        "from torch import nn\n"
        "def build(shape, classes):\n"
        f"    wide = nn.Conv2d(1, {2 * memory // (1000 * 64 * 4)}, 3, padding=1)\n"
        "    layers = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide.out_channels, classes)\n"
        "    return nn.Sequential(wide, *layers)\n"
    )
    return {"model_name": "my_network:build", "training_batch_size": 1000, "training_device": "cpu"}


# What a machine cannot train, which is seen before there is a study where the tasks run on the
# machine of the command.
ON_THIS_MACHINE: dict[str, Case] = {
    "batch larger than the data": (
        lambda _: {"training_batch_size": 5000},
        _nothing,
        r"^training\.batch_size: 5000 is more than the \d+ training images$",
    ),
    "network too large": (
        _too_wide,
        _nothing,
        r"^model 'my_network:build': training it in batches of 1000 takes about [\d.]+ GiB, and [\d.]+ GiB of memory",
    ),
    "no arithmetic in bfloat16": (
        lambda _: {"training_precision": "bfloat16", "training_device": "cpu"},
        lambda _: {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        r"^training\.precision is bfloat16, and the CPU here has no arithmetic for it; use auto or float32$",
    ),
    "no arithmetic in TF32": (
        lambda _: {"training_precision": "tf32", "training_device": "cpu"},
        _nothing,
        r"^training\.precision is tf32, and the CPU here has no arithmetic for it; use auto or float32$",
    ),
}
# Starting the command and its task takes seconds; what a task itself does and prints is tried for
# every case below.
BY_COMMAND = ("truncated gz",)


class Tasks:
    """The tasks in front of all training, as they would run, on services in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def artifacts(self, *names: str) -> dict[str, SimpleNamespace]:
        return {name: SimpleNamespace(path=str(self.folder / name)) for name in names}

    def prepare(self, **parameters: object) -> None:
        """Run them; SystemExit as in a task."""
        given = {**SweepSettings().parameters(), **parameters}
        version = check_inputs.python_func(**given, **self.artifacts("settings"))
        data = {
            k: v for k, v in given.items() if k in ("seed", "model_name") or k.startswith("data_")
        }
        written = self.artifacts("description", "search_data", "full_data")
        prepare_dataset.python_func(version=version, **data, **written)
        opened = self.artifacts("settings", "description", "full_data", "sweep")
        open_sweep.python_func(generations=2, **opened)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tasks]:
    monkeypatch.setenv("TAYLORGLO_STUDY_URL", f"sqlite:///{tmp_path / 'study.db'}")
    monkeypatch.setenv("TAYLORGLO_STORE_URI", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlruns.db'}")
    for name in ("TAYLORGLO_LOCAL_RUN", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield Tasks(tmp_path)
    sys.modules.pop("my_network", None)


@pytest.mark.parametrize("case", IN_A_TASK)
def test_in_a_task(
    case: str,
    tasks: Tasks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings, variables, expected = IN_A_TASK[case]
    for name, value in variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        tasks.prepare(**settings(tmp_path))
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
        tasks.prepare(data_name="safetensors", data_root=uri)
    (line,) = problems(capfd.readouterr().out)
    assert re.search(r"access denied \(\w+\); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY", line)
    assert SECRET not in line
    monkeypatch.setenv("TAYLORGLO_STORE_URI", f"s3://{s3.bucket}/{secrets.token_hex(4)}")
    with pytest.raises(SystemExit):
        tasks.prepare()
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
        tasks.prepare()
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
    whole = data.load(settings.data, settings.seed)
    search = environment.begin_search(settings, whole.fingerprint)
    search.note(search.propose(1)[0].trial, {"fitness": 0.5})
    for parameters, expected in (
        ({"search_popsize": 5}, "search_popsize 12, now 5"),
        ({"augmentation_cutout": 2}, "augmentation_cutout 0, now 2"),
        (
            {"training_learning_rate": 0.2, "seed": 3},
            "seed 0, now 3, training_learning_rate 0.1, now 0.2",
        ),
        ({"data_train_fraction": 0.5}, f"data 'digits {whole.fingerprint[:12]}', now 'digits "),
    ):
        with pytest.raises(SystemExit):
            tasks.prepare(**parameters)
        (line,) = problems(capfd.readouterr().out)
        assert line.startswith("sweep 'digits' was begun with ")
        assert expected in line
        assert line.endswith("give the new sweep another name")
    assert not (tmp_path / "sweep").exists()
    assert not (tmp_path / "store").exists()


def test_wrong_parameters_of_a_pipeline_run(
    tasks: Tasks, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tasks.prepare(search_popsize=1, attack_epsilons="0.1, much")
    assert [line.partition(" (")[0] for line in problems(capfd.readouterr().out)] == [
        "parameters: search.popsize: should be greater than or equal to 2",
        "parameters: attack.epsilons.1: should be a valid number, unable to parse string as a number",
    ]


@pytest.mark.parametrize(
    "name", ["TAYLORGLO_STUDY_URL", "TAYLORGLO_STORE_URI", "MLFLOW_TRACKING_URI"]
)
def test_a_cluster_that_names_no_service(
    name: str, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(SystemExit):
        tasks.prepare()
    (line,) = problems(capfd.readouterr().out)
    assert line == f"the environment variable {name} is not set; every task of a sweep needs it"


def test_what_this_machine_cannot_train_another_one_of_a_cluster_may(
    tasks: Tasks, tmp_path: Path
) -> None:
    tasks.prepare(training_precision="tf32", training_device="cpu")
    assert (tmp_path / "sweep").exists()


def _command(case: Case, folder: Path) -> None:
    settings, variables, expected = case
    overrides = tuple(
        f"{key.replace('_', '.', 1)}={value}" for key, value in settings(folder).items()
    )
    process = Sweeps(folder / "work", overrides, variables(folder)).run()
    assert process.returncode == 2
    (line,) = problems(process.stderr)
    assert re.search(expected, line)
    # The line that says what was started, and nothing else.
    assert re.fullmatch(r"taylorglo [\d.]+: sweep 'digits', .*\n", process.stdout)
    assert (
        SECRET
        not in process.stdout
        + process.stderr
        + (folder / "work" / "logs" / "digits.log").read_text()
    )
    assert leftovers(folder) == []


@pytest.mark.parametrize("case", BY_COMMAND)
def test_by_command(case: str, tmp_path: Path) -> None:
    _command(IN_A_TASK[case], tmp_path)


@pytest.mark.parametrize("case", ON_THIS_MACHINE)
def test_what_this_machine_cannot_train_is_told_once_before_there_is_a_study(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    _command(ON_THIS_MACHINE[case], tmp_path)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        ".digits.lock",
        "logs",
        "pipeline",
    ]


@pytest.mark.long
@pytest.mark.parametrize("case", [name for name in IN_A_TASK if name not in BY_COMMAND])
def test_by_command_the_others(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _command(IN_A_TASK[case], tmp_path)


def test_a_task_that_dies_is_named_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "my_network.py").write_text(
        "import os\nprint('last words', flush=True)\nos._exit(9)\n"
    )
    process = Sweeps(tmp_path / "work", ("model.name=my_network:build",)).run()
    assert process.returncode == 2
    (line,) = problems(process.stderr)
    log = tmp_path / "work" / "logs" / "digits.log"
    assert re.fullmatch(rf"a task failed: .*'prepare-dataset'; what it printed is in {log}", line)
    assert "\x1b" not in line
    assert "last words" in log.read_text()


@pytest.mark.long
def test_shards_that_find_the_same_say_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "my_network.py").write_text(
        "import pathlib\n"
        "from torch import nn\n"
        "checked = pathlib.Path(__file__).with_suffix('.checked')\n"
        "good = not checked.exists()\n"
        "checked.touch()\n"
        "def build(shape, classes):\n"
        "    if not good:\n"
        "        raise RuntimeError('no such layer')\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    process = Sweeps(tmp_path / "work", ("model.name=my_network:build",)).run()
    assert process.returncode == 2
    (line,) = problems(process.stderr)
    assert (
        line
        == "model 'my_network:build': cannot be built for images (1, 8, 8): RuntimeError: no such layer"
    )
    assert "Traceback" not in process.stdout


def test_a_published_theta_is_good_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """So that the tests above do not pass because everything is refused."""
    TaylorLoss([1.0] * 8).save(tmp_path / "loss.json")
    assert main(["inspect", str(tmp_path / "loss.json")]) == 0
    assert capsys.readouterr().err == ""
