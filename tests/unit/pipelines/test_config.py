"""The YAML file of a sweep."""

from pathlib import Path

import pytest
import yaml

from taylorglo.errors import InputError
from taylorglo.settings import SweepSettings
from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI
from taylorglo_pipelines.config import Config, load, with_overrides

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
            assert getattr(settings, key) == value, f"{section}.{key}"


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert loaded(tmp_path) == Config()
    assert loaded(tmp_path).sweep == SweepSettings()


def test_overrides_win_over_the_file_and_the_later_over_the_earlier(tmp_path: Path) -> None:
    content = "search: {popsize: 6, sigma: 0.5}\nseed: 3\n"
    config = loaded(
        tmp_path, content, "search.popsize=7", "search.popsize=8", "training.steps=400", "seed=4"
    )
    assert (config.search.popsize, config.search.sigma) == (8, 0.5)
    assert (config.training.steps, config.seed) == (400, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.1, 0.2]", [0.1, 0.2]),
        ("0.1, 0.2", [0.1, 0.2]),
        ("0.1", [0.1]),
        ("[1.0e-2]", [0.01]),
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
    "override", ["pipeline.cpu=-1", "pipeline.cpu=two", "pipeline.cpu=true", "pipeline.memory=4 Gi"]
)
def test_resources_that_kubernetes_does_not_understand_are_refused(
    tmp_path: Path, override: str
) -> None:
    with pytest.raises(InputError, match=override.partition("=")[0]):
        loaded(tmp_path, "", override)


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
