"""A whole sweep in MLflow, logged by the code of the tasks from results that nobody trained."""

import math
from pathlib import Path

import pytest

from taylorglo.loss.functions import TaylorLoss
from taylorglo.networks.factory import build
from taylorglo.networks.weights import Origin, weights_of
from taylorglo.report.record import SweepRecord, sweep_record
from taylorglo.results import (
    AttackedImage,
    Candidate,
    Champion,
    Comparison,
    Contender,
    CorruptionRow,
    Evaluation,
    Example,
    FullTraining,
    Guessing,
    Robustness,
    RobustnessRow,
    Training,
)
from taylorglo.services import layout
from taylorglo.services.models import NETWORK, save_network
from taylorglo.services.registry import load_network
from taylorglo.services.tracking import Tracker
from taylorglo.settings import SweepSettings
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.origin import origin_tags
from taylorglo.tasks.outcome import Outcome
from taylorglo.variables import STORE_URI, TRACKING_URI

# A gray picture of two by two pixels, as PNG in Base64.
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNoaGBoaAAABgYCASzBUNcAAAAASUVORK5C"
    "YII="
)
SHAPE = (1, 8, 8)
CLASSES = 10
THETA = [0.1, 0.0, 0.5, -1.25, 0.0, 2.0, 0.25, 0.0]
BEGUN = 1_700_000_000.0  # seconds since the epoch
GENERATIONS = 3
POPSIZE = 4
ATTACKS = ("fgsm", "pgd-ce", "worst")
EPSILONS = (0.0, 0.02, 0.1)
ACCURACIES = {"champion": 0.97, "cross-entropy": 0.95, "squared error": 0.94}


def candidates() -> list[Candidate]:
    """Return the candidates of all generations, each of another fitness."""
    return [_candidate(trial) for trial in range(GENERATIONS * POPSIZE)]


def _candidate(trial: int) -> Candidate:
    fitness = 0.9 + 0.05 * math.sin(trial)
    result = Evaluation(
        status="ok",
        curve=[(100, fitness - 0.1, 0.8), (200, fitness, 0.4)],
        started=BEGUN + trial,
        ended=BEGUN + trial + 1,
        seconds=1.0,
        fitness=fitness,
        accuracies=[fitness],
        robust_accuracies=[],
    )
    return Candidate(
        trial=trial,
        generation=1 + trial // POPSIZE,
        theta=[*THETA[:-1], trial / 10],
        result=result,
        fitness=fitness,
        finished=True,
    )


def comparison() -> Comparison:
    """Return the trainings in full of a champion that is ahead of two baselines."""
    trainings = [
        _training(name, accuracy + 0.002 * seed, seed)
        for name, accuracy in ACCURACIES.items()
        for seed in range(4)
    ]
    champion = Champion(theta=THETA, order=3, fitness=0.96, generation=GENERATIONS, trial=9)
    return Comparison(
        champion=champion, finalists=[], trainings=trainings, standing=[], complete=True
    )


def _training(name: str, accuracy: float, seed: int) -> FullTraining:
    training = Training(
        status="ok",
        curve=[(500, accuracy - 0.1, 1.0), (1000, accuracy, 0.5)],
        started=BEGUN + 20,
        ended=BEGUN + 21,
        seconds=1.0,
        accuracy=accuracy,
        test_accuracy=accuracy,
    )
    theta = THETA if name == "champion" else []
    contender = Contender(name=name, loss=name, learning_rate=0.1, theta=theta)
    return FullTraining(contender=contender, seed=seed, key="", training=training)


def robustness() -> Robustness:
    """Return accuracies under each attack that fall with epsilon."""
    rows = [
        RobustnessRow(loss=loss, attack=attack, epsilon=epsilon, accuracies=[0.95 - 5 * epsilon])
        for attack in ATTACKS
        for loss in ACCURACIES
        for epsilon in EPSILONS
    ]
    corruptions = [
        CorruptionRow(
            loss=loss, corruption="blur", strength=strength, accuracies=[1 - strength / 4]
        )
        for loss in ACCURACIES
        for strength in (1, 2, 3)
    ]
    found = AttackedImage(image=3, label=1, predicted=1, perturbation=None, attack="")
    example = Example(found=found, taken_for=1, clean=PICTURE, change=PICTURE, attacked=PICTURE)
    return Robustness(
        rows=rows,
        started=BEGUN + 22,
        ended=BEGUN + 23,
        corruptions=corruptions,
        examples={"champion": [example]},
        images="store/digits/attacked-images.parquet",
    )


class LoggedSweep:
    """A sweep whose tasks log to a tracking server.

    Attributes:
        sweep: the context of its tasks.
        folder: for the files of the champion.
    """

    def __init__(self, uri: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        """Open the parent run on the server of a URI, as the task ``open`` does."""
        patch.setenv(TRACKING_URI, uri)
        patch.setenv(STORE_URI, str(folder / "store"))
        self.folder = folder
        settings = SweepSettings(name="digits")
        tracker = Tracker.open(uri, "digits", run_name="digits first")
        tracker.log_settings({**settings.flat(), "study": "digits"})
        tracker.log_tags(origin_tags(settings, "digits", "digits"))
        self.sweep = Sweep(
            settings=settings,
            study="digits",
            generations=GENERATIONS,
            first=1,
            last=GENERATIONS,
            shards=1,
            num_classes=CLASSES,
            fingerprint="0" * 64,
            provenance={"source": "digits"},
            guessing=Guessing(accuracy=0.1, images=450),
            run_id=tracker.run_id,
            started=BEGUN,
        )

    def log_candidates(self) -> None:
        """Log all candidates, and the curves of the search."""
        for number in range(1, GENERATIONS + 1):
            own = [one for one in candidates() if one.generation == number]
            coefficients = {one.trial: {"A": 0.5, "B": -0.25} for one in own}
            self.sweep.tracker.log_candidates(number, own, coefficients)
            best = max(one.fitness or 0.0 for one in own)
            self.sweep.tracker.log_curves({"generation/best": [(number, best)]}, BEGUN + number)

    def log_outcome(self) -> str:
        """Log the champion's network and the outcome; return the sentence of the registry."""
        files = self._champion()
        network = load_network(files[layout.NETWORK])
        folder = self.folder / "exported"
        if not folder.exists():
            save_network(network, files[layout.NETWORK], folder)
        self.sweep.tracker.models.log(NETWORK, folder, digest="of the network", tags={})
        page = self.folder / "report.html"
        page.write_text("<h1>report</h1>")
        self.sweep.store.write(layout.attacked_images("digits"), b"PAR1")
        outcome = Outcome(self.record(), comparison(), robustness().ended, files)
        outcome.log(self.sweep, page)
        sentence = outcome.register(self.sweep)
        self.sweep.tracker.finish()
        return sentence

    def record(self) -> SweepRecord:
        """Return the record of the sweep."""
        return sweep_record(
            self.sweep.settings,
            candidates=candidates(),
            tuning=[],
            comparison=comparison(),
            robustness=robustness(),
            generations=GENERATIONS,
            num_classes=CLASSES,
            provenance=self.sweep.provenance,
            guessing=self.sweep.guessing,
            software={},
            started=BEGUN,
            standing=None,
        )

    def _champion(self) -> dict[str, Path]:
        """Write the files of the champion, and return them by their names."""
        loss = TaylorLoss(THETA, 3, classes=CLASSES, provenance={"learning_rate": 0.1})
        network = build("mlp", SHAPE, CLASSES, mean=(0.5,), std=(0.25,), seed=0)
        paths = {name: self.folder / name for name in (layout.LOSS, layout.PROGRAM, layout.NETWORK)}
        loss.save(paths[layout.LOSS])
        paths[layout.PROGRAM].write_text(loss.source())
        weights = weights_of(network, Origin("mlp", SHAPE, CLASSES))
        paths[layout.NETWORK].write_bytes(weights)
        return paths
