"""RAMP examples: masked paragraphs, balanced over the number of masks, split by article.

Every paragraph that is left out is counted with its reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from masksearch_jax.config import RampConfig
from masksearch_jax.data import masking, spans
from masksearch_jax.types import Passage, RampExample, Span, from_json, to_json


@dataclasses.dataclass(frozen=True)
class RampStats:
    """Counts of one build.

    paragraphs: given. used: masked at least once. examples: per split and number of masks.
    dropped: paragraphs, and examples that came out twice, by reason. refused: spans by reason.
    """

    paragraphs: int
    used: int
    examples: dict[str, dict[int, int]]
    dropped: dict[str, int]
    refused: dict[str, int]

    def lines(self) -> list[str]:
        """The counts as text, one fact per line."""
        made = [
            f"{split}: {sum(by_k.values())} examples ("
            + ", ".join(f"k={k}: {n}" for k, n in sorted(by_k.items()))
            + ")"
            for split, by_k in self.examples.items()
        ]
        return [
            f"RAMP: {self.paragraphs} paragraphs in, {self.used} used",
            *(f"RAMP {line}" for line in made),
            f"RAMP dropped: {_counts(self.dropped)}",
            f"RAMP spans refused: {_counts(self.refused)}",
        ]


def _counts(by_reason: dict[str, int]) -> str:
    return (
        ", ".join(f"{n} {r}" for r, n in sorted(by_reason.items(), key=lambda x: -x[1])) or "none"
    )


def is_heldout(title: str, fraction: float, seed: int) -> bool:
    """Whether an article is kept from training: a hash of its title decides."""
    digest = hashlib.sha256(f"{seed}\n{title}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_of(title: str, cfg: RampConfig) -> str:
    """The split of an article: heldout, rl or train."""
    if is_heldout(title, cfg.heldout_fraction, cfg.seed):
        return "heldout"
    return "rl" if is_heldout(f"rl\n{title}", cfg.rl_fraction, cfg.seed) else "train"


def build_examples(
    paragraphs: Iterable[Passage], cfg: RampConfig, log: Callable[[str], None]
) -> tuple[dict[str, list[RampExample]], RampStats]:
    """Examples of each split (train, rl, heldout), and what became of each paragraph.

    No article is in two splits. A paragraph of a rewording ("city:1#2") has the passage before "#"
    as its `passage_id`. ValueError for an impossible config; `log` gets the counts as text.
    """
    _check(cfg)
    extractor = spans.extractor(cfg.extractor)
    given = list(paragraphs)
    usable, dropped = _usable(given, cfg, extractor)
    by_split: dict[str, list] = {"train": [], "rl": [], "heldout": []}
    for paragraph, found in usable:
        by_split[split_of(paragraph.title, cfg)].append((paragraph, found))
    made: dict[str, list[RampExample]] = {}
    for split, members in by_split.items():
        made[split], lost = _balanced(members, cfg, random.Random(f"{cfg.seed}/{split}"))
        dropped += lost
    stats = RampStats(
        paragraphs=len(given),
        used=len({e.id.rpartition("@")[0] for examples in made.values() for e in examples}),
        examples={s: dict(Counter(e.k for e in examples)) for s, examples in made.items()},
        dropped=dict(dropped),
        refused=dict(extractor.refused),
    )
    for line in stats.lines():
        log(line)
    return made, stats


def _check(cfg: RampConfig) -> None:
    for name in ("max_masks", "examples_per_passage"):
        if getattr(cfg, name) < 1:
            raise ValueError(f"ramp.{name} is {getattr(cfg, name)}; it must be at least 1")
    for name in ("heldout_fraction", "rl_fraction"):
        if not 0 <= getattr(cfg, name) < 1:
            raise ValueError(f"ramp.{name} is {getattr(cfg, name)}; it must be in [0, 1)")
    if cfg.min_words > cfg.max_words:
        raise ValueError(f"ramp.min_words {cfg.min_words} is above max_words {cfg.max_words}")


def _usable(
    given: list[Passage], cfg: RampConfig, extractor: spans.Extractor
) -> tuple[list[tuple[Passage, list[Span]]], Counter[str]]:
    """Paragraphs with their spans, and the others counted by reason.

    In a random order, so that `max_examples` takes a sample, and stopping there saves the rest.
    """
    wanted = -(-cfg.max_examples // cfg.examples_per_passage)
    order = random.Random(f"{cfg.seed}/order").sample(range(len(given)), len(given))
    usable: list[tuple[Passage, list[Span]]] = []
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for i in order:
        paragraph = given[i]
        if cfg.max_examples and len(usable) == wanted:
            dropped["beyond_max_examples"] += 1
            continue
        reason = _refusal(paragraph, cfg)
        found = (
            [] if reason else masking.disjoint(extractor.extract(paragraph.text, paragraph.title))
        )
        if not reason and (paragraph.title, paragraph.text) in seen:
            reason = "duplicate"
        if not reason and not found:
            reason = "no_spans"
        if reason:
            dropped[reason] += 1
        else:
            seen.add((paragraph.title, paragraph.text))
            usable.append((paragraph, found))
    return usable, dropped


def _refusal(paragraph: Passage, cfg: RampConfig) -> str:
    words = len(paragraph.text.split())
    if words < cfg.min_words:
        return "too_short"
    if words > cfg.max_words:
        return "too_long"
    return "reserved_text" if masking.reserved(paragraph.text) else ""


def _balanced(
    members: list[tuple[Passage, list[Span]]], cfg: RampConfig, rng: random.Random
) -> tuple[list[RampExample], Counter[str]]:
    """Examples with as many of each number of masks as the paragraphs allow, shuffled.

    Paragraphs with the fewest spans choose first, since they have the least choice; each takes the
    number of masks that is rarest so far.
    """
    made: Counter[int] = Counter()
    examples: list[RampExample] = []
    dropped: Counter[str] = Counter()
    for paragraph, found in sorted(members, key=lambda m: len(m[1])):
        seen: set[str] = set()
        for i in range(cfg.examples_per_passage):
            k = min(range(1, min(len(found), cfg.max_masks) + 1), key=lambda k: (made[k], -k))
            masked, chosen = masking.mask(paragraph.text, found, k, rng)
            if masked in seen:
                dropped["same_masks_again"] += 1
                continue
            seen.add(masked)
            made[k] += 1
            examples.append(_example(paragraph, i, masked, chosen))
    rng.shuffle(examples)
    return examples, dropped


def _example(paragraph: Passage, i: int, masked: str, chosen: tuple[Span, ...]) -> RampExample:
    return RampExample(
        id=f"{paragraph.id}@{i}",
        passage_id=paragraph.id.partition("#")[0],
        title=paragraph.title,
        masked=masked,
        paragraph=paragraph.text,
        spans=chosen,
    )


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Any]) -> int:
    """Writes records of `types` as JSON lines, whole or not at all; returns their number."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    count = 0
    try:
        with open(fd, "w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(to_json(record), ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return count


def read_jsonl(path: str | os.PathLike[str], cls: type) -> list[Any]:
    """Records of `cls` written by `write_jsonl`. ValueError names file and line of a bad one."""
    records = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                records.append(from_json(cls, json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a {cls.__name__}: {error}") from error
    return records
