"""Agreement with the Adversarial Robustness Toolbox (ART) and with foolbox, on Fashion-MNIST."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import fashion, predictions, trained

from taylorglo.attacks import Strength, apgd, fgsm, pgd, withstood

# Networks by their name and label smoothing, with the epsilon of the comparison.
VICTIMS = {"mlp": ("mlp", 0.0, 0.08), "smoothed": ("mlp", 0.3, 0.08), "cnn": ("cnn", 0.0, 0.08)}
Victim = tuple[nn.Module, Tensor, Tensor, float]


def victim_of(name: str, images: int) -> Victim:
    """Return a network, test images that it classifies correctly, their labels and the epsilon."""
    network, smoothing, epsilon = VICTIMS[name]
    model = trained(network, smoothing)
    _, _, test, labels = fashion()
    right = (predictions(model, test) == labels).nonzero().squeeze(1)[:images]
    return model, test[right], labels[right], epsilon


def estimator(model: nn.Module) -> Any:
    classification = pytest.importorskip("art.estimators.classification")
    return classification.PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def by_art(name: str, victim: Victim, **options: Any) -> Tensor:
    """Return the images of an attack of ART."""
    attacks = pytest.importorskip("art.attacks.evasion")
    model, images, labels, epsilon = victim
    attack = getattr(attacks, name)(estimator(model), eps=epsilon, **options)
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy().astype(np.int64)))


def by_foolbox(attack: Callable[[Any], Any], victim: Victim) -> Tensor:
    """Return the images of an attack of foolbox."""
    foolbox = pytest.importorskip("foolbox")
    model, images, labels, epsilon = victim
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, attacked, _ = attack(foolbox)(bounded, images, labels, epsilons=epsilon)
    return attacked


def left(victim: Victim, attacked: Tensor) -> float:
    """Return the accuracy on attacked images, in percentage points."""
    model, _, labels, _ = victim
    return 100 * (predictions(model, attacked) == labels).double().mean().item()


@pytest.mark.parametrize("name", VICTIMS)
def test_fgsm_is_that_of_art_and_foolbox_in_every_image(name: str) -> None:
    victim = victim_of(name, 300)
    model, images, labels, epsilon = victim
    ours = fgsm(model, images, labels, epsilon)
    for theirs in (
        by_art("FastGradientMethod", victim, batch_size=300),
        by_foolbox(lambda foolbox: foolbox.attacks.FGSM(random_start=False), victim),
    ):
        # The sign of a gradient that is 0 to the last digit is a matter of rounding.
        alike = ((ours - theirs).abs() <= 1e-6).flatten(1).float().mean(dim=1)
        assert bool((alike > 0.99).all())
        assert torch.equal(predictions(model, ours), predictions(model, theirs))


@pytest.mark.parametrize("name", VICTIMS)
def test_pgd_leaves_what_that_of_art_and_foolbox_leaves(name: str) -> None:
    victim = victim_of(name, 300)
    model, images, labels, epsilon = victim
    step = 2.5 * epsilon / 20
    ours = left(victim, pgd(model, images, labels, epsilon, steps=20))
    by_toolbox = by_art(
        "ProjectedGradientDescent",
        victim,
        eps_step=step,
        max_iter=20,
        num_random_init=0,
        batch_size=300,
        verbose=False,
    )
    by_boxes = by_foolbox(
        lambda foolbox: foolbox.attacks.LinfProjectedGradientDescentAttack(
            abs_stepsize=step, steps=20, random_start=False
        ),
        victim,
    )
    for theirs in (left(victim, by_toolbox), left(victim, by_boxes)):
        assert ours == pytest.approx(theirs, abs=0.5)
    assert 5 < ours < 95


@pytest.mark.parametrize("name", VICTIMS)
@pytest.mark.parametrize(
    ("objective", "loss"), [("ce", "cross_entropy"), ("dlr", "difference_logits_ratio")]
)
def test_apgd_leaves_no_more_than_that_of_art(name: str, objective: str, loss: str) -> None:
    victim = victim_of(name, 200 if name != "cnn" else 100)
    model, images, labels, epsilon = victim
    theirs, ours = [], []
    # A random start is worth a point.
    for seed in range(2):
        np.random.seed(seed)
        attacked = by_art(
            "AutoProjectedGradientDescent",
            victim,
            eps_step=2 * epsilon,
            max_iter=30,
            nb_random_init=1,
            batch_size=300,
            loss_type=loss,
            verbose=False,
        )
        theirs.append(left(victim, attacked))
        attacked = apgd(model, images, labels, epsilon, steps=30, objective=objective, seed=seed)
        ours.append(left(victim, attacked))
    assert fmean(ours) <= fmean(theirs) + 1.0


def by_auto_attack(victim: Victim, queries: int) -> Tensor:
    """Return the images of ART's AutoAttack, with fewer steps, queries and restarts."""
    attacks = pytest.importorskip("art.attacks.evasion")
    model, _, _, epsilon = victim
    classifier = estimator(model)
    descents = [
        attacks.AutoProjectedGradientDescent(
            classifier,
            eps=epsilon,
            eps_step=2 * epsilon,
            max_iter=50,
            nb_random_init=1,
            batch_size=300,
            loss_type=loss,
            verbose=False,
        )
        for loss in ("cross_entropy", "difference_logits_ratio")
    ]
    search = attacks.SquareAttack(
        classifier, eps=epsilon, max_iter=queries, nb_restarts=1, batch_size=300, verbose=False
    )
    return by_art(
        "AutoAttack", victim, attacks=[*descents, search], estimator_orig=classifier, batch_size=300
    )


@pytest.mark.parametrize("name", VICTIMS)
def test_the_worst_case_is_no_better_than_that_of_arts_auto_attack(name: str) -> None:
    victim = victim_of(name, 50)
    model, images, labels, epsilon = victim
    np.random.seed(0)
    theirs = left(victim, by_auto_attack(victim, 300))
    # FAB is none of theirs here.
    strength = Strength("standard", apgd_steps=50, fab_steps=20, queries=300)
    ours = withstood(model, images, labels, [epsilon], strength=strength).accuracies
    # "apgd-t" is the last attack of the suite "apgd".
    for attack in ("apgd-t", "worst"):
        assert 100 * ours[attack][epsilon] <= theirs + 0.5
    assert 1 < theirs < 99


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", VICTIMS)
def test_the_worst_case_is_no_better_than_that_of_all_of_auto_attack(name: str) -> None:
    victim = victim_of(name, 200)
    model, images, labels, epsilon = victim
    ours = withstood(model, images, labels, [epsilon], strength=Strength("standard")).accuracies
    np.random.seed(0)
    theirs = left(victim, by_art("AutoAttack", victim, eps_step=epsilon / 4, batch_size=200))
    curve = {attack: round(100 * values[epsilon], 1) for attack, values in ours.items()}
    print(f"{name}: ours {curve}, ART's AutoAttack {theirs:.1f}")
    # "apgd-t" is the last attack of the suite "apgd".
    for attack in ("apgd-t", "worst"):
        assert 100 * ours[attack][epsilon] <= theirs + 0.5
