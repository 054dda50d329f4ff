"""Items that share passages, titles or text with what was trained on; scores with and without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from masksearch_jax.core.types import Example, JsonObject, RampExample
from masksearch_jax.corpus import rewordings
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.data.folder import EXAMPLES, Folder
from masksearch_jax.evals import results
from masksearch_jax.evals.results import Bootstrap
from masksearch_jax.evals.rows import Row
from masksearch_jax.ramp import leakage
from masksearch_jax.ramp.leakage import Known

_TRAINED_ON = ("train", "rl")  # splits of a folder of build_ramp


def trained_on(path: str) -> Iterator[Known]:
    """What a folder of build_ramp gives to train on, or a file of passages.

    Of a folder: the paragraphs of its RAMP examples, its questions and its statements. A file may
    be of the atlas's paragraphs, each of which is known by the id of its passage too.
    """
    if not Path(path).is_dir():
        for passage in read_passages(path):
            names = (passage.id, rewordings.passage_id(passage.id))
            yield Known(passage.text, (passage.title,), tuple(filter(None, names)))
        return
    folder = Folder(path)
    for kind in EXAMPLES:
        for split in _TRAINED_ON:
            yield from map(_known, folder.read(kind, split))


def told(rows: Iterable[Row], path: str, n: int, how: Bootstrap) -> JsonObject:
    """{path, ngram, suites: {suite: {items, shared, shared_ids, unknown, without}}}.

    shared: items by what they share, passage, title or text (`leakage.shared`). unknown: items that
    name passages by id alone, of which the corpus has none: of them the words alone were compared.
    without: the results of each method over the items that share nothing, beside those over all.
    """
    known = {(row.place[0], row.example.id): _known(row.example) for row in rows}
    titles = _titles({name for one in known.values() for name in _only_ids(one)}, path)
    unknown: dict[tuple[str, str], str] = {}
    for item, one in known.items():
        ids = _only_ids(one)
        own = tuple(titles[name] for name in ids if name in titles)
        known[item] = Known(one.text, one.titles + own, ids)
        if ids and not own:
            unknown[item] = item[0]
    found = leakage.shared(known, trained_on(path), n)
    by_words = Counter(suite for item, suite in unknown.items() if item not in found)
    suites: JsonObject = {}
    for suite in dict.fromkeys(suite for suite, _ in known):
        reasons = {item: why for (name, item), why in found.items() if name == suite}
        suites[suite] = {
            "items": sum(name == suite for name, _ in known),
            "shared": dict(Counter(reasons.values())),
            "shared_ids": sorted(reasons),
            "unknown": by_words[suite],
            "without": {
                method: results.summarise(scores, how, {})
                for method, scores in _free(rows, suite, reasons).items()
            },
        }
    return {"path": path, "ngram": n, "suites": suites}


def _titles(ids: set[str], path: str) -> dict[str, str]:
    """The titles of those of the passages that the corpus has: FOLDER/passages.jsonl, or a file."""
    corpus = Path(path) / "passages.jsonl" if Path(path).is_dir() else Path(path)
    if not ids or not corpus.is_file():
        return {}
    return {passage.id: passage.title for passage in read_passages(corpus) if passage.id in ids}


def _only_ids(known: Known) -> tuple[str, ...]:
    """The ids of what has no title: those of another corpus may be equal by chance."""
    return () if any(known.titles) else known.ids


def _known(example: Example) -> Known:
    """By what an example is known."""
    if isinstance(example, RampExample):
        return Known(example.paragraph, (example.title,), (example.passage_id,))
    return Known(example.question, example.titles, example.gold)


def _free(rows: Iterable[Row], suite: str, shared: Mapping[str, str]) -> dict[str, list]:
    """Scores by method of a suite's items that share nothing; methods without any are left out."""
    found: dict[str, list] = {}
    for row in rows:
        if row.place[0] == suite and row.example.id not in shared:
            found.setdefault(row.place[1], []).append(row.scored.scores)
    return found
