"""Items that share a title or text with what was trained on, and scores with and without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from masksearch_jax.core.types import Example, JsonObject, Passage, RampExample
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.data.folder import Folder
from masksearch_jax.evals import results
from masksearch_jax.evals.results import Bootstrap
from masksearch_jax.evals.rows import Row
from masksearch_jax.ramp import leakage

_TRAINED_ON = ("train", "rl")  # splits of a folder of build_ramp


def trained_on(path: str) -> Iterator[Passage]:
    """The paragraphs of the training examples of a folder of build_ramp, or a file of passages."""
    if not Path(path).is_dir():
        yield from read_passages(path)
        return
    folder = Folder(path)
    for split in _TRAINED_ON:
        for example in folder.read("ramp", split):
            yield Passage(example.passage_id, example.title, example.paragraph)


def told(rows: Iterable[Row], path: str, n: int, how: Bootstrap) -> JsonObject:
    """{path, ngram, suites: {suite: {items, shared, shared_ids, without}}}.

    shared: items by what they share, title or text (a run of n words). without: the results of each
    method over the items that share nothing, beside those over all.
    """
    known = {(row.place[0], row.example.id): _known(row.example) for row in rows}
    found = leakage.shared(known, trained_on(path), n)
    suites: JsonObject = {}
    for suite in dict.fromkeys(suite for suite, _ in known):
        reasons = {item: why for (name, item), why in found.items() if name == suite}
        suites[suite] = {
            "items": sum(name == suite for name, _ in known),
            "shared": dict(Counter(reasons.values())),
            "shared_ids": sorted(reasons),
            "without": {
                method: results.summarise(scores, how, {})
                for method, scores in _free(rows, suite, reasons).items()
            },
        }
    return {"path": path, "ngram": n, "suites": suites}


def _known(example: Example) -> tuple[tuple[str, ...], str]:
    """Titles and text by which an item is known."""
    if isinstance(example, RampExample):
        return (example.title,), example.paragraph
    return example.titles, example.question


def _free(rows: Iterable[Row], suite: str, shared: Mapping[str, str]) -> dict[str, list]:
    """Scores by method of a suite's items that share nothing; methods without any are left out."""
    found: dict[str, list] = {}
    for row in rows:
        if row.place[0] == suite and row.example.id not in shared:
            found.setdefault(row.place[1], []).append(row.scored.scores)
    return found
