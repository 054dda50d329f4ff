"""A seqio feature converter that trains on the agent's own tokens alone."""

from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf


class AgentLMFeatureConverter(seqio.LMFeatureConverter):
    """`LMFeatureConverter` for `*_sft_*` tasks: loss where the agent wrote the target, else none.

    Takes `targets` and `agent`, of the same length in `task_feature_lengths`; packs both alike.
    """

    TASK_FEATURES = {  # noqa: RUF012
        "targets": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "agent": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    }

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        converted = super()._convert_example(features)
        return {**converted, "decoder_loss_weights": features["agent"]}

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        if task_feature_lengths["agent"] != task_feature_lengths["targets"]:
            raise ValueError(f"lengths of agent and targets differ: {task_feature_lengths}")
        return super().get_model_feature_lengths(task_feature_lengths)
