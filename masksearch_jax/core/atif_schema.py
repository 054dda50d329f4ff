"""The Agent Trajectory Interchange Format (ATIF) v1.7, as its authors publish the fields.

https://github.com/harbor-framework/harbor/blob/main/rfcs/0001-trajectory-format.md. Types are
strict and unknown fields are refused. `Document.model_validate_json` reads a document; pydantic's
ValidationError names each field that is amiss.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

VERSION: Literal["ATIF-v1.7"] = "ATIF-v1.7"
Extra: TypeAlias = dict[str, Any] | None
Count: TypeAlias = Annotated[int, Field(ge=0)] | None


class _Object(BaseModel):
    """An object of the format."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class ImageSource(_Object):
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    path: str


class ContentPart(_Object):
    """Text or an image, never both."""

    type: Literal["text", "image"]
    text: str | None = None
    source: ImageSource | None = None

    @model_validator(mode="after")
    def _validate_content(self) -> ContentPart:
        if (self.text is not None, self.source is not None) != (
            self.type == "text",
            self.type == "image",
        ):
            raise ValueError(f"a part of type {self.type} holds that, and nothing else")
        return self


class SubagentTrajectoryRef(_Object):
    """Another agent's trajectory: in this document by its id, or in a file."""

    trajectory_id: str | None = None
    trajectory_path: str | None = None
    session_id: str | None = None
    extra: Extra = None

    @model_validator(mode="after")
    def _validate_target(self) -> SubagentTrajectoryRef:
        if self.trajectory_id is None and self.trajectory_path is None:
            raise ValueError("a reference needs trajectory_id or trajectory_path")
        return self


class ToolCall(_Object):
    tool_call_id: str
    function_name: str
    arguments: dict[str, Any]
    extra: Extra = None


class ObservationResult(_Object):
    source_call_id: str | None = None
    content: str | list[ContentPart] | None = None
    subagent_trajectory_ref: list[SubagentTrajectoryRef] | None = None
    extra: Extra = None


class Observation(_Object):
    results: list[ObservationResult]


class Metrics(_Object):
    """Figures of one inference; the arrays are as long as the counts beside them say."""

    prompt_tokens: Count = None
    completion_tokens: Count = None
    cached_tokens: Count = None
    cost_usd: float | None = None
    prompt_token_ids: list[int] | None = None
    completion_token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    extra: Extra = None

    @model_validator(mode="after")
    def _validate_lengths(self) -> Metrics:
        for name, count in (
            ("prompt_token_ids", self.prompt_tokens),
            ("completion_token_ids", self.completion_tokens),
            ("logprobs", self.completion_tokens),
        ):
            values = getattr(self, name)
            if values is not None and count is not None and len(values) != count:
                raise ValueError(f"{name} has {len(values)} values for {count} tokens")
        return self


class Step(_Object):
    """A prompt, or a turn of the agent: what it wrote, the calls it made, what came of them."""

    step_id: int
    timestamp: str | None = None
    source: Literal["system", "user", "agent"]
    model_name: str | None = None
    reasoning_effort: str | float | None = None
    message: str | list[ContentPart]
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    observation: Observation | None = None
    metrics: Metrics | None = None
    extra: Extra = None
    llm_call_count: Count = None
    is_copied_context: bool | None = None

    @model_validator(mode="after")
    def _validate_author(self) -> Step:
        if self.timestamp is not None:
            datetime.datetime.fromisoformat(self.timestamp)
        agents = ("model_name", "reasoning_effort", "reasoning_content", "tool_calls", "metrics")
        given = [name for name in agents if getattr(self, name) is not None]
        if self.source != "agent" and given:
            raise ValueError(f"a step of source {self.source} has {', '.join(given)}: an agent's")
        if (
            self.source == "agent"
            and self.llm_call_count == 0
            and ({"metrics", "reasoning_content"} & {*given})
        ):
            raise ValueError("a step without an inference has metrics or reasoning_content")
        calls = {call.tool_call_id for call in self.tool_calls or ()}
        for result in self.observation.results if self.observation else ():
            if result.source_call_id is not None and result.source_call_id not in calls:
                raise ValueError(f"a result is of the call {result.source_call_id!r}, not there")
        return self


class Agent(_Object):
    name: str
    version: str
    model_name: str | None = None
    tool_definitions: list[dict[str, Any]] | None = None
    extra: Extra = None


class FinalMetrics(_Object):
    total_prompt_tokens: Count = None
    total_completion_tokens: Count = None
    total_cached_tokens: Count = None
    total_cost_usd: float | None = None
    total_steps: Count = None
    extra: Extra = None


class Document(_Object):
    """A whole trajectory."""

    schema_version: Literal["ATIF-v1.7"]
    session_id: str | None = None
    trajectory_id: str | None = None
    agent: Agent
    steps: list[Step]
    notes: str | None = None
    final_metrics: FinalMetrics | None = None
    continued_trajectory_ref: str | None = None
    extra: Extra = None
    subagent_trajectories: list[Document] | None = None

    @model_validator(mode="after")
    def _validate_order(self) -> Document:
        numbers = [step.step_id for step in self.steps]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f"step_id must count from 1; it is {numbers[:8]}")
        names = [document.trajectory_id for document in self.subagent_trajectories or ()]
        if None in names or len(set(names)) != len(names):
            raise ValueError("embedded trajectories need a trajectory_id each, all different")
        return self
