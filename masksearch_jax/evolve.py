"""Self-evolving distillation: a student samples what it is trained on next.

    python -m masksearch_jax.evolve --config=configs/evolve.py

A teacher's demonstrations train the first student; in each iteration the student samples with live
search, a judge keeps what is right, and all kept so far trains the next (WORKDIR/iterations/N).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from masksearch_jax import build_trajectories, evaluate, report, train_sft
from masksearch_jax.agents import attempts
from masksearch_jax.agents import selection as logic
from masksearch_jax.agents.llm_client import check_endpoint
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.agents.selection import EvolveConfig, StudentConfig
from masksearch_jax.core import config as c
from masksearch_jax.core.corpus_config import CorpusConfig, RampConfig, idle_by_text
from masksearch_jax.core.errors import UserError, check_given
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.core.files import write_json
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import key, later_seed, required, section, seed_key
from masksearch_jax.core.search_config import tools_key
from masksearch_jax.core.types import Demonstration, RampExample
from masksearch_jax.evals import diversity, iterations, suites
from masksearch_jax.evals.items import check_methods
from masksearch_jax.evals.results import by_condition
from masksearch_jax.models.load import read_model
from masksearch_jax.parallel.sharding import split_cpu
from masksearch_jax.recipes import steps
from masksearch_jax.recipes.stage_folder import REPORT, StageFolder, Usage
from masksearch_jax.runtime import cli, run_record
from masksearch_jax.tools.registry import instructions_of

# Files of an iteration: examples sampled on, what the judge accepted and what not, what was kept,
# and all demonstrations so far.
POOL, ACCEPTED = "pool/ramp/train.jsonl", "pool/demonstrations/train.jsonl"
REJECTED = "pool/demonstrations/train.rejected.jsonl"
NEW, ALL = "new.jsonl", "data/demonstrations/train.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvolveRun:
    """`evolve`: from corpus to N students, each taught by the one before."""

    workdir: str = required("Folder of the run: what it writes.", harmless=True)
    seed: int = seed_key("Of the atlas's wording, of what is kept and of random weights.")
    corpus: CorpusConfig = section(CorpusConfig)
    ramp: RampConfig = section(RampConfig)
    search: c.SearchConfig = section(
        c.SearchConfig, "An empty index is the one that this run builds in its workdir."
    )
    prompt: c.PromptConfig = section(c.PromptConfig)
    init: str = key(
        "",
        (
            "Folder in HF format or of checkpoints, or a GGUF file that the first student starts "
            "from; empty: random weights."
        ),
    )
    tokenizer: str = key(
        "", "Folder with tokenizer.json; empty: one trained on this run's text.", content="sampled"
    )
    tokenizer_vocab_size: int = key(1024, "Of the tokenizer trained on this run's text.", least=1)
    model: c.ModelConfig = section(c.ModelConfig)
    compute: c.ComputeConfig = section(c.ComputeConfig)
    cpu_devices: int = key(
        2,
        "Where there is no accelerator: devices that the CPU is split into.",
        harmless=True,
        least=1,
    )
    mesh: c.MeshConfig = section(c.MeshConfig)
    evolve: EvolveConfig = section(EvolveConfig)
    first_sft: c.SftConfig = section(
        c.SftConfig, "Of the first student, on the teacher's demonstrations."
    )
    first_optim: c.OptimConfig = section(c.OptimConfig, "Of the first student.")
    sft: c.SftConfig = section(c.SftConfig, "Of the other students, on all demonstrations so far.")
    optim: c.OptimConfig = section(c.OptimConfig, "Of the other students.")
    rollout: RolloutConfig = section(
        RolloutConfig, "Of students that sample; eval.temperature is evaluation's."
    )
    llm: LLMConfig = section(LLMConfig, "Of the agents and the LLM judge.")
    tools: tuple[str, ...] = tools_key()
    eval: EvalConfig = section(EvalConfig)
    checkpoint: c.CheckpointConfig = section(c.CheckpointConfig)
    survival: c.SurvivalConfig = section(c.SurvivalConfig)
    report_trajectories: int = key(3000, "Trajectories shown in the report, at most.", least=0)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if not has_llm(self):
            yield "llm", "it is read with config.evolve.teacher=agents or config.evolve.judge=llm"
        yield from idle_by_text(self.corpus)


def has_llm(cfg: EvolveRun) -> bool:
    """Whether a language model behind an endpoint takes part."""
    return cfg.evolve.teacher == "agents" or cfg.evolve.judge == "llm"


class Run(StageFolder):
    """The run's folder and the paths in it."""

    def __init__(self, cfg: EvolveRun, usage: Usage):
        self.cfg, self.usage = cfg, usage
        super().__init__(Path(cfg.workdir), self.stages())
        self.data, self.index = self.folder / "data", self.folder / "index"
        self.tokenizer = Path(cfg.tokenizer) if cfg.tokenizer else self.folder / "tokenizer"
        self.search = dataclasses.replace(cfg.search, index=cfg.search.index or str(self.index))
        self.policy = {"model": cfg.model, "compute": cfg.compute, "mesh": cfg.mesh}

    def stages(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """All stages in order, by name."""
        cfg = self.cfg
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "ramp": lambda: steps.make_ramp(self.data, cfg.corpus, cfg.ramp, cfg.seed),
            "index": lambda: steps.make_index(self.data, self.index, cfg.corpus.language),
        }
        for n in range(cfg.evolve.iterations + 1):
            for name, stage in ITERATION.items():
                work[f"{name}_{n}"] = functools.partial(stage, self, n)
                if name == "sample" and not n and not cfg.tokenizer:
                    work["tokenizer"] = functools.partial(make_tokenizer, self)
        return work | {REPORT: functools.partial(make_report, self)}

    def iteration(self, n: int) -> Path:
        return self.folder / "iterations" / str(n)

    def student(self, n: int) -> str:
        """The checkpoints of the student that iteration `n` trains; before the first: `init`."""
        if n < 0:
            return self.cfg.init
        elsewhere = self.cfg.checkpoint.folder
        return f"{elsewhere}/student_{n}" if elsewhere else f"{self.iteration(n)}/sft/checkpoints"

    def sft(self, n: int) -> c.SftConfig:
        return self.cfg.sft if n else self.cfg.first_sft

    def read(self, n: int, name: str, cls: type) -> list[Any]:
        """Records of a file of iteration `n`."""
        return read_jsonl(self.iteration(n) / name, cls)

    def collapsed(self) -> list[str]:
        """Why the run has stopped early, if it has."""
        found = [r.get("collapsed", []) for r in self.records.values()]
        return next(filter(None, found), []) if self.cfg.evolve.on_collapse == "stop" else []


# ---- the stages of an iteration


def sample(run: Run, n: int) -> dict[str, Any]:
    """Trajectories of the teacher (iteration 0) or of the last student, judged, filtered, merged.

    Writes the iteration's POOL, ACCEPTED, NEW and ALL.
    """
    cfg, folder = run.cfg.evolve, run.iteration(n)
    pool = choose_pool(run, n)
    if not pool.examples:
        raise UserError(
            f"no example is left to sample in iteration {n}: lower config.evolve.pool_size or "
            "config.evolve.iterations, or give more text"
        )
    write_jsonl(folder / POOL, pool.examples)
    made = build_trajectories.run(teaching(run, n), may_be_empty=n > 0)
    if failed := attempts.failures(made["rejected"]):
        steps.log(f"{sum(failed.values())} of {made['tried']} attempts failed: {failed}")
    accepted = run.read(n, ACCEPTED, Demonstration)
    kept, dropped = logic.select(accepted, cfg.per_example, run.cfg.seed)
    merged, known = logic.merge(run.read(n - 1, ALL, Demonstration) if n else [], kept)
    write_jsonl(folder / NEW, kept)
    write_jsonl(folder / ALL, merged)
    link(run.data / "ramp", folder / "data" / "ramp")
    figures = {
        "pool": {"new": len(pool.new), "hard": len(pool.hard), "given_up": len(pool.given_up)},
        "acceptance": logic.acceptance(
            pool.examples, accepted, samples_in(run, n), failed_in(run, n)
        ),
        "rejected": made["rejected"],
        "dropped": dropped | {"known before": known},
        "kept": len(kept),
        "demonstrations": len(merged),
        "lengths": logic.lengths(kept),
        "diversity": diversity.measure(kept, cfg.diversity_texts, run.cfg.seed),
    }
    collapsed = collapse(run, n, kept) if n else []
    for line in collapsed:
        steps.log(f"iteration {n}: {line}")
    return {"figures": figures, "collapsed": collapsed, "paid": made.get("paid", {})}


def samples_in(run: Run, n: int) -> int:
    """Trajectories of each example in an iteration."""
    return run.cfg.evolve.samples if n else 1


def failed_in(run: Run, n: int) -> Counter[str]:
    """Example id → its attempts in an iteration that ended for no fault of the model."""
    return Counter(r.example_id for r in run.read(n, REJECTED, Rejection) if not r.is_final)


def tried_in(run: Run, n: int) -> list[str]:
    """The examples of an iteration of which one attempt at least did not fail."""
    failed, samples = failed_in(run, n), samples_in(run, n)
    return [e.id for e in run.read(n, POOL, RampExample) if failed[e.id] < samples]


def choose_pool(run: Run, n: int) -> logic.Pool:
    """The examples of an iteration: the teacher's, or new and hard ones for the student."""
    cfg = run.cfg.evolve
    if not n:
        found = read_jsonl(run.data / "ramp" / "train.jsonl", RampExample)
        few = [e for e in found if e.k <= cfg.seed_masks][: cfg.seed_examples]
        return logic.Pool(tuple(few), (), ())
    examples = read_jsonl(run.data / "ramp" / f"{cfg.split}.jsonl", RampExample)
    past = range(int(cfg.split != "train"), n)  # the teacher's examples too, where they are of it
    tried = Counter(example_id for i in past for example_id in tried_in(run, i))
    solved = {d.example_id for i in past for d in run.read(i, ACCEPTED, Demonstration)}
    limits = {"size": cfg.pool_size, "hard_share": cfg.hard_share, "max_tries": cfg.max_tries}
    return logic.next_pool(examples, tried, solved, **limits)


def teaching(run: Run, n: int) -> build_trajectories.BuildTrajectoriesRun:
    """How iteration `n` gets its trajectories."""
    cfg = run.cfg
    student = StudentConfig(
        init=run.student(n - 1),
        tokenizer=str(run.tokenizer),
        samples=cfg.evolve.samples,
        rules=cfg.evolve.rules,
        judge=cfg.evolve.judge,
        **run.policy,
        prompt=cfg.prompt,
        rollout=cfg.rollout,
    )
    return build_trajectories.BuildTrajectoriesRun(
        folder=str(run.iteration(n) / "pool"),
        kinds=("ramp",),
        search=run.search,
        max_searches=cfg.rollout.max_turns,
        demonstrations=0,
        max_failed=cfg.evolve.max_failed,
        seed=later_seed(cfg.seed, n),
        teacher="local" if n else cfg.evolve.teacher,
        thoughts=cfg.evolve.thoughts,
        language=cfg.evolve.language,
        llm=endpoint_of(cfg),
        student=student if n else None,
        tools=cfg.tools,
    )


def endpoint_of(cfg: EvolveRun) -> LLMConfig:
    """How the endpoint is called: its replies kept in the run's folder."""
    return dataclasses.replace(cfg.llm, cache=cfg.llm.cache or f"{cfg.workdir}/replies.sqlite")


def collapse(run: Run, n: int, kept: list[Demonstration]) -> list[str]:
    """Measures of diversity below their floors, against as many of the first demonstrations.

    Of too few to measure, one line that says so.
    """
    cfg = run.cfg.evolve
    if len(kept) < logic.FEWEST:
        few = f"fewer than the {logic.FEWEST} demonstrations whose diversity can be measured"
        return [f"{len(kept)} kept, {few}"]
    first = run.read(0, NEW, Demonstration)
    most = min(cfg.diversity_texts, len(kept), len(first))
    then, now = (diversity.measure(d, most, run.cfg.seed) for d in (first, kept))
    return logic.collapsed(now, then, dataclasses.asdict(cfg.floors))


def link(target: Path, path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent), target_is_directory=True)


def make_tokenizer(run: Run) -> dict[str, Any]:
    size = run.cfg.tokenizer_vocab_size
    shown = run.iteration(0) / "data"
    return steps.make_tokenizer(run.data, shown, run.tokenizer, size, run.cfg.tools)


def make_cache(run: Run, n: int) -> dict[str, Any]:
    cfg, folder = run.cfg, run.iteration(n)
    settings = {
        "prompt.style": cfg.prompt.style,
        "max_len": run.sft(n).seq_len,
        "max_prompt_len": cfg.rollout.max_len // 2,
        "tools": ",".join(cfg.tools),
    }
    steps.make_cache(folder / "data", folder / "cache", run.tokenizer, r"ramp_sft_.*", **settings)
    return {}


def train(run: Run, n: int) -> dict[str, Any]:
    cfg, folder = run.cfg, run.iteration(n)
    return train_sft.run(
        c.SftRun(
            workdir=str(folder / "sft"),
            seed=cfg.seed,
            data=str(folder / "cache"),
            tokenizer=str(run.tokenizer),
            init=cfg.init if cfg.evolve.restart else run.student(n - 1),
            **run.policy,
            prompt=cfg.prompt,
            search=run.search,  # as its agent is to be asked
            rollout=cfg.rollout,
            optim=cfg.optim if n else cfg.first_optim,
            sft=run.sft(n),
            tools=cfg.tools,
            checkpoint=dataclasses.replace(cfg.checkpoint, folder=run.student(n)),
            survival=cfg.survival,
        )
    )


def score(run: Run, n: int) -> dict[str, Any]:
    """Held-out scores of the student that iteration `n` trained."""
    cfg = run.cfg
    return evaluate.run(
        c.EvalRun(
            workdir=str(run.iteration(n) / "eval"),
            data=str(run.data),
            tokenizer=str(run.tokenizer),
            init=run.student(n),
            **run.policy,
            prompt=cfg.prompt,
            search=run.search,
            rollout=cfg.rollout,
            tools=cfg.tools,
            eval=cfg.eval,
        )
    )


def evaluate_student(run: Run, n: int) -> dict[str, Any]:
    """Scores the new student; with them the iteration is whole and has its manifest."""
    cfg, folder = run.cfg, run.iteration(n)
    results, _ = by_condition(score(run, n))
    manifest = {
        "iteration": n,
        "teacher": f"student {n - 1}" if n else cfg.evolve.teacher,
        "trained_from": f"student {n - 1}"
        if n and not cfg.evolve.restart
        else cfg.init or "random",
        "bytes": {name: (folder / name).stat().st_size for name in (POOL, NEW, ALL)},
        "figures": run.records[f"sample_{n}"]["figures"],
        "collapsed": run.records[f"sample_{n}"]["collapsed"],
        "eval": results,
    }
    write_json(folder / "manifest.json", manifest)
    for line in iterations.table([iterations.row(manifest)]):
        steps.log(line)
    return {"eval": results}


ITERATION: dict[str, Callable[[Run, int], dict[str, Any]]] = {
    "sample": sample,
    "cache": make_cache,
    "sft": train,
    "evaluate": evaluate_student,
}


# ---- what a reader gets


def manifests(run: Run) -> list[dict[str, Any]]:
    """Of the iterations that are whole."""
    paths = (run.iteration(n) / "manifest.json" for n in range(run.cfg.evolve.iterations + 1))
    return [json.loads(p.read_text()) for p in paths if p.is_file()]


def write_summary(run: Run) -> None:
    """summary.json: every figure of the stages that are done."""
    found = manifests(run)
    data = [r["data"] for r in run.records.values() if "data" in r]
    summary = run.usage.figures() | {
        "stages": {name: {"seconds": r["seconds"]} for name, r in run.records.items()},
        "eval": {f"student {m['iteration']}": m["eval"] for m in found},
        "evolution": [iterations.row(m) for m in found],
        "collapsed": run.collapsed(),
        "data": {name: counts for stage in data for name, counts in stage.items()},
        "config": dataclasses.asdict(run.cfg),
        "versions": run_record.versions(),
    }
    write_json(run.folder / "summary.json", summary)


def make_report(run: Run) -> dict[str, Any]:
    return {"report": str(report.write([run.folder], most=run.cfg.report_trajectories))}


def check_config(cfg: EvolveRun) -> None:
    """Raises ConfigError for what no text can mend: keys that are empty, and keys that clash."""
    check_given(cfg, workdir="the folder to write")
    suites.paths(cfg.eval, "the text's folder")
    check_methods(cfg.eval)
    instructions_of(cfg.tools)
    if has_llm(cfg):
        check_endpoint(endpoint_of(cfg), "config.llm")


def run(cfg: EvolveRun) -> None:
    """All stages; summary.json after each, a manifest per iteration, report.html at the end."""
    check_config(cfg)
    split_cpu(cfg.cpu_devices)
    usage = Usage(Path(cfg.workdir))
    this = Run(cfg, usage)
    with this.open(cfg), usage:
        for name, work in this.stages().items():
            if this.collapsed() and name != REPORT:
                steps.log(f"{name}: left out, diversity has collapsed")
                continue
            this.stage_of_run(name, work, [REPORT], functools.partial(write_summary, this))
    print("\n".join(iterations.table([iterations.row(m) for m in manifests(this)])))
    for line in this.collapsed():
        print(f"stopped: {line}")
    print(f"report   {this.folder / 'report.html'}\nfigures  {this.folder / 'summary.json'}")


if __name__ == "__main__":
    cli.run(run, EvolveRun, resumes=True, read_model=read_model, check=check_config)
