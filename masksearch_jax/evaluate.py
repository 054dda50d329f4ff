"""Evaluates a model on suites by several methods: closed book, one retrieval, agent, controls.

    python -m masksearch_jax.evaluate --config=configs/evaluate.py:qwen2.5-1.5b --config.init=FOLDER

Writes WORKDIR/eval.json, one line per trajectory to trajectories.jsonl, and one per item that has
none to lost.jsonl. Items are kept as they end, so that the same command goes on where it was
stopped; of a finished evaluation it prints the table and no more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from masksearch_jax.core import stamp
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError, check_given
from masksearch_jax.core.files import write_json, write_lines, writing
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.tools import Instructions, Toolbox
from masksearch_jax.core.types import JsonObject, QAExample, RampExample, to_json
from masksearch_jax.data import prompt
from masksearch_jax.evals import (
    comparison,
    difficulty,
    judging,
    leaked,
    methods,
    provenance,
    results,
    rows,
    sampling,
    scores,
    suites,
)
from masksearch_jax.evals.endpoint import EndpointSampler
from masksearch_jax.evals.fanoutqa import Lemmatizer
from masksearch_jax.evals.items import SOURCE_HIDDEN, Item, check_methods, chosen, items_of
from masksearch_jax.evals.lost import Lost, check_share, named
from masksearch_jax.evals.results import Bootstrap, Scored
from masksearch_jax.evals.suites import Suite
from masksearch_jax.models import likelihood
from masksearch_jax.models.hf_config import read_config
from masksearch_jax.models.load import check_vocabulary, initial, pinned
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel.processes import join_processes
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.ramp import spacy_spans
from masksearch_jax.ramp.survey import CleanConfig
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request, lacks_room
from masksearch_jax.rollout.model import Policy
from masksearch_jax.runtime import cli, run_record, storage
from masksearch_jax.runtime.process import process_count
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.runtime.row_log import RowLog
from masksearch_jax.search.open import check_source_passages, open_tool
from masksearch_jax.search.tool import NoSearch
from masksearch_jax.tools.registry import open_tools
from masksearch_jax.training.supervisor import Preemption

VERSION = 2  # of the form of eval.json
RESULTS = "eval.json"
TRAJECTORIES = "trajectories.jsonl"
_BATCH = 16  # rows whose likelihood is computed at once

Tools = Mapping[str, SearchTool]


class Plan(NamedTuple):
    """What is asked: suites with the places of their items, the items, and those lost before."""

    places: list[tuple[Suite, list[int]]]
    items: list[Item]
    lost: list[Lost]


# ---- what is asked


def check_alone() -> None:
    """Raises ConfigError where this is one of several processes: each would ask every item.

    Of HOST:PORT the environment tells how many there are; a cluster tells who has joined it.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    count = os.environ.get("JAX_NUM_PROCESSES", "1").strip() if address not in ("", "auto") else "1"
    if count == "1":
        join_processes()
        count = str(process_count())
    if count != "1":
        raise ConfigError(
            f"evaluate runs in one process, and this is one of {count}: start one, with "
            "JAX_COORDINATOR_ADDRESS unset"
        )


def tools_of(cfg: EvalRun, loaded: Sequence[Suite]) -> Tools:
    """The search tool of each method. Raises SearchError where one does not answer."""
    opened: dict[str, SearchTool] = {}

    def tool(kind: str) -> SearchTool:
        if kind not in opened:
            opened[kind] = open_tool(dataclasses.replace(cfg.search, kind=kind))
        return opened[kind]

    found: dict[str, SearchTool] = {}
    for method in cfg.eval.methods:
        if method in ("rag", "agent"):
            found[method] = tool(cfg.search.kind)
        elif method == "random" and cfg.search.kind == "http":  # there may be no index here
            texts = [methods.query_of(e) for suite in loaded for e in suite.examples]
            found[method] = methods.ShuffledSearch(tool("http"), texts, cfg.eval.seed)
        else:
            found[method] = tool("random") if method == "random" else NoSearch()
    return found


def lemmatizer_of(cfg: EvalRun, loaded: Sequence[Suite]) -> Lemmatizer:
    """Of FanOutQA's accuracy, where a suite has answers of several parts. Raises SpacyError."""
    has_parts = any(isinstance(e, QAExample) and e.parts for s in loaded for e in s.examples)
    return spacy_spans.lemmatizer(cfg.eval.lemmatizer) if cfg.eval.lemmatizer and has_parts else str


def plan_of(
    cfg: EvalRun,
    loaded: Sequence[Suite],
    tools: Tools,
    vocab: Vocab | None,
    about: Sequence[Instructions] = prompt.SEARCH_ALONE,
) -> Plan:
    """The items of all suites and methods. Raises what `items_of` and the search tool raise."""
    searching = tools.get("agent") or tools.get("rag")
    places = []
    for suite in loaded:
        if searching is not None and suite.is_ramp:
            hides = cfg.search.exclude_source or suite.name == SOURCE_HIDDEN
            search = dataclasses.replace(cfg.search, exclude_source=hides)
            check_source_passages(searching, search, suite.examples)
        places.append((suite, chosen(suite, cfg, searching)))
    lemmatize = lemmatizer_of(cfg, loaded)
    items, lost = items_of(
        cfg, places, vocab, lambda ids: lacks_room(ids, cfg.rollout), lemmatize, about
    )
    if lost:
        print(f"  left out {len(lost)} items: {named(lost)}", file=sys.stderr)
    return Plan(places, items, lost)


# ---- asking


class Model(NamedTuple):
    """A model of ours: weights, tokenizer and the prompt style that it is asked in."""

    policy: Policy
    vocab: Vocab
    style: str


class EngineSampler:
    """Samples items with the rollout engine."""

    def __init__(self, engine: Engine, model: Model):
        self._engine, self._model = engine, model

    def __call__(
        self, asked: Sequence[sampling.Asked], each: Callable[[sampling.Sampled], None]
    ) -> None:
        by_id = {one.item.example.id: one for one in asked}
        for trajectory in self._engine.run(self._model.policy, map(self._request, asked)):
            one = by_id[trajectory.example_id]
            if one.retrieved:
                turns = (one.retrieved.turn, *trajectory.turns)
                trajectory = dataclasses.replace(trajectory, turns=turns)
            each(sampling.Sampled(one.item, trajectory))

    def _request(self, asked: sampling.Asked) -> Request:
        item, ids = asked.item, asked.item.prompt_ids
        if asked.retrieved:
            said = asked.retrieved.information
            _, vocab, style = self._model
            ids = methods.prompt_ids(item.method, item.example, style, vocab, said)
        return Request(item.example.id, ids, item.number, source=item.hidden)


@contextlib.contextmanager
def sampler_of(
    cfg: EvalRun, method: str, tools: Toolbox, model: Model | None, check: Callable[[], None]
) -> Iterator[sampling.Sampler]:
    """What samples the items of a method: a model of ours, or the endpoint where that is None."""
    if model is None:
        yield EndpointSampler(cfg, method, tools, check)
        return
    rollout, shown = sampling.rollout_of(cfg, method), sampling.shown_of(cfg.search)
    with Engine(model.vocab, tools, rollout, shown, check=check) as engine:
        yield EngineSampler(engine, model)


def sample(
    cfg: EvalRun,
    model: Model | None,
    tools: Tools,
    items: Sequence[Item],
    log: RowLog,
    toolbox: Toolbox,
) -> list[Lost]:
    """Adds to the log the items that it lacks; those of which no trajectory counts."""
    total = Counter((i.suite, i.method) for i in items)
    left = [i for i in items if i.name not in log]
    failed: list[Lost] = []
    vocab = model.vocab if model else None
    fits, search = sampling.fits_of(cfg, vocab), sampling.shown_of(cfg.search)
    with (
        Progress("evaluate", len(items), len(items) - len(left)) as progress,
        Preemption() as preemption,
    ):
        check = preemption.raise_if_stopped

        def keep(sampled: sampling.Sampled, attempts: int) -> None:
            log.add(_row(sampled, attempts, model))
            progress.update(progress.done + 1)

        for method, tool in tools.items():

            def prepared(own: Sequence[Item], tool: SearchTool = tool) -> Iterator[Any]:
                return sampling.prepare(own, tool, search, fits, check)

            own_tools = toolbox.searching(tool, search)
            with sampler_of(cfg, method, own_tools, model, check) as sampler:
                for suite in dict.fromkeys(i.suite for i in items):
                    own = [i for i in left if (i.suite, i.method) == (suite, method)]
                    allowed = cfg.eval.max_tool_failures * total[suite, method]
                    failed += sampling.ask(sampler, prepared, own, cfg.eval.retries, allowed, keep)
    said = f"{sampling.NO_FAULT}, {cfg.eval.retries + 1} times each"
    share = cfg.eval.max_tool_failures
    check_share(failed, total, said, share, "max_tool_failures", after=f"; {sampling.AGAIN}")
    return failed


def run(cfg: EvalRun, model: Policy | None = None) -> JsonObject:
    """eval.json, as docs/evaluation.md describes it; `model` saves loading it.

    Raises ConfigError where the folder holds an evaluation with other settings, and LostItemsError
    where too many items have no score; what is done is kept then.
    """
    check_given(cfg, workdir="the folder to write")
    check_alone()
    check_methods(cfg)
    check_added(cfg)
    workdir = storage.path(cfg.workdir)
    loaded = suites.load(cfg.eval, cfg.data)
    content = content_of(cfg, loaded)
    workdir.mkdir(parents=True, exist_ok=True)
    with RowLog(workdir / "trajectories.partial.jsonl", _name) as log:
        goes_on = run_record.read(workdir) is not None
        goes_on &= len(log) > 0 or (workdir / RESULTS).exists()
        if goes_on:
            run_record.resume(workdir, cfg, content=content)
            if (workdir / RESULTS).exists():
                log.delete()
                return added(cfg, workdir, json.loads((workdir / RESULTS).read_text()))
        has_endpoint = bool(cfg.endpoint.base_url)
        vocab = None if has_endpoint else vocabulary(cfg)
        tools = tools_of(cfg, loaded)
        toolbox = open_tools(cfg.tools, NoSearch(), cfg.search)
        plan = plan_of(cfg, loaded, tools, vocab, toolbox.instructions)
        init = "" if has_endpoint else pinned(cfg.init, cfg.model)
        ours = None
        if vocab is not None:
            ours = Model(model or weights(cfg, init), vocab, cfg.prompt.style)
        if not goes_on:
            run_record.write(workdir, cfg, content)
        with jax.set_mesh(make_mesh(cfg.mesh)) if ours else contextlib.nullcontext():
            plan.lost.extend(sample(cfg, ours, tools, plan.items, log, toolbox))
        made_by = provenance.provenance(
            cfg,
            provenance.model_of(cfg, init, content["init"]),
            vocab.fingerprint if vocab else "",
            tools.get("agent") or tools.get("rag") or tools.get("random"),
        )
        more = functools.partial(difficulty_of, cfg, workdir, loaded, tools, ours)
        found = write(cfg, workdir, plan, made_by, log, more)
        log.delete()
    return added(cfg, workdir, found)


def vocabulary(cfg: EvalRun) -> Vocab:
    """The tokenizer. Raises where it is not the model's, or cannot write the prompt style."""
    vocab = Vocab.load(cfg.tokenizer)
    check_vocabulary(cfg.model, vocab, cfg.tokenizer, cfg.init)
    prompt.check_style(cfg.prompt.style, vocab)
    return vocab


def weights(cfg: EvalRun, init: str) -> Policy:
    """The model of `init`, over the mesh; random weights where that is empty."""
    if not init:
        print("  config.init is empty: random weights are evaluated", file=sys.stderr)
    return initial(init, cfg.model, cfg.compute, make_mesh(cfg.mesh), 0, cfg.base)


# ---- what is kept


def content_of(cfg: EvalRun, loaded: Sequence[Suite]) -> dict[str, str]:
    """Digests of the weights and of the suites' files; those of other folders are the record's."""
    files = [suite.sha256 for suite in loaded]
    return {"data": stamp.hash_of(files), "init": storage.fingerprint(cfg.init).hex()}


def _row(sampled: sampling.Sampled, attempts: int, model: Model | None) -> JsonObject:
    """A line of trajectories.jsonl."""
    item, trajectory = sampled.item, sampled.trajectory
    opening = methods.opening(item.method, model.style) if model else ""
    example = item.example
    measured = scores.score(example, trajectory, item.scorer, opening, attempts, sampled.tokens)
    row: JsonObject = {"suite": item.suite, "method": item.method, "scores": measured}
    if isinstance(example, RampExample):
        row["slots"] = scores.slot_scores(example, trajectory, opening)
    row |= to_json(trajectory) | {"opening": opening, "example": to_json(example)}
    row["tokens"] = [model.vocab.decode([i]) for i in trajectory.ids.tolist()] if model else []
    return row


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["suite"], row["method"], row["example_id"]


def write(
    cfg: EvalRun,
    workdir: epath.Path,
    plan: Plan,
    made_by: JsonObject,
    log: RowLog,
    more: Callable[[], JsonObject],
) -> JsonObject:
    """Writes trajectories.jsonl in the order of the items, lost.jsonl and eval.json.

    more: what else eval.json has, made of trajectories.jsonl. eval.json comes last: with it the
    evaluation is whole.
    """
    scored = [i for i in plan.items if i.name in log]
    by_place: dict[tuple[str, str], list[Scored]] = {}
    with writing(workdir / TRAJECTORIES) as file:
        for item, line in zip(scored, log.lines(i.name for i in scored), strict=True):
            file.write(line)
            place = item.suite, item.method
            by_place.setdefault(place, []).append(rows.row_of(json.loads(line)).scored)
    write_lines(workdir / "lost.jsonl", (json.dumps(i._asdict()) for i in plan.lost))
    whole = summary(cfg, plan, by_place) | {"provenance": made_by} | more()
    found = json.loads(json.dumps(whole))
    write_json(workdir / RESULTS, found)
    return found


def summary(
    cfg: EvalRun, plan: Plan, by_place: Mapping[tuple[str, str], Sequence[Scored]]
) -> JsonObject:
    """eval.json without what made it."""
    how = Bootstrap(cfg.eval.bootstrap, cfg.eval.seed)
    found: JsonObject = {"version": VERSION, "results": {}, "average": {}, "breakdown": {}}
    for (suite, method), items in by_place.items():
        lost = Counter(i.reason for i in plan.lost if i[:2] == (suite, method))
        cells = results.summarise([i.scores for i in items], how, lost)
        found["results"].setdefault(suite, {})[method] = cells
        found["breakdown"].setdefault(suite, {})[method] = results.breakdown(items, how)
    named_metrics = {s.name: s.metric for s, _ in plan.places}
    found["average"] = results.average(by_place, named_metrics, how)
    found["suites"] = {
        suite.name: provenance.suite_of(
            suite, len(numbers), plan.lost, _failures(by_place, suite.name)
        )
        for suite, numbers in plan.places
    }
    return found


def _failures(by_place: Mapping[tuple[str, str], Sequence[Scored]], suite: str) -> dict[str, int]:
    """By method, attempts that a failing tool ended before the one that counts."""
    own = {method: items for (name, method), items in by_place.items() if name == suite}
    return {m: int(sum(i.scores["tool_failures"] for i in items)) for m, items in own.items()}


# ---- what is made of it


def check_added(cfg: EvalRun) -> None:
    """Raises ConfigError for what no finished evaluation could be given."""
    if cfg.judge.own_model:
        raise ConfigError(
            "config.judge.own_model is for training; of evaluate the judge is an endpoint, "
            "config.judge.base_url, such as serve_model's"
        )
    if cfg.eval.compare and not (storage.path(cfg.eval.compare) / RESULTS).exists():
        raise ConfigError(
            f"config.eval.compare is {cfg.eval.compare!r}, which holds no {RESULTS}; it must name "
            "the folder of a finished evaluation"
        )
    if cfg.eval.leakage and not Path(cfg.eval.leakage).exists():
        raise ConfigError(
            f"config.eval.leakage is {cfg.eval.leakage!r}, which is not there; it must name the "
            "folder that build_ramp wrote, or a JSONL file of passages"
        )


def added(cfg: EvalRun, workdir: epath.Path, found: JsonObject) -> JsonObject:
    """eval.json with verdicts, leakage and paired differences, as far as they are asked for."""
    if not (cfg.judge.base_url or cfg.eval.leakage or cfg.eval.compare):
        return found
    read = list(rows.read(workdir / TRAJECTORIES))
    how = Bootstrap(cfg.eval.bootstrap, cfg.eval.seed)
    if cfg.judge.base_url:
        verdicts = judging.judged(read, cfg.judge, cfg.eval.max_tool_failures)
        for (suite, method), cell in judging.cells(read, verdicts, how).items():
            found["results"][suite][method]["judge"] = cell
        prompt_hash = stamp.hash_of(judging.prompt_of(cfg.judge))
        found["judge"] = {"model": cfg.judge.model, "prompt": prompt_hash}
        told = ((*row.place, row.example.id, v) for row, v in zip(read, verdicts, strict=True))
        names = ("suite", "method", "id", "verdict")
        lines = (json.dumps(dict(zip(names, values, strict=True))) for values in told)
        write_lines(workdir / "verdicts.jsonl", lines)
    if cfg.eval.leakage:
        ngram = CleanConfig().ngram
        found["leakage"] = leaked.told(read, cfg.eval.leakage, ngram, how)
    if other := cfg.eval.compare:
        theirs = json.loads((storage.path(other) / RESULTS).read_text())
        mine = rows.by_place(read)
        found["compare"] = comparison.compare(mine, found["suites"], other, theirs, how)
    write_json(workdir / RESULTS, found)
    return found


def difficulty_of(
    cfg: EvalRun, workdir: epath.Path, loaded: Sequence[Suite], tools: Tools, model: Model | None
) -> JsonObject:
    """`difficulty`, {suite: {factor: bins}} of the agent's RAMP suites, where it is asked for.

    Beside it difficulty.SUITE.svg.
    """
    told: JsonObject = {}
    if not cfg.eval.difficulty:
        return {}
    how = Bootstrap(cfg.eval.bootstrap, cfg.eval.seed)
    read = [row for row in rows.read(workdir / TRAJECTORIES) if row.place[1] == "agent"]
    for suite in (s for s in loaded if s.is_ramp and "agent" in tools):
        own = [row for row in read if row.place[0] == suite.name]
        examples = [row.example for row in own if isinstance(row.example, RampExample)]
        ranked = difficulty.ranks(examples, tools["agent"], cfg.search)
        spans = difficulty.spans_of(own, suite.examples, ranked, losses_of(cfg, model))
        bins = told[suite.name] = difficulty.told(spans, how)
        picture = difficulty.plot(bins, f"{suite.name}: what makes a span hard")
        (workdir / f"difficulty.{suite.name}.svg").write_text(picture)
        print("\n".join([f"{suite.name}, by what makes a span hard:", *difficulty.table(bins)]))
    return {"difficulty": told}


def losses_of(cfg: EvalRun, model: Model | None) -> difficulty.Losses | None:
    """How likely a model of ours finds texts after contexts; None for an endpoint."""
    if model is None or not isinstance(model.policy, Transformer):
        return None
    policy, vocab = model.policy, model.vocab

    def losses(asked: Sequence[tuple[str, str]]) -> list[float]:
        coded = [(vocab.encode(c, literal=True), vocab.encode(t, literal=True)) for c, t in asked]
        with jax.set_mesh(make_mesh(cfg.mesh)):
            return likelihood.losses(policy, coded, _BATCH, cfg.rollout.max_len)

    return losses


if __name__ == "__main__":
    cli.run(
        lambda cfg: print(results.table(run(cfg))), EvalRun, resumes=True, read_model=read_config
    )
