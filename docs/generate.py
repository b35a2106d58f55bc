"""Write the tables of the configuration anew, from the typed models that check one: ``make docs``.

docs/configuration.md has a table per section, README.md one table of all keys.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taylorglo_pipelines.config import Config

PAGE = Path(__file__).with_name("configuration.md")
README = Path(__file__).parents[1] / "README.md"
HEAD = ("| key | value | default | meaning |", "|---|---|---|---|")
BEGIN = "<!-- written by `make docs` from settings.py and config.py: change it there -->"
END = "<!-- the end of what `make docs` writes -->"


@dataclass(frozen=True)
class Table:
    """A section of the configuration: its heading, what it is for, and its keys with their JSON schemas."""

    heading: str
    purpose: str
    keys: Mapping[str, Mapping[str, Any]]

    def lines(self) -> Iterator[str]:
        """The table in Markdown."""
        yield from (self.heading, "", self.purpose, "", *HEAD, *self.rows(), "")

    def rows(self, prefix: str = "") -> Iterator[str]:
        """Its rows, the keys with a prefix."""
        for key, schema in self.keys.items():
            yield f"| `{prefix}{key}` | {_values(schema)} | {_shown(schema['default'])} | {schema['description']} |"


def tables() -> Iterator[Table]:
    """One for the keys outside of sections, one per section, and one per list of groups within a section."""
    schema = Config.model_json_schema()
    groups = schema["$defs"]
    top = {key: own for key, own in schema["properties"].items() if "$ref" not in own}
    yield Table("## Top level", "Beside the sections:", top)
    for section, reference in schema["properties"].items():
        if section in top:
            continue
        group = groups[_name(reference)]
        yield Table(f"## {section}", group["description"], group["properties"])
        for key, own in group["properties"].items():
            if "$ref" in own.get("items", {}):
                item = groups[_name(own["items"])]
                yield Table(f"### {section}.{key}", item["description"], item["properties"])


def sections() -> Iterator[str]:
    """A table for each section."""
    for table in tables():
        yield from table.lines()


def whole() -> Iterator[str]:
    """One table of all keys, with their sections."""
    yield from HEAD
    for table in tables():
        section = table.heading.lstrip("# ")
        yield from table.rows("" if section == "Top level" else f"{section}.")
    yield ""


PAGES: Mapping[Path, Callable[[], Iterator[str]]] = {PAGE: sections, README: whole}


def page(path: Path, text: str) -> str:
    """The page with its tables as they should be.

    Raises:
        ValueError: the text has not the two marks that they stand between.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path.name} should have the lines {BEGIN!r} and {END!r}")
    made = "\n".join(PAGES[path]())
    return f"{before}{BEGIN}\n\n{made}\n{END}{after}"


def _name(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _values(schema: Mapping[str, Any]) -> str:
    """What may stand there: the choices, or the type with its range."""
    if "enum" in schema:
        return ", ".join(_shown(choice) for choice in schema["enum"])
    match schema["type"]:
        case "boolean":
            return "`false`, `true`"
        case "array" if "$ref" in schema["items"]:
            return "list of the groups below"
        case "array":
            return f"list, each: {_values(schema['items'])}"
        case "object":
            return "mapping of text to text"
        case "string":
            return "text, not empty" if schema.get("minLength") else "text"
        case kind:
            return f"{kind} {_range(schema)}".rstrip()


def _range(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    bounds = ((">", above), ("≥", low), ("<", below), ("≤", high))
    return ", ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)


def _shown(value: Any) -> str:
    """A value as it is written in YAML."""
    if value in ("", [], {}):
        return "(empty)"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`".replace('"', "")


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path, path.read_text()))
