"""Are the losses of the zoo of use on other data and networks (`make study-transfer`)?

Each loss of the zoo is trained on other data, with other noise and with another network than those
that it was found on, beside the losses that people use, and beside the best baseline of the sweep
that found it, if its file names it. The learning rate of each loss, and alpha of label smoothing,
are tuned on the validation images; then networks from fresh seeds are tested.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from accuracy import ALPHAS, fashion
from studies import Cell, Row, Study, command

from taylorglo.data import dataset as datasets
from taylorglo.evaluation.comparison import (
    best_contender,
    compare,
    train_finalists,
    tune_baselines,
)
from taylorglo.results import FullTraining
from taylorglo.services.memo import FullTrainings
from taylorglo.services.registry import ZOO, load_loss, zoo
from taylorglo.services.storage import open_store
from taylorglo.settings import SweepSettings
from taylorglo.stats import holm, welch
from taylorglo.training.engine import Engine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 100  # of splits and noise; no sweep of the zoo had it
FOLDS = 5
NOISES = (0.0, 0.2, 0.4, 0.6)
NOISES_BY_DEFAULT = (0.0, 0.4)
# That each loss of the zoo is tested against.
OPPONENTS = ("cross-entropy", "label-smoothing", "symmetric-cross-entropy")
DATA: Mapping[str, Mapping[str, Any]] = {
    "digits": {"name": "digits"},
    "Fashion 1 000": fashion(1_000),
    "Fashion 6 000": fashion(6_000),
}
# With the network cnn at the default size: data and noise.
CNN = (("digits", 0.4),)
# Of 1 500 steps on one core, for the estimate of the time.
SECONDS = {"mlp": 0.7, "cnn": 13.0}
SECONDS_ON_DIGITS = {"mlp": 0.5, "cnn": 3.0}


@dataclass(frozen=True)
class Effort:
    """How much is computed for a loss.

    Attributes:
        steps: of a training.
        rates: that it is tuned over.
        alphas: that label smoothing is tuned over, too.
        attempts: number of trainings with each rate.
        seeds: number of networks that are tested.
    """

    steps: int = 1500
    rates: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    alphas: Sequence[float] = ALPHAS
    attempts: int = 2
    seeds: int = 10

    def seconds(self, cell: Cell) -> float:
        """Return about how long a cell takes on one core."""
        grid = len(self.rates) * (len(self.alphas) if cell["loss"] == "label-smoothing" else 1)
        by_model = SECONDS_ON_DIGITS if cell["data"] == "digits" else SECONDS
        each = by_model[str(cell["model"])] * self.steps / 1500
        return each * (grid * self.attempts + self.seeds)


def losses() -> dict[str, str]:
    """Return the losses to train: for each name its theta as text, or nothing if it is a classic.

    The best baselines of the sweeps that found the losses of the zoo are among them.
    """
    found = {name: load_loss(f"{ZOO}{name}") for name in zoo()}
    best = [loss.provenance.get("best_baseline") for loss in found.values()]
    classics = dict.fromkeys([*OPPONENTS, *filter(None, best)], "")
    thetas = {
        f"{ZOO}{name}": " ".join(map(repr, loss.theta.tolist())) for name, loss in found.items()
    }
    return classics | thetas


def cells_of(full: bool, known: Mapping[str, str]) -> list[Cell]:
    """Return the cells, those of the fast network first.

    Args:
        full: whether to have all rates of noise, and all data with both networks.
        known: the losses, as :func:`losses` returns them.
    """
    noises = NOISES if full else NOISES_BY_DEFAULT
    places = [("mlp", data, noise) for data in DATA for noise in noises]
    of_cnn = [(data, noise) for data in DATA for noise in NOISES] if full else CNN
    places += [("cnn", data, noise) for data, noise in of_cnn]
    return [
        {"data": data, "noise": noise, "model": model, "loss": loss, "theta": theta}
        for model, data, noise in places
        for loss, theta in known.items()
    ]


def transferred(effort: Effort, cell: Cell) -> list[Row]:
    """Tune a loss and test it; return a row for each tested network."""
    loss, theta = str(cell["loss"]), [float(word) for word in str(cell["theta"]).split()]
    settings = SweepSettings.model_validate(
        {
            "name": "transfer",
            "seed": SEED,
            "data": {**DATA[str(cell["data"])], "label_noise": cell["noise"]},
            "model": {"name": cell["model"]},
            "training": {
                "steps": effort.steps,
                "device": "cpu",
                "precision": "float32",
                "workers": 1,
            },
            "evaluation": {"steps": effort.steps, "folds": FOLDS, "give_up_step": 0},
            "baselines": {
                "losses": list(OPPONENTS[:1]) if theta else [loss],
                "learning_rates": list(effort.rates),
                "label_smoothing": list(effort.alphas),
                "attempts": effort.attempts,
            },
            "champion": {"seeds": effort.seeds},
            "attack": {"seeds": 1},
        }
    )
    with TemporaryDirectory() as folder:
        path, dataset = Path(folder) / "data.safetensors", datasets.load(settings.data, SEED)
        memo = FullTrainings(open_store(folder), settings.name)
        datasets.save(datasets.without_test(dataset), path)
        best = best_contender(tuned(theta, settings, path, memo))
        datasets.save(dataset, path)
        with Engine.open(settings, path) as engine:
            tests = compare(best, engine, memo)
    return [
        {
            "seed": number,
            "rate": best.learning_rate,
            "alpha": best.label_smoothing,
            "accuracy": full.test_accuracy,
        }
        for number, full in enumerate(tests)
    ]


def tuned(
    theta: Sequence[float], settings: SweepSettings, path: Path, memo: FullTrainings
) -> list[FullTraining]:
    """Train a loss with every rate, from the same seeds and on the same folds for all losses.

    Args:
        theta: of a found loss; if it is empty, the baseline of the settings is trained.
        settings: with the rates.
        path: of the data without the test split.
        memo: of finished trainings.
    """
    if not theta:
        with Engine.open(settings, path) as engine:
            return tune_baselines(engine, memo)
    trainings = []
    for rate in settings.baselines.learning_rates:
        training = settings.training.model_copy(update={"learning_rate": rate})
        with Engine.open(settings.model_copy(update={"training": training}), path) as engine:
            trainings += train_finalists([theta], engine, memo)
    return trainings


Place = tuple[str, float, str]  # data, noise, network


def by_place(rows: Sequence[Row]) -> dict[Place, dict[str, list[Row]]]:
    """Group rows by data, noise and network, then by loss."""
    groups: dict[Place, dict[str, list[Row]]] = {}
    for row in rows:
        place = str(row["data"]), float(row["noise"]), str(row["model"])
        groups.setdefault(place, {}).setdefault(str(row["loss"]), []).append(row)
    return groups


def accuracies(rows: Sequence[Row]) -> list[float]:
    """Return the accuracies of a loss in %."""
    return [100 * float(row["accuracy"]) for row in rows]


def line_of(place: Place, loss: str, known: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return the line of a loss: its accuracy, and what is between it and each opponent."""
    data, noise, model = place
    own = accuracies(known[loss])
    line = [
        data,
        f"{100 * noise:.0f} %",
        model,
        loss,
        f"{float(known[loss][0]['rate']):g}",
        f"{fmean(own):.2f} ± {stdev(own):.2f}",
    ]
    if loss in OPPONENTS:
        return [*line, *("" for _ in OPPONENTS)]
    others = [accuracies(known[opponent]) for opponent in OPPONENTS]
    adjusted = holm([welch(own, other) for other in others])
    return [
        *line,
        *(
            f"{fmean(own) - fmean(other):+.2f} (p = {p:.2g})"
            for other, p in zip(others, adjusted, strict=True)
        ),
    ]


def drawn(groups: Mapping[Place, Mapping[str, Sequence[Row]]]) -> "Figure":
    """Return a figure: for each network and data set, the gain over cross-entropy by noise."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((data, model) for data, _, model in groups))
    figure = Figure(figsize=(7.4, 2.6 * -(-len(panels) // 2)), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(-(-len(panels) // 2), 2, number + 1)
        points: dict[str, list[tuple[float, float]]] = {}
        for (data, noise, model), known in groups.items():
            if (data, model) == panel:
                base = fmean(accuracies(known["cross-entropy"]))
                for loss, rows in known.items():
                    gain = fmean(accuracies(rows)) - base
                    points.setdefault(loss, []).append((100 * noise, gain))
        for loss, values in points.items():
            axes.plot(*zip(*values, strict=True), marker="o", markersize=3, label=loss)
        axes.set_title(", ".join(panel), fontsize=8)
        axes.set_xlabel("wrong labels (%)", fontsize=7)
        axes.set_ylabel("gain over cross-entropy (points)", fontsize=7)
        axes.legend(fontsize=6)
    return figure


def report(study: Study, rows: Sequence[Row]) -> None:
    """Write the table and the figure."""
    groups = by_place(rows)
    lines = [line_of(place, loss, known) for place, known in groups.items() for loss in known]
    number = min((len(own) for known in groups.values() for own in known.values()), default=0)
    study.table(
        "transfer",
        ["data", "wrong labels", "network", "loss", "rate", "accuracy", *OPPONENTS],
        lines,
        f"Test accuracy in %: mean ± standard deviation of n = {number} networks, with the tuned "
        "rate. Under the name of an opponent: the difference to it in points, with p of Welch's "
        "two-sided test after Holm's correction over the opponents",
    )
    study.figure("transfer", drawn(groups))


def main(study: Study, full: bool) -> None:
    """Do the study."""
    effort = Effort()
    cells = cells_of(full, losses())
    minutes = sum(map(effort.seconds, cells)) / 60 / 2
    print(f"{len(cells)} losses on data, about {minutes:.0f} minutes on 2 quiet cores")
    report(study, study.rows(cells, partial(transferred, effort)))


if __name__ == "__main__":
    command("transfer", 1, main)
