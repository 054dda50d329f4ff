"""Records as plain files that any other stack reads: JSON lines, parquet, and a data card.

    FOLDER/README.md             the card, whose front matter names each subset's parquet files
    FOLDER/SUBSET/SPLIT.jsonl    one record a line
    FOLDER/SUBSET/SPLIT.parquet  the same, with columns of the record's types

A file is written whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from masksearch_jax.core import files
from masksearch_jax.core.schema import key
from masksearch_jax.core.types import Record, to_json

_ROWS = 10_000  # of a row group of parquet


@dataclasses.dataclass(frozen=True)
class DataCard:
    """What the records cannot say themselves; what is empty is said to be for its publisher."""

    title: str = key("", "Of the data set; empty: the folder's name.")
    text: str = key("", "The text that the records were made of, and its version.")
    license: str = key("", "Of that text, as an identifier of the Hugging Face hub.")
    language: str = key("en", "Of the text.")


@dataclasses.dataclass(frozen=True)
class Subset:
    """What was written of one kind of record: its columns, and rows by split."""

    name: str
    said: str
    columns: tuple[str, ...]
    rows: Mapping[str, int]
    suffix: str = "parquet"


def write_records(folder: Path, split: str, kind: type, records: Iterable[Record]) -> int:
    """Writes SPLIT.jsonl and SPLIT.parquet, each whole or not at all; the number of records."""
    import pyarrow as pa
    from pyarrow import parquet

    schema, count = pa.schema(_fields(kind)), 0
    with (
        files.writing(folder / f"{split}.jsonl") as lines,
        files.writing(folder / f"{split}.parquet", "wb") as file,
        parquet.ParquetWriter(file, schema) as writer,
    ):
        rows: list[dict[str, Any]] = []
        for record in records:
            rows.append(dataclasses.asdict(record))
            lines.write(json.dumps(to_json(record), ensure_ascii=False) + "\n")
            count += 1
            if len(rows) == _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))
    return count


def _fields(kind: type) -> list[Any]:
    """The columns of a dataclass of records, in its order."""
    import pyarrow as pa

    hints = typing.get_type_hints(kind)
    return [pa.field(f.name, _column(hints[f.name])) for f in dataclasses.fields(kind)]


def _column(kind: Any) -> Any:
    """The type of parquet for a type of a field."""
    import pyarrow as pa

    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return pa.list_(_column(args[0]))
    if origin is types.UnionType:  # with None: a column may lack any value
        (kind,) = (one for one in args if one is not types.NoneType)
        return _column(kind)
    if origin is typing.Literal:
        return pa.string()
    if dataclasses.is_dataclass(kind):
        return pa.struct(_fields(kind))
    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if kind not in plain:
        raise TypeError(f"no column of parquet for {kind}")
    return plain[kind]


_CARD = """\
---
{front}
---

# {title}

Made with `masksearch_jax` {version}, which implements MaskSearch (arXiv 2505.20285).

| | |
|---|---|
| text | {text} |
| licence of the text | {license} |
| made from | {made_from} |

## Subsets

{subsets}

{notes}

## Load it

```python
from datasets import load_dataset

{load}
```
"""
_RECORDS = """\
A subset with parquet files has JSON lines beside them, with the same records.
No article is in two splits: `train` is for demonstrations, `rl` for reinforcement learning,
`heldout` for evaluation."""
_DOCUMENTS = "Trajectories are JSON lines alone, one document a line."


def card_text(
    card: DataCard, name: str, subsets: Sequence[Subset], made_from: str, version: str
) -> str:
    """The text of a README.md whose front matter, the hub's, says where each subset's files are.

    name: of the folder. made_from: the folder that was read and the hash of its config.
    """
    # Texts are quoted: YAML takes a bare no for false, and 1e3 for a number.
    front = [f"license: {json.dumps(card.license)}"] if card.license else []
    front += [f"language: [{json.dumps(card.language)}]"]
    front += ["tags: [search-agent, masksearch]", "configs:"]
    # The hub reads all subsets of a folder by one reader: JSON lines beside parquet have none.
    records = [subset for subset in subsets if subset.suffix == "parquet"]
    documents = [subset for subset in subsets if subset.suffix != "parquet"]
    for subset in records or documents:
        front += [f"- config_name: {subset.name}", "  data_files:"]
        for split in subset.rows:
            path = f"{subset.name}/{split}.{subset.suffix}"
            front += [f"  - split: {json.dumps(split)}", f"    path: {json.dumps(path)}"]
    table = ["| subset | records | columns | rows |", "|---|---|---|---|"]
    for subset in subsets:
        rows = ", ".join(f"{split}: {count:,}" for split, count in subset.rows.items())
        columns = ", ".join(f"`{column}`" for column in subset.columns)
        table.append(f"| `{subset.name}` | {subset.said} | {columns} | {rows} |")
    load = [f'records = load_dataset("{name}", "{records[0].name}")'] if records else []
    for subset in documents:
        paths = (f"{name}/{subset.name}/{split}.{subset.suffix}" for split in subset.rows)
        load += [f'{subset.name} = load_dataset("json", data_files="{path}")' for path in paths]
    return _CARD.format(
        front="\n".join(front),
        title=card.title or name,
        version=version,
        text=card.text or "not recorded",
        license=card.license or "to be filled in by whoever publishes it: the text's binds them",
        made_from=made_from,
        subsets="\n".join(table),
        notes="\n".join([_RECORDS] * bool(records) + [_DOCUMENTS] * bool(documents)),
        load="\n".join(load),
    )
