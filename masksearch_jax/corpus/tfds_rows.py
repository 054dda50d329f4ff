"""Rows of a prepared TFDS dataset such as `wikipedia/20230601.en/1.0.0`; loads TensorFlow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import tensorflow_datasets as tfds

from masksearch_jax.corpus import passages


def rows(folder: str) -> Iterator[passages.Row]:
    """The examples of all splits as dicts of title and text, in order. Raises CorpusError."""
    try:
        with warnings.catch_warnings():  # it calls what newer protobufs deprecate
            warnings.filterwarnings("ignore", module="tensorflow_datasets")
            builder = tfds.builder_from_directory(folder)
    except Exception as error:  # the library raises several kinds
        raise passages.CorpusError(f"{folder} is no prepared TFDS dataset: {error}") from error
    missing = {"title", "text"} - set(builder.info.features)
    if missing:
        raise passages.CorpusError(
            f"{folder} has no {sorted(missing)}; its features are {sorted(builder.info.features)}"
        )
    for split in builder.info.splits:
        dataset = builder.as_dataset(split=split, shuffle_files=False)
        for number, row in enumerate(tfds.as_numpy(dataset)):
            text = {k: _text(v) for k, v in row.items() if k in ("id", "title", "text")}
            yield f"{folder}: {split} {number}", text


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
