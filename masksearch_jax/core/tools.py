"""What an agent may call: one protocol for search and for every other tool.

A tool is called by its tag, `<NAME>one request per line</NAME>`, and answers with documents, which
come back as `<information>`. `Searching` puts a search tool behind the protocol, `Answering` any
object that answers a text with a text; a `Toolbox` holds the tools of a run.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from masksearch_jax.core import markup, retrieval
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.core.markup import SEARCH
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.types import Hits, Passage, QueryRecord

UNREADABLE = "unreadable"  # the id of an answer among results
_MOST_REQUESTS = 4  # read from one call of a tool that answers with texts


class ToolError(RuntimeError):
    """A tool could not answer: its failure, never the policy's."""


class Unreadable(str):
    """An answer that says why a request could not be read: the policy's mistake, no failure."""


@dataclasses.dataclass(frozen=True)
class Instructions:
    """What a tool tells an agent of itself.

    name: its tag. offers: what helps, as in "with the help of …". usage: what to put where, as in
    "- NAME: …". advice: a sentence for the end of the instructions, or none.
    """

    name: str
    offers: str
    usage: str
    advice: str = ""


SEARCHING = Instructions(
    name=SEARCH,
    offers="a search engine over an encyclopedia",
    usage=(
        "put one to three queries, one per line, between <search> and </search>. What is found "
        "comes back between <information> and </information>"
    ),
    advice="Search as often as you need to, and trust what you read more than what you remember.",
)


class TextTool(Protocol):
    """What a tool of a user's is: a class without arguments, its four texts attributes of it.

    Two more attributes it may have. `fingerprint`, a text, says that an answer depends on the
    request and on this version of the tool alone: its answers are then shared, cached and replayed
    as results of search are. `requests_per_second` bounds how many requests of a process begin.
    """

    name: str  # its tag, lower-case letters and "_"
    offers: str  # "a converter of units"
    usage: str  # "put an amount and two units between <convert> and </convert>, such as …"
    example: str  # a request that it can answer, asked at the start of a run

    def answer(self, request: str) -> str:
        """What comes back for one line of a call; called from many threads at once.

        A request that it cannot read is answered too, best by an `Unreadable`. What it raises is a
        failure of the tool, which no policy is blamed for.
        """
        ...


class Result(NamedTuple):
    """What a call has found: passages or texts, with a record of each query.

    unreadable: requests that the tool could not read.
    """

    passages: tuple[Passage, ...] = ()
    records: tuple[QueryRecord, ...] = ()
    texts: tuple[str, ...] = ()
    unreadable: int = 0

    @property
    def documents(self) -> tuple[Passage, ...]:
        """What is shown: the passages, or each text as one without a title."""
        return self.passages or tuple(Passage("", "", text) for text in self.texts)


class Tool(Protocol):
    """A tool as the rollout engine and the teachers call it."""

    @property
    def about(self) -> Instructions: ...
    @property
    def max_requests(self) -> int:
        """Lines that are read of one call."""
        ...

    def call(self, requests: Sequence[str], hidden: str) -> Result:
        """Raises what makes the call a failed one. hidden: a passage that it must not show."""
        ...


@dataclasses.dataclass(frozen=True)
class Searching:
    """A search tool, and what of its results an agent is shown."""

    tool: SearchTool
    cfg: SearchConfig
    about: Instructions = SEARCHING

    @property
    def max_requests(self) -> int:
        return self.cfg.max_queries

    def begin(self, calls: Sequence[tuple[Sequence[str], str]]) -> None:
        """Of calls that are about to come, (requests, hidden): what a tool searches for at once."""
        begin = getattr(self.tool, "begin", None)
        if begin is None:
            return
        by_depth = collections.defaultdict(list)
        for requests, hidden in calls:
            by_depth[retrieval.first_depth(self.cfg, hidden)].append(requests)
        for depth, asked in by_depth.items():
            begin(asked, depth)

    def call(self, requests: Sequence[str], hidden: str) -> Result:
        return Result(*retrieval.find_recorded(self.tool, requests, self.cfg, hidden))


class Answering:
    """A tool that answers each request with a text; `said`: how the config names it.

    around: puts a cache and the like around its `Answers`. Raises ConfigError for an object that is
    no TextTool.
    """

    max_requests = _MOST_REQUESTS

    def __init__(
        self, tool: TextTool, said: str, around: Callable[[SearchTool], SearchTool] | None = None
    ):
        self._tool, self._said = tool, said
        self.about = instructions(tool, said)
        if not callable(getattr(tool, "answer", None)):
            raise ConfigError(f"{said} has no method answer(request)")
        self._answers = Answers(tool, said)
        self._asked = around(self._answers) if around else self._answers

    def call(self, requests: Sequence[str], hidden: str) -> Result:
        found = [self._one(request) for request in requests]
        texts = tuple(text for text, _ in found)
        unreadable = sum(UNREADABLE in record.passage_ids for _, record in found)
        return Result(records=tuple(r for _, r in found), texts=texts, unreadable=unreadable)

    def _one(self, request: str) -> tuple[str, QueryRecord]:
        started = time.monotonic()
        (hits,) = self._asked.search([request], 1)
        is_cached = isinstance(hits, Hits) and hits.cached
        seconds = 0.0 if is_cached else time.monotonic() - started
        text = retrieval.as_text(hits[0]).text
        ids = (UNREADABLE,) if hits[0].id == UNREADABLE else ()
        kept = text[: markup.LONGEST]  # of which no more is shown
        return text, QueryRecord(ids, seconds=seconds, cached=is_cached, answer=kept)

    def check_example(self) -> None:
        """Asks its own example, and no cache. Raises ToolError where that has no answer."""
        ((answer,),) = self._answers.search([self._tool.example], 1)
        if answer.id == UNREADABLE:
            raise ToolError(
                f"{self._said} cannot read its own example, {self._tool.example!r}: {answer.text}"
            )


class Answers:
    """A TextTool's answers as results of a search: a passage each, whose text the answer is.

    Its id is UNREADABLE for an answer that says so.
    """

    def __init__(self, tool: TextTool, said: str):
        self._tool, self._said = tool, said

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return [[self._passage(query)] for query in queries]

    def _passage(self, request: str) -> Passage:
        answer = self._answer(request)
        return Passage(UNREADABLE if isinstance(answer, Unreadable) else "", "", str(answer))

    def _answer(self, request: str) -> str:
        try:
            answer = self._tool.answer(request)
        except Exception as error:
            raise ToolError(
                f"{self._said} raised {type(error).__name__} for {request!r}: {error}"
            ) from error
        if not isinstance(answer, str):
            raise ToolError(
                f"{self._said} gave {answer!r:.80} ({type(answer).__name__}) for {request!r}; an "
                "answer must be a str"
            )
        return answer


def instructions(tool: Any, said: str) -> Instructions:
    """What a TextTool, or its class, tells of itself. Raises ConfigError for a text it lacks."""
    for name in ("name", "offers", "usage", "example"):
        value = getattr(tool, name, None)
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(
                f"{said} has {value!r} as its attribute {name!r}; it must be a text that is not "
                "empty"
            )
    return Instructions(tool.name, tool.offers, tool.usage)


class Toolbox:
    """The tools of a run by name: search, then the others as the config names them."""

    def __init__(self, search: Searching, others: Iterable[Tool] = ()):
        self._search, self._others = search, tuple(others)
        self._by_name: dict[str, Tool] = {tool.about.name: tool for tool in (search, *self._others)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def instructions(self) -> tuple[Instructions, ...]:
        return tuple(tool.about for tool in self._by_name.values())

    @property
    def limits(self) -> dict[str, int]:
        """Of each tool, the lines that are read of one call."""
        return {name: tool.max_requests for name, tool in self._by_name.items()}

    @property
    def search(self) -> SearchTool:
        return self._search.tool

    def begin_searches(self, calls: Sequence[tuple[Sequence[str], str]]) -> None:
        """As `Searching.begin`."""
        self._search.begin(calls)

    def __getitem__(self, name: str) -> Tool:
        return self._by_name[name]

    def searching(self, search: SearchTool, cfg: SearchConfig) -> Toolbox:
        """The same tools with another search."""
        return Toolbox(Searching(search, cfg), self._others)


def search_alone(search: SearchTool, cfg: SearchConfig) -> Toolbox:
    """The toolbox of an agent that searches and does nothing else."""
    return Toolbox(Searching(search, cfg))


def check_budgets(said: Sequence[str], names: Sequence[str]) -> None:
    """Raises what `budgets` does."""
    budgets(said, names)


def budgets(said: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Calls that each tool may have, from `NAME=NUMBER`s. Raises ConfigError for another text."""
    key, found = "config.rollout.tool_turns", {}
    for text in said:
        name, _, number = text.partition("=")
        if not number.strip().isdecimal():
            raise ConfigError(f"{key} has {text!r}; it must be TOOL=NUMBER, such as search=2")
        if name.strip() not in names:
            raise ConfigError(
                f"{key} has {text!r}, and the run has no tool {name.strip()!r}; "
                f"{nearest(name, names)}"
            )
        found[name.strip()] = int(number)
    return found
