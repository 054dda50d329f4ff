"""The decoder: cached equals uncached, packed equals separate, scored equals log-softmax."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from configs import common
from masksearch_jax.core.config import (
    ComputeConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    RopeScaling,
)
from masksearch_jax.models import (
    attention,
    blocks,
    context_parallel,
    hf,
    kv_cache,
    rotary,
    shared_weights,
)
from masksearch_jax.models import lora as lora_module
from masksearch_jax.models.blocks import rms_norm
from masksearch_jax.models.head import token_logprobs
from masksearch_jax.models.remat import REMAT
from masksearch_jax.models.transformer import ModelError, Transformer, unroll
from masksearch_jax.models.unrolled import Unrolled
from masksearch_jax.parallel import sharding
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2

MODEL = dataclasses.replace(
    TINY_QWEN2,
    family="qwen3",
    vocab_size=53,
    hidden_size=24,
    intermediate_size=40,
    rope_scaling=RopeScaling(4.0, 1.0, 4.0, 16),
    qk_norm=True,
    tie_embeddings=False,
)
# Eager layers compile one operation at a time.
HIDDEN, EXTEND = jax.jit(Transformer.hidden), jax.jit(Transformer.extend)
LOGITS = jax.jit(Transformer.logits)
SCORE = jax.jit(token_logprobs, static_argnums=(3, 4))


@jax.jit
def STEP(model: Transformer, cache: kv_cache.KVCache, ids, positions, table):
    """Logits after one token per row, ids and positions int[B]; the cache."""
    hidden, cache = model.extend(cache, ids[:, None], positions, jnp.ones_like(positions), table)
    return model.logits(hidden[:, 0]), cache


def make_model(compute: ComputeConfig = FLOAT32, config: ModelConfig = MODEL) -> Transformer:
    """Random weights some times as wide as at initialisation, biases and norms too."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape) + (leaf.ndim < 3), leaf.dtype),
        hf.abstract(config, compute),
    )


@pytest.fixture(scope="module")
def model() -> Transformer:
    return make_model()


def random_ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, MODEL.vocab_size, shape, np.int32)


def full_hidden(model: Transformer, ids: np.ndarray) -> np.ndarray:
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return np.asarray(HIDDEN(model, ids, positions, np.ones_like(ids)))


def close(found: jax.Array, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, atol=2e-5)


def paged(
    rows: int, length: int, page: int = 4, dtype: str = "float32"
) -> tuple[kv_cache.KVCache, np.ndarray]:
    """A cache of ones, and a table of pages out of order for rows of so many tokens."""
    width = -(-length // page)
    order = np.random.default_rng(rows).permutation(rows * width + 2)[: rows * width]
    cache = kv_cache.init_cache(MODEL, 1, rows * width + 2, page, dtype)
    return jax.tree.map(jnp.ones_like, cache), order.reshape(1, rows, width).astype(np.int32)


def tokens_of(pages: jax.Array, table: np.ndarray, axis: int) -> np.ndarray:
    """A leaf's [P, ..., S, ...] of layer 0 as each row's [B, K, D, T]."""
    rows = np.moveaxis(np.asarray(pages)[0, 0][table[0]], axis, -1)  # [B, W, K, D, S]
    rows = np.moveaxis(rows, 1, -2)
    return rows.reshape(*rows.shape[:-2], -1)


def test_extend_and_step_equal_the_full_forward(model: Transformer) -> None:
    ids = random_ids(3, 14)
    expected = full_hidden(model, ids)
    logits = np.asarray(LOGITS(model, expected))
    cache, table = paged(3, 20)
    start, count = np.int32([0, 0, 0]), np.int32([6, 4, 0])
    first, cache = EXTEND(model, cache, ids[:, :6], start, count, table)
    close(first[0], expected[0, :6])
    close(first[1, :4], expected[1, :4])
    start = np.int32([6, 4, 0])
    chunk = np.stack([ids[r, s : s + 3] for r, s in enumerate(start)])
    second, cache = EXTEND(model, cache, chunk, start, np.int32([3, 3, 3]), table)
    close(second, np.stack([expected[r, s : s + 3] for r, s in enumerate(start)]))
    for i in range(3):
        at = start + 3 + np.int32(i)
        found, cache = STEP(model, cache, ids[np.arange(3), at], at, table)
        close(found, logits[np.arange(3), at])


def flat_decode(model, cache: kv_cache.KVCache, ids, start, table):
    """Logits of the last of the tokens ids[B, T], fed one by one from times start[B]; the cache."""
    steps, tokens = model.steps_per_token, ids.shape[1]

    def body(i: jax.Array, carry: tuple) -> tuple:
        x, fresh = carry
        x = jnp.where(i % steps == 0, model.embed(ids[:, i // steps]), x)
        return model.decode_step(i, x, cache, fresh, table, start)

    carry = model.embed(ids[:, 0]), model.init_fresh(len(ids), tokens)
    x, fresh = jax.lax.fori_loop(0, tokens * steps, body, carry)
    cache = model.write_cache(cache, fresh, table, start, jnp.full_like(start, tokens))
    return model.logits(model.final_norm(x)), cache


@pytest.mark.parametrize("form", ["stacked", "unrolled"])
def test_flat_loop_of_decode_steps_equals_steps(model: Transformer, form: str) -> None:
    cache, table = paged(2, 9)
    start, prompts, ids = np.int32([0, 4]), random_ids(2, 4), random_ids(2, 3)
    _, cache = EXTEND(model, cache, prompts, np.int32([0, 0]), start, table)
    formed = unroll(model) if form == "unrolled" else model
    found, found_cache = jax.jit(flat_decode)(formed, cache, ids, start, table)
    for i in range(3):
        expected, cache = STEP(model, cache, ids[:, i], start + np.int32(i), table)
    close(found, np.asarray(expected))
    jax.tree.map(lambda a, b: close(a, np.asarray(b)), found_cache, cache)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [0, 2])
def test_the_unrolled_model_writes_and_finds_what_the_stacked_one_does(
    tied: bool, lora: int
) -> None:
    stacked = make_model(config=dataclasses.replace(MODEL, tie_embeddings=tied))
    if lora:
        stacked = with_adapters(stacked, lora)
    cache, table = paged(2, 9)
    at = random_ids(2, 6), np.int32([0, 2]), np.int32([6, 3]), table
    expected, expected_cache = EXTEND(stacked, cache, *at)
    found, found_cache = jax.jit(Unrolled.extend)(unroll(stacked), cache, *at)
    close(found[0], expected[0])
    close(found[1, :3], expected[1, :3])
    jax.tree.map(lambda a, b: close(a, np.asarray(b)), found_cache, expected_cache)
    logits = np.asarray(LOGITS(stacked, found))
    close(unroll(stacked).logits(found), logits)
    close(unroll(stacked).logits(found[0]), logits[0])


def test_unrolled_weights_are_in_the_compute_dtype_and_adapters_as_they_train() -> None:
    compute = dataclasses.replace(FLOAT32, dtype="bfloat16")
    model = with_adapters(make_model(compute), 2)
    unrolled = unroll(model)
    adapters = [layer.adapters for layer in unrolled.layers]
    rest = unrolled.replace(layers=[layer._replace(adapters=None) for layer in unrolled.layers])
    assert {x.dtype.name for x in jax.tree.leaves(rest)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(adapters)} == {"float32"}
    matrices = model.blocks.q, model.blocks.k, model.blocks.v
    whole = jnp.concatenate([x[1] for x in matrices], axis=-1).astype("bfloat16")
    np.testing.assert_array_equal(unrolled.layers[1].qkv, whole.T)  # turned on a CPU


def with_adapters(model: Transformer, rank: int) -> Transformer:
    """All matrices adapted, both factors random."""
    grown = lora_module.add(model, LoraConfig(rank, 2.0 * rank, lora_module.TARGETS), seed=0)
    draw = np.random.default_rng(2)
    fill = lambda x: jnp.asarray(0.1 * draw.normal(size=x.shape), x.dtype)  # noqa: E731
    return lora_module.attach(model, jax.tree.map(fill, grown.blocks.adapters))


def test_flat_decode_loop_holds_no_second_cache() -> None:
    config = dataclasses.replace(MODEL, num_layers=8)
    model = hf.abstract(config, FLOAT32)
    cache = jax.eval_shape(lambda: kv_cache.init_cache(config, 1, 256, 16, jnp.float32))
    shapes = (16, 4), (16,), (1, 16, 16)
    rest = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes)
    compiled = jax.jit(flat_decode, donate_argnums=1).lower(model, cache, *rest).compile()
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(cache))
    layer = size / config.num_layers
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * layer


def test_tokens_beyond_the_count_or_the_cache_write_nothing(model: Transformer) -> None:
    cache, table = paged(3, 8)
    ids = random_ids(3, 4)
    _, after = EXTEND(model, cache, ids, np.int32([2, 0, 6]), np.int32([2, 0, 4]), table)
    expected = np.zeros((3, 8), bool)
    expected[0, 2:4] = expected[2, 6:8] = True
    for leaf, axis in ((after.k, 4), (after.v, 3)):
        changed = np.any(tokens_of(leaf, table, axis) != 1, axis=(1, 2))
        np.testing.assert_array_equal(changed, expected)
        assert (np.delete(np.asarray(leaf)[:, 0], table, axis=1) == 1).all()  # nobody's pages


def test_rewinding_is_starting_earlier(model: Transformer) -> None:
    ids = random_ids(1, 10)
    cache, table = paged(1, 10)
    _, cache = EXTEND(model, cache, random_ids(2, 10)[1:], np.int32([0]), np.int32([10]), table)
    _, cache = EXTEND(model, cache, ids, np.int32([0]), np.int32([6]), table)
    found, _ = STEP(model, cache, ids[:, 6], np.int32([6]), table)
    close(found, np.asarray(LOGITS(model, full_hidden(model, ids)[:, 6])))


@pytest.mark.parametrize("page", [3, 5, 16])
@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_tokens_land_where_the_table_says_in_chunks_of_any_size(page: int, chunk: int) -> None:
    cache, table = paged(2, 15, page)
    draw = np.random.default_rng(0)
    shape = (MODEL.num_layers, 2, MODEL.num_kv_heads, 14, MODEL.head_dim)
    k, v = (draw.normal(size=shape).astype(np.float32) for _ in range(2))
    write = jax.jit(kv_cache.write_cache)
    for first in range(0, 14, chunk):
        fresh = kv_cache.Fresh(k[:, :, :, first : first + chunk], v[:, :, :, first : first + chunk])
        count = np.int32([min(chunk, 14 - first), 0])
        cache = write(cache, fresh, table, np.int32([first + 1, 3]), count)
    for leaf, axis, expected in ((cache.k, 4, k), (cache.v, 3, v)):
        found = tokens_of(leaf, table, axis)
        np.testing.assert_array_equal(found[0, :, :, 1:15], expected[0, 0].swapaxes(1, 2))
        assert (found[0, :, :, [0, *range(15, found.shape[-1])]] == 1).all()
        assert (found[1] == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_pages_past_a_row_s_length_change_no_bit(model: Transformer, dtype: str) -> None:
    """So that neither the others' lengths nor what was in a page before matter to a row."""
    cache, table = paged(2, 24, dtype=dtype)
    _, cache = EXTEND(model, cache, random_ids(2, 18), np.int32([0, 0]), np.int32([18, 18]), table)
    decode = jax.jit(flat_decode)
    ids = random_ids(2, 2)
    beside_long, _ = decode(model, cache, ids, np.int32([5, 18]), table)
    beside_none, _ = decode(model, cache, ids, np.int32([5, 0]), table)
    np.testing.assert_array_equal(beside_long[0], beside_none[0])
    assert np.any(np.asarray(beside_long[1]) != np.asarray(beside_none[1]))


def test_a_copied_page_is_one_s_own(model: Transformer) -> None:
    """Two rows share their first page and go on in copies of the second."""
    cache, table = paged(3, 8)
    ids = random_ids(1, 6)
    _, cache = EXTEND(
        model, cache, ids.repeat(3, 0), np.int32([0, 0, 0]), np.int32([6, 0, 0]), table
    )
    copies, src = np.int32([2]), np.int32([[table[0, 0, 1]] * 3])
    cache = jax.jit(kv_cache.copy_pages)(cache, copies, src, table[:, [1, 2, 0], 1])
    shared = np.stack([np.repeat(table[0, 0, 0], 3), table[0, :, 1]], axis=1)[None]
    following = np.int32([[3], [1], [2]])
    found, _ = jax.jit(flat_decode)(model, cache, following, np.int32([6, 6, 6]), shared)
    for row in range(3):
        whole = np.concatenate([ids[0], following[row]])[None]
        close(found[row], np.asarray(LOGITS(model, full_hidden(model, whole)[0, 6])))


def test_attention_of_rows_cut_into_pieces_is_causal_within_segments() -> None:
    rng = np.random.default_rng(0)
    time = 3 * attention.LEAST_BLOCK + 5  # three pieces, not all as long
    q, k, v = (rng.normal(size=(2, time, heads, 8)) for heads in (4, 2, 2))
    segments = np.int32([[1] * 90 + [2] * 80 + [0] * 27, [1] * time])
    found = attention.packed_attention(*map(jnp.float32, (q, k, v)), jnp.asarray(segments))
    allowed = (segments[:, :, None] == segments[:, None]) & np.tri(time, dtype=bool)
    scores = np.einsum("btkgd,bskd->bkgts", q.reshape(2, time, 2, 2, 8), k) / np.sqrt(8)
    weights = np.exp(scores) * allowed[:, None, None]
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("bkgts,bskd->btkgd", weights, v).reshape(q.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_packed_segments_equal_separate_rows(model: Transformer) -> None:
    ids = random_ids(1, 12)
    segments = np.int32([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0]])
    positions = np.int32([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]])
    found = np.asarray(HIDDEN(model, ids, positions, segments))
    close(found[:, :5], full_hidden(model, ids[:, :5]))
    close(found[:, 5:9], full_hidden(model, ids[:, 5:9]))
    assert np.isfinite(found).all()


def test_padding_does_not_reach_tokens_or_gradients(model: Transformer) -> None:
    segments = np.int32([[1, 1, 1, 0, 0]])
    positions = np.int32([[0, 1, 2, 0, 0]])

    def loss(model: Transformer, ids: np.ndarray) -> jax.Array:
        return jnp.sum(model.hidden(ids, positions, segments)[:, :3] ** 2)

    a, b = random_ids(1, 5), random_ids(1, 5)
    b[0, 3:] = 7
    gradient = jax.jit(jax.grad(loss))
    jax.tree.map(np.testing.assert_array_equal, gradient(model, a), gradient(model, b))


@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_equal_log_softmax(
    model: Transformer, chunk: int, temperature: float
) -> None:
    hidden = jnp.asarray(full_hidden(model, random_ids(2, 11)))
    targets = random_ids(4, 11)[2:]
    reference = np.asarray(jax.nn.log_softmax(LOGITS(model, hidden) / temperature))
    expected = np.take_along_axis(reference, targets[..., None], -1)[..., 0]
    logprobs, entropy = SCORE(model, hidden, targets, temperature, chunk)
    close(logprobs, expected)
    close(entropy, -np.sum(np.exp(reference) * reference, axis=-1))
    assert logprobs.dtype == entropy.dtype == jnp.float32


def test_token_logprobs_at_temperature_zero_are_those_at_one(model: Transformer) -> None:
    hidden, targets = jnp.asarray(full_hidden(model, random_ids(1, 4))), random_ids(1, 4)
    greedy, one = (SCORE(model, hidden, targets, t, 8)[0] for t in (0.0, 1.0))
    np.testing.assert_array_equal(greedy, one)


def test_token_logprobs_gradient_and_memory(model: Transformer) -> None:
    hidden, targets = full_hidden(model, random_ids(2, 9)), random_ids(4, 9)[2:]

    def chunked(model: Transformer, hidden: jax.Array) -> jax.Array:
        return token_logprobs(model, hidden, targets, 0.9, 6)[0].sum()

    def whole(model: Transformer, hidden: jax.Array) -> jax.Array:
        logits = model.logits(hidden) / 0.9
        return jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).sum()

    gradients = [jax.grad(f, argnums=(0, 1)) for f in (chunked, whole)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        *(jax.jit(gradient)(model, hidden) for gradient in gradients),
    )
    arrays = re.findall(r"f32\[([\d,]+)\]", str(jax.make_jaxpr(gradients[0])(model, hidden)))
    scored = {a for a in arrays if a.endswith(",53")}
    assert "2,3,53" in scored  # one chunk: 3 times of both rows
    assert max(np.prod([int(n) for n in a.split(",")]) for a in scored) == 2 * 3 * 53


@pytest.mark.parametrize("chunk", [6, 18])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (-2.0, 0.3)])
def test_gradients_of_logprobs_and_entropy_are_those_of_log_softmax(
    model: Transformer, chunk: int, weights: tuple[float, float]
) -> None:
    """In chunks and, where one holds all tokens, from the logits that are kept."""
    hidden, targets = full_hidden(model, random_ids(2, 9)), random_ids(4, 9)[2:]
    draw = np.random.default_rng(5)
    shares = [w * draw.normal(size=(2, 9)).astype(np.float32) for w in weights]

    def scored(model: Transformer, hidden: jax.Array) -> jax.Array:
        found = token_logprobs(model, hidden, targets, 0.7, chunk)
        return sum((x * share).sum() for x, share in zip(found, shares, strict=True))

    def whole(model: Transformer, hidden: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(model.logits(hidden) / 0.7)
        of_target = jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0]
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        return (of_target * shares[0]).sum() + (entropy * shares[1]).sum()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5),
        *(jax.jit(jax.grad(f, argnums=(0, 1)))(model, hidden) for f in (scored, whole)),
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_matrix_s_gradient_is_one_product_without_a_transposition(dtype) -> None:
    """XLA's CPU backend runs a product of two transposed operands at half the speed."""
    rng = np.random.default_rng(0)
    x, w, g = (jnp.asarray(rng.normal(size=s), dtype) for s in ((2, 3, 4), (4, 5), (2, 3, 5)))

    def gradient(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, w: shared_weights.matmul(x, w, 0), x, w)[1](g)

    assert "transpose" not in jax.jit(gradient).lower(x, w).as_text()
    wide = [np.asarray(a, np.float64) for a in (x, w, g)]
    expected = wide[2] @ wide[1].T, np.einsum("bti,bto->io", wide[0], wide[2])
    for ours, theirs in zip(gradient(x, w), expected, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=0.02, atol=0.05)


def test_bfloat16_compute_keeps_logits_and_scores_in_float32() -> None:
    model = make_model(compute=dataclasses.replace(FLOAT32, dtype="bfloat16"))
    ids = random_ids(1, 6)
    hidden = HIDDEN(model, ids, np.arange(6, dtype=np.int32)[None], np.ones_like(ids))
    exact = full_hidden(make_model(), ids)
    assert hidden.dtype == jnp.bfloat16
    assert model.logits(hidden).dtype == jnp.float32
    np.testing.assert_allclose(np.float32(hidden), exact, atol=0.1)


def test_initial_weights_start_as_copiers() -> None:
    wide = dataclasses.replace(MODEL, hidden_size=256, head_dim=64, num_heads=4, num_kv_heads=2)
    model = jax.jit(lambda: Transformer(wide, FLOAT32, nnx.Rngs(0)))()
    assert float(jnp.std(model.embedding[...])) == pytest.approx(256**-0.5, rel=0.05)
    np.testing.assert_array_equal(model.blocks.mlp_norm[...], 1.0)
    np.testing.assert_array_equal(model.blocks.k_bias[...], 0.0)
    q, k, v, o = (
        np.asarray(w[...]) for w in (model.blocks.q, model.blocks.k, model.blocks.v, model.blocks.o)
    )
    # x·Wq·(x·Wk)ᵀ / √D of a normed x, whose square sum is M, is about the trace of Wq·Wkᵀ / √D.
    k, v = (x.reshape(*x.shape[:2], 2, 64) for x in (k, v))
    own = np.einsum("lmkgd,lmkd->lkg", q.reshape(*q.shape[:2], 2, 2, 64), k) / 64**0.5
    np.testing.assert_allclose(own, blocks.QK_IDENTITY, rtol=0.1)
    passed = np.einsum("lmkd,lkgdm->l", v, o.reshape(o.shape[0], 2, 2, 64, 256)) / 256
    np.testing.assert_allclose(passed, blocks.VO_IDENTITY, rtol=0.1)
    assert not np.array_equal(k, v)


def test_rms_norm_by_hand() -> None:
    found = rms_norm(jnp.array([[3.0, 4.0]]), jnp.array([2.0, 1.0]), 0.0)
    np.testing.assert_allclose(found, [[6.0 / 12.5**0.5, 4.0 / 12.5**0.5]], rtol=1e-6)


def test_rope_depends_on_distance_alone() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    frequencies = rotary.frequencies(8, 1e4, None)

    @jax.jit
    def score(a: int, b: int) -> jax.Array:
        turned = [
            attention.rotate(x, attention.rope_tables(jnp.array([[at]]), frequencies))
            for x, at in ((q, a), (k, b))
        ]
        return jnp.sum(turned[0] * turned[1])

    np.testing.assert_allclose(score(5, 3), score(45, 43), atol=1e-4)
    assert abs(score(5, 3) - score(5, 4)) > 1e-3


def test_llama3_scaling_keeps_fast_and_slows_slow_frequencies() -> None:
    plain = rotary.frequencies(64, 5e5, None)
    scaled = rotary.frequencies(64, 5e5, RopeScaling(8.0, 1.0, 4.0, 8192))
    wavelength = 2 * np.pi / plain
    np.testing.assert_array_equal(scaled[wavelength < 2048], plain[wavelength < 2048])
    np.testing.assert_allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8, rtol=1e-6)
    between = (wavelength > 2048) & (wavelength < 8192)
    assert between.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 8).all()


def test_an_impossible_architecture_is_refused() -> None:
    with pytest.raises(ModelError, match="num_kv_heads 3"):
        Transformer(dataclasses.replace(MODEL, num_kv_heads=3), FLOAT32, nnx.Rngs(0))


@pytest.mark.parametrize("field", ["dtype", "param_dtype", "attention", "remat"])
def test_an_unknown_way_to_compute_is_refused(field: str) -> None:
    with pytest.raises(ModelError, match=rf"compute\.{field} 'fast' is unknown; choices"):
        Transformer(MODEL, dataclasses.replace(FLOAT32, **{field: "fast"}), nnx.Rngs(0))


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'qwen2\.5-1b'; did you mean 'qwen2\.5-\d+b'\?.*llama3"):
        common.model("qwen2.5-1b")


@pytest.mark.slow  # the kernel in an interpreter
@pytest.mark.parametrize("parts", [1, 2])
def test_the_tpu_kernel_attends_as_the_plain_form(
    monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    make = splash_attention_kernel.make_splash_mha
    interpreted = functools.partial(make, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", interpreted)
    draw = iter(jax.random.split(jax.random.key(0), 4))
    q = jax.random.normal(next(draw), (2, 512, 4, 64))
    k, v = (jax.random.normal(next(draw), (2, 512, 2, 64)) for _ in range(2))
    weights = jax.random.normal(next(draw), q.shape)
    segments = jnp.int32([[1] * 200 + [2] * 260 + [0] * 52, [1] * 512])

    def loss(attend, q, k, v):
        out = attend(q, k, v, segments)
        return jnp.sum(out * weights), out

    def run(attend):
        both = jax.value_and_grad(functools.partial(loss, attend), argnums=(0, 1, 2), has_aux=True)
        (_, out), grads = jax.jit(both)(q, k, v)
        return out, grads

    def as_laid_out(*args):
        times = context_parallel.order(512, parts)
        out = attention.splash_attention(*(x[:, times] for x in args))
        return out[:, np.argsort(times)]

    expected, expected_grads = run(attention.packed_attention)
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1, parts), jax.devices()[:parts])
    with jax.set_mesh(mesh):
        found, found_grads = run(as_laid_out)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for a, b in zip(found_grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_the_tpu_kernel_names_the_rows_that_it_takes() -> None:
    q = jnp.zeros((1, 200, 2, 64))
    with pytest.raises(attention.AttentionError, match=r"multiple of 128 tokens, .*, got 200"):
        attention.splash_attention(q, q, q, jnp.ones((1, 200), jnp.int32))


def test_time_is_split_so_that_each_device_has_early_and_late_tokens() -> None:
    assert context_parallel.order(12, 3).tolist() == [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7]
    causal = np.tril(np.ones((24, 24)))
    work = causal[context_parallel.order(24, 4)].reshape(4, -1).sum(axis=1)
    assert work.tolist() == [causal.sum() / 4] * 4


@pytest.mark.parametrize(
    ("rows", "time", "says"),
    [
        (2, 14, "rows of 14 tokens do not divide over mesh.context 2"),
        (3, 16, "batch of 3 does not divide over 2 devices"),
    ],
)
def test_rows_that_cannot_be_split_say_so(
    model: Transformer, rows: int, time: int, says: str
) -> None:
    mesh = sharding.make_mesh(MeshConfig(2, 1, 1, 2), jax.devices()[:4])
    ids = random_ids(rows, time)
    with jax.set_mesh(mesh), pytest.raises(sharding.MeshError, match=says):
        jax.eval_shape(model.hidden, ids, ids, ids)


@pytest.mark.parametrize("parts", [2, 4])
def test_hidden_states_come_back_in_order(parts: int) -> None:
    x = np.arange(2 * 16 * 3, dtype=np.float32).reshape(2, 16, 3)
    mesh = sharding.make_mesh(MeshConfig(2, 1, 1, parts), jax.devices()[: 2 * parts])
    with jax.set_mesh(mesh):
        found = jax.jit(context_parallel.in_order)(x[:, context_parallel.order(16, parts)])
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("remat", REMAT)
def test_what_is_computed_again_changes_no_gradient(remat: str) -> None:
    ids = random_ids(2, 12)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), ids.shape)

    def gradient(name: str) -> Transformer:
        compute = dataclasses.replace(FLOAT32, remat=name)
        model = jax.jit(lambda: Transformer(MODEL, compute, nnx.Rngs(1)))()
        return jax.jit(jax.grad(lambda m: jnp.sum(HIDDEN(m, ids, positions, ids * 0 + 1) ** 2)))(
            model
        )

    found, expected = (jax.tree.leaves(gradient(name)) for name in (remat, "none"))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5)
