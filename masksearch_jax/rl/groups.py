"""Groups of samples of one prompt: which of them teach something, and the tokens they train."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.rows import Tokens
from masksearch_jax.core.types import NOT_ITS_DOING, Example, Trajectory, from_json, to_json
from masksearch_jax.data.demonstrations import parse_example
from masksearch_jax.rl import advantages, turns
from masksearch_jax.rl.rewards import RewardTerms

# Of a token: its id, the next one, whether the policy sampled that, its log-probability when it was
# sampled and under the policy that the step began with, and its advantage.
DAPO_FIELDS = {
    "ids": np.int32,
    "targets": np.int32,
    "loss_mask": np.bool_,
    "logp_sampler": np.float32,
    "logp_old": np.float32,
    "advantages": np.float32,
}


class Group(NamedTuple):
    """One prompt's samples, in sample order, and their rewards."""

    example: Example
    trajectories: list[Trajectory]
    rewards: list[RewardTerms]
    stream: int = 0  # the prompt's number in the run

    @property
    def oldest(self) -> int:
        """The version of the policy that sampled its oldest token."""
        return min(oldest(t) for t in self.trajectories)

    @property
    def counted(self) -> list[Trajectory]:
        """Those whose end is the policy's doing."""
        return [t for t in self.trajectories if t.status not in NOT_ITS_DOING]


def oldest(trajectory: Trajectory) -> int:
    """The version of the policy that sampled its oldest token; without any, later than all."""
    return int(trajectory.versions[trajectory.sampled].min(initial=np.iinfo(np.int32).max))


def pack(group: Group) -> str:
    """All of a group as text, compressed; `unpack` gives it back bit for bit."""
    found = {
        "stream": group.stream,
        "example": json.dumps(to_json(group.example)),
        "trajectories": [to_json(t) for t in group.trajectories],
        "rewards": [dataclasses.asdict(r) for r in group.rewards],
    }
    return base64.b64encode(zlib.compress(json.dumps(found).encode())).decode()


def unpack(text: str) -> Group:
    """The inverse of `pack`."""
    found = json.loads(zlib.decompress(base64.b64decode(text)))
    trajectories = [from_json(Trajectory, t) for t in found["trajectories"]]
    rewards = [RewardTerms(**r | {"turns": tuple(r["turns"])}) for r in found["rewards"]]
    return Group(parse_example(found["example"]), trajectories, rewards, found["stream"])


def overlong(group: Group, cfg: DapoConfig, rollout: RolloutConfig) -> np.ndarray:
    """float32[n]: what is added to the reward of each sample for its length, 0 or less."""
    lengths = np.asarray([int(t.sampled.sum()) for t in group.trajectories], np.int64)
    return advantages.overlong_penalty(
        lengths, rollout.max_new_tokens, cfg.overlong_buffer, cfg.overlong_penalty
    )


def score_groups(
    groups: Sequence[Group], cfg: DapoConfig, rollout: RolloutConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Totals with the overlong penalty and which samples count [G, n], groups with spread [G].

    Those that ended for no fault of the policy, and those without a finite reward, never count;
    with `overlong_filter`, nor do truncated samples: m = 0 on all their tokens, and they are in no
    mean of their group (overlong filtering of DAPO, arXiv 2503.14476, section 3.4). All groups
    have as many samples.
    """
    # No group is a batch too, of a process that has none.
    shape = (len(groups), -1 if groups else cfg.group_size)

    def table(rows: Sequence[Sequence | np.ndarray], dtype: type) -> np.ndarray:
        return np.asarray(rows, dtype).reshape(shape)

    total = table([[r.total for r in g.rewards] for g in groups], np.float32)
    accuracy = table([[r.accuracy for r in g.rewards] for g in groups], np.float32)
    status = table([[t.status for t in g.trajectories] for g in groups], np.str_)
    total = total + table([overlong(g, cfg, rollout) for g in groups], np.float32)
    known = table([[r.is_known for r in g.rewards] for g in groups], np.bool_)
    valid = ~np.isin(status, NOT_ITS_DOING) & known & np.isfinite(total)
    if cfg.overlong_filter:
        valid &= status != "out_of_tokens"
    threshold = cfg.accuracy_threshold if cfg.keep_by == "accuracy" else None
    keep = advantages.keep_groups(accuracy, threshold, total, cfg.min_spread, valid)
    return total, valid, keep


class Counts(NamedTuple):
    """Groups of a process in a step: to train on, with those carried over; sampled, with spread."""

    have: int
    kept: int
    seen: int


def lacking(counts: Sequence[Counts], wanted: int) -> int:
    """Prompts per process to sample so that each is likely to have `wanted` groups to train on.

    counts: of each process so far. 0: all have theirs. At most `wanted`, whatever share of the
    groups sampled had spread.
    """
    short = max(wanted - min(c.have for c in counts), 0)
    kept, seen = sum(c.kept for c in counts), sum(c.seen for c in counts)
    return min(math.ceil(short * max(seen, 1) / max(kept, 1)), wanted)


def to_tokens(
    groups: Sequence[Group], advantage: np.ndarray, valid: np.ndarray, count: int
) -> list[Tokens]:
    """`count` sequences of DAPO_FIELDS, group by group; advantage and valid are [G, n].

    Each is a sample's ids and, as targets, those that follow them. Samples of which nothing is to
    be learned, and those beyond the groups, are empty: they have neither loss nor tokens. The
    advantage of a token is its sample's and what its turn adds.
    """
    empty: Tokens = {name: np.zeros(0, kind) for name, kind in DAPO_FIELDS.items()}
    samples = [s for g in groups for s in zip(g.trajectories, g.rewards, strict=True)]
    found: list[Tokens] = []
    for (sample, terms), counts, gain in zip(samples, valid.flat, advantage.flat, strict=True):
        loss_mask = sample.sampled[1:] & counts
        tokens = {
            "ids": sample.ids[:-1],
            "targets": sample.ids[1:],
            "loss_mask": loss_mask,
            "logp_sampler": sample.logprobs[1:],
            "logp_old": np.zeros(len(loss_mask), np.float32),
            "advantages": (gain + turns.per_token(sample, terms.turns))[1:],
        }
        found.append(tokens if loss_mask.any() else empty)
    return found + [empty] * (count - len(found))
