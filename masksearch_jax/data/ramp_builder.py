"""The TFDS dataset `ramp/k1`, `ramp/k2`, …: one config per number of masks, written by Beam.

Reading it needs neither this module nor Beam: `tfds.data_source("ramp/k2", data_dir=FOLDER)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_datasets as tfds

from masksearch_jax.data import ramp_source
from masksearch_jax.types import RampExample, from_json

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
        super().__init__(config=config, file_format="array_record", **kwargs)

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


def _of_split(row: dict[str, Any], split: str) -> list[tuple[str, dict[str, Any]]]:
    """The example of a row as TFDS takes it, when it is of the split."""
    if row["split"] != split:
        return []
    example = from_json(RampExample, {k: v for k, v in row.items() if k != "split"})
    return [(example.id, ramp_source.to_features(example))]
