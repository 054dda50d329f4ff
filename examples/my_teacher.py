"""A teacher of your own: searches for the paragraph's title and writes the answer that it knows.

    python -m examples.my_teacher runs/ramp runs/index

What SFT learns from is lines of `Demonstration` in FOLDER/demonstrations/train.jsonl, whoever wrote
them. `build_cache` reads that file, and trains on the segments of author "policy" alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from masksearch_jax.core import jsonl, markup
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.search_config import SearchConfig
from masksearch_jax.core.types import Demonstration, RampExample, Segment, Turn
from masksearch_jax.runtime import cli
from masksearch_jax.search.open import open_tool


def solve(example: RampExample, search: SearchTool) -> Demonstration:
    """One search and the answer."""
    (hits,) = search.search([example.title], top_k=5)
    information, shown = markup.render_information(hits)
    segments = (
        Segment("policy", markup.wrap("search", example.title)),
        Segment("tool", information),
        Segment("policy", markup.wrap("answer", example.paragraph)),
    )
    turn = Turn((example.title,), tuple(p.id for p in shown), tuple(p.title for p in shown), 0.0)
    task = f"ramp_k{example.k}"
    return Demonstration(f"{example.id}/mine", example.id, task, "mine", segments, (turn,))


def write(folder: Path, search: SearchTool) -> None:
    """FOLDER/demonstrations/train.jsonl from what `build_ramp` wrote there."""
    examples = jsonl.read_jsonl(folder / "ramp" / "train.jsonl", RampExample)
    path = folder / "demonstrations" / "train.jsonl"
    path.parent.mkdir(exist_ok=True)
    jsonl.write_jsonl(path, [solve(example, search) for example in examples])


def main() -> None:
    if len(sys.argv) != 3:
        raise ConfigError("usage: python -m examples.my_teacher FOLDER INDEX")
    write(Path(sys.argv[1]), open_tool(SearchConfig(index=sys.argv[2])))


if __name__ == "__main__":
    cli.call(main)  # an error is one line
