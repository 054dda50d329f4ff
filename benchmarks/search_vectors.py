"""Recall of words, vectors, both, and both reranked; fusion is chosen on half of the questions.

    python -m benchmarks.search_vectors --index=INDEX --questions=questions.jsonl.gz --json=F

INDEX is one that `build_index` wrote with config.vectors.encoder. --rerank, a folder of a
cross-encoder, adds hybrid search reranked. recall@k is that of `benchmarks.search`, of the other
half of the questions; questions take turns to be of either half.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search import CUTS, recall
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.search.bm25 import BM25
from masksearch_jax.search.open import open_tool

FUSIONS: tuple[dict[str, Any], ...] = (
    *({"fusion": "rank", "rank_constant": float(k)} for k in (1, 10, 60)),
    *({"fusion": "score", "dense_weight": w / 10} for w in (1, 2, 3, 4, 5)),
)
Row = dict[str, Any]


def found(cfg: SearchConfig, places: dict[str, int], asked: Sequence[Row]) -> list[list[int]]:
    """Rows of the passages found for each question."""
    hits = open_tool(cfg).search([q["question"] for q in asked], CUTS[-1])
    return [[places[p.id] for p in one] for one in hits]


def measure(index: str, questions: Sequence[Row], rerank: str) -> list[Row]:
    passages: list[Passage] = list(BM25.open(index).passages)
    places = {p.id: row for row, p in enumerate(passages)}
    cfg = SearchConfig(index=index, memory=0)
    first, second = questions[::2], questions[1::2]

    def told(asked: Sequence[Row], **changes: Any) -> tuple[dict[str, dict[str, float]], float]:
        started = time.perf_counter()
        rows = found(dataclasses.replace(cfg, **changes), places, asked)
        seconds = time.perf_counter() - started
        return recall(passages, asked, rows), seconds

    def mean(figures: dict[str, dict[str, float]]) -> float:
        return float(np.mean([value for cuts in figures.values() for value in cuts.values()]))

    chosen = max(FUSIONS, key=lambda f: mean(told(first, kind="hybrid", **f)[0]))
    rows = []
    kinds = [("bm25", {}), ("dense", {}), ("hybrid", chosen)]
    if rerank:
        kinds.append(("hybrid", chosen | {"rerank": rerank}))
    for kind, changes in kinds:
        figures, seconds = told(second, kind=kind, **changes)
        rows.append(
            {
                "kind": kind,
                **changes,
                "questions": len(second),
                "ms_per_question_with_opening": 1e3 * seconds / len(second),
                "recall": figures,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--index", required=True, help="an index with vectors")
    parser.add_argument("--questions", required=True, help="JSONL of question, gold, dataset; .gz")
    parser.add_argument("--rerank", default="", help="folder of a cross-encoder")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    with gzip.open(args.questions) as lines:
        rows = measure(args.index, [json.loads(line) for line in lines], args.rerank)
    shown = ("kind", "rerank", *FUSIONS[0], *FUSIONS[-1])
    for row in rows:
        name = " ".join(str(v) for k, v in row.items() if k in shown)
        cuts = {d: "/".join(f"{v:.1f}" for v in c.values()) for d, c in row["recall"].items()}
        print(f"{name:>20}", *(f"{d} {c}" for d, c in cuts.items()), sep="  ")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
