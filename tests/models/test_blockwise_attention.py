"""Attention by pairs of blocks: `packed_attention`'s values and gradients, and what is left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from masksearch_jax.core.config import ComputeConfig, MeshConfig, ModelConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.models import attention, blockwise_attention, context_parallel
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import sharding

BLOCK = blockwise_attention.BLOCK
MODEL = to_dataclass(ModelConfig, common.model("tiny"))


def row(*lengths: int) -> list[int]:
    """Segment ids of a row of so many tokens each; the last are padding."""
    *segments, padding = lengths
    return [i for i, n in enumerate(segments, 1) for _ in range(n)] + [0] * padding


def inputs(segments: list[list[int]], dtype: str = "float32") -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    rows, time = np.shape(segments)
    shapes = ((rows, time, 6, 16), (rows, time, 2, 16), (rows, time, 2, 16))
    return (*(jnp.asarray(rng.normal(size=s), dtype) for s in shapes), jnp.int32(segments))


def results(attend, q, k, v, segments):
    """What it makes, and gradients of q, k and v."""
    weights = jax.random.normal(jax.random.key(1), q.shape)

    def loss(q, k, v):
        out = attend(q, k, v, segments).astype(jnp.float32)
        return jnp.sum(out * weights), out

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, out), grads = both(q, k, v)
    return out, *grads


ROWS = {
    "one block": [row(10, 7, 3), row(20, 0)],
    "blocks that are not whole": [row(250, 300, 83), row(1, 2, 620, 10)],
    "one text": [row(3 * BLOCK, 0)],
    "a block and a token": [row(BLOCK + 1, 0), row(200, BLOCK - 199)],
    "a last block that is not whole": [row(100, 501, 0), row(601, 0)],
    "a last block with padding": [row(100, 400, 101), row(1, 600)],
    "padding in blocks of its own": [row(30, 3 * BLOCK - 30), row(BLOCK, BLOCK, BLOCK)],
    "padding alone": [row(2 * BLOCK), row(2 * BLOCK, 0)],
}


@pytest.mark.parametrize("name", ROWS)
def test_it_is_the_attention_of_packed_rows(name):
    args = inputs(ROWS[name])
    found, expected = (
        results(f, *args) for f in (attention.blocked_attention, attention.packed_attention)
    )
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("length", [1024, 1028])  # of 1,028 a shard's blocks are not whole
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("rows", "tensor"), [(1, 2), (2, 1)])
def test_devices_that_share_rows_heads_and_times_find_the_same(length, parts, rows, tensor):
    segments = [row(500, length - 624, 124), row(length, 0)]
    expected = results(attention.packed_attention, *inputs(segments))
    mesh = sharding.make_mesh(
        MeshConfig(rows, 1, tensor, parts), jax.devices()[: rows * tensor * parts]
    )
    times = context_parallel.order(length, parts)

    def as_laid_out(*args):
        out = attention.blocked_attention(*(x[:, times] for x in args))
        return out[:, np.argsort(times)]

    with jax.set_mesh(mesh):
        found = results(as_laid_out, *inputs(segments))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_products_in_bfloat16_are_summed_in_float32():
    args = inputs(ROWS["blocks that are not whole"], "bfloat16")
    wide = [x.astype(jnp.float32) for x in args[:3]]
    found = results(attention.blocked_attention, *args)
    assert [x.dtype for x in found[1:]] == [jnp.bfloat16] * 3
    expected = results(attention.packed_attention, *wide, args[3])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.02, atol=0.03)


def test_a_row_does_not_depend_on_the_others_of_its_batch():
    """A block that one row needs and another does not changes no bit of the other."""
    mine = row(300, 300, 300, 0)
    found = [
        results(attention.blocked_attention, *inputs([mine, other]))
        for other in (row(900, 0), row(*[100] * 9, 0))
    ]
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_blocks_without_a_segment_in_common_are_left_out():
    segments = jnp.int32([row(BLOCK, 2 * BLOCK, BLOCK + 9, BLOCK - 9)])
    time = segments.shape[1]
    q = jnp.zeros((1, time, 2, 8))
    inputs = blockwise_attention.Inputs(q, q, q, segments, jnp.arange(time), segments)
    blocks, _, width = blockwise_attention._blocks(inputs)
    assert width == BLOCK
    assert blocks.first.tolist() == [0, 1, 1, 3, 3]
    assert blocks.end.tolist() == [1, 2, 3, 4, 5]


def test_what_it_found_is_kept_with_the_products():
    """The backward pass runs the forward one again where nothing is kept, and only there."""
    ids = np.ones((1, 8), np.int32)

    def forward_passes(jaxpr) -> int:
        count = 0
        for equation in jaxpr.eqns:
            count += equation.params.get("name") == "forward_blocks"
            bodies = jax.tree.leaves(list(equation.params.values()))
            count += sum(forward_passes(body) for body in bodies if hasattr(body, "eqns"))
        return count

    def of_gradient(remat: str) -> int:
        compute = dataclasses.replace(
            ComputeConfig("float32", "float32"), attention="blockwise", remat=remat
        )
        model = nnx.eval_shape(lambda: Transformer(MODEL, compute, nnx.Rngs(0)))
        made = jax.make_jaxpr(jax.grad(lambda m: jnp.sum(m.hidden(ids, ids, ids))))(model)
        return forward_passes(made)

    assert of_gradient("dots") == of_gradient("none") == of_gradient("block") - 1 > 0


def test_a_model_computes_the_same_with_it():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, MODEL.vocab_size, (2, 300), np.int32)
    segments = np.int32([row(100, 150, 50), row(300, 0)])
    positions = np.int32([[*range(100), *range(150), *range(50)], [*range(300)]])
    weights = rng.normal(size=(2, 300, MODEL.hidden_size)) * (segments > 0)[..., None]

    def loss(model):
        return jnp.sum(model.hidden(ids, positions, segments) * np.float32(weights))

    def gradient(name):
        compute = ComputeConfig("float32", "float32", name, "dots", 64)
        model = jax.jit(lambda: Transformer(MODEL, compute, nnx.Rngs(1)))()
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(model))

    for a, b in zip(gradient("blockwise"), gradient("xla"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())
