"""Floating-point operations: those that a program does, and those that the model needs.

The compiler's own count takes a loop's body once; here a program is counted as it is traced, where
a scan says how often it runs.
"""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core

from masksearch_jax.core.config import ModelConfig

# Matrix products of each attention kernel, in units of scores @ values; causal: half of each.
_KERNELS = {"fwd": 2, "dq": 3, "dkv": 4}
_BLOCKWISE = {"forward_blocks": 2, "backward_blocks": 5}  # of models.blockwise_attention


def of_program(jaxpr: Any, loops: float = 1.0) -> float:
    """Of the matrix products of a traced program, over all devices.

    A loop whose length it does not tell is taken to run `loops` times; an attention kernel counts
    as causal: half of its queries times its keys.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_of_equation(equation, loops) for equation in jaxpr.eqns)


def _of_equation(equation: Any, loops: float) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), (batch, _) = params["dimension_numbers"]
        left, right = (v.aval.shape for v in equation.invars)
        inner = math.prod(left[i] for i in (*contracted, *batch))
        return 2.0 * math.prod(left) * math.prod(right) / inner
    if name == "pallas_call":
        return _of_kernel(equation)
    if params.get("name") in _BLOCKWISE:
        shapes = [v.aval.shape for v in equation.invars if len(v.aval.shape) == 4]
        if len(shapes) < 2:  # what JAX moves out of a loop over layers
            return 0.0
        (batch, time, heads, dim), keys = shapes[0], shapes[1][1]
        return _BLOCKWISE[params["name"]] * 2.0 * batch * heads * time * keys * dim / 2
    bodies = [p for p in params.values() if isinstance(p, core.Jaxpr | core.ClosedJaxpr)]
    if name == "scan":
        return params["length"] * of_program(params["jaxpr"], loops)
    if name == "cond":
        return max(of_program(branch, loops) for branch in params["branches"])
    ways = loops if name == "while" else 1
    if name == "shard_map":
        ways = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return ways * sum(of_program(body, loops) for body in bodies)


def _of_kernel(equation: Any) -> float:
    """Of one splash attention kernel, by its name, queries [..., H, T, D], keys [..., K, S, D]."""
    name = str(equation.params.get("name") or equation.params.get("name_and_src_info"))
    kind = next((k for k in ("dkv", "dq", "fwd") if k in name), None)
    shapes = [v.aval.shape for v in equation.invars if len(v.aval.shape) >= 3]
    shapes = [s for s in shapes if s[-1] >= 32 and s[-2] >= 128]
    if kind is None or not shapes:
        return 0.0
    (*rows, time, dim), keys = shapes[0], shapes[1][-2]
    return _KERNELS[kind] * 2.0 * math.prod(rows) * time * keys * dim / 2


def of_training(config: ModelConfig, tokens: int, length: int, adapters: bool = False) -> float:
    """That an update over `tokens` tokens needs at least: forward, and twice as much backward.

    6 per token and weight of a matrix product (a tied table counts once, as the head), and the
    causal attention of rows of `length` tokens (PaLM, appendix B, halved for causality). With
    `adapters` alone trained 4 per token and weight: frozen ones have no gradient; the adapters' own
    products, under a hundredth of these, are not counted.
    """
    weights, attention = _forward(config, length)
    return tokens * ((2.0 if adapters else 3.0) * weights + 3.0 * attention)


def of_forward(config: ModelConfig, tokens: int, length: int) -> float:
    return tokens * sum(_forward(config, length))


def _forward(config: ModelConfig, length: int) -> tuple[float, float]:
    """Of a token: with the weights, and in attention."""
    heads = config.num_heads + 2 * config.num_kv_heads
    layer = config.hidden_size * config.head_dim * (heads + config.num_heads)
    layer += 3 * config.hidden_size * config.intermediate_size
    weights = config.num_layers * layer + config.vocab_size * config.hidden_size
    attention = config.num_layers * config.num_heads * config.head_dim * length / 2
    return 2.0 * weights, 4.0 * attention
