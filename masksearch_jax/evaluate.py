"""Evaluates a model on suites by several methods: closed book, one retrieval, agent, controls.

    python -m masksearch_jax.evaluate --config=configs/evaluate.py:qwen2.5-1.5b \\
        --config.init=FOLDER --config.tokenizer=FOLDER

Writes WORKDIR/eval.json, one line per trajectory to trajectories.jsonl, and one per item that has
none to lost.jsonl. Items are kept as they end, so that the same command goes on where it was
stopped; of a finished evaluation it prints the table and no more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from masksearch_jax.core import stamp
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import UserError, check_given
from masksearch_jax.core.files import write_json
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.tools import Instructions, Toolbox, check_budgets
from masksearch_jax.core.types import JsonObject, QAExample, RampExample, to_json
from masksearch_jax.data import methods, prompt
from masksearch_jax.evals import (
    additions,
    checks,
    difficulty,
    endpoint,
    outcome,
    provenance,
    results,
    rows,
    sampling,
    scores,
    suites,
)
from masksearch_jax.evals.controls import ShuffledSearch
from masksearch_jax.evals.fanoutqa import Lemmatizer
from masksearch_jax.evals.items import SOURCE_HIDDEN, Item, chosen, items_of
from masksearch_jax.evals.lost import Lost, check_share, named
from masksearch_jax.evals.results import RESULTS, Bootstrap
from masksearch_jax.evals.rows import TRAJECTORIES
from masksearch_jax.evals.suites import Suite
from masksearch_jax.models import likelihood
from masksearch_jax.models.load import check_context, check_vocabulary, initial, pinned, read_model
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import hosts
from masksearch_jax.parallel.folder_lock import FolderLock
from masksearch_jax.parallel.processes import join_processes
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.parallel.shared_log import SharedLog
from masksearch_jax.ramp import spacy_spans
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request, lacks_room
from masksearch_jax.rollout.model import Policy
from masksearch_jax.runtime import agent_settings, cli, run_record, storage
from masksearch_jax.runtime.process import process_count, process_index
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.open import (
    SERVICES,
    check_named,
    check_source_passages,
    index_served,
    open_recorded,
    open_tool,
)
from masksearch_jax.search.tool import NoSearch
from masksearch_jax.tools.registry import instructions_of, open_tools
from masksearch_jax.training.supervisor import Preemption

CHOICES = "choices.partial.json"
_BATCH = 16  # rows whose likelihood is computed at once

Tools = Mapping[str, SearchTool]
Choices = dict[str, list[int]]  # of each suite the places of its examples that are asked


# ---- what is asked


def check_same_suites(digest: str) -> None:
    """Raises UserError, on all processes, where one has read other suites than the first."""
    digests = hosts.gather(digest)
    for process, own in enumerate(digests):
        if own != digests[0]:
            raise UserError(
                f"process {process} has read other suites than process 0: config.data and the "
                "files of config.eval.suites must be the same for all"
            )


def kind_of(cfg: EvalRun, method: str) -> str:
    """The kind of search that a method does."""
    searches = method in ("rag", "agent") or (method == "random" and cfg.search.service)
    return cfg.search.kind if searches else "random" if method == "random" else "none"


def tools_of(cfg: EvalRun, loaded: Sequence[Suite]) -> Tools:
    """The search tool of each method. Raises SearchError where one does not answer."""
    opened: dict[str, SearchTool] = {}

    def tool(kind: str) -> SearchTool:
        if kind not in opened:
            opened[kind] = open_tool(dataclasses.replace(cfg.search, kind=kind))
        return opened[kind]

    found: dict[str, SearchTool] = {}
    for method in cfg.eval.methods:
        kind = kind_of(cfg, method)
        is_of_service = method == "random" and kind != "random"  # there may be no index here
        if is_of_service and cfg.search.recorded:  # of texts that no trajectory need have asked
            found[method] = open_recorded(cfg.search, method)
            continue
        found[method] = NoSearch() if kind == "none" else tool(kind)
        if is_of_service:
            texts = [methods.query_of(e) for suite in loaded for e in suite.examples]
            found[method] = ShuffledSearch(found[method], texts, cfg.eval.seed)
    return found


def lemmatizer_of(cfg: EvalRun, loaded: Sequence[Suite]) -> Lemmatizer:
    """Of FanOutQA's accuracy, where a suite has answers of several parts. Raises SpacyError."""
    has_parts = any(isinstance(e, QAExample) and e.parts for s in loaded for e in s.examples)
    return spacy_spans.lemmatizer(cfg.eval.lemmatizer) if cfg.eval.lemmatizer and has_parts else str


def choose(cfg: EvalRun, loaded: Sequence[Suite], tools: Tools) -> Choices:
    """The examples of each suite that are asked. SearchError for sources not to be hidden."""
    searching = tools.get("agent") or tools.get("rag")
    for suite in loaded:
        if searching is not None and suite.is_ramp:
            hides = cfg.search.exclude_source or suite.name == SOURCE_HIDDEN
            search = dataclasses.replace(cfg.search, exclude_source=hides)
            check_source_passages(searching, search, suite.examples)
    return {suite.name: chosen(suite, cfg, searching) for suite in loaded}


def choose_once(
    cfg: EvalRun, workdir: epath.Path, loaded: Sequence[Suite], tools: Tools, begun: bool
) -> Choices:
    """What an evaluation that has begun chose then: a search may find something else now."""
    path = workdir / CHOICES
    if begun and path.exists():
        return json.loads(path.read_text())
    found = choose(cfg, loaded, tools)
    write_json(path, found)
    return found


def worklist_of(
    cfg: EvalRun,
    loaded: Sequence[Suite],
    choices: Choices,
    vocab: Vocab | None,
    about: Sequence[Instructions] = prompt.SEARCH_ALONE,
) -> outcome.Worklist:
    """The items of all suites and methods. Raises what `items_of` raises."""
    places = [(suite, choices[suite.name]) for suite in loaded]
    lemmatize = lemmatizer_of(cfg, loaded)
    items, lost = items_of(
        cfg, places, vocab, lambda ids: lacks_room(ids, cfg.rollout), lemmatize, about
    )
    if lost and process_index() == 0:
        print(f"  left out {len(lost)} items: {named(lost)}", file=sys.stderr)
    return outcome.Worklist(places, items, lost)


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
        self, asked: Sequence[sampling.Asked], each: Callable[[sampling.Sampled], bool]
    ) -> None:
        by_id = {one.item.example.id: one for one in asked}
        requests, told_to_end = map(self._request, asked), threading.Event()
        policy = self._model.policy
        for trajectory in self._engine.run(policy, requests, enough=told_to_end.is_set):
            one = by_id[trajectory.example_id]
            if one.retrieved:
                turns = (one.retrieved.turn, *trajectory.turns)
                trajectory = dataclasses.replace(trajectory, turns=turns)
            if not each(sampling.Sampled(one.item, trajectory)):
                told_to_end.set()

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
        yield endpoint.EndpointSampler(cfg, method, tools, check)
        return
    rollout, shown = sampling.rollout_of(cfg, method), sampling.shown_of(cfg.search)
    with Engine(model.vocab, tools, rollout, shown, check=check) as engine:
        yield EngineSampler(engine, model)


def sample(
    cfg: EvalRun,
    model: Model | None,
    tools: Tools,
    items: Sequence[Item],
    log: SharedLog,
    toolbox: Toolbox,
) -> list[Lost]:
    """Adds to the log the items that it lacks; those of which no trajectory counts.

    Each process samples its share. All must call it, with the same items.
    """
    total = Counter((i.suite, i.method) for i in items)
    kept = log.are_kept([i.name for i in items])
    left: dict[tuple[str, str], list[Item]] = {place: [] for place in total}
    for item, is_kept in zip(items, kept, strict=True):
        if not is_kept:
            left[item.suite, item.method].append(item)
    own = {place: of[process_index() :: process_count()] for place, of in left.items()}
    failed: list[Lost] = []
    vocab = model.vocab if model else None
    fits, search = sampling.room_of(cfg, vocab), sampling.shown_of(cfg.search)
    with (
        Progress("evaluate", sum(kept) + sum(map(len, own.values())), sum(kept)) as progress,
        Preemption() as preemption,
    ):
        check = preemption.raise_if_stopped

        def keep(sampled: sampling.Sampled, attempts: int) -> None:
            log.rows.add(_row(sampled, attempts, model))
            progress.update(progress.done + 1)

        def tell(failures: int, error: str) -> None:
            progress.figures.pop("failing", None)
            told = {"failing": f"{failures} items in a row ({error})"} if failures else {}
            progress.update(progress.done, **told)

        for method, tool in tools.items():
            prepared = functools.partial(sampling.prepare, method, tool, search, fits, check)
            own_tools = toolbox.searching(tool, search)
            with sampler_of(cfg, method, own_tools, model, check) as sampler:
                for place in (place for place in total if place[1] == method):
                    allowed = cfg.eval.max_tool_failures * total[place]
                    how = cfg.eval.retries, allowed, keep, hosts.gather, tell
                    failed += sampling.ask(sampler, prepared, own[place], *how)
    failed = [Lost(*lost) for of_process in hosts.gather(failed) for lost in of_process]
    said = f"{sampling.NO_FAULT}, {cfg.eval.retries + 1} times each"
    share = cfg.eval.max_tool_failures
    check_share(failed, total, said, share, "max_tool_failures", after=f"; {sampling.AGAIN}")
    log.collect()
    return failed


def check_config(cfg: EvalRun) -> None:
    """Raises ConfigError for what no data can mend: keys that are empty, and keys that clash.

    SearchError for those of search.
    """
    check_given(cfg, workdir="the folder to write")
    checks.check_asked(cfg)
    check_budgets(cfg.rollout.tool_turns, [t.name for t in instructions_of(cfg.tools)])
    if not cfg.endpoint.base_url:
        check_given(cfg, tokenizer="the folder that holds tokenizer.json")
        check_context(cfg.model, cfg.rollout.max_len, "config.rollout.max_len")
    for kind in dict.fromkeys(kind_of(cfg, method) for method in cfg.eval.methods):
        check_named(dataclasses.replace(cfg.search, kind=kind))


def run(cfg: EvalRun, model: Policy | None = None) -> JsonObject:
    """eval.json, as docs/evaluation.md describes it; `model` saves loading it.

    Several processes share the items, and the first one writes. Raises ConfigError where the folder
    holds an evaluation with other settings, BeingWrittenError where another command makes it, and
    LostItemsError where too many items have no score; what is done is kept then.
    """
    check_config(cfg)
    join_processes()
    checks.check_processes(cfg)
    additions.check_added(cfg)
    workdir = storage.path(cfg.workdir)
    loaded = suites.load(cfg.eval, cfg.data)
    content = content_of(cfg)
    check_same_suites(stamp.hash_of([suite.sha256 for suite in loaded]))
    hosts.from_first(lambda: additions.check_judge(cfg, loaded))
    workdir.mkdir(parents=True, exist_ok=True)
    with FolderLock(workdir), SharedLog(workdir, _name) as log:
        content |= hosts.from_first(lambda: endpoint.content_of(cfg))
        # Nothing is asked of the search service of an evaluation that is finished.
        is_finished = hosts.from_first(lambda: outcome.is_finished(workdir))
        tools = {} if is_finished else tools_of(cfg, loaded)
        content |= hosts.from_first(lambda: index_of(cfg, workdir, tools))
        begun = hosts.from_first(lambda: outcome.is_begun(workdir, log.rows))
        if begun:
            hosts.from_first(lambda: run_record.resume(workdir, cfg, additions.keys(), content))
        if is_finished:
            return hosts.from_first(lambda: finished(cfg, workdir, log))
        has_endpoint = bool(cfg.endpoint.base_url)
        vocab = None if has_endpoint else vocabulary(cfg)
        toolbox = open_tools(cfg.tools, NoSearch(), cfg.search)
        choices = hosts.from_first(lambda: choose_once(cfg, workdir, loaded, tools, begun))
        worklist = worklist_of(cfg, loaded, choices, vocab, toolbox.instructions)
        init = "" if has_endpoint else pinned(cfg.init, cfg.model)
        ours = None
        if vocab is not None:
            ours = Model(model or weights(cfg, init), vocab, cfg.prompt.style)
        if not begun:
            run_record.write(workdir, cfg, content)
        with jax.set_mesh(make_mesh(cfg.mesh)) if ours else contextlib.nullcontext():
            worklist.lost.extend(sample(cfg, ours, tools, worklist.items, log, toolbox))
        made_by = provenance.provenance(
            cfg,
            provenance.model_of(cfg, init, content["init"], content.get(endpoint.SERVED, "")),
            vocab.fingerprint if vocab else "",
            tools.get("agent") or tools.get("rag") or tools.get("random"),
        )
        more = functools.partial(difficulty_of, cfg, workdir, loaded, tools, ours)
        hosts.from_first(lambda: outcome.write(cfg, workdir, worklist, made_by, log.rows, more))
        return hosts.from_first(lambda: finished(cfg, workdir, log))


def finished(cfg: EvalRun, workdir: epath.Path, log: SharedLog) -> JsonObject:
    """eval.json of a finished evaluation, with what is asked to be added."""
    log.delete()
    (workdir / CHOICES).unlink(missing_ok=True)
    return additions.added(cfg, workdir, json.loads((workdir / RESULTS).read_text()))


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


def content_of(cfg: EvalRun) -> dict[str, str]:
    """Digests of the weights and of the suites in `data`; those of other files are the record's."""
    return {"data": suites.content(cfg.data), "init": storage.fingerprint(cfg.init).hex()}


def index_of(cfg: EvalRun, workdir: epath.Path, tools: Tools) -> dict[str, str]:
    """What tells the index of a search service from others, where a method asks the service.

    tools: those of an evaluation that is under way; of one that is finished its record says it.
    """
    if not tools:
        content = run_record.read(workdir)["content"]
        return {key: content[key] for key in SERVICES.values() if key in content}
    asking = [tool for method, tool in tools.items() if kind_of(cfg, method) == cfg.search.kind]
    return next(filter(None, (index_served(tool, cfg.search) for tool in asking)), {})


def _row(sampled: sampling.Sampled, attempts: int, model: Model | None) -> JsonObject:
    """A line of trajectories.jsonl."""
    item, trajectory = sampled.item, sampled.trajectory
    opening = methods.opening(item.method, model.style) if model else ""
    example = item.example
    measured = scores.score(example, trajectory, item.scorer, opening, attempts, sampled.tokens)
    row: JsonObject = {"suite": item.suite, "method": item.method, "scores": measured}
    row["answer"] = scores.scored_answer(trajectory, item.scorer, opening)
    if isinstance(example, RampExample):
        row["slots"] = scores.slot_scores(example, trajectory, item.scorer, opening)
    row |= to_json(trajectory) | {"opening": opening, "example": to_json(example)}
    row["tokens"] = [model.vocab.decode([i]) for i in trajectory.ids.tolist()] if model else []
    return row


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["suite"], row["method"], row["example_id"]


# ---- what makes a span hard


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
    read = [row for row in rows.Rows(workdir / TRAJECTORIES) if row.place[1] == "agent"]
    for suite in (s for s in loaded if s.is_ramp and "agent" in tools):
        own = [row for row in read if row.place[0] == suite.name]
        examples = [row.example for row in own if isinstance(row.example, RampExample)]
        retries = cfg.eval.retries
        ranked = difficulty.ranks(examples, tools["agent"], cfg.search, retries)
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


def main(cfg: EvalRun) -> None:
    """Evaluates, and prints the table from the first process."""
    found = run(cfg)
    if process_index() == 0:
        print(results.table(found))


if __name__ == "__main__":
    cli.run(main, EvalRun, None, read_model, read_defaults=agent_settings.read, resumes=True)
