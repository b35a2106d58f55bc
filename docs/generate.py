"""Write the tables of docs/configuration.md anew, from the typed settings: ``make docs``."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taylorglo_pipelines.config import Config

PAGE = Path(__file__).with_name("configuration.md")
HEAD = ("| key | value | default | meaning |", "|---|---|---|---|")
BEGIN = "<!-- written by `make docs` from settings.py and config.py: change it there -->"
END = "<!-- the end of what `make docs` writes -->"

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """The table of a section.

    Attributes:
        heading: the Markdown heading.
        purpose: a sentence that stands above the table.
        keys: the JSON schema of each key.
    """

    heading: str
    purpose: str
    keys: Mapping[str, Schema]

    def lines(self) -> Iterator[str]:
        """Yield the table in Markdown."""
        yield from (self.heading, "", self.purpose, "", *HEAD)
        for key, schema in self.keys.items():
            default = _in_yaml(schema["default"])
            yield f"| `{key}` | {_values(schema)} | {default} | {schema['description']} |"
        yield ""


def tables() -> Iterator[Table]:
    """Yield a table for the top level, for each section, and for each list of groups."""
    schema = Config.model_json_schema()
    groups = schema["$defs"]
    top = {key: value for key, value in schema["properties"].items() if "$ref" not in value}
    yield Table("## Top level", "Beside the sections:", top)
    for section, reference in schema["properties"].items():
        if section in top:
            continue
        group = groups[_name(reference)]
        yield Table(f"## {section}", group["description"], group["properties"])
        for key, value in group["properties"].items():
            if "$ref" in value.get("items", {}):
                item = groups[_name(value["items"])]
                yield Table(f"### {section}.{key}", item["description"], item["properties"])


def page(text: str) -> str:
    """Return the text of the page with the tables of the present settings.

    Raises:
        ValueError: the text does not have the two marks between which the tables stand.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} should have the lines {BEGIN!r} and {END!r}")
    lines = "\n".join(line for table in tables() for line in table.lines())
    return f"{before}{BEGIN}\n\n{lines}\n{END}{after}"


def _name(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _values(schema: Schema) -> str:
    """Return the choices of a key, or its type with its range."""
    if "enum" in schema:
        return ", ".join(_in_yaml(choice) for choice in schema["enum"])
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


def _range(schema: Schema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    return ", ".join(f"{sign} {schema[bound]}" for bound, sign in signs.items() if bound in schema)


def _in_yaml(value: Any) -> str:
    """Return a value as it is written in YAML."""
    if value in ("", [], {}):
        return "(empty)"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`".replace('"', "")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
