"""Where a run's weights come from: random, an HF folder, or a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from masksearch_jax import sharding, stored
from masksearch_jax.config import ComputeConfig, ModelConfig
from masksearch_jax.models import hf
from masksearch_jax.models.transformer import Transformer


class InitError(ValueError):
    """Weights that are not of the model that the run is configured for."""


def initial(
    source: str, config: ModelConfig, compute: ComputeConfig, mesh: Mesh, seed: int
) -> Transformer:
    """The model laid out over `mesh`: from `source`, or random from `seed` when it is empty.

    source: an HF folder (it holds config.json), or a checkpoint folder, whose latest step is taken.
    Raises InitError when an HF folder is of another architecture (naming what differs) or in a
    bucket, and what `hf.load` and `stored.load_params` raise.
    """
    shapes = hf.abstract(config, compute)
    placed = sharding.parameter_shardings(mesh, shapes)
    if not source:
        make = jax.jit(lambda: Transformer(config, compute, nnx.Rngs(seed)), out_shardings=placed)
        return make()
    if not Path(source).exists() and "://" not in source:
        raise InitError(
            f"config.init is {source!r}, which is not a local folder; download the model first and "
            "give the path of the folder that holds its config.json, or of checkpoints"
        )
    if "://" in source and (epath.Path(source) / "config.json").exists():
        raise InitError(
            f"config.init is {source!r}, an HF folder in a bucket: give a local path, of a copy "
            "(gcloud storage cp -r) or of the bucket mounted as a folder (gcsfuse)"
        )
    if (Path(source) / "config.json").is_file():
        _check_same(source, hf.read_config(source), config)
        return hf.load(source, compute, mesh)
    like = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, placed
    )
    return stored.load_params(source, like, config)


def check_vocabulary(config: ModelConfig, size: int) -> None:
    """Raises InitError when a tokenizer of `size` ids has some that the model does not embed."""
    if size > config.vocab_size:
        raise InitError(
            f"the tokenizer has ids up to {size - 1}, but config.model.vocab_size is "
            f"{config.vocab_size}: give the tokenizer of this model"
        )


def _check_same(folder: str, found: ModelConfig, asked: ModelConfig) -> None:
    differing = [
        f"{f.name}: {getattr(found, f.name)!r} there, {getattr(asked, f.name)!r} in config.model"
        for f in dataclasses.fields(ModelConfig)
        if getattr(found, f.name) != getattr(asked, f.name)
    ]
    if differing:
        raise InitError(f"{folder} is of another architecture: " + "; ".join(differing))
