"""From passages to masked examples in parts: any number of processes, resumable, in flat memory.

1. survey: what of the passages is clean prose, and no duplicate or leak; in blocks, in order.
2. partition: the clean ones into parts, by a hash of the title, so that each is a sample.
3. mask: each part on its own; a part that is done is not done again.
The work on one paragraph is in pure functions: `survey`, spans, `ramp.mask_paragraph`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from masksearch_jax.core import files, stamp
from masksearch_jax.core.errors import UserError
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.schema import key
from masksearch_jax.core.types import SPLITS, Passage, RampExample, from_json
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.corpus.tally import Tally
from masksearch_jax.ramp import leakage, masking, spans
from masksearch_jax.ramp.examples import (
    BEYOND,
    RampStats,
    article_of,
    build_examples,
    check_settings,
)
from masksearch_jax.ramp.gazetteer import Gazetteer, Learner
from masksearch_jax.ramp.llm_spans import FAILED
from masksearch_jax.ramp.support import SupportedExtractor
from masksearch_jax.ramp.survey import PassageRules, mapper, mended, survey_all


class FailedError(UserError):
    """A model that names spans was not to be had for more passages than allowed."""


@dataclasses.dataclass(frozen=True)
class WorkConfig:
    """How a build is divided."""

    workers: int = key(1, "Processes.", harmless=True, least=1)
    examples: int = key(
        0,
        "Of each number of masks, to read in FOLDER/examples.html; 0: no page.",
        harmless=True,
        least=0,
    )
    part: int = key(
        5000,
        (
            "Passages masked together, done again if stopped. Decides examples: each part is "
            "balanced over mask counts by itself, and so waits for no other."
        ),
        least=1,
    )


_EXTRACTORS: dict[PassageRules, spans.Extractor] = {}  # of this process: loading one takes time


def extractor_of(rules: PassageRules, namer: Any = None) -> spans.Extractor:
    """The extractor that the rules name. namer: of an `LLMExtractor`."""
    if rules.ramp.extractor == "spacy":
        from masksearch_jax.ramp.spacy_spans import SpacyExtractor

        return SpacyExtractor(rules.ramp.spacy_model)
    if rules.ramp.extractor == "llm":
        from masksearch_jax.ramp.llm_spans import LLMExtractor

        return LLMExtractor(namer)
    known = Gazetteer.load(rules.gazetteer) if rules.gazetteer else None
    return spans.RulesExtractor(rules.language, known)


# ---- parts


def partition(
    passages: Path, work: Path, kept: np.ndarray, rules: PassageRules, size: int
) -> list[Path]:
    """Writes the kept passages into files of about `size`, whole articles each, by title."""
    count = max(1, -(-int(kept.sum()) // size))
    paths = [work / f"part-{i:05d}.jsonl" for i in range(count)]
    done = work / "parts.json"
    if stamp.read(done, str(count)) is not None:
        return paths
    for stale in work.glob("part-*"):  # of another size, and what was made of it
        stale.unlink()
    with contextlib.ExitStack() as stack:
        out = [stack.enter_context(files.writing(path)) for path in paths]
        for row, passage in enumerate(read_passages(passages, max_bad_fraction=0.0)):
            if kept[row]:
                value = dataclasses.asdict(mended(passage, rules))
                digest = hashlib.sha256(article_of(passage).encode()).digest()
                part = int.from_bytes(digest[8:16]) % count
                out[part].write(json.dumps(value, ensure_ascii=False) + "\n")
    stamp.write(done, {}, str(count))
    return paths


def forget_masked(folder: Path) -> None:
    """Has the next `build` mask all parts again."""
    for done in (folder / "work").glob("part-*.json"):
        done.unlink()


class _Part(NamedTuple):
    path: Path
    rules: PassageRules
    most: int | None  # examples; None: all


def _mask_part(task: _Part) -> RampStats:
    """Writes the examples of a part, in a process of its own perhaps; its counts."""
    return mask_part(task, None, None)


def mask_part(
    task: _Part, extractor: spans.Extractor | None, scorer: masking.Scorer | None
) -> RampStats:
    """Writes PART.SPLIT of each split, then PART.json, its counts; a part that has them is done.

    One in which a model did not answer is not: its passages are asked about again.
    """
    done = task.path.with_suffix(".json")
    if (counts := stamp.read(done, str(task.most))) is not None:
        return RampStats.from_json(counts)
    if extractor is None:
        if task.rules not in _EXTRACTORS:
            _EXTRACTORS[task.rules] = extractor_of(task.rules)
        extractor = _EXTRACTORS[task.rules]
    passages = list(_read_part(task.path))
    if task.most == 0:
        made, stats = {split: [] for split in SPLITS}, _none_of(passages)
    else:
        cfg = dataclasses.replace(task.rules.ramp, max_examples=task.most or 0)
        made, stats = build_examples(
            passages,
            cfg,
            _quiet,
            language=task.rules.language,
            extractor=extractor,
            scorer=scorer,
            has_rewordings=task.rules.has_rewordings,
        )
    done.unlink(missing_ok=True)  # of fewer examples
    for split in SPLITS:
        write_jsonl(task.path.with_suffix(f".{split}"), made[split])
    if FAILED not in stats.dropped:
        stamp.write(done, dataclasses.asdict(stats), str(task.most))
    return stats


def _none_of(passages: Sequence[Passage]) -> RampStats:
    """The counts of a part that is to give no example."""
    if not passages:
        return RampStats()
    return RampStats(
        len(passages), dropped={BEYOND: len(passages)}, example={BEYOND: passages[0].id}
    )


def _read_part(path: Path) -> Iterable[Passage]:
    return read_passages(path, max_bad_fraction=0.0) if path.stat().st_size else ()


def _quiet(line: str) -> None:
    pass


def _quotas(paths: list[Path], most: int) -> Sequence[int | None]:
    """The examples that each part may give, in proportion to its size, `most` in all.

    None where `most` is 0: all.
    """
    if not most:
        return [None] * len(paths)
    sizes = np.cumsum([0, *(p.stat().st_size for p in paths)])
    edges = np.round(sizes / max(sizes[-1], 1) * most).astype(int)
    return np.diff(edges).tolist()


def _raised(tasks: list[_Part], made: list[RampStats], most: int) -> list[_Part]:
    """The parts with what others lack of `most` examples asked of those that gave all asked for."""
    missing = most - sum(map(_examples_in, made))
    able = [i for i, stats in enumerate(made) if _examples_in(stats) == tasks[i].most]
    if missing <= 0 or any(FAILED in stats.dropped for stats in made):  # asked about again
        return tasks
    raised = list(tasks)
    for place, i in enumerate(able):
        more = missing // len(able) + (place < missing % len(able))
        raised[i] = tasks[i]._replace(most=(tasks[i].most or 0) + more)
    return raised


def _examples_in(stats: RampStats) -> int:
    return sum(n for by_k in stats.examples.values() for n in by_k.values())


# ---- the whole


def build(
    passages: Path,
    folder: Path,
    rules: PassageRules,
    work_cfg: WorkConfig,
    *,
    namer: Any = None,
    scorer: masking.Scorer | None = None,
    search: SearchTool | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    max_failed: float = 0.0,
) -> tuple[Tally, RampStats]:
    """Writes FOLDER/ramp/SPLIT.jsonl from a file of passages; what each step left out.

    The work so far is in FOLDER/work: the same call goes on from there, and removes it in the end
    (the caller sees to it that it belongs to the same inputs). namer, scorer: see `extractor_of`
    and `ramp.build_examples`; search: for spans that have another passage (`support`). With any of
    them all parts are masked in this process. Raises ShareError when more than
    `rules.clean.max_drop` of the passages are left out, FailedError when `namer` did not answer for
    more than `max_failed` of those to mask, ValueError as they do.
    """
    check_settings(rules.ramp)
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    kept, tally = survey_all(passages, work, rules, work_cfg.workers)
    tally.check_share("passages to mask", rules.clean.max_drop, "config.clean.max_drop")
    paths = partition(passages, work, kept, rules, work_cfg.part)
    most = rules.ramp.max_examples
    quotas = _quotas(paths, most)
    tasks = [_Part(path, rules, quota) for path, quota in zip(paths, quotas, strict=True)]
    own = bool(namer or scorer or search)
    extractor: spans.Extractor | None = extractor_of(rules, namer) if own else None
    if extractor and search:
        extractor = SupportedExtractor(
            extractor,
            search,
            is_linking=rules.ramp.linked,
            has_rewordings=rules.has_rewordings,
        )
    with mapper(1 if own or len(tasks) < 2 else work_cfg.workers) as each:
        run = (lambda t: mask_part(t, extractor, scorer)) if own else _mask_part
        made = _masked(tasks, lambda tasks: each(run, tasks), progress)
        while (raised := _raised(tasks, made, most)) != tasks:
            tasks = raised
            made = _masked(tasks, lambda tasks: each(run, tasks), progress)
    stats = sum(made, RampStats())
    _check_answered(stats, extractor, max_failed)
    for split in SPLITS:
        _join([t.path.with_suffix(f".{split}") for t in tasks], folder / "ramp" / f"{split}.jsonl")
    return tally, stats


def _masked(
    tasks: list[_Part],
    each: Callable[[list[_Part]], Iterable[RampStats]],
    progress: Callable[[int, int], None],
) -> list[RampStats]:
    """What came of each part, in order; `progress` hears of one after another."""
    made = []
    for stats in each(tasks):
        made.append(stats)
        progress(len(made), len(tasks))
    return made


def _check_answered(stats: RampStats, extractor: Any, max_failed: float) -> None:
    """Raises FailedError where the model that names spans failed for more than its share."""
    failed = stats.dropped.get(FAILED, 0)
    if failed and (not stats.used or failed > max_failed * stats.searched):
        raise FailedError(
            f"the model that names spans gave no reply for {failed:,} of {stats.searched:,} "
            f"passages, more than config.max_failed={max_failed:g} allows; the first: "
            f"{extractor.first_error}; once this is mended, the same command asks about these "
            "again and no others"
        )


def learn_gazetteer(passages: Path, anchors: Iterable[str], rules: PassageRules, path: Path) -> int:
    """Writes the gazetteer of a corpus; the number of its names."""
    if not path.is_file():
        learner = Learner(rules.language, rules.ramp.gazetteer)
        for passage in read_passages(passages, max_bad_fraction=0.0):
            learner.add(passage)
        for anchor in anchors:
            learner.add_link(anchor)
        learner.finish().save(path)
    return len(json.loads(path.read_text(encoding="utf-8"))["types"])


def examples(folder: Path) -> Iterator[RampExample]:
    """The examples of a build, split by split, one at a time."""
    for split in SPLITS:
        with open(folder / "ramp" / f"{split}.jsonl", encoding="utf-8") as file:
            yield from (from_json(RampExample, json.loads(line)) for line in file)


def leaks(folder: Path, evaluation: leakage.Evaluation) -> Iterator[dict[str, str]]:
    """The examples of a build that overlap an evaluation set, and why."""
    for split in SPLITS:
        with open(folder / "ramp" / f"{split}.jsonl", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                passage = Passage(row["passage_id"], row["title"], row["paragraph"])
                if reason := evaluation.overlap(passage):
                    yield {"id": row["id"], "split": split, "reason": reason}


def _join(parts: list[Path], path: Path) -> None:
    """One file of many, whole or not at all."""
    with files.writing(path, "wb") as out:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
