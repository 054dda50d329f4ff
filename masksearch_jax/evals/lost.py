"""Items of an evaluation that have no score, by no fault of the model: never a zero in a mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from masksearch_jax.core.errors import UserError

_NAMED = 3  # items that a message quotes


class LostItemsError(UserError):
    """More items have no score than the run tolerates."""


class Lost(NamedTuple):
    """An item without a score: its reason, a status or what was wrong with it before, and more."""

    suite: str
    method: str
    id: str
    reason: str
    detail: str


def check_share(
    lost: Sequence[Lost],
    total: Mapping[tuple[str, str], int],
    said: str,
    share: float,
    key: str,
    after: str = "",
) -> None:
    """Raises LostItemsError where more than a share of the items are lost, or all of them.

    total: items of each suite and method. said: what became of those lost, for the message.
    """
    for place, count in total.items():
        own = [i for i in lost if i[:2] == place]
        if own and (len(own) == count or len(own) > share * count):
            raise LostItemsError(
                f"{' '.join(place)}: {len(own)} of {count} items {said}, more than "
                f"config.eval.{key}={share:g} allows: {named(own)}{after}"
            )


def named(lost: Sequence[Lost]) -> str:
    """The first few by id, each with its reason."""
    told = [f"{i.id} ({': '.join(filter(None, (i.reason, i.detail)))})" for i in lost[:_NAMED]]
    return "; ".join(told) + ("; …" if len(lost) > _NAMED else "")
