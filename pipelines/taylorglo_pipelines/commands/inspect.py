"""``taylorglo inspect``: what a loss does in training, from its coefficients alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taylorglo.errors import InputError, meant, quoted
from taylorglo_pipelines.commands.options import FILE, echo_json, json_option

if TYPE_CHECKING:
    from taylorglo.loss.dynamics import Dynamics
    from taylorglo.loss.filters import Verdict

# The thetas to draw for a classic loss. Cross-entropy is in every plot. Squared error, -(t-h)^2, is
# a Taylor loss up to a term without h, and so is the absolute error of a hard target, (2t - 1) h.
_DRAWN: Mapping[str, Mapping[str, Sequence[float]]] = {
    "cross-entropy": {},
    "squared-error": {"squared error": [0, 0, 0, -1, 0, 2, 0, 0]},
    "mean-absolute-error": {"mean absolute error": [0, 0, -1, 0, 0, 2, 0, 0]},
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
@json_option
def command(loss: Sequence[str], classes: int | None, plot: Path | None, *, as_json: bool) -> None:
    """Print what a loss does in training, from its coefficients.

    LOSS is a theta (numbers with spaces or commas between them), a saved loss (.json), a loss that
    comes with the package (zoo:NAME), or cross-entropy, squared-error, baikal,
    generalised-cross-entropy, symmetric-cross-entropy or mean-absolute-error.
    """
    words = _words(loss)
    text = inspect(words, classes, plot)
    if as_json:
        echo_json(_document(words, classes, plot))
    else:
        click.echo(text)


def _document(words: Sequence[str], classes: int | None, plot: Path | None) -> dict[str, Any]:
    """Return what :func:`inspect` says of a loss as JSON values."""
    from taylorglo.loss.dynamics import CLASSIC, classic, coefficients, dynamics
    from taylorglo.loss.filters import FILTERS, by_collapse, by_drive
    from taylorglo.loss.polynomial import checked_theta

    shown: dict[str, Any]
    if len(words) == 1 and words[0] in CLASSIC:
        num_classes = 10 if classes is None else classes
        numbers = classic(words[0], num_classes)
        drive, rate, _ = numbers
        verdicts = {"learnable": by_drive(drive), "stable": by_collapse(drive, rate, num_classes)}
        shown = {"loss": words[0]}
        sentences = _classic_sentences(words[0], num_classes)
    else:
        theta, saved = _theta(words)
        num_classes = classes if classes is not None else saved or 10
        numbers = dynamics(theta, num_classes)
        order = checked_theta(theta)[1]
        filters = {name: judge for name, judge in FILTERS.items() if name != "none"}
        verdicts = {name: judge(theta, num_classes) for name, judge in filters.items()}
        shown = {"theta": theta, "order": order}
        if order <= 3:
            shown["coefficients"] = coefficients(theta)._asdict()
        sentences = _theta_sentences(theta, num_classes)
    return {
        **shown,
        "classes": num_classes,
        **numbers._asdict(),
        "verdicts": {
            name: {"accepted": verdict.accepted, "reason": verdict.reason}
            for name, verdict in verdicts.items()
        },
        "sentences": sentences,
        "plot": None if plot is None else str(plot),
    }


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
        words: the numbers of a theta, or one word: the name of a classic loss or of a loss of the
            zoo, or the path of a saved loss.
        classes: number of classes; None: that of the saved loss, or 10.
        plot: .svg, .png or .pdf file.

    Raises:
        InputError: there is no such loss, the theta is not valid, or there is no plot of the loss.
    """
    from taylorglo.loss.dynamics import CLASSIC

    if plot is not None and plot.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"{plot}: a plot should be a .svg, .png or .pdf file")
    if len(words) == 1 and words[0] in CLASSIC:
        name = words[0]
        num_classes = 10 if classes is None else classes
        lines = _classic_lines(name, num_classes)
        if plot is not None and name not in _DRAWN:
            drawn = ", ".join(["thetas", *_DRAWN])
            raise InputError(f"{name} is not drawn; there are plots of {drawn}")
        lines += ["", *_classic_sentences(name, num_classes)]
        thetas = _DRAWN.get(name, {})
    else:
        theta, saved_classes = _theta(words)
        num_classes = classes if classes is not None else saved_classes or 10
        lines = _theta_lines(theta, num_classes)
        lines += ["", *_theta_sentences(theta, num_classes)]
        thetas = {"Taylor loss": theta}
    if plot is not None:
        lines += _draw(thetas, num_classes, plot)
    return "\n".join(lines)


def _theta(words: Sequence[str]) -> tuple[list[float], int | None]:
    """Return the theta of some words, and the number of classes if they name a saved loss."""
    from taylorglo.loss.dynamics import CLASSIC
    from taylorglo.loss.polynomial import checked_theta

    if len(words) == 1 and not _is_number(words[0]):
        in_zoo = words[0].startswith("zoo:")
        if not in_zoo and not words[0].endswith(".json"):
            raise InputError(
                f"unknown loss {quoted(words[0])}; there are {', '.join(CLASSIC)}, saved losses "
                f"(.json), the zoo (zoo:NAME) and thetas (numbers){meant(words[0], CLASSIC)}"
            )
        # PyTorch takes seconds to import, and only a saved loss needs it.
        from taylorglo.loss.functions import TaylorLoss
        from taylorglo.services.registry import load_loss

        loss = load_loss(words[0]) if in_zoo else TaylorLoss.load(words[0])
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
    from taylorglo.loss.polynomial import checked_theta, has_log, log_weight

    order = checked_theta(theta)[1]
    logarithm = " with a logarithm" if has_log(theta) else ""
    lines = [f"Taylor loss of order {order}{logarithm}, {num_classes} classes", ""]
    lines += [f"  theta        {', '.join(f'{value:.6g}' for value in theta)}"]
    if order <= 3:
        table = coefficients(theta)
        named = {name: value for name, value in table._asdict().items() if name != "log_weight"}
        lines += [f"  {name:<12} {value: .6g}" for name, value in named.items()]
        lines += [f"  {'cy + cyy':<12} {table.cy + table.cyy: .6g}"]
    if has_log(theta):
        lines += [f"  {'w':<12} {log_weight(theta): .6g}   weight of the logarithm"]
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


def _classic_sentences(name: str, num_classes: int) -> list[str]:
    """Say in words what a classic loss does; more of it if it is a Taylor loss, too."""
    from taylorglo.loss.dynamics import classic
    from taylorglo.loss.members import MEMBERS, member

    if name in MEMBERS:
        return _theta_sentences(member(name), num_classes)
    return _sentences_of_dynamics(classic(name, num_classes), num_classes)


def _theta_sentences(theta: Sequence[float], num_classes: int) -> list[str]:
    """Say in words what a Taylor loss does."""
    from taylorglo.loss.dynamics import dynamics
    from taylorglo.loss.polynomial import has_log, log_weight

    numbers, weight = dynamics(theta, num_classes), log_weight(theta)
    drive = numbers.learning_drive
    family = "Family taylor: a polynomial, without a logarithm."
    if has_log(theta):
        share = f"which gives {weight * num_classes / drive:.0%} of the pull at chance, "
        family = (
            f"Family taylor-log: {weight:.4g} times cross-entropy, {share if drive > 0 else ''}"
            "and a polynomial."
        )
    sentences = [family, *_sentences_of_dynamics(numbers, num_classes)]
    return [*sentences, _near_loss(theta, num_classes, drive)] if drive > 0 else sentences


def _sentences_of_dynamics(dynamics: "Dynamics", num_classes: int) -> list[str]:
    """Say in words where a loss lies in the plane of A and B, and where training comes to rest."""
    drive, rate, rest = dynamics
    if drive <= 0:
        return ["At chance it does not pull towards the target: training does not set out."]
    drift = "is damped" if rate < 0 else "grows" if rate > 0 else "neither grows nor is damped"
    place = [
        f"At chance it pulls {drive / num_classes:.3g} times as hard as cross-entropy (A/n).",
        f"A drift to one class {drift}: B/A is {rate / drive:.3g} (cross-entropy: -1).",
    ]
    if rest is None:
        return [*place, "It pulls all the way to a confidence of 1, as cross-entropy does."]
    if rest > 1 - 1e-9:
        return [*place, "It pulls all the way to a confidence of 1, and its pull ends there."]
    alpha = (1 - rest) * num_classes / (num_classes - 1)
    return [
        *place,
        f"It pulls up to a confidence of {rest:.4g} and pushes back above it, as label smoothing "
        f"with alpha = {alpha:.3g} does.",
    ]


def _near_loss(theta: Sequence[float], num_classes: int, drive: float) -> str:
    """Say how hard a loss pulls on a sample whose target has hardly any probability left."""
    from taylorglo.loss.dynamics import net_pull
    from taylorglo.loss.polynomial import log_weight

    sample = "On a nearly lost sample (p near 0)"
    if weight := log_weight(theta):
        return f"{sample} its pull grows as {weight:.4g}/p: it keeps every class alive."
    pull = float(net_pull(theta, num_classes)(0.0)) / drive
    if pull <= 0:
        return f"{sample} it does not pull, so that a lost sample stays lost."
    return f"{sample} its pull stays finite: {pull:.3g} times that at chance."


def _draw(thetas: Mapping[str, Sequence[float]], num_classes: int, path: Path) -> list[str]:
    """Draw losses to a file, and return the lines that name it."""
    from taylorglo.report.figures import loss_figure

    try:
        loss_figure(thetas, num_classes).savefig(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return ["", f"plot: {path}"]
