"""The side of transformers in benchmarks/gpu.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import gpu_cases, rollout
from masksearch_jax.models.hf_config import to_hf_config


def torch_model(dtype: str, attention: str) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    config = transformers.Qwen2Config.from_dict(to_hf_config(gpu_cases.shape(), dtype))
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention
        )


def torch_bandwidth(repeats: int) -> rollout.Values:
    import torch

    x = torch.randn(2**31, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    moves = {"copy": lambda: y.copy_(x), "negation": lambda: torch.neg(x, out=y), "sum": x.sum}

    def call(move: Callable[[], Any]) -> None:
        for _ in range(10):
            move()
        torch.cuda.synchronize()

    return {
        name: [
            (1 if name == "sum" else 2) * x.nbytes * 10 / s
            for s in gpu_cases.seconds(lambda move=move: call(move), repeats)
        ]
        for name, move in moves.items()
    }


def torch_decode(repeats: int, context: int, attention: str) -> rollout.Values:
    import torch

    net = torch_model("bfloat16", attention).eval()
    values = defaultdict(list)
    few, many = 8, 8 + 2 * gpu_cases.TICK
    # With longer prompts no more rows fit: it reads them all at once.
    for rows in gpu_cases.ROWS if context == gpu_cases.CONTEXTS[0] else gpu_cases.ROWS[:1]:
        ids = torch.randint(0, net.config.vocab_size, (rows, context), device="cuda")

        def call(tokens: int, ids: Any = ids) -> None:
            with torch.inference_mode():
                net.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    cache_implementation="static",
                    max_cache_len=context + many,
                    min_new_tokens=tokens,
                    max_new_tokens=tokens,
                    do_sample=True,
                    top_k=0,
                    pad_token_id=0,
                )
            torch.cuda.synchronize()

        short = np.median(gpu_cases.seconds(lambda: call(few), repeats))
        for s in gpu_cases.seconds(lambda: call(many), repeats):
            values[f"r{rows}.tokens_per_second"].append(rows * (many - few) / (s - short))
    return dict(values)


def torch_train(repeats: int, attention: str, compiled: bool) -> rollout.Values:
    import torch

    net = torch_model("float32", attention).train()
    packed = gpu_cases.packed_batch(gpu_cases.shape())
    batch = {k: torch.from_numpy(v).cuda() for k, v in packed.items()}
    ids, targets, positions = (batch[k].long() for k in ("ids", "targets", "positions"))
    weights = batch["loss_weights"]
    parts = [
        (*(x[i : i + gpu_cases.MICRO] for x in (ids, positions, targets, weights)), mask)
        for i in range(0, gpu_cases.PACKED, gpu_cases.MICRO)
        for mask in [torch_mask(attention, batch["segment_ids"][i : i + gpu_cases.MICRO])]
    ]
    adam = torch.optim.AdamW(net.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(net) if compiled else net
    values = defaultdict(list)

    def call() -> None:
        total = 0.0
        for part_ids, places, wanted, counts, mask in parts:
            with torch.autocast("cuda", torch.bfloat16):
                out = forward(
                    part_ids, attention_mask=mask, position_ids=places, use_cache=False
                ).logits
            nll = torch.nn.functional.cross_entropy(
                out.flatten(0, 1).float(), wanted.flatten(), reduction="none"
            )
            loss = (counts.flatten() * nll).sum() / weights.sum()
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        values["loss"].append(total)

    needed = gpu_cases.train_flops(gpu_cases.shape(), packed)
    for s in gpu_cases.seconds(call, repeats):
        values["tokens_per_second"].append(ids.numel() / s)
        values["mfu"].append(needed / s / gpu_cases.PEAK)
    values["peak_bytes"].append(torch.cuda.max_memory_allocated())
    return dict(values)


def torch_mask(attention: str, segments: Any) -> Any:
    """Causal within a segment, as this attention wants it."""
    import torch

    time_ = torch.arange(gpu_cases.LENGTH, device="cuda")
    if attention != "flex_attention":
        allowed = segments[:, :, None] == segments[:, None, :]
        return (allowed & (time_[:, None] >= time_))[:, None]
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(b: Any, _: Any, q: Any, k: Any) -> Any:
        return (segments[b, q] == segments[b, k]) & (q >= k)

    return create_block_mask(
        allowed, len(segments), None, gpu_cases.LENGTH, gpu_cases.LENGTH, device="cuda"
    )
