"""Records that cross room boundaries: immutable, numpy or plain Python, JSON in and out.

Text records (`Passage`, `RampExample`, `QAExample`, `Turn`) convert with `to_json` / `from_json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np

# An object of JSON: what its values are is for its reader to find out.
JsonObject: TypeAlias = dict[str, Any]

SEARCH = "search"  # the name of the search tool: its tag, and the tool of a turn that searches
SEARCH_ALONE = (SEARCH,)  # the tools of a run that says nothing else

# The data set of statements to check, its folder and its suite; and what an answer is one of.
STATEMENTS = "statements"
VERDICTS = ("true", "false", "not told")
SPLITS = ("train", "rl", "heldout")  # of the examples made of a corpus
Author = Literal["prompt", "policy", "tool"]

# How a trajectory ended.
Status = Literal[
    "answered",
    "no_answer",  # EOS without an action
    "out_of_tokens",
    "out_of_turns",
    "repeating",  # cut by the repetition guard
    "out_of_time",
    "tool_failure",
]
STATUSES: tuple[Status, ...] = get_args(Status)
NOT_ITS_DOING = ("out_of_time", "tool_failure")  # not the policy's: the loss leaves them out


@dataclasses.dataclass(frozen=True)
class Passage:
    """One retrievable text. `id` is unique in its corpus; `title` names the article."""

    id: str
    title: str
    text: str


class Hits(list[Passage]):
    """The passages that one query found, best first, and how: equal to a plain list of them.

    scores: one per passage, empty where the tool has none. attempts: requests that were made, 0 in
    process. seconds: that the search took. cached: nothing was searched. answered_by: the address
    of the service that answered, and after a space the fingerprint of its index where that is
    known; of a stored answer the one that gave it.
    """

    def __init__(
        self,
        passages: Iterable[Passage] = (),
        *,
        scores: Sequence[float] = (),
        attempts: int = 0,
        seconds: float = 0.0,
        cached: bool = False,
        answered_by: str = "",
    ):
        super().__init__(passages)
        self.scores = tuple(scores)
        self.attempts, self.seconds, self.cached = attempts, seconds, cached
        self.answered_by = answered_by


@dataclasses.dataclass(frozen=True)
class Span:
    """A salient span, `paragraph[start:end] == text`, offsets in characters."""

    start: int
    end: int
    text: str
    type: str  # PERSON | PLACE | ORG | DATE | NUMBER | TERM


@dataclasses.dataclass(frozen=True)
class RampExample:
    """A paragraph with `k` salient spans replaced by `[mask]` (MaskSearch, section 3.1).

    `masked` holds exactly `len(spans)` times `[mask]`; `spans` are in text order with offsets into
    `paragraph`, which is the full answer.
    """

    id: str
    passage_id: str
    title: str
    masked: str
    paragraph: str
    spans: tuple[Span, ...]

    @property
    def k(self) -> int:
        return len(self.spans)


@dataclasses.dataclass(frozen=True)
class QAExample:
    """A question with its accepted answers and what its data set says of it.

    gold: ids of the passages that support the answer, in the order they are read. titles: of the
    articles that do. type, level: the set's own words. hops: steps to the answer, 0: not known.
    parts: an answer of several parts as the set structures it, as JSON; empty: a single text.
    calls: what tools other than search are to be asked once the gold passages are read, each
    "TOOL: REQUEST", the last for the answer.
    """

    id: str
    dataset: str
    question: str
    answers: tuple[str, ...]
    gold: tuple[str, ...] = ()
    type: str = ""
    titles: tuple[str, ...] = ()
    level: str = ""
    hops: int = 0
    parts: str = ""
    calls: tuple[str, ...] = ()


Example = RampExample | QAExample


def has_answer(example: Example) -> bool:
    """Whether there is anything to score an answer against."""
    known = [s.text for s in example.spans] if isinstance(example, RampExample) else example.answers
    return any(text.strip() for text in known)


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of a trajectory's text and who wrote it."""

    author: Author
    text: str


@dataclasses.dataclass(frozen=True)
class QueryRecord:
    """What a search tool gave for one query, and how; see `Hits`.

    depth: passages that it was asked for, 0 where it was not recorded. answer: of a tool that
    answers with texts; its `passage_ids` may say that it could not read the request. answered_by:
    as of `Hits`; of a search in process the fingerprint of the index.
    """

    passage_ids: tuple[str, ...]
    scores: tuple[float, ...] = ()
    attempts: int = 0
    seconds: float = 0.0
    cached: bool = False
    depth: int = 0
    answer: str | None = None
    answered_by: str = ""


@dataclasses.dataclass(frozen=True)
class Turn:
    """A call of a tool, search unless it is another: its queries, the passages that it showed (ids
    and titles), seconds waited, error if any.

    found: what the tool gave for each query, where it was recorded; no part of what is compared.
    unreadable: queries that the tool could not read.
    """

    queries: tuple[str, ...]
    passage_ids: tuple[str, ...]
    titles: tuple[str, ...]
    seconds: float
    error: str = ""
    found: tuple[QueryRecord, ...] = dataclasses.field(default=(), compare=False)
    tool: str = SEARCH
    unreadable: int = 0


def count_searches(turns: Iterable[Turn]) -> int:
    """How many of the calls are searches."""
    return sum(turn.tool == SEARCH for turn in turns)


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One rollout, token-exact: prompt, sampled tokens and observations as the policy saw them.

    ids: int32[T]. logprobs: float32[T], of sampled tokens under the policy at the sampling
    temperature, 0 elsewhere. sampled: bool[T], True only where the policy sampled the token.
    versions: int32[T], the policy's version then (weights may change in mid-trajectory), else -1.
    `segments` is the same sequence as text, with one of the policy for each run of sampled tokens,
    "" where these are no text; `prompt_len` counts the leading prompt tokens. `tools`: the names of
    those that it could call.
    """

    example_id: str
    sample: int
    ids: np.ndarray
    logprobs: np.ndarray
    sampled: np.ndarray
    versions: np.ndarray
    prompt_len: int
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    status: Status
    seconds: float = 0.0
    tools: tuple[str, ...] = SEARCH_ALONE

    @property
    def searches(self) -> int:
        return count_searches(self.turns)

    def text_by(self, author: Author) -> str:
        """All that an author wrote, without what stands between: of "policy" its turns, joined."""
        return "".join(s.text for s in self.segments if s.author == author)


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A trajectory as text, written by a teacher: tokenised segment by segment for SFT."""

    id: str
    example_id: str
    task: str  # ramp_k1 … ramp_k4, or a QA dataset
    teacher: str
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    method: str = "agent"  # or one of a single turn, whose prompt holds what the tool has said


Record = (
    Passage
    | Span
    | RampExample
    | QAExample
    | Segment
    | QueryRecord
    | Turn
    | Trajectory
    | Demonstration
)
R = TypeVar("R", bound=Record)

_ARRAYS = {
    "ids": np.int32,
    "logprobs": np.float32,
    "sampled": np.bool_,
    "versions": np.int32,
}
_NESTED: dict[str, type[Span | Segment | QueryRecord | Turn]] = {
    "found": QueryRecord,
    "spans": Span,
    "segments": Segment,
    "turns": Turn,
}


# What a record need not say of a run of search alone, of an agent's demonstration, of an unknown.
_UNSAID: JsonObject = {
    "tool": SEARCH,
    "tools": SEARCH_ALONE,
    "unreadable": 0,
    "calls": (),
    "method": "agent",
    "answer": None,
    "answered_by": "",
}


def to_json(record: Record) -> JsonObject:
    """A JSON-ready dict of a record of this module; arrays become lists.

    Fields of other tools than search are left out where there is none, and so are the method of an
    agent's demonstration and who answered where that is not known.
    """
    out = dataclasses.asdict(record, dict_factory=_said)
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in out.items()}


def _said(fields: Iterable[tuple[str, Any]]) -> JsonObject:
    return {k: v for k, v in fields if k not in _UNSAID or v != _UNSAID[k]}


def from_json(cls: type[R], obj: JsonObject) -> R:
    """The inverse of `to_json`. Raises ValueError naming a missing or unknown field."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(obj) - set(fields))
    missing = sorted(
        n for n, f in fields.items() if n not in obj and f.default is dataclasses.MISSING
    )
    if unknown or missing:
        raise ValueError(
            f"{cls.__name__}: unknown fields {unknown}, missing fields {missing}; "
            f"it has {sorted(fields)}"
        )
    values: JsonObject = {}
    for name, value in obj.items():
        if name in _NESTED:
            values[name] = tuple(from_json(_NESTED[name], v) for v in value)
        elif name in _ARRAYS:
            values[name] = np.asarray(value, _ARRAYS[name])
        elif isinstance(value, list):
            values[name] = tuple(value)
        else:
            values[name] = value
    return cls(**values)
