"""Attention by cuDNN: the same function, lowered to its kernels, and refused where there are none.

No GPU runs here: its mask and layout are compared through JAX's own `xla` implementation, which
takes the same arguments, and the kernels are looked for in what is lowered for CUDA.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from masksearch_jax.models import attention


def inputs(dtype: str, time: int = 16) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = ((2, time, 4, 8), (2, time, 2, 8), (2, time, 2, 8))
    q, k, v = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    segments = np.zeros((2, time), np.int32)
    segments[0, :9], segments[0, 9:], segments[1, :5] = 1, 2, 1
    return q, k, v, jnp.asarray(segments)


def total(implementation, q, k, v, segments):
    own = (segments > 0)[..., None, None]
    out = implementation(q, k, v, segments).astype(jnp.float32)
    return jnp.sum(jnp.where(own, jnp.sin(out), 0.0))


def test_it_is_the_attention_of_packed_rows():
    def fused(*args):
        return attention.fused_attention(*args, implementation="xla")

    found, expected = (
        jax.value_and_grad(lambda *args, f=f: total(f, *args), (0, 1, 2))(*inputs("float32"))
        for f in (fused, attention.packed_attention)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_segments_are_handed_over_as_cudnn_reads_them():
    """All rows' lengths one after the other, and where each begins in all rows' elements."""
    segments = np.int32([[1, 1, 1, 2, 2, 0, 0, 0], [1] * 8, [1, 2, 3, 3, 4, 4, 4, 4]])
    lengths, starts = attention.segments_of(jnp.asarray(segments), 4)
    np.testing.assert_array_equal(lengths, [[3, 2, 3, -1], [8, -1, -1, -1], [1, 1, 2, 4]])
    np.testing.assert_array_equal(starts, [[0, 3, 5, -1, -1], [0] + [-1] * 4, [0, 1, 2, 4, -1]])
    q = jnp.zeros((3, 8, 4, 16))
    told = fused_attention_stablehlo._fix_seqlen_offsets(lengths, lengths, starts, starts, q, q)
    lengths, _, of_queries, of_keys = (np.ravel(x) for x in told)
    begins = [0, 3, 5, 8, 16, 17, 18, 20] + 7 * [24]
    np.testing.assert_array_equal(lengths, [3, 2, 3, 8, 1, 1, 2, 4] + 4 * [0])
    np.testing.assert_array_equal(of_queries, np.multiply(begins, 4 * 16))
    np.testing.assert_array_equal(of_keys, of_queries)


def test_cudnn_s_packing_is_told_of_as_many_key_heads_as_query_heads(monkeypatch):
    told = {}

    def kernel(*args, **options):
        told["shapes"] = [x.shape for x in args[:3]]
        return args[0]

    monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", kernel)
    attention.segmented_attention(*inputs("bfloat16"), most=2)
    assert told["shapes"] == [(2, 16, 4, 8)] * 3


@pytest.mark.parametrize("hopper", [True, False])
def test_it_is_lowered_to_the_kernels_of_cudnn(hopper, monkeypatch):
    for name, found in (
        ("check_cudnn_version", lambda: 91200),
        ("check_compute_capability", lambda capability: hopper or capability == "8.0"),
        ("is_cuda_compute_capability_equal", lambda capability: False),
    ):
        monkeypatch.setattr(fused_attention_stablehlo, name, found)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    gradient = jax.jit(jax.grad(lambda *a: total(attention.cudnn_attention, *a), (0, 1, 2)))
    text = gradient.trace(*inputs("bfloat16")).lower(lowering_platforms=("cuda",)).as_text()
    kernels = re.findall(r"__cudnn\$\w+", text)
    own = ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    masked = ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]
    assert sorted(kernels) == masked + own * hopper
    assert "dot_general" not in text


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_is_refused_where_there_is_no_kernel(dtype, monkeypatch):
    with pytest.raises(
        attention.AttentionError, match=f"bfloat16 on an NVIDIA GPU, got {dtype} on cpu; choose"
    ):
        attention.ATTENTION["cudnn"](*inputs(dtype))
    if dtype == "float32":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        with pytest.raises(attention.AttentionError, match="got float32 on gpu"):
            attention.ATTENTION["cudnn"](*inputs(dtype))
