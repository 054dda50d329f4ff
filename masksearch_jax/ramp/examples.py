"""RAMP examples: masked paragraphs, balanced over the number of masks, split by article.

Every paragraph that is left out is counted with its reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.types import Passage, RampExample, Span
from masksearch_jax.corpus import prose, rewordings
from masksearch_jax.corpus.tally import Tally
from masksearch_jax.ramp import masking, spans
from masksearch_jax.ramp.llm_spans import FAILED

# Reasons of a paragraph. The first three kinds are given before spans are looked for.
REFUSALS = ("too_long", "too_short", "reserved_text")
DUPLICATE, BEYOND = "duplicate", "beyond_max_examples"
UNLINKED = "no_linked_spans"
_BLOCK = 512  # paragraphs given to the extractor at once


@dataclasses.dataclass(frozen=True)
class RampStats:
    """Counts of one build, or of several added together.

    paragraphs: given. used: masked at least once. examples: per split and number of masks. dropped:
    paragraphs, and examples that came out twice, by reason; example: the first one of each reason.
    refused, types: spans refused by reason, spans masked by type.
    """

    paragraphs: int = 0
    used: int = 0
    examples: dict[str, dict[int, int]] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    example: dict[str, str] = dataclasses.field(default_factory=dict)
    types: dict[str, int] = dataclasses.field(default_factory=dict)

    def __add__(self, other: RampStats) -> RampStats:
        splits = self.examples.keys() | other.examples.keys()
        return RampStats(
            paragraphs=self.paragraphs + other.paragraphs,
            used=self.used + other.used,
            examples={
                s: _sum(self.examples.get(s, {}), other.examples.get(s, {})) for s in sorted(splits)
            },
            dropped=_sum(self.dropped, other.dropped),
            refused=_sum(self.refused, other.refused),
            example=other.example | self.example,
            types=_sum(self.types, other.types),
        )

    @classmethod
    def from_json(cls, obj: dict[str, Any]) -> RampStats:
        """The inverse of `dataclasses.asdict` through JSON."""
        examples = {s: {int(k): n for k, n in by_k.items()} for s, by_k in obj["examples"].items()}
        return cls(**(obj | {"examples": examples}))

    @property
    def searched(self) -> int:
        """Paragraphs in which spans were looked for."""
        return self.paragraphs - sum(self.dropped.get(r, 0) for r in (*REFUSALS, DUPLICATE, BEYOND))

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


def _sum(a: dict[Any, int], b: dict[Any, int]) -> dict[Any, int]:
    return dict(Counter(a) + Counter(b))


def _counts(by_reason: dict[str, int]) -> str:
    return (
        ", ".join(f"{n} {r}" for r, n in sorted(by_reason.items(), key=lambda x: -x[1])) or "none"
    )


def is_heldout(title: str, fraction: float, seed: int) -> bool:
    """Whether an article is kept from training: a hash of its title decides."""
    digest = hashlib.sha256(f"{seed}\n{title}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def article_of(passage: Passage) -> str:
    """What names the article of a passage: its title, or its id where it has none."""
    return passage.title or passage.id


def split_of(article: str, cfg: RampConfig) -> str:
    """The split of an article: heldout, rl or train."""
    if is_heldout(article, cfg.heldout_fraction, cfg.seed):
        return "heldout"
    return "rl" if is_heldout(f"rl\n{article}", cfg.rl_fraction, cfg.seed) else "train"


def build_examples(
    paragraphs: Iterable[Passage],
    cfg: RampConfig,
    log: Callable[[str], None],
    *,
    language: str = "en",
    extractor: spans.Extractor | None = None,
    scorer: masking.Scorer | None = None,
    has_rewordings: bool = False,
) -> tuple[dict[str, list[RampExample]], RampStats]:
    """Examples of each split (train, rl, heldout), and what became of each paragraph.

    No article is in two splits. `cfg.max_examples` are made, of a sample of the paragraphs, unless
    all give fewer. extractor: by default the rules alone. scorer: for the strategy ppl.
    has_rewordings: as in `PassageRules`; examples name the passages that the paragraphs are of.
    ValueError for an impossible config; `log` gets the counts as text.
    """
    check_settings(cfg)
    extractor = extractor or spans.RulesExtractor(language)
    finder = _Finder(list(paragraphs), cfg, language, extractor, scorer)
    usable = finder.take(cfg.max_examples)
    made, again = _drawn(usable, cfg)
    while finder.waiting and _count(made) < cfg.max_examples:
        usable += finder.take(cfg.max_examples - _count(made))
        made, again = _drawn(usable, cfg)
    if cfg.max_examples:
        _cut(made, cfg.max_examples)
    if has_rewordings:
        made = {split: [_of_source(e) for e in examples] for split, examples in made.items()}
    everything = [e for examples in made.values() for e in examples]
    used = {e.id.rpartition("@")[0] for e in everything}
    tally = finder.tally
    tally.add(again)
    for passage in [*finder.waiting, *(u.paragraph for u in usable if u.paragraph.id not in used)]:
        tally.drop(BEYOND, passage.id)
    stats = RampStats(
        paragraphs=tally.seen,
        used=len(used),
        examples={s: dict(Counter(e.k for e in examples)) for s, examples in made.items()},
        dropped=dict(tally.dropped),
        refused=dict(finder.refused),
        example=tally.example,
        types=dict(Counter(s.type for e in everything for s in e.spans)),
    )
    for line in stats.lines():
        log(line)
    return made, stats


def _of_source(example: RampExample) -> RampExample:
    """The example of a rewording, with the passage that the rewording is of."""
    return dataclasses.replace(example, passage_id=rewordings.passage_id(example.passage_id))


def _count(made: Mapping[str, Sequence[RampExample]]) -> int:
    return sum(map(len, made.values()))


def _cut(made: Mapping[str, list[RampExample]], most: int) -> None:
    """Removes what is beyond `most` from the end of the longest split; each is in random order."""
    for _ in range(_count(made) - most):
        max(made.values(), key=len).pop()


class _Usable(NamedTuple):
    paragraph: Passage
    candidates: list[Span]
    weights: dict[Span, float] | None = None
    links: tuple[tuple[Span, Span], ...] = ()

    def of(self, spans: Sequence[Span]) -> _Usable:
        """Itself with these of its spans, and the links between them."""
        kept = tuple(pair for pair in self.links if all(span in spans for span in pair))
        return self._replace(candidates=list(spans), links=kept)


def check_settings(cfg: RampConfig) -> None:
    """Raises ConfigError for settings that contradict each other."""
    for name in ("max_masks", "examples_per_passage"):
        if getattr(cfg, name) < 1:
            raise ConfigError(f"config.ramp.{name} is {getattr(cfg, name)}; it must be at least 1")
    for name in ("heldout_fraction", "rl_fraction"):
        if not 0 <= getattr(cfg, name) < 1:
            raise ConfigError(f"config.ramp.{name} is {getattr(cfg, name)}; it must be in [0, 1)")
    if cfg.min_words > cfg.max_words:
        raise ConfigError(
            f"config.ramp.min_words is {cfg.min_words}; it must not be above max_words, "
            f"{cfg.max_words}"
        )
    if cfg.linked and cfg.max_masks < 2:
        raise ConfigError(
            "config.ramp.linked is True, and config.ramp.max_masks 1: linked masks are two at least"
        )
    if cfg.min_nll > cfg.max_nll:
        raise ConfigError(
            f"config.ramp.min_nll is {cfg.min_nll}; it must not be above max_nll, {cfg.max_nll}"
        )
    for name, choices in (("extractor", spans.EXTRACTORS), ("strategy", masking.STRATEGIES)):
        if getattr(cfg, name) not in choices:
            raise ConfigError(
                f"config.ramp.{name} is {getattr(cfg, name)!r}; choices: {', '.join(choices)}"
            )


class _Finder:
    """Finds paragraphs with spans, a few after another, in a random order: `take` gives a sample.

    waiting: those not looked at yet. The others that are not given are counted in `tally`, refused
    spans by reason in `refused`.
    """

    def __init__(
        self,
        given: list[Passage],
        cfg: RampConfig,
        language: str,
        extractor: spans.Extractor,
        scorer: masking.Scorer | None,
    ):
        self.tally = Tally(seen=len(given))
        self.refused: Counter[str] = Counter()
        self.waiting = random.Random(f"{cfg.seed}/order").sample(given, len(given))
        self._cfg, self._language, self._extractor, self._scorer = cfg, language, extractor, scorer
        self._seen: set[tuple[str, str]] = set()

    def take(self, examples: int) -> list[_Usable]:
        """As many paragraphs as so many examples are made of, or all that are left; 0: all."""
        wanted = -(-examples // self._cfg.examples_per_passage) or len(self.waiting)
        found: list[_Usable] = []
        while self.waiting and len(found) < wanted:
            size = min(_BLOCK, wanted - len(found))
            block, self.waiting = self.waiting[:size], self.waiting[size:]
            found += self._usable(block)
        return _within_nll(found, self._cfg, self._scorer, self.tally, self.refused)

    def _usable(self, block: Sequence[Passage]) -> Iterator[_Usable]:
        fit = []
        for paragraph in block:
            key = (paragraph.title, paragraph.text)
            reason = refusal(paragraph, self._cfg, self._language)
            reason = reason or (DUPLICATE if key in self._seen else "")
            if reason:
                self.tally.drop(reason, paragraph.id)
            else:
                self._seen.add(key)
                fit.append(paragraph)
        for paragraph, (candidates, why, links) in zip(fit, self._extractor.find(fit), strict=True):
            self.refused.update(why)
            found = _Usable(paragraph, candidates, links=links).of(masking.disjoint(candidates))
            if not found.candidates:
                self.tally.drop(FAILED if FAILED in why else "no_spans", paragraph.id)
            elif self._cfg.linked and not found.links:
                self.tally.drop(UNLINKED, paragraph.id)
            else:
                yield found


def refusal(paragraph: Passage, cfg: RampConfig, language: str) -> str:
    """Why a paragraph is not masked, one of `REFUSALS`, or ""."""
    if len(paragraph.text) > prose.MAX_CHARS:
        return "too_long"
    words = prose.length(paragraph.text, language)
    if words < cfg.min_words:
        return "too_short"
    if words > cfg.max_words:
        return "too_long"
    return "reserved_text" if masking.has_reserved(paragraph.text) else ""


def _within_nll(
    usable: list[_Usable],
    cfg: RampConfig,
    scorer: masking.Scorer | None,
    tally: Tally,
    refused: Counter[str],
) -> list[_Usable]:
    """Of the strategy ppl: the paragraphs with their spans as hard as they may be, and weights."""
    if cfg.strategy != "ppl":
        return usable
    if scorer is None:
        raise ValueError("ramp.strategy 'ppl' needs a model that scores spans; there is none")
    kept = []
    for member, losses in _scored(usable, scorer):
        weighed, why = masking.by_difficulty(member.candidates, losses, cfg.min_nll, cfg.max_nll)
        refused.update(why)
        left = member.of(list(weighed))._replace(weights=weighed)
        if not weighed:
            tally.drop("no_span_within_nll", member.paragraph.id)
        elif cfg.linked and not left.links:
            tally.drop(UNLINKED, member.paragraph.id)
        else:
            kept.append(left)
    return kept


def _scored(
    usable: Sequence[_Usable], scorer: masking.Scorer
) -> Iterator[tuple[_Usable, Sequence[float]]]:
    """Each paragraph with the losses of its spans; many are scored at once."""
    for start in range(0, len(usable), _BLOCK):
        block = usable[start : start + _BLOCK]
        asked = [masking.questions(u.paragraph.text, u.candidates) for u in block]
        losses = iter(scorer([one for own in asked for one in own]))
        for member, own in zip(block, asked, strict=True):
            yield member, list(itertools.islice(losses, len(own)))


def _drawn(usable: list[_Usable], cfg: RampConfig) -> tuple[dict[str, list[RampExample]], Tally]:
    """The examples of each split, and what came out twice."""
    if cfg.strategy == "weighted":
        common = Counter(text for u in usable for text in masking.texts(u.candidates))
        weigh = masking.by_type_and_rarity
        usable = [u._replace(weights=weigh(u.candidates, common)) for u in usable]
    again = Tally()
    by_split: dict[str, list[_Usable]] = {"train": [], "rl": [], "heldout": []}
    for member in usable:
        by_split[split_of(article_of(member.paragraph), cfg)].append(member)
    made = {split: _balanced(members, cfg, split, again) for split, members in by_split.items()}
    return made, again


def _balanced(
    members: list[_Usable], cfg: RampConfig, split: str, tally: Tally
) -> list[RampExample]:
    """Examples with as many of each number of masks as the paragraphs allow, shuffled.

    Paragraphs with the fewest spans choose first, since they have the least choice; each takes the
    number of masks that is rarest so far.
    """
    made: Counter[int] = Counter()
    examples: list[RampExample] = []
    for member in sorted(members, key=lambda m: len(m.candidates)):
        paragraph, seen = member.paragraph, set[str]()
        fewest, most = 1 + bool(member.links), min(len(member.candidates), cfg.max_masks)
        for i in range(cfg.examples_per_passage):
            k = min(range(fewest, most + 1), key=lambda k: (made[k], -k))
            how = member.weights, member.links
            example = mask_paragraph(paragraph, member.candidates, k, i, cfg.seed, *how)
            if example.masked in seen:
                tally.drop("same_masks_again", paragraph.id)
                continue
            seen.add(example.masked)
            made[k] += 1
            examples.append(example)
    random.Random(f"{cfg.seed}/{split}").shuffle(examples)
    return examples


def mask_paragraph(
    paragraph: Passage,
    candidates: Sequence[Span],
    k: int,
    number: int,
    seed: int,
    weights: Mapping[Span, float] | None = None,
    links: Sequence[tuple[Span, Span]] = (),
) -> RampExample:
    """Example `number` of a paragraph, with `k` masks; pure, drawn by (seed, id, number).

    links: pairs of the candidates, of which one is masked.
    """
    rng = random.Random(f"{seed}/{paragraph.id}/{number}")
    together = rng.choice(links) if links else ()
    masked, chosen = masking.mask(paragraph.text, candidates, k, rng, weights, together)
    return _example(paragraph, number, masked, chosen)


def _example(paragraph: Passage, i: int, masked: str, chosen: tuple[Span, ...]) -> RampExample:
    return RampExample(
        id=f"{paragraph.id}@{i}",
        passage_id=paragraph.id,
        title=paragraph.title,
        masked=masked,
        paragraph=paragraph.text,
        spans=chosen,
    )
