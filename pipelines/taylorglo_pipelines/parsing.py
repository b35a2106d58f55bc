"""YAML in bounded time and memory: groups, lists, texts, numbers and truth values, nothing else."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from taylorglo.errors import one_line, quoted

# No configuration comes near these. An alias counts as all that it stands for.
_MOST_VALUES = 100_000
_DEEPEST = 20
_LONGEST_NUMBER = 100  # characters; reading a number takes quadratic time

_TAG = "tag:yaml.org,2002:"
_TEXT, _MERGE = f"{_TAG}str", f"{_TAG}merge"
_FLOAT = f"{_TAG}float"
_NUMBERS = (f"{_TAG}int", _FLOAT)
# YAML 1.2 has such numbers. PyYAML takes them for texts, as it reads YAML 1.1.
_WITHOUT_POINT = re.compile(r"[-+]?[0-9]{1,20}[eE][-+]?[0-9]{1,3}")
_KINDS = (_TEXT, _MERGE, *_NUMBERS, *(f"{_TAG}{name}" for name in ("null", "bool", "seq", "map")))


def parse(text: str) -> Any:
    """Return the values of a YAML document; None if it is empty.

    Raises:
        ValueError: the text is not YAML, has a key twice, or stands for very many values; with the
            place in the text.
    """
    return _parsed(text, _Loader)


def parse_value(text: str) -> Any:
    """Return a value in YAML, as on a command line: there are no comments in it.

    Raises:
        ValueError: see :func:`parse`.
    """
    try:
        return _parsed(text, _ValueLoader) if text.strip() else ""
    except _CommentError:
        # An unquoted text ends before a comment, but this one goes on.
        return text.strip()


def _parsed(text: str, loader: type["_Loader"]) -> Any:
    try:
        return yaml.load(text, loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None


class _Loader(yaml.SafeLoader):
    """A loader that refuses repeated keys, of which PyYAML would take the last one silently.

    It also refuses what would take very long, and the kinds of values that no setting has. A date
    and a time are texts: PyYAML would take 1:30 for the number 90.
    """

    yaml_constructors = {  # noqa: RUF012
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag in _KINDS or tag is None
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._count = 0  # of the values so far, aliases expanded
        self._counts: dict[yaml.Node, int] = {}

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """Return the tag of a value."""
        tag = str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]
        if kind is not yaml.ScalarNode or not implicit[0]:
            return tag
        if _WITHOUT_POINT.fullmatch(value):
            return _FLOAT
        is_time = tag in _NUMBERS and ":" in value
        return _TEXT if is_time or tag not in _KINDS else tag

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Read a value with all that is in it, or an alias of one."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _problem(f"there are more than {_DEEPEST} values in one another", event)
        before = self._count
        node = super().compose_node(parent, index)
        assert node is not None
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self._counts:
                raise _problem(f"the alias *{event.anchor} is in what it stands for", event)
            self._count += self._counts[node]
        else:
            self._count += 1
            self._counts[node] = self._count - before
        if self._count > _MOST_VALUES:
            raise _problem(f"there are more than {_MOST_VALUES} values", event)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make the value of a node."""
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise _problem(f"a number has {len(node.value)} characters", node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError):
            # PyYAML does not check values with a tag, such as `!!int x`.
            kind = node.tag.removeprefix(_TAG)
            raise _problem(f"{quoted(node.value)} is not of the kind {kind!r}", node) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make a group of values."""
        seen: set[str] = set()
        # With a tag, a text may pretend to be a group, which PyYAML refuses.
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise _problem(f"the key {quoted(key.value)} is there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _CommentError(Exception):
    """A comment follows an unquoted text."""


class _ValueLoader(_Loader):
    """A loader for which a number sign does not begin a comment."""

    def scan_to_next_token(self) -> None:
        """Skip blanks, and refuse a comment among them."""
        before = self.pointer
        super().scan_to_next_token()
        if "#" not in self.buffer[before : self.pointer]:
            return
        if self.buffer.lstrip()[0] in "[{'\"|>&*!":
            raise yaml.scanner.ScannerError(
                problem="a number sign after a blank has to stand in quotes here",
                problem_mark=self.get_mark(),
            )
        raise _CommentError


def _problem(text: str, place: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    mark: Any = place.start_mark
    return yaml.constructor.ConstructorError(problem=text, problem_mark=mark)
