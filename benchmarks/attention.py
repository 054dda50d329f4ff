"""Attention of packed rows by pairs of blocks against XLA's products of whole pieces and torch.

    python -m benchmarks.attention --json=FILE [--only=three_texts,one_text] [--repeats=7]

One row of 2,048 tokens in SmolLM2-135M's shape (9 heads, 3 kv heads, 64 dims), float32, on as many
threads as there are processors; of three texts, and of one. `forward` is the attention of one
layer, `gradient` the gradients of its queries, keys and values. All sides take turns within a
repeat, and must agree; each ratio is of one repeat. torch runs scaled_dot_product_attention under
the same mask, as bool, with the keys repeated for the heads that share them. `temporaries_ratio` is
what the compiler needs besides arguments and results, as it says, against `xla`. Compiling is not
timed.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rollout
from masksearch_jax.models import attention

ROW, HEADS, KV_HEADS, DIM = 2048, 9, 3, 64
TARGETS = {
    "three_texts.gradient.ratio_to_xla": (">=", 2.0),
    "one_text.gradient.ratio_to_xla": (">=", 1.0),
}
TOLERANCE = 1e-4
Call = Callable[[], list[np.ndarray]]


def inputs(texts: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Queries, keys, values and the output's gradient; segment ids."""
    rng = np.random.default_rng(0)
    shapes = [(1, ROW, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    segments = np.sort(np.arange(ROW) % texts)[None].astype(np.int32) + 1
    return [rng.normal(size=s).astype(np.float32) for s in shapes], segments


def ours(
    attend: Callable[..., jax.Array], arrays: list[np.ndarray], segments: np.ndarray
) -> tuple[dict[str, Call], float]:
    """The two calls, and the bytes of the gradient's temporaries."""
    q, k, v, weights = map(jnp.asarray, arrays)
    arguments = q, k, v, jnp.asarray(segments), weights

    def loss(*args: jax.Array) -> jax.Array:
        *given, weights = args
        return jnp.sum(attend(*given) * weights)

    programs = {
        "forward": jax.jit(lambda *args: [attend(*args[:4])]),
        "gradient": jax.jit(lambda *args: list(jax.grad(loss, (0, 1, 2))(*args))),
    }
    compiled = {name: f.lower(*arguments).compile() for name, f in programs.items()}

    def call(name: str) -> list[np.ndarray]:
        return [np.asarray(x) for x in jax.block_until_ready(compiled[name](*arguments))]

    needed = compiled["gradient"].memory_analysis().temp_size_in_bytes
    return {name: functools.partial(call, name) for name in programs}, needed


def torchs(arrays: list[np.ndarray], segments: np.ndarray) -> dict[str, Call]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    q, k, v, weights = (torch.from_numpy(x) for x in arrays)
    own = torch.from_numpy(segments)
    mask = (own[:, :, None] == own[:, None]) & torch.ones(ROW, ROW, dtype=torch.bool).tril()

    def attend(*args: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in args)
        k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
        return out.transpose(1, 2)

    def forward() -> list[np.ndarray]:
        with torch.inference_mode():
            return [attend(q, k, v).numpy()]

    def gradient() -> list[np.ndarray]:
        leaves = [x.requires_grad_() for x in (q, k, v)]
        for x in leaves:
            x.grad = None
        (attend(*leaves) * weights).sum().backward()
        return [x.grad.numpy().copy() for x in leaves]

    return {"forward": forward, "gradient": gradient}


def measure(repeats: int, *, texts: int) -> tuple[rollout.Values, rollout.Notes]:
    arrays, segments = inputs(texts)
    blockwise, needed = ours(attention.blocked_attention, arrays, segments)
    xla, needed_by_xla = ours(attention.packed_attention, arrays, segments)
    sides = {"blockwise": blockwise, "xla": xla, "torch": torchs(arrays, segments)}
    values: rollout.Values = {"temporaries_ratio": [needed / needed_by_xla]}
    for part in ("forward", "gradient"):
        expected, *others = (side[part]() for side in sides.values())
        for found in others:
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, atol=TOLERANCE)
        for _ in range(repeats):
            spent = {}
            for name, side in sides.items():
                started = time.perf_counter()
                side[part]()
                spent[name] = time.perf_counter() - started
            for name, seconds in spent.items():
                values.setdefault(f"{part}.{name}_ms", []).append(1000 * seconds)
            for other in ("xla", "torch"):
                key = f"{part}.ratio_to_{other}"
                values.setdefault(key, []).append(spent[other] / spent["blockwise"])
    return values, {}


SECTIONS = {
    "three_texts": functools.partial(measure, texts=3),
    "one_text": functools.partial(measure, texts=1),
}

if __name__ == "__main__":
    rollout.report(rollout.arguments(__doc__, SECTIONS, 7), SECTIONS, TARGETS)
