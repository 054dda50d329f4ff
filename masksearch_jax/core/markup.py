"""The agent's grammar, written once.

    <think>...</think> <search>one query per line</search>
    <information>...</information>                          written by the tool, never by the policy
    <answer>...</answer>

A turn ends at the first `</search>` or `</answer>`. Answers are read from policy text only.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from masksearch_jax.core.types import Passage, Segment

MASK = "[mask]"
TAGS = ("think", "search", "information", "answer")
TAG_TOKENS = tuple(t for tag in TAGS for t in (f"<{tag}>", f"</{tag}>"))
STOPS = ("</search>", "</answer>")

# What the tool says, as information, to a turn that is no action.
CORRECTIONS = {
    "no_action": "No action. Write <\u200bsearch> or <\u200banswer> and close it.",
    "no_query": "No query. Write one query per line in <\u200bsearch>.",
    "no_turns": "No searches are left. Answer now.",
    "too_long": "That was too long. Answer now.",
}

_OUR_TAG = re.compile(r"<(/?)(think|search|information|answer)>", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)|[。！？]")
_WORD_END = re.compile(r"\S(?=\s)")
_STOP = re.compile(r"</(search|answer)>")
# One turn of policy text: an optional thought, then exactly one action.
_TURN = re.compile(
    r"\s*(?:<think>(?:(?!</?(?:think|search|information|answer)>).)*</think>)?\s*"
    r"<(search|answer)>(?P<body>(?:(?!</?(?:think|search|information|answer)>).)*)</\1>\s*",
    re.DOTALL,
)


class Stop(NamedTuple):
    """Where a turn ended: `kind` is "search" or "answer", `end` the offset just after the tag."""

    kind: str
    end: int


def wrap(tag: str, text: str) -> str:
    return f"<{tag}>{text}</{tag}>"


def escape(text: str) -> str:
    """Text with our tags made harmless (`<answer>` → `<\u200banswer>`): no document can act."""
    return _OUR_TAG.sub(lambda m: f"<\u200b{m[1]}{m[2]}>", text)


def find_stop(text: str) -> Stop | None:
    """The first closing action tag in one turn of policy text, or None while the turn is open."""
    match = _STOP.search(text)
    return Stop(match[1], match.end()) if match else None


def parse_queries(turn_text: str, limit: int) -> tuple[str, ...]:
    """Distinct non-empty queries, one per line, of the last `<search>` block; at most `limit`."""
    start = turn_text.rfind("<search>")
    end = turn_text.rfind("</search>")
    if start < 0 or end < start:
        return ()
    lines = (line.strip() for line in turn_text[start + len("<search>") : end].splitlines())
    return tuple(dict.fromkeys(line for line in lines if line))[:limit]


def merge_results(per_query: Sequence[Sequence[Passage]], limit: int) -> tuple[Passage, ...]:
    """Results of several queries, round-robin by rank, each passage id once, at most `limit`."""
    merged: dict[str, Passage] = {}
    for rank in range(max((len(r) for r in per_query), default=0)):
        for results in per_query:
            if rank < len(results):
                merged.setdefault(results[rank].id, results[rank])
    return tuple(merged.values())[:limit]


def render_information(
    passages: Iterable[Passage],
    *,
    fits: Callable[[str], bool] = lambda block: True,
    note: str = "Nothing found.",
) -> tuple[str, tuple[Passage, ...]]:
    """An `<information>` block and the passages in it.

    A document with which the wrapped block no longer `fits` is left out with all after it, so that
    the block is always closed. If it is the first, its leading sentences are shown instead, as many
    as fit, or else words. No passages: it says `note`.
    """
    shown: list[Passage] = []
    body = ""
    for passage in passages:
        text = passage.text
        head = "" if text.startswith(passage.title) else f"{passage.title}: "
        line = escape(head + text)
        candidate = f"{body}\n{line}" if body else line
        if not fits(wrap("information", candidate)):
            if not shown and (body := _beginning(line, len(escape(head)), fits)):
                shown = [passage]
            break
        body, shown = candidate, [*shown, passage]
    return wrap("information", body or note), tuple(shown)


def _beginning(line: str, head: int, fits: Callable[[str], bool]) -> str:
    """The most leading sentences of a document that fit, or else words; "" if not one does.

    head: characters of the line that are no text yet, but its title.
    """
    for ends in (_SENTENCE_END, _WORD_END):
        cuts = [match.end() for match in ends.finditer(line) if match.end() > head]
        many = bisect.bisect_left(
            cuts, True, key=lambda cut: not fits(wrap("information", line[:cut].rstrip()))
        )
        if many:
            return line[: cuts[many - 1]].rstrip()
    return ""


def extract_answer(policy_text: str) -> str | None:
    """The text between the only `<answer>` and the only `</answer>`; None for any other number.

    None too when a tag of the grammar stands between them: that is no answer, but a broken turn.
    """
    found = _ANSWER.search(policy_text)
    pairs = [policy_text.count(tag) for tag in ("<answer>", "</answer>")]
    if found is None or pairs != [1, 1] or _OUR_TAG.search(found[1]):
        return None
    return found[1].strip()


def is_turn(text: str) -> bool:
    """Whether policy text is an optional thought and one action that says something."""
    match = _TURN.fullmatch(text)
    return match is not None and bool(match["body"].strip())


def is_well_formed(segments: Sequence[Segment]) -> bool:
    """True when each policy turn is an optional thought and one action, and the last is an answer.

    Every search must carry a query, and the answer some text without `[mask]` left in it. Policy
    text holds no `<information>`, and no tag stands in a thought.
    """
    turns = [s.text for s in segments if s.author == "policy"]
    if not turns:
        return False
    matches = [m for m in map(_TURN.fullmatch, turns) if m]
    if len(matches) < len(turns):
        return False
    kinds = [m[1] for m in matches]
    said = all(m["body"].strip() for m in matches) and MASK not in matches[-1]["body"]
    return kinds[-1] == "answer" and "answer" not in kinds[:-1] and said
