"""``taylorglo inspect``: what a loss does in training, from its coefficients alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from taylorglo.errors import InputError
from taylorglo.loss.dynamics import Dynamics, classic, coefficients, dynamics
from taylorglo.loss.filters import FILTERS, Verdict, by_collapse, by_drive
from taylorglo.loss.polynomial import checked_theta

_CLASSIC = ("cross-entropy", "squared-error", "baikal")
# Beside cross-entropy, which is in every plot: squared error, -(t-h)^2, is a Taylor loss up to a
# term without h.
_DRAWN: Mapping[str, Mapping[str, Sequence[float]]] = {
    "cross-entropy": {},
    "squared-error": {"squared error": [0, 0, 0, -1, 0, 2, 0, 0]},
}


def inspect(words: Sequence[str], classes: int | None, plot: Path | None) -> str:
    """Describe a loss in plain text, and draw it if a file is named.

    Args:
        words: the numbers of a theta, or one word: the name of a classic loss or the path of a saved one.
        classes: number of classes; None: that of the saved loss, or 10.
        plot: .svg, .png or .pdf file.

    Raises:
        InputError: no such loss, or a theta that is not valid.
    """
    if plot is not None and plot.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"{plot}: a plot should be a .svg, .png or .pdf file")
    if len(words) == 1 and words[0] in _CLASSIC:
        n = 10 if classes is None else classes
        found = classic(words[0], n)
        verdicts = {
            "learnable": by_drive(found.learning_drive),
            "stable": by_collapse(found.learning_drive, found.collapse_rate, n),
        }
        lines = [f"{words[0]}, {n} classes", "", *_dynamics(found, n), "", *_verdicts(verdicts)]
        if plot is not None:
            if words[0] not in _DRAWN:
                raise InputError(
                    f"{words[0]} is not drawn; there are plots of thetas, {' and '.join(_DRAWN)}"
                )
            lines += _draw(_DRAWN[words[0]], n, plot)
        return "\n".join(lines)
    theta, known_classes = _theta(words)
    n = classes if classes is not None else known_classes or 10
    lines = _theta_lines(theta, n)
    if plot is not None:
        lines += _draw({"Taylor loss": theta}, n, plot)
    return "\n".join(lines)


def _theta(words: Sequence[str]) -> tuple[list[float], int | None]:
    if len(words) == 1 and not _is_number(words[0]):
        if not words[0].endswith(".json"):
            raise InputError(
                f"unknown loss {words[0]!r}; there are {', '.join(_CLASSIC)}, saved losses (.json) and thetas (numbers)"
            )
        from taylorglo.loss.functions import TaylorLoss

        loss = TaylorLoss.load(words[0])
        return loss.theta.tolist(), loss.classes
    for index, word in enumerate(words):
        if not _is_number(word):
            raise InputError(f"theta[{index}] is {word!r}, which is not a number")
    return checked_theta([float(word) for word in words])[0], None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _theta_lines(theta: list[float], num_classes: int) -> list[str]:
    order = checked_theta(theta)[1]
    lines = [f"Taylor loss of order {order}, {num_classes} classes", ""]
    lines += [f"  theta        {', '.join(f'{value:.6g}' for value in theta)}"]
    if order <= 3:
        found = coefficients(theta)
        lines += [f"  {name:<12} {value: .6g}" for name, value in found._asdict().items()]
        lines += [f"  {'cy + cyy':<12} {found.cy + found.cyy: .6g}"]
    lines += ["", *_dynamics(dynamics(theta, num_classes), num_classes), ""]
    lines += _verdicts(
        {name: judge(theta, num_classes) for name, judge in FILTERS.items() if name != "none"}
    )
    return lines


def _verdicts(verdicts: Mapping[str, Verdict]) -> list[str]:
    return [f"  {name:<12} {verdict.reason}" for name, verdict in verdicts.items()]


def _dynamics(found: Dynamics, num_classes: int) -> list[str]:
    drive, rate, rest = found
    confidence = f"{rest: .6g}" if rest is not None else " none"
    meaning = "pull to the end" if rest is None else "pull below, push back above"
    return [
        f"  {'A':<12} {drive: .6g}   learning drive: "
        + (
            "the first step raises the target's logit"
            if drive > 0
            else "the first step does not raise the target's logit"
        ),
        f"  {'B':<12} {rate: .6g}   collapse rate: "
        + ("drift to one class is damped" if rate <= 0 else "drift to one class grows"),
        f"  {'p*':<12} {confidence}   equilibrium confidence (chance is {1 / num_classes:.4g}): {meaning}",
    ]


def _draw(thetas: Mapping[str, Sequence[float]], num_classes: int, path: Path) -> list[str]:
    from taylorglo.report.figures import loss_figure

    try:
        loss_figure(thetas, num_classes).savefig(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return ["", f"plot: {path}"]
