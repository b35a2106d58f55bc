"""Networks that a sweep trained, loaded by their source."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

import taylorglo
from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset
from taylorglo.errors import InputError
from taylorglo.networks.factory import build
from taylorglo.networks.weights import Origin, weights_of
from taylorglo.services import layout


def network_of(digits: Dataset, model: str) -> torch.nn.Module:
    shape, classes = digits.image_shape, digits.num_classes
    return build(model, shape, classes, mean=digits.mean, std=digits.std, seed=3).eval()


def champion_in(folder: Path, digits: Dataset, model: str = "mlp") -> Path:
    """Write the weights of a network as a sweep keeps them; return the champion's folder."""
    folder.mkdir(exist_ok=True)
    origin = Origin(model, digits.image_shape, digits.num_classes)
    (folder / layout.NETWORK).write_bytes(weights_of(network_of(digits, model), origin))
    return folder


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_network_of_a_champion_computes_the_same(
    digits: Dataset, tmp_path: Path, model: str
) -> None:
    folder = champion_in(tmp_path / "champion", digits, model)
    images = scaled(digits.train.images[:20])
    with torch.no_grad():
        expected = network_of(digits, model)(images)
        for source in (folder, folder / layout.NETWORK, (folder / layout.NETWORK).as_uri()):
            network = taylorglo.load_network(source)
            assert not network.training
            assert torch.equal(network(images), expected)


def test_a_network_of_somebody_s_own_is_loaded_by_its_name_alone(
    digits: Dataset, tmp_path: Path
) -> None:
    folder = champion_in(tmp_path / "champion", digits)
    state = load((folder / layout.NETWORK).read_bytes())
    network = network_of(digits, "mlp")
    network.load_state_dict(state)
    origin = Origin("os:system", digits.image_shape, digits.num_classes)
    (folder / layout.NETWORK).write_bytes(weights_of(network, origin))
    with pytest.raises(InputError, match="if you trust it, give its name, 'os:system', with m"):
        taylorglo.load_network(folder)
    assert taylorglo.load_network(folder, "mlp").state_dict().keys() == state.keys()


def test_what_is_no_network_of_a_sweep_is_refused_in_one_line(
    digits: Dataset, tmp_path: Path
) -> None:
    folder = champion_in(tmp_path / "champion", digits)
    whole = (folder / layout.NETWORK).read_bytes()
    cases = {
        "no such file or folder": lambda: taylorglo.load_network(tmp_path / "nowhere"),
        "model.safetensors: cannot be read: No such": lambda: taylorglo.load_network(tmp_path),
        "do not fit model 'cnn'": lambda: taylorglo.load_network(folder, "cnn"),
        "unknown; there are mlp": lambda: taylorglo.load_network(folder, "nonsense"),
        "do not name their network": lambda: taylorglo.load_network(tmp_path / "nameless"),
        "do not say what samples": lambda: taylorglo.load_network(tmp_path / "nameless", "mlp"),
        "loss.json: is a saved loss, and no network: taylorglo.load_loss reads": lambda: (
            taylorglo.load_network(tmp_path / "loss.json")
        ),
        "is a network or data, and no saved loss: taylorglo.load_network reads": lambda: (
            taylorglo.load_loss(folder / layout.NETWORK)
        ),
        "other.json: are not weights in safetensors": lambda: taylorglo.load_network(
            tmp_path / "other.json"
        ),
        "in safetensors: ": lambda: taylorglo.load_network(tmp_path / "cut"),
    }
    (tmp_path / "nameless").write_bytes(save(load(whole)))
    taylorglo.load_loss("zoo:digits").save(tmp_path / "loss.json")
    (tmp_path / "other.json").write_text('{"theta": [1, 2]}')
    (tmp_path / "cut").write_bytes(whole[:100])
    for message, call in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_loss_is_loaded_from_the_folder_that_a_network_is_loaded_from(
    digits: Dataset, tmp_path: Path
) -> None:
    folder = champion_in(tmp_path / "champion", digits)
    loss = taylorglo.load_loss("zoo:digits")
    loss.save(folder / layout.LOSS)
    assert torch.equal(taylorglo.load_loss(folder).theta, loss.theta)
    with pytest.raises(InputError, match=r"loss\.json: is not a saved loss: No such file"):
        taylorglo.load_loss(tmp_path)
