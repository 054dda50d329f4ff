"""Sampling that stops early: what is in flight is dropped, kept, or kept with its cache rebuilt."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import types
from collections.abc import Callable

import jax
import numpy as np
import pytest

from masksearch_jax.core.config import MeshConfig
from masksearch_jax.core.types import Trajectory
from masksearch_jax.models.layout import shard_parameters
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rollout import engine as engine_module
from masksearch_jax.rollout import episode as episode_module
from tests.rollout.word_engine import (
    ANSWERER,
    GREEDY,
    OVERSUBSCRIBED,
    REQUESTS,
    ROLLOUT,
    SEARCH,
    chain,
    colours,
    engine,
    request,
    same_ids,
    teacher_forced,
    transformer,
)

KEPT = [dataclasses.replace(ROLLOUT, in_flight=how, max_staleness=9) for how in ("keep", "rebuild")]


@pytest.fixture(scope="module")
def models():
    return transformer(0), transformer(1)


def by_request(*parts):
    """Trajectories of several runs; fails where a request ended twice."""
    out = [t for part in parts for t in part]
    found = {(t.example_id, t.sample): t for t in out}
    assert len(found) == len(out)
    return found


def some(e, model, requests, version, count):
    """A run that stops once it has yielded `count`."""
    out = []
    for t in e.run(model, requests, version, enough=lambda: len(out) >= count):
        out.append(t)
    return out


def two_runs(rollout, models, count=6):
    """The first model until `count` have finished, then the second for the rest."""
    with engine(rollout=rollout) as e:
        first = some(e, models[0], REQUESTS, 0, count)
        left = e.in_flight
        assert len(first) >= count
        assert left == len(REQUESTS) - len(first) > 0
        second = list(e.run(models[1], version=1))
        assert e.in_flight == 0
        return first, second, e.stats


def test_enough_stops_a_run_and_what_was_in_flight_is_dropped():
    with engine(rollout=GREEDY) as e:
        first = some(e, ANSWERER, [request("plan", i) for i in range(9)], 0, 1)
        assert 1 <= len(first) <= GREEDY.slots
        assert e.in_flight == 0
        assert list(e.run(ANSWERER, version=1)) == []
        (after,) = e.run(ANSWERER, [request("plan", 9)], 1)
    assert (after.example_id, set(after.versions.tolist())) == ("e9", {-1, 1})
    assert after.ids.tolist() == first[0].ids.tolist()


@pytest.mark.parametrize("rollout", KEPT, ids=lambda c: c.in_flight)
def test_the_next_weights_finish_what_the_last_began(rollout, models):
    first, second, stats = two_runs(rollout, models)
    assert set(by_request(first, second)) == {(r.example_id, r.sample) for r in REQUESTS}
    assert stats.restarted == 0
    for t in first:
        assert set(t.versions[t.sampled].tolist()) == {0}
    for t in second:
        assert (np.diff(t.versions[t.sampled]) >= 0).all()
        assert (t.versions[~t.sampled] == -1).all()
    mixed = [t for t in second if {0, 1} <= set(t.versions.tolist())]
    assert mixed
    new_errors = []
    for t in second:
        for version, model in enumerate(models):
            error = np.abs(teacher_forced(model, t) - t.logprobs)[t.versions == version]
            if version == 0 or rollout.in_flight == "rebuild" or t not in mixed:
                np.testing.assert_array_less(error, 1e-4)
            elif len(error):
                new_errors.append(error.max())
    if rollout.in_flight == "keep":
        assert max(new_errors) > 1e-3  # over keys and values of the old weights


@pytest.mark.slow
@pytest.mark.parametrize("rollout", KEPT, ids=lambda c: c.in_flight)
@pytest.mark.parametrize("slots", ["all decode", "some wait"])
@pytest.mark.parametrize("versions", ["one", "many"])
def test_a_run_in_pieces_under_the_same_weights_gives_the_same_tokens(
    rollout, slots, versions, models, plain
):
    if slots == "some wait":
        rollout = dataclasses.replace(OVERSUBSCRIBED, in_flight=rollout.in_flight, max_staleness=99)
    rollout = dataclasses.replace(rollout, max_staleness=99)
    parts, requests = [], REQUESTS
    with engine(colours(lambda query: 0.002 * len(query)), rollout=rollout) as e:
        while len(parts) < 99 and (requests or e.in_flight):
            version = len(parts) if versions == "many" else 0
            parts.append(some(e, models[0], requests, version, 1))
            requests = []
    assert len(parts) > 3
    found = by_request(*parts)
    assert same_ids(found, plain)
    for key, t in found.items():
        np.testing.assert_allclose(t.logprobs, plain[key].logprobs, atol=1e-4)


@pytest.mark.parametrize("rollout", KEPT, ids=lambda c: c.in_flight)
def test_what_has_ended_but_was_not_taken_is_still_in_flight(rollout, models):
    """The tick after `enough` may end several: the next run gives them, if there is one."""
    found, requests = 0, REQUESTS
    with engine(rollout=rollout) as e:
        while requests or e.in_flight:
            found, requests = found + len(some(e, models[0], requests, 0, 1)), []
            assert found + e.in_flight == len(REQUESTS)


@pytest.mark.parametrize("rollout", KEPT, ids=lambda c: c.in_flight)
def test_requests_wait_for_their_turn_over_a_stop(rollout, models, plain):
    half = len(REQUESTS) // 2
    with engine(rollout=rollout) as e:
        first = some(e, models[0], REQUESTS[:half], 0, 2)
        second = list(e.run(models[0], REQUESTS[half:], 0))
    assert same_ids(by_request(first, second), plain)


@pytest.mark.parametrize("rollout", KEPT, ids=lambda c: c.in_flight)
def test_what_is_too_old_begins_again(rollout, models):
    with engine() as e:
        fresh = by_request(e.run(models[1], REQUESTS))
    first, second, stats = two_runs(dataclasses.replace(rollout, max_staleness=0), models)
    assert 1 <= stats.restarted <= ROLLOUT.slots
    assert set(by_request(first, second)) == set(fresh)
    assert {v for t in second for v in t.versions[t.sampled].tolist()} == {1}
    assert same_ids(
        by_request(second),
        {(t.example_id, t.sample): fresh[t.example_id, t.sample] for t in second},
    )


@pytest.mark.parametrize(("bound", "gap"), [(0, 0), (0, 1), (1, 1), (1, 2)])
@pytest.mark.parametrize("rollout", KEPT, ids=lambda c: c.in_flight)
def test_what_has_ended_but_was_not_taken_begins_again_once_it_is_too_old(rollout, bound, gap):
    """The one tick of a run that has enough ends all that it opens; nobody takes them before."""
    model = chain("plan", "<answer>", "blue", "</answer>")
    requests = [request("plan", i) for i in range(ROLLOUT.slots)]
    with engine(rollout=dataclasses.replace(rollout, max_staleness=bound)) as e:
        assert list(e.run(model, requests, 5, enough=lambda: True)) == []
        assert e.stats.trajectories == len(requests)
        found = by_request(e.run(model, version=5 + gap))
    is_old = gap > bound
    assert set(found) == {(r.example_id, r.sample) for r in requests}
    versions = {v for t in found.values() for v in t.versions[t.sampled].tolist()}
    assert versions == {5 + gap if is_old else 5}
    assert e.stats.restarted == (len(requests) if is_old else 0)


@pytest.mark.slow
@pytest.mark.parametrize(("gap", "restarts"), [(2, False), (3, True)])
def test_staleness_counts_from_the_first_sampled_token(gap, restarts, models):
    rollout = dataclasses.replace(KEPT[1], max_staleness=2)
    with engine(rollout=rollout) as e:
        some(e, models[0], REQUESTS, 5, 4)
        list(e.run(models[0], version=5 + gap))
        assert (e.stats.restarted > 0) == restarts


@pytest.mark.parametrize("rollout", KEPT, ids=lambda c: c.in_flight)
@pytest.mark.parametrize(("within", "status"), [(4.0, "answered"), (8.0, "out_of_time")])
def test_time_between_runs_counts_neither_for_a_trajectory_nor_for_its_search(
    rollout, within, status, monkeypatch
):
    """The first run takes 1 s, then an update 9 s, of a deadline of 8 s."""
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    for module in (engine_module, episode_module):
        monkeypatch.setattr(module, "time", clock)

    def is_at(now: float) -> bool:
        clock.now = now
        return True

    patient = dataclasses.replace(SEARCH, timeout=99.0)
    requests = [request("plan", i) for i in range(ROLLOUT.slots)]
    with engine(rollout=dataclasses.replace(rollout, deadline=8.0), search_config=patient) as e:
        assert list(e.run(ANSWERER, requests, enough=lambda: is_at(1.0))) == []
        clock.now += 9.0
        e.check = lambda: is_at(10.0 + within)
        found = list(e.run(ANSWERER, version=1))
    assert {(t.status, t.seconds) for t in found} == {(status, 1.0 + within)}
    if status == "answered":
        assert [turn.seconds for t in found for turn in t.turns] == [within] * len(requests)


class Interrupts:
    """Raises KeyboardInterrupt at the n-th call of what it wraps, before or after it."""

    def __init__(self, inner, n: int):
        self.inner, self.left = inner, n

    def __call__(self, *args):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.inner(*args)


@pytest.mark.parametrize("how", ["drop", "keep", "rebuild"])
@pytest.mark.parametrize("at", ["observe", "_collect"])
def test_a_run_interrupted_while_it_collects_can_be_followed(how, at, models, plain):
    rollout = dataclasses.replace(ROLLOUT, in_flight=how, max_staleness=9)
    with engine(rollout=rollout) as e:
        owner = e.rules if at == "observe" else e
        interrupts = Interrupts(getattr(owner, at), 2 if at == "observe" else 8)
        setattr(owner, at, interrupts)
        first = []
        with pytest.raises(KeyboardInterrupt):
            first.extend(e.run(models[0], REQUESTS))
        setattr(owner, at, interrupts.inner)
        if how == "drop":
            assert e.in_flight == 0
            assert same_ids(by_request(e.run(models[0], REQUESTS)), plain)
            return
        second = list(e.run(models[0]))
    found = by_request(first, second)
    assert same_ids(found, plain)  # by_request saw none twice


def test_a_consumer_that_leaves_keeps_the_rest(models, plain):
    with engine(rollout=KEPT[0]) as e:
        run = e.run(models[0], REQUESTS)
        first = [next(run)]
        run.close()
        second = list(e.run(models[0]))
    assert same_ids(by_request(first, second), plain)
    assert jax.tree.leaves(e._cache)  # the cache outlives its runs


def test_a_run_that_is_told_to_end_opens_no_more_while_others_end() -> None:
    """Of requests that all end between two ticks."""

    def looked_at() -> Callable[[], bool]:
        looks = itertools.count()  # during the tick that opened it, and before the next
        return lambda: next(looks) > 0

    requests = [dataclasses.replace(request("plan", i), withdrawn=looked_at()) for i in range(40)]
    out: list[Trajectory] = []
    with engine() as e:
        for trajectory in e.run(
            chain("plan", "red", "plan"), requests, enough=lambda: len(out) >= 1
        ):
            out.append(trajectory)
    assert {t.status for t in out} == {"out_of_time"}
    assert len(out) == 2 * ROLLOUT.slots  # the second slots were filled as the first ended


def test_a_cache_that_is_gone_is_written_anew_and_no_other_prompt_s(models, monkeypatch):
    """Stopped in the middle, kept under a new version of the same weights: nothing changes."""
    rollout = dataclasses.replace(ROLLOUT, slots=6, max_staleness=99, in_flight="keep")
    words = ["red" if i % 2 else "blue green" for i in range(6)]
    requests = [request("plan " * i + word, i) for i, word in enumerate(words)]
    with engine(rollout=rollout) as e:
        collected = iter(range(8))
        collect = e._collect

        def stop_at_last():
            if next(collected) == 7:
                raise KeyboardInterrupt
            return collect()

        with monkeypatch.context() as patch:
            patch.setattr(e, "_collect", stop_at_last)
            out = []
            with pytest.raises(KeyboardInterrupt):
                out.extend(e.run(models[0], requests, 0))
        assert any(len(x.ids) > x.prompt_len for x in e._episodes())
        out = by_request(out, e.run(models[0], version=1))
    for t in out.values():
        gap = np.abs(teacher_forced(models[0], t) - t.logprobs)[t.sampled]
        assert gap.max(initial=0) < 1e-4


def test_another_mesh_changes_no_token_of_what_is_open(models):
    """Begun on four devices, ended on one, and the other way."""
    rollout = dataclasses.replace(ROLLOUT, slots=8, in_flight="keep", max_staleness=9)
    requests = [request("plan " * (1 + i) + "red", i) for i in range(12)]
    mesh = make_mesh(MeshConfig(2, 2), jax.devices()[:4])
    split = shard_parameters(mesh, models[0])
    with engine(rollout=rollout) as e:
        alone = by_request(e.run(models[0], requests))
    for first, then in (((mesh, split), (None, models[0])), ((None, models[0]), (mesh, split))):
        with engine(rollout=rollout) as e:
            parts = []
            for place, model in (first, then):
                with jax.set_mesh(place) if place else contextlib.nullcontext():
                    asked = requests if not parts else ()
                    parts.append(some(e, model, asked, 0, 3 if not parts else 99))
        found = by_request(*parts)
        assert found.keys() == alone.keys()
        for name, t in found.items():
            assert t.ids.tolist() == alone[name].ids.tolist()
            np.testing.assert_allclose(t.logprobs, alone[name].logprobs, atol=1e-4)
