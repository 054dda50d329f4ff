"""Where a run's weights come from: random, an HF folder, a GGUF file, or a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from masksearch_jax.core.config import ComputeConfig, LoraConfig, ModelConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.gguf_file import is_gguf
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import Vocab, VocabError
from masksearch_jax.core.types import JsonObject
from masksearch_jax.models import hf, layout, lora
from masksearch_jax.models.hf_config import check_no_adapter
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import sharding
from masksearch_jax.runtime import run_record, storage
from masksearch_jax.training import checkpoint_files

_MODEL = (
    "a folder in Hugging Face format, such as export_hf writes, a GGUF file, or a folder of "
    "checkpoints"
)


class InitError(ValueError):
    """Weights that are not of the model that the run is configured for."""


def describe(folder: str, tokenizer: str, key: str = "config") -> tuple[ModelConfig, Vocab]:
    """Architecture and tokenizer of a local folder in HF format or of checkpoints, or a GGUF file.

    tokenizer: its folder or file; empty: `folder`, which checkpoints are not. Raises ConfigError,
    which names KEY.init or KEY.tokenizer, and what reading either raises.
    """
    if not folder.strip():
        raise ConfigError(f"{key}.init is empty; it must name {_MODEL}")
    if not Path(folder).is_dir() and not is_gguf(folder):
        raise ConfigError(
            f"{key}.init is {folder!r}, which is not a local folder or file; it must name {_MODEL}"
        )
    check_no_adapter(folder)
    in_hf_format = has_model(folder)
    if not in_hf_format and not tokenizer:
        raise ConfigError(
            f"{key}.init is {folder!r}, which holds no config.json; if it is a folder of "
            f"checkpoints, give the folder of its tokenizer as {key}.tokenizer"
        )
    config = hf.read_config(folder) if in_hf_format else checkpoint_files.read_model(folder)
    vocab = Vocab.load(tokenizer or folder)
    check_vocabulary(config, vocab, tokenizer or folder, folder)
    return config, vocab


def read_model(folder: str) -> ModelConfig:
    """That of a folder in HF format, of a GGUF file, or of checkpoints by the record of their run.

    Without a device: a command line asks before processes join. Raises what `hf.read_config`
    raises, and ConfigError for a record whose model cannot be read.
    """
    if not has_model(folder) and storage.path(folder).is_dir():
        record = run_record.of_checkpoints(folder)
        if record is not None and "model" in record["config"]:
            return to_dataclass(ModelConfig, record["config"]["model"], "model")
    return hf.read_config(folder)


def has_model(path: str) -> bool:
    """True for a GGUF file, and for a folder, local or in a bucket, in HF format.

    Another folder may hold checkpoints.
    """
    return is_gguf(path) or (epath.Path(path) / "config.json").exists()


def initial(
    init: str, config: ModelConfig, compute: ComputeConfig, mesh: Mesh, seed: int, base: str = ""
) -> Transformer:
    """The model laid out over `mesh`: from `init`, or random from `seed` when it is empty.

    init: an HF folder (it holds config.json), a GGUF file, or a checkpoint folder, whose latest
    step is taken. Raises InitError when a model is of another architecture (naming what differs) or
    in a bucket, and what `hf.load` and `from_checkpoint` raise.
    """
    if not init:
        placed = layout.parameter_shardings(mesh, hf.abstract(config, compute))
        make = jax.jit(lambda: Transformer(config, compute, nnx.Rngs(seed)), out_shardings=placed)
        return make()
    if _has_hf_weights(init, config):
        return hf.load(init, compute, mesh)
    return from_checkpoint(init, config, compute, mesh, base)


def pinned(init: str, config: ModelConfig) -> str:
    """`init` of `initial` with the step that is the latest now, where it holds checkpoints.

    So what a run says of its base is what it has read, though more steps may come there.
    """
    if not init or _has_hf_weights(init, config):
        return init
    return checkpoint_files.pinned(init)


def from_checkpoint(
    folder: str, config: ModelConfig, compute: ComputeConfig, mesh: Mesh, base: str = ""
) -> Transformer:
    """The model of the latest step, or of FOLDER/STEP, laid out over `mesh`; adapters are merged.

    base: where the model that these are for is, an HF or checkpoint folder; empty: where it was in
    training. Raises InitError when it is not there or another one, and what `stored.load_params`
    raises.
    """
    adapters = checkpoint_files.read_adapters(folder)
    if adapters is None:
        return checkpoint_files.load_params(
            folder, _placed(hf.abstract(config, compute), mesh), config
        )
    where, as_trained = _base(folder, adapters, base, compute)
    model = initial(where, config, as_trained, mesh, adapters["base_seed"])
    _check_base(folder, adapters, where, lora.fingerprint(model))
    like = _adapter_shapes(adapters, config, as_trained, mesh)
    params = checkpoint_files.load_params(folder, like, config)
    return lora.merge(lora.attach(model, params.blocks.adapters), compute.param_dtype)


class Weights(NamedTuple):
    """A model's parameters, brought by name one at a time; see `stored.StoredParams`."""

    read: Callable[[str], jax.Array]
    step: int | None  # None: of an HF folder or a GGUF file
    dtype: str  # of adapters, that of their base
    made_from: str


@contextlib.contextmanager
def weights(
    folder: str,
    config: ModelConfig,
    compute: ComputeConfig,
    mesh: Mesh,
    base: str = "",
    step: int | None = None,
) -> Iterator[Weights]:
    """What `from_checkpoint` loads, of a step (None: the latest), one parameter at a time.

    `folder` may be an HF folder or a GGUF file too. The base of adapters is read twice: first to
    see that it is the one that they are for.
    """
    if has_model(folder):
        yield _of_model(folder, config, compute, mesh, base, step)
        return
    adapters, shapes = checkpoint_files.read_adapters(folder, step), hf.abstract(config, compute)
    if adapters is None:
        with checkpoint_files.StoredParams(folder, _placed(shapes, mesh), config, step) as params:
            yield Weights(params.read, params.step, params.dtype, params.made_from)
        return
    where, as_trained = _base(folder, adapters, base, compute)
    like = _adapter_shapes(adapters, config, as_trained, mesh)
    with (
        checkpoint_files.StoredParams(folder, like, config, step) as own,
        _reading(where, config, as_trained, mesh, adapters["base_seed"]) as of_base,
    ):
        fingerprint = lora.fingerprint(hf.abstract(config, as_trained), of_base)
        _check_base(folder, adapters, where, fingerprint)
        targets = {f"blocks.{name}" for name in adapters["targets"]}
        scale = adapters["alpha"] / adapters["rank"]

        def read(name: str) -> jax.Array:
            if name not in targets:
                return of_base(name).astype(compute.param_dtype)
            a, b = (own.read(name.replace(".", ".adapters.") + half) for half in ("_a", "_b"))
            return lora.merged(of_base(name), a, b, scale, compute.param_dtype)

        yield Weights(read, own.step, adapters["base_dtype"], f"{own.made_from} {fingerprint}")


def _of_model(
    folder: str,
    config: ModelConfig,
    compute: ComputeConfig,
    mesh: Mesh,
    base: str,
    step: int | None,
) -> Weights:
    """The parameters of an HF folder or a GGUF file. Raises InitError for a step or a base."""
    if base or step is not None:
        raise InitError(
            f"{folder} is a model, not a folder of checkpoints: it has no steps, no base"
        )
    _check_local("config.checkpoint", folder)
    _check_same(folder, hf.read_config(folder), config)
    parameters = hf.Parameters(folder, compute, mesh)
    made_from = f"{folder} {storage.fingerprint(folder).hex()}"
    return Weights(parameters.read, None, parameters.dtype, made_from)


@contextlib.contextmanager
def _reading(
    init: str, config: ModelConfig, compute: ComputeConfig, mesh: Mesh, seed: int
) -> Iterator[Callable[[str], jax.Array]]:
    """The parameters of `initial`, by name; only random ones are made all at once."""
    if not init:
        leaves = jax.tree_util.tree_flatten_with_path(initial("", config, compute, mesh, seed))[0]
        yield {sharding.parameter_name(path): leaf for path, leaf in leaves}.__getitem__
    elif _has_hf_weights(init, config):
        yield hf.Parameters(init, compute, mesh).read
    else:
        with weights(init, config, compute, mesh) as found:
            yield found.read


def _base(
    folder: str, adapters: JsonObject, base: str, compute: ComputeConfig
) -> tuple[str, ComputeConfig]:
    """Where the base of adapters is, and how to read it. Raises InitError where it is not there."""
    where, step = base or adapters["base"], adapters.get("base_step")
    if step is not None and not has_model(where):
        where = f"{checkpoint_files.split(where)[0]}/{step}"
    if where and not epath.Path(where).exists():
        raise InitError(
            f"{folder} holds adapters for {checkpoint_files.base_of(adapters)}, but {where} is not "
            "there; give the folder where it is now as config.base"
        )
    # As it was in training: in another dtype its values, and their fingerprint, may be others.
    return where, dataclasses.replace(compute, param_dtype=adapters["base_dtype"])


def _check_base(folder: str, adapters: JsonObject, where: str, actual: str) -> None:
    if actual != adapters["base_fingerprint"]:
        raise InitError(
            f"{folder} holds adapters for {checkpoint_files.base_of(adapters)} (fingerprint "
            f"{adapters['base_fingerprint']}); {where} holds another one ({actual})"
        )


def _adapter_shapes(
    adapters: JsonObject, config: ModelConfig, compute: ComputeConfig, mesh: Mesh
) -> Transformer:
    names = {f.name for f in dataclasses.fields(LoraConfig)}
    settings = LoraConfig(**{k: v for k, v in adapters.items() if k in names})
    return _placed(lora.shapes(hf.abstract(config, compute), settings)[0], mesh)


def _placed(shapes: Transformer, mesh: Mesh) -> Transformer:
    return jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes,
        layout.parameter_shardings(mesh, shapes),
    )


def _has_hf_weights(init: str, config: ModelConfig) -> bool:
    """Whether `init` is an HF folder or GGUF file, that can be read, of this architecture.

    Raises InitError where no model is there, for an HF folder in a bucket, and for another
    architecture.
    """
    if not Path(init).exists() and "://" not in init:
        raise InitError(
            f"config.init is {init!r}, which is not a local folder or file; download the model "
            "first and give the path of its GGUF file, or of the folder that holds its "
            "config.json, or of checkpoints"
        )
    is_model = has_model(init)
    if is_model:
        _check_local("config.init", init)
    check_no_adapter(init)
    if not is_model:
        if Path(init).is_dir() and not checkpoint_files.has_steps(init):
            names = sorted(p.name for p in Path(init).iterdir())[:10]
            below = checkpoint_files.below(init)
            raise InitError(
                f"config.init is {init!r}, which is not {_MODEL}; it has {names}{below}"
            )
        return False
    _check_same(init, hf.read_config(init), config)
    return True


def _check_local(key: str, model: str) -> None:
    """Raises InitError for an HF folder in a bucket."""
    if "://" in model:
        raise InitError(
            f"{key} is {model!r}, an HF folder in a bucket: give a local path, of a copy "
            "(gcloud storage cp -r) or of the bucket mounted as a folder (gcsfuse)"
        )


# Text whose ids tell tokenizers apart: words, digits, signs and letters of several languages.
_PROBE = "The 12,345 masks of Chad's Lac d'Évian (1998): 它位于北岸; Нева, naïve fjörður! "


def check_vocabulary(config: ModelConfig, vocab: Vocab, tokenizer: str, init: str = "") -> None:
    """Raises InitError for ids that the model does not embed, CheckpointError for another's.

    tokenizer: folder of `vocab`. init: of `initial`; checkpoints know the tokenizer that they
    were trained with, and a Hugging Face folder or GGUF file may hold its own.
    """
    if vocab.size > config.vocab_size:
        raise InitError(
            f"the tokenizer has ids up to {vocab.size - 1}, but config.model.vocab_size is "
            f"{config.vocab_size}: give the tokenizer of this model"
        )
    if not init or init == tokenizer:
        return
    if not has_model(init):
        if checkpoint_files.has_steps(init):
            stored = checkpoint_files.read_tokenizer(init)
            checkpoint_files.check_tokenizer(init, stored, identity(vocab, tokenizer))
        return
    own = None
    with contextlib.suppress(FileNotFoundError, VocabError):  # of a folder without one that is read
        own = Vocab.load(init)
    # Not by their files: of one tokenizer a GGUF file has another form than a folder.
    if own and own.encode(_PROBE, literal=True) != vocab.encode(_PROBE, literal=True):
        raise InitError(
            f"{init!r} holds a tokenizer of other ids than config.tokenizer, {tokenizer!r}: give "
            "the tokenizer of these weights"
        )


def context_of(config: ModelConfig) -> int:
    """Tokens that a model's positions reach: of its longest context, or as rope scaling has it."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "llama3":  # whose longest context is the scaled one
        return config.max_position
    original = scaling.original_max_position or config.max_position  # linear names none
    return max(config.max_position, int(original * scaling.factor))


def check_context(config: ModelConfig, tokens: int, what: str) -> None:
    """Raises ConfigError for more tokens than a model's positions reach. what: has so many."""
    if tokens > (most := context_of(config)):
        raise ConfigError(
            f"{what} is {tokens}, and the model's context is of {most} tokens "
            "(config.model.max_position): choose at most so many, or a model whose rope_scaling "
            "reaches further"
        )


def identity(vocab: Vocab, folder: str) -> dict[str, str]:
    """What checkpoints say of their tokenizer."""
    return {"folder": folder, "ids": vocab.ids_fingerprint}


def _check_same(folder: str, actual: ModelConfig, asked: ModelConfig) -> None:
    differing = [
        f"{f.name}: {getattr(actual, f.name)!r} there, {getattr(asked, f.name)!r} in config.model"
        for f in dataclasses.fields(ModelConfig)
        if getattr(actual, f.name) != getattr(asked, f.name)
    ]
    if differing:
        raise InitError(
            f"{folder} is of another architecture: {'; '.join(differing)}; with :hf behind its "
            "name a config takes the architecture of config.init"
        )
