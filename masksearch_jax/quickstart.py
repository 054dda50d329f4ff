"""The whole recipe in one command: a small model learns to search, from raw text to a report.

    python -m masksearch_jax.quickstart --config=configs/quickstart.py

Stages run in order and leave their results in the run's folder; a stage that is there is not run again,
so the same command goes on where it was stopped. The folder belongs to one configuration.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from masksearch_jax import (
    build_trajectories,
    cli,
    evaluate,
    export_hf,
    report,
    train_dapo,
    train_sft,
)
from masksearch_jax import config as config_lib
from masksearch_jax.config import QuickstartRun
from masksearch_jax.data import corpus, qa, ramp
from masksearch_jax.data.vocab import Vocab, train_bpe
from masksearch_jax.models.initial import initial
from masksearch_jax.search import bm25
from masksearch_jax.sharding import make_mesh
from masksearch_jax.stages import StageFolder, Usage, write_json
from masksearch_jax.types import Passage, QAExample

SHOWN_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "seqio", "tantivy", "numpy")


class Run(StageFolder):
    """The run's folder and the paths in it."""

    def __init__(self, cfg: QuickstartRun):
        super().__init__(Path(cfg.workdir))
        self.cfg = cfg
        self.data = self.folder / "data"
        self.index = self.folder / "index"
        self.tokenizer = self.folder / "tokenizer"
        self.cache = self.folder / "cache"
        self.search = dataclasses.replace(cfg.search, index=str(cfg.search.index or self.index))


def log(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


# ---- stages: text


def make_corpus(run: Run) -> dict[str, Any]:
    """Passages to index, paragraphs to mask, questions split by article."""
    cfg, stats = run.cfg, corpus.CorpusStats()
    questions: list[QAExample] = []
    if cfg.corpus.path:
        passages = list(
            corpus.read_passages(
                cfg.corpus.path,
                limit=cfg.corpus.limit,
                max_bad_fraction=cfg.corpus.max_bad_fraction,
                log=lambda message: log(f"dropped {message}"),
                stats=stats,
            )
        )
        paragraphs = passages
        if cfg.corpus.questions:
            questions = qa.read_questions(
                cfg.corpus.questions, max_bad_fraction=cfg.corpus.max_bad_fraction, log=log
            )
    else:
        from masksearch_jax.data import atlas  # its fact packages take a second to load

        built = atlas.build(seed=cfg.seed)
        passages = list(built.passages)[: cfg.corpus.limit or None]
        ids = {p.id for p in passages}
        paragraphs = [p for p in built.paragraphs if p.id.partition("#")[0] in ids]
        questions = [q for q in built.questions if ids.issuperset(q.gold)]
        stats.read = stats.kept = len(passages)
    corpus.write_passages(run.data / "passages.jsonl", passages)
    corpus.write_passages(run.data / "paragraphs.jsonl", paragraphs)
    split = qa.split_questions(
        questions, {p.id: p.title for p in passages}, cfg.ramp.heldout_fraction, cfg.ramp.seed
    )
    for name in ("train", "heldout"):
        if found := getattr(split, name):
            ramp.write_jsonl(run.data / "questions" / f"{name}.jsonl", found)
    log(
        f"{len(passages):,} passages, {len(paragraphs):,} paragraphs, dropped {dict(stats.dropped)}"
    )
    log(f"{len(split.train):,} training and {len(split.heldout):,} held-out questions")
    return {
        "in": stats.read,
        "out": len(passages),
        "dropped": dict(stats.dropped) | {"question between splits": split.between},
        "paragraphs": len(paragraphs),
        "questions": {"train": len(split.train), "heldout": len(split.heldout)},
    }


def read_passages(run: Run, name: str) -> list[Passage]:
    return list(corpus.read_passages(run.data / f"{name}.jsonl", max_bad_fraction=0.0))


def make_index(run: Run) -> dict[str, Any]:
    passages = read_passages(run, "passages")
    count = bm25.build(passages, run.index)
    return {"in": len(passages), "out": count, "dropped": {}}


def make_tokenizer(run: Run) -> dict[str, Any]:
    """Byte-level BPE on all text of the corpus: words are not what is held out, facts are."""
    texts = (p.text for name in ("passages", "paragraphs") for p in read_passages(run, name))
    train_bpe(texts, run.tokenizer, run.cfg.tokenizer_vocab_size)
    return {"out": Vocab.load(run.tokenizer).size}


def make_ramp(run: Run) -> dict[str, Any]:
    train, heldout, stats = ramp.build_examples(read_passages(run, "paragraphs"), run.cfg.ramp, log)
    ramp.write_jsonl(run.data / "ramp" / "train.jsonl", train)
    ramp.write_jsonl(run.data / "ramp" / "heldout.jsonl", heldout)
    return {
        "in": stats.paragraphs,
        "out": len(train) + len(heldout),
        "dropped": stats.dropped,
        "refused_spans": stats.refused,
        "examples": stats.examples,
    }


def make_demonstrations(run: Run) -> dict[str, Any]:
    cfg = run.cfg
    made = build_trajectories.run(
        build_trajectories.BuildTrajectoriesRun(
            folder=str(run.data),
            search=run.search,
            max_searches=cfg.rollout.max_turns,
            demonstrations=cfg.demonstrations,
            seed=cfg.seed,
        )
    )
    log(f"{made['demonstrations']:,} of {made['tried']:,} tried, rejected {made['rejected']}")
    return {"in": made["tried"], "out": made["demonstrations"], "dropped": made["rejected"]} | made


def make_cache(run: Run) -> dict[str, Any]:
    """seqio needs TensorFlow, which is imported in a process of its own and gone with it."""
    cfg = run.cfg
    overrides = {
        "folder": run.data,
        "cache": run.cache,
        "tokenizer": run.tokenizer,
        "prompt.style": cfg.prompt.style,
        "max_len": cfg.sft.seq_len,
        "max_prompt_len": cfg.rollout.max_len // 2,
    }
    config = Path(__file__).parent.parent / "configs" / "build_ramp.py"
    command = [sys.executable, "-m", "masksearch_jax.build_ramp", f"--config={config}"]
    command += [f"--config.{k}={v}" for k, v in overrides.items()]
    subprocess.run(command, check=True)
    manifest = json.loads((run.cache / "manifest.json").read_text())
    splits = [s for task in manifest["tasks"].values() for s in task.values()]
    out, dropped = (sum(s[k] for s in splits) for k in ("records", "dropped"))
    return {"in": out + dropped, "out": out, "dropped": {"too long": dropped} if dropped else {}}


# ---- stages: model


def evaluate_model(run: Run, name: str, source: str | Path) -> dict[str, Any]:
    """Scores of the model in `source` ("": the random weights that SFT begins with)."""
    cfg = run.cfg
    suites = tuple(
        s for s in cfg.eval.suites if s == "ramp" or (run.data / "questions/heldout.jsonl").exists()
    )
    eval_run = config_lib.EvalRun(
        workdir=str(run.folder / "eval" / name),
        data=str(run.data),
        tokenizer=str(run.tokenizer),
        init=str(source),
        model=cfg.model,
        compute=cfg.compute,
        mesh=cfg.mesh,
        prompt=cfg.prompt,
        search=run.search,
        rollout=cfg.rollout,
        eval=dataclasses.replace(cfg.eval, suites=suites),
    )
    model = initial(str(source), cfg.model, cfg.compute, make_mesh(cfg.mesh), cfg.seed)
    results = evaluate.run(eval_run, model)
    print(evaluate.table(results), file=sys.stderr)
    return {"eval": results}


def run_sft(run: Run) -> dict[str, Any]:
    cfg = run.cfg
    return train_sft.run(
        config_lib.SftRun(
            workdir=str(run.folder / "sft"),
            seed=cfg.seed,
            data=str(run.cache),
            tokenizer=str(run.tokenizer),
            init="",
            model=cfg.model,
            compute=cfg.compute,
            mesh=cfg.mesh,
            optim=cfg.sft_optim,
            sft=cfg.sft,
            checkpoint=cfg.checkpoint,
        )
    )


def run_dapo(run: Run) -> dict[str, Any]:
    cfg = run.cfg
    return train_dapo.run(
        config_lib.DapoRun(
            workdir=str(run.folder / "dapo"),
            seed=cfg.seed,
            data=str(run.cache),
            tokenizer=str(run.tokenizer),
            init=str(run.folder / "sft" / "checkpoints"),
            model=cfg.model,
            compute=cfg.compute,
            mesh=cfg.mesh,
            prompt=cfg.prompt,
            optim=cfg.dapo_optim,
            search=run.search,
            rollout=cfg.rollout,
            dapo=cfg.dapo,
            checkpoint=cfg.checkpoint,
        )
    )


def run_export(run: Run) -> dict[str, Any]:
    cfg = run.cfg
    source = str(run.folder / "dapo" / "checkpoints")
    model = initial(source, cfg.model, cfg.compute, make_mesh(cfg.mesh), cfg.seed)
    done = export_hf.export(model, run.folder / "hf", run.tokenizer)
    log(f"{run.folder / 'hf'}: {done}")
    return {"export": done}


# ---- what a reader gets


def write_summary(run: Run, usage: Usage) -> None:
    records = run.records
    stages = {
        name: {"seconds": r["seconds"]}
        | {"counts": {k: r[k] for k in ("in", "out") if isinstance(r.get(k), int)}}
        for name, r in records.items()
    }
    evals = {name: f"evaluate_{name}" for name in ("init", "sft", "dapo")}
    summary = usage.figures() | {
        "stages": stages,
        "eval": {k: records[s]["eval"] for k, s in evals.items() if s in records},
        "export": records.get("export", {}).get("export", {}),
        "data": {
            name: {k: r.get(k, 0) for k in ("in", "out")} | {"dropped": r["dropped"]}
            for name, r in records.items()
            if "dropped" in r
        },
        "config": dataclasses.asdict(run.cfg),
        "versions": versions(SHOWN_PACKAGES),
    }
    write_json(run.folder / "summary.json", summary)


def versions(packages: Iterable[str]) -> dict[str, str]:
    found = {name: metadata.version(name) for name in packages}
    return (
        {"python": platform.python_version(), "machine": platform.machine()}
        | found
        | {"cpus": str(os.cpu_count())}
    )


def pick_trajectories(run: Run) -> None:
    """The first trajectories with search of each suite, from the last checkpoint, for the report."""
    wanted = run.cfg.report_trajectories
    lines = (run.folder / "eval" / "dapo" / "trajectories.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [r | {"checkpoint": "dapo"} for r in rows if r["condition"] == "search"]
    suites = dict.fromkeys(r["suite"] for r in rows)
    picked: list[dict[str, Any]] = []
    for i, suite in enumerate(suites):
        share = (wanted - len(picked)) // (len(suites) - i)
        picked += [r for r in rows if r["suite"] == suite][:share]
    text = "".join(json.dumps(r) + "\n" for r in picked)
    (run.folder / "trajectories.jsonl").write_text(text, encoding="utf-8")


def run(cfg: QuickstartRun) -> None:
    """All stages, then summary.json and report.html; prints where they are."""
    this = Run(cfg)
    this.open(dataclasses.asdict(cfg))
    with Usage(this.folder) as usage:
        this.stage("corpus", lambda: make_corpus(this))
        this.stage("index", lambda: make_index(this))
        this.stage("tokenizer", lambda: make_tokenizer(this))
        this.stage("ramp", lambda: make_ramp(this))
        this.stage("demonstrations", lambda: make_demonstrations(this))
        this.stage("cache", lambda: make_cache(this))
        this.stage("evaluate_init", lambda: evaluate_model(this, "init", ""))
        this.stage("sft", lambda: run_sft(this))
        this.stage(
            "evaluate_sft", lambda: evaluate_model(this, "sft", this.folder / "sft/checkpoints")
        )
        this.stage("dapo", lambda: run_dapo(this))
        this.stage(
            "evaluate_dapo", lambda: evaluate_model(this, "dapo", this.folder / "dapo/checkpoints")
        )
        this.stage("export", lambda: run_export(this))
        pick_trajectories(this)
        write_summary(this, usage)
        path = report.write(this.folder)
    figures = usage.figures()
    print(f"\nreport: {path}")
    print(f"model: {this.folder / 'hf'}")
    print(
        f"{figures['wall_seconds'] / 60:.1f} min, peak memory "
        f"{figures['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    cli.run(run, QuickstartRun)
