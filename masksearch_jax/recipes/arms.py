"""Arms of a study: each a chain of stages with overrides, read from a line of its config.

    "NAME: STAGE STAGE KEY=VALUE KEY=VALUE"

Words without `=` are stages in their order, the others are overrides of the study's config. An arm
without stages is the model that training starts from. `{sft.steps//2}` within an override is what
that comes to, by the study's own keys.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from masksearch_jax.core.errors import ConfigError, nearest

# Stages that an arm may name → the sections that they are told by.
STAGES = {
    "ramp_sft": ("sft", "sft_optim"),
    "ramp_dapo": ("dapo", "dapo_optim"),
    "qa_sft": ("qa_sft", "qa_sft_optim"),
    "qa_dapo": ("qa_dapo", "qa_dapo_optim"),
    # After ramp_sft: the same again, and the same with trajectories of its own.
    "more_sft": ("sft", "sft_optim"),
    "self_sft": ("sft", "sft_optim"),
}


_TERM = re.compile(r"\{([^{}]*)\}")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A name, the stages that it trains by, and what it overrides, as KEY=VALUE."""

    name: str
    stages: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def has_questions(self) -> bool:
        """Whether a stage trains on questions."""
        return any(stage.startswith("qa_") for stage in self.stages)


def read(lines: Sequence[str], reference: str) -> list[Arm]:
    """The arms of a study, in order.

    Raises ConfigError for a line that is no arm, a name that is there twice, an unknown or repeated
    stage, and a reference that is no arm.
    """
    arms = [_arm(line) for line in lines]
    names = [arm.name for arm in arms]
    if twice := next((n for n in names if names.count(n) > 1), ""):
        raise ConfigError(f"config.arms has {twice!r} twice; give each arm a name of its own")
    if len(arms) < 2:
        raise ConfigError(
            f"config.arms has {len(arms)} arm{'s' * (len(arms) != 1)}; a study compares two at "
            "least, one of which is config.reference"
        )
    if not reference:
        raise ConfigError(
            "config.reference is empty; it must name the arm that the others are compared with: "
            f"{', '.join(names)}"
        )
    if reference not in names:
        raise ConfigError(f"config.reference is {reference!r}, no arm; {nearest(reference, names)}")
    return arms


def _arm(line: str) -> Arm:
    name, colon, rest = (part.strip() for part in line.partition(":"))
    if not colon or not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(
            f"config.arms has {line!r}, which is not 'NAME: STAGE … KEY=VALUE …' with a name of "
            "letters, digits, '_', '-' and '.'"
        )
    words = rest.split()
    stages = tuple(word for word in words if "=" not in word)
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(
                f"config.arms: {name} has the stage {stage!r}; {nearest(stage, STAGES)}"
            )
    if len(set(stages)) < len(stages):
        raise ConfigError(f"config.arms: {name} has a stage twice: {' '.join(stages)}")
    return Arm(name, stages, tuple(word for word in words if "=" in word))


def resolved(arm: Arm, keys: Mapping[str, Any]) -> Arm:
    """The arm with what each `{…}` of its overrides comes to, by the study's keys.

    keys: dotted name → value. A term is a key, a number, or these joined by + - * //. So an arm
    follows what the command line says of a key. Raises ConfigError for what is none.
    """

    def told(term: re.Match[str]) -> str:
        try:
            return repr(_value(ast.parse(term[1], mode="eval").body, keys))
        except (ConfigError, SyntaxError, ZeroDivisionError) as error:
            why = error if isinstance(error, ConfigError) else "it is no term"
            raise ConfigError(
                f"config.arms: {arm.name} has {term[0]}, which is to be keys that are numbers, and "
                f"numbers, joined by + - * //: {why}"
            ) from error

    return dataclasses.replace(arm, overrides=tuple(_TERM.sub(told, o) for o in arm.overrides))


def _value(node: ast.expr, keys: Mapping[str, Any]) -> int | float:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, keys), _value(node.right, keys))
    name = ast.unparse(node)
    value = node.value if isinstance(node, ast.Constant) else keys.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        if name not in keys:
            raise ConfigError(f"{name!r} is no key; {nearest(name, keys)}")
        raise ConfigError(f"{name} is {value!r}")
    return value
