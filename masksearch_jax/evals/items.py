"""Items of an evaluation: an example of a suite under a method, and those that cannot be run."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from masksearch_jax.core import chinese, retrieval
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.tools import Instructions
from masksearch_jax.core.types import Example, RampExample, has_answer
from masksearch_jax.data import methods, prompt
from masksearch_jax.evals import suites
from masksearch_jax.evals.fanoutqa import Lemmatizer
from masksearch_jax.evals.lost import Lost, check_share
from masksearch_jax.evals.retried_search import RetriedSearch
from masksearch_jax.evals.scores import Scorer
from masksearch_jax.evals.suites import Suite

_FOUND_BY_TITLE = 20  # passages among which those that repeat an article's facts are looked for
SOURCE_HIDDEN = "source_hidden"


class Item(NamedTuple):
    """An example of a suite under a method.

    number: its place in the file, and its stream of random numbers, whatever else is sampled.
    prompt_ids: without what rag retrieves; empty for an endpoint. hidden: the passage that its
    searches never show.
    """

    suite: str
    method: str
    number: int
    example: Example
    prompt_ids: np.ndarray
    hidden: str
    scorer: Scorer

    @property
    def name(self) -> tuple[str, str, str]:
        return self.suite, self.method, self.example.id


def methods_of(cfg: EvalConfig, suite: str) -> list[str]:
    """The methods of a suite; with its source hidden, RAMP is asked by those that search alone."""
    searching = ("rag", "agent")
    return [m for m in cfg.methods if m in searching or suite != SOURCE_HIDDEN]


def check_methods(cfg: EvalConfig) -> None:
    """Raises ConfigError for methods that there are not, or twice, and for what none is asked."""
    if not cfg.methods:
        raise ConfigError(
            f"config.eval.methods is empty; it must name some of {', '.join(methods.METHODS)}"
        )
    if twice := next((name for name in cfg.methods if cfg.methods.count(name) > 1), ""):
        raise ConfigError(
            f"config.eval.methods has {twice!r} twice: its items would count twice, and intervals "
            "be narrower than they are; give each method once"
        )
    for name in cfg.methods:
        if name not in methods.METHODS:
            raise ConfigError(f"config.eval.methods has {name!r}; {nearest(name, methods.METHODS)}")
    asked = ", ".join(cfg.methods)
    for spec in cfg.suites:
        if not methods_of(cfg, spec.partition("=")[0]):
            raise ConfigError(
                f"config.eval.methods is {asked!r}, by which {spec} is not asked; it needs rag or "
                "agent, which search"
            )
    is_ramp = any(suites.is_ramp(spec.partition("=")[0]) for spec in cfg.suites)
    if cfg.difficulty and not ("agent" in cfg.methods and is_ramp):
        raise ConfigError(
            "config.eval.difficulty is True, and no RAMP suite is asked by the method agent; it "
            f"needs both, and config.eval has the methods {asked!r} and the suites "
            f"{', '.join(cfg.suites)!r}"
        )
    for name in ("examples", "bootstrap"):
        if (value := getattr(cfg, name)) < 1:
            raise ConfigError(f"config.eval.{name} is {value}; it must be at least 1")


def chosen(suite: Suite, cfg: EvalRun, tool: SearchTool | None) -> list[int]:
    """Places of the examples that are asked, by every method alike.

    Of the suite source_hidden those whose facts other passages repeat, as `tool` finds them; all
    where not one is of that kind. Raises what the tool raises, after `eval.retries`.
    """
    wanted, order = suites.number_of(cfg.eval, suite.name), suites.in_order(suite, cfg.eval)
    taken: Iterable[int] = order
    if suite.name == SOURCE_HIDDEN and tool is not None:
        steady = RetriedSearch(tool, cfg.eval.retries)
        taken = (place for place in order if is_repeated(suite.examples[place], steady))
    return list(itertools.islice(taken, wanted)) or order[:wanted]


def is_repeated(example: Example, tool: SearchTool) -> bool:
    """Whether other passages that name the article of a RAMP example tell all that is masked.

    Looked for among those that a search for its title finds.
    """
    assert isinstance(example, RampExample)
    (found,) = tool.search([example.title], _FOUND_BY_TITLE)
    texts = [f"{p.title}\n{p.text}" for p in found if p.id != example.passage_id]
    texts = [text for text in texts if chinese.is_within(example.title, text)]
    return all(any(chinese.is_within(s.text, text) for text in texts) for s in example.spans)


def items_of(
    cfg: EvalRun,
    places: Sequence[tuple[Suite, Sequence[int]]],
    vocab: Vocabulary | None,
    lacks_room: Callable[[np.ndarray], str],
    lemmatize: Lemmatizer = str,
    tools: Sequence[Instructions] = prompt.SEARCH_ALONE,
) -> tuple[list[Item], list[Lost]]:
    """The items by method and suite, and those that cannot be run.

    places: of each suite the examples that are asked. vocab: None for an endpoint, whose prompts
    are texts. lacks_room: why a prompt cannot be sampled, "" where it can. tools: of the agent.
    """
    items: list[Item] = []
    lost: list[Lost] = []
    for suite, numbers in places:
        for method in methods_of(cfg.eval, suite.name):
            made = list(_items(cfg, suite, method, numbers, vocab, lemmatize, tools))
            bad = dict(_bad(made, lacks_room if vocab else lambda ids: ""))
            lost += [Lost(*item.name, *bad[item.number]) for item in made if item.number in bad]
            items += [item for item in made if item.number not in bad]
    total = Counter((i.suite, i.method) for i in items)
    total += Counter((i.suite, i.method) for i in lost)
    check_share(lost, total, "cannot be run", cfg.eval.max_bad_fraction, "max_bad_fraction")
    return sorted(items, key=lambda i: cfg.eval.methods.index(i.method)), lost


def _items(
    cfg: EvalRun,
    suite: Suite,
    method: str,
    numbers: Sequence[int],
    vocab: Vocabulary | None,
    lemmatize: Lemmatizer,
    tools: Sequence[Instructions],
) -> Iterator[Item]:
    hides = cfg.search.exclude_source or suite.name == SOURCE_HIDDEN
    nothing = np.zeros(0, np.int32)
    ends = tuple(filter(None, (vocab.decode([i]) for i in vocab.eos_ids))) if vocab else ()
    for number in numbers:
        example = suite.examples[number]
        ids = nothing
        if vocab is not None:
            ids = methods.prompt_ids(method, example, cfg.prompt.style, vocab, tools=tools)
        hidden = retrieval.source_of(example) if hides else ""
        whole = cfg.eval.whole_replies and method in methods.SINGLE_TURN
        scorer = Scorer(suite.rules(example), lemmatize, whole, ends)
        yield Item(suite.name, method, number, example, ids, hidden, scorer)


def _bad(
    items: Sequence[Item], lacks_room: Callable[[np.ndarray], str]
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Place of each example that cannot be run → reason and detail."""
    seen: set[str] = set()
    for item in items:
        if not has_answer(item.example):
            yield item.number, ("no_known_answer", "")
        elif why := lacks_room(item.prompt_ids):
            yield item.number, ("prompt_too_long", why)
        elif item.example.id in seen:
            yield item.number, ("id_twice", "another item before has this id")
        seen.add(item.example.id)
