"""The folder around the weights: what it may replace, tokenizer, space on its disk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from masksearch_jax.core import files, gguf_file, gguf_tokenizer
from masksearch_jax.core.types import JsonObject
from masksearch_jax.models.hf_config import HfError, read_json
from masksearch_jax.runtime import storage

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


@contextlib.contextmanager
def replacing(folder: Path, made_from: str, weights: Collection[str]) -> Iterator[Path]:
    """A sibling folder to write in, renamed to `folder` on success.

    made_from: names what is written, so that what a cut-off writing left of the files `weights` is
    there again for the next one of the same text; with "" nothing is. Raises HfError where the
    folder is something else, and as `files.writing_folder`.
    """
    if not storage.is_unmade(folder) and not (folder / "config.json").is_file():
        raise HfError(f"{folder} exists and is no HF model folder; it is left as it is")
    with files.writing_folder(folder, made_from, weights) as partial:
        yield partial


def copy_tokenizer(tokenizer: str | Path | None, folder: Path) -> JsonObject:
    """Copies the tokenizer's files, or writes those of a GGUF file's; the generation config there.

    tokenizer: a folder, whose generation_config.json is returned, or a GGUF file, which has none.
    """
    if tokenizer is None:
        return {}
    if gguf_file.is_gguf(tokenizer):
        gguf_tokenizer.write(tokenizer, folder)
        return {}
    tokenizer = Path(tokenizer)
    present = [name for name in TOKENIZER_FILES if (tokenizer / name).is_file()]
    if not present:
        raise FileNotFoundError(f"no tokenizer in {tokenizer}; looked for {TOKENIZER_FILES}")
    for name in present:
        shutil.copyfile(tokenizer / name, folder / name)
    path = tokenizer / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def check_space(folder: Path, needed: int) -> None:
    """Raises HfError when the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HfError(
            f"the weights need {needed:,} bytes more, but the disk of {folder} has {free:,} free: "
            "make space, or write to another folder; shards that are whole are kept"
        )
