"""Writes the configuration reference: every key of every main, read from the dataclasses.

    python docs/configuration_reference.py FOLDER

The build of the documentation calls `write`; nothing that it writes is committed.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generated_page

from masksearch_jax.runtime.completion import main_names, schemas

HARMLESS = "°"  # marks a key that a resumed run may change
PROMISE = (
    f"A run may be resumed with another value of a key marked {HARMLESS}. What it computes stays "
    "the same but for rounding, by which a sampled token may become another one. What it does "
    "where something goes wrong (alarms, bad updates, replies that cannot be read, time that runs "
    "out) is as the new value says from then on."
)


def section_of(kind: Any) -> type | None:
    """The dataclass of a section, optional sections too; None for a key with a value."""
    inner = [a for a in typing.get_args(kind) if a is not types.NoneType]
    optional = typing.get_origin(kind) in (types.UnionType, typing.Union)
    kind = inner[0] if optional else kind
    return kind if dataclasses.is_dataclass(kind) else None


def places(schema: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(dotted name, dataclass) of every section of a schema, sections in sections too."""
    for name, kind in typing.get_type_hints(schema).items():
        if section := section_of(kind):
            yield prefix + name, section
            yield from places(section, f"{prefix}{name}.")


def type_text(kind: Any) -> str:
    """A type as a reader wants it: the choices of a Literal, `list of str` for a tuple."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(f"`{a}`" for a in args)
    if origin is tuple:
        return f"list of {type_text(args[0])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if a is types.NoneType else type_text(a) for a in args)
    return kind.__name__


def default_text(field: dataclasses.Field) -> str:
    """A default as it is given on the command line."""
    value = field.default
    if value is dataclasses.MISSING:
        return "given by the config file"
    if value is None or value in ("", ()):
        return "none" if value is None else "empty"
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"


def sentence_text(field: dataclasses.Field) -> str:
    """A key's sentence as the cell of a table in Markdown."""
    return generated_page.escaped(field.metadata.get("sentence", "")).replace("|", "\\|")


def key_rows(schema: type) -> list[str]:
    """The table of a dataclass's keys, without its sections."""
    kinds = typing.get_type_hints(schema)
    rows = []
    for field in dataclasses.fields(schema):
        if section_of(kinds[field.name]):
            continue
        mark = f"\u00a0{HARMLESS}" if field.metadata.get("harmless") else ""
        cells = [f"`{field.name}`{mark}", type_text(kinds[field.name]), default_text(field)]
        rows.append(f"| {' | '.join([*cells, sentence_text(field)])} |")
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows] if rows else []


def key_table(schema: type) -> str:
    """The table as Markdown; its class lets a narrow screen lay it out by itself."""
    rows = "\n".join(key_rows(schema))
    return f"```{{table}}\n:class: keys\n\n{rows}\n```" if rows else ""


def first_line(schema: type) -> str:
    """A dataclass's own docstring up to its first blank line."""
    said = vars(schema).get("__doc__") or ""
    # dataclasses write the signature where no docstring is.
    return "" if said.startswith(f"{schema.__name__}(") else said.partition("\n\n")[0].strip()


def anchor(section: type) -> str:
    return f"section-{section.__name__.lower()}"


def page() -> str:
    """The whole reference as Markdown."""
    found: dict[type, dict[str, list[str]]] = {}  # section → its dotted name → mains
    out = [
        "# Configuration reference",
        "This page is for whoever looks for a key. It is made from the dataclasses of the configs.",
        "Each main reads one config file. `--config.SECTION.KEY=VALUE` overrides a key.",
        PROMISE,
        "## Mains",
    ]
    for main in main_names():
        for schema in schemas(main):
            sections = list(places(schema))
            for name, section in sections:
                mains = found.setdefault(section, {}).setdefault(name, [])
                mains += [] if main in mains else [main]
            title = f"`{main}`" if len(schemas(main)) == 1 else f"`{main}` of a `{schema.__name__}`"
            out += [f"### {title}", first_line(schema), key_table(schema)]
            links = (f"[`{n}`](#{anchor(s)})" for n, s in sections if "." not in n)
            if any("." not in n for n, _ in sections):
                out.append(f"Sections: {', '.join(links)}.")
    out.append("## Sections")
    for section, names in sorted(found.items(), key=lambda item: min(item[1], key=len)):
        used = "; ".join(f"`{n}` of {', '.join(f'`{m}`' for m in ms)}" for n, ms in names.items())
        inner = [f"[`{n}`](#{anchor(s)})" for n, s in places(section) if "." not in n]
        out += [f"({anchor(section)})=\n### `{min(names, key=len)}`", first_line(section)]
        out += [key_table(section), f"Sections: {', '.join(inner)}." if inner else ""]
        out.append(f"Where: {used}.")
    return "\n\n".join(part for part in out if part) + "\n"


def write(folder: Path) -> None:
    """Writes FOLDER/configuration.md."""
    generated_page.write(folder / "configuration.md", page())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
