"""Turn a corpus of any size into the TFDS dataset `ramp/k1`, `ramp/k2`, … through Apache Beam.

    python -m masksearch_jax.build_dataset --config=configs/build_dataset.py \\
        --config.corpus='wiki/*.jsonl.gz' --config.folder=DATA \\
        --config.beam.options='--direct_num_workers=8 --direct_running_mode=multi_processing'

Writes DATA/ramp/kN/VERSION (splits train, rl, heldout by article; ArrayRecord, which is read by
number, and TFRecord, which `tfds.load` reads), counts.json and, last, SHA256SUMS beside them: with
it the dataset is whole, and the same command changes nothing. A stopped build keeps its examples
once all are made, and every finished kN.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from etils import epath

from masksearch_jax.core import stamp
from masksearch_jax.core.corpus_config import ATLAS_KEYS, RampConfig
from masksearch_jax.core.errors import ConfigError, UserError, check_given, nearest
from masksearch_jax.core.files import write_text
from masksearch_jax.core.schema import describe_keys, key, required, section, share
from masksearch_jax.corpus.tally import Tally
from masksearch_jax.ramp import build, examples, leakage, tfds_records
from masksearch_jax.ramp.survey import CleanConfig, PassageRules
from masksearch_jax.runtime import cli, run_record
from masksearch_jax.runtime.process_lock import ProcessLock
from masksearch_jax.runtime.progress import Progress

FORMAT = 5  # of the dataset; one of another format is built again
COUNTS = "counts.json"
# What `build_ramp` does and paragraphs on their own do not allow: the values that remain, and why
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "ramp.max_examples": ((0,), "any part of the dataset can be read, as train[:1000]"),
    "ramp.extractor": (("rules", "spacy"), "workers have no language model"),
    "ramp.strategy": (("random", "weighted"), "workers have no model to ask"),
    "ramp.supported": ((False,), "workers have no index to search"),
    "ramp.linked": ((False,), "workers have no index to search"),
    "ramp.gazetteer": ((0,), "names are learned from passages in order, as build_ramp reads them"),
    "clean.duplicates": ((0,), "near duplicates are found by build_ramp, in one process"),
    "clean.leakage": (("keep", "drop"), "examples are not tagged"),
}


@dataclasses.dataclass(frozen=True)
class BeamConfig:
    """What runs the pipeline."""

    runner: str = key(
        "FnApiRunner",
        "Of Beam: FnApiRunner (this machine), FlinkRunner, SparkRunner, DataflowRunner, …",
    )
    options: str = key("", "Flags of Beam and of the runner, as on a command line.")


@dataclasses.dataclass(frozen=True)
class BuildDatasetRun:
    """`build_dataset`: a corpus to a TFDS dataset of RAMP examples."""

    folder: str = required("Folder to write, the dataset's data_dir.")
    corpus: str = key(
        "",
        ("Files or patterns, separated by commas: JSONL of id, title, text (.gz allowed); needed."),
    )
    language: Literal["en", "zh"] = key("en", "Of the text.")
    articles: bool = key(
        False, "Lines are whole articles, which are cut into passages, not passages."
    )
    passage_words: int = key(100, "Words of the passages that articles are cut into.", least=1)
    max_bad_fraction: float = share(0.01, "Share of malformed lines tolerated.")
    tfrecord: bool = key(
        True,
        (
            "Also as TFRecord, for `tfds.load`, at twice the bytes. Without it `tfds.load` fails, "
            "which has no reader for ArrayRecord; `tfds.data_source`, grain and `tasks.register` "
            "need nothing else."
        ),
    )
    clean: CleanConfig = section(CleanConfig)
    ramp: RampConfig = section(RampConfig)
    beam: BeamConfig = section(BeamConfig)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        for name in (*ATLAS_KEYS, "statements"):
            yield f"ramp.{name}", "it is of the atlas, which build_ramp reads"


class DropError(UserError):
    """More was left out than the config allows."""


def run(cfg: BuildDatasetRun) -> dict[str, Any]:
    """Builds or resumes the dataset; {"corpus", "clean", "ramp"}, each with its counts.

    Raises ConfigError for a config that no dataset can be made of, DropError for too many malformed
    lines, or when no training example comes out, ShareError when too much of the rest is no prose,
    BeingWrittenError where another process writes it.
    """
    check_config(cfg)
    _check_machine(cfg)
    with _hushed():
        files = files_of(cfg.corpus)
    root, made_from = epath.Path(cfg.folder) / tfds_records.NAME, _made_from(cfg, files)
    if (finished := _finished(root, made_from)) is not None:
        _remove_examples(root)
        return finished
    with ProcessLock(root):
        return _build(cfg, files, root, made_from)


def _build(
    cfg: BuildDatasetRun, files: list[str], root: epath.Path, made_from: str
) -> dict[str, Any]:
    rules = rules_of(cfg)
    _begin(cfg, root, made_from)
    for name in (tfds_records.CHECKSUMS, COUNTS):
        (root / name).unlink(missing_ok=True)
    work = root / f".examples-{made_from}"
    _remove_examples(root, but=work.name)
    with Progress("RAMP dataset", 1 + cfg.ramp.max_masks) as progress, _hushed():
        progress.update(0, step="examples")
        counts = stamp.read(work / COUNTS) or extract(cfg, rules, files, work)
        wanted = [k for k in range(1, cfg.ramp.max_masks + 1) if _splits_of(counts, k)]
        for done, k in enumerate(wanted, 1):
            progress.update(done, step=f"k{k}", examples=counts["ramp"]["out"])
            _write(cfg, k, counts, work, made_from)
        progress.update(progress.total, step="checksums")
        for stale in root.glob("k*"):
            if stale.name not in {f"k{k}" for k in wanted}:
                stale.rmtree()
        _finish(root, counts, made_from)
        _remove_examples(root)
    return counts


def _remove_examples(root: epath.Path, but: str = "") -> None:
    """Removes what the dataset was written from, of other inputs too."""
    for folder in root.glob(".examples-*"):
        if folder.name != but:
            folder.rmtree()


def _begin(cfg: BuildDatasetRun, root: epath.Path, made_from: str) -> None:
    """Writes the dataset's record; what was made of other inputs is told before it is replaced."""
    stamps = root / COUNTS, *root.glob("k*/*/metadata.json")
    has_others = stamp.has_others(stamps, made_from)
    run_record.begin(
        root,
        cfg,
        replaces="the dataset of other settings is" if has_others else "",
        otherwise="its inputs or the program have changed",
        harmless={"folder", *(f"beam.{k.name}" for k in describe_keys(BeamConfig))},
    )


def check_config(cfg: BuildDatasetRun) -> None:
    """Raises ConfigError for what no corpus can mend: keys that are empty, and keys that clash."""
    check_given(cfg, folder="the folder to write", corpus="files to read, or patterns of them")
    for dotted, (allowed, reason) in _ONLY.items():
        part, _, name = dotted.partition(".")
        value = getattr(getattr(cfg, part), name)
        if value not in allowed:
            choices = " or ".join(map(str, allowed))
            raise ConfigError(f"config.{dotted} is {value!r}; it must be {choices} here: {reason}")
    if cfg.clean.leakage == "drop" and not cfg.clean.evaluation:
        raise ConfigError("config.clean.leakage is 'drop' and config.clean.evaluation is empty")
    examples.check_settings(cfg.ramp)


def _check_machine(cfg: BuildDatasetRun) -> None:
    """Raises ConfigError for a folder that holds other examples, and for what is not installed."""
    if stray := next((epath.Path(cfg.folder) / tfds_records.NAME).glob("*.jsonl"), None):
        raise ConfigError(f"config.folder holds RAMP examples as JSONL already: {stray}")
    if importlib.util.find_spec("apache_beam") is None:
        raise ConfigError("Apache Beam is not installed; pip install 'masksearch_jax[beam]'")
    if cfg.ramp.extractor == "spacy":
        rules = PassageRules(cfg.clean, cfg.ramp, cfg.language)
        build.extractor_of(rules)  # or says what is missing
    _options(cfg.beam)  # or says which flag Beam does not know


def rules_of(cfg: BuildDatasetRun) -> PassageRules:
    """What is done to passages.

    Raises ConfigError where gold passages are known by id alone, and what reading the sets raises.
    """
    clean = cfg.clean
    evaluation = None
    if clean.leakage == "drop":
        evaluation = leakage.read(clean.evaluation, clean.evaluation_passages, clean.ngram)
        if evaluation.unresolved:
            path, ids = evaluation.unresolved[0]
            raise ConfigError(
                f"config.clean.evaluation has {path}, which names {len(ids):,} gold passages by id "
                f"alone, such as {min(ids)!r}; config.clean.evaluation_passages must name the file "
                "that holds them here: a corpus is read in pieces"
            )
    return PassageRules(clean, cfg.ramp, cfg.language, evaluation)


def files_of(patterns: str) -> list[str]:
    """Every file that the patterns match, sorted. Raises ConfigError for one that matches none."""
    from apache_beam.io.filesystems import FileSystems

    found: set[str] = set()
    for pattern in map(str.strip, patterns.split(",")):
        matched = [m.path for m in FileSystems.match([pattern])[0].metadata_list]
        if not matched:
            raise ConfigError(f"config.corpus: no file matches {pattern!r}")
        if folder := next(filter(os.path.isdir, matched), None):
            raise ConfigError(
                f"config.corpus: {folder!r} is a folder; it must name files, such as "
                f"'{folder}/*.jsonl', which hold JSONL of id, title, text (.gz allowed)"
            )
        found.update(matched)
    return sorted(found)


def _made_from(cfg: BuildDatasetRun, files: list[str]) -> str:
    """A hash of all that decides the examples: settings, the corpus's files, evaluation sets."""
    settings: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(cfg)}
    for name in ("folder", "corpus", "beam"):  # decide nothing
        del settings[name]
    contents = sorted(map(stamp.content, files))
    if cfg.clean.leakage != "keep":
        kept_out = (*cfg.clean.evaluation, cfg.clean.evaluation_passages)
        contents += [stamp.content(file) for file in kept_out if file]
    return stamp.hash_of([settings, contents])


def _finished(root: epath.Path, made_from: str) -> dict[str, Any] | None:
    """The counts of a whole dataset made from these inputs, None where there is work to do."""
    if not (root / tfds_records.CHECKSUMS).exists():
        return None
    return stamp.read(root / COUNTS, made_from, _files(root))


def _files(root: epath.Path) -> list[str]:
    """The files of the dataset, as paths in `root`."""
    return [file.relative_to(root).as_posix() for file in sorted(root.glob("k*/*/*"))]


def _finish(root: epath.Path, counts: dict[str, Any], made_from: str) -> None:
    """Writes the counts and, last, the checksums in the format of `sha256sum`."""
    names = _files(root)
    stamp.write(root / COUNTS, counts, made_from, names)
    sums = "".join(f"{stamp.content(root / name)}  {name}\n" for name in names)
    write_text(root / tfds_records.CHECKSUMS, sums)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps back the notes and warnings that libraries log; their errors come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _options(cfg: BeamConfig) -> Any:
    """Beam's options. Raises ConfigError for a flag that Beam does not know."""
    from apache_beam.options.pipeline_options import PipelineOptions

    given = shlex.split(cfg.options)
    known = PipelineOptions([]).get_all_options()
    for flag in PipelineOptions(given).get_all_options(retain_unknown_options=True):
        if flag not in known:
            near = nearest(flag, known, prefix="--")
            raise ConfigError(f"config.beam.options: Beam has no flag --{flag}; {near}")
    return PipelineOptions(["--default_sdk_harness_log_level=ERROR", *given])


def extract(
    cfg: BuildDatasetRun, rules: PassageRules, files: list[str], work: epath.Path
) -> dict[str, Any]:
    """Makes all examples as JSON lines under `work`; their counts, which are written there last."""
    import apache_beam as beam

    from masksearch_jax.ramp.beam import counts_by_step, extract, read_dropped

    if work.exists():
        work.rmtree()
    work.mkdir(parents=True)
    pipeline = beam.Pipeline(cfg.beam.runner, _options(cfg.beam))
    words = cfg.passage_words if cfg.articles else 0
    extract(pipeline, files, rules, str(work), words)
    result = pipeline.run()
    result.wait_until_finish()
    found = {
        (c.key.metric.namespace, c.key.metric.name): c.result
        for c in result.metrics().query()["counters"]
    }
    counts = counts_by_step(found, read_dropped(work))
    _check_drops(cfg, counts)
    stamp.write(work / COUNTS, counts)
    return counts


def _check_drops(cfg: BuildDatasetRun, counts: dict[str, Any]) -> None:
    corpus, clean, made = counts["corpus"], counts["clean"], counts["ramp"]
    lost = sum(corpus["dropped"].values())
    if lost > cfg.max_bad_fraction * corpus["in"]:
        raise DropError(
            f"{lost:,} of {corpus['in']:,} lines are malformed, more than config.max_bad_fraction="
            f"{cfg.max_bad_fraction:g} allows: {corpus['dropped']}, such as {corpus['such_as']}"
        )
    such = {reason: names[0] for reason, names in clean["such_as"].items()}
    tally = Tally(clean["in"], clean["out"], Counter(clean["dropped"]), such)
    tally.check_share("passages to mask", cfg.clean.max_drop, "config.clean.max_drop")
    if "train" not in made["by_masks"]:
        raise DropError(
            f"no training example came out of {made['in']:,} paragraphs (dropped: "
            f"{made['dropped']}, spans refused: {made['refused_spans']}); see config.ramp"
        )


def _splits_of(counts: dict[str, Any], k: int) -> list[str]:
    return [split for split, by_k in counts["ramp"]["by_masks"].items() if by_k.get(str(k))]


def _write(
    cfg: BuildDatasetRun, k: int, counts: dict[str, Any], work: epath.Path, made_from: str
) -> None:
    """Writes `ramp/kN` from the examples under `work`, unless it was written to its end."""
    import tensorflow_datasets as tfds

    from masksearch_jax.ramp import tfds_builder

    folder = work.parent / f"k{k}"
    version = folder / tfds_builder.VERSION
    if stamp.read(version / "metadata.json", made_from) is None:
        if folder.exists():  # of other inputs, or of a build that was stopped
            folder.rmtree()
        tfds.disable_progress_bar()
        builder = tfds_builder.Ramp(
            k=k,
            pattern=str(work / f"k{k}" / "part*"),
            splits=_splits_of(counts, k),
            facts={"made_from": made_from},
            data_dir=str(epath.Path(cfg.folder)),
            file_format="tfrecord" if cfg.tfrecord else "array_record",
        )
        download = tfds.download.DownloadConfig(
            beam_runner=cfg.beam.runner, beam_options=_options(cfg.beam)
        )
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_dir=str(work / "downloads"), download_config=download
            )
    if cfg.tfrecord:
        tfds_builder.add_array_record(version, cfg.beam.runner, _options(cfg.beam))


def _print_summary(counts: dict[str, Any], folder: str) -> None:
    for name in ("corpus", "clean", "ramp"):
        part = counts[name]
        print(f"{name}: {part['in']:,} in, {part['out']:,} out")
        for reason, count in sorted(part["dropped"].items(), key=lambda item: -item[1]):
            print(f"  {count:,} dropped: {reason}")
    for split, by_k in counts["ramp"]["by_masks"].items():
        each = ", ".join(f"{k}: {n:,}" for k, n in by_k.items())
        print(f"ramp {split}: {sum(by_k.values()):,} examples, by masks {each}")
    print(f"all reasons, with a few examples of each: {folder}/{tfds_records.NAME}/{COUNTS}")


if __name__ == "__main__":
    cli.run(
        lambda cfg: _print_summary(run(cfg), cfg.folder),
        BuildDatasetRun,
        resumes=True,
        check=check_config,
    )
