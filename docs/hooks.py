"""Finish the pages of the site: mkdocs calls this.

Formulas become MathML, which browsers draw by themselves, without a script.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves: \( \) within a line, \[ \] for a formula of its own.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\s*\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]'
    r"\s*</(?P=tag)>",
    re.DOTALL,
)
# A role of Sphinx in a docstring, such as :func:`fgsm`.
_ROLE = re.compile(r":(?:class|data|func):(?=<code>)")


def on_page_content(content: str, **_: Any) -> str:
    """Return the HTML of a page with its formulas as MathML, and without the roles of Sphinx."""
    return _ROLE.sub("", _FORMULA.sub(_mathml, content))


def _mathml(formula: re.Match[str]) -> str:
    display = "block" if formula["open"] == "[" else "inline"
    return convert(html.unescape(formula["latex"]).strip(), display=display)
