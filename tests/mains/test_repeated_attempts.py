"""What an earlier session of `build_trajectories` did is neither lost nor done again."""

from collections import Counter

import pytest

from masksearch_jax import build_trajectories
from masksearch_jax.agents import attempts
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.types import Demonstration, RampExample, Segment, Span, Turn

SPAN = Span(0, 4, "1928", "DATE")
EXAMPLES = [
    RampExample(f"r{i}", "p", "T", "[mask] was wet.", "1928 was wet.", (SPAN,)) for i in range(6)
]
FAILED = "tool_failure"  # no fault of the teacher, so that it is attempted again


def demonstration(example, sample):
    turn = Turn((str(sample),), ("p",), ("T",), 0.0)
    said = (Segment("policy", f"<search>{sample}</search>"),)
    task = f"ramp_k{example.k}"
    return Demonstration(f"{example.id}/t/{sample}", example.id, task, "t", said, (turn,))


class Teacher:
    """Several attempts at each example, of which the second is refused and `failing` ones fail.

    failing: (example, attempt). stop: it is interrupted after so many outcomes.
    """

    def __init__(self, attempts, failing=(), stop=None):
        self.attempts, self.failing, self.stop = attempts, failing, stop
        self.asked = []

    def solve(self, examples, done):
        self.asked += [e.id for e in examples]
        outcomes = []
        for example in examples:
            for sample in range(self.attempts):
                if len(outcomes) == self.stop:
                    raise KeyboardInterrupt
                outcomes.append(self._outcome(example, sample))
                done(outcomes[-1])
        return outcomes

    def _outcome(self, example, sample):
        if (example.id, sample) in self.failing:
            return Rejection(example.id, FAILED, "the search is down")
        if sample == 1:
            return Rejection(example.id, "spans_wrong", "0.500")
        return demonstration(example, sample)

    def figures(self):
        return {}

    def forget_unread(self):
        return ""

    def close(self):
        pass


@pytest.fixture
def solve(tmp_path, monkeypatch):
    """One session by a teacher; its summary."""
    write_jsonl(tmp_path / "ramp" / "train.jsonl", EXAMPLES)

    def session(teacher, **changes):
        settings = {"kinds": ("ramp",), "search": SearchConfig(kind="none")} | changes
        monkeypatch.setattr(build_trajectories, "make_teacher", lambda cfg: teacher)
        return build_trajectories.run(
            build_trajectories.BuildTrajectoriesRun(str(tmp_path), **settings)
        )

    return session


def outcomes(folder):
    """Example → the ids and reasons of its attempts."""
    found = {e.id: Counter() for e in EXAMPLES}
    for made in read_jsonl(folder / "demonstrations" / "train.jsonl", Demonstration):
        found[made.example_id][made.id] += 1
    path = build_trajectories.rejected_path(folder)
    for lost in read_jsonl(path, Rejection):
        found[lost.example_id][lost.reason] += 1
    return found


@pytest.mark.parametrize("stop", [0, 1, 2, 4, 7])
def test_an_outage_and_then_an_interruption_lose_no_attempt(solve, tmp_path, stop):
    down = [(f"r{i}", 0) for i in range(4)]
    with pytest.raises(attempts.FailedError, match="4 of 24 attempts failed"):
        solve(Teacher(4, down))
    stopped = Teacher(4, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        solve(stopped)
    assert stopped.asked == ["r0", "r1", "r2", "r3"]
    last = Teacher(4)
    made = solve(last)
    assert last.asked == ["r0", "r1", "r2", "r3"][stop // 4 :]  # those that it had not finished
    assert (made["tried"], made["demonstrations"], made["rejected"]) == (24, 18, {"spans_wrong": 6})
    assert outcomes(tmp_path) == {
        e.id: Counter([*(f"{e.id}/t/{s}" for s in (0, 2, 3)), "spans_wrong"]) for e in EXAMPLES
    }


def test_a_second_outage_is_told_without_what_the_first_has_left(solve, monkeypatch):
    """Of six examples two are done; of the four whose first attempts failed, one is tried."""
    monkeypatch.setattr(attempts, "OUTAGE", 3)
    with pytest.raises(attempts.FailedError, match="4 of 24 attempts failed"):
        solve(Teacher(4, [(f"r{i}", 0) for i in range(4)]))
    down = [("r0", sample) for sample in range(4)]
    with pytest.raises(attempts.FailedError, match=rf"^3 of 11 attempts failed \(3 {FAILED}\)"):
        solve(Teacher(4, down))
    last = Teacher(4)
    assert solve(last)["rejected"] == {"spans_wrong": 6}
    assert last.asked == ["r0", "r1", "r2", "r3"]


def test_what_fails_again_is_counted_once_and_kept(solve, tmp_path):
    down = [(f"r{i}", 0) for i in range(4)]
    for _ in range(2):
        with pytest.raises(attempts.FailedError, match="4 of 24 attempts failed"):
            solve(Teacher(4, down))
    made = solve(Teacher(4, [("r3", 2)]), max_failed=0.05)
    assert made["rejected"] == {"spans_wrong": 6, FAILED: 1}
    assert outcomes(tmp_path)["r3"] == Counter(["r3/t/0", "spans_wrong", FAILED, "r3/t/3"])
