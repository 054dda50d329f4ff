"""What configs share: model architectures by name, and how a config's argument is read.

Each number of an architecture is as in the `config.json` of the published base model.
"""

from __future__ import annotations

import difflib

from ml_collections import ConfigDict


def _qwen2(
    hidden,
    intermediate,
    layers,
    heads,
    kv_heads,
    *,
    vocab=151936,
    tied=False,
    window=131072,
    eps=1e-6,
):
    return {
        "family": "qwen2",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": hidden // heads,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "norm_eps": eps,
        "qkv_bias": True,
        "qk_norm": False,
        "tie_embeddings": tied,
        "max_position": window,
    }


def _qwen3(hidden, intermediate, layers, heads, kv_heads, *, tied=False):
    base = _qwen2(hidden, intermediate, layers, heads, kv_heads, tied=tied, window=40960)
    return base | {"family": "qwen3", "head_dim": 128, "qkv_bias": False, "qk_norm": True}


def _llama3(hidden, intermediate, layers, heads, *, factor, tied):
    return {
        "family": "llama",
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": 8,
        "head_dim": hidden // heads,
        "rope_theta": 5e5,
        "rope_scaling": {
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position": 8192,
        },
        "norm_eps": 1e-5,
        "qkv_bias": False,
        "qk_norm": False,
        "tie_embeddings": tied,
        "max_position": 131072,
    }


HF = "hf"  # in place of a name: the architecture of the folder `config.init`
MODELS = {
    # The quickstart's: small enough to learn to search on two CPU cores.
    "tiny": _qwen2(128, 384, 3, 4, 2, vocab=2048, tied=True, window=8192) | {"rope_theta": 1e4},
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2, tied=True, window=32768),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2, tied=True),
    "qwen2.5-3b": _qwen2(2048, 11008, 36, 16, 2, tied=True, window=32768),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4, vocab=152064),
    "qwen2.5-14b": _qwen2(5120, 13824, 48, 40, 8, vocab=152064, eps=1e-5),
    "qwen2.5-32b": _qwen2(5120, 27648, 64, 40, 8, vocab=152064, eps=1e-5),
    "qwen2.5-72b": _qwen2(8192, 29568, 80, 64, 8, vocab=152064, eps=1e-5),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, 8),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, 8),
    "smollm2-135m": {
        "family": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_layers": 30,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
        "rope_theta": 1e5,
        "rope_scaling": None,
        "norm_eps": 1e-5,
        "qkv_bias": False,
        "qk_norm": False,
        "tie_embeddings": True,
        "max_position": 8192,
    },
    "llama3.2-1b": _llama3(2048, 8192, 16, 32, factor=32.0, tied=True),
    "llama3.2-3b": _llama3(3072, 8192, 28, 24, factor=32.0, tied=True),
    "llama3.1-8b": _llama3(4096, 14336, 32, 32, factor=8.0, tied=False),
    "llama3.1-70b": _llama3(8192, 28672, 80, 64, factor=8.0, tied=False),
}


def _is_path(name: str) -> bool:
    """Whether this is no name of ours but a path, which has a `/` or ends in .gguf."""
    return "/" in name or name.endswith(".gguf")


def model(name: str) -> ConfigDict:
    """The architecture called `name`; "hf" and a path have it read from a model's folder or file.

    Raises ValueError naming the nearest name and all choices.
    """
    if name == HF or _is_path(name):
        return ConfigDict({"hf_folder": "" if name == HF else name})
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no model {name!r}; did you mean {nearest!r}? choices: {', '.join(MODELS)}"
        )
    return ConfigDict(MODELS[name])


class UnknownArgument(ValueError):
    """A part of a config's argument that is none of its `choices`."""

    def __init__(self, message: str, choices: list[str]):
        super().__init__(message)
        self.choices = choices


def parse_arg(arg: str, **defaults: str | bool) -> ConfigDict:
    """The settings that a config's argument couples: `"qwen2.5-7b,runlocal"`, in any order.

    `defaults` holds `model`, a name of `MODELS`, and switches that are off. A part of `arg` is a
    switch to turn on, or a model: a name of `MODELS`, `hf` for the architecture of the folder
    `config.init`, or that of another HF folder or GGUF file by its path, which has a `/` or ends in
    .gguf. Raises UnknownArgument naming the choices.
    """
    parsed = ConfigDict(defaults)
    switches = [name for name, value in defaults.items() if value is False]
    models = [*sorted(MODELS), HF] if "model" in defaults else []
    for part in filter(None, arg.split(",")):
        if part in switches:
            parsed[part] = True
        elif part in models or (models and _is_path(part)):
            parsed.model = part
        else:
            choices = switches + models
            close = difflib.get_close_matches(part, choices, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            folder = ", and no path, which has a / or ends in .gguf" if models else ""
            said = f"{part!r} is not one of {', '.join(choices)}{folder}{hint}"
            raise UnknownArgument(said, choices)
    return parsed


# A cell of the paper's table 2 names how each stage is trained: RAMP first, then questions. Its
# trainings start from one another's checkpoints. RL starts from a model that has seen some
# demonstrations, as an instruct model has: a few updates of SFT come before it. "none" is a
# baseline: the second stage without the first.
CELLS = {
    "sft-sft": ("ramp_sft", "qa_sft"),
    "rl-sft": ("ramp_sft", "ramp_dapo", "qa_sft"),
    "sft-rl": ("ramp_sft", "qa_dapo"),
    "rl-rl": ("ramp_sft", "ramp_dapo", "qa_dapo"),
    "none-sft": ("qa_sft",),
    "none-rl": ("qa_sft", "qa_dapo"),
}
_START_STEPS = 300  # of SFT before RL


def cells() -> dict[str, bool]:
    """The cells as switches of a config's argument."""
    return dict.fromkeys(CELLS, False)


def cell_of(arg: str) -> str:
    """The cell that a config's argument names, "" for none."""
    return next((part for part in arg.split(",") if part in CELLS), "")


def in_cell(c: ConfigDict, arg: str, stage: str) -> ConfigDict:
    """The config of a stage in the cell that `arg` names, which starts from the stage before.

    Raises ValueError for a stage that the cell does not have.
    """
    if not (cell := cell_of(arg)):
        return c
    chain = CELLS[cell]
    if stage not in chain:
        raise ValueError(f"the cell {cell} has no stage {stage}; it has {', '.join(chain)}")
    c.workdir = f"runs/cells/{cell}/{stage}"
    place = chain.index(stage)
    c.init = f"runs/cells/{cell}/{chain[place - 1]}/checkpoints" if place else ""
    following = chain[place + 1] if place + 1 < len(chain) else ""
    if following == stage.replace("_sft", "_dapo"):
        mixture = "ramp_sft_qa_mixed" if cell == "rl-rl" else "ramp_sft_mixed"
        c.sft.steps = min(c.sft.steps, _START_STEPS)  # a smoke run has fewer
        c.sft.curriculum = f"0:{mixture if stage == 'ramp_sft' else 'qa_sft_mixed'}"
    elif stage == "ramp_sft" and following == "qa_dapo":
        last = c.sft.steps
        c.sft.steps += min(last, _START_STEPS)
        c.sft.curriculum += f",{last}:ramp_sft_qa_mixed"
    return c


def search(runlocal: bool) -> ConfigDict:
    """What a search shows of demonstrations and of trainings: what was shown is learned."""
    c = ConfigDict()
    c.top_k = 1 if runlocal else 3
    c.max_passages = c.max_queries = 3
    return c


def smoke_rollout() -> ConfigDict:
    """Rollouts of a smoke run: a few short trajectories with one search."""
    c = ConfigDict()
    c.slots, c.max_len, c.max_new_tokens = 4, 768, 64
    c.tick_tokens, c.extend_tokens, c.chunk_tokens = 8, 64, 32
    c.max_turns, c.max_observation_tokens, c.answer_tokens = 1, 64, 16
    return c
