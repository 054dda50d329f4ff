"""How an answer compares with gold text: SQuAD normalisation, overlap, slots of a masked text.

Shared by rewards and evaluation, so that both mean the same by recall. Strings only.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from masksearch_jax.core import chinese, markup
from masksearch_jax.core.markup import MASK
from masksearch_jax.core.types import VERDICTS, Example, RampExample

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_CHINESE_PUNCTUATION = str.maketrans("", "", string.punctuation + chinese.PUNCTUATION)
_PIECE = re.compile(rf"[{chinese.CHARACTERS}]|[^\W{chinese.CHARACTERS}]+|[^\w\s]")
# A number with its sign, a word of number or scale, or the direction of an angle.
_DIGITS = {  # "one" is more often a pronoun
    "zero": 0, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_DIRECTIONS = {name: name[0] for name in ("north", "south", "east", "west")}
_QUANTITY = re.compile(
    r"(?:(?<![\w.)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
    rf"|\b(?:{'|'.join(_DIGITS)}|hundred|thousand|million|billion|trillion)(?=s?\b)"
    r"|(?:(?<=°)\s*|(?<=degrees)\s+)(?:north|south|east|west|[nsew])\b|(?<=\d)[百千万萬亿億]"
)
# Answers that are all or nothing, as in HotpotQA's scorer.
CLOSED = frozenset({"yes", "no", "noanswer"})
# Answers that judge: to questions of yes and no, of our statements, and FEVER's labels.
_VERDICTS = frozenset(
    ("yes", "no", "是", "否", *VERDICTS, "supports", "refutes", "not enough info")
)
# Words a fill may have beyond its span's at full score ("in the year 1879" for "1879").
_SLACK = 2
# Articles and signs that an answer may have beyond those of the accepted one ("the Warsaw.").
_FREE_SIGNS = 4
# An answer is no copy of the text, but a dump, beyond twice its words and signs and this per slot.
_ROOM_PER_SLOT = 16
_MATCH, _RUN = 4, 1  # score of a copied piece, and of continuing a run of copied pieces
_GOLD, _EDGE_SIGN = 2, 1  # the same of what decides between equal scores of these
_NEVER = -(2**30)  # below any score
_STRAIGHT = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")


class Overlap(NamedTuple):
    """Multiset token overlap of a prediction with one gold text, each in 0..1."""

    recall: float
    precision: float
    f1: float


class Rules(NamedTuple):
    """How an answer is compared with an accepted one.

    closed: answers that count only when equal. empty: F1 where the normal form leaves nothing of
    both; None: 1 where they are equal as written, else 0, in exact match too. is_chinese: whether
    Chinese characters are words of their own and Chinese signs are left out; None: where the
    accepted answer holds a Chinese character. drops_blank: accepted answers of which nothing is
    left are none.
    """

    closed: frozenset[str] = frozenset()
    empty: float | None = None
    is_chinese: bool | None = None
    drops_blank: bool = False


OURS = Rules(CLOSED)  # of rewards: what no answer can win by saying nothing, or both yes and no


def rules_of(example: Example) -> Rules:
    """Ours, in the language of the example's own text."""
    text = example.paragraph if isinstance(example, RampExample) else example.question
    return OURS._replace(is_chinese=chinese.is_chinese(text))


def normalise(text: str, is_chinese: bool = False) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no a/an/the, single spaces.

    Of Chinese, which SQuAD does not have: its signs are left out too, and wide digits and letters
    are ordinary ones.
    """
    text = chinese.half_width(text) if is_chinese else text
    signs = _NO_CHINESE_PUNCTUATION if is_chinese else _NO_PUNCTUATION
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(signs)).split())


def straight(text: str) -> str:
    """With straight quotes and apostrophes in place of curly ones; as long as it was."""
    return text.translate(_STRAIGHT)


def tokenise(text: str, is_chinese: bool | None = None) -> list[str]:
    """Words of the normal form; in Chinese, which is told by the text itself, each character."""
    if is_chinese is None:
        is_chinese = bool(chinese.CHARACTER.search(text))
    normal = normalise(text, is_chinese)
    return (chinese.spaced(normal) if is_chinese else normal).split()


def is_verdict(answer: str) -> bool:
    """Whether an answer judges, so that no passage need state it."""
    return " ".join(tokenise(answer)) in _VERDICTS


def _is_chinese(gold: str, rules: Rules) -> bool:
    return bool(chinese.CHARACTER.search(gold)) if rules.is_chinese is None else rules.is_chinese


def is_exact_match(prediction: str, gold: str, rules: Rules = OURS) -> bool:
    """Equality of the normal forms; of ours, as written where nothing is left of both."""
    language = _is_chinese(gold, rules)
    mine, theirs = normalise(prediction, language), normalise(gold, language)
    if rules.empty is None and not mine and not theirs:
        return _as_written(prediction) == _as_written(gold)
    return mine == theirs


def _as_written(text: str) -> str:
    return " ".join(text.casefold().split())


def quantities(text: str) -> Counter[str]:
    """Numbers, words of scale and directions of angles: what a wrong quantity gets wrong.

    "-4.43 million, in 1,990" has -4.43, million and 1990; "forty degrees south" has 40 and s.
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2212", "-")
    found = (each.strip().replace(",", "") for each in _QUANTITY.findall(plain))
    return Counter(str(_DIGITS.get(each, _DIRECTIONS.get(each, each))) for each in found)


def overlap(prediction: str, gold: str, rules: Rules = OURS) -> Overlap:
    """Token recall, precision, F1 by the rules.

    Ours: yes/no answers, and texts that normalise to nothing ("The The", "!!!"), count only when
    they are equal.
    """
    language = _is_chinese(gold, rules)
    mine, theirs = tokenise(prediction, language), tokenise(gold, language)
    if not mine and not theirs:
        equal = _as_written(prediction) == _as_written(gold)
        return Overlap(*[float(equal) if rules.empty is None else rules.empty] * 3)
    if {" ".join(mine), " ".join(theirs)} & rules.closed or not mine or not theirs:
        return Overlap(*[float(mine == theirs)] * 3)
    common = sum((Counter(mine) & Counter(theirs)).values())
    recall, precision = common / len(theirs), common / len(mine)
    return Overlap(recall, precision, 2 * common / (len(mine) + len(theirs)))


def best_overlap(prediction: str, golds: Sequence[str], rules: Rules = OURS) -> Overlap:
    """The best of each measure over the accepted answers. Raises ValueError when there are none."""
    each = [overlap(prediction, gold, rules) for gold in _some(golds)]
    return Overlap(*(max(values) for values in zip(*each, strict=True)))


def strict_f1(prediction: str, golds: Sequence[str], rules: Rules = OURS) -> float:
    """The best token F1 over the accepted answers; 0 for one with other quantities than it.

    So "9.99 million" and "4.43 billion" earn nothing for "4.43 million", nor does "degrees north"
    for "41.3 degrees north". Articles and signs beyond a few count as words (the rules are ours).
    Raises ValueError for no answers.
    """

    def score(gold: str) -> float:
        language = _is_chinese(gold, rules)
        words = len(tokenise(prediction, language)) + len(tokenise(gold, language))
        share = words / (words + _padding(prediction, gold, language)) if words else 1.0
        return _has_same_quantities(prediction, gold) * share * overlap(prediction, gold, rules).f1

    return max(map(score, _some(golds)))


def penalised_recall(
    prediction: str, golds: Sequence[str], penalty: float, rules: Rules = OURS
) -> float:
    """The best over the accepted answers of recall - penalty * excess words / words of the answer.

    Not below 0, and 0 where the quantities are not the prediction's. Articles and signs beyond a
    few are excess too (formula and rules are ours). Raises ValueError for no answers.
    """

    def score(gold: str) -> float:
        language = _is_chinese(gold, rules)
        words, size = len(tokenise(prediction, language)), max(len(tokenise(gold, language)), 1)
        excess = max(0, words - size) + _padding(prediction, gold, language)
        recall = _has_same_quantities(prediction, gold) * overlap(prediction, gold, rules).recall
        return max(0.0, recall - penalty * excess / size)

    return max(map(score, _some(golds)))


def _has_same_quantities(prediction: str, gold: str) -> bool:
    return quantities(prediction) == quantities(gold)


def _padding(prediction: str, gold: str, is_chinese: bool) -> int:
    """Articles and signs of a prediction, beyond those of the gold text and a few more."""
    mine, theirs = (
        max(0, len(_PIECE.findall(text)) - len(tokenise(text, is_chinese)))
        for text in (prediction, gold)
    )
    return max(0, mine - theirs - _FREE_SIGNS)


def _some(golds: Sequence[str]) -> Sequence[str]:
    if not golds:
        raise ValueError("an example needs at least one accepted answer; got none")
    return golds


def span_recall(example: RampExample, answer: str | None) -> float:
    """Mean over the masked slots of the token recall of the gold span in its slot's fill, in 0..1.

    Copied text earns nothing, a right span in the wrong slot earns nothing, and a fill may exceed
    its span by two words: beyond that its recall shrinks in proportion, and at four times that
    length it is 0, so that pouring a document or a list of guesses into a slot does not pay (this
    guard is ours).
    """
    return sum(slot_recalls(example, answer)) / example.k


def slot_recalls(example: RampExample, answer: str | None) -> list[float]:
    """What `span_recall` is the mean of: of each slot, in text order."""
    if answer is None:
        return [0.0] * example.k
    rules = rules_of(example)
    return [_slot_recall(fill, gold, rules) for fill, gold in filled_spans(example, answer)]


def penalised_span_recall(example: RampExample, answer: str | None, penalty: float) -> float:
    """Mean over the masked slots of `penalised_recall` of the span in its slot's fill, in 0..1.

    What the answer copies or leaves out of the paragraph buys nothing (arXiv 2505.20285, section
    3.3, names a penalty for length without a formula).
    """
    if answer is None:
        return 0.0
    rules = rules_of(example)
    found = [(fill, gold) for fill, gold in filled_spans(example, answer) if fill is not None]
    return sum(penalised_recall(fill, [gold], penalty, rules) for fill, gold in found) / example.k


def is_exact_answer(example: Example, answer: str) -> bool:
    """Whether an answer equals an accepted one, or each slot's fill its span, in normal form."""
    rules = rules_of(example)
    if isinstance(example, RampExample):
        pairs = filled_spans(example, answer)
        return all(is_exact_match(fill or "", gold, rules) for fill, gold in pairs)
    return any(is_exact_match(answer, gold, rules) for gold in example.answers)


def fill_slots(example: RampExample, answer: str) -> list[str | None]:
    """What the answer put into each slot, in text order; None where no slot can be told."""
    return align_fills(example.masked, answer, [span.text for span in example.spans])


def filled_spans(example: RampExample, answer: str) -> list[tuple[str | None, str]]:
    """Of each slot its fill, None where there is none, and its span, both with straight quotes."""
    fills = [fill and straight(fill) for fill in fill_slots(example, answer)]
    spans = [straight(span.text) for span in example.spans]
    return list(zip(fills, spans, strict=True))


def align_fills(
    masked: str, answer: str, expected: Sequence[str] | None = None
) -> list[str | None]:
    """The fill of each `[mask]` of `masked`, located in `answer` by the copied text around it.

    A faithful copy (up to white space and the form of quotes) is cut at the unmasked texts from
    left to right; where a fill could hold its separator ("Paris, Texas" before ", "), `expected`
    fills decide. Any other answer is aligned by its longest weighted run of copied pieces, and of
    equal ones by that which has more of the expected fills in their slots; a slot then needs a
    copied piece on each side, or the text's edge, where signs alone may lack. Slots with no text
    between them, or signs that lack, are cut where all but one hold what is expected. None: slot
    not found, empty, or still holding `[mask]`. Never backtracks: O(len(masked) * len(answer)) at
    most, and answers of over twice the text's length are not read.
    """
    plain = straight(masked)
    slots = plain.count(MASK)
    golds = [straight(gold) for gold in expected or [""] * slots]
    fixed = [" ".join(text.split()) for text in plain.split(MASK)]
    length = sum(len(_PIECE.findall(text)) for text in (*fixed, *golds))
    found = list(_PIECE.finditer(straight(answer)))
    if len(found) > 2 * length + _ROOM_PER_SLOT * slots:
        return [None] * slots
    copied = _cut_copy(plain, answer, golds)
    fills = _align_pieces(fixed, answer, found, golds) if copied is None else copied
    return [fill if fill and not markup.has_mask(fill) else None for fill in fills]


def _slot_recall(fill: str | None, gold: str, rules: Rules) -> float:
    if fill is None:
        return 0.0
    free = len(tokenise(gold, rules.is_chinese)) + _SLACK
    length = len(tokenise(fill, rules.is_chinese))
    return (
        overlap(fill, gold, rules).recall * min(1.0, free / max(length, 1)) * (length <= 4 * free)
    )


def _cut_copy(masked: str, answer: str, golds: Sequence[str]) -> list[str] | None:
    """Fills of an answer that copies all unmasked text in order; None when it does not."""
    first, *others = " ".join(masked.split()).split(MASK)
    written = " ".join(answer.split())
    text = straight(written)
    if not text.startswith(first):
        return None
    fills, position = [], len(first)
    for i, after in enumerate(others):
        gold = " ".join(golds[i].split())
        last = i == len(others) - 1
        if gold and text.startswith(gold + after, position) and not last:
            end = position + len(gold)
        elif last:
            end = len(text) - len(after) if text.endswith(after) else -1
        else:
            end = text.find(after, position)
        if end < position:
            return None
        fills.append(written[position:end].strip())
        position = end + len(after)
    return fills


def _align_pieces(
    fixed: list[str], answer: str, found: list[re.Match], golds: Sequence[str]
) -> list[str | None]:
    """Fills by aligning the words and signs of the unmasked text with those of the answer."""
    slots, words = len(golds), [m[0].lower() for m in found]
    pieces = _pieces(fixed, golds)
    ends: dict[int, list[int]] = {}
    for row, column in _longest_runs(pieces, words):
        if (text := pieces[row].text) is not None:
            ends.setdefault(text, []).append(column)
    may_lack = [i not in ends and not _has_word(between) for i, between in enumerate(fixed)]
    fills: list[str | None] = []
    while (first := len(fills)) < slots:
        last = next(i for i in range(first, slots) if i == slots - 1 or not may_lack[i + 1])
        left = ends[first][-1] if first in ends else -1 if may_lack[first] else None
        right = ends[last + 1][0] if last + 1 in ends else len(found) if may_lack[-1] else None
        if left is None or right is None or (last + 1 < slots and last + 1 not in ends):
            fills += [None] * (last + 1 - first)
            continue
        cuts = _split(words[left + 1 : right], [_words(gold) for gold in golds[first : last + 1]])
        begun = found[left + 1 : right]
        fills += [cut and answer[begun[cut[0]].start() : begun[cut[1] - 1].end()] for cut in cuts]
    return fills


def _has_word(text: str) -> bool:
    return bool(re.search(r"\w", text))


def _words(text: str) -> list[str]:
    return [m[0].lower() for m in _PIECE.finditer(text)]


def _split(region: list[str], golds: list[list[str]]) -> list[tuple[int, int] | None]:
    """Where in a region each of adjacent slots lies, [start, end); None where that is not told.

    Slots that begin or end the region as expected are told, and one that is left between them.
    """
    cuts: list[tuple[int, int] | None] = [None] * len(golds)
    start, end, first, last = 0, len(region), 0, len(golds) - 1
    while first < last and golds[first] == region[start : start + len(golds[first])] != []:
        cuts[first] = start, start + len(golds[first])
        start, first = start + len(golds[first]), first + 1
    while first < last and golds[last] == region[start:end][-len(golds[last]) :] != []:
        cuts[last] = end - len(golds[last]), end
        end, last = end - len(golds[last]), last - 1
    if first == last and start < end:
        cuts[first] = start, end
    return cuts


class _Piece(NamedTuple):
    """A word or sign to be found. text: the unmasked one it is of; None: an expected fill's.

    gain, run: the score of a match, and of one that continues the match of the piece before.
    """

    text: int | None
    word: str
    gain: int
    run: int


def _pieces(fixed: list[str], golds: Sequence[str]) -> list[_Piece]:
    """Pieces of the unmasked texts, with those of the expected fills between them.

    Expected fills, and signs before the first word or after the last that are masked, decide
    between equal scores of the others alone.
    """
    edges = [i for i in (0, len(fixed) - 1) if not _has_word(fixed[i])]
    least = [len(_words(text)) for text in (*golds, *(fixed[i] for i in edges))]
    unit = 1 + _GOLD * sum(least)
    pieces: list[_Piece] = []
    for i, text in enumerate(fixed):
        for place, word in enumerate(_words(text)):
            run = _RUN * unit if place and i not in edges else 0
            gain = _EDGE_SIGN if i in edges else _MATCH * unit
            pieces.append(_Piece(i, word, gain, run))
        for word in _words(golds[i]) if i < len(golds) else ():
            pieces.append(_Piece(None, word, _GOLD, 0))
    return pieces


def _longest_runs(pieces: list[_Piece], words: list[str]) -> list[tuple[int, int]]:
    """Matching (piece, word) index pairs, increasing in both, of the greatest score.

    One NumPy row per piece: best[i, j] of prefixes, ending[i, j] with i and j matched to each
    other.
    """
    n, m = len(pieces), len(words)
    best = np.zeros((n + 1, m + 1), np.int32)
    ending = np.full((n + 1, m + 1), _NEVER, np.int32)
    columns = np.asarray(words, dtype=object)
    for i, piece in enumerate(pieces, start=1):
        after = best[i - 1, :-1]
        if piece.run:
            after = np.maximum(after, ending[i - 1, :-1] + piece.run)
        ending[i, 1:] = np.where(columns == piece.word, after + piece.gain, _NEVER)
        best[i] = np.maximum.accumulate(np.maximum(best[i - 1], ending[i]))
    return _trace(best, ending, pieces)


def _trace(best: np.ndarray, ending: np.ndarray, pieces: list[_Piece]) -> list[tuple[int, int]]:
    """The pairs of one best alignment, walked back from the end."""
    i, j = best.shape[0] - 1, best.shape[1] - 1
    pairs: list[tuple[int, int]] = []
    in_run = False
    while i > 0 and j > 0:
        if not in_run and best[i, j] == best[i, j - 1]:
            j -= 1
        elif not in_run and best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            pairs.append((i - 1, j - 1))
            run = pieces[i - 1].run
            in_run = bool(run and ending[i - 1, j - 1] + run > best[i - 1, j - 1])
            i, j = i - 1, j - 1
    return pairs[::-1]
