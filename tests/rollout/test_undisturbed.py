"""Plain requests: free text beside agents' trajectories, added from any thread, withdrawn."""

from __future__ import annotations

import dataclasses
import itertools
import threading

import pytest

from tests.rollout.word_engine import (
    ANSWERER,
    GREEDY,
    SAID,
    VOCAB,
    chain,
    engine,
    request,
    transformer,
)

KEEP = dataclasses.replace(GREEDY, in_flight="keep")
TALKER = chain("plan", "<search>", "red", "</search>", "<answer>", "blue", "</answer>", "<eos>")


def plain(text="plan", stream=0, **changes):
    return dataclasses.replace(request(text, stream), plain=True, **changes)


def said(trajectory) -> str:
    return trajectory.text_by("policy")


@pytest.mark.parametrize("corrections", [0, 1])
def test_tags_are_only_text_and_eos_is_left_out(corrections):
    rollout = dataclasses.replace(GREEDY, corrections=corrections, max_turn_tokens=3)
    with engine(rollout=rollout) as e:
        (t,) = e.run(TALKER, [plain()])
        assert e.stats.searches == 0
    assert said(t) == "<search>red</search><answer>blue</answer>"
    assert (t.status, t.turns, int(t.sampled.sum())) == ("answered", (), 7)
    assert t.ids[-1] == VOCAB.eos_ids[0]


def test_it_is_decoded_beside_agents_trajectories():
    with engine(rollout=GREEDY) as e:
        out = list(e.run(ANSWERER, [request("plan", 0), plain("plan", 1, max_new_tokens=4)]))
    by_id = {t.example_id: t for t in out}
    assert "".join(s.text for s in by_id["e0"].segments[1:]) == SAID
    assert (said(by_id["e1"]), by_id["e1"].status) == ("<search>red</search>", "answered")


@pytest.mark.parametrize(
    ("limit", "rollout", "sampled"),
    [
        (3, GREEDY, 3),
        (0, GREEDY, 24),
        (99, GREEDY, 24),
        (0, dataclasses.replace(GREEDY, max_new_tokens=99, answer_tokens=9, corrections=1), 63),
    ],
)
def test_it_ends_at_its_limit(limit, rollout, sampled):
    with engine(rollout=rollout) as e:
        (t,) = e.run(chain("plan", "plan"), [plain(max_new_tokens=limit)])
    assert (t.status, int(t.sampled.sum())) == ("out_of_tokens", sampled)
    assert said(t) == "plan" * sampled


def test_its_tokens_are_the_same_alone_and_in_a_crowd():
    asked = [plain("red blue plan" if i % 2 else "plan", i, max_new_tokens=9) for i in range(9)]
    with engine() as e:
        crowd = {t.example_id: t for t in e.run(transformer(), [*asked, request("plan", 10)])}
        for one in asked[:3]:
            (alone,) = e.run(transformer(), [one])
            assert alone.ids.tolist() == crowd[one.example_id].ids.tolist()
    assert len({tuple(t.ids.tolist()) for t in crowd.values()}) > 5


def test_requests_come_while_it_runs_and_after():
    with engine(rollout=KEEP) as e:
        found = []
        for t in e.run(TALKER, [plain(stream=0)]):
            found.append(t.example_id)
            if len(found) < 4:
                e.submit(plain(stream=len(found)))
        assert found == ["e0", "e1", "e2", "e3"]
        e.submit(plain(stream=4))
        assert e.in_flight == 1
        assert [t.example_id for t in e.run(TALKER)] == ["e4"]


def test_nothing_is_lost_that_other_threads_submit():
    """Runs end all the time, since nothing waits for them: what comes just then is of the next."""
    threads, each = 4, 50
    with engine(rollout=KEEP) as e:
        list(e.run(TALKER))

        def submit(first: int) -> None:
            for i in range(each):
                e.submit(plain(stream=first * each + i))

        started = [threading.Thread(target=submit, args=(n,)) for n in range(threads)]
        for thread in started:
            thread.start()
        found = []
        while len(found) < threads * each:
            found += [t.example_id for t in e.run(TALKER)]
        for thread in started:
            thread.join()
        assert e.in_flight == 0
    assert sorted(found) == sorted(f"e{i}" for i in range(threads * each))


def test_what_cannot_be_added_is_refused_at_once_and_the_run_goes_on():
    with engine(rollout=KEEP) as e:
        found = []
        for t in e.run(TALKER, [plain(stream=0)]):
            found.append(t.example_id)
            if t.example_id == "e0":
                with pytest.raises(ValueError, match=r"has 64 tokens; rollout\.max_len is 64"):
                    e.submit(plain("plan" * 64, 1))
                e.submit(plain("plan" * 63, 2))
        assert found == ["e0", "e2"]
    with engine(rollout=GREEDY) as e, pytest.raises(ValueError, match="choose 'keep'"):
        e.submit(plain())


@pytest.mark.parametrize("after", range(3))
def test_one_that_is_withdrawn_ends_once_whenever_that_is(after):
    """In the first of its two ticks, between them, and in the last, whose tokens are to come."""
    looks = itertools.count()
    gone = plain(stream=1, max_new_tokens=8, withdrawn=lambda: next(looks) >= after)
    with engine(rollout=GREEDY) as e:
        out = list(e.run(chain("plan", "plan"), [plain(stream=0), gone]))
        assert e.stats.trajectories == 2
        assert all(shard.pool.used == 0 for shard in e._shards)
    by_id = {t.example_id: t for t in out}
    assert len(out) == len(by_id) == 2
    assert by_id["e1"].status == "out_of_time"
    assert int(by_id["e1"].sampled.sum()) == 4 * ((after + 1) // 2)
    assert int(by_id["e0"].sampled.sum()) == 24
