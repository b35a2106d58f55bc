"""The YAML file of a sweep."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from taylorglo.errors import InputError
from taylorglo.settings import SweepSettings
from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI
from taylorglo_pipelines.config import Config, load, with_overrides
from taylorglo_pipelines.pipeline.compile import compile_sweep

CONFIGS = Path(__file__).parents[3] / "pipelines" / "configs"


def loaded(tmp_path: Path, content: str = "", *overrides: str) -> Config:
    (tmp_path / "sweep.yaml").write_text(content)
    return load(tmp_path / "sweep.yaml", overrides)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_of_the_project_are_valid(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem
    # Every value of the file reaches the sweep; none is lost to a default by a misspelt key.
    for section, values in yaml.safe_load(path.read_text()).items():
        settings = getattr(config, section)
        for key, value in values.items() if isinstance(values, dict) else ():
            if key == "epsilons":
                # Fractions are read, and 0 is always added.
                value = sorted({0.0, *(float(Fraction(str(epsilon))) for epsilon in value)})
            assert getattr(settings, key) == value, f"{section}.{key}"


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert loaded(tmp_path) == Config()
    assert loaded(tmp_path).sweep == SweepSettings()


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    content = "search: {popsize: 6, sigma: 0.5}\nseed: 3\n"
    config = loaded(tmp_path, content, "search.popsize=7", "training.steps=400", "seed=4")
    assert (config.search.popsize, config.search.sigma) == (7, 0.5)
    assert (config.training.steps, config.seed) == (400, 4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("seed=1", "seed=1"),
        ("search.popsize=7", "search.popsize=8"),
        ("search={popsize: 7}", "search.sigma=1"),
        ("search.sigma=1", "search={popsize: 7}"),
    ],
)
def test_two_overrides_of_one_value_are_refused(tmp_path: Path, first: str, second: str) -> None:
    with pytest.raises(InputError) as error:
        loaded(tmp_path, "", first, "data.name=digits", second)
    assert str(error.value) == (
        f"--set {second}: --set {first} gives it already; one of them should go"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("a #b", "a #b"), ("#b", "#b"), ("a#b", "a#b"), ("'a #b'", "a #b"), (" a ", "a"), ("", "")],
)
def test_a_number_sign_begins_no_comment_in_an_override(text: str, value: str) -> None:
    assert with_overrides({}, [f"data.root={text}"]) == {"data": {"root": value}}


@pytest.mark.parametrize("text", ["[a] #b", "{a: b #c}", "'a' #b", "[a #b\n]"])
def test_a_comment_that_would_cut_an_override_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="a number sign after a blank has to stand in quotes"):
        with_overrides({}, [f"data.root={text}"])


def test_a_problem_is_one_of_the_override_that_gave_the_key(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        loaded(
            tmp_path, "seed: -1\n", "attack.epsilons=[0.1, 2]", "search={popsize: 1, x: 2}", "x=3"
        )
    assert sorted(str(error.value).splitlines()) == [
        "--set attack.epsilons=[0.1, 2]: attack.epsilons.1: should be less than or equal to 1 "
        "(got 2)",
        "--set search={popsize: 1, x: 2}: search.popsize: should be greater than or equal to 2 "
        "(got 1)",
        "--set search={popsize: 1, x: 2}: search.x: unknown key (got 2)",
        "--set x=3: x: unknown key (got 3)",
        f"{tmp_path}/sweep.yaml: seed: should be greater than or equal to 0 (got -1)",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("=", "=")],
)
def test_what_is_no_plain_value_in_yaml_is_text(tmp_path: Path, text: str, value: str) -> None:
    assert loaded(tmp_path, f"data: {{root: {text}}}").data.root == value
    with pytest.raises(InputError, match=r"training\.steps: should be a whole number"):
        loaded(tmp_path, "training: {steps: 1:30}")


def test_aliases_and_merged_groups_work(tmp_path: Path) -> None:
    content = "training: &t {steps: 60}\nevaluation: {<<: *t, give_up_step: 0}\n"
    config = loaded(tmp_path, content)
    assert (config.training.steps, config.evaluation.steps) == (60, 60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.1, 0.2]", [0.1, 0.2]),
        ("0.1, 0.2", [0.1, 0.2]),
        ("0.1", [0.1]),
        ("[1.0e-2]", [0.01]),
        ("[1e-2, 1E+1]", [0.01, 10]),
        ("1e-2", [0.01]),
    ],
)
def test_lists_may_be_written_in_yaml_or_with_commas(
    tmp_path: Path, text: str, expected: list[float]
) -> None:
    baselines = loaded(tmp_path, "", f"baselines.learning_rates={text}").baselines
    assert baselines.learning_rates == expected


def test_an_equals_sign_belongs_to_the_value(tmp_path: Path) -> None:
    url = "postgresql:///study?host=/run/postgresql"
    assert loaded(tmp_path, "", f"services.study_url={url}").services.study_url == url


def test_overrides_leave_the_mapping_as_it_was() -> None:
    content = {"search": {"popsize": 6}, "seed": 1}
    assert with_overrides(content, ["search.popsize=7", "data.name=digits"]) == {
        "search": {"popsize": 7},
        "seed": 1,
        "data": {"name": "digits"},
    }
    assert content == {"search": {"popsize": 6}, "seed": 1}


@pytest.mark.parametrize(
    ("value", "expected"), [("2", "2"), ("1.5", "1.5"), ("500m", "500m"), ("''", "")]
)
def test_cpu_may_be_a_number(tmp_path: Path, value: str, expected: str) -> None:
    assert loaded(tmp_path, "", f"pipeline.cpu={value}").pipeline.cpu == expected


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("cpu", "0", "0"),
        ("cpu", "1e3", "1000.0"),
        ("cpu", "1k", "1000000m"),
        ("cpu_limit", "0.5", "0.5"),
        ("memory", "128974848", "128974848"),
        ("memory", "1.5Gi", "1610612736"),
        ("memory", "1e9", "1000000000"),
        ("memory_limit", "4G", "4G"),
        ("shared_memory", "64Mi", "64Mi"),
    ],
)
def test_amounts_are_written_as_kfp_takes_them(
    tmp_path: Path, key: str, value: str, kept: str
) -> None:
    config = loaded(tmp_path, "", f"pipeline.{key}={value}", "search.popsize=4")
    assert getattr(config.pipeline, key) == kept
    compile_sweep(config, tmp_path / "sweep.yaml")


AMOUNT = "should be a number of "
NAME = "should be a name of Kubernetes: "
IMAGE = "should be a container image: "


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("cpu=-1", f"cpu: {AMOUNT}CPUs, such as 2, 0.5 or 500m"),
        ("cpu=two", f"cpu: {AMOUNT}CPUs"),
        ("cpu=true", "cpu: should not be true or false"),
        ("cpu=1Gi", f"cpu: {AMOUNT}CPUs"),
        ("cpu=1n", f"cpu: {AMOUNT}CPUs"),
        ("cpu_limit=1e30", f"cpu_limit: {AMOUNT}CPUs"),
        ("memory=4 Gi", f"memory: {AMOUNT}bytes, such as 4Gi"),
        ("memory=4K", f"memory: {AMOUNT}bytes"),
        ("memory=400m", f"memory: {AMOUNT}bytes"),
        ("memory=.nan", f"memory: {AMOUNT}bytes"),
        ("memory_limit=1E", f"memory_limit: {AMOUNT}bytes"),
        ("shared_memory=lots", f"shared_memory: {AMOUNT}bytes"),
        ("service_account=Trainer", f"service_account: {NAME}"),
        ("service_account=a..b", f"service_account: {NAME}"),
        (f"secret={'a' * 64}", f"secret: {NAME}"),
        ("secret=''", f"secret: {NAME}"),
        ("config_map=-a", f"config_map: {NAME}"),
        ("node_selector={-a: b}", "node_selector.-a.[key]: should be a key of Kubernetes: "),
        ("node_selector={a: b c}", "node_selector.a: should be a value of a label: "),
        ("node_selector={a: true}", "node_selector.a: should be a text"),
        ("tolerations=[{key: a b}]", "tolerations.0.key: should be a key of Kubernetes: "),
        ("tolerations=[{key: a, value: /}]", "tolerations.0.value: should be a value of a label"),
        ("image=UPPER", f"image: {IMAGE}"),
        ("image=a b", f"image: {IMAGE}"),
        ("image=a@sha256:12", f"image: {IMAGE}"),
        ("timeout=999999999999999999999999", "timeout: should be less than or equal to 31622400"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused(
    tmp_path: Path, setting: str, problem: str
) -> None:
    with pytest.raises(InputError) as error:
        loaded(tmp_path, "", f"pipeline.{setting}")
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"--set pipeline.{setting}: pipeline.{problem}")


@pytest.mark.parametrize(
    ("requested", "limit"),
    [
        ("cpu=3", "cpu_limit=2500m"),
        ("memory=4Gi", "memory_limit=4G"),
        ("shared_memory=1025Mi", "memory_limit=1Gi"),
        # What stands there by default is a request, too.
        ("shared_memory=1Gi", "memory_limit=512Mi"),
    ],
)
def test_a_request_above_its_limit_is_refused(tmp_path: Path, requested: str, limit: str) -> None:
    (key, amount), (limited, most) = requested.split("="), limit.split("=")
    with pytest.raises(InputError) as error:
        loaded(tmp_path, f"pipeline: {{{key}: {amount}, {limited}: {most}}}")
    assert str(error.value).endswith(
        f"sweep.yaml: pipeline.{key}: {amount} is more than {limited} ({most})"
    )
    equal = {"shared_memory": "", key: most, limited: most}
    assert loaded(tmp_path, yaml.safe_dump({"pipeline": equal}))


def parts(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each setting of a JSON schema, and the items of each list, by its path."""
    for group, content in {**schema["$defs"], "": schema}.items():
        for key, value in content["properties"].items():
            for part in (value, value.get("items", {})):
                yield f"{group}.{key}", part


def test_every_number_has_its_limits_and_no_text_has_a_pattern() -> None:
    """Whatever number passes can be computed with; a pattern would stand in an error."""
    schema = Config.model_json_schema()
    # These lists have their limits for all items together.
    rates = "BaselineSettings.learning_rates"
    training = ("TrainingSettings.milestones", "TrainingSettings.betas")
    lists = (*training, "SearchSettings.mean", rates)
    numbers = 0
    for path, part in parts(schema):
        assert "pattern" not in part, path
        if part.get("type") in ("integer", "number") and path not in lists:
            assert {"minimum", "exclusiveMinimum"} & set(part), path
            assert {"maximum", "exclusiveMaximum"} & set(part), path
            numbers += 1
    assert numbers > 40


def test_every_problem_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        loaded(tmp_path, "search: {popsize: 1, sigma: -1}\ncolour: red\n", "training.steps=0")
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == [
        "training.steps",
        "search.popsize",
        "search.sigma",
        "colour",
    ]


class TestServices:
    @pytest.fixture(autouse=True)
    def bare_environment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in (STUDY_URL, STORE_URI, TRACKING_URI):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)

    def test_everything_under_work_dir_by_default(self, tmp_path: Path) -> None:
        assert loaded(tmp_path, "", "services.work_dir=here").services.variables() == {
            STUDY_URL: f"sqlite:///{tmp_path}/here/study.db",
            STORE_URI: f"{tmp_path}/here/store",
            TRACKING_URI: f"sqlite:///{tmp_path}/here/mlruns.db",
        }

    def test_the_environment_wins_over_the_default_and_the_file_over_both(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(STORE_URI, "s3://environment/store")
        monkeypatch.setenv(TRACKING_URI, "http://environment:5000")
        variables = loaded(
            tmp_path, "services: {tracking_uri: 'http://file:5000'}"
        ).services.variables()
        assert variables[STORE_URI] == "s3://environment/store"
        assert variables[TRACKING_URI] == "http://file:5000"
        assert variables[STUDY_URL].startswith("sqlite:///")

    def test_services_and_layout_decide_nothing_that_is_computed(self, tmp_path: Path) -> None:
        other = loaded(
            tmp_path, "", "services.work_dir=x", "services.store_uri=s3://b", "pipeline.shards=3"
        )
        assert type(other.sweep) is SweepSettings
        assert other.sweep == SweepSettings()
        assert not {"preset", "pipeline", "services"} & set(other.sweep.model_dump())


def test_the_sweep_of_a_preset_has_its_values(tmp_path: Path) -> None:
    config = loaded(tmp_path, "preset: wrn-16-8\ntraining: {steps: 900}\n")
    assert config.sweep.model.name == "wrn-16-8"
    assert (config.sweep.training.steps, config.sweep.training.batch_size) == (900, 128)
