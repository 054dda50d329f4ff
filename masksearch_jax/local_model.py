"""A model of ours from its folder alone: its architecture and its tokenizer."""

from __future__ import annotations

from pathlib import Path

from masksearch_jax.core.config import ModelConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.models import hf
from masksearch_jax.models.load import check_vocabulary
from masksearch_jax.training import checkpoint_files


def describe(init: str, tokenizer: str) -> tuple[ModelConfig, Vocab]:
    """What `initial` needs of a folder in HF format or of checkpoints, and its tokenizer.

    tokenizer: its folder; empty: that of `init`. Raises ConfigError for an `init` that is no
    folder, or one of checkpoints without a tokenizer, and what reading either raises.
    """
    if not Path(init).is_dir():
        raise ConfigError(
            f"config.init is {init!r}, which is not a local folder; it must be one in Hugging "
            "Face format, such as export_hf writes, or of checkpoints"
        )
    in_hf_format = (Path(init) / "config.json").is_file()
    if not in_hf_format and not tokenizer:
        raise ConfigError(
            f"config.init is {init!r}, which holds no config.json; if it is a folder of "
            "checkpoints, give the folder of its tokenizer as config.tokenizer"
        )
    config = hf.read_config(init) if in_hf_format else checkpoint_files.read_model(init)
    vocab = Vocab.load(tokenizer or init)
    check_vocabulary(config, vocab.size)
    return config, vocab
