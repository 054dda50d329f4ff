"""Suites: which examples an evaluation asks, the same ones for every method and checkpoint.

A suite is one of ours by its name (`ramp`, `questions`, `source_hidden`, `statements`) or is
NAME=PATH, a file of questions in any form that `ramp.question_files` reads. The name tells by whose
rules answers are scored (`evals.metrics.RULES`); of a name that no rules are known for, the data
set of each row. `eval.aliases` adds other names of answers to those that are accepted.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from masksearch_jax.core import chinese, scoring, stamp
from masksearch_jax.core.errors import ConfigError, UserError, nearest
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.core.jsonl import RecordError, read_jsonl
from masksearch_jax.core.scoring import Rules
from masksearch_jax.core.types import STATEMENTS, Example, QAExample, RampExample
from masksearch_jax.evals import metrics
from masksearch_jax.evals.aliases import read_aliases
from masksearch_jax.ramp.question_files import read_questions
from masksearch_jax.runtime.process import process_index

# Ours → its file in the folder that build_ramp wrote. Those of RAMP examples are also named so with
# a file of these.
FILES = {
    "ramp": "ramp/heldout.jsonl",
    "questions": "questions/heldout.jsonl",
    "source_hidden": "ramp/heldout.jsonl",
    STATEMENTS: f"{STATEMENTS}/heldout.jsonl",
}
_OF_RAMP = ("ramp", "source_hidden")
_NOT_BUILT = "the folder has no counts.json, which build_ramp writes"


def content(data: str) -> str:
    """What tells the suites of a folder that build_ramp wrote from others; "" where it has none."""
    found = {name: stamp.content(os.path.join(data, name)) for name in sorted(set(FILES.values()))}
    return stamp.hash_of(found) if any(found.values()) else ""


@dataclasses.dataclass(frozen=True)
class Suite:
    """A suite's file and what it holds.

    examples: all of them, in the file's order. left_out: rows that are none, by reason. renamed:
    rows whose answer has other names by `eval.aliases`.
    """

    name: str
    path: Path
    sha256: str
    examples: tuple[Example, ...]
    left_out: Counter[str]
    is_chinese: bool
    renamed: int = 0

    @property
    def is_ramp(self) -> bool:
        return is_ramp(self.name)

    @property
    def metric(self) -> str:
        """Its measure in tables: the paper's, token recall; of statements how many are right."""
        if self.name == STATEMENTS:
            return "em"
        return "span_recall" if self.is_ramp else "recall"

    def rules_name(self, example: Example) -> str:
        """Whose rules an example is scored by: ours (RAMP), or a key of `metrics.RULES`."""
        if isinstance(example, RampExample):
            return "ours"
        own = metrics.rules_name(self.name, default="")
        return own or metrics.rules_name(example.dataset)

    def rules(self, example: Example) -> Rules:
        """In the language of the suite; of a masked paragraph in its own, as in training."""
        if isinstance(example, RampExample):
            return scoring.rules_of(example)
        return metrics.RULES[self.rules_name(example)]._replace(is_chinese=self.is_chinese)

    @property
    def overridden(self) -> str:
        """Whose rules the suite's name sets in place of others that its questions have; "" none."""
        used = metrics.rules_name(self.name, default="")
        sets = Counter(e.dataset for e in self.examples if isinstance(e, QAExample))
        others = {name: metrics.rules_name(name, default="") for name in sets}
        apart = {
            name: own
            for name, own in others.items()
            if used and own and metrics.RULES[own] != metrics.RULES[used]
        }
        if not apart:
            return ""
        number = sum(sets[name] for name in apart)
        return (
            f"the suite {self.name} is scored by the rules of {used}, after its name; {number} of "
            f"{len(self.examples)} questions are of {', '.join(sorted(apart))}, whose own rules "
            f"are those of {', '.join(sorted(set(apart.values())))}"
        )

    @property
    def unruled(self) -> str:
        """Whose rules hold where none are known of questions of a user's file; "" where all are."""
        if self.name in FILES or metrics.rules_name(self.name, default=""):
            return ""
        sets = Counter(e.dataset for e in self.examples if isinstance(e, QAExample))
        unknown = [name for name in sorted(sets) if not metrics.rules_name(name, default="")]
        if not unknown:
            return ""
        return (
            f"the suite {self.name} is scored by the rules of {metrics.rules_name(unknown[0])}: "
            f"none are known of its name, nor of {', '.join(unknown)}, which "
            f"{sum(sets[name] for name in unknown)} of {len(self.examples)} questions are of; "
            f"known are those of {', '.join(metrics.RULES)}"
        )


def is_ramp(name: str) -> bool:
    return name in _OF_RAMP


def load(cfg: EvalConfig, data: str) -> list[Suite]:
    """The suites of a config, with all that their files hold.

    Raises ConfigError as `paths` does, UserError for a file without items and for a suite of which
    build_ramp wrote no file, and as the readers do.
    """
    files = paths(cfg, data)
    for name, file in files.items():
        if name in cfg.suites and Path(data).is_dir() and not file.exists():
            how = ", which it makes with config.ramp.statements=True" if name == STATEMENTS else ""
            built = (Path(data) / "counts.json").exists()
            why = f"build_ramp held out no such example{how}" if built else _NOT_BUILT
            others = [n for n in cfg.suites if n != name and files[n].exists()] or ["NAME=PATH"]
            raise UserError(
                f"{file} is not there, which config.eval.suites asks for by {name!r}: {why} "
                f"({Path(data) / 'counts.json'}); leave the suite out, as in "
                f"--config.eval.suites={','.join(others)}, or name a file of yours, as in NAME=PATH"
            )
    aliases = read_aliases(cfg.aliases) if cfg.aliases else {}
    loaded = [_read(name, file, cfg.max_bad_fraction, aliases) for name, file in files.items()]
    if aliases and not any(suite.renamed for suite in loaded):
        raise ConfigError(
            f"config.eval.aliases names {cfg.aliases}, which has no name of an answer of "
            f"{', '.join(files)}: it needs questions with the `answer_id` of 2WikiMultihopQA's "
            "data_ids; leave config.eval.aliases empty"
        )
    return loaded


def paths(cfg: EvalConfig, data: str) -> dict[str, Path]:
    """The file of each suite of a config.

    data: the folder that build_ramp wrote, of those of ours. Raises ConfigError where there is
    none, for an unknown or doubled name, and for `suite_examples` that are not of these.
    """
    if not cfg.suites:
        raise ConfigError(
            f"config.eval.suites is empty; it must name some of {', '.join(FILES)}, or files of "
            "questions as NAME=PATH"
        )
    files: dict[str, Path] = {}
    for spec in cfg.suites:
        name, is_given, path = spec.partition("=")
        if not is_given and name not in FILES:
            raise ConfigError(
                f"config.eval.suites has {name!r}; {nearest(name, FILES)}; a file of questions is "
                "NAME=PATH"
            )
        if not is_given and not data.strip():
            raise ConfigError(
                "config.data is empty; it must name the folder that build_ramp wrote, which the "
                f"suite {name} is in"
            )
        if name in files:
            raise ConfigError(f"config.eval.suites has {name!r} twice; give each suite a name")
        if not name or (is_given and not path):
            raise ConfigError(f"config.eval.suites has {spec!r}, which is not NAME=PATH")
        files[name] = Path(path) if is_given else Path(data) / FILES[name]
    for name in files:
        number_of(cfg, name)  # raises for keys that name no suite
    return files


def _read(
    name: str, path: Path, max_bad_fraction: float, aliases: Mapping[str, Sequence[str]]
) -> Suite:
    left_out: Counter[str] = Counter()
    renamed = 0

    def names_of(entity: str) -> Sequence[str]:
        nonlocal renamed
        renamed += bool(aliases.get(entity))
        return aliases.get(entity, ())

    examples: Sequence[Example]
    if name in _OF_RAMP:
        try:
            examples = read_jsonl(path, RampExample)
        except RecordError as error:
            raise ConfigError(
                f"config.eval.suites has {name}={path}, which is no file of RAMP examples "
                f"({error}); a suite named {' or '.join(_OF_RAMP)} must be one that build_ramp "
                f"wrote, such as DATA/{FILES[name]}; a file of questions takes another name"
            ) from error
    else:
        examples, left_out = read_questions(
            path, dataset=name, names_of=names_of, max_bad_fraction=max_bad_fraction
        )
    if not examples:
        raise UserError(f"{path} holds no item of config.eval.suites {name!r}")
    written = [e.paragraph if isinstance(e, RampExample) else e.question for e in examples]
    chinese_ones = sum(map(chinese.is_chinese, written))
    suite = Suite(
        name=name,
        path=path,
        sha256=stamp.content(path),
        examples=tuple(examples),
        left_out=left_out,
        is_chinese=2 * chinese_ones > len(examples),
        renamed=renamed,
    )
    for said in filter(None, (suite.overridden, suite.unruled)):
        if process_index() == 0:
            print(f"  {said}", file=sys.stderr, flush=True)
    return suite


def number_of(cfg: EvalConfig, name: str) -> int:
    """Items of a suite. Raises ConfigError for `suite_examples` that are not NAME=NUMBER."""
    own: dict[str, int] = {}
    for spec in cfg.suite_examples:
        suite, _, number = spec.partition("=")
        if not number.isdecimal() or int(number) < 1:
            raise ConfigError(
                f"config.eval.suite_examples has {spec!r}; it must be NAME=NUMBER, as in ramp=200"
            )
        own[suite] = int(number)
    names = [spec.partition("=")[0] for spec in cfg.suites]
    if unknown := [suite for suite in own if suite not in names]:
        raise ConfigError(
            f"config.eval.suite_examples has {unknown[0]!r}; {nearest(unknown[0], names)}"
        )
    return own.get(name, cfg.examples)


def in_order(suite: Suite, cfg: EvalConfig) -> list[int]:
    """All places of a suite's examples, in the order in which as many as wanted are taken.

    The order is random, by `eval.seed`, and stratified by type: the first n are of each type in its
    share of the file (`shares`), or of all types alike, as long as each lasts (`even`). So fewer
    items are among more items.
    """
    by_type: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(suite.examples):
        by_type[type_of(example)].append(place)
    ranked: list[tuple[float, str, int]] = []
    for name, places in sorted(by_type.items()):
        random.Random(f"{cfg.seed}/{suite.name}/{name}").shuffle(places)
        size = len(places) if cfg.strata == "shares" else 1
        ranked += [((i + 0.5) / size, name, place) for i, place in enumerate(places)]
    return [place for _, _, place in sorted(ranked, key=lambda r: r[:2])]


def type_of(example: Example) -> str:
    """What items are stratified by: the number of masks, k1 to k4, or the question's type."""
    return f"k{example.k}" if isinstance(example, RampExample) else example.type


def labels(example: Example, status: str) -> Mapping[str, str]:
    """What results are broken down by → the item's label, where it has one."""
    found = {"status": status}
    if isinstance(example, RampExample):
        found["masks"] = f"k{example.k}"
    elif isinstance(example, QAExample):
        hops = str(example.hops) if example.hops else ""
        found |= {"dataset": example.dataset, "type": example.type, "hops": hops}
    return {by: label for by, label in found.items() if label}
