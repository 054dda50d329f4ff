"""Plain decoding: the engine against transformers on the same weights, prompts and processor."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import rollout_model as stand_in
from masksearch_jax.core.tools import search_alone
from masksearch_jax.models import hf
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request

BATCHES = (1, 8, 32)
NEW_TOKENS = 64
PROMPTS = (16, 96)  # tokens, from and to
CONFIG = dataclasses.replace(
    stand_in.ROLLOUT,
    max_len=PROMPTS[1] + NEW_TOKENS + 1,
    tick_tokens=32,
    extend_tokens=96,
    chunk_tokens=16,
    max_new_tokens=NEW_TOKENS,
    temperature=0.0,
)
Decode = Callable[[Sequence[Request]], list[list[int]]]  # the new tokens of each


class OurEngine:
    def __init__(self, model: Any, batch: int):
        config = dataclasses.replace(CONFIG, slots=batch)
        vocab = stand_in.Wordless(model.config.vocab_size)
        self.model = model
        search = stand_in.SlowSearch(1, lambda query: 0.0)
        self.engine = Engine(
            vocab, search_alone(search, stand_in.SEARCH), config, stand_in.SEARCH, strict=True
        )

    def __call__(self, requests: Sequence[Request]) -> list[list[int]]:
        done = {t.example_id: t for t in self.engine.run(self.model, requests)}
        return [done[r.example_id].ids[len(r.prompt_ids) :].tolist() for r in requests]


class Torch:
    """transformers in float32 on as many threads as there are processors."""

    def __init__(self, folder: str):
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        transformers.logging.set_verbosity_error()
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.torch, self.transformers = torch, transformers
        self.model = load(folder, dtype=torch.float32, attn_implementation="sdpa").eval()

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """All as one batch, padded on the left, with a cache of fixed size."""
        width = max(len(r.prompt_ids) for r in requests)
        ids = np.zeros((len(requests), width), np.int64)
        mask = np.zeros_like(ids)
        for row, r in enumerate(requests):
            ids[row, width - len(r.prompt_ids) :] = r.prompt_ids
            mask[row, width - len(r.prompt_ids) :] = 1
        with self.torch.inference_mode():
            out = self.model.generate(
                self.torch.from_numpy(ids),
                attention_mask=self.torch.from_numpy(mask),
                cache_implementation="static",
                do_sample=False,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=0,
            )
        return out[:, width:].tolist()

    def generate_batch(self, requests: Sequence[Request]) -> list[list[int]]:
        """Continuous batching with a cache of just the size needed. RuntimeError if it fails."""
        page = 32
        pages = sum(-(-(len(r.prompt_ids) + NEW_TOKENS) // page) for r in requests)
        how = self.transformers.ContinuousBatchingConfig(
            page_size=page,
            num_blocks=2 * pages,
            max_batch_tokens=max(256, sum(len(r.prompt_ids) for r in requests)),
        )
        greedy = self.transformers.GenerationConfig(
            do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=-1, pad_token_id=0
        )
        with self.torch.inference_mode():
            out = self.model.generate_batch(
                [r.prompt_ids.tolist() for r in requests],
                generation_config=greedy,
                continuous_batching_config=how,
                warmup=False,
            )
        found = list(out.values())
        if len(found) != len(requests) or any(o.error for o in found):
            errors = {str(o.error) for o in found if o.error}
            raise RuntimeError(f"{len(found)} of {len(requests)} answered; {errors or 'no reason'}")
        return [list(o.generated_tokens) for o in found]


def measure(model: Any, repeats: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Figures by key, one value per repeat, and notes by key."""
    values, notes = defaultdict(list), {}
    with tempfile.TemporaryDirectory(prefix="rollout-benchmark-") as folder:
        hf.save(model, folder + "/model", generation_config={})
        torch = Torch(folder + "/model")
    for batch in BATCHES:
        requests = prompts(model.config.vocab_size, batch)
        rivals: dict[str, Decode] = {
            "engine": OurEngine(model, batch),
            "static": torch.generate,
        }
        first = {name: rival(requests) for name, rival in rivals.items()}  # compiles, warms up
        try:
            first["batch"] = torch.generate_batch(requests)
            rivals["batch"] = torch.generate_batch
        except Exception as error:  # whatever it does not support here
            notes["generate_batch_note"] = f"{type(error).__name__}: {error}"
        for _ in range(repeats):
            speed = {name: tokens_per_second(rival, requests) for name, rival in rivals.items()}
            for key, value in figures(speed).items():
                values[f"b{batch}.{key}"].append(value)
            print(f"b{batch} tokens/s: {speed}", file=sys.stderr, flush=True)
        for name in set(rivals) - {"engine"}:
            values[f"b{batch}.same_tokens_{name}"].append(same(first["engine"], first[name]))
        rivals["engine"].engine.close()
    return values, notes


def figures(speed: dict[str, float]) -> dict[str, float]:
    found = {
        "tokens_per_second": speed["engine"],
        "transformers_tokens_per_second": speed["static"],
        "ratio_to_transformers": speed["engine"] / speed["static"],
    }
    if "batch" in speed:
        found["generate_batch_tokens_per_second"] = speed["batch"]
        found["ratio_to_generate_batch"] = speed["engine"] / speed["batch"]
    return found


def prompts(vocab_size: int, batch: int) -> list[Request]:
    """Prompts of mixed lengths, the longest and the shortest among them."""
    lengths = np.linspace(PROMPTS[1], PROMPTS[0], batch).astype(int)
    return stand_in.requests(vocab_size, lengths.tolist(), seed=2)


def tokens_per_second(rival: Decode, requests: Sequence[Request]) -> float:
    started = time.perf_counter()
    done = rival(requests)
    seconds = time.perf_counter() - started
    if [len(ids) for ids in done] != [NEW_TOKENS] * len(requests):
        raise RuntimeError(f"{[len(ids) for ids in done]} new tokens, expected {NEW_TOKENS} each")
    return len(requests) * NEW_TOKENS / seconds


def same(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of equal tokens, up to rounding 1: greedy decoding of the same weights."""
    return float(np.mean(np.asarray(ours) == np.asarray(theirs)))
