"""Evaluates a model on the suites, with its search tool, without it, and with a random retriever.

    python -m masksearch_jax.evaluate --config=configs/evaluate.py:qwen2.5-1.5b --config.init=FOLDER

Writes WORKDIR/eval.json, the same by number of masks and by type of question to by_type.json, one
line per trajectory to trajectories.jsonl, and one per item that has none to lost.jsonl. Items are
kept as they end, so that the same command goes on where it was stopped; of a finished evaluation it
prints the table and no more.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from masksearch_jax.core import chinese, retrieval, stamp
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError, UserError, nearest
from masksearch_jax.core.files import write_json, write_lines, writing
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import (
    NOT_ITS_DOING,
    Example,
    QAExample,
    RampExample,
    Trajectory,
    has_answer,
    to_json,
)
from masksearch_jax.data import prompt
from masksearch_jax.evals import suites
from masksearch_jax.evals.lost import Lost, LostItemsError, check_share, named
from masksearch_jax.models.hf_config import read_config
from masksearch_jax.models.load import check_vocabulary, initial
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request, lacks_room
from masksearch_jax.rollout.model import Policy
from masksearch_jax.runtime import cli, run_record, storage
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.runtime.row_log import RowLog
from masksearch_jax.search.open import check_source_passages, open_tool
from masksearch_jax.training.supervisor import Preemption

# Condition → search.kind; "search" takes the kind that is configured.
CONDITIONS = {"search": "", "no_search": "none", "random": "random"}
FILES = {
    "ramp": ("ramp/heldout.jsonl", RampExample),
    "two_hop": ("questions/heldout.jsonl", QAExample),
    "source_hidden": ("ramp/heldout.jsonl", RampExample),
}
_FOUND_BY_TITLE = 20  # passages among which those that repeat an article's facts are looked for
BY_TYPE = "by_type.json"  # results by number of masks, and by type of question
_OUTAGE = 100  # items lost with none between them that was not: a service is down
_NO_FAULT = "ended for no fault of the model"
_AGAIN = "what is done is kept, and the same command asks for the others again"


class Item(NamedTuple):
    """An example of a suite in a condition.

    number: its place in the file, and its stream. hidden: the passage that its searches never show.
    """

    suite: str
    condition: str
    number: int
    example: Example
    prompt_ids: np.ndarray
    hidden: str

    @property
    def name(self) -> tuple[str, str, str]:
        return self.suite, self.condition, self.example.id

    def request(self) -> Request:
        """Its random numbers are its own, whatever else is sampled."""
        return Request(self.example.id, self.prompt_ids, self.number, source=self.hidden)


# ---- what is asked


def conditions(cfg: EvalRun, suite: str) -> list[str]:
    """The conditions of a suite; with its source hidden, RAMP is asked with search alone."""
    return [c for c in cfg.eval.conditions if c == "search" or suite != "source_hidden"]


def tools(cfg: EvalRun) -> dict[str, SearchTool]:
    """The search tool of each condition. Raises SearchError where one does not answer."""
    kinds = {name: CONDITIONS[name] or cfg.search.kind for name in cfg.eval.conditions}
    return {n: open_tool(dataclasses.replace(cfg.search, kind=kind)) for n, kind in kinds.items()}


def load_suites(cfg: EvalRun) -> dict[str, list[Example]]:
    """All of each suite's held-out file. Raises ConfigError for an unknown suite or condition."""
    for key, known in (("suites", FILES), ("conditions", CONDITIONS)):
        for name in getattr(cfg.eval, key):
            if name not in known:
                raise ConfigError(f"config.eval.{key} has {name!r}; {nearest(name, known)}")
    found: dict[str, list[Example]] = {}
    for name in cfg.eval.suites:
        file, kind = FILES[name]
        found[name] = read_jsonl(Path(cfg.data) / file, kind)
        if not found[name]:
            raise UserError(f"{Path(cfg.data) / file} holds no item of config.eval.suites {name!r}")
    return found


def with_repeated_facts(
    cfg: EvalRun, examples: Sequence[RampExample], tool: SearchTool
) -> list[RampExample]:
    """The first examples that other passages answer too; all where not one is of that kind."""
    found = (e for e in examples if is_repeated(e, tool))
    return list(itertools.islice(found, cfg.eval.examples)) or list(examples)


def is_repeated(example: RampExample, tool: SearchTool) -> bool:
    """Whether other passages that name the article tell all that is masked.

    Looked for among those that a search for its title finds.
    """
    (found,) = tool.search([example.title], _FOUND_BY_TITLE)
    texts = [f"{p.title}\n{p.text}" for p in found if p.id != example.passage_id]
    texts = [text for text in texts if chinese.is_within(example.title, text)]
    return all(any(chinese.is_within(s.text, text) for text in texts) for s in example.spans)


def count(cfg: EvalRun, condition: str) -> int:
    """Examples of a suite in a condition, the first ones of its file, which is shuffled."""
    return cfg.eval.examples if condition == "search" else cfg.eval.baseline_examples


def items_of(
    cfg: EvalRun, by_suite: Mapping[str, Sequence[Example]], vocab: Vocab
) -> tuple[list[Item], list[Lost]]:
    """The items by condition and suite, and those that cannot be run.

    Raises LostItemsError where these are more than `eval.max_bad_fraction` of a suite.
    """
    items: list[Item] = []
    lost: list[Lost] = []
    for suite, examples in by_suite.items():
        most = {c: count(cfg, c) for c in conditions(cfg, suite)}
        hides = cfg.search.exclude_source or suite == "source_hidden"
        examples = examples[: max(most.values(), default=0)]
        prompts = [
            np.asarray(vocab.encode(prompt.render(e, cfg.prompt.style, vocab)), np.int32)
            for e in examples
        ]
        bad = _bad(examples, prompts, cfg)
        for condition in most:
            members = enumerate(zip(examples, prompts, strict=True))
            asked = [
                Item(suite, condition, i, e, ids, retrieval.source_of(e) if hides else "")
                for i, (e, ids) in members
            ]
            asked = asked[: most[condition]]
            lost += [Lost(*i.name, *bad[i.number]) for i in asked if i.number in bad]
            items += [i for i in asked if i.number not in bad]
    total = Counter((i.suite, i.condition) for i in items)
    total += Counter((i.suite, i.condition) for i in lost)
    check_share(lost, total, "cannot be run", cfg.eval.max_bad_fraction, "max_bad_fraction")
    return sorted(items, key=lambda i: cfg.eval.conditions.index(i.condition)), lost


def _bad(
    examples: Sequence[Example], prompts: Sequence[np.ndarray], cfg: EvalRun
) -> dict[int, tuple[str, str]]:
    """Place of each example that cannot be run → reason and detail."""
    found: dict[int, tuple[str, str]] = {}
    seen: set[str] = set()
    for i, (example, ids) in enumerate(zip(examples, prompts, strict=True)):
        if not has_answer(example):
            found[i] = ("no_known_answer", "")
        elif why := lacks_room(ids, cfg.rollout):
            found[i] = ("prompt_too_long", why)
        elif example.id in seen:
            found[i] = ("id_twice", "another item before has this id")
        seen.add(example.id)
    return found


# ---- asking


def ask(
    engine: Engine,
    model: Policy,
    items: Sequence[Item],
    retries: int,
    allowed: float,
    keep: Callable[[Item, Trajectory], None],
) -> list[Lost]:
    """Hands a trajectory of each item, of one suite and condition, to `keep`.

    One that ended for no fault of the model is sampled again, `retries` times at most; the items of
    which none ended otherwise are returned. Raises LostItemsError where more than `allowed` end so
    at once, and none between them that does not.
    """
    left = {item.example.id: item for item in items}
    lost: dict[str, Lost] = {}
    for attempt in range(retries + 1 if left else 0):
        lost, in_a_row = {}, 0
        for trajectory in engine.run(model, [item.request() for item in left.values()]):
            item = left[trajectory.example_id]
            if trajectory.status not in NOT_ITS_DOING:
                keep(item, trajectory)
                in_a_row = 0
                continue
            error = trajectory.turns[-1].error if trajectory.turns else ""
            lost[item.example.id] = Lost(*item.name, trajectory.status, error)
            in_a_row += 1
            if not attempt and in_a_row >= _OUTAGE and len(lost) > allowed:
                said = f"{in_a_row} items in a row {_NO_FAULT}"
                raise LostItemsError(f"{said}: {named(list(lost.values()))}; {_AGAIN}")
        left = {name: item for name, item in left.items() if name in lost}
        if not left:
            break
    return list(lost.values())


def sample(
    cfg: EvalRun,
    model: Policy,
    vocab: Vocab,
    by_condition: Mapping[str, SearchTool],
    items: Sequence[Item],
    log: RowLog,
) -> list[Lost]:
    """Adds to the log the items that it lacks; those of which no trajectory counts."""
    rollout = dataclasses.replace(cfg.rollout, temperature=cfg.eval.temperature)
    shown = dataclasses.replace(cfg.search, exclude_source=True)  # which a request may name none of
    total = Counter((i.suite, i.condition) for i in items)
    left = [i for i in items if i.name not in log]
    failed: list[Lost] = []
    with (
        Progress("evaluate", len(items), len(items) - len(left)) as progress,
        Preemption() as preemption,
    ):

        def keep(item: Item, trajectory: Trajectory) -> None:
            log.add(_row(item, trajectory, vocab))
            progress.update(progress.done + 1)

        for condition, tool in by_condition.items():
            with Engine(vocab, tool, rollout, shown, check=preemption.raise_if_stopped) as engine:
                for suite in cfg.eval.suites:
                    own = [i for i in left if (i.suite, i.condition) == (suite, condition)]
                    allowed = cfg.eval.max_tool_failures * total[suite, condition]
                    failed += ask(engine, model, own, cfg.eval.retries, allowed, keep)
    said = f"{_NO_FAULT}, {cfg.eval.retries + 1} times each"
    share = cfg.eval.max_tool_failures
    check_share(failed, total, said, share, "max_tool_failures", after=f"; {_AGAIN}")
    return failed


def run(cfg: EvalRun, model: Policy | None = None) -> dict[str, Any]:
    """{suite: {condition: {metric: {value, low, high, n, lost}}}}; `model` saves loading it.

    Raises ConfigError where the folder holds an evaluation with other settings, and LostItemsError
    where too many items have no score; what is done is kept then.
    """
    workdir = storage.path(cfg.workdir)
    by_suite, content = load_suites(cfg), content_of(cfg)
    workdir.mkdir(parents=True, exist_ok=True)
    with RowLog(workdir / "trajectories.partial.jsonl", _name) as log:
        results = workdir / "eval.json"
        goes_on = run_record.read(workdir) is not None and (len(log) > 0 or results.exists())
        if goes_on:
            run_record.resume(workdir, cfg, content=content)
            if results.exists():
                log.delete()
                return json.loads(results.read_text())
        vocab = Vocab.load(cfg.tokenizer)
        check_vocabulary(cfg.model, vocab, cfg.tokenizer, cfg.init)
        by_condition = tools(cfg)
        if "search" in by_condition:
            tool = by_condition["search"]
            check_source_passages(tool, cfg.search, by_suite.get("ramp", ()))
            if hidden := by_suite.get("source_hidden"):
                check_source_passages(
                    tool, dataclasses.replace(cfg.search, exclude_source=True), hidden
                )
                by_suite["source_hidden"] = with_repeated_facts(cfg, hidden, tool)
        items, lost = items_of(cfg, by_suite, vocab)
        if lost:
            print(f"  left out {len(lost)} items: {named(lost)}", file=sys.stderr)
        mesh = make_mesh(cfg.mesh)
        if model is None:
            model = initial(cfg.init, cfg.model, cfg.compute, mesh, 0, cfg.base)
        if not goes_on:
            run_record.write(workdir, cfg, content)
        with jax.set_mesh(mesh):
            lost += sample(cfg, model, vocab, by_condition, items, log)
        found = write(cfg, workdir, items, lost, log)
        log.delete()
    return found


# ---- what is kept


def content_of(cfg: EvalRun) -> dict[str, str]:
    """Digests of the weights and of the suites' files; those of other folders are the record's."""
    files = [stamp.content(Path(cfg.data) / FILES[suite][0]) for suite in cfg.eval.suites]
    return {"data": stamp.hash_of(files), "init": storage.fingerprint(cfg.init).hex()}


def _row(item: Item, trajectory: Trajectory, vocab: Vocab) -> dict[str, Any]:
    scores = suites.score(item.example, trajectory)
    row = {"suite": item.suite, "condition": item.condition, "scores": scores}
    row |= to_json(trajectory) | {"example": to_json(item.example)}
    row["tokens"] = [vocab.decode([i]) for i in trajectory.ids.tolist()]
    return row


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["suite"], row["condition"], row["example_id"]


def write(
    cfg: EvalRun, workdir: Path, items: Sequence[Item], lost: Sequence[Lost], log: RowLog
) -> dict[str, Any]:
    """Writes trajectories.jsonl in the order of the items, lost.jsonl, by_type.json and eval.json.

    eval.json comes last: with it the evaluation is whole.
    """
    scored = [i for i in items if i.name in log]
    scores: dict[tuple[str, str], dict[str, list[dict[str, float]]]] = {}
    with writing(workdir / "trajectories.jsonl") as file:
        for item, line in zip(scored, log.lines(i.name for i in scored), strict=True):
            file.write(line)
            by_type = scores.setdefault((item.suite, item.condition), {})
            by_type.setdefault(suites.type_of(item.example), []).append(json.loads(line)["scores"])
    write_lines(workdir / "lost.jsonl", (json.dumps(i._asdict()) for i in lost))
    results: dict[str, Any] = {}
    typed: dict[str, Any] = {}
    for (suite, condition), by_type in scores.items():
        counted = Counter(i.reason for i in lost if i[:2] == (suite, condition))
        summarise = functools.partial(
            suites.summarise, resamples=cfg.eval.bootstrap, seed=cfg.eval.seed
        )
        found = list(itertools.chain(*by_type.values()))
        results.setdefault(suite, {})[condition] = summarise(found, lost=counted)
        typed.setdefault(suite, {})[condition] = {
            name: summarise(found, lost={}) for name, found in sorted(by_type.items())
        }
    write_json(workdir / BY_TYPE, typed)
    write_json(workdir / "eval.json", results)
    return results


if __name__ == "__main__":
    cli.run(
        lambda cfg: print(suites.table(run(cfg))), EvalRun, resumes=True, read_model=read_config
    )
