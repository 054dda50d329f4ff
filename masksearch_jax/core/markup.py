"""The agent's grammar, written once.

    <think>...</think> <search>one query per line</search>
    <information>...</information>                          written by the tool, never by the policy
    <answer>...</answer>

A turn ends at the first `</search>` or `</answer>`. Answers are read from policy text only.
A run may have other tools, each with a tag of its own in place of `search`: `tools` are their
names, search alone where nothing else is said.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from masksearch_jax.core import chinese
from masksearch_jax.core.types import SEARCH, SEARCH_ALONE, Passage, Segment

MASK = "[mask]"
_OWN_TAGS = ("think", "information", "answer")  # no tool's
_BLANK_BRAILLE = "\u2800"
_NAME = re.compile(r"[a-z][a-z_]{0,30}")

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)|[。！？]")
_WORD_END = re.compile(rf"\S(?=\s)|[{chinese.CHARACTERS}，、；：]")
LONGEST, _LONGEST_TITLE = 100_000, 1000  # characters that are read of a document and its title
_UNSPACED = re.compile(r"\s*\S{100}")  # of a script that does not space its words
_ANYWHERE = re.compile(r"\S")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class _Patterns:
    tag: re.Pattern[str]  # any of ours
    stop: re.Pattern[str]
    turn: re.Pattern[str]  # an optional thought, then exactly one action


@functools.cache
def _patterns(tools: tuple[str, ...]) -> _Patterns:
    tags, actions = "|".join(tags_of(tools)), "|".join((*tools, "answer"))
    no_tag = rf"(?:(?!(?i:</?(?:{tags})>)).)*"
    return _Patterns(
        tag=re.compile(rf"<(/?)({tags})>", re.IGNORECASE),
        stop=re.compile(rf"</({actions})>"),
        turn=re.compile(
            rf"\s*(?:<think>{no_tag}</think>)?\s*<({actions})>(?P<body>{no_tag})</\1>\s*",
            re.DOTALL,
        ),
    )


def has_mask(text: str) -> bool:
    """Whether `[mask]` is left in a text, in any case."""
    return MASK in text.casefold()


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, control characters, characters of no width."""
    return all(
        c.isspace() or c == _BLANK_BRAILLE or unicodedata.category(c) in ("Cc", "Cf") for c in text
    )


def is_name(text: str) -> bool:
    """Whether a tool may have this name: lower-case letters and "_", and no tag of the grammar."""
    return bool(_NAME.fullmatch(text)) and text not in _OWN_TAGS


def tags_of(tools: Sequence[str] = SEARCH_ALONE) -> tuple[str, ...]:
    """The names of all tags."""
    return "think", *tools, "information", "answer"


def tag_tokens(tools: Sequence[str] = SEARCH_ALONE) -> tuple[str, ...]:
    """All tags as they are written, opening and closing ones."""
    return tuple(t for tag in tags_of(tools) for t in (f"<{tag}>", f"</{tag}>"))


TAG_TOKENS = tag_tokens()


def stops(tools: Sequence[str] = SEARCH_ALONE) -> tuple[str, ...]:
    """The tags that end a turn."""
    return tuple(f"</{name}>" for name in (*tools, "answer"))


MISTAKES = ("no_action", "no_query", "no_turns", "no_tool_turns", "too_long")


def correction(mistake: str, tools: Sequence[str] = SEARCH_ALONE, tool: str = SEARCH) -> str:
    """What is said, as information, to a turn that is no action: `mistake`, one of MISTAKES.

    no_turns: no calls are left at all; no_tool_turns: none of `tool`, the one that the turn has
    called.
    """
    opening = [f"<\u200b{name}>" for name in (*tools, "answer")]
    searches = tuple(tools) == SEARCH_ALONE
    said = {
        "no_action": f"No action. Write {', '.join(opening[:-1])} or {opening[-1]} and close it.",
        "no_query": f"No query. Write one query per line in <\u200b{tool}>.",
        "no_turns": f"No {'searches' if searches else 'calls'} are left. Answer now.",
        "no_tool_turns": f"No calls of <\u200b{tool}> are left. Go on without it.",
        "too_long": "That was too long. Answer now.",
    }
    return said[mistake]


def corrections(tools: Sequence[str] = SEARCH_ALONE) -> frozenset[str]:
    """All that `correction` says, as it is shown: text of a tool that no call has given."""
    said = (correction(mistake, tools, tool) for mistake in MISTAKES for tool in tools)
    return frozenset(wrap("information", text) for text in said)


class Stop(NamedTuple):
    """Where a turn ended: `kind` is a tool or "answer", `end` the offset just after the tag."""

    kind: str
    end: int


def wrap(tag: str, text: str) -> str:
    return f"<{tag}>{text}</{tag}>"


def escape(text: str, tools: Sequence[str] = SEARCH_ALONE) -> str:
    """Text with our tags made harmless (`<answer>` → `<\u200banswer>`): no document can act."""
    return _patterns(tuple(tools)).tag.sub(lambda m: f"<\u200b{m[1]}{m[2]}>", text)


def find_stop(text: str, tools: Sequence[str] = SEARCH_ALONE) -> Stop | None:
    """The first closing action tag in one turn of policy text, or None while the turn is open."""
    match = _patterns(tuple(tools)).stop.search(text)
    return Stop(match[1], match.end()) if match else None


def parse_queries(turn_text: str, limit: int, tool: str = SEARCH) -> tuple[str, ...]:
    """Distinct non-empty lines of the last block of a tool's tag, at most `limit`."""
    opening, closing = f"<{tool}>", f"</{tool}>"
    start = turn_text.rfind(opening)
    end = turn_text.rfind(closing)
    if start < 0 or end < start:
        return ()
    lines = (line.strip() for line in turn_text[start + len(opening) : end].splitlines())
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
    tools: Sequence[str] = SEARCH_ALONE,
) -> tuple[str, tuple[Passage, ...]]:
    """An `<information>` block and the passages in it.

    Of a document with which the wrapped block no longer `fits` the leading sentences are shown, as
    many as fit, and nothing of those after it, so that the block is always closed. If it is the
    first and no sentence fits, words are shown. Of a document LONGEST characters are read. No
    passages: it says `note`. tools: of the run, whose tags are escaped.
    """
    shown: list[Passage] = []
    body = ""
    for passage in passages:
        title, text = passage.title[:_LONGEST_TITLE], passage.text[:LONGEST]
        head = "" if text.startswith(title) else f"{title}: "
        line = escape(head + text, tools)
        before = f"{body}\n" if body else ""
        is_whole = fits(wrap("information", before + line))
        if not is_whole:
            line = _beginning(line, len(escape(head, tools)), before, fits)
        if is_whole or line:
            body, shown = before + line, [*shown, passage]
        if not is_whole:
            break
    return wrap("information", body or note), tuple(shown)


def _beginning(line: str, head: int, before: str, fits: Callable[[str], bool]) -> str:
    """The most leading sentences of a document that fit; of a first one else words; or "".

    head: characters of the line that are no text yet, but its title. before: what the block has
    already, "" of a first document.
    """
    ways = [_SENTENCE_END] if before else [_SENTENCE_END, _WORD_END]
    if not before and _UNSPACED.match(line, head):
        ways.append(_ANYWHERE)

    def is_room(cut: int) -> bool:
        return fits(wrap("information", before + line[:cut].rstrip()))

    for ends in ways:
        cuts: list[int] = []
        tried = 1  # doubles, so that of a document of megabytes little more than fits is read
        for match in ends.finditer(line):
            if match.end() > head:
                cuts.append(match.end())
            if len(cuts) == 2 * tried:
                if not is_room(cuts[-1]):
                    break
                tried *= 2
        many = bisect.bisect_left(cuts, True, key=lambda cut: not is_room(cut))
        if many:
            return line[: cuts[many - 1]].rstrip()
    return ""


def extract_answer(policy_text: str, tools: Sequence[str] = SEARCH_ALONE) -> str | None:
    """The text between the only `<answer>` and the only `</answer>`; None for any other number.

    None too when a tag of the grammar stands between them: that is no answer, but a broken turn.
    """
    found = _ANSWER.search(policy_text)
    pairs = [policy_text.count(tag) for tag in ("<answer>", "</answer>")]
    if found is None or pairs != [1, 1] or _patterns(tuple(tools)).tag.search(found[1]):
        return None
    return found[1].strip()


def shown_by_search(segments: Iterable[Segment], tools: Sequence[str] = SEARCH_ALONE) -> list[str]:
    """What the tool has said, but for calls of other tools than search.

    These may say again whatever they are asked, such as a calculator a number.
    """
    found, called = [], ""
    for segment in segments:
        if segment.author == "policy":
            stop = find_stop(segment.text, tools)
            called = stop.kind if stop else ""
        elif segment.author == "tool" and (called == SEARCH or called not in tools):
            found.append(segment.text)
    return found


def is_turn(text: str, tools: Sequence[str] = SEARCH_ALONE) -> bool:
    """Whether policy text is an optional thought and one action that says something."""
    match = _patterns(tuple(tools)).turn.fullmatch(text)
    return match is not None and not is_blank(match["body"])


def is_well_formed(segments: Sequence[Segment], tools: Sequence[str] = SEARCH_ALONE) -> bool:
    """True when each policy turn is an optional thought and one action, and the last is an answer.

    Every call of a tool must carry a query, and the answer some text without `[mask]` left in it.
    Policy text holds no `<information>`, and no tag stands in a thought.
    """
    turns = [s.text for s in segments if s.author == "policy"]
    if not turns:
        return False
    matches = [m for m in map(_patterns(tuple(tools)).turn.fullmatch, turns) if m]
    if len(matches) < len(turns):
        return False
    kinds = [m[1] for m in matches]
    bodies = [m["body"] for m in matches]
    said = not any(map(is_blank, bodies)) and not has_mask(bodies[-1])
    return kinds[-1] == "answer" and "answer" not in kinds[:-1] and said
