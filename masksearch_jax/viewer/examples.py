"""RAMP examples to read: a sample of each number of masks as one self-contained HTML page."""

from __future__ import annotations

import html
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from masksearch_jax.core import files
from masksearch_jax.core.types import RampExample

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
article { border-top: 1px solid #ccc; padding: .6rem 0 }
h3 { margin: 0; font-size: 1rem } h3 small { color: #666; font-weight: normal }
mark { padding: 0 .2em; border-radius: .2em; background: #fde68a } mark sup { color: #555 }
"""


def sample(
    examples: Iterable[RampExample], each: int, seed: int = 0
) -> dict[int, list[RampExample]]:
    """`each` examples of every number of masks, drawn evenly from a stream (reservoirs)."""
    rng = random.Random(seed)
    kept: dict[int, list[RampExample]] = {}
    seen: dict[int, int] = {}
    for example in examples:
        pool = kept.setdefault(example.k, [])
        seen[example.k] = seen.get(example.k, 0) + 1
        if len(pool) < each:
            pool.append(example)
        elif (place := rng.randrange(seen[example.k])) < each:
            pool[place] = example
    return dict(sorted(kept.items()))


def page(drawn: dict[int, list[RampExample]]) -> str:
    """The page: each paragraph with its masked spans marked, their types above them."""
    body = "".join(
        f"<h2>{k} mask{'s' if k > 1 else ''}</h2>\n" + "".join(map(_article, examples))
        for k, examples in drawn.items()
    )
    head = f'<meta charset="utf-8"><title>RAMP examples</title><style>{_STYLE}</style>'
    shown = f"<body><h1>RAMP examples</h1>\n{body}</body>"
    return f"<!doctype html>\n<html lang=en>{head}\n{shown}</html>\n"


def _article(example: RampExample) -> str:
    title = f"{html.escape(example.title)} <small>{html.escape(example.id)}</small>"
    return f"<article><h3>{title}</h3><p>{''.join(_pieces(example))}</p></article>\n"


def _pieces(example: RampExample) -> Iterator[str]:
    position = 0
    for span in example.spans:
        yield html.escape(example.paragraph[position : span.start])
        yield f"<mark>{html.escape(span.text)}<sup>{html.escape(span.type)}</sup></mark>"
        position = span.end
    yield html.escape(example.paragraph[position:])


def write(path: Path, examples: Iterable[RampExample], each: int) -> dict[int, int]:
    """Writes the page; how many examples of each number of masks it shows."""
    drawn = sample(examples, each)
    files.write_text(path, page(drawn))
    return {k: len(found) for k, found in drawn.items()}
