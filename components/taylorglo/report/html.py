"""The parts that a page of the report is made of: escaped text, tables, figures and formulas as HTML."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from taylorglo.loss.polynomial import terms
from taylorglo.report.verdict import number


class Html(str):
    """Text that is HTML already; everything else is escaped on its way into the page."""


def tabular(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Iterable[int] | None = None,
    classes: Sequence[str] = (),
    wide: int | None = None,
) -> str:
    """A captioned table; all columns but the first are numbers unless ``numeric`` lists them."""
    right = set(range(1, len(header)) if numeric is None else numeric)

    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="number"' if column in right else ' class="wide"' if column == wide else ""
        return f"<{tag}{kind}>{_safe(text)}</{tag}>"

    head = "".join(cell("th", column, text) for column, text in enumerate(header))
    body = []
    for index, row in enumerate(rows):
        kind = f' class="{classes[index]}"' if index < len(classes) and classes[index] else ""
        cells = "".join(
            cell("td" if column else "th", column, text) for column, text in enumerate(row)
        )
        body.append(f"<tr{kind}>{cells}</tr>")
    return (
        f'<figure class="tabular"><figcaption>{_safe(caption)}</figcaption>\n<table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(body)}</tbody></table></figure>\n"
    )


def plot(drawing: str, caption: str) -> str:
    """An ``<svg>`` element as a captioned figure."""
    return f'<figure class="plot">{drawing}\n<figcaption>{_safe(caption)}</figcaption></figure>\n'


def _safe(text: str) -> str:
    return text if isinstance(text, Html) else escape(text)


def formula(summands: Sequence[tuple[float, str, bool]]) -> str:
    """f(t, h) as a sum of (coefficient, HTML of the monomial, whether it is idle)."""
    parts = []
    for index, (value, monomial, idle) in enumerate(item for item in summands if item[0]):
        sign = ("−" if value < 0 else "") if index == 0 else ("− " if value < 0 else "+ ")
        kind = "term idle" if idle else "term"
        parts.append(f'<span class="{kind}">{sign}{number(abs(value))} {monomial}</span>')
    return f'<p class="formula"><i>f</i>(<i>t</i>, <i>h</i>) = {" ".join(parts) or "0"}</p>'


def centred(theta: Sequence[float], order: int) -> list[tuple[float, str, bool]]:
    """The summands of f(t, h) around the two centres, as :func:`formula` takes them."""
    return [
        (value, _power("t", theta[0], a) + _power("h", theta[1], b), False)
        for (a, b), value in zip(terms(order), theta[2:], strict=True)
    ]


def expanded(theta: Sequence[float], order: int) -> list[tuple[float, str, bool]]:
    """The summands of f(t, h) multiplied out in powers of t and h; the one in h alone is idle (it sums to 1)."""
    sums = dict.fromkeys(terms(order), 0.0)
    for (a, b), value in zip(terms(order), theta[2:], strict=True):
        for i in range(a + 1):
            for j in range(1, b + 1):
                sums[i, j] += (
                    value
                    * math.comb(a, i)
                    * (-theta[0]) ** (a - i)
                    * math.comb(b, j)
                    * (-theta[1]) ** (b - j)
                )
    return [
        (value, _power("t", 0, i) + _power("h", 0, j), (i, j) == (0, 1))
        for (i, j), value in sums.items()
    ]


def _power(letter: str, centre: float, exponent: int) -> str:
    if exponent == 0:
        return ""
    base = f"<i>{letter}</i>"
    if centre:
        base = f"({base} {'−' if centre > 0 else '+'} {number(abs(centre))})"
    return base + (f"<sup>{exponent}</sup>" if exponent > 1 else "")
