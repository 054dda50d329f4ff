"""Exact and near duplicates among passages, by MinHash, in memory bounded by 24 bytes a passage.

Sketches of blocks of passages are made on their own and kept as arrays; `find` compares them band
by band (locality-sensitive hashing; Broder 1997), and checks candidates on the whole signature.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

PERMUTATIONS = 128
BANDS = 16
_SHINGLE = {"en": 5, "zh": 8}  # words; characters
_SEED = 1
_TOKEN = re.compile(r"\w+")
_HASH = np.random.default_rng(0).integers(1, 2**63, PERMUTATIONS // BANDS, np.uint64) * 2 + 1

KEPT, EXACT, NEAR = 0, 1, 2


class Sketches(NamedTuple):
    """Of n texts: digests uint64[n] of their words, signatures uint32[n, PERMUTATIONS]."""

    digests: np.ndarray
    signatures: np.ndarray


def shingles(text: str, language: str) -> list[str]:
    """Runs of five words, or of eight characters of Chinese; a shorter text is one run."""
    words = _TOKEN.findall(text.casefold())
    size = _SHINGLE[language]
    if language == "zh":
        joined = "".join(words)
        return [joined[i : i + size] for i in range(max(1, len(joined) - size + 1))]
    return [" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))]


def sketch(texts: Iterable[str], language: str) -> Sketches:
    """Digests and MinHash signatures; texts that differ in case or punctuation alone are equal."""
    import rensa

    digests: list[int] = []
    signatures: list[Sequence[int]] = []
    for text in texts:
        parts = shingles(text, language)
        digest = hashlib.blake2b(digest_size=8)
        digest.update("\n".join(parts).encode("utf-8", "surrogatepass"))
        digests.append(int.from_bytes(digest.digest()))
        minhash = rensa.RMinHash(PERMUTATIONS, _SEED)
        minhash.update(parts)
        signatures.append(minhash.digest())
    shape = (len(digests), PERMUTATIONS)
    return Sketches(
        np.asarray(digests, np.uint64), np.asarray(signatures, np.uint32).reshape(shape)
    )


def find(sketches: Sketches, threshold: float, rows: np.ndarray | None = None) -> np.ndarray:
    """int8[n]: KEPT, EXACT or NEAR, a duplicate of an earlier row. threshold: of estimated Jaccard.

    rows: those that are compared, in the order in which one is earlier than another; None: all, as
    they are. A pair is compared when a band of eight values agrees: with a chance of 95% at a
    Jaccard similarity of 0.8, 99.98% at 0.9. `signatures` may be a memory map; it is read band by
    band.
    """
    rows = np.arange(len(sketches.digests)) if rows is None else rows
    kinds = np.full(len(sketches.digests), KEPT, np.int8)
    kinds[rows] = _kinds(sketches, threshold, rows)
    return kinds


def _kinds(sketches: Sketches, threshold: float, rows: np.ndarray) -> np.ndarray:
    """int8[len(rows)], of each of the rows."""
    digests, signatures = sketches
    found = np.zeros(len(rows), np.int8)
    _, first = np.unique(digests[rows], return_index=True)
    found[:] = EXACT
    found[first] = KEPT
    width = PERMUTATIONS // BANDS
    for band in range(BANDS):
        columns = np.asarray(signatures[:, band * width : (band + 1) * width][rows], np.uint64)
        keys = (columns * _HASH).sum(axis=1, dtype=np.uint64)
        for place, other in _pairs(keys):
            if found[place] == KEPT and _is_alike(signatures, rows[place], rows[other], threshold):
                found[place] = NEAR
    return found


def _pairs(keys: np.ndarray) -> Iterable[tuple[int, int]]:
    """(row, an earlier row of the same key): the one before it, and the first one of all."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    same = np.flatnonzero(ranked[1:] == ranked[:-1]) + 1
    starts = np.searchsorted(ranked, ranked[same])
    for place, start in zip(same.tolist(), starts.tolist(), strict=True):
        yield int(order[place]), int(order[place - 1])
        if start < place - 1:
            yield int(order[place]), int(order[start])


def _is_alike(signatures: np.ndarray, row: int, other: int, threshold: float) -> bool:
    return float((signatures[row] == signatures[other]).mean()) >= threshold
