"""The TPU kernel that reads the KV cache, run by its interpreter on a CPU."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from masksearch_jax.models import (
    attention,
    kv_cache,
    paged_attention,
    paged_attention_gpu,
    paged_attention_tpu,
)
from masksearch_jax.rollout import decode

LAYERS, PAGES, HEADS, EACH, DIM, PAGE, WIDTH = 2, 20, 2, 3, 128, 128, 5
LENGTH = np.int32([300, 0, 1, 640])  # within a block of four pages, none, one token, two blocks


def caches(dtype: str) -> tuple[kv_cache.KVCache, np.ndarray, np.ndarray]:
    """A cache of random keys and values, and the numbers [L, N, P, K, S, D] that it stands for."""
    draw = np.random.default_rng(0)
    shape = (LAYERS, 1, PAGES, HEADS, PAGE, DIM)
    k, v = (jnp.asarray(draw.normal(size=shape), jnp.float32) for _ in range(2))
    scales = []
    if dtype == "int8":
        (k, k_scale), (v, v_scale) = kv_cache.quantise(k), kv_cache.quantise(v)
        scales = [k_scale, v_scale]
    else:
        k, v = k.astype(dtype), v.astype(dtype)
    wide = [np.asarray(x.astype(jnp.float32)) for x in (k, v)]
    if scales:
        wide = [x * np.asarray(s)[..., None] for x, s in zip(wide, scales, strict=True)]
    return kv_cache.KVCache(k.swapaxes(4, 5), v, *scales), *wide


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_kernel_is_softmax_over_the_tokens_of_a_row(dtype: str) -> None:
    cache, k, v = caches(dtype)
    draw = np.random.default_rng(1)
    q = jnp.asarray(draw.normal(size=(4, HEADS, EACH, DIM)), "float32")
    q = q.astype("bfloat16") if dtype == "bfloat16" else q
    table = draw.permutation(PAGES).reshape(1, 4, WIDTH).astype(np.int32)
    with pltpu.force_tpu_interpret_mode():
        found = jax.jit(paged_attention_tpu.attend)(q, cache, jnp.int32(1), table, LENGTH)
    wide = np.asarray(q.astype(jnp.float32), np.float64)
    for row, length in enumerate(LENGTH):
        held = [x[1, 0][table[0, row]].swapaxes(0, 1).reshape(HEADS, -1, DIM) for x in (k, v)]
        keys, values = (x[:, :length].astype(np.float64) for x in held)
        weights = np.exp(np.einsum("kxd,ksd->kxs", wide[row], keys) / DIM**0.5)
        total = np.asarray(found.total[row]) * np.exp(np.asarray(found.top[row], np.float64))
        np.testing.assert_allclose(total, weights.sum(axis=-1), rtol=2e-5)
        if length:
            out = np.asarray(found.out[row]) / np.asarray(found.total[row])[..., None]
            expected = np.einsum("kxs,ksd->kxd", weights, values) / weights.sum(-1)[..., None]
            np.testing.assert_allclose(out, expected, atol=5e-3 if dtype == "bfloat16" else 1e-5)


def test_both_ways_to_read_the_cache_give_the_same_attention() -> None:
    cache, *_ = caches("float32")
    draw = np.random.default_rng(2)
    q = jnp.asarray(draw.normal(size=(4, HEADS * EACH, DIM)), jnp.float32)
    shape = (4, HEADS, 3, DIM)
    fresh = kv_cache.Fresh(*(jnp.asarray(draw.normal(size=shape), jnp.float32) for _ in range(2)))
    table = draw.permutation(PAGES).reshape(1, 4, WIDTH).astype(np.int32)
    at = (jnp.int32(0), jnp.int32(1), jnp.asarray(table), jnp.asarray(LENGTH))
    attend = jax.jit(paged_attention.decode_attention, static_argnums=7)
    with pltpu.force_tpu_interpret_mode():
        found = attend(q, cache, fresh, *at, "pallas")
    np.testing.assert_allclose(found, attend(q, cache, fresh, *at, "xla"), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("step", [0, 2])
def test_the_gpu_kernel_gives_the_attention_of_xla(dtype: str, step: int, monkeypatch) -> None:
    """Interpreted on a CPU; in chunks of one page and of several, fresh tokens in the first."""
    cache, *_ = caches(dtype)
    draw = np.random.default_rng(2)
    kind = "bfloat16" if dtype == "bfloat16" else "float32"
    q = jnp.asarray(draw.normal(size=(4, HEADS * EACH, DIM)), kind)
    shape = (4, HEADS, 3, DIM)
    fresh = kv_cache.Fresh(*(jnp.asarray(draw.normal(size=shape), kind) for _ in range(2)))
    table = draw.permutation(PAGES).reshape(1, 4, WIDTH).astype(np.int32)
    at = (jnp.int32(1), jnp.int32(step), jnp.asarray(table), jnp.asarray(LENGTH))
    expected = paged_attention.decode_attention(q, cache, fresh, *at)
    for chunk in (PAGE, 2 * PAGE):
        monkeypatch.setattr(paged_attention_gpu, "CHUNK", chunk)
        grouped = attention.group(q[:, None], HEADS)
        found = paged_attention_gpu.attend(grouped, cache, fresh, *at, interpret=True)
        found = attention.ungroup(found, 1)[:, 0]
        assert found.dtype == q.dtype
        np.testing.assert_allclose(
            *(np.asarray(x, np.float32) for x in (found, expected)),
            atol=8e-3 if dtype == "bfloat16" else 1e-5,
        )


def test_on_a_gpu_the_cache_is_read_by_one_kernel(monkeypatch) -> None:
    cache, *_ = caches("bfloat16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q = jax.ShapeDtypeStruct((4, HEADS * EACH, DIM), jnp.bfloat16)
    now = jax.ShapeDtypeStruct((4, HEADS, 3, DIM), jnp.bfloat16)
    table = jax.ShapeDtypeStruct((1, 4, WIDTH), jnp.int32)
    step, length = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((), (4,)))
    attend = jax.jit(paged_attention.decode_attention, static_argnums=7)
    traced = attend.trace(q, cache, kv_cache.Fresh(now, now), step, step, table, length, "pallas")
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert re.findall(r"__gpu\$xla.gpu.triton", text) == ["__gpu$xla.gpu.triton"]
    assert "stablehlo.dot_general" not in text


@pytest.mark.parametrize(
    ("head_dim", "page", "says"),
    [
        (96, 64, "on a GPU a model.head_dim that is a power of two from 16, got 96; choose"),
        (64, 8, "a rollout.page_tokens that is a power of two from 16, got 8"),
    ],
)
def test_sizes_that_triton_has_no_blocks_of_are_refused(head_dim, page, says) -> None:
    with pytest.raises(attention.AttentionError, match=says):
        paged_attention_gpu.check_sizes(head_dim, page)


@pytest.mark.parametrize(
    ("head_dim", "page", "says"),
    [
        (64, 128, "takes a model.head_dim that is a multiple of 128, got 64; choose another, or"),
        (128, 64, "takes a rollout.page_tokens that is a multiple of 128, got 64"),
    ],
)
def test_sizes_that_the_kernel_does_not_take_are_refused_by_name(head_dim, page, says) -> None:
    with pytest.raises(attention.AttentionError, match=re.escape(says)):
        paged_attention_tpu.check_sizes(head_dim, page)


@pytest.mark.parametrize(
    ("choice", "platform", "head_dim", "page", "expected"),
    [
        ("auto", "tpu", 128, 256, "pallas"),
        ("auto", "tpu", 64, 128, "xla"),
        ("auto", "tpu", 128, 64, "xla"),
        ("auto", "gpu", 64, 64, "pallas"),
        ("auto", "gpu", 96, 64, "xla"),
        ("auto", "cpu", 128, 128, "xla"),
        ("xla", "tpu", 128, 128, "xla"),
        ("pallas", "tpu", 64, 128, "pallas"),  # which its own check refuses
    ],
)
def test_the_kernel_is_chosen_where_there_is_one(
    choice, platform, head_dim, page, expected
) -> None:
    assert paged_attention.reader(choice, platform, head_dim, page) == expected


def test_the_kernel_is_refused_where_there_is_no_tpu() -> None:
    decode.check_backend("xla")
    with pytest.raises(
        decode.RolloutError, match="for TPUs and one for GPUs, and this is 'cpu'; choose 'xla'"
    ):
        decode.check_backend("pallas")
