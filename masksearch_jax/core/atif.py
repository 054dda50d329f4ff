"""Trajectories as ATIF v1.7 documents, token-exact, and back.

The prompt is a step of the user, each turn a step of the agent. Of a turn, `reasoning_content` is
the thought, `tool_calls` the call of search or of another tool, `observation` what it showed,
`message` all other text. A turn that had no room left for a token is a step without an inference.
A search that was made for the prompt, by no turn, is `retrieved` in the user's `extra`.
`metrics` has the ids before the turn and those of the turn, with their log-probabilities. `extra`
of a step holds the text as it was written; `extra` of the document what ATIF has no field for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from masksearch_jax import __version__
from masksearch_jax.core import markup
from masksearch_jax.core.atif_schema import (
    VERSION,
    Agent,
    Document,
    FinalMetrics,
    Metrics,
    Observation,
    ObservationResult,
    Step,
    ToolCall,
)
from masksearch_jax.core.types import (
    SEARCH,
    JsonObject,
    Segment,
    Trajectory,
    Turn,
    from_json,
    to_json,
)

AGENT = "masksearch_jax"
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


class _Round(NamedTuple):
    """What the policy wrote in one go, what was said to it then, and its call, if it made one.

    policy: None where it had no room to write.
    """

    policy: str | None
    tool: str | None
    turn: Turn | None


def to_atif(
    trajectory: Trajectory, *, run: str = "", model: str = "", facts: JsonObject | None = None
) -> Document:
    """The document of a trajectory, sampled by an engine or from an endpoint without ids.

    run: the run that it is of. model: its name. facts: further ones, such as the example and the
    reward, under `extra`.
    """
    prompt = "".join(s.text for s in trajectory.segments if s.author == "prompt")
    runs = _sampled_runs(trajectory.sampled)
    retrieved = _retrieved(trajectory)
    extra = {"retrieved": [to_json(turn) for turn in retrieved]} if retrieved else None
    steps = [Step(step_id=1, source="user", message=prompt, extra=extra)]
    left = iter(runs)
    for number, found in enumerate(_rounds(trajectory, trajectory.turns[len(retrieved) :]), 2):
        tokens = None if found.policy is None else next(left, None)
        steps.append(_step(number, found, tokens and _metrics(trajectory, *tokens)))
    own = {
        name: getattr(trajectory, name)
        for name in ("example_id", "sample", "status", "seconds", "prompt_len")
    }
    end = runs[-1][1] if runs else 0
    own |= {"ids_after": trajectory.ids[end:].tolist(), "tools": list(trajectory.tools)}
    return Document(
        schema_version=VERSION,
        session_id=run or None,
        trajectory_id=f"{trajectory.example_id}/{trajectory.sample}",
        agent=Agent(
            name=AGENT,
            version=__version__,
            model_name=model or None,
            tool_definitions=[_definition(tool) for tool in trajectory.tools],
        ),
        steps=steps,
        final_metrics=FinalMetrics(
            total_prompt_tokens=sum(start for start, _ in runs),
            total_completion_tokens=int(trajectory.sampled.sum()),
            total_steps=len(steps),
        ),
        extra={AGENT: own} | (facts or {}),
    )


def from_atif(document: Document) -> Trajectory:
    """The inverse of `to_atif`; ValueError for a document of another agent."""
    own = (document.extra or {}).get(AGENT)
    if own is None:
        raise ValueError(f"the document is of {document.agent.name}: its extra has no {AGENT}")
    user, *agent = document.steps
    segments = [Segment("prompt", str(user.message))] if user.message else []
    turns = [from_json(Turn, turn) for turn in (user.extra or {}).get("retrieved", ())]
    ids: list[int] = []
    arrays: dict[str, list[Any]] = {"logprobs": [], "sampled": [], "versions": []}
    for step in agent:
        if step.extra is not None:
            segments.append(Segment("policy", step.extra["text"]))
        for result in step.observation.results if step.observation else ():
            if result.content is not None:
                segments.append(Segment("tool", str(result.content)))
            if "turn" in (result.extra or {}):
                turns.append(from_json(Turn, (result.extra or {})["turn"]))
        if step.metrics is not None:
            _add_tokens(step.metrics, ids, arrays)
    _add_given(own["ids_after"], ids, arrays)
    return Trajectory(
        example_id=own["example_id"],
        sample=own["sample"],
        ids=np.asarray(ids, np.int32),
        logprobs=np.asarray(arrays["logprobs"], np.float32),
        sampled=np.asarray(arrays["sampled"], np.bool_),
        versions=np.asarray(arrays["versions"], np.int32),
        prompt_len=own["prompt_len"],
        segments=tuple(segments),
        turns=tuple(turns),
        status=own["status"],
        seconds=own["seconds"],
        tools=tuple(own["tools"]),
    )


def dumps(document: Document) -> str:
    """One line of JSON, without the fields that are empty."""
    return document.model_dump_json(exclude_none=True)


# ---- text


def _definition(tool: str) -> JsonObject:
    """A tool as OpenAI's function calling describes one."""
    queries = {"type": "array", "items": {"type": "string"}}
    parameters = {"type": "object", "properties": {"queries": queries}, "required": ["queries"]}
    said = "Finds passages." if tool == SEARCH else "Answers each query."
    return {
        "type": "function",
        "function": {"name": tool, "description": said, "parameters": parameters},
    }


def _retrieved(trajectory: Trajectory) -> tuple[Turn, ...]:
    """The search that was made for the prompt: nothing was shown after it, and no turn calls it."""
    corrections = markup.corrections(trajectory.tools)
    shown = any(s.author == "tool" and s.text not in corrections for s in trajectory.segments)
    if shown or len(trajectory.turns) != 1 or trajectory.status == "tool_failure":
        return ()
    (turn,) = trajectory.turns
    last = next((s.text for s in reversed(trajectory.segments) if s.author == "policy"), "")
    is_call = f"</{turn.tool}>" in last and all(query in last for query in turn.queries)
    return () if is_call else (turn,)


def _rounds(trajectory: Trajectory, made: Sequence[Turn]) -> Iterator[_Round]:
    """What the policy wrote and what it was told, in turn; `made`: the calls among these."""
    turns, corrections = iter(made), markup.corrections(trajectory.tools)
    texts = [s for s in trajectory.segments if s.author != "prompt"]
    place = 0
    while place < len(texts):
        policy = _text_by("policy", texts, place)
        place += policy is not None
        tool = _text_by("tool", texts, place)
        place += tool is not None
        is_result = tool is not None and tool not in corrections
        is_last = place == len(texts)
        # A call that failed, or whose result had no room, is not followed by a result.
        turn = next(turns, None) if is_result or is_last else None
        yield _Round(policy, tool, turn)


def _text_by(author: str, texts: Sequence[Segment], place: int) -> str | None:
    is_there = place < len(texts) and texts[place].author == author
    return texts[place].text if is_there else None


def _step(number: int, found: _Round, metrics: Metrics | None) -> Step:
    text = found.policy or ""
    thought = _THOUGHT.match(text)
    rest = text[thought.end() :] if thought else text
    calls, results = None, []
    if found.turn is not None:
        tool = found.turn.tool
        name = f"{tool}_{number}"
        rest = re.sub(f"<{tool}>.*?</{tool}>", "", rest, count=1, flags=re.DOTALL)
        arguments = {"queries": list(found.turn.queries)}
        calls = [ToolCall(tool_call_id=name, function_name=tool, arguments=arguments)]
        extra = {"turn": to_json(found.turn)}
        results = [ObservationResult(source_call_id=name, content=found.tool, extra=extra)]
    elif found.tool is not None:
        results = [ObservationResult(content=found.tool)]
    return Step(
        step_id=number,
        source="agent",
        message=rest,
        reasoning_content=thought[1] if thought else None,
        tool_calls=calls,
        observation=Observation(results=results) if results else None,
        metrics=metrics,
        llm_call_count=int(found.policy is not None),
        extra=None if found.policy is None else {"text": found.policy},
    )


# ---- tokens


def _sampled_runs(sampled: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of each stretch of tokens that the policy sampled."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], sampled, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _metrics(trajectory: Trajectory, start: int, end: int) -> Metrics:
    logprobs = trajectory.logprobs[start:end].astype(float).tolist()
    finite = [x for x in logprobs if np.isfinite(x)]
    extra: JsonObject = {"versions": trajectory.versions[start:end].tolist()}
    if len(finite) < len(logprobs):
        extra["logprobs"] = [x if np.isfinite(x) else None for x in logprobs]
    return Metrics(
        prompt_tokens=start,
        completion_tokens=end - start,
        prompt_token_ids=trajectory.ids[:start].tolist(),
        completion_token_ids=trajectory.ids[start:end].tolist(),
        logprobs=logprobs if len(finite) == len(logprobs) else None,
        extra=extra,
    )


def _add_tokens(metrics: Metrics, ids: list[int], arrays: dict[str, list[Any]]) -> None:
    """What was given before the turn, then what was sampled in it."""
    _add_given((metrics.prompt_token_ids or [])[len(ids) :], ids, arrays)
    extra, sampled = metrics.extra or {}, metrics.completion_token_ids or []
    logprobs = metrics.logprobs if metrics.logprobs is not None else extra["logprobs"]
    ids += sampled
    arrays["logprobs"] += [np.nan if x is None else x for x in logprobs]
    arrays["sampled"] += [True] * len(sampled)
    arrays["versions"] += extra["versions"]


def _add_given(given: list[int], ids: list[int], arrays: dict[str, list[Any]]) -> None:
    ids += given
    arrays["logprobs"] += [0.0] * len(given)
    arrays["sampled"] += [False] * len(given)
    arrays["versions"] += [-1] * len(given)
