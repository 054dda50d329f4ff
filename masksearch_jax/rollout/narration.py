"""What happens in a trajectory, as events for a person: each told once, as it comes, without tags.

{"plan": "..."}                                    a piece of what the agent thinks
{"search": ["query", ...]}                         what it searches for
{"documents": [{"id", "title", "text"}, ...]}      what it reads
{"call": {"tool", "requests": [...]}}              what it asks another tool than search
{"result": "..."}                                  what that says
{"note": "..."}                                    what it is told of a turn that is no action
{"answer": "..."}  or  {"failed": "..."}           at the end, once
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from masksearch_jax.core import markup
from masksearch_jax.core.types import SEARCH, JsonObject, Passage, Segment, Status
from masksearch_jax.rollout.episode import Episode

_REASONS: dict[Status, str] = {
    "no_answer": "it ended without an answer",
    "out_of_tokens": "its tokens were used up",
    "out_of_turns": "its searches were used up",
    "repeating": "it repeated itself",
    "out_of_time": "its time was over",
}


class Seen(NamedTuple):
    """A trajectory up to now: its segments, each call's queries, the passages it showed, its tool.

    tools: of each call; search where there is none. observed: of each call, the place of the
    segment with what it showed; the last may have none, where there was no room for it.
    """

    segments: tuple[Segment, ...]
    queries: tuple[tuple[str, ...], ...]
    shown: tuple[tuple[Passage, ...], ...]
    tools: tuple[str, ...] = ()
    observed: tuple[int, ...] = ()

    def tool(self, i: int) -> str:
        return self.tools[i] if i < len(self.tools) else SEARCH

    def call(self, i: int) -> JsonObject:
        return {"tool": self.tool(i), "requests": list(self.queries[i])}

    def calls_of(self, tool: str) -> list[int]:
        """The numbers of a tool's calls."""
        return [i for i in range(len(self.queries)) if self.tool(i) == tool]


NOTHING = Seen((), (), ())


def seen_of(episode: Episode) -> Seen:
    queries, tools = (tuple(getattr(t, n) for t in episode.turns) for n in ("queries", "tool"))
    shown, observed = tuple(episode.shown), tuple(episode.observed)
    return Seen(tuple(episode.segments), queries, shown, tools, observed)


class Narrator:
    """Turns what a trajectory has so far into events. limits: of each tool, requests of a call."""

    def __init__(self, limits: Mapping[str, int]):
        self._limits, self._tools = limits, tuple(limits)
        self._tags = markup.tag_tokens(self._tools)
        self._tag = re.compile("|".join(map(re.escape, self._tags)))
        self._action = re.compile(rf"<(?:{'|'.join((*self._tools, 'answer'))})>")
        self._at = 0  # the segment that is being told
        self._told = 0  # characters of its plan
        self._has_called = False  # whether its call is told

    def tell(self, seen: Seen) -> Iterator[JsonObject]:
        """What has come since the last call."""
        while self._at < len(seen.segments):
            segment = seen.segments[self._at]
            is_last = self._at == len(seen.segments) - 1
            if segment.author == "policy":
                yield from self._policy(segment.text, is_whole=not is_last)
            elif segment.author == "tool":
                yield self._tool(self._at, seen)
            if is_last and segment.author == "policy":
                return  # it may grow
            self._at += 1
            self._told, self._has_called = 0, False

    def end(
        self, seen: Seen, status: Status, error: str = "", tool: str = SEARCH
    ) -> Iterator[JsonObject]:
        """What was not told yet, and the answer or why there is none.

        error, tool: of a failed call.
        """
        yield from self.tell(seen)
        if seen.segments and seen.segments[-1].author == "policy":
            yield from self._policy(seen.segments[-1].text, is_whole=True)
        for i in range(len(seen.observed), len(seen.shown)):  # for which there was no room
            if seen.tool(i) == SEARCH:
                yield _documents(seen.shown[i])
        if why := failure_of(seen, status, self._tools, error, tool):
            yield {"failed": why}
        else:
            yield {"answer": answer_of(seen.segments, self._tools)}

    def _policy(self, text: str, is_whole: bool) -> Iterator[JsonObject]:
        plan = self._plan(text, is_whole)
        if len(plan) > self._told:
            yield {"plan": plan[self._told :]}
            self._told = len(plan)
        stop = markup.find_stop(text, self._tools)
        if stop and stop.kind in self._limits and not self._has_called:
            self._has_called = True
            tool = stop.kind
            if queries := markup.parse_queries(text, self._limits[tool], tool):
                is_search = tool == SEARCH
                call = {"tool": tool, "requests": list(queries)}
                yield {"search": list(queries)} if is_search else {"call": call}

    def _tool(self, place: int, seen: Seen) -> JsonObject:
        """What a tool showed, or what the turn before was told: the segment at a place."""
        said = self._tag.sub("", seen.segments[place].text)
        if place not in seen.observed:
            return {"note": said}
        i = seen.observed.index(place)
        return _documents(seen.shown[i]) if seen.tool(i) == SEARCH else {"result": said}

    def _plan(self, text: str, is_whole: bool) -> str:
        """What a turn says outside its action, without tags; of one in the making, what is sure."""
        action = self._action.search(text)
        if action:
            text = text[: action.start()]
        elif not is_whole:
            text = steady(text, self._tags)
        return self._tag.sub("", text).strip()


def _documents(passages: Sequence[Passage]) -> JsonObject:
    return {"documents": [as_document(p) for p in passages]}


def as_document(passage: Passage) -> JsonObject:
    return {"id": passage.id, "title": passage.title, "text": passage.text}


def answer_of(segments: Sequence[Segment], tools: Sequence[str]) -> str | None:
    """What the policy answered; None for no answer or a malformed one."""
    return markup.extract_answer("".join(s.text for s in segments if s.author == "policy"), tools)


def failure_of(
    seen: Seen, status: Status, tools: Sequence[str], error: str = "", tool: str = SEARCH
) -> str:
    """Why a trajectory has no answer, "" where it has one. error, tool: of a failed call."""
    if status == "tool_failure":
        return f"the {tool} failed: {error}"
    if status == "answered" and answer_of(seen.segments, tools) is not None:
        return ""
    return f"no answer: {_REASONS.get(status, 'its answer is malformed')}"


def steady(text: str, stops: Sequence[str] = ()) -> str:
    """The part of a text in the making that will stay: no half of a character, or of a stop."""
    text = text.rstrip("\ufffd")
    longest = max(map(len, stops), default=1) - 1
    for held in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-held:]) for stop in stops):
            return text[:-held]
    return text
