"""The forms of names and amounts that Kubernetes accepts, as types of settings.

Kubernetes would refuse others only when a task starts.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from math import ceil
from typing import Annotated

from pydantic import AfterValidator

from taylorglo.settings import like

_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_TAGGED = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_TAGGED_WORDS = (
    "at most 63 letters, digits, hyphens, dots and underlines, none of the latter at an end"
)
_NAME_WORDS = (
    "a name of Kubernetes: at most 253 of a-z, 0-9, hyphens and dots, at most 63 between two dots, "
    "with a letter or a digit at both ends and beside a dot, such as taylorglo-2"
)

ObjectName = Annotated[str, like(rf"(?=.{{1,253}}\Z){_SUBDOMAIN}", _NAME_WORDS)]
OptionalName = Annotated[str, like(rf"(?=.{{0,253}}\Z)({_SUBDOMAIN})?", f"{_NAME_WORDS}; or empty")]
LabelKey = Annotated[
    str,
    like(
        rf"((?=[^/]{{1,253}}/){_SUBDOMAIN}/)?{_TAGGED}",
        f"a key of Kubernetes: {_TAGGED_WORDS}, after a domain and a slash if it has one, such as "
        "topology.kubernetes.io/zone",
    ),
]
OptionalKey = Annotated[
    str,
    like(
        rf"(((?=[^/]{{1,253}}/){_SUBDOMAIN}/)?{_TAGGED})?",
        f"a key of Kubernetes: {_TAGGED_WORDS}, after a domain and a slash if it has one, such as "
        "nvidia.com/gpu; or empty",
    ),
]
LabelValue = Annotated[
    str, like(f"({_TAGGED})?", f"a value of a label: {_TAGGED_WORDS}, such as zone-a; or empty")
]

# The grammar of https://github.com/distribution/reference.
_HOST_PART = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_HOST_PART}(\.{_HOST_PART})*"
_PORT = r"(:[0-9]{1,5})?"
_COMPONENT = r"[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*"
_IMAGE_TAG = r"(:\w[\w.-]{0,127})?"
_DIGEST = r"(@sha256:[a-f0-9]{64}|@sha512:[a-f0-9]{128})?"
Image = Annotated[
    str,
    like(
        rf"((?=[^@]{{1,255}}(@|\Z))({_HOST}{_PORT}/|\[[0-9a-fA-F:]+\]{_PORT}/)?"
        rf"{_COMPONENT}(/{_COMPONENT})*{_IMAGE_TAG}{_DIGEST})?",
        "a container image: a name in lower case, after a registry if it has one, with a tag or a "
        "digest, such as registry.example.org/team/taylorglo:0.1.0; or empty",
    ),
]

_QUANTITY = re.compile(
    r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?", re.ASCII
)
_LONGEST_QUANTITY = 30  # characters
_MEBIBYTE = 2**20
# What kfp takes as it is. It refuses other forms that Kubernetes has.
_CPUS_OF_KFP = re.compile(r"([0-9]*\.)?[0-9]+m?", re.ASCII)
_BYTES_OF_KFP = re.compile(r"[0-9]+([EPTGMK]i|[EPTGM])?", re.ASCII)


def amount(text: str) -> Decimal:
    """Return the number that a quantity of Kubernetes stands for.

    Raises:
        ValueError: the text is no quantity.
    """
    # It takes a third of a second to import, and most configurations have no quantity.
    from kubernetes.utils.quantity import parse_quantity

    if len(text) > _LONGEST_QUANTITY or _QUANTITY.fullmatch(text) is None:
        raise ValueError("no quantity")
    return Decimal(parse_quantity(text))


def _quantity(
    least: Decimal, most: int, words: str, write: Callable[[str, Decimal], str]
) -> AfterValidator:
    """Return a check of a quantity between two limits, or 0, or empty.

    Args:
        least: the smallest amount above 0.
        most: the largest amount.
        words: what would be right, for the error.
        write: returns the quantity in a form that kfp takes, from its text and amount.
    """

    def check(text: str) -> str:
        if not text:
            return text
        try:
            value = amount(text)
        except ValueError:
            raise ValueError(f"should be {words}") from None
        if value and not least <= value <= most:
            raise ValueError(f"should be {words}")
        return write(text, value)

    return AfterValidator(check)


def _cpus(text: str, value: Decimal) -> str:
    return text if _CPUS_OF_KFP.fullmatch(text) else f"{ceil(1000 * value)}m"


def _bytes(text: str, value: Decimal) -> str:
    return text if _BYTES_OF_KFP.fullmatch(text) else str(ceil(value))


Cpus = Annotated[
    str,
    _quantity(
        Decimal("0.001"),
        10_000,
        "a number of CPUs, such as 2, 0.5 or 500m (half a CPU), at most 10000; or empty",
        _cpus,
    ),
]
Bytes = Annotated[
    str,
    _quantity(
        Decimal(_MEBIBYTE),
        1024**5,
        "a number of bytes, such as 4Gi, 500M or 1073741824, from 1Mi to 1Pi; or empty",
        _bytes,
    ),
]
