"""What an earlier session of `build_trajectories` did is neither lost nor done again."""

import dataclasses
from collections import Counter

import pytest

from configs import common
from masksearch_jax import build_trajectories
from masksearch_jax.agents import attempts
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.agents.selection import StudentConfig
from masksearch_jax.core.config import ModelConfig, SearchConfig
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.types import Demonstration, QAExample, RampExample, Segment, Span, Turn
from masksearch_jax.testing.services import Answer, Endpoint

SPAN = Span(0, 4, "1928", "DATE")
EXAMPLES = [
    RampExample(f"r{i}", "p", "T", "[mask] was wet.", "1928 was wet.", (SPAN,)) for i in range(6)
]
QUESTIONS = [QAExample(f"q{i}", "towns", f"Which town is number {i}?", ("Oslo",)) for i in range(3)]
FAILED = "tool_failure"  # no fault of the teacher, so that it is attempted again


def demonstration(example, sample):
    turn = Turn((str(sample),), ("p",), ("T",), 0.0)
    said = (Segment("policy", f"<search>{sample}</search>"),)
    task = "ramp_k1" if isinstance(example, RampExample) else example.dataset
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
    write_jsonl(tmp_path / "questions" / "train.jsonl", QUESTIONS)

    def session(teacher, /, **changes):
        settings = {"kinds": ("ramp",), "search": SearchConfig(kind="none")} | changes
        monkeypatch.setattr(build_trajectories, "make_teacher", lambda cfg, search: teacher)
        return build_trajectories.run(
            build_trajectories.BuildTrajectoriesRun(str(tmp_path), **settings)
        )

    return session


@pytest.fixture
def endpoint():
    """It tells nothing of the models that it serves."""
    with Endpoint(Answer("")) as found:
        yield found


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


def told(capsys):
    """What stderr says is replaced."""
    return [x.strip() for x in capsys.readouterr().err.splitlines() if " replaced (" in x]


@pytest.mark.parametrize(
    ("teacher", "judge", "reads_student", "reads_llm"),
    [
        ("scripted", "rules", False, False),
        ("scripted", "llm", False, False),
        ("agents", "rules", False, True),
        ("local", "rules", True, False),
        ("local", "llm", True, True),
    ],
)
def test_demonstrations_are_made_anew_by_what_their_teacher_reads_alone(
    solve, tmp_path, capsys, endpoint, teacher, judge, reads_student, reads_llm
):
    """Of the weights and settings of the student, and of the settings of the LLM."""
    weights = tmp_path / "checkpoints"
    weights.mkdir()
    (weights / "weights").write_text("1")
    model = to_dataclass(ModelConfig, common.MODELS["tiny"] | {"vocab_size": 512})
    given = {"init": str(weights), "tokenizer": "t", "model": model}
    student = StudentConfig(**given, samples=1, judge=judge)
    llm = LLMConfig(base_url=endpoint.url, model="a", cache=str(tmp_path / "replies.sqlite"))
    settings = {"teacher": teacher, "student": student, "llm": llm}

    def is_made_anew(**changes):
        counting = Teacher(1)
        solve(counting, **settings | changes)
        assert counting.asked in ([], [e.id for e in EXAMPLES])
        return bool(counting.asked)

    assert is_made_anew()
    assert not is_made_anew()
    assert is_made_anew(llm=dataclasses.replace(llm, model="b")) == reads_llm
    assert is_made_anew() == reads_llm
    assert is_made_anew(student=dataclasses.replace(student, samples=2)) == reads_student
    assert is_made_anew() == reads_student
    (weights / "weights").write_text("22")
    assert is_made_anew() == reads_student
    assert len(told(capsys)) == 2 * reads_llm + 3 * reads_student
    changed = dataclasses.replace(student, samples=3), dataclasses.replace(llm, model="c")
    assert is_made_anew(student=changed[0], llm=changed[1], seed=1)
    (said,) = told(capsys)
    assert ("student.samples" in said, "llm.model" in said) == (reads_student, reads_llm)


def test_an_unfinished_call_is_not_lost_by_a_call_for_the_other_kind(solve, tmp_path, capsys):
    solve(Teacher(1, [("r3", 0)]), max_failed=0.2)
    solve(Teacher(1, [("q0", 0), ("q1", 0)]), kinds=("questions",), max_failed=0.9)
    last = Teacher(1)
    assert solve(last)["rejected"] == {}
    assert last.asked == ["r3"]
    last = Teacher(1)
    assert solve(last, kinds=("questions",))["rejected"] == {}
    assert last.asked == ["q0", "q1"]
    made = read_jsonl(tmp_path / "demonstrations" / "train.jsonl", Demonstration)
    assert [d.example_id for d in made] == [e.id for e in (*EXAMPLES, *QUESTIONS)]
    assert told(capsys) == []
    assert not list((tmp_path / "demonstrations").glob("*.parts"))


def test_what_is_told_to_be_replaced_is_there(solve, tmp_path, capsys):
    both = ("ramp", "questions")
    where = f"{tmp_path / 'demonstrations'}: demonstrations of"
    with pytest.raises(attempts.FailedError):
        solve(Teacher(1, [(e.id, 0) for e in EXAMPLES]))
    assert told(capsys) == []
    solve(Teacher(1), kinds=("questions",))  # of RAMP nothing is finished
    assert told(capsys) == []
    solve(Teacher(1), kinds=both, seed=1)
    (said,) = told(capsys)
    assert said.startswith(f"{where} ramp, questions of other settings will be replaced (")
    solve(Teacher(1), kinds=("statements", "ramp"), seed=2)
    (said,) = told(capsys)
    assert said.startswith(f"{where} ramp of other settings will be replaced (")


def test_a_kind_without_examples_has_no_demonstrations(solve, tmp_path):
    write_jsonl(tmp_path / "statements" / "train.jsonl", [])
    made = solve(Teacher(1), kinds=("statements",))
    assert (made["examples"], made["tried"], made["demonstrations"]) == (0, 0, 0)


def test_other_settings_of_a_kind_replace_its_unfinished_parts_alone(solve, tmp_path):
    for kind, failing in (("ramp", "r3"), ("questions", "q1")):
        solve(Teacher(1, [(failing, 0)]), kinds=(kind,), max_failed=0.9)
    solve(Teacher(1, [("r2", 0)]), seed=1, max_failed=0.2)
    parts = tmp_path / "demonstrations" / "train.parts"
    assert sorted(p.name for p in parts.glob("*/*.json")) == [
        "questions-000000000.json",
        "ramp-000000000.json",
    ]
    assert len(list(parts.iterdir())) == 2
    last = Teacher(1)
    solve(last, kinds=("questions",))
    assert last.asked == ["q1"]
    again = Teacher(1)
    solve(again, max_failed=0.2)
    assert again.asked == [e.id for e in EXAMPLES]


def test_what_was_solved_with_another_index_of_the_service_is_solved_again(
    solve, monkeypatch, capsys
):
    """Four of six examples fail at first; the service has another index when the job goes on."""
    served = {"search.url": "one"}
    monkeypatch.setattr(build_trajectories, "index_served", lambda tool, cfg: dict(served))
    with pytest.raises(attempts.FailedError):
        solve(Teacher(4, [(f"r{i}", 0) for i in range(4)]))
    same = Teacher(4, stop=0)
    with pytest.raises(KeyboardInterrupt):
        solve(same)
    assert same.asked == ["r0", "r1", "r2", "r3"]
    assert "another index" not in capsys.readouterr().err
    served["search.url"] = "two"
    again = Teacher(4)
    solve(again)
    assert again.asked == [e.id for e in EXAMPLES]
    said = "config.search.url searches another index than before (one → two): what an earlier"
    assert said in capsys.readouterr().err
