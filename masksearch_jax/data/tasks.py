"""The seqio catalogue: tasks and mixtures over a folder of examples and demonstrations.

    FOLDER/ramp/SPLIT.jsonl            RampExample   tasks ramp_k1, ramp_k2, …
    FOLDER/questions/SPLIT.jsonl       QAExample     tasks qa_DATASET
    FOLDER/demonstrations/SPLIT.jsonl  Demonstration tasks ramp_sft_k1, …, qa_sft_DATASET

SPLIT is train, rl or heldout. Features of `ramp_*` and `qa_*`: `inputs` (the prompt) and `targets`
(the whole paragraph, or the first accepted answer), with `id` and `example` (JSON) passed through.
Features of `*_sft_*`: `targets` (prompt, then every segment) and `agent` (1 where the agent wrote
the token), with `id`. Mixtures take their tasks at equal rates. Importing this module imports
TensorFlow.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from masksearch_jax.data import demonstrations, prompt
from masksearch_jax.data.vocab import Vocab
from masksearch_jax.types import Demonstration, QAExample, RampExample, from_json, to_json

SPLITS = ("train", "rl", "heldout")
KINDS = {"ramp": RampExample, "questions": QAExample, "demonstrations": Demonstration}

_BATCH = 256  # lines per call into Python
_registered: set[str] = set()  # names that `register` added; seqio's registries are global too


class TaskError(ValueError):
    """Records that no task can be made of; the message names file and line, or the record."""


class SeqioVocab(seqio.Vocabulary):
    """A `Vocab` for seqio, stateless in the graph, so that iterators can be checkpointed."""

    def __init__(self, vocab: Vocab) -> None:
        super().__init__()
        self.inner = vocab

    @property
    def eos_id(self) -> int:
        return self.inner.eos_ids[0]

    @property
    def pad_id(self) -> int:
        return self.inner.pad_id

    @property
    def unk_id(self) -> None:
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.inner.size

    def _encode(self, s: str) -> list[int]:
        return self.inner.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """Ids of a text, or of each text of a vector: a batch costs one call into Python."""

        def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ids = self.inner.encode_batch([t.decode() for t in texts])
            return _flat(ids, np.int32), np.asarray([len(i) for i in ids], np.int64)

        texts = tf.reshape(s, [-1])
        ids, sizes = tf.numpy_function(encode, [texts], [tf.int32, tf.int64], stateful=False)
        ids.set_shape([None])
        sizes.set_shape([None])
        return ids if s.shape.rank == 0 else tf.RaggedTensor.from_row_lengths(ids, sizes)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(row: np.ndarray) -> bytes:
            return self.inner.decode(row.tolist()).encode()

        return tf.numpy_function(decode, [ids], tf.string, stateful=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocab) and other.inner.fingerprint == self.inner.fingerprint

    def __hash__(self) -> int:
        return hash(self.inner.fingerprint)


class _Catalogue(NamedTuple):
    """What the tasks of one folder share."""

    folder: Path
    vocab: Vocab
    style: str


def register(folder: str | Path, tokenizer: str | Path, prompt_style: str) -> list[str]:
    """Add the tasks and mixtures of `folder` to seqio's registries; their names, tasks first.

    Replaces what an earlier call added, so calling it again changes nothing. A task has the splits
    that hold records of it. Raises FileNotFoundError when the folder has none of the files, and
    TaskError naming file and line of a malformed record.
    """
    folder = Path(folder)
    catalogue = _Catalogue(folder, Vocab.load(tokenizer), prompt_style)
    counts = _count(folder)
    if not counts:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no records; expected JSONL such as "
            f"{[f'{kind}/{SPLITS[0]}.jsonl' for kind in KINDS]}"
        )
    for name in _registered:
        seqio.TaskRegistry.remove(name)
        seqio.MixtureRegistry.remove(name)
    _registered.clear()
    tasks: dict[str, Mapping[str, int]] = {}
    for kind, by_task in counts.items():
        for name, splits in sorted(by_task.items()):
            _add_task(catalogue, kind, name, splits)
            tasks[name] = splits
    mixtures = mixtures_of([name for name, splits in tasks.items() if "train" in splits])
    for name, parts in mixtures.items():
        seqio.MixtureRegistry.add(name, [(part, 1.0) for part in parts])
    _registered.update(tasks, mixtures)
    return [*tasks, *mixtures]


def mixtures_of(tasks: Iterable[str]) -> dict[str, list[str]]:
    """The mixtures that the tasks present allow: name → tasks.

    `ramp_mixed`, `ramp_uptoK` (the curriculum's stages), `qa_mixed` and `ramp_qa_mixed`, each also
    with `_sft`, and `ramp_sft_qa_DATASET`.
    """
    tasks = sorted(tasks)
    found: dict[str, list[str]] = {}
    for sft in ("", "_sft"):
        ramp = {int(t.rpartition("_k")[2]): t for t in tasks if re.fullmatch(f"ramp{sft}_k\\d+", t)}
        qa = [t for t in tasks if t.startswith(f"qa{sft}_") and (sft or not _is_sft(t))]
        if ramp:
            found[f"ramp{sft}_mixed"] = [ramp[k] for k in sorted(ramp)]
        for most in range(min(ramp, default=0), max(ramp, default=-1) + 1):
            found[f"ramp{sft}_upto{most}"] = [ramp[k] for k in sorted(ramp) if k <= most]
        if qa:
            found[f"qa{sft}_mixed"] = qa
        if ramp and qa:
            found[f"ramp{sft}_qa_mixed"] = [*found[f"ramp{sft}_mixed"], *qa]
    for task in found.get("qa_sft_mixed", []) if "ramp_sft_mixed" in found else []:
        found[f"ramp_sft_{task.replace('_sft', '', 1)}"] = [*found["ramp_sft_mixed"], task]
    return found


def task_of(kind: str, record: Mapping[str, Any]) -> str:
    """The name of the task that a record, as JSON, belongs to."""
    if kind == "ramp":
        return f"ramp_k{len(record['spans'])}"
    if kind == "questions":
        return f"qa_{_word(record['dataset'])}"
    ramp = re.fullmatch(r"ramp_k(\d+)", record["task"])
    return f"ramp_sft_k{ramp[1]}" if ramp else f"qa_sft_{_word(record['task'])}"


def inputs_of(folder: str | Path, task: str, split: str) -> list[Path]:
    """The files that decide the records of a task's split."""
    folder = Path(folder)
    if not _is_sft(task):
        return [_path(folder, "ramp" if task.startswith("ramp_") else "questions", split)]
    examples = (_path(folder, kind, s) for kind in ("ramp", "questions") for s in SPLITS)
    return [_path(folder, "demonstrations", split), *(p for p in examples if p.is_file())]


def _is_sft(task: str) -> bool:
    return "_sft_" in task


def _word(name: str) -> str:
    """A dataset's name with the characters that seqio allows in a task's."""
    return re.sub(r"\W", "_", name)


def _path(folder: Path, kind: str, split: str) -> Path:
    return folder / kind / f"{split}.jsonl"


def _count(folder: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Records of each kind, task and split: kind → task → split → count, only what is there.

    Raises TaskError for a malformed record, and for a demonstration of an example not there.
    """
    counts: dict[str, dict[str, dict[str, int]]] = {}
    examples: set[str] = set()
    for kind, split in itertools.product(KINDS, SPLITS):
        path = _path(folder, kind, split)
        for number, record in _read(path, kind) if path.is_file() else ():
            if kind != "demonstrations":
                examples.add(record["id"])
            elif record["example_id"] not in examples:
                raise TaskError(
                    f"{path}:{number}: a demonstration of example {record['example_id']!r}, which "
                    f"is not among the {len(examples)} examples and questions of {str(folder)!r}"
                )
            by_split = counts.setdefault(kind, {}).setdefault(task_of(kind, record), {})
            by_split[split] = by_split.get(split, 0) + 1
    return counts


def _read(path: Path, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and JSON records of a file. Raises TaskError for one not of its kind."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                from_json(KINDS[kind], record)
            except (ValueError, TypeError, AttributeError) as error:
                name = KINDS[kind].__name__
                raise TaskError(f"{path}:{number}: not a {name}: {error}") from error
            yield number, record


def _add_task(catalogue: _Catalogue, kind: str, name: str, splits: Mapping[str, int]) -> None:
    vocab = SeqioVocab(catalogue.vocab)
    ids = seqio.Feature(vocab, add_eos=False)
    if kind == "demonstrations":
        mask = seqio.Feature(seqio.PassThroughVocabulary(2), add_eos=False)
        features = {"targets": ids, "agent": mask}
        make = functools.partial(_sequences, catalogue=catalogue, task=name)
        steps = [make, _one_by_one]
    else:
        features = {"inputs": ids, "targets": ids}
        make = functools.partial(_examples, catalogue=catalogue, kind=kind, task=name)
        steps = [make, _tokenise, _one_by_one]
    source = seqio.TextLineDataSource(
        {split: str(_path(catalogue.folder, kind, split)) for split in splits},
        num_input_examples=dict(splits),
    )
    seqio.TaskRegistry.add(name, source=source, preprocessors=steps, output_features=features)


def _examples(
    lines: tf.data.Dataset, catalogue: _Catalogue, kind: str, task: str
) -> tf.data.Dataset:
    """JSON lines → batches of `inputs`, `targets`, `id`, `example` as text, of one task."""

    def rows(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        found = _of_task(batch, kind, task)
        return (
            _strings(prompt.render(r, catalogue.style, catalogue.vocab) for r in found),
            _strings(r.paragraph if isinstance(r, RampExample) else r.answers[0] for r in found),
            _strings(r.id for r in found),
            _strings(json.dumps(to_json(r), ensure_ascii=False) for r in found),
        )

    def to_features(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        columns = _call(rows, batch, [tf.string] * 4)
        return dict(zip(("inputs", "targets", "id", "example"), columns, strict=True))

    return lines.batch(_BATCH).map(to_features)


def _sequences(lines: tf.data.Dataset, catalogue: _Catalogue, task: str) -> tf.data.Dataset:
    """JSON lines → batches of `targets` and `agent` (ragged int32) and `id`, of one task."""
    folder, vocab = catalogue.folder, catalogue.vocab
    paths = [_path(folder, kind, split) for kind in ("ramp", "questions") for split in SPLITS]
    examples = demonstrations.Examples([p for p in paths if p.is_file()])

    def rows(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        found = _of_task(batch, "demonstrations", task)
        prompts = [prompt.render(examples[r.example_id], catalogue.style, vocab) for r in found]
        made = [demonstrations.tokenise(p, r, vocab) for p, r in zip(prompts, found, strict=True)]
        sizes = np.asarray([len(ids) for ids, _ in made], np.int64)
        ids = _flat([ids for ids, _ in made], np.int32)
        agent = _flat([agent for _, agent in made], np.int32)
        return ids, agent, sizes, _strings(r.id for r in found)

    def to_features(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        types = [tf.int32, tf.int32, tf.int64, tf.string]
        ids, agent, sizes, names = _call(rows, batch, types)
        ragged = functools.partial(tf.RaggedTensor.from_row_lengths, row_lengths=sizes)
        return {"targets": ragged(ids), "agent": ragged(agent), "id": names}

    return lines.batch(_BATCH).map(to_features)


def _tokenise(
    batches: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Batches of text → ragged ids. seqio's own step would keep 256 whole batches in flight."""
    encode = functools.partial(
        seqio.preprocessors.tokenize_impl, output_features=output_features, copy_pretokenized=False
    )
    return batches.map(encode)


def _one_by_one(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Batches of rows, ragged ones among them → rows."""

    def dense(row: dict[str, Any]) -> dict[str, tf.Tensor]:
        return {k: tf.convert_to_tensor(v) for k, v in row.items()}

    return batches.unbatch().map(dense)


def _of_task(lines: np.ndarray, kind: str, task: str) -> list[Any]:
    found = (json.loads(line) for line in lines)
    return [from_json(KINDS[kind], r) for r in found if task_of(kind, r) == task]


def _call(
    rows: Callable[..., tuple[np.ndarray, ...]], batch: tf.Tensor, types: list[tf.DType]
) -> list[tf.Tensor]:
    """`rows(batch)` in Python, as vectors of unknown length."""
    columns = tf.numpy_function(rows, [batch], types, stateful=False)
    for column in columns:
        column.set_shape([None])
    return columns


def _flat(rows: Iterable[Any], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(r, dtype) for r in rows)])


def _strings(texts: Iterable[str]) -> np.ndarray:
    return np.asarray([t.encode() for t in texts], dtype=object)
