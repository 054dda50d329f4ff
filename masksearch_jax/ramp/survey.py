"""What of a corpus may be masked: clean prose, no duplicates, nothing of the evaluation sets.

`survey` is pure, on a block of passages; `survey_all` runs it in any number of processes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from masksearch_jax.core import files, stamp
from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.schema import key, share
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus import duplicates, prose
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.corpus.tally import Tally
from masksearch_jax.ramp import examples, leakage

_BLOCK = 1000  # passages surveyed at once
# What a passage is to its duplicates: nothing, since it is not masked; one of which the first is
# masked; or a leak, of which no duplicate is masked, wherever it stands.
_NO_ORIGINAL, _ORIGINAL, _LEAK = range(3)
_AHEAD = 3  # tasks per process handed out before their turn: bounds memory
_DUPLICATE = {duplicates.EXACT: "duplicate", duplicates.NEAR: "near_duplicate"}
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """What of a corpus may be masked; all of it is indexed."""

    prose: bool = key(False, "Leave out lists, tables, markup, holes and other scripts.")
    duplicates: float = share(
        0.0, "Similarity (Jaccard) of near duplicates, which are left out; 0: keep them."
    )
    max_drop: float = share(
        1.0, "Share of the passages left out for any reason before the build stops."
    )
    leakage: Literal["keep", "tag", "drop"] = key(
        "keep", "Paragraphs that overlap evaluation sets; tag: kept, and listed in leaks.jsonl."
    )
    evaluation: tuple[str, ...] = key(
        (),
        "Files of questions not to be trained on, in the forms of `ramp.question_files`.",
        content="text",
    )
    evaluation_passages: str = key(
        "",
        (
            "JSONL of the passages that their `gold` names; empty: those of the corpus with these "
            "ids."
        ),
        content="text",
    )
    ngram: int = key(
        13,
        (
            "Words in a row, shared with a gold passage, that make an overlap; of Chinese three "
            "characters count as a word."
        ),
        least=1,
    )

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if self.leakage == "keep":
            for name in ("evaluation", "evaluation_passages", "ngram"):
                yield name, "it is read with config.clean.leakage=tag or drop"


@dataclasses.dataclass(frozen=True)
class PassageRules:
    """What is masked of passages, and how; a value that other processes get as it is.

    has_rewordings: the passages are paragraphs of the atlas, each of the passage that its id names.
    """

    clean: CleanConfig
    ramp: RampConfig
    language: str = "en"
    evaluation: leakage.Evaluation | None = None
    gazetteer: str = ""  # file of a `Gazetteer`; empty: none
    has_rewordings: bool = False


class Surveyed(NamedTuple):
    """Of a block of passages: why each cannot be masked ("" where it can), and their sketches.

    originals: where duplicates are sought, what each is to its own, as `_original` says.
    """

    reasons: list[str]
    sketches: duplicates.Sketches | None
    originals: bytes = b""


def survey(block: list[Passage], rules: PassageRules) -> Surveyed:
    """Pure: reasons of `refusal`, and sketches where duplicates are sought."""
    reasons = [refusal(p, rules) for p in block]
    if not rules.clean.duplicates:
        return Surveyed(reasons, None)
    texts = (p.text[: prose.MAX_CHARS] for p in block)
    originals = bytes(_original(p, r, rules) for p, r in zip(block, reasons, strict=True))
    return Surveyed(reasons, duplicates.sketch(texts, rules.language), originals)


def refusal(passage: Passage, rules: PassageRules) -> str:
    """Why a passage is not masked, or "": reasons of `prose.refusal`, `Evaluation.overlap`."""
    reason = prose.refusal(prose.mend(passage.text), rules.language) if rules.clean.prose else ""
    return reason or _leak(passage, rules)


def _leak(passage: Passage, rules: PassageRules) -> str:
    """How a passage overlaps the evaluation sets, where such passages are dropped; or ""."""
    is_sought = rules.evaluation and rules.clean.leakage == "drop"
    return rules.evaluation.overlap(passage) if is_sought else ""


def _original(passage: Passage, reason: str, rules: PassageRules) -> int:
    """What a passage is to its duplicates; reason: why it is not masked itself."""
    if reason:
        return _LEAK if _leak(passage, rules) else _NO_ORIGINAL
    refused = examples.refusal(mended(passage, rules), rules.ramp, rules.language)
    return _NO_ORIGINAL if refused else _ORIGINAL


def mended(passage: Passage, rules: PassageRules) -> Passage:
    """The passage as it is masked: where only prose is, without empty brackets."""
    if not rules.clean.prose:
        return passage
    return dataclasses.replace(passage, text=prose.mend(passage.text))


# ---- processes


@contextlib.contextmanager
def mapper(workers: int) -> Iterator[Each]:
    """A `map` over tasks in order, in this process or in `workers` others, a few tasks ahead."""
    if workers < 2:
        yield map
        return
    # Spawned, not forked: threads of other libraries may hold locks.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:

        def bounded(fn: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
            waiting: deque[concurrent.futures.Future[Any]] = deque()
            for task in tasks:
                waiting.append(pool.submit(fn, task))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        yield bounded


def _survey(task: tuple[list[Passage], PassageRules]) -> Surveyed:
    return survey(*task)


def survey_all(
    passages: Path, work: Path, rules: PassageRules, workers: int
) -> tuple[np.ndarray, Tally]:
    """bool[n], which passages of the file may be masked, and the others counted; kept in `work`."""
    if (found := stamp.read(work / "survey.json", files=["kept.npy"])) is not None:
        return np.load(work / "kept.npy"), Tally.from_json(found)
    tally = Tally()
    kept, originals = bytearray(), bytearray()
    read = read_passages(passages, max_bad_fraction=0.0)
    blocks = ((block, rules) for block in _blocks(read, _BLOCK))
    with (
        mapper(workers) as each,
        open(work / "digests.bin", "wb") as digests,
        open(work / "signatures.bin", "wb") as signatures,
    ):
        sent: deque[list[str]] = deque()
        for reasons, sketches, found in each(_survey, _noted(blocks, sent)):
            ids = sent.popleft()
            originals += found
            for name, reason in zip(ids, reasons, strict=True):
                kept.append(not reason)
                if reason:
                    tally.drop(reason, name)
            if sketches:
                digests.write(sketches.digests.tobytes())
                signatures.write(sketches.signatures.tobytes())
    usable = np.frombuffer(bytes(kept), bool).copy()
    if rules.clean.duplicates and len(usable):
        _drop_duplicates(usable, np.frombuffer(originals, np.uint8), work, rules, tally)
    tally.seen, tally.kept = len(usable), int(usable.sum())
    with files.writing(work / "kept.npy", "wb") as file:
        np.save(file, usable)
    stamp.write(work / "survey.json", tally.to_json(), files=["kept.npy"])
    return usable, tally


def _noted(
    blocks: Iterable[tuple[list[Passage], PassageRules]], sent: deque[list[str]]
) -> Iterator[tuple[list[Passage], PassageRules]]:
    """The tasks, the ids of each noted in `sent` on its way."""
    for block, rules in blocks:
        sent.append([p.id for p in block])
        yield block, rules


def _drop_duplicates(
    usable: np.ndarray, originals: np.ndarray, work: Path, rules: PassageRules, tally: Tally
) -> None:
    """Unsets those of `usable` that copy a leak or an earlier original, and counts them."""
    shape = (len(usable), duplicates.PERMUTATIONS)
    sketches = duplicates.Sketches(
        np.fromfile(work / "digests.bin", np.uint64),
        np.memmap(work / "signatures.bin", np.uint32, "r", shape=shape),
    )
    rows = np.concatenate([np.flatnonzero(originals == kind) for kind in (_LEAK, _ORIGINAL)])
    found = duplicates.find(sketches, rules.clean.duplicates, rows)
    for kind, reason in _DUPLICATE.items():
        rows = np.flatnonzero(usable & (found == kind))
        if len(rows):
            tally.drop(reason, f"passage number {rows[0] + 1}", len(rows))
            usable[rows] = False


def _blocks(items: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    items = iter(items)
    while block := list(itertools.islice(items, size)):
        yield block
