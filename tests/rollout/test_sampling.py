"""Tokens: what the filters keep, what is drawn from it, and what training thinks of filters."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from masksearch_jax import train_dapo
from masksearch_jax.core.config import MeshConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tools import search_alone
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.rollout import decode, sampling
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.sampling import Sampler, keep, sample, sample_by_row
from masksearch_jax.runtime import cli
from tests.rollout.word_engine import (
    GREEDY,
    ROLLOUT,
    SEARCH,
    VOCAB,
    colours,
    engine,
    request,
    transformer,
)

DRAW = jax.jit(sample, static_argnums=4)
BY_ROW = jax.jit(sample_by_row)
MESH = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
FILTERS = [
    Sampler(1.0, top_k=1),
    Sampler(1.0, top_k=5),
    Sampler(1.0, top_p=0.0),
    Sampler(1.0, top_p=0.01),
    Sampler(1.0, top_p=0.5),
    Sampler(1.0, top_p=0.93),
    Sampler(1.0, min_p=0.07),
    Sampler(1.0, min_p=1.0),
    Sampler(1.0, top_k=6, top_p=0.8, min_p=0.03),
    Sampler(1.0, top_k=3, top_p=0.99),
]


def random_logprobs(seed: int, rows: int = 64, size: int = 40) -> np.ndarray:
    """float32[rows, size]; in the second half of the rows many are equal."""
    logits = np.random.default_rng(seed).normal(scale=2.5, size=(rows, size)).astype(np.float32)
    logits[rows // 2 :] = np.round(logits[rows // 2 :])
    return np.asarray(jax.nn.log_softmax(logits, axis=-1))


def kept_by_definition(row: np.ndarray, sampler: Sampler) -> np.ndarray:
    """One row in float64 by walking down the ranks; a token passes if none likelier is cut."""
    probability = np.exp(row.astype(np.float64))
    ranked = np.argsort(-row, kind="stable")
    least = [-np.inf]
    if sampler.top_k:
        least.append(row[ranked[sampler.top_k - 1]])
    if sampler.top_p < 1.0:
        held = 0.0
        for token in ranked:
            held += probability[token]
            if held >= sampler.top_p:
                break
        least.append(row[token])
    passing = row >= max(least)
    if sampler.min_p:
        passing &= probability >= sampler.min_p * probability.max() * (1 - 1e-6)
    return passing


@pytest.mark.parametrize("sampler", FILTERS, ids=str)
def test_filters_keep_what_their_definition_says(sampler):
    logprobs = random_logprobs(seed=11)
    kept = np.asarray(keep(jnp.asarray(logprobs), *sampler[1:]))
    expected = np.stack([kept_by_definition(row, sampler) for row in logprobs])
    np.testing.assert_array_equal(kept, expected)
    assert kept[np.arange(len(kept)), logprobs.argmax(axis=1)].all()
    for row, passing in zip(logprobs, kept, strict=True):
        assert not set(row[passing].tolist()) & set(row[~passing].tolist())  # ties pass together
    assert not kept.all()


@pytest.mark.parametrize(
    ("sampler", "probability", "expected"),
    [
        (Sampler(1.0, top_k=2), (0.4, 0.3, 0.2, 0.1), "1100"),
        (Sampler(1.0, top_k=2), (0.1, 0.3, 0.3, 0.3), "0111"),
        (Sampler(1.0, top_k=4), (0.4, 0.3, 0.2, 0.1), "1111"),
        (Sampler(1.0, top_k=99), (0.4, 0.3, 0.2, 0.1), "1111"),  # more than there are
        (Sampler(1.0, top_p=0.65), (0.1, 0.4, 0.3, 0.2), "0110"),
        (Sampler(1.0, top_p=0.75), (0.1, 0.4, 0.3, 0.2), "0111"),
        (Sampler(1.0, top_p=0.5), (0.3, 0.3, 0.3, 0.1), "1110"),
        (Sampler(1.0, top_p=0.0), (0.1, 0.4, 0.3, 0.2), "0100"),
        (Sampler(1.0, min_p=0.6), (0.4, 0.3, 0.2, 0.1), "1100"),
        (Sampler(1.0), (0.4, 0.3, 0.2, 0.1), "1111"),
    ],
)
def test_filters_on_four_tokens(sampler, probability, expected):
    kept = keep(jnp.log(jnp.asarray([probability])), *sampler[1:])[0]
    assert "".join(str(int(k)) for k in kept) == expected


def streams(count: int) -> jax.Array:
    return jnp.stack([jnp.arange(count, dtype=jnp.uint32), jnp.full(count, 7, jnp.uint32)], axis=1)


@pytest.mark.parametrize(
    "sampler", [Sampler(0.8, top_k=3), Sampler(1.3, top_p=0.7), Sampler(0.9, 9, 0.95, 0.1)]
)
def test_samples_are_kept_tokens_in_their_proportion_with_raw_logprobs(sampler):
    count, logits = 3000, np.random.default_rng(5).normal(scale=1.5, size=12).astype(np.float32)
    rows = jnp.asarray(np.repeat(logits[None], count, axis=0))
    ids, logprobs = DRAW(rows, streams(count), jnp.zeros(count, jnp.int32), np.uint32(1), sampler)
    ids = np.asarray(ids)
    whole = np.exp(logits.astype(np.float64) / sampler.temperature)
    whole /= whole.sum()
    kept = kept_by_definition(np.log(whole), sampler)
    assert 1 < kept.sum() < 12
    assert kept[ids].all()
    np.testing.assert_allclose(np.exp(logprobs), whole[ids], rtol=1e-5)  # of the unfiltered
    wanted = np.where(kept, whole, 0) / whole[kept].sum()
    share = np.bincount(ids, minlength=12) / count
    np.testing.assert_allclose(share, wanted, atol=4 * 0.5 / count**0.5)


@pytest.mark.parametrize("sampler", [Sampler(1.0, top_k=50), Sampler(1.0, min_p=0.1)])
def test_no_rounding_of_sums_draws_a_token_left_out(monkeypatch, sampler):
    """The largest uniform meets the end of the sums, where tokens left out add only rounding."""
    uniform = jnp.float32(1 - 2**-23)
    monkeypatch.setattr(sampling, "_uniform", lambda seed, stream, position: uniform)
    logprobs = jnp.asarray(random_logprobs(seed=9, rows=256, size=4096))
    position = jnp.zeros(256, jnp.int32)
    ids, _ = sample(logprobs, streams(256), position, np.uint32(0), sampler)
    assert keep(logprobs, *sampler[1:])[jnp.arange(256), ids].all()


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1300])
def test_a_token_is_drawn_where_the_sum_of_all_passes_the_uniform(size: int) -> None:
    """By blocks as along the whole; some weights, and all of the second block, are zero."""
    draw = np.random.default_rng(size)
    weights = draw.exponential(size=(200, size)).astype(np.float32) ** 4
    weights[draw.random(weights.shape) < 0.3] = 0.0
    weights[::2, 512:1024] = 0.0
    weights[:, draw.integers(size)] += 1.0
    uniform = draw.random(200).astype(np.float32)
    uniform[:2], uniform[2:4] = 0.0, np.nextafter(np.float32(1), np.float32(0))
    ids = np.asarray(
        jax.jit(lambda w, u: sampling._invert(sampling._blocks(w), u))(weights, uniform)
    )
    rows = np.arange(200)
    assert ((ids >= 0) & (ids < size)).all()
    assert (weights[rows, ids] > 0).all()
    wide = weights.astype(np.float64)
    ends = np.cumsum(wide, axis=1)
    goal, slack = uniform * ends[:, -1], 1e-5 * ends[:, -1]
    assert (ends[rows, ids] >= goal - slack).all()
    assert (ends[rows, ids] - wide[rows, ids] <= goal + slack).all()


@pytest.mark.parametrize("sampler", [Sampler(0.0), Sampler(0.0, top_k=4, top_p=0.9, min_p=0.2)])
def test_temperature_zero_takes_the_likeliest_with_its_logprob_at_one(sampler):
    logprobs = random_logprobs(seed=2)
    position = jnp.zeros(len(logprobs), jnp.int32)
    ids, found = DRAW(
        jnp.asarray(logprobs), streams(len(logprobs)), position, np.uint32(0), sampler
    )
    np.testing.assert_array_equal(ids, logprobs.argmax(axis=1))
    np.testing.assert_allclose(found, logprobs.max(axis=1), atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-38, 1e-30, 1e-20, 1e-7, 1e-5])
def test_a_temperature_at_which_float32_loses_logits_takes_the_likeliest(temperature):
    """By a sampler for all and by one of each row; from 1e-5 on it is drawn, here the same."""
    logits = 40.0 * random_logprobs(seed=6, rows=8, size=700)[:4]
    sampler, position = Sampler(temperature), jnp.zeros(4, jnp.int32)
    by_row = jnp.asarray([sampler] * 4, jnp.float32)
    for draw, how in ((DRAW, sampler), (BY_ROW, by_row)):
        ids, found = draw(jnp.asarray(logits), streams(4), position, np.uint32(0), how)
        np.testing.assert_array_equal(ids, logits.argmax(axis=1))
        assert np.isfinite(found).all()
        if temperature < sampling.COLDEST:
            expected = jax.nn.log_softmax(logits).max(axis=1)
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_draw_depends_on_seed_stream_position_and_its_own_row_alone():
    logits, rows = jnp.asarray(random_logprobs(seed=3, rows=32)), 32
    draw = lambda logits, stream, position, seed: np.asarray(  # noqa: E731
        DRAW(logits, stream, position, np.uint32(seed), Sampler(1.0, top_p=0.9))[0]
    )
    stream, position = streams(rows), jnp.arange(rows, dtype=jnp.int32)
    plain = draw(logits, stream, position, 0)
    order = np.random.default_rng(4).permutation(rows)
    np.testing.assert_array_equal(
        draw(logits[order], stream[order], position[order], 0), plain[order]
    )
    mixed = jnp.where(jnp.arange(rows)[:, None] < 5, logits, logits[::-1])
    np.testing.assert_array_equal(draw(mixed, stream, position, 0)[:5], plain[:5])
    others = [
        draw(logits, stream, position, 1),
        draw(logits, stream, position + 1, 0),
        draw(logits, stream + jnp.asarray([1, 0], jnp.uint32), position, 0),
        draw(logits, stream + jnp.asarray([0, 1], jnp.uint32), position, 0),
    ]
    assert all((other != plain).any() for other in others)


def test_a_row_draws_by_its_own_sampler_as_if_all_had_it():
    samplers = [Sampler(0.0), Sampler(1.0), Sampler(0.5), *FILTERS, Sampler(2.0, 7, 0.9, 0.01)]
    rows, compiled = len(samplers), BY_ROW._cache_size()
    logits = jnp.asarray(random_logprobs(5, rows=2 * rows, size=700)[:rows])
    stream = jnp.asarray(np.arange(2 * rows).reshape(rows, 2), jnp.uint32)
    position, seed = jnp.arange(rows, dtype=jnp.int32), jnp.uint32(3)
    ids, logprobs = BY_ROW(logits, stream, position, seed, jnp.asarray(samplers, jnp.float32))
    for i, sampler in enumerate(samplers):
        alone, expected = DRAW(logits, stream, position, seed, sampler)
        assert ids[i] == alone[i]
        np.testing.assert_allclose(logprobs[i], expected[i], rtol=1e-6)
    # A row without filters has the same bits when nobody else has one.
    plain = jnp.asarray([Sampler(1.0)] * rows, jnp.float32)
    same_ids, same_logprobs = BY_ROW(logits, stream, position, seed, plain)
    assert (same_ids[1], same_logprobs[1]) == (ids[1], logprobs[1])
    none = jnp.asarray([Sampler(1.0, top_p=0.0)] * rows, jnp.float32)
    top = BY_ROW(logits, stream, position, seed, none)[0]
    np.testing.assert_array_equal(np.take_along_axis(logits, top[:, None], 1)[:, 0], logits.max(1))
    assert BY_ROW._cache_size() == compiled + 1


@pytest.mark.slow
def test_requests_of_one_engine_have_samplers_of_their_own():
    """Each as in an engine that has its sampler for all, and nothing is compiled for any."""
    samplers = [Sampler(0.0), Sampler(1.0), Sampler(0.7, top_k=3), None]
    asked = [
        dataclasses.replace(request("red blue", i), plain=True, sampler=sampler)
        for i, sampler in enumerate(samplers)
    ]
    with Engine(
        VOCAB, search_alone(colours(), SEARCH), ROLLOUT, SEARCH, strict=True, by_row=True
    ) as mixed:
        found = {t.example_id: t for t in mixed.run(transformer(), asked)}
    for one, sampler in zip(asked, samplers, strict=True):
        used = sampler or sampling.sampler_of(ROLLOUT)
        own = dataclasses.replace(ROLLOUT, **used._asdict())
        with engine(rollout=own) as uniform:
            (alone,) = uniform.run(transformer(), [dataclasses.replace(one, sampler=None)])
        assert found[one.example_id].ids.tolist() == alone.ids.tolist()
    with (
        engine(rollout=dataclasses.replace(ROLLOUT, in_flight="keep")) as uniform,
        pytest.raises(decode.RolloutError, match="has a sampler of its own; this engine has one"),
    ):
        uniform.submit(asked[0])


def test_an_engine_that_keeps_one_token_is_greedy():
    requests = [request("red blue plan" if i % 2 else "plan", i) for i in range(4)]
    model = transformer()
    with engine(rollout=GREEDY) as e:
        greedy = {t.example_id: t for t in e.run(model, requests)}
    with engine(rollout=dataclasses.replace(ROLLOUT, top_k=1)) as e:
        one = {t.example_id: t for t in e.run(model, requests)}
    for name, t in greedy.items():
        assert t.ids.tolist() == one[name].ids.tolist()
        np.testing.assert_allclose(t.logprobs, one[name].logprobs, atol=1e-6)
    assert min(t.logprobs.min() for t in one.values()) < -0.01  # raw: not log 1


@pytest.fixture(scope="module")
def dapo(repository):
    config = cli.load_config(f"{repository / 'configs' / 'quickstart.py'}:runlocal")
    dapo = to_dataclass(QuickstartRun, config).dapo
    return dataclasses.replace(dapo, overlong_buffer=0)  # of the few tokens sampled here


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"top_k": 5}, "top_k 5, top_p 1.0, min_p 0.0"),
        ({"top_p": 0.9}, "top_k 0, top_p 0.9, min_p 0.0"),
        ({"min_p": 0.05}, "top_k 0, top_p 1.0, min_p 0.05"),
    ],
)
def test_training_refuses_filters_unless_they_are_allowed(change, says, dapo):
    rollout = dataclasses.replace(ROLLOUT, **change)
    with pytest.raises(ConfigError, match=rf"{says}: .*set config\.dapo\.allow_filters"):
        train_dapo.check_settings(dapo, rollout, MESH)
    allowed = dataclasses.replace(dapo, allow_filters=True)
    train_dapo.check_settings(allowed, rollout, MESH)
    train_dapo.check_settings(dapo, ROLLOUT, MESH)


@pytest.mark.parametrize("temperature", [0.0, 1e-40])
def test_training_refuses_greedy_sampling(dapo, temperature):
    rollout = dataclasses.replace(GREEDY, temperature=temperature)
    with pytest.raises(
        ConfigError, match=rf"temperature is {temperature}; to train, it must be at least 1e-05"
    ):
        train_dapo.check_settings(dapo, rollout, MESH)
