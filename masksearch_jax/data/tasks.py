"""The seqio catalogue: tasks and mixtures over a folder of examples and demonstrations.

    FOLDER/ramp/SPLIT.jsonl            RampExample   tasks ramp_k1, ramp_k2, …
    FOLDER/questions/SPLIT.jsonl       QAExample     tasks qa_DATASET
    FOLDER/demonstrations/SPLIT.jsonl  Demonstration tasks ramp_sft_k1, …, qa_sft_DATASET

SPLIT is train or heldout. Features of `ramp_*` and `qa_*`: `inputs` (the prompt) and `targets`
(the whole paragraph, or the first accepted answer), with `id` and `example` (JSON) passed through.
Features of `*_sft_*`: `targets` (prompt, then every segment) and `agent` (1 where the agent wrote
the token), with `id`. Mixtures take their tasks at equal rates. Importing this module imports
TensorFlow.
"""

from __future__ import annotations

import collections
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from masksearch_jax.data import prompt
from masksearch_jax.data.vocab import Vocab
from masksearch_jax.types import Demonstration, Example, QAExample, RampExample, from_json, to_json

SPLITS = ("train", "heldout")
KINDS = {"ramp": RampExample, "questions": QAExample, "demonstrations": Demonstration}

_BATCH = 256  # lines per call into Python
_registered: set[str] = set()  # names that `register` added; seqio's registries are global too

Rows = Mapping[str, list[Any]]


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

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes) -> np.ndarray:
            return np.asarray(self.inner.encode(text.decode()), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

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
    counts = {kind: _count(folder, kind) for kind in KINDS}
    if not any(counts.values()):
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


def task_of(record: Example | Demonstration) -> str:
    """The name of the task that a record belongs to."""
    if isinstance(record, RampExample):
        return f"ramp_k{record.k}"
    if isinstance(record, QAExample):
        return f"qa_{_word(record.dataset)}"
    ramp = re.fullmatch(r"ramp_k(\d+)", record.task)
    return f"ramp_sft_k{ramp[1]}" if ramp else f"qa_sft_{_word(record.task)}"


def read_lines(path: Path, cls: type) -> Iterator[Any]:
    """The records of a JSONL file. Raises TaskError naming file and line of a malformed one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield from_json(cls, json.loads(line))
            except (ValueError, TypeError) as error:
                raise TaskError(f"{path}:{number}: not a {cls.__name__}: {error}") from error


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


def _count(folder: Path, kind: str) -> dict[str, dict[str, int]]:
    """Records of each task and split: task → split → count, only what is there."""
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        path = _path(folder, kind, split)
        if path.is_file():
            found = collections.Counter(task_of(r) for r in read_lines(path, KINDS[kind]))
            for task, count in found.items():
                counts.setdefault(task, {})[split] = count
    return counts


def _add_task(catalogue: _Catalogue, kind: str, name: str, splits: Mapping[str, int]) -> None:
    vocab = SeqioVocab(catalogue.vocab)
    ids = seqio.Feature(vocab, add_eos=False)
    if kind == "demonstrations":
        mask = seqio.Feature(seqio.PassThroughVocabulary(2), add_eos=False)
        features = {"targets": ids, "agent": mask}
        steps = [functools.partial(_demonstrations, catalogue=catalogue, task=name)]
    else:
        features = {"inputs": ids, "targets": ids}
        make = functools.partial(_examples, catalogue=catalogue, kind=kind, task=name)
        steps = [make, functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False)]
    source = seqio.TextLineDataSource(
        {split: str(_path(catalogue.folder, kind, split)) for split in splits},
        num_input_examples=dict(splits),
    )
    seqio.TaskRegistry.add(name, source=source, preprocessors=steps, output_features=features)


def _examples(
    lines: tf.data.Dataset, catalogue: _Catalogue, kind: str, task: str
) -> tf.data.Dataset:
    """JSON lines → `inputs`, `targets`, `id`, `example` as text, for the records of one task."""

    def rows(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        found = [from_json(KINDS[kind], json.loads(line)) for line in batch]
        found = [r for r in found if task_of(r) == task]
        return (
            _strings(prompt.render(r, catalogue.style, catalogue.vocab) for r in found),
            _strings(r.paragraph if isinstance(r, RampExample) else r.answers[0] for r in found),
            _strings(r.id for r in found),
            _strings(json.dumps(to_json(r), ensure_ascii=False) for r in found),
        )

    def to_features(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        columns = tf.numpy_function(rows, [batch], [tf.string] * 4, stateful=False)
        for column in columns:
            column.set_shape([None])
        return dict(zip(("inputs", "targets", "id", "example"), columns, strict=True))

    return _in_batches(lines, to_features)


def _demonstrations(lines: tf.data.Dataset, catalogue: _Catalogue, task: str) -> tf.data.Dataset:
    """JSON lines → `targets` and `agent` as int32 ids and mask, `id`, for one task."""
    prompts = _Prompts(catalogue)

    def rows(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        found = [from_json(Demonstration, json.loads(line)) for line in batch]
        found = [r for r in found if task_of(r) == task]
        made = [sequence(prompts[r.example_id], r, catalogue.vocab) for r in found]
        sizes = np.asarray([len(ids) for ids, _ in made], np.int64)
        empty = np.zeros(0, np.int32)
        ids = np.concatenate([empty, *(ids for ids, _ in made)])
        agent = np.concatenate([empty, *(agent for _, agent in made)])
        return ids, agent.astype(np.int32), sizes, _strings(r.id for r in found)

    def to_features(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        types = [tf.int32, tf.int32, tf.int64, tf.string]
        ids, agent, sizes, names = tf.numpy_function(rows, [batch], types, stateful=False)
        for column in (ids, agent, sizes, names):
            column.set_shape([None])
        ragged = functools.partial(tf.RaggedTensor.from_row_lengths, row_lengths=sizes)
        return {"targets": ragged(ids), "agent": ragged(agent), "id": names}

    def to_dense(row: dict[str, Any]) -> dict[str, tf.Tensor]:
        return {
            k: v if k == "id" else tf.reshape(tf.convert_to_tensor(v), [-1]) for k, v in row.items()
        }

    return _in_batches(lines, to_features).map(to_dense, num_parallel_calls=tf.data.AUTOTUNE)


def sequence(
    prompt_text: str, demonstration: Demonstration, vocab: Vocab
) -> tuple[np.ndarray, np.ndarray]:
    """The SFT sequence of a demonstration: ids int32[T] and agent bool[T].

    The prompt, then every segment tokenised alone (so that no token crosses authors, as in a
    rollout), then the end-of-sequence token, which the agent writes. A prompt segment in the
    demonstration is left out: prompts are rendered in the style of the run.
    """
    parts = [(vocab.encode(prompt_text), False)]
    for segment in demonstration.segments:
        if segment.author != "prompt":
            parts.append((vocab.encode(segment.text, literal=True), segment.author == "policy"))
    parts.append(([vocab.eos_ids[0]], True))
    ids = np.concatenate([np.asarray(p, np.int32) for p, _ in parts])
    return ids, np.repeat([agent for _, agent in parts], [len(p) for p, _ in parts])


class _Prompts(Mapping[str, str]):
    """Example id → rendered prompt, read from the example files by byte offset when asked for."""

    def __init__(self, catalogue: _Catalogue) -> None:
        self._catalogue = catalogue

    @functools.cached_property
    def _places(self) -> dict[str, tuple[str, Path, int]]:
        places = {}
        for kind in ("ramp", "questions"):
            for path in (_path(self._catalogue.folder, kind, split) for split in SPLITS):
                if path.is_file():
                    places |= {i: (kind, path, start) for i, start in _offsets(path)}
        return places

    def __getitem__(self, example_id: str) -> str:
        if example_id not in self._places:
            raise TaskError(
                f"a demonstration answers example {example_id!r}, which is not among the "
                f"{len(self._places)} examples and questions of {str(self._catalogue.folder)!r}"
            )
        kind, path, start = self._places[example_id]
        with path.open("rb") as file:
            file.seek(start)
            example = from_json(KINDS[kind], json.loads(file.readline()))
        return prompt.render(example, self._catalogue.style, self._catalogue.vocab)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _offsets(path: Path) -> Iterator[tuple[str, int]]:
    """Id and byte offset of each line of a JSONL file."""
    start = 0
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)["id"], start
            start += len(line)


def _strings(texts: Iterable[str]) -> np.ndarray:
    return np.asarray([t.encode() for t in texts], dtype=object)


def _in_batches(
    lines: tf.data.Dataset, to_features: Callable[[tf.Tensor], dict[str, Any]]
) -> tf.data.Dataset:
    """Map batches of lines to batches of rows, fewer or as many, and take those apart again."""
    return lines.batch(_BATCH).map(to_features).unbatch()
