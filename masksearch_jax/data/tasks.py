"""The seqio catalogue: tasks and mixtures over a folder of examples and demonstrations.

The folder's layout is that of `data.folder`. Features of `ramp_*` and `qa_*`: `inputs` (the prompt)
and `targets` (the whole paragraph, or the first accepted answer), with `id` and `example` (JSON)
passed through. Features of `*_sft_*`: `targets` (prompt, then every segment) and `agent` (1 where
the agent wrote the token), with `id`. Mixtures take their tasks at equal rates, RAMP and questions
together at `qa_share` where it is given, and those named `*_tT` in proportion to examples ** (1/T).
Importing this module imports TensorFlow.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.tools import Instructions
from masksearch_jax.core.types import (
    SPLITS,
    Demonstration,
    Example,
    RampExample,
    from_json,
    to_json,
)
from masksearch_jax.data import demonstrations, methods, prompt
from masksearch_jax.data.folder import KINDS, Folder, is_sft, task_of

_BATCH = 256  # records per call into Python
_registered: set[str] = set()  # names that `register` added; seqio's registries are global too


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


class DatasetExamples(seqio.DataSource):
    """RAMP examples of a TFDS dataset for seqio, as JSON; each process reads its own alone.

    `examples`: split → examples by number. Shuffling is of the whole split.
    """

    def __init__(self, examples: Mapping[str, Sequence[RampExample]]) -> None:
        self._examples = dict(examples)
        super().__init__(self._examples, {s: len(found) for s, found in examples.items()})

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        examples = self._examples[split]

        def lines(numbers: np.ndarray) -> np.ndarray:
            return _strings(_json(examples[number]) for number in numbers)

        numbers = tf.data.Dataset.range(len(examples))
        if shard_info is not None:
            numbers = numbers.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            numbers = numbers.shuffle(len(examples), seed=seed)
        read = functools.partial(_call, lines, types=[tf.string])
        return numbers.batch(_BATCH).map(lambda batch: read(batch)[0]).unbatch()


class _Catalogue(NamedTuple):
    """What the tasks of one folder share."""

    folder: Folder
    vocab: Vocab
    style: str
    tools: Sequence[Instructions]

    def prompt(self, example: Example) -> str:
        return prompt.render(example, self.style, self.vocab, self.tools)

    def sequence(self, demonstration: Demonstration) -> tuple[np.ndarray, np.ndarray]:
        """Ids and which of them the agent wrote, of any method."""
        example = self.folder.examples[demonstration.example_id]
        if demonstration.method in methods.SINGLE_TURN:
            return demonstrations.tokenise_single_turn(
                example, demonstration, self.style, self.vocab
            )
        return demonstrations.tokenise(self.prompt(example), demonstration, self.vocab)


def register(
    folder: str | Path,
    tokenizer: str | Path,
    prompt_style: str,
    temperatures: Sequence[float] = (),
    qa_share: float = 0.0,
    tools: Sequence[Instructions] = prompt.SEARCH_ALONE,
) -> list[str]:
    """Add the tasks and mixtures of `folder` to seqio's registries; their names, tasks first.

    Replaces what an earlier call added, so calling it again changes nothing. A task has the splits
    that hold records of it. Every mixture comes once more for each of `temperatures`. qa_share: of
    the questions in mixtures of RAMP and questions; 0: all tasks at equal rates. tools: those that
    prompts name. Raises FileNotFoundError when the folder has no records, RecordError naming file
    and line of a malformed one, and ValueError for a temperature that is not positive or a share
    that is none.
    """
    if bad := [t for t in temperatures if not t > 0]:
        raise ValueError(f"mixture temperatures {bad} are not positive")
    if not 0 <= qa_share < 1:
        raise ValueError(f"qa_share is {qa_share}; it must be in [0, 1)")
    catalogue = _Catalogue(Folder(folder), Vocab.load(tokenizer), prompt_style, tools)
    counts = catalogue.folder.counts()
    if not counts:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no records; expected JSONL such as "
            f"{[f'{kind}/{SPLITS[0]}.jsonl' for kind in KINDS]}, or a TFDS dataset, ramp/kN"
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
    rates = _rates(
        {t: s["train"] for t, s in tasks.items() if "train" in s}, temperatures, qa_share
    )
    for name, parts in rates.items():
        seqio.MixtureRegistry.add(name, parts)
    _registered.update(tasks, rates)
    return [*tasks, *rates]


def _rates(
    counts: Mapping[str, int], temperatures: Sequence[float], qa_share: float
) -> dict[str, list[tuple[str, float]]]:
    """Tasks and rates of every mixture of the tasks with that many training examples."""
    found: dict[str, list[tuple[str, float]]] = {}
    for name, parts in mixtures_of(counts).items():
        questions = [part for part in parts if part.startswith("qa_")]
        masks = len(parts) - len(questions)
        shares = dict.fromkeys(parts, 1.0)
        if qa_share and questions and masks:
            shares = dict.fromkeys(parts, (1 - qa_share) / masks)
            shares |= dict.fromkeys(questions, qa_share / len(questions))
        found[name] = list(shares.items())
        for t in temperatures:
            found[f"{name}_t{t:g}"] = [(part, counts[part] ** (1 / t)) for part in parts]
    return found


def mixtures_of(tasks: Iterable[str]) -> dict[str, list[str]]:
    """The mixtures that the tasks present allow: name → tasks.

    `ramp_mixed`, `ramp_uptoK` (the curriculum's lessons), `qa_mixed` and `ramp_qa_mixed`, each also
    with `_sft`, and `ramp_sft_qa_DATASET`.
    """
    tasks = sorted(tasks)
    found: dict[str, list[str]] = {}
    for sft in ("", "_sft"):
        ramp = {int(t.rpartition("_k")[2]): t for t in tasks if re.fullmatch(f"ramp{sft}_k\\d+", t)}
        qa = [t for t in tasks if t.startswith(f"qa{sft}_") and (sft or not is_sft(t))]
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
    seqio.TaskRegistry.add(
        name,
        source=_records(catalogue.folder, kind, name, splits),
        preprocessors=[*steps, seqio.CacheDatasetPlaceholder()],
        output_features=features,
    )


def _records(folder: Folder, kind: str, name: str, splits: Mapping[str, int]) -> seqio.DataSource:
    """Records of a task, and of others of its kind, as JSON: lines of files, or of a dataset."""
    if kind == "ramp" and folder.dataset:
        return DatasetExamples(folder.dataset[int(name.removeprefix("ramp_k"))])
    return seqio.TextLineDataSource(
        {split: str(folder.file(kind, split)) for split in splits}, num_input_examples=dict(splits)
    )


def _examples(
    lines: tf.data.Dataset, catalogue: _Catalogue, kind: str, task: str
) -> tf.data.Dataset:
    """JSON lines → batches of `inputs`, `targets`, `id`, `example` as text, of one task."""

    def rows(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        found = _of_task(batch, kind, task)
        return (
            _strings(map(catalogue.prompt, found)),
            _strings(r.paragraph if isinstance(r, RampExample) else r.answers[0] for r in found),
            _strings(r.id for r in found),
            _strings(map(_json, found)),
        )

    def to_features(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        columns = _call(rows, batch, [tf.string] * 4)
        return dict(zip(("inputs", "targets", "id", "example"), columns, strict=True))

    return lines.batch(_BATCH).map(to_features)


def _sequences(lines: tf.data.Dataset, catalogue: _Catalogue, task: str) -> tf.data.Dataset:
    """JSON lines → batches of `targets` and `agent` (ragged int32) and `id`, of one task."""

    def rows(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        found = _of_task(batch, "demonstrations", task)
        made = list(map(catalogue.sequence, found))
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


def _json(record: Any) -> str:
    return json.dumps(to_json(record), ensure_ascii=False)


def _strings(texts: Iterable[str]) -> np.ndarray:
    return np.asarray([t.encode() for t in texts], dtype=object)
