"""``taylorglo inspect``: what a loss does in training, from its coefficients alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taylorglo.errors import InputError, quoted
from taylorglo_pipelines.commands.options import FILE

if TYPE_CHECKING:
    from taylorglo.loss.dynamics import Dynamics
    from taylorglo.loss.filters import Verdict

_CLASSIC = ("cross-entropy", "squared-error", "baikal")
# The thetas to draw for a classic loss. Cross-entropy is in every plot. Squared error, -(t-h)^2, is
# a Taylor loss up to a term without h.
_DRAWN: Mapping[str, Mapping[str, Sequence[float]]] = {
    "cross-entropy": {},
    "squared-error": {"squared error": [0, 0, 0, -1, 0, 2, 0, 0]},
}


# A theta may begin with a minus, which click would take for an option.
@click.command("inspect", context_settings={"ignore_unknown_options": True})
@click.argument("loss", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--classes",
    type=int,
    metavar="N",
    show_default="that of the saved loss, else 10",
    help="Number of classes.",
)
@click.option(
    "--plot",
    type=FILE,
    metavar="FILE",
    help="Draw the shape and the pull of the loss to a .svg, .png or .pdf file.",
)
def command(loss: Sequence[str], classes: int | None, plot: Path | None) -> None:
    """Print what a loss does in training, from its coefficients.

    LOSS is a theta (numbers with spaces or commas between them), a saved loss (.json), or
    cross-entropy, squared-error or baikal.
    """
    click.echo(inspect(_words(loss), classes, plot))


def _words(arguments: Sequence[str]) -> list[str]:
    """Return the numbers of a theta, or the name of a loss.

    Raises:
        NoSuchOption: an argument is an option that the command does not have.
    """
    # The name of a file may have spaces and commas in it.
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        return [*arguments]
    words = []
    for argument in arguments:
        parts = argument.replace(",", " ").split()
        if argument.startswith("-") and not _is_number(parts[0]):
            raise click.NoSuchOption(argument.partition("=")[0])
        words += parts
    return words


def inspect(words: Sequence[str], classes: int | None, plot: Path | None) -> str:
    """Describe a loss in plain text, and draw it if a file is named.

    Args:
        words: the numbers of a theta, or one word: the name of a classic loss, or the path of a
            saved loss.
        classes: number of classes; None: that of the saved loss, or 10.
        plot: .svg, .png or .pdf file.

    Raises:
        InputError: there is no such loss, the theta is not valid, or there is no plot of the loss.
    """
    if plot is not None and plot.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"{plot}: a plot should be a .svg, .png or .pdf file")
    if len(words) == 1 and words[0] in _CLASSIC:
        name = words[0]
        num_classes = 10 if classes is None else classes
        lines = _classic_lines(name, num_classes)
        if plot is not None and name not in _DRAWN:
            drawn = " and ".join(_DRAWN)
            raise InputError(f"{name} is not drawn; there are plots of thetas, {drawn}")
        thetas = _DRAWN.get(name, {})
    else:
        theta, saved_classes = _theta(words)
        num_classes = classes if classes is not None else saved_classes or 10
        lines = _theta_lines(theta, num_classes)
        thetas = {"Taylor loss": theta}
    if plot is not None:
        lines += _draw(thetas, num_classes, plot)
    return "\n".join(lines)


def _theta(words: Sequence[str]) -> tuple[list[float], int | None]:
    """Return the theta of some words, and the number of classes if they name a saved loss."""
    from taylorglo.loss.polynomial import checked_theta

    if len(words) == 1 and not _is_number(words[0]):
        if not words[0].endswith(".json"):
            raise InputError(
                f"unknown loss {quoted(words[0])}; there are {', '.join(_CLASSIC)}, saved losses "
                "(.json) and thetas (numbers)"
            )
        # PyTorch takes seconds to import, and only a saved loss needs it.
        from taylorglo.loss.functions import TaylorLoss

        loss = TaylorLoss.load(words[0])
        return loss.theta.tolist(), loss.classes
    for index, word in enumerate(words):
        if not _is_number(word):
            raise InputError(f"theta[{index}] is {quoted(word)}, which is not a number")
    return checked_theta([float(word) for word in words])[0], None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _classic_lines(name: str, num_classes: int) -> list[str]:
    from taylorglo.loss.dynamics import classic
    from taylorglo.loss.filters import by_collapse, by_drive

    dynamics = classic(name, num_classes)
    drive, rate, _ = dynamics
    verdicts = {"learnable": by_drive(drive), "stable": by_collapse(drive, rate, num_classes)}
    head = f"{name}, {num_classes} classes"
    return [head, "", *_dynamics_lines(dynamics, num_classes), "", *_verdict_lines(verdicts)]


def _theta_lines(theta: list[float], num_classes: int) -> list[str]:
    from taylorglo.loss.dynamics import coefficients, dynamics
    from taylorglo.loss.filters import FILTERS
    from taylorglo.loss.polynomial import checked_theta

    order = checked_theta(theta)[1]
    lines = [f"Taylor loss of order {order}, {num_classes} classes", ""]
    lines += [f"  theta        {', '.join(f'{value:.6g}' for value in theta)}"]
    if order <= 3:
        table = coefficients(theta)
        lines += [f"  {name:<12} {value: .6g}" for name, value in table._asdict().items()]
        lines += [f"  {'cy + cyy':<12} {table.cy + table.cyy: .6g}"]
    lines += ["", *_dynamics_lines(dynamics(theta, num_classes), num_classes), ""]
    filters = {name: judge for name, judge in FILTERS.items() if name != "none"}
    verdicts = {name: judge(theta, num_classes) for name, judge in filters.items()}
    return lines + _verdict_lines(verdicts)


def _verdict_lines(verdicts: Mapping[str, "Verdict"]) -> list[str]:
    return [f"  {name:<12} {verdict.reason}" for name, verdict in verdicts.items()]


def _dynamics_lines(dynamics: "Dynamics", num_classes: int) -> list[str]:
    drive, rate, rest = dynamics
    raises = "raises" if drive > 0 else "does not raise"
    drift = "is damped" if rate <= 0 else "grows"
    confidence = " none" if rest is None else f"{rest: .6g}"
    pull = "pull to the end" if rest is None else "pull below, push back above"
    chance = f"chance is {1 / num_classes:.4g}"
    return [
        f"  {'A':<12} {drive: .6g}   learning drive: the first step {raises} the target's logit",
        f"  {'B':<12} {rate: .6g}   collapse rate: drift to one class {drift}",
        f"  {'p*':<12} {confidence}   equilibrium confidence ({chance}): {pull}",
    ]


def _draw(thetas: Mapping[str, Sequence[float]], num_classes: int, path: Path) -> list[str]:
    """Draw losses to a file, and return the lines that name it."""
    from taylorglo.report.figures import loss_figure

    try:
        loss_figure(thetas, num_classes).savefig(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return ["", f"plot: {path}"]
