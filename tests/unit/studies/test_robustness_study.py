"""The robustness study: its settings, its adversarial training, its tests, and a small one."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from scipy.stats import t, ttest_rel
from torch import nn
from torch.nn import functional

sys.path.append(str(Path(__file__).parents[2] / "studies"))

from robustness import (
    ADVERSARIAL,
    CHAMPIONS,
    CONTROL,
    DATA,
    EPSILONS,
    LOSSES,
    MIXED,
    OPPONENTS,
    PLACES,
    TESTED,
    TUNED,
    Effort,
    attacked,
    cells_of,
    compared,
    hardening,
    report,
    settings_of,
    shown,
)
from studies import Row, Study

from taylorglo.attacks.radii import usual_radii
from taylorglo.attacks.suite import SUITES

SMALL = Effort(
    steps={"mlp": 60, "cnn": 20},
    generations=2,
    popsize=4,
    finalists=2,
    attempts=1,
    rates=(0.03, 0.1),
    alphas=(0.1,),
    seeds=3,
    images={"mlp": 10, "cnn": 10},
    queries=10,
    inner=2,
)


class TestSettings:
    def test_the_tests_are_at_the_middle_of_the_usual_radii(self) -> None:
        for data in DATA.values():
            radii = usual_radii(str(data["name"]), "linf", pixels=True)
            assert list(EPSILONS) == radii
            assert radii[1:][len(radii[1:]) // 2] == TESTED

    def test_the_full_size_has_the_cells_of_the_default_size(self) -> None:
        for place in PLACES:
            default, full = cells_of(*place, False), cells_of(*place, True)
            assert [cell["loss"] for cell in default] == list(LOSSES)
            assert [cell for cell in default if cell not in full] == []

    @pytest.mark.parametrize("place", PLACES)
    def test_only_what_is_chosen_by_robustness_is_attacked_when_it_is_chosen(
        self, place: tuple[str, str]
    ) -> None:
        for cell in cells_of(*place, False):
            short = settings_of(cell, Effort()).evaluation
            assert (short.adversarial_weight > 0) == (cell["loss"] in MIXED)
            assert short.adversarial_epsilon == TESTED

    def test_a_baseline_is_tuned_alone_and_the_control_is_any_of_them(self) -> None:
        losses = {
            str(cell["loss"]): settings_of(cell, Effort()).baselines.losses
            for cell in cells_of("digits", "mlp", False)
        }
        assert {name: losses[name] for name in TUNED} == {k: [v] for k, v in TUNED.items()}
        assert losses[CONTROL] == list(TUNED.values())
        assert losses[ADVERSARIAL] == ["cross-entropy"]

    def test_only_the_control_is_tuned_over_the_small_rates(self) -> None:
        effort = Effort()
        for cell in cells_of("digits", "mlp", False):
            rates = settings_of(cell, effort).baselines.learning_rates
            small = cell["loss"] == CONTROL
            assert rates == [*(effort.small_rates if small else ()), *effort.rates]


class TestAdversarialTraining:
    def test_a_linear_network_sees_the_images_of_highest_loss(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        # So far inside [0, 1] that no image is cut.
        images, labels = 0.4 + 0.2 * torch.rand(6, 3, 2, 2), torch.tensor([0, 1, 0, 1, 1, 0])
        epsilon = 0.1
        found = hardening(network, epsilon, 7)(images, labels)
        logits = network(images)
        margin = logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])
        layer = network[1]
        assert isinstance(layer, nn.Linear)
        reach = epsilon * (layer.weight[0] - layer.weight[1]).abs().sum()
        torch.testing.assert_close(found, functional.softplus(reach - margin).mean())

    def test_no_pixel_leaves_its_range(self) -> None:
        seen: list[torch.Tensor] = []
        layer = nn.Linear(4, 2)

        class Network(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                seen.append(images.detach())
                logits: torch.Tensor = layer(images)
                return logits

        images = torch.tensor([[0.0, 1.0, 0.01, 0.99], [0.5, 0.5, 0.0, 1.0]])
        hardening(Network(), 0.1, 3)(images, torch.tensor([0, 1]))
        assert len(seen) == 4
        for point in seen:
            assert point.min() >= 0
            assert point.max() <= 1
            assert ((point - images).abs() <= 0.1 + 1e-6).all()


class TestTables:
    def test_differences_are_tested_in_pairs_of_a_seed(self) -> None:
        values = {
            loss: [0.1 * number, 0.1 * number + 0.01 * (number % 3), 0.5 - 0.02 * number]
            for number, loss in enumerate((*CHAMPIONS, *OPPONENTS))
        }
        known: dict[str, list[Row]] = {
            loss: [
                {"network": seed, "epsilon": epsilon, "worst": value if epsilon == TESTED else 1.0}
                for seed, value in enumerate(own)
                for epsilon in EPSILONS
            ]
            for loss, own in values.items()
        }
        found = compared(known)
        raw = {
            (own, other): ttest_rel(values[own], values[other]).pvalue
            for own in CHAMPIONS
            for other in OPPONENTS
        }
        assert found.keys() == raw.keys()
        least = min(raw, key=lambda pair: raw[pair])
        assert found[least][1] == pytest.approx(min(1.0, 12 * raw[least]))
        gap = [100 * (a - b) for a, b in zip(values[least[0]], values[least[1]], strict=True)]
        assert found[least][0] == shown(gap, sign="+")
        assert found[least][0].startswith(f"{sum(gap) / 3:+.1f} ± ")

    def test_the_interval_is_students(self) -> None:
        values = [10.0, 12.0, 17.0, 13.0]
        # The sample variance is 26/3.
        reach = t.ppf(0.975, 3) * (26 / 3 / 4) ** 0.5
        assert shown(values) == f"13.0 ± {reach:.1f}"
        assert shown([12.0]) == "12.0"


@pytest.mark.long
def test_a_small_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study("robustness", 1, tmp_path / "study")
    cells = cells_of("digits", "mlp", False)
    rows = study.rows(cells, partial(attacked, SMALL))
    assert len(rows) == len(LOSSES) * SMALL.seeds * len(EPSILONS)
    for loss in LOSSES:
        own = [row for row in rows if row["loss"] == loss]
        assert bool(own[0]["theta"]) == (loss in CHAMPIONS)
        for row in own:
            # The attacks take turns, so what is left falls from one to the next.
            left = [float(row[name]) for name in (*SUITES["quick"], "worst")]
            assert left == sorted(left, reverse=True)
    report(study, rows)
    assert ADVERSARIAL in capsys.readouterr().out
    for name in ("robustness.md", "claim.md", "robustness.svg"):
        assert (study.folder / name).stat().st_size > 0
