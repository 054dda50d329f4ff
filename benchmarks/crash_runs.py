"""Training runs of several processes on this machine: their data, how they start, their curves."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from masksearch_jax import build_index, build_ramp, build_trajectories
from masksearch_jax.core.config import DapoRun, SftRun
from masksearch_jax.core.corpus_config import CorpusConfig
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import train_bpe
from masksearch_jax.core.types import QAExample, RampExample
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.runtime import cli
from masksearch_jax.runtime.metric_writer import read_metrics

ROOT = Path(__file__).resolve().parent.parent
PROCESS = """
import json, sys
from masksearch_jax import train_dapo, train_sft
from masksearch_jax.core.config import DapoRun, SftRun
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.runtime import cli
main, schema = {"sft": (train_sft, SftRun), "dapo": (train_dapo, DapoRun)}[sys.argv[1]]
cfg = to_dataclass(schema, json.loads(sys.argv[2]))
cli.call(lambda: main.run(cfg) and None)
"""
# When a search comes back decides who decodes next to whom, and whose prompt is there to be copied.
TIMED = (
    "second",
    "wall_time",
    "host_share",
    "decode_occupancy",
    "queue_length",
    "searches_in_flight",
    "prompts_shared",
    "prefix_tokens",
    "open_trajectories",
    "kv_pages_used",
    "evicted",
)


def curve(workdir: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what the clock decides: what two runs of the same seed agree on."""
    rows = read_metrics(workdir)
    return [{k: v for k, v in row.items() if not any(t in k for t in TIMED)} for row in rows]


class Cluster:
    """`devices` CPU devices, split over `count` processes that run one trainer together."""

    def __init__(self, cfg: SftRun | DapoRun, count: int = 2, devices: int = 2):
        kind = "dapo" if isinstance(cfg, DapoRun) else "sft"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices // count),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_NUM_PROCESSES": str(count),
        }
        if count > 1:
            env["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
        command = [sys.executable, "-c", PROCESS, kind, json.dumps(dataclasses.asdict(cfg))]
        workdir = Path(cfg.workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self.logs = [workdir / f"log-{i}.txt" for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            with log.open("a") as file:
                started = subprocess.Popen(
                    command, cwd=ROOT, env=env | {"JAX_PROCESS_ID": str(i)}, stderr=file
                )
            self.processes.append(started)

    def is_running(self) -> bool:
        return all(p.poll() is None for p in self.processes)

    def signal(self, number: int, *which: int) -> None:
        for i in which or range(len(self.processes)):
            self.processes[i].send_signal(number)

    def wait(self, seconds: float) -> list[int]:
        """All exit statuses. Raises TimeoutExpired, with the logs, where one does not end."""
        end = time.monotonic() + seconds
        try:
            return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired as error:
            self.kill()
            error.add_note(self.text())
            raise

    def kill(self) -> None:
        """Ends all at once, without mercy."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()

    def text(self) -> str:
        """What the processes said, the end of it."""
        return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in self.logs)


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run of this benchmark reads."""

    cfg: QuickstartRun
    index: Path
    tokenizer: Path
    cache: Path


def make_data(folder: Path, cities: int = 300) -> Data:
    """A few hundred articles, masked, indexed, demonstrated and tokenised."""
    c = cli.load_config(f"{ROOT / 'configs' / 'quickstart.py'}:runlocal")
    c.corpus.limit, c.ramp.max_examples, c.tokenizer_vocab_size = cities, 2 * cities, 512
    c.model.hidden_size, c.model.intermediate_size, c.model.head_dim = 64, 128, 16
    c.model.num_layers, c.compute.remat = 2, "none"
    cfg = to_dataclass(QuickstartRun, c)
    made = Data(cfg, *(folder / n for n in ("index", "tokenizer", "cache")))
    if (made.cache / "manifest.json").exists():
        return made
    data = folder / "data"
    build_ramp.run(build_ramp.BuildRampRun(str(data), cfg.corpus, cfg.ramp, cfg.seed))
    # Questions that a policy of a few updates gets right now and then, so that groups have spread.
    easy = [
        QAExample(f"easy:{e.id}", "easy", e.paragraph, ("million", "Africa"))
        for e in read_jsonl(data / "ramp" / "train.jsonl", RampExample)[:40]
    ]
    write_jsonl(data / "questions" / "train.jsonl", easy)
    passages = data / "passages.jsonl"
    source = CorpusConfig(str(passages), "", 0, 0.0)
    build_index.run(build_index.BuildIndexRun(source, str(made.index)))
    train_bpe((p.text for p in read_passages(passages)), made.tokenizer, 512)
    search = dataclasses.replace(cfg.search, index=str(made.index))
    build_trajectories.run(
        build_trajectories.BuildTrajectoriesRun(
            str(data), ("ramp",), search, 2, 0, cfg.seed, thoughts="short"
        )
    )
    values = {
        "folder": data,
        "cache": made.cache,
        "tokenizer": made.tokenizer,
        "prompt.style": cfg.prompt.style,
        "max_len": cfg.sft.seq_len,
        "max_prompt_len": cfg.rollout.max_len // 2,
    }
    command = [sys.executable, "-m", "masksearch_jax.build_cache"]
    command += [f"--config={ROOT / 'configs' / 'build_cache.py'}"]
    command += [f"--config.{name}={value}" for name, value in values.items()]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return made


def sft_run(data: Data, workdir: Path, steps: int, **survival: Any) -> SftRun:
    """SFT that saves every second step."""
    cfg = data.cfg
    return SftRun(
        workdir=str(workdir),
        seed=cfg.seed,
        data=str(data.cache),
        tokenizer=str(data.tokenizer),
        init="",
        model=cfg.model,
        compute=cfg.compute,
        mesh=cfg.mesh,
        prompt=cfg.prompt,
        optim=dataclasses.replace(cfg.sft_optim, learning_rate=1e-2, warmup_steps=5, accumulate=2),
        sft=dataclasses.replace(
            cfg.sft, batch_size=8, steps=steps, log_every=1, curriculum="0:ramp_sft_upto2"
        ),
        checkpoint=dataclasses.replace(cfg.checkpoint, every=2),
        survival=dataclasses.replace(cfg.survival, **{"heartbeat_seconds": 10} | survival),
    )


def dapo_run(data: Data, workdir: Path, init: Path, steps: int, **survival: Any) -> DapoRun:
    """DAPO with live search that saves every step."""
    cfg = data.cfg
    return DapoRun(
        workdir=str(workdir),
        seed=cfg.seed,
        data=str(data.cache),
        tokenizer=str(data.tokenizer),
        init=str(init),
        model=cfg.model,
        compute=cfg.compute,
        mesh=cfg.mesh,
        prompt=cfg.prompt,
        optim=cfg.dapo_optim,
        search=dataclasses.replace(cfg.search, index=str(data.index)),
        rollout=dataclasses.replace(cfg.rollout, slots=16, max_new_tokens=96),
        dapo=dataclasses.replace(
            cfg.dapo,
            split="train",
            steps=steps,
            groups=4,
            group_size=4,
            micro_batch=8,
            reward="recall",  # a policy of a few updates earns it now and then
            max_refills=2,
            curriculum="0:qa_easy",
        ),
        checkpoint=dataclasses.replace(cfg.checkpoint, every=1),
        survival=dataclasses.replace(cfg.survival, **{"heartbeat_seconds": 10} | survival),
    )
