"""The folder around the weights: written aside and renamed when whole; tokenizer; JSON files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masksearch_jax.models.hf_config import HfError, read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_SOURCE = ".source"  # in a folder being written: what it is written from


@contextlib.contextmanager
def replacing(folder: Path, source: str) -> Iterator[Path]:
    """A sibling folder to write in, renamed to `folder` on success.

    source: names what is written, so that what a cut-off writing left is kept for the next one of
    the same source; with "" nothing is kept. Raises HfError where the folder is something else, or
    another process is writing it.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise HfError(f"{folder} exists and is no HF model folder; it is left as it is")
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _lock(partial):
        stamp = partial / _SOURCE
        if not source or not stamp.is_file() or stamp.read_text(encoding="utf-8") != source:
            for path in partial.iterdir():
                path.unlink()
        try:
            stamp.write_text(source, encoding="utf-8")
            yield partial
            _sync(partial)
            stamp.unlink()
            _rename(partial, folder)
        except BaseException:
            if not source:
                shutil.rmtree(partial, ignore_errors=True)
            raise


def copy_tokenizer(source: str | Path | None, folder: Path) -> dict[str, Any]:
    """Copies the tokenizer's files; returns the generation config that lies with them."""
    if source is None:
        return {}
    source = Path(source)
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not present:
        raise FileNotFoundError(f"no tokenizer in {source}; looked for {TOKENIZER_FILES}")
    for name in present:
        shutil.copyfile(source / name, folder / name)
    path = source / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_space(folder: Path, needed: int) -> None:
    """Raises HfError when the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HfError(
            f"the weights need {needed:,} bytes more, but the disk of {folder} has {free:,} free: "
            "make space, or write to another folder; shards that are whole are kept"
        )


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the kernel lets go of it whenever the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HfError(f"{folder} is being written by another process") from error
        yield
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _rename(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    earlier = folder.with_name(f".{folder.name}.earlier-{os.getpid()}")
    folder.rename(earlier)
    partial.rename(folder)
    shutil.rmtree(earlier)
