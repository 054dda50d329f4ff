"""Stored rollouts: which are chosen, and what a row holds."""

import gzip
import json

import numpy as np
import pytest

from masksearch_jax.core.types import QAExample, Segment, Trajectory
from masksearch_jax.rl.groups import Group
from masksearch_jax.rl.rewards import RewardTerms
from masksearch_jax.rl.rollout_log import RolloutLog
from masksearch_jax.rl.update import Trained

SIZE = 2


def group(stream: int) -> Group:
    ids = np.arange(4, dtype=np.int32)
    sampled = np.asarray([False, False, True, True])
    logprobs = np.asarray([0, 0, -0.5, -np.inf], np.float32)
    versions = np.where(sampled, 0, -1).astype(np.int32)
    parts = (Segment("prompt", "?"), Segment("policy", "ab"))
    made = [
        Trajectory("e", i, ids, logprobs, sampled, versions, 2, parts, (), "answered", 0.25)
        for i in range(SIZE)
    ]
    terms = [RewardTerms(1.0, 1.0, 0.0, 1.0, (-0.5,)), RewardTerms(float("nan"), 0.0, 0.0, 0.0)]
    return Group(QAExample(f"e{stream}", "made", "?", ("a",)), made, terms, stream)


def read(folder, step: int) -> list[dict]:
    with gzip.open(folder / "rollouts" / f"{step}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def write(folder, amount: float, seen, kept=(), step: int = 1) -> list[dict]:
    gains = np.asarray([[1.0, -1.0]] * len(kept), np.float32).reshape(-1, SIZE)
    logprobs = [np.asarray([-9.0, -0.25, -0.75], np.float32), np.zeros(0, np.float32)] * len(kept)
    log = RolloutLog(folder, amount, 0, lambda ids: "abcd"[ids[0]])
    log.write(step, step - 1, seen, kept, Trained(gains, logprobs))
    return read(folder, step)


def test_a_row_has_what_its_sample_was_trained_by(tmp_path):
    seen = [group(0), group(1)]
    rows = write(tmp_path, 1.0, seen, kept=[seen[1]], step=7)
    by_name = {(row["group"], row["sample"]): row for row in rows}
    assert list(by_name) == [(1, 0), (1, 1), (0, 0), (0, 1)]
    row = by_name[1, 0]
    assert (row["step"], row["version"], row["trained"], row["advantage"]) == (7, 6, True, 1.0)
    assert row["reward"]["total"] == 1.0
    assert row["reward"]["turns"] == [-0.5]
    assert row["logprobs"] == [0, 0, -0.5, None]
    assert row["trainer_logprobs"] == [0, 0, -0.25, -0.75]
    assert row["tokens"] == ["a", "b", "c", "d"]
    assert row["example"]["id"] == "e1"
    assert by_name[1, 1]["reward"]["total"] is None
    assert by_name[1, 1]["trainer_logprobs"] is None  # left out of the loss
    assert (by_name[0, 0]["trained"], by_name[0, 0]["advantage"]) == (False, None)


@pytest.mark.parametrize(
    ("amount", "groups"), [(1.0, 8), (0.5, 4), (0.01, 1), (2, 1), (3, 2), (999, 8)]
)
def test_whole_groups_are_chosen_by_share_or_number(tmp_path, amount, groups):
    seen = [group(i) for i in range(8)]
    rows = write(tmp_path, amount, seen)
    assert len(rows) == groups * SIZE
    assert len({row["group"] for row in rows}) == groups
    assert write(tmp_path, amount, seen) == rows


def test_a_step_is_overwritten_and_carried_groups_are_there_when_they_train(tmp_path):
    write(tmp_path, 1.0, [group(0), group(1)])
    rows = write(tmp_path, 1.0, [group(2)], kept=[group(0)])
    assert [(row["group"], row["trained"]) for row in rows[::SIZE]] == [(0, True), (2, False)]
    assert [p.name for p in (tmp_path / "rollouts").iterdir()] == ["1.jsonl.gz"]


def test_a_step_without_groups_is_an_empty_file(tmp_path):
    assert write(tmp_path, 0.5, []) == []
