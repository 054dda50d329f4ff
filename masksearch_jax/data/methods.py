"""Methods by which a task is given to a model: what the prompt says, and what is retrieved for it.

closed_book: no tool in the prompt. rag: one retrieval with the question, its passages in the
prompt, no agent. agent: the model searches as its prompt says or as it was trained. Controls of the
agent: no_search, whose searches find nothing, and random, whose searches find random passages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from masksearch_jax.core import markup, retrieval
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.tools import Instructions
from masksearch_jax.core.types import Example, RampExample, Turn
from masksearch_jax.data import prompt

METHODS = ("closed_book", "rag", "agent", "no_search", "random")
SINGLE_TURN = ("closed_book", "rag")  # methods of which the model writes one answer and no search
Taught = Literal["agent", "rag", "closed_book"]  # methods that a demonstration can show
_SEARCHING = ("rag", "agent")  # methods whose search is the configured one

_ANSWERING = """\
First think between <think> and </think>. Then put your final answer between <answer> and \
</answer>, which ends the task."""
_CLOSED_BOOK = f"Do the task below from what you know. {_ANSWERING}"
_RAG = f"""\
Do the task below with the help of passages of an encyclopedia, which a search for it has found. \
Trust what you read more than what you remember. {_ANSWERING}"""


def query_of(example: Example) -> str:
    """What rag searches for: the question, or the masked paragraph without its masks."""
    text = example.masked if isinstance(example, RampExample) else example.question
    return " ".join(text.replace(markup.MASK, " ").split())


class Retrieved(NamedTuple):
    """One retrieval: the search as a turn, and its passages as an `<information>` block."""

    turn: Turn
    information: str


def retrieve(
    tool: SearchTool,
    example: Example,
    cfg: SearchConfig,
    hidden: str,
    fits: Callable[[str], bool],
) -> Retrieved:
    """The passages that rag puts into the prompt, the last of them cut so that the block `fits`.

    hidden: the passage never to be shown. Raises what the tool raises.
    """
    started = time.perf_counter()
    query = query_of(example)
    passages, found = retrieval.find_recorded(tool, (query,), cfg, hidden)
    information, shown = markup.render_information(passages, fits=fits)
    ids, titles = tuple(p.id for p in shown), tuple(p.title for p in shown)
    seconds = time.perf_counter() - started
    return Retrieved(Turn((query,), ids, titles, seconds, found=found), information)


def opening(method: str, style: str) -> str:
    """What the prompt writes of the answer: a model that reads no instructions is led to it."""
    return "<answer>" if method in SINGLE_TURN and style == "minimal" else ""


def wording(
    method: str,
    example: Example,
    style: str,
    information: str = "",
    tools: Sequence[Instructions] = prompt.SEARCH_ALONE,
) -> str:
    """The prompt of a method before a template is applied; `information` is that of rag.

    tools: of the agent.
    """
    if method not in SINGLE_TURN:
        return prompt.wording(example, style, tools)
    text = prompt.question_text(example)
    if style == "minimal":
        return f"{text}\n{information}{opening(method, style)}"
    task = prompt.RAMP_TASK if isinstance(example, RampExample) else prompt.QA_TASK
    parts = (_RAG if method == "rag" else _CLOSED_BOOK, information, task, text)
    return "\n\n".join(part for part in parts if part)


def prompt_ids(
    method: str,
    example: Example,
    style: str,
    vocab: Vocabulary,
    information: str = "",
    tools: Sequence[Instructions] = prompt.SEARCH_ALONE,
) -> np.ndarray:
    """int32[P]. Retrieved text is encoded apart: control tokens spelled in it stay text."""
    text = wording(method, example, style, information, tools)
    if style != "minimal":
        text = vocab.apply_chat_template([{"role": "user", "content": text}])
    before, found, after = text.partition(information) if information else (text, "", "")
    ids = vocab.encode(before)
    if found:
        ids += vocab.encode(found, literal=True) + (vocab.encode(after) if after else [])
    return np.asarray(ids, np.int32)
