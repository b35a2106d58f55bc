"""Trained networks that are restored from their weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from comparisons import CROSS_ENTROPY, Memory, trained
from safetensors.torch import load, save
from trainings import score_and_entropy

from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset
from taylorglo.errors import InputError
from taylorglo.evaluation.comparison import restore_network


class Kept(NamedTuple):
    """The weights of a trained network as safetensors, and its test accuracy."""

    weights: bytes
    test_accuracy: float


@pytest.fixture(scope="module")
def kept(digits: Dataset) -> Kept:
    memo = Memory()
    full = trained(CROSS_ENTROPY, digits, memo)
    return Kept(memo.weights(full.key), full.test_accuracy)


def test_a_network_is_restored(digits: Dataset, kept: Kept) -> None:
    network = restore_network(kept.weights, "mlp", digits)
    assert not network.training
    assert digits.test is not None
    assert score_and_entropy(network, digits.test, 64)[0] == kept.test_accuracy
    mean = network.state_dict()["normalize.mean"]
    assert torch.equal(mean.flatten(), torch.tensor(digits.mean))


def test_bare_weights_get_the_normalisation_of_the_data(digits: Dataset, kept: Kept) -> None:
    state = load(kept.weights)
    parts = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
    assert len(parts) == 4
    bare = save(parts)
    images = scaled(digits.train.images[:50])

    def logits(weights: bytes, dataset: Dataset) -> torch.Tensor:
        values: torch.Tensor = restore_network(weights, "mlp", dataset)(images)
        return values

    assert torch.equal(logits(kept.weights, digits), logits(bare, digits))
    other = replace(digits, mean=(0.9,))
    # Whole weights have a normalisation of their own.
    assert torch.equal(logits(kept.weights, digits), logits(kept.weights, other))
    assert not torch.equal(logits(kept.weights, digits), logits(bare, other))


@pytest.mark.parametrize(
    "damage",
    [
        lambda weights: weights[:-7],
        lambda weights: weights[:20],
        lambda weights: b"",
        lambda weights: b"not weights at all",
        lambda weights: save({k: v for k, v in load(weights).items() if "bias" not in k}),
        lambda weights: save({**load(weights), "network.9.weight": torch.zeros(3)}),
        lambda weights: save({"weights": torch.zeros(3)}),
        lambda weights: save({k: v[:-1] for k, v in load(weights).items()}),
    ],
    ids=[
        "cut off",
        "almost empty",
        "empty",
        "text",
        "without biases",
        "with another layer",
        "another network",
        "other shapes",
    ],
)
def test_damaged_weights_are_refused(
    digits: Dataset, kept: Kept, damage: Callable[[bytes], bytes]
) -> None:
    message = r"^these weights do not fit model 'mlp' and data set 'digits': ."
    with pytest.raises(InputError, match=message) as caught:
        restore_network(damage(kept.weights), "mlp", digits)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(digits: Dataset, kept: Kept) -> None:
    message = "these weights do not fit model 'cnn' and data set 'digits'"
    with pytest.raises(InputError, match=message):
        restore_network(kept.weights, "cnn", digits)
    with pytest.raises(InputError, match="unknown"):
        restore_network(kept.weights, "nonsense", digits)


def test_a_network_with_tied_weights_is_restored(search_digits: Dataset) -> None:
    memo, model = Memory(), "user_networks:tied"
    full = trained(CROSS_ENTROPY, search_digits, memo, model={"name": model})
    network = restore_network(memo.weights(full.key), model, search_digits)
    assert score_and_entropy(network, search_digits.validation, 64)[0] == full.training.accuracy
