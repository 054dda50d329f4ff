"""Counts of what was left out, by reason, each reason with the first item it met."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any


class ShareError(ValueError):
    """A step of a build left out more than its share; the message names reasons and examples."""


@dataclasses.dataclass
class Tally:
    """Items seen and kept by a step of a build, those left out by reason, an example of each."""

    seen: int = 0
    kept: int = 0
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    example: dict[str, str] = dataclasses.field(default_factory=dict)

    def drop(self, reason: str, name: str, count: int = 1) -> None:
        self.dropped[reason] += count
        self.example.setdefault(reason, name)

    def add(self, other: Tally) -> None:
        """Adds the counts of `other`; the examples here stay where there are some."""
        self.seen += other.seen
        self.kept += other.kept
        self.dropped += other.dropped
        self.example = other.example | self.example

    def check_share(self, what: str, share: float, key: str) -> None:
        """Raises ShareError when more than `share` of what was seen was left out."""
        lost = self.dropped.total()
        if lost > share * self.seen:
            reasons = ", ".join(
                f"{n:,} {reason} (as {self.example.get(reason, '?')})"
                for reason, n in self.dropped.most_common()
            )
            raise ShareError(
                f"{what}: {lost:,} of {self.seen:,} left out, more than {key}={share:g} allows: "
                f"{reasons}"
            )

    def to_json(self) -> dict[str, Any]:
        """{"in", "out", "dropped" by reason, most first, "example" of each reason}."""
        dropped = dict(self.dropped.most_common())
        return {"in": self.seen, "out": self.kept, "dropped": dropped, "example": self.example}

    @classmethod
    def from_json(cls, obj: dict[str, Any]) -> Tally:
        return cls(obj["in"], obj["out"], Counter(obj["dropped"]), dict(obj["example"]))
