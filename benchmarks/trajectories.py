"""What ten million trajectories cost and take on a hundred workers, from figures measured here.

    python -m benchmarks.trajectories --json=F [--run=runs/evolve] [--tokenizer=FOLDER]

Measured in one run: passages masked per second and core; the scripted teacher per second and core;
requests, tokens, bytes of record and seconds per trajectory of the LLM agents against a scripted
endpoint on the loopback, whose replies are the scripted teacher's words; bytes of a demonstration,
plain and gzipped. `--run`: the folder of a run of `evolve`, for the student's own rate. Assumed, by
flag: prices and the endpoint's speed. Nothing here calls a model.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import http.server
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from masksearch_jax.agents import agent_teacher, scripted_teacher
from masksearch_jax.agents.llm_client import LLM
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Demonstration, RampExample, to_json
from masksearch_jax.corpus import atlas
from masksearch_jax.ramp.examples import build_examples
from masksearch_jax.search import bm25

RAMP = RampConfig(2000, False, "rules", 4, 2, 8, 120, 0.0, 0.0, 0, 0)
HOUR = 3_600


class Script(http.server.ThreadingHTTPServer):
    """A chat endpoint that solves the examples it is given as a good model would.

    `solved`: by the masked paragraph. Tokens are counted with `count`. One search is enough:
    another would cost two requests more.
    """

    daemon_threads = True

    def __init__(self, solved: dict[str, RampExample], count: Callable[[str], int]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.solved, self.count, self.lock = solved, count, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reply(self, system: str, user: str) -> str:
        masked = user.partition("Task:\n")[2].partition("whole:\n\n")[2].partition("\n\n")[0]
        example = self.solved[masked.strip()]
        thought = (
            f"The paragraph is about {example.title}. What is missing stands where it describes"
        )
        thought += " the same thing: I look for the article of that name and compare the texts."
        if '"queries"' in system:
            near = re.sub(r"\W+", " ", masked)[:40]
            queries = [example.title, f"{example.title} {near}", near]
            return json.dumps({"queries": queries})
        if '"verdict"' in system:
            said = "Each gap holds the text that was taken out."
            return json.dumps({"reason": said, "verdict": "correct"})
        if '"action"' in system:
            said = {"thought": thought, "action": "answer", "answer": example.paragraph}
            return json.dumps(said)
        return json.dumps({"thought": thought, "need": f"What is known of {example.title}?"})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        system, user = (m["content"] for m in asked["messages"][:2])
        text = self.server.reply(system, user)
        with self.server.lock:
            counts = [self.server.count(system + user), self.server.count(text)]
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1]}
        body = {"choices": [{"index": 0, "message": message}], "usage": usage}
        sent = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *args: Any) -> None:
        pass


def timed(work: Callable[[], int], repeats: int) -> list[float]:
    """Items per second of CPU of one process in each repeat; `work` returns how many items."""
    rates = []
    for _ in range(repeats):
        started = time.process_time()
        count = work()
        rates.append(count / (time.process_time() - started))
    return rates


def spread(rates: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "least": min(rates), "most": max(rates)}


def sizes(rows: Sequence[Any]) -> dict[str, float]:
    """Bytes of a record as JSON lines, and gzipped with its neighbours."""
    text = "".join(json.dumps(to_json(r), ensure_ascii=False) + "\n" for r in rows).encode()
    return {"bytes": len(text) / len(rows), "gzipped": len(gzip.compress(text, 6)) / len(rows)}


def agents(
    examples: Sequence[RampExample], tool: bm25.BM25, cfg: SearchConfig, vocab: Vocab, folder: Path
) -> dict[str, float]:
    """Per trajectory: requests, tokens, bytes of the record, CPU seconds (the endpoint's too)."""
    server = Script({e.masked: e for e in examples}, lambda t: len(vocab.encode(t)))
    settings = {
        "base_url": f"http://127.0.0.1:{server.server_address[1]}/v1",
        "cache": str(folder / "replies.sqlite"),
    }
    limits = agent_teacher.TeacherConfig("en", 4, cfg)

    async def go() -> tuple[list[Any], Any]:
        async with LLM(LLMConfig(**settings)) as llm:
            made = await agent_teacher.demonstrate_all(
                examples, llm, search_alone(tool, cfg), limits, lambda outcome: None
            )
            return made, llm.paid

    started = time.process_time()
    outcomes, paid = asyncio.run(go())
    seconds = time.process_time() - started
    server.shutdown()
    server.server_close()
    made = [o for o in outcomes if isinstance(o, Demonstration)]
    if len(made) < len(examples):
        lost = next(o for o in outcomes if not isinstance(o, Demonstration))
        raise RuntimeError(f"{len(examples) - len(made)} gave no demonstration; the first: {lost}")
    n = len(made)
    record = sum(p.stat().st_size for p in folder.glob("replies.sqlite*"))
    return {
        "trajectories": n,
        "requests": paid.calls / n,
        "prompt_tokens": paid.prompt_tokens / n,
        "completion_tokens": paid.completion_tokens / n,
        "record_bytes": record / n,
        "cpu_seconds": seconds / n,
    } | sizes(made)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    built = atlas.build(0, 2000)
    made: list[dict[str, list[RampExample]]] = []

    def mask() -> int:
        made[:] = [
            build_examples(built.paragraphs, RAMP, lambda line: None, has_rewordings=True)[0]
        ]
        return len(built.paragraphs)

    found: dict[str, Any] = {"masking_passages_per_second_per_core": spread(timed(mask, 3))}
    examples = random.Random(0).sample(made[0]["train"], args.items)
    bm25.build(built.passages, folder / "index")
    tool = bm25.BM25.open(folder / "index")
    cfg = SearchConfig("bm25", str(folder / "index"), "", 3, 3, 3, 30.0, 2)
    tools, demonstrations = search_alone(tool, cfg), list[Demonstration]()

    def teach() -> int:
        tries = (scripted_teacher.demonstrate(e, tools, random.Random(e.id)) for e in examples)
        demonstrations[:] = [d for d in tries if isinstance(d, Demonstration)]
        return len(demonstrations)

    found["scripted_per_second_per_core"] = spread(timed(teach, 3))
    found["example"], found["demonstration"] = sizes(examples), sizes(demonstrations)
    if args.tokenizer:
        vocab = Vocab.load(args.tokenizer)
    else:
        train_bpe((p.text for p in built.passages), folder / "tokenizer", 8192)
        vocab = Vocab.load(folder / "tokenizer")
    found["tokenizer"] = args.tokenizer or "byte-level BPE of 8,192 trained on the atlas"
    found["agents"] = agents(examples, tool, cfg, vocab, folder)
    if args.run:
        found["student"] = student(Path(args.run))
    return found


def student(run: Path) -> dict[str, float]:
    """What a run of `evolve` measured: trajectories sampled per second, share accepted."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    rows = [r for r in summary["evolution"] if r["iteration"] > 0]
    seconds = sum(summary["stages"][f"sample_{r['iteration']}"]["seconds"] for r in rows)
    sampled = sum(r["sampled"] for r in rows)
    accepted = sum(r["sampled"] * r["accepted"] for r in rows)
    return {"sampled_per_second": sampled / seconds, "accepted": accepted / sampled}


def estimate(found: dict[str, Any], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Hours, bytes and money of `args.trajectories` on `args.workers`, each by its formula."""
    n, cores = args.trajectories, args.workers * args.cores
    agent = found["agents"]
    tokens = agent["completion_tokens"]
    per_worker = args.endpoint_tokens_per_second
    price = agent["prompt_tokens"] * args.prompt_price + tokens * args.completion_price
    masking = found["masking_passages_per_second_per_core"]["median"]
    rows = {
        "masks": {
            "hours": n / (masking * RAMP.examples_per_passage * cores) / HOUR,
            "terabytes": n * found["example"]["bytes"] / 1e12,
            "cost": 0.0,
        },
        "scripted teacher": {
            "hours": n / (found["scripted_per_second_per_core"]["median"] * cores) / HOUR,
            "terabytes": n * found["demonstration"]["bytes"] / 1e12,
            "cost": 0.0,
        },
        "agents, client": {
            "hours": n * agent["cpu_seconds"] / cores / HOUR,
            "terabytes": n * (agent["bytes"] + agent["record_bytes"]) / 1e12,
            "cost": 0.0,
        },
        "agents, endpoint": {
            "hours": n * tokens / (args.workers * per_worker) / HOUR,
            "terabytes": 0.0,
            "cost": n * price / 1e6,
        },
    }
    if "student" in found:
        rate = found["student"]["sampled_per_second"] * found["student"]["accepted"]
        rows["tiny student"] = {
            "hours": n / (rate * args.workers) / HOUR if rate else float("inf"),
            "terabytes": n * found["demonstration"]["bytes"] / 1e12,
            "cost": 0.0,
        }
    return rows


def show(found: dict[str, Any], rows: dict[str, dict[str, float]], args: Any) -> None:
    print(f"python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}")
    for name in ("masking_passages_per_second_per_core", "scripted_per_second_per_core"):
        m = found[name]
        shown = name.replace("_", " ")
        print(f"{shown}: {m['median']:,.0f} ({m['least']:,.0f}-{m['most']:,.0f})")
    for name in ("example", "demonstration"):
        m = found[name]
        print(f"{name}: {m['bytes']:,.0f} bytes, {m['gzipped']:,.0f} gzipped")
    a = found["agents"]
    print(
        f"agents, per trajectory: {a['requests']:.1f} requests, {a['prompt_tokens']:,.0f} prompt "
        f"and {a['completion_tokens']:,.0f} completion tokens ({found['tokenizer']}), "
        f"{a['record_bytes']:,.0f} bytes of record, {1000 * a['cpu_seconds']:.1f} ms of CPU with "
        "the scripted endpoint's; one search each, another is two requests more"
    )
    if "student" in found:
        s = found["student"]
        print(
            f"student: {s['sampled_per_second']:.1f} sampled a second, {s['accepted']:.2f} accepted"
        )
    print(
        f"\n{args.trajectories:,} trajectories on {args.workers} workers of {args.cores} cores; "
        f"assumed: {args.endpoint_tokens_per_second:g} completion tokens/s for each worker, "
        f"prices {args.prompt_price:g} and {args.completion_price:g} a million tokens"
    )
    print(f"{'':18}{'hours':>10}{'TB':>10}{'cost':>12}")
    for name, row in rows.items():
        print(f"{name:18}{row['hours']:>10.2g}{row['terabytes']:>10.3f}{row['cost']:>12,.0f}")
    print(
        "\nhours = N / (rate per core x cores), N x CPU seconds / cores, or N x completion tokens "
        "/ (workers x tokens per second); TB = N x bytes; cost = N x tokens x price"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", default="", help="file for the figures")
    parser.add_argument("--run", default="", help="folder of a run of evolve")
    parser.add_argument("--tokenizer", default="", help="folder with tokenizer.json")
    parser.add_argument("--items", type=int, default=300, help="examples to measure on")
    parser.add_argument("--trajectories", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--cores", type=int, default=16, help="of a worker")
    parser.add_argument("--endpoint_tokens_per_second", type=float, default=2000.0)
    parser.add_argument("--prompt_price", type=float, default=0.4)
    parser.add_argument("--completion_price", type=float, default=1.2)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    rows = estimate(found, args)
    show(found, rows, args)
    if args.json:
        written = {"measured": found, "assumed": vars(args), "plan": rows, "python": sys.version}
        Path(args.json).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
