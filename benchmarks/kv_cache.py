"""The paged KV cache against a contiguous one of as much memory: what is open, tokens per second.

    python -m benchmarks.kv_cache [--json=FILE] [--repeats=3]

Random weights of a Qwen2 shape in float32. The contiguous cache is the same code with one page of
max_len tokens for each trajectory, of which nothing can be shared.

`scarce`: 96 trajectories, 4 samples of each of 24 prompts of 48 tokens. Every token ends its turn
with probability 1/40, two times of three in a search (0.2 s, 34 tokens), else in the answer; 3
searches at most, 512 tokens at most. Both caches hold 6,144 tokens, 12 trajectories of the longest
kind; up to 48 may be open and up to 24 decode.

`step`: seconds of a decode tick of 32 rows with 128, 256 and 448 tokens in the cache, of 512 that
there is room for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rollout_model as stand_in
from benchmarks.rollout import Values, nested, table, versions
from masksearch_jax.core.tools import search_alone
from masksearch_jax.models.transformer import unroll
from masksearch_jax.rollout import decode
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.sampling import Sampler

MODEL = stand_in.qwen2(4096, 256, 704, 4, 4)
MAX_LEN, ROWS, FILLED = 512, 32, (128, 256, 448)
CACHES = {"paged": 64, "contiguous": MAX_LEN}  # tokens of a page
PROMPTS, SAMPLES, PROMPT, OBSERVATION, TURN, SECONDS = 24, 4, 48, 34, 40, 0.2
CONFIG = dataclasses.replace(
    stand_in.ROLLOUT,
    slots=48,
    decode_share=(0.25, 0.5),
    max_len=MAX_LEN,
    kv_tokens=12 * MAX_LEN,
    max_turns=3,
    max_new_tokens=MAX_LEN,
    max_observation_tokens=OBSERVATION,
)


class Actions(stand_in.Words):
    """Its last two tokens are an answer and a search, tags and all."""

    def __init__(self, size: int):
        super().__init__(size)
        self.words[-2:] = "<answer>w0000</answer>", "<search>w0000</search>"


@flax.struct.dataclass
class Hazard(stand_in.Scripted):
    """Draws words from the transformer and, with fixed probabilities, an action in their place."""

    def logits(self, x: stand_in.At) -> jax.Array:
        logits = super().logits(x)
        size = logits.shape[-1]
        words = jnp.where(jnp.arange(size)[None] < size - 2, logits, -1e9)
        total = jax.nn.logsumexp(words, axis=-1, keepdims=True)
        odds = np.log(np.float32([1 / 3, 2 / 3]) / (TURN - 1))
        return words.at[:, -2:].set(total + odds[None])


def scarce(repeats: int) -> tuple[Values, list[int]]:
    """Figures of the engine with each cache, and the lengths of all trajectories."""
    vocab = Actions(MODEL.vocab_size)
    script = np.full(1, -1, np.int32)
    model = Hazard(unroll(stand_in.transformer(MODEL)), script, vocab.first_word)
    requests = stand_in.requests(
        vocab.size - 2, [PROMPT] * PROMPTS, first_word=vocab.first_word, samples=SAMPLES
    )
    engines = {name: engine_of(vocab, page) for name, page in CACHES.items()}
    values, lengths = defaultdict(list), {}
    for repeat in range(-1, repeats):  # the first compiles
        speed, opened = {}, {}
        for name, engine in engines.items():
            before = dataclasses.replace(engine.stats)
            started = time.perf_counter()
            done = {(t.example_id, t.sample): len(t.ids) for t in engine.run(model, requests)}
            seconds = time.perf_counter() - started
            stats = engine.stats.since(before)
            lengths.setdefault(name, done)
            if len(done) != len(requests):
                raise RuntimeError(f"{len(done)} trajectories of {len(requests)} with {name}")
            speed[name], opened[name] = stats.sampled_tokens / seconds, stats.opened / stats.ticks
            if repeat < 0:
                continue
            values[f"{name}.tokens_per_second"].append(speed[name])
            values[f"{name}.open"].append(opened[name])
            values[f"{name}.pages_used"].append(stats.used_pages / stats.all_pages)
            values[f"{name}.decoding"].append(stats.decode_rows / stats.ticks)
            values[f"{name}.evicted"].append(stats.evicted)
        if repeat >= 0:
            values["ratio_tokens_per_second"].append(speed["paged"] / speed["contiguous"])
            values["ratio_open"].append(opened["paged"] / opened["contiguous"])
    same = [lengths["paged"][key] == n for key, n in lengths["contiguous"].items()]
    values["same_lengths"].append(float(np.mean(same)))
    return values, sorted(lengths["paged"].values())


def engine_of(vocab: Actions, page: int) -> Engine:
    search = stand_in.SlowSearch(OBSERVATION - 2, lambda query: SECONDS)
    config = dataclasses.replace(CONFIG, page_tokens=page)
    return Engine(
        vocab, search_alone(search, stand_in.SEARCH), config, stand_in.SEARCH, strict=True
    )


def step(repeats: int) -> Values:
    """Seconds of a tick in which all rows decode, with each cache and length."""
    model = unroll(stand_in.transformer(MODEL))
    tokens = CONFIG.tick_tokens
    tick = decode.make_tick(tokens, Sampler(1.0))
    stop = np.zeros(MODEL.vocab_size, np.bool_)
    caches = {
        name: decode.init_cache(model, 1, ROWS * MAX_LEN // page, page, "")
        for name, page in CACHES.items()
    }
    values = defaultdict(list)
    for repeat in range(-1, 3 * repeats):  # the first compiles
        for filled in FILLED:
            seconds = {}
            for name, page in CACHES.items():
                inbox = decoding(MAX_LEN // page, filled, tokens)
                started = time.perf_counter()
                caches[name], sampled = tick(model, caches[name], inbox, np.uint32(0), stop, ROWS)
                count = np.asarray(sampled.count)
                seconds[name] = time.perf_counter() - started
                assert (count == tokens).all(), count
            if repeat >= 0:
                for name, value in seconds.items():
                    values[f"at{filled}.{name}_seconds"].append(value)
                ratio = seconds["contiguous"] / seconds["paged"]
                values[f"at{filled}.speed_ratio"].append(ratio)
    return values


def decoding(width: int, filled: int, tokens: int) -> decode.Inbox:
    """All rows, of `width` pages each, decode so many tokens after `filled` in the cache."""
    inbox = decode.empty_inbox(1, ROWS, width, 64, 64, 8)
    pages = np.random.default_rng(0).permutation(ROWS * width)
    inbox.table[0] = pages.reshape(ROWS, width)
    inbox.length[0], inbox.last[0], inbox.budget[0] = filled, np.arange(ROWS), tokens
    inbox.stream[0, :, 0] = np.arange(ROWS)
    return inbox


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    about: dict[str, Any] = versions()
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ", flush=True)
    found, lengths = scarce(args.repeats)
    values = {f"scarce.{k}": v for k, v in found.items()}
    print(
        f"{len(lengths)} trajectories, tokens: mean {np.mean(lengths):.0f}, median "
        f"{np.median(lengths):.0f}, 90% {np.quantile(lengths, 0.9):.0f}, most {lengths[-1]}; "
        f"{stand_in.parameters(stand_in.transformer(MODEL)) / 1e6:.1f}M parameters"
    )
    values |= {f"step.{k}": v for k, v in step(args.repeats).items()}
    print(table(values), flush=True)
    if args.json:
        figures = {"versions": about, "repeats": args.repeats, "lengths": lengths}
        figures |= nested(values, {})
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
