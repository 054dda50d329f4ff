"""Stages that quickstart and evolve share: text in, masks, index, tokenizer, tokenised cache out.

Each runs a main and returns a stage's record: counts as summary.json has them.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from masksearch_jax import build_index, build_ramp
from masksearch_jax.core.corpus_config import CorpusConfig, PplConfig, RampConfig
from masksearch_jax.core.errors import UserError
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.data.folder import Folder
from masksearch_jax.ramp.survey import CleanConfig
from masksearch_jax.runtime import goodput, installed, parent
from masksearch_jax.tools.registry import instructions_of


def log(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def counted(name: str, given: int, out: int, dropped: Mapping[str, int]) -> dict[str, Any]:
    """A stage's counts as summary.json has them, under the name that they are shown by."""
    return {"data": {name: {"in": given, "out": out, "dropped": dict(dropped)}}}


def time_spent(folder: Path) -> dict[str, float]:
    """Seconds of a training by bucket, and the share of them that was productive."""
    shares = ("goodput", "sessions")
    found = goodput.summarise(folder).items()
    return {k if k in shares else f"{k}_seconds": v for k, v in found}


def make_ramp(
    data: Path,
    text: CorpusConfig,
    ramp: RampConfig,
    seed: int,
    clean: CleanConfig | None = None,
    ppl: PplConfig | None = None,
) -> dict[str, Any]:
    cleaned = clean or CleanConfig()
    made = build_ramp.run(build_ramp.BuildRampRun(str(data), text, ramp, seed, cleaned, ppl=ppl))
    for line in build_ramp.lines(made, data):
        log(line)
    return {"data": made}


def make_index(data: Path, index: Path, language: Literal["en", "zh"]) -> dict[str, Any]:
    passages = CorpusConfig(str(data / "passages.jsonl"), "", 0, 0.0, language=language)
    made = build_index.run(build_index.BuildIndexRun(passages, str(index)))
    return counted("index", made["read"], made["passages"], made["dropped"])


def make_tokenizer(
    data: Path, shown: Path, folder: Path, size: int, tools: Sequence[str] = ()
) -> dict[str, Any]:
    """Byte-level BPE on all text of the corpus and of the demonstrations in the folder `shown`.

    Words are not what is held out, facts are. Those that only demonstrations have, as in thoughts,
    would otherwise be spelled out, at the price of more tokens in every trajectory. tools: as a
    config names them, whose tags are tokens too.
    """
    corpora = [data / "passages.jsonl", data / "paragraphs.jsonl"]
    read = (read_passages(c, max_bad_fraction=0.0) for c in corpora if c.is_file())
    texts = (p.text for file in read for p in file)
    demonstrations = Folder(shown).read("demonstrations", "train")
    segments = (s.text for d in demonstrations for s in d.segments)
    names = [about.name for about in instructions_of(tools)]
    train_bpe(itertools.chain(texts, segments), folder, size, names)
    return {"tokens": Vocab.load(folder).size}


def make_cache(folder: Path, cache: Path, tokenizer: Path, tasks: str, **settings: Any) -> dict:
    """`build_cache` of `tasks`, a regular expression, with other settings by their dotted names.

    seqio needs TensorFlow, which is imported in a process of its own and gone with it.
    """
    given = {"folder": folder, "cache": cache, "tasks": tasks, "tokenizer": tokenizer} | settings
    config = installed.root() / "configs" / "build_cache.py"
    command = [sys.executable, "-m", "masksearch_jax.build_cache", f"--config={config}"]
    command += [f"--config.{k}={v}" for k, v in given.items()]
    # In a session of its own, so that a Ctrl-C is this process's to tell of.
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, start_new_session=True, env=parent.environment()
    )
    if done.returncode:
        raise UserError(f"build_cache ended with status {done.returncode}; see above")
    manifest = json.loads((cache / "manifest.json").read_text())
    splits = [s for task in manifest["tasks"].values() for s in task.values()]
    out, dropped = (sum(s[k] for s in splits) for k in ("records", "dropped"))
    return counted("cache", out + dropped, out, {"too long": dropped} if dropped else {})
