"""A seqio feature converter that trains on the agent's own tokens alone."""

from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf


class AgentLMFeatureConverter(seqio.LMFeatureConverter):
    """`LMFeatureConverter` for `*_sft_*` tasks: loss where the agent wrote the target, else none.

    Takes `targets` and `agent`, of the same length in `task_feature_lengths`; packs both alike.
    seqio takes every 0 for padding while it packs, and would cut a row by its tokens of id 0, so
    both are kept one higher until then.
    """

    TASK_FEATURES = {  # noqa: RUF012
        "targets": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "agent": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    }

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        raised = ds.map(lambda row: {name: row[name] + 1 for name in self.TASK_FEATURES})
        return super()._convert_features(raised, task_feature_lengths)

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        targets = tf.maximum(features["targets"] - 1, 0)
        converted = super()._convert_example({**features, "targets": targets})
        by_agent = tf.cast(features["agent"] == 2, tf.int32)
        return {**converted, "decoder_loss_weights": by_agent}

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        if task_feature_lengths["agent"] != task_feature_lengths["targets"]:
            raise ValueError(f"lengths of agent and targets differ: {task_feature_lengths}")
        return super().get_model_feature_lengths(task_feature_lengths)
