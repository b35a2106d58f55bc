"""Attacks on trained networks: one by one, or those of all losses and seeds side by side."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from taylorglo import attacks
from taylorglo.attacks import Strength, corrupted_accuracy, withstood
from taylorglo.attacks.honesty import suspicions
from taylorglo.attacks.radii import usual_radii
from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset
from taylorglo.data.splits import digest_of
from taylorglo.evaluation.attacked_images import examples_of, found_for
from taylorglo.evaluation.comparison import restore_network
from taylorglo.networks.factory import revision
from taylorglo.results import Attacked
from taylorglo.settings import AttackSettings, SweepSettings
from taylorglo.training import server
from taylorglo.training.devices import computing
from taylorglo.training.engine import read_resident
from taylorglo.training.machine import cpus, free_host_memory

_Pair = tuple[bytes, bytes]  # the weights of a network and of its twin, which may be empty

_WORKER_MEMORY = 2**30  # bytes that a worker takes, about half of them for PyTorch


def radii(settings: AttackSettings, dataset: Dataset) -> list[float]:
    """Return the epsilons of the settings, or those that are usual with the data set."""
    usual = usual_radii(dataset.name, settings.norm, pixels=dataset.pixels)
    return settings.epsilons or usual


def attack_network(
    network: nn.Module,
    dataset: Dataset,
    settings: AttackSettings,
    seed: int,
    *,
    twin: nn.Module | None = None,
) -> Attacked:
    """Attack a network on test images that are drawn with the seed; check the attacks, too.

    It is also measured on the same images with corruptions that nobody aims at it.

    Args:
        network: from images or features to logits; it is moved to the device of the data.
        dataset: with its test split.
        settings: of the attacks; at most ``settings.images`` images are attacked.
        seed: decides the images and the random starts.
        twin: a network that cross-entropy trained on the same data, which checks the attacks.
    """
    assert dataset.test is not None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(dataset.test), generator=generator)[: settings.images]
    drawn = drawn.to(dataset.test.labels.device)
    # In float32, because cuDNN's own default for convolutions is TF32.
    with computing("float32", drawn.device):
        network = network.to(drawn.device)
        images, labels = scaled(dataset.test.images[drawn]), dataset.test.labels[drawn]
        epsilons = radii(settings, dataset)
        result = withstood(
            network,
            images,
            labels,
            epsilons,
            strength=Strength(
                settings.suite, settings.norm, settings.pgd_steps, settings.pgd_restarts, seed=seed
            ),
            unit=dataset.unit,
        )
        doubts = suspicions(
            network,
            images,
            labels,
            max(epsilons),
            norm=settings.norm,
            seed=seed,
            unit=dataset.unit,
            twin=twin if twin is None else twin.to(drawn.device),
        )
        corrupted = corrupted_accuracy(network, images, labels, seed=seed, unit=dataset.unit)
        found = found_for(result, drawn, labels, epsilons)
        pictured = dataset.pixels and images.ndim == 4
        examples = examples_of(network, images, result, found) if pictured else []
    return Attacked(
        accuracies=result.accuracies,
        suspicions=doubts,
        images=found,
        corruptions=corrupted,
        examples=examples,
    )


def attack_keys(
    networks: Sequence[bytes],
    dataset: Dataset,
    settings: SweepSettings,
    *,
    twins: Sequence[bytes] = (),
) -> list[str]:
    """Return for each network a digest of all that decides what the attacks leave of it.

    Args:
        networks: their weights, as safetensors.
        dataset: with its test split.
        settings: of the sweep.
        twins: as of :func:`attack_all`.

    Raises:
        InputError: there is no such network.
    """
    decisive = {
        "model": [settings.model.name, revision(settings.model.name)],
        "test": digest_of(test=dataset.test),
        "normalisation": [dataset.mean, dataset.std, dataset.pixels],
        "attack": settings.attack.model_dump(exclude={"seeds", "epsilons"}),
        "epsilons": radii(settings.attack, dataset),
        "seed": settings.seed,
        "software": [_revision_of_attacks(), version("torch")],
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    keys = []
    for weights, twin in _pairs(networks, twins):
        own = digest.copy()
        own.update(weights)
        own.update(hashlib.sha256(twin).digest())
        keys.append(own.hexdigest())
    return keys


def _revision_of_attacks() -> str:
    """Return a checksum of the program of the attacks: another one may leave other accuracies."""
    own = Path(__file__)
    files = [own, own.with_name("attacked_images.py")]
    files += sorted(Path(attacks.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def attack_all(
    networks: Sequence[bytes],
    path: str,
    dataset: Dataset,
    settings: SweepSettings,
    *,
    twins: Sequence[bytes] = (),
) -> Iterator[Attacked]:
    """Attack trained networks, several at a time on a CPU; yield what is left of each, in order.

    Args:
        networks: their weights, as safetensors.
        path: of the prepared data set with its test split.
        dataset: the same, on the device to compute on.
        settings: of the sweep.
        twins: for each network the weights of one that cross-entropy trained from the same seed,
            which checks the attacks; empty if there is none.

    Raises:
        InputError: weights do not fit the network of the settings.
    """
    pairs = _pairs(networks, twins)
    workers = _workers(len(networks), dataset, settings)
    finished = 0
    if workers > 1:
        try:
            for attacked in _side_by_side(pairs, path, settings, workers):
                finished += 1
                yield attacked
        except BrokenProcessPool:
            # The system may have ended a worker because memory was short. Then one at a time.
            pass
    for pair in islice(pairs, finished, None):
        yield _attack(pair, dataset, settings)


def _pairs(networks: Sequence[bytes], twins: Sequence[bytes]) -> list[_Pair]:
    """Return each network with its twin."""
    return list(zip(networks, twins or [b""] * len(networks), strict=True))


def _workers(networks: int, dataset: Dataset, settings: SweepSettings) -> int:
    """Return how many processes attack networks; on a GPU the only one is this."""
    assert dataset.test is not None
    if dataset.test.images.device.type != "cpu":
        return 1
    wanted = settings.training.workers or cpus()
    return max(1, min(networks, wanted, free_host_memory() // _WORKER_MEMORY))


def _side_by_side(
    pairs: Sequence[_Pair], path: str, settings: SweepSettings, workers: int
) -> Iterator[Attacked]:
    context = server.context()
    # The workers live as long as this end of the pipe is open.
    lifeline, held = context.Pipe(duplex=False)
    arguments = (settings, path, max(1, cpus() // workers), lifeline)
    with held, ProcessPoolExecutor(workers, context, _begin_worker, arguments) as executor:
        yield from executor.map(_attack_in_worker, pairs)


_state: tuple[Dataset, SweepSettings] | None = None  # in a worker process


def _begin_worker(settings: SweepSettings, path: str, threads: int, lifeline: Connection) -> None:
    """Prepare a worker process, which ends with the process that began it."""
    global _state
    server.end_with(lifeline)
    torch.set_num_threads(threads)
    _state = read_resident(path, settings.training), settings


def _attack_in_worker(pair: _Pair) -> Attacked:
    assert _state is not None
    return _attack(pair, *_state)


def _attack(pair: _Pair, dataset: Dataset, settings: SweepSettings) -> Attacked:
    network, twin = (
        restore_network(weights, settings.model.name, dataset) if weights else None
        for weights in pair
    )
    assert network is not None
    return attack_network(network, dataset, settings.attack, settings.seed, twin=twin)
