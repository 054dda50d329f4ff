"""The TFDS dataset `ramp/k1`, `ramp/k2`, …: one config per number of masks, written by Beam.

Reading it needs neither this module nor Beam: `tfds.data_source("ramp/k2", data_dir=FOLDER)` gives
examples by number, without TensorFlow, and `tfds.load("ramp/k2", data_dir=FOLDER)` a tf.data one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.scripts.cli import convert_format_utils as convert_format

from masksearch_jax.core.types import RampExample, from_json
from masksearch_jax.ramp import tfds_records

VERSION = "1.0.0"  # of the features; a folder's name
_DESCRIPTION = """\
Retrieval-Augmented Mask Prediction (RAMP, MaskSearch, arXiv 2505.20285): paragraphs of an
encyclopedia with {k} salient spans replaced by [mask], to be filled by searching. No article is in
two splits: train is for demonstrations, rl for reinforcement learning, heldout for evaluation."""
_CITATION = """\
@article{masksearch2025, title={MaskSearch: A Universal Pre-Training Framework to Enhance Agentic
Search Capability}, journal={arXiv preprint arXiv:2505.20285}, year={2025}}"""


def features() -> tfds.features.FeaturesDict:
    """The features of an example, documented."""
    text, scalar = tfds.features.Text, tfds.features.Scalar
    return tfds.features.FeaturesDict(
        {
            "id": text(doc="Unique: the paragraph's id, @, and the number of its example."),
            "passage_id": text(doc="The passage of the corpus that the paragraph is."),
            "title": text(doc="The article's title."),
            "masked": text(doc="The paragraph with [mask] in place of each of its spans."),
            "paragraph": text(doc="The whole paragraph: the answer."),
            "spans": tfds.features.Sequence(
                {
                    "start": scalar(np.int32, doc="First character of the span in `paragraph`."),
                    "end": scalar(np.int32, doc="The character after its last."),
                    "text": text(doc="paragraph[start:end]"),
                    "type": text(doc="PERSON, PLACE, ORG, DATE, NUMBER or TERM."),
                },
                doc="The masked spans in text order: the i-th fills the i-th [mask].",
            ),
        }
    )


class Ramp(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes `ramp/kN` from JSON lines of examples with their `split`.

    pattern: the files. splits: those that have examples. facts: kept as the dataset's metadata.
    """

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012

    def __init__(
        self,
        *,
        k: int,
        pattern: str,
        splits: Sequence[str],
        facts: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        self._k, self._pattern, self._splits, self._facts = k, pattern, tuple(splits), dict(facts)
        config = tfds.core.BuilderConfig(name=f"k{k}", description=f"{k} masks")
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION.format(k=self._k),
            features=features(),
            citation=_CITATION,
            metadata=tfds.core.MetadataDict(self._facts),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager, pipeline: beam.Pipeline
    ) -> dict[str, Any]:
        rows = (
            pipeline
            | "examples" >> beam.io.ReadFromText(self._pattern)
            | "parse" >> beam.Map(json.loads)
        )
        return {split: rows | split >> self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> beam.PTransform:
        return beam.FlatMap(_of_split, split)


def add_array_record(folder: epath.Path, runner: str, options: Any) -> None:
    """Writes each TFRecord shard of a prepared dataset as ArrayRecord beside it.

    The dataset's info names the other format last, so that a stopped conversion goes on, and one
    that has ended does nothing. As `tfds convert_format`, which takes neither runner nor options.
    """
    info = dataset_info.read_proto_from_builder_dir(folder)
    wanted = convert_format.ConvertConfig(
        out_file_format=tfds.core.FileFormat.ARRAY_RECORD, fail_on_error=True
    )
    if wanted.out_file_format.value in info.alternative_file_formats:
        return
    for stale in filter(tfds.core.utils.is_incomplete_file, folder.iterdir()):
        stale.unlink()  # of a conversion that was killed
    shards = convert_format.get_all_shard_instructions(info, folder, folder, wanted)
    with beam.Pipeline(runner, options) as pipeline:
        _ = pipeline | "shards" >> beam.Create(shards) | "convert" >> beam.Map(_convert)
    convert_format.convert_metadata(folder, info, folder, wanted)


def _convert(shard: convert_format.ShardInstruction) -> None:
    """One shard, whole or not at all. The instruction's own method draws a progress bar."""
    rows = shard.config.in_file_adapter.make_tf_data(shard.in_path)
    with tfds.core.utils.incomplete_file(shard.out_path) as temporary:
        shard.config.out_file_adapter.write_examples(temporary, enumerate(rows.as_numpy_iterator()))


def _of_split(row: dict[str, Any], split: str) -> list[tuple[str, dict[str, Any]]]:
    """The example of a row as TFDS takes it, when it is of the split."""
    if row["split"] != split:
        return []
    example = from_json(RampExample, {k: v for k, v in row.items() if k != "split"})
    return [(example.id, tfds_records.to_features(example))]
