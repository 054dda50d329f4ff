"""The whole recipe in one command: a small model learns to search, from raw text to a report.

    python -m masksearch_jax.quickstart --config=configs/quickstart.py

Masked paragraphs first, then two-hop questions, each by SFT and then by DAPO; evaluated after each.
Stages run in order, each the main of its name, and leave their results in the run's folder. A stage
that is done is not run again, so the same command goes on where it was stopped. The folder belongs
to one configuration.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from masksearch_jax import build_trajectories, evaluate, export_hf, report, train_dapo, train_sft
from masksearch_jax.core import config as config_lib
from masksearch_jax.core.corpus_config import PplConfig, idle_by_text
from masksearch_jax.core.errors import ConfigError, check_given
from masksearch_jax.core.files import write_json
from masksearch_jax.core.schema import key
from masksearch_jax.core.types import STATEMENTS
from masksearch_jax.core.watch_config import HeldoutConfig
from masksearch_jax.evals import suites
from masksearch_jax.evals.items import check_methods
from masksearch_jax.evals.results import by_condition
from masksearch_jax.models.hf_card import Card
from masksearch_jax.models.load import check_context, describe, initial, pinned, read_model
from masksearch_jax.parallel.sharding import make_mesh, split_cpu
from masksearch_jax.recipes import steps
from masksearch_jax.recipes.recipe_config import RecipeRun, check_watch, lessons_of, measured_every
from masksearch_jax.recipes.stage_folder import REPORT, StageFolder, Usage
from masksearch_jax.runtime import agent_settings, cli, run_record
from masksearch_jax.tools.registry import instructions_of

# Of each suite, on the terminal.
SHOWN_METRICS = {"ramp": "span_recall", "questions": "f1", "source_hidden": "span_recall"}
SHOWN_METRICS[STATEMENTS] = "em"
# Folders of trainings; and what is evaluated, of which "control" is what the last two end with.
TRAININGS = ("ramp_sft", "ramp_dapo", "qa_sft", "qa_dapo", "control_sft", "control_dapo")
CHECKPOINTS = ("init", *TRAININGS[:4], "control")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartRun(RecipeRun):
    """`quickstart`: the whole recipe, from corpus to report."""

    control: bool = key(
        False,
        (
            "Train another model on questions alone too, from the same random weights: as many "
            "updates of SFT as both stages have, and as many steps of DAPO. A run that has ended "
            "goes on with it."
        ),
        harmless=True,  # to all that is made without it
    )
    report_trajectories: int = key(3000, "Trajectories shown in the report, at most.", least=0)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if "judge" not in (self.dapo.reward, self.qa_dapo.reward):
            yield "judge", "it is read with config.dapo.reward or config.qa_dapo.reward=judge"
        if not self.heldout_points:
            yield "heldout_examples", "it is read with config.heldout_points above 0"
        yield from idle_by_text(self.corpus, "clean")


class Run(StageFolder):
    """The run's folder and the paths in it.

    has_own_search: whether all of its trainings are of this config's search and rollouts.
    """

    has_own_search = True

    def __init__(self, cfg: QuickstartRun, usage: Usage):
        super().__init__(Path(cfg.workdir), stages(cfg))
        self.cfg, self.usage = cfg, usage
        self.data = self.folder / "data"
        self.index = self.folder / "index"
        self.tokenizer = Path(cfg.init) if cfg.init else self.folder / "tokenizer"
        self.cache = self.folder / "cache"
        self.search = dataclasses.replace(cfg.search, index=cfg.search.index or str(self.index))
        # Says how hard a span is: the model that training starts from, where there is one.
        own = PplConfig(init=cfg.init, compute=cfg.compute, mesh=cfg.mesh)
        self.ppl = own if cfg.ramp.strategy == "ppl" and cfg.init else None

    def checkpoints(self, name: str) -> str:
        """Where the weights evaluated as `name` are; "" for random ones."""
        if name == "init":
            return self.cfg.init
        name = "control_dapo" if name == "control" else name
        elsewhere = self.cfg.checkpoint.folder
        return f"{elsewhere}/{name}" if elsewhere else str(self.folder / name / "checkpoints")

    @property
    def last(self) -> str:
        """The checkpoint that the recipe ends with."""
        return "qa_dapo" if self.has_questions else "ramp_dapo"

    @property
    def has_questions(self) -> bool:
        """Whether there are questions to train on and to evaluate with; known once RAMP is made."""
        splits = {"train", "heldout", self.cfg.qa_dapo.split}
        return all((self.data / "questions" / f"{s}.jsonl").exists() for s in splits)


# ---- stages: text


def make_ramp(run: Run) -> dict[str, Any]:
    cfg = run.cfg
    return steps.make_ramp(run.data, cfg.corpus, cfg.ramp, cfg.seed, cfg.clean, run.ppl)


def make_index(run: Run) -> dict[str, Any]:
    return steps.make_index(run.data, run.index, run.cfg.corpus.language)


def make_demonstrations(run: Run, method: str = "agent") -> dict[str, Any]:
    """Of masked paragraphs, and where there are questions, of these too.

    method: "agent", "rag" or "closed_book".
    """
    cfg = run.cfg
    kinds = {"ramp": cfg.demonstrations}
    kinds |= {"questions": cfg.question_demonstrations} if run.has_questions else {}
    kinds |= {STATEMENTS: cfg.question_demonstrations} if cfg.ramp.statements else {}
    kept, tried, lost = 0, 0, Counter[str]()
    found: dict[str, Counter[str]] = {"by_searches": Counter(), "source_rank": Counter()}
    for kind, wanted in kinds.items():
        made = build_trajectories.run(
            build_trajectories.BuildTrajectoriesRun(
                folder=str(run.data),
                kinds=(kind,),
                search=run.search,
                tools=cfg.tools,
                max_searches=cfg.rollout.max_turns,
                demonstrations=wanted,
                seed=cfg.seed,
                thoughts=cfg.thoughts,
                method=method,
            )
        )
        kept, tried = kept + made["demonstrations"], tried + made["tried"]
        lost += Counter(made["rejected"])
        for name, counts in found.items():
            counts.update(made[name])
    if kept + lost.total() < tried:
        lost["beyond the number wanted"] = tried - kept - lost.total()
    steps.log(f"{kept:,} demonstrations of {tried:,} examples tried")
    if lost:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in lost.items())
        listed = build_trajectories.rejected_path(run.data)
        steps.log(f"without: {reasons}; each attempt that failed: {listed}")
    searches, ranks = map(build_trajectories.listed_counts, found.values())
    steps.log(f"searches: {searches}; rank of the source passage in the first: {ranks}")
    return steps.counted("demonstrations", tried, kept, lost)


def make_tokenizer(run: Run) -> dict[str, Any]:
    """Of a pretrained model there is one: it is checked."""
    if run.cfg.init:
        _, vocab = describe(run.cfg.init, "")
        return {"tokens": vocab.size}
    size = run.cfg.tokenizer_vocab_size
    return steps.make_tokenizer(run.data, run.data, run.tokenizer, size, run.cfg.tools)


def make_cache(run: Run) -> dict[str, Any]:
    cfg = run.cfg
    settings = {
        "prompt.style": cfg.prompt.style,
        "max_len": min(cfg.sft.seq_len, cfg.qa_sft.seq_len),
        "max_prompt_len": cfg.rollout.max_len // 2,
        "qa_share": cfg.qa_share,
        "tools": ",".join(cfg.tools),
    }
    trained_on = rf"(ramp|qa)_sft_.*|ramp_k\d+-{cfg.dapo.split}|qa_.*-{cfg.qa_dapo.split}"
    return steps.make_cache(run.data, run.cache, run.tokenizer, trained_on, **settings)


# ---- stages: model


def evaluate_model(run: Run, name: str) -> dict[str, Any]:
    cfg = run.cfg
    asked = tuple(s for s in cfg.eval.suites if run.has_questions or s != "questions")
    if not asked:
        raise ConfigError(
            "config.eval.suites is questions, and the text has no questions; choose ramp, "
            "source_hidden, statements, or give questions as config.corpus.questions"
        )
    own = tuple(s for s in cfg.eval.suite_examples if s.partition("=")[0] in asked)
    counts: dict[str, Any] = {"suites": asked, "suite_examples": own}
    if name == "init" and not cfg.init:
        # Random weights answer nothing, at length: few examples tell that.
        counts["suites"] = tuple(s for s in asked if s != "source_hidden") or asked
        counts |= {"examples": min(50, cfg.eval.examples), "suite_examples": ()}
    eval_run = config_lib.EvalRun(
        workdir=str(run.folder / "eval" / name),
        data=str(run.data),
        tokenizer=str(run.tokenizer),
        init=run.checkpoints(name),
        model=cfg.model,
        compute=cfg.compute,
        mesh=cfg.mesh,
        prompt=cfg.prompt,
        tools=cfg.tools,
        search=run.search,
        rollout=cfg.rollout,
        eval=dataclasses.replace(cfg.eval, **counts),
    )
    model = initial(eval_run.init, cfg.model, cfg.compute, make_mesh(cfg.mesh), cfg.seed)
    results, by_type = by_condition(evaluate.run(eval_run, model))
    for line in eval_lines({name: results}):
        steps.log(line)
    return {"eval": results, "eval_by_type": by_type}


def heldout(run: Run, steps: int) -> HeldoutConfig:
    """What a training of so many steps is measured on, and when."""
    cfg = run.cfg
    if not cfg.heldout_points:
        return HeldoutConfig()
    return HeldoutConfig(
        every=measured_every(cfg, steps),
        data=str(run.data),
        examples=cfg.heldout_examples,
        temperature=cfg.eval.temperature,
        seed=cfg.eval.seed,
    )


def training(
    run: Run,
    name: str,
    init: str,
    stage: config_lib.SftConfig | config_lib.DapoConfig,
    optim: config_lib.OptimConfig,
    *,
    samples: bool,
) -> dict[str, Any]:
    """What a training of either kind is told; of held-out examples, where it `samples`.

    Of search and rollouts too: `ask` and `export_hf` read them in the record of its checkpoints.
    """
    cfg = run.cfg
    told: dict[str, Any] = {
        "workdir": str(run.folder / name),
        "seed": cfg.seed,
        "data": str(run.cache),
        "tokenizer": str(run.tokenizer),
        "init": run.checkpoints(init),
        "model": cfg.model,
        "compute": cfg.compute,
        "mesh": cfg.mesh,
        "prompt": cfg.prompt,
        "tools": cfg.tools,
        "optim": optim,
        "lessons": lessons_of(cfg, stage.curriculum),
        "checkpoint": dataclasses.replace(cfg.checkpoint, folder=run.checkpoints(name)),
        "survival": cfg.survival,
    }
    if samples or run.has_own_search:
        told |= {"search": run.search, "rollout": cfg.rollout}
    if samples:
        told |= {"eval": heldout(run, stage.steps)}
    return told


def run_sft(
    run: Run, name: str, init: str, sft: config_lib.SftConfig, optim: config_lib.OptimConfig
) -> dict[str, Any]:
    """Trains `name` from the checkpoint `init`; its last metrics, and how many updates it had."""
    told = training(run, name, init, sft, optim, samples=bool(run.cfg.heldout_points))
    own = config_lib.SftRun(**told, sft=sft)
    made = train_sft.run(own, is_asked_by_record=run.has_own_search)
    return made | {"updates": {name: made["all_updates"]}}


def run_dapo(
    run: Run, name: str, init: str, dapo: config_lib.DapoConfig, optim: config_lib.OptimConfig
) -> dict[str, Any]:
    """The same, with live search. Raises NothingLearnedError as `train_dapo.train` does."""
    told = training(run, name, init, dapo, optim, samples=True)
    told |= {"judge": run.cfg.judge, "alarms": run.cfg.alarms}
    made = train_dapo.train(config_lib.DapoRun(**told, dapo=dapo))
    return made | {"updates": {name: made["all_updates"]}}


def run_control(run: Run) -> dict[str, Any]:
    """Questions alone, with as many updates of each kind as the two stages have together."""
    cfg = run.cfg
    updates = cfg.sft.steps + cfg.qa_sft.steps
    sft = dataclasses.replace(cfg.qa_sft, curriculum="0:qa_sft_mixed", steps=updates)
    # Where it has nothing to learn from, its steps are spent all the same.
    total = cfg.dapo.steps + cfg.qa_dapo.steps
    dapo = dataclasses.replace(cfg.qa_dapo, curriculum="0:qa_mixed", steps=total, patience=0)
    before = run_sft(run, "control_sft", "init", sft, cfg.sft_optim)
    made = run_dapo(run, "control_dapo", "control_sft", dapo, cfg.qa_dapo_optim)
    return made | {"updates": before["updates"] | made["updates"]}


def run_export(run: Run) -> dict[str, Any]:
    cfg = run.cfg
    mesh = make_mesh(cfg.mesh)
    model = initial(run.checkpoints(run.last), cfg.model, cfg.compute, mesh, cfg.seed)
    stage = "RAMP: SFT, then DAPO" + ("; questions: SFT, then DAPO" if run.has_questions else "")
    base = Path(cfg.init).stem if cfg.init else ""
    text = cfg.corpus.path or "the built-in atlas"
    card = Card(base_model=base, training=stage, dataset=text)
    spent = [cfg.sft, cfg.dapo, *([cfg.qa_sft, cfg.qa_dapo] if run.has_questions else ())]
    step = sum(part.steps for part in spent)
    to = run.folder / "hf"
    agent = agent_settings.of_run(dataclasses.asdict(dataclasses.replace(cfg, search=run.search)))
    made = export_hf.export(model, to, run.tokenizer, card=card, step=step, agent=agent)
    return {"export": made}


def run_report(run: Run) -> dict[str, Any]:
    return {"report": str(report.write([run.folder], most=run.cfg.report_trajectories))}


def of_questions(work: Callable[[Run], dict[str, Any]]) -> Callable[[Run], dict[str, Any]]:
    """The stage, which a run without questions leaves out."""

    def stage(run: Run) -> dict[str, Any]:
        if run.has_questions:
            return work(run)
        steps.log("left out: there are no questions")
        return {"left_out": "no questions"}

    return stage


def stages(cfg: QuickstartRun) -> dict[str, Callable[[Run], dict[str, Any]]]:
    """All stages in order."""
    trainings: dict[str, Callable[[Run], dict[str, Any]]] = {
        "ramp_sft": lambda run: run_sft(run, "ramp_sft", "init", cfg.sft, cfg.sft_optim),
        "ramp_dapo": lambda run: run_dapo(run, "ramp_dapo", "ramp_sft", cfg.dapo, cfg.dapo_optim),
        "qa_sft": of_questions(
            lambda run: run_sft(run, "qa_sft", "ramp_dapo", cfg.qa_sft, cfg.qa_sft_optim)
        ),
        "qa_dapo": of_questions(
            lambda run: run_dapo(run, "qa_dapo", "qa_sft", cfg.qa_dapo, cfg.qa_dapo_optim)
        ),
    }
    if cfg.control:
        trainings["control"] = of_questions(run_control)
    found: dict[str, Callable[[Run], dict[str, Any]]] = {
        "ramp": make_ramp,
        "index": make_index,
        "demonstrations": make_demonstrations,
        "tokenizer": make_tokenizer,
        "cache": make_cache,
        "evaluate_init": functools.partial(evaluate_model, name="init"),
    }
    for name, train in trainings.items():
        evaluated = functools.partial(evaluate_model, name=name)
        found[name] = train
        found[f"evaluate_{name}"] = (
            evaluated if name.startswith("ramp") else of_questions(evaluated)
        )
    return found | {"export": run_export, REPORT: run_report}


def after(run: Run, name: str) -> tuple[str, ...]:
    """The stages that are made again after a stage of a run that had ended: what a reader gets."""
    is_exported = name in (run.last, "tokenizer")
    return ("export", REPORT) if is_exported else (REPORT,)


# ---- what a reader gets


def write_summary(run: Run) -> None:
    """summary.json: every figure of the stages that are done."""
    records = run.records
    data = [r["data"] for r in records.values() if "data" in r]
    summary = run.usage.figures() | {
        "stages": {name: {"seconds": r["seconds"]} for name, r in records.items()},
        "updates": {n: k for r in records.values() for n, k in r.get("updates", {}).items()},
        "eval": evaluations(run, "eval"),
        "eval_by_type": evaluations(run, "eval_by_type"),
        "export": records.get("export", {}).get("export", {}),
        "time": {
            n: steps.time_spent(run.folder / n) for n in TRAININGS if (run.folder / n).exists()
        },
        "data": {name: counts for stage in data for name, counts in stage.items()},
        "config": dataclasses.asdict(run.cfg),
        "versions": run_record.versions(),
    }
    write_json(run.folder / "summary.json", summary)


def evaluations(run: Run, figures: str) -> dict[str, Any]:
    """{checkpoint: what its evaluation says}."""
    found = {name: run.records.get(f"evaluate_{name}", {}) for name in CHECKPOINTS}
    return {name: record[figures] for name, record in found.items() if figures in record}


def eval_lines(results: Mapping[str, Any]) -> list[str]:
    """{checkpoint: evaluation} as a table: suites and checkpoints down, conditions across."""
    asked = dict.fromkeys(suite for found in results.values() for suite in found)
    conditions = dict.fromkeys(c for found in results.values() for by in found.values() for c in by)
    lines = [f"{'':36}" + "".join(f"{c:22}" for c in conditions)]
    for suite in asked:
        metric = SHOWN_METRICS.get(suite, "f1")
        for name, found in results.items():
            if suite not in found:
                continue
            cells = [found[suite].get(c, {}).get(metric) for c in conditions]
            shown = (
                f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" if m else "" for m in cells
            )
            lines.append(f"{suite:14}{metric:12}{name:10}" + "".join(f"{s:22}" for s in shown))
    return [line.rstrip() for line in lines]


def print_end(run: Run) -> None:
    """Seconds of each stage, the evaluation, and where things are; on stdout."""
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    print()
    for name, stage in summary["stages"].items():
        print(f"{name:20}{stage['seconds']:8.1f} s")
    print("\n" + "\n".join(eval_lines(summary["eval"])))
    print(
        f"\n{summary['wall_seconds'] / 60:.1f} min, peak memory "
        f"{summary['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    for what, name in (("report", "report.html"), ("model", "hf"), ("figures", "summary.json")):
        print(f"{what:8}{run.folder / name}")


def check_config(cfg: QuickstartRun) -> None:
    """Raises ConfigError for what no text can mend: keys that are empty, and keys that clash."""
    check_given(cfg, workdir="the folder to write")
    suites.paths(cfg.eval, "the text's folder")
    check_methods(cfg.eval)
    asks = not cfg.corpus.path or cfg.corpus.questions  # else the stages of questions are left out
    check_watch(cfg, cfg.sft, cfg.dapo, *([cfg.qa_sft, cfg.qa_dapo] if asks else ()))
    check_context(cfg.model, cfg.rollout.max_len, "config.rollout.max_len")
    instructions_of(cfg.tools)


def run(cfg: QuickstartRun) -> None:
    """All stages; summary.json after each, report.html at the end."""
    check_config(cfg)
    split_cpu(cfg.cpu_devices)
    pinned(cfg.init, cfg.model)  # or says that it is not there, before anything is built
    usage = Usage(Path(cfg.workdir))
    this = Run(cfg, usage)
    with this.open(cfg), usage:
        for name, work in stages(cfg).items():
            summarise = functools.partial(write_summary, this)
            this.stage_of_run(name, functools.partial(work, this), after(this, name), summarise)
    print_end(this)


if __name__ == "__main__":
    cli.run(run, QuickstartRun, resumes=True, read_model=read_model, check=check_config)
