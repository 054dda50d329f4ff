"""Recall of words, vectors, both, and both reranked; fusion is chosen on half of the questions.

    python -m benchmarks.search_vectors --index=INDEX --questions=questions.jsonl.gz --json=F

INDEX is one that `build_index` wrote with config.vectors.encoder. --rerank, a folder of a
cross-encoder, adds hybrid search reranked. recall@k is that of `benchmarks.search`, of the other
half of the questions; questions take turns to be of either half. Told first: bytes of a passage's
vector, and passages that are encoded in a second on so many CPUs, by us and by
sentence-transformers where it is installed. The two take turns; their ratio is to the faster of its
float32 and its bfloat16. Vectors are found in each way of search.nearest; by the graph, where the
index has one. Told of each: milliseconds of a question of 64 that are asked at once, and of one
that is asked alone. Each figure is written to F when it is measured: the same command goes on after
it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gzip
import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.kept_rows import KeptRows, Row
from benchmarks.rollout import Values
from benchmarks.rollout import table as spread
from benchmarks.search import CUTS, recall
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.models.encoder_folder import TextEncoder
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search import vectors
from masksearch_jax.search.bm25 import BM25
from masksearch_jax.search.open import open_tool

FUSIONS: tuple[dict[str, Any], ...] = (
    *({"fusion": "rank", "rank_constant": float(k)} for k in (1, 10, 60)),
    *({"fusion": "score", "dense_weight": w / 10} for w in (1, 2, 3, 4, 5)),
)
_AT_ONCE, _ALONE = 64, 100  # questions of one search; those that are asked one by one
_ENCODED, _REPEATS = 512, 5  # passages that are encoded to time it, and how often
_SAME = 0.99  # cosine
_RATIO = "ratio_to_sentence_transformers"
Encode = Callable[[Sequence[str]], np.ndarray]


class Recalls:
    """Recall of search by one kind or another over the passages of an index."""

    def __init__(self, index: str, progress: Progress):
        self._cfg = SearchConfig(index=index, memory=0)
        self._passages: list[Passage] = list(BM25.open(index).passages)
        self._places = {p.id: row for row, p in enumerate(self._passages)}
        self._progress = progress

    def of(self, asked: Sequence[Row], changes: dict[str, Any]) -> Row:
        """Recall by data set and cut, their mean, and milliseconds of a question.

        These of questions that are asked so many at once, and of the first ones one by one.
        """
        tool = open_tool(dataclasses.replace(self._cfg, **changes))
        rows: list[list[int]] = []
        started = time.perf_counter()
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            found = tool.search([q["question"] for q in part], CUTS[-1])
            rows += [[self._places[p.id] for p in hits] for hits in found]
            self._progress.update(self._progress.done + len(part))
        each = 1e3 * (time.perf_counter() - started) / len(asked)
        alone = []
        for question in asked[:_ALONE]:
            started = time.perf_counter()
            tool.search([question["question"]], CUTS[-1])
            alone.append(1e3 * (time.perf_counter() - started))
        figures = recall(self._passages, asked, rows)
        values = [value for cuts in figures.values() for value in cuts.values()]
        told = {"mean": float(np.mean(values)), "recall": figures}
        return told | {"ms_per_question": each, "ms_alone": float(np.median(alone))}


def encoding(index: str) -> Row:
    """How fast passages of the index are encoded again, and what their vectors take."""
    opened = BM25.open(index)
    table = vectors.Vectors.open(vectors.folder_of(index), opened.fingerprint)
    encoder = TextEncoder(table.encoder_folder, dtype="bfloat16", reading=table.reading)
    count = min(_ENCODED, len(opened))
    texts = [vectors.text_of(opened.passages[row * len(opened) // count]) for row in range(count)]
    sides = {"ours": encoder.encode_passages} | others(encoder)
    found = {name: unit(encode(texts)) for name, encode in sides.items()}  # compiles, too
    for name in sides:
        if (least := float((found[name] * found["ours"]).sum(axis=1).min())) < _SAME:
            raise RuntimeError(f"{name}: a passage's vector has a cosine of {least:.4f} to ours")
    values: Values = {f"{name}.passages_per_second": [] for name in sides}
    for _ in range(_REPEATS):
        for name, encode in sides.items():
            started = time.perf_counter()
            encode(texts)
            speed = count / (time.perf_counter() - started)
            values[f"{name}.passages_per_second"].append(speed)
    if len(sides) > 1:
        own, *theirs = values.values()
        values[_RATIO] = [one / max(each) for one, *each in zip(own, *theirs, strict=True)]
    told = {"cpus": len(os.sched_getaffinity(0)), "bytes_per_passage": table.table[0].nbytes}
    return told | {"repeats": values}


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def others(encoder: TextEncoder) -> dict[str, Encode]:
    """sentence-transformers with the same folder, by the type of its numbers."""
    if not importlib.util.find_spec("sentence_transformers"):
        return {}
    import torch
    from sentence_transformers import SentenceTransformer

    prefix = encoder.reading.passage_prefix
    found: dict[str, Encode] = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = SentenceTransformer(encoder.folder, device="cpu", model_kwargs={"dtype": dtype})
        model.max_seq_length = encoder.reading.max_tokens
        name = f"sentence_transformers.{str(dtype).removeprefix('torch.')}"
        found[name] = functools.partial(model.encode, prompt=prefix, show_progress_bar=False)
    return found


def measure(index: str, questions: Sequence[Row], rerank: str, kept: KeptRows) -> list[Row]:
    """The rows of recall; what `kept` has is not measured again."""
    if kept.find(what="encoding") is None:
        kept.add({"what": "encoding"} | encoding(index))
    first, second = questions[::2], questions[1::2]
    kinds: list[dict[str, Any]] = [{"kind": "bm25"}, {"kind": "hybrid"}]
    kinds += [{"kind": "hybrid", "rerank": rerank}] if rerank else []
    ways = ["exact", *(["graph"] if (vectors.folder_of(index) / vectors.GRAPH).exists() else [])]
    kinds += [{"kind": "dense", "nearest": n} for n in (*ways, "device", "device_approximate")]
    total = len(FUSIONS) * len(first) + len(kinds) * len(second)
    with Progress("questions", total) as progress:
        recalls = Recalls(index, progress)

        def row(asked: Sequence[Row], what: str, **changes: Any) -> Row:
            key = {"what": what, **changes}
            if (found := kept.find(**key)) is None:
                return kept.add(key | recalls.of(asked, changes))
            progress.total -= len(asked)
            return found

        chosen = max(FUSIONS, key=lambda f: row(first, "fusion", kind="hybrid", **f)["mean"])
        for changes in kinds:
            fused = chosen if changes["kind"] == "hybrid" else {}
            row(second, "recall", **{"rerank": ""} | changes | fused)
    return [r for r in kept.rows if r["what"] == "recall"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--index", required=True, help="an index with vectors")
    parser.add_argument("--questions", required=True, help="JSONL of question, gold, dataset; .gz")
    parser.add_argument("--rerank", default="", help="folder of a cross-encoder")
    parser.add_argument("--json", help="file of the figures, which a stopped run goes on from")
    args = parser.parse_args()
    with gzip.open(args.questions) as lines:
        questions = [json.loads(line) for line in lines]
    made_of = BM25.open(args.index).fingerprint
    kept = KeptRows(args.json, {"questions": len(questions), "index": made_of})
    rows = measure(args.index, questions, args.rerank, kept)
    told = next(row for row in kept.rows if row["what"] == "encoding")
    print(f"{told['cpus']} CPUs, {told['bytes_per_passage']} bytes a passage\n")
    print(spread(told["repeats"], {}), end="\n\n")
    shown = ("kind", "nearest", "rerank", *FUSIONS[0], *FUSIONS[-1])
    for row in rows:
        name = " ".join(str(row[k]) for k in dict.fromkeys(shown) if row.get(k, "") != "")
        cuts = {d: "/".join(f"{v:.1f}" for v in c.values()) for d, c in row["recall"].items()}
        times = f"{row['ms_per_question']:.2f} ms, alone {row['ms_alone']:.2f} ms"
        print(f"{name:>24}", *(f"{d} {c}" for d, c in cuts.items()), times, sep="  ")


if __name__ == "__main__":
    main()
