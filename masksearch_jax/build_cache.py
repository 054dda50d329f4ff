"""Tokenise RAMP examples, questions and demonstrations into the cache that training reads.

    python -m masksearch_jax.build_cache --config=configs/build_cache.py \\
        --config.folder=DATA --config.cache=DATA/cache --config.tokenizer=PATH

The folder's layout is that of `data.tasks`. A split built from the same inputs is kept, so the same
command resumes a stopped build; the manifest comes last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from masksearch_jax.core import stamp
from masksearch_jax.core.config import PromptConfig
from masksearch_jax.core.errors import ConfigError, UserError, check_given
from masksearch_jax.core.schema import key, required, section, share
from masksearch_jax.core.search_config import tools_key
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import QAExample, RampExample
from masksearch_jax.data import prompt
from masksearch_jax.data.cache import (
    DROPPED,
    FORMAT,
    MANIFEST,
    Kind,
    Manifest,
    Record,
    Split,
    finished_split,
    split_folder,
    write_split,
)
from masksearch_jax.data.folder import Folder
from masksearch_jax.runtime import agent_settings, cli, run_record
from masksearch_jax.runtime.process_lock import ProcessLock
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.tools.registry import instructions_of

# Their wording is in every split's hash, so that a change of it rebuilds the cache. The template is
# in the tokenizer's; what it renders is not, since it may hold the date.
_PROBES = (
    RampExample("", "", "Title", "A [mask] here.", "A thing here.", ()),
    QAExample("", "", "Which thing?", ("This",)),
)


@dataclasses.dataclass(frozen=True)
class BuildCacheRun:
    """`build_cache`: JSONL records to tokenised records."""

    folder: str = required("Holds ramp/, questions/ or demonstrations/, JSONL by split.")
    cache: str = required("Folder to write.")
    tokenizer: str = key("", "Folder with tokenizer.json, that of the run that reads; needed.")
    tasks: str = key(
        "", "Regular expression of the tasks, or the TASK-SPLITs, to write; empty: all."
    )
    prompt: PromptConfig = section(PromptConfig, "Its style must be that of the run that reads.")
    tools: tuple[str, ...] = tools_key()
    max_len: int = key(
        4096, "Tokens of a demonstration; longer ones are dropped and counted.", least=1
    )
    max_prompt_len: int = key(
        1024, "Tokens of a prompt; longer ones are dropped and counted.", least=1
    )
    temperatures: tuple[float, ...] = key(
        (),
        (
            "Each mixture M comes once more as M_tT for each T here, such as (1.0, 2.0): its tasks "
            "in proportion to examples ** (1/T). Without it they come at equal rates."
        ),
    )
    qa_share: float = share(
        0.0,
        (
            "Of questions in the mixtures that hold RAMP too, ramp_qa_mixed, "
            "ramp_sft_qa_mixed and ramp_sft_qa_DATASET; 0: all their tasks come at equal "
            "rates."
        ),
    )


def check_config(cfg: BuildCacheRun) -> None:
    """Raises ConfigError for keys that are empty, and for tools that there are not."""
    check_given(
        cfg,
        folder="the folder that build_ramp wrote",
        cache="the folder to write",
        tokenizer="the folder that holds tokenizer.json",
    )
    instructions_of(cfg.tools)


def run(cfg: BuildCacheRun) -> dict[str, Any]:
    """Builds or resumes the cache; per task and split its counts, and what the build cost.

    Raises BeingWrittenError where another process writes it.
    """
    check_config(cfg)
    started = time.monotonic()
    vocab = Vocab.load(cfg.tokenizer)
    prompt.check_style(cfg.prompt.style, vocab)
    folder = Folder(cfg.folder)
    asked = f"{cfg.tasks} {cfg.temperatures} {cfg.qa_share}"
    asked += f" {cfg.tools}" if cfg.tools else ""
    made_from = _made_from(cfg, vocab, folder.files(), asked)
    done = _finished(cfg.cache, made_from)
    if done is not None:
        return _summary(done, sum(map(len, done.tasks.values())), time.monotonic() - started)
    with ProcessLock(cfg.cache):
        manifest, reused = _build(cfg, vocab, folder, made_from)
    return _summary(manifest, reused, time.monotonic() - started)


def _build(
    cfg: BuildCacheRun, vocab: Vocab, folder: Folder, made_from: str
) -> tuple[Manifest, int]:
    """The manifest, written last, and how many splits were there already."""
    seqio, tasks = _import_seqio()
    names = tasks.register(
        cfg.folder,
        cfg.tokenizer,
        cfg.prompt.style,
        cfg.temperatures,
        cfg.qa_share,
        instructions_of(cfg.tools),
    )
    built: dict[str, dict[str, Split]] = {}
    reused = 0
    there = [seqio.TaskRegistry.get(n) for n in names if n in seqio.TaskRegistry.names()]
    wanted = [(t, s) for t in there for s in t.splits if _is_wanted(cfg.tasks, t.name, s)]
    if not wanted:
        choices = ", ".join(f"{t.name} ({', '.join(t.splits)})" for t in there)
        raise ConfigError(f"config.tasks, {cfg.tasks!r}, matches none of {choices}")
    manifest_path = Path(cfg.cache) / MANIFEST
    has_others = stamp.has_others([manifest_path], made_from)
    run_record.begin(
        cfg.cache,
        cfg,
        replaces="splits of other settings are" if has_others else "",
        otherwise="its inputs or the program have changed",
        harmless=("folder", "cache"),
    )
    manifest_path.unlink(missing_ok=True)  # of other inputs
    for task, split in wanted:
        inputs = _made_from(cfg, vocab, folder.files_of(task.name, split))
        found = finished_split(cfg.cache, task.name, split, inputs)
        if found is None:
            found = _build_split(cfg, task, split, inputs)
        else:
            reused += 1
        built.setdefault(task.name, {})[split] = found
    manifest = Manifest(
        folder=Path(cfg.cache),
        made_from=made_from,
        tokenizer=vocab.fingerprint,
        vocab_size=vocab.size,
        eos_id=vocab.eos_ids[0],
        pad_id=vocab.pad_id,
        prompt_style=cfg.prompt.style,
        tasks=built,
        mixtures={n: _rates(seqio, n, built) for n in names if n in seqio.MixtureRegistry.names()},
        tools=cfg.tools,
        search=_searched(Path(cfg.folder)),
    )
    manifest.save()
    return manifest, reused


def _searched(folder: Path) -> dict[str, Any]:
    """What the demonstrations of a folder of data were shown by: keys of `search`, {} for none."""
    record = run_record.read(folder / "demonstrations")
    return agent_settings.of_run(record["config"]).get("search", {}) if record else {}


def _finished(cache: str, made_from: str) -> Manifest | None:
    """The manifest of a cache already built from these inputs, None where there is work to do."""
    try:
        manifest = Manifest.load(cache)
    except (OSError, ValueError):
        return None
    whole = all(
        finished_split(cache, task, split, found.made_from) == found
        for task, splits in manifest.tasks.items()
        for split, found in splits.items()
    )
    return manifest if manifest.made_from == made_from and whole else None


def _import_seqio() -> tuple[Any, Any]:
    """The modules `seqio` and `data.tasks`; they bring TensorFlow, which takes seconds.

    Raises ConfigError where seqio is not installed.
    """
    if importlib.util.find_spec("seqio") is None:
        raise ConfigError("seqio is not installed; pip install 'masksearch_jax[data]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with _hushed():
        import seqio
        import tensorflow as tf
        from absl import logging

        from masksearch_jax.data import tasks

        tf.config.set_visible_devices([], "GPU")  # the GPU is for training
        logging.set_verbosity(logging.ERROR)
    return seqio, tasks


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps back what C++ libraries write to stderr on import, unless the import fails."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _is_wanted(pattern: str, task: str, split: str) -> bool:
    return not pattern or any(re.fullmatch(pattern, n) for n in (task, f"{task}-{split}"))


def _build_split(cfg: BuildCacheRun, task: Any, split: str, made_from: str) -> Split:
    """Writes one split of one task, in the order of its file."""
    kind = "sft" if "agent" in task.output_features else "prompt"
    data = task.get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False
    )
    total = task.num_input_examples(split)
    with Progress(f"{task.name} {split}", total) as progress:
        written = write_split(
            cfg.cache,
            task.name,
            split,
            _records(data.as_numpy_iterator(), kind, progress),
            kind=kind,
            max_len=cfg.max_len if kind == "sft" else cfg.max_prompt_len,
            made_from=made_from,
        )
        progress.update(total, records=written.records, tokens=written.tokens)
    if written.dropped:
        listed = split_folder(Path(cfg.cache), task.name, split) / DROPPED
        print(
            f"  {task.name} {split}: {written.dropped:,} of {total:,} dropped, longer than "
            f"{written.max_len} tokens; their ids: {listed}",
            file=sys.stderr,
        )
    return written


def _records(rows: Iterator[dict[str, Any]], kind: Kind, progress: Progress) -> Iterator[Record]:
    for done, row in enumerate(rows, 1):
        name = row["id"].decode()
        if kind == "sft":
            yield {"id": name, "ids": row["targets"], "agent": row["agent"].astype(np.bool_)}
        else:
            yield {"id": name, "ids": row["inputs"], "example": row["example"].decode()}
        progress.update(done)


def _made_from(cfg: BuildCacheRun, vocab: Vocab, files: list[Path], wanted: str = "") -> str:
    """A hash of all that decides a split, or the `wanted` ones together."""
    limits = FORMAT, cfg.max_len, cfg.max_prompt_len, cfg.prompt.style, vocab.fingerprint
    tools = instructions_of(cfg.tools)
    probes = [prompt.wording(p, cfg.prompt.style, tools) for p in _PROBES]
    contents = [(f"{path.parent.name}/{path.name}", stamp.content(path)) for path in files]
    return stamp.hash_of([limits, probes, wanted, contents])


def _rates(seqio: Any, name: str, built: dict[str, dict[str, Split]]) -> dict[str, float]:
    """Rates of a mixture's tasks, as seqio has them; tasks that kept no record are left out."""
    mixture = seqio.MixtureRegistry.get(name)
    kept = (t for t in mixture.tasks if any(s.records for s in built.get(t.name, {}).values()))
    return {t.name: float(mixture.get_rate(t)) for t in kept}


def _summary(manifest: Manifest, reused: int, seconds: float) -> dict[str, Any]:
    keys = ("records", "tokens", "agent_tokens", "longest", "dropped")
    return {
        "tasks": {
            task: {split: {k: getattr(s, k) for k in keys} for split, s in splits.items()}
            for task, splits in manifest.tasks.items()
        },
        "mixtures": {name: list(rates) for name, rates in manifest.mixtures.items()},
        "cache": str(manifest.folder),
        "splits_reused": reused,
        "seconds": round(seconds, 1),
    }


def _print_summary(cfg: BuildCacheRun, summary: dict[str, Any]) -> None:
    """Raises UserError where not one record is in the cache."""
    splits = {f"{t} {s}": c for t, found in summary["tasks"].items() for s, c in found.items()}
    for name, counts in splits.items():
        print(f"{name}: " + ", ".join(f"{v:,} {k}" for k, v in counts.items()))
    limits = f"config.max_len={cfg.max_len} or config.max_prompt_len={cfg.max_prompt_len}"
    for name, counts in splits.items():
        if counts["dropped"] and not counts["records"]:
            said = f"{name} is empty: all {counts['dropped']:,} are longer than {limits} allow"
            print(f"  {said}", file=sys.stderr)
    records = sum(counts["records"] for counts in splits.values())
    if not records:
        raise UserError(f"{summary['cache']} has no record: all are longer than {limits} allow")
    print(
        f"{summary['cache']}: {records:,} records in {len(splits)} splits, "
        f"{summary['splits_reused']} of them from before, {summary['seconds']} s"
    )


if __name__ == "__main__":
    cli.run(
        lambda cfg: _print_summary(cfg, run(cfg)), BuildCacheRun, resumes=True, check=check_config
    )
