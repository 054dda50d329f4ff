"""What a run can be told: frozen sections, each key with its default and what it means.

A file in `configs/` lists what it decides; all else is as it stands here. ConfigDict stops here:
`to_dataclass` turns it into these dataclasses once, strictly. What a corpus is turned into examples
by is in `corpus_config`, how trajectories are sampled in `rollout_config`, what searches in
`search_config`, what is evaluated in `eval_config`, what a run outlives in `survival_config`. The
last part of the module puts the sections together: one `*Run` per main that trains or evaluates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from masksearch_jax.core.curriculum_config import LessonsConfig
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.core.llm_config import EndpointConfig, JudgeConfig
from masksearch_jax.core.loss_config import LossConfig
from masksearch_jax.core.reward_config import RewardConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import key, keys_but, required, section, seed_key, share
from masksearch_jax.core.search_config import SearchConfig, tools_key
from masksearch_jax.core.survival_config import CheckpointConfig, SurvivalConfig
from masksearch_jax.core.watch_config import AlarmsConfig, HeldoutConfig, LogConfig


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are slowed for longer contexts (`rope_type` of an HF config)."""

    factor: float = required("Times that the context is longer than the original one.", least=1)
    low_freq_factor: float = required(
        "Original context / wavelength of full scaling; yarn's beta_slow; unused by linear.",
        least=0,
    )
    high_freq_factor: float = required(
        "Original context / wavelength of no scaling; yarn's beta_fast; unused by linear.", least=0
    )
    original_max_position: int = required(
        "Tokens of the original context; unused by linear.", least=0
    )
    kind: Literal["llama3", "yarn", "linear"] = key(
        "llama3",
        (
            "What is slowed: wavelengths beyond the original context (llama3), by channel (yarn), "
            "or all (linear)."
        ),
    )
    attention_factor: float = key(1.0, "Of cosines and sines; other than 1 in yarn alone.", least=0)

    def broken(self) -> Iterator[tuple[str, str]]:
        """See `Ruled`: what has no frequencies, or none that are numbers."""
        if self.attention_factor == 0:
            yield "attention_factor", "above 0"
        if self.kind != "linear":
            if self.original_max_position < 1:
                yield "original_max_position", "at least 1"
            if self.low_freq_factor == 0:
                yield "low_freq_factor", "above 0"
            if self.high_freq_factor <= self.low_freq_factor:
                yield "high_freq_factor", f"above the lower one, {self.low_freq_factor:g}"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of one decoder-only transformer; the numbers of an HF `config.json`."""

    family: str = required(
        "`model_type` of the HF config: qwen2, qwen3, llama, or one that an installed package adds."
    )
    vocab_size: int = required("Rows of the embedding, at least the tokenizer's ids.", least=1)
    hidden_size: int = required("Width of the residual stream.", least=1)
    intermediate_size: int = required("Width of the feed-forward block.", least=1)
    num_layers: int = required("Transformer blocks.", least=1)
    num_heads: int = required("Query heads.", least=1)
    num_kv_heads: int = required("Key and value heads; a divisor of num_heads.", least=1)
    head_dim: int = required("Width of a head.", least=1)
    rope_theta: float = required("Base of the rotary position embedding.")
    rope_scaling: RopeScaling | None = required("Scaling of its frequencies; None: none.")
    norm_eps: float = required("Epsilon of the RMS norms.", least=0.0)
    qkv_bias: bool = required("Query, key and value projections have a bias.")
    qk_norm: bool = required("Queries and keys are normalised by head.")
    tie_embeddings: bool = required("The LM head is the embedding.")
    max_position: int = required("Tokens of the longest context.", least=1)

    def broken(self) -> Iterator[tuple[str, str]]:
        """See `Ruled`."""
        if self.num_heads % self.num_kv_heads:
            yield "num_kv_heads", f"a divisor of {self.num_heads}"
        if self.head_dim % 2:
            yield "head_dim", "even"
        if self.rope_theta <= 1:
            yield "rope_theta", "above 1"


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed; changes speed and memory, not the function."""

    dtype: Literal["bfloat16", "float32"] = key("bfloat16", "Of activations and matrix products.")
    param_dtype: Literal["float32", "bfloat16"] = key("float32", "Of stored weights.")
    attention: Literal["xla", "blockwise", "splash", "cudnn"] = key(
        "xla",
        (
            "Attention of whole rows; blockwise: on any device, holds the scores of one pair of "
            "blocks at a time, and of a row of several texts computes fewer; splash: for TPUs; "
            "cudnn: for NVIDIA GPUs."
        ),
        harmless=True,
    )
    remat: Literal["none", "dots", "offload", "block"] = key(
        "none",
        (
            "What the backward pass finds of a layer: all (none); its matrix products (dots); "
            "these, kept in the host's memory (offload); its input alone (block)."
        ),
        harmless=True,
    )
    loss_chunk: int = key(
        2048, "Tokens per chunk of the LM head and the loss.", harmless=True, least=1
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1 (what is left)."""

    data: int = key(1, "Copies of the model, each with its part of a batch.", harmless=True)
    fsdp: int = key(
        -1,
        "Parts of a batch whose devices share one copy of the weights and of the optimizer.",
        harmless=True,
    )
    tensor: int = key(1, "Devices that share each matrix product.", harmless=True)
    context: int = key(
        1, "Devices that share a row; above 1 where rows are too long for one.", harmless=True
    )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate."""

    learning_rate: float = required("Peak of the schedule.", least=0.0)
    schedule: Literal["constant", "linear", "cosine"] = key(
        "cosine", "Learning rate after the warm-up; linear and cosine end with the run's steps."
    )
    warmup_steps: int = key(
        10,
        (
            "Updates in which the learning rate rises to its peak; a step of DAPO counts as "
            "dapo.minibatches of them, however few it makes."
        ),
        least=0,
    )
    end_lr_ratio: float = share(0.1, "Last learning rate / learning_rate, of linear and cosine.")
    b1: float = share(0.9, "Decay of the mean of gradients.")
    b2: float = share(0.95, "Decay of the mean of squared gradients.")
    eps: float = key(1e-8, "Added to the root of the mean square.", least=0)
    weight_decay: float = key(
        0.01, "Of matrices, times the learning rate; norms have none.", least=0
    )
    clip_norm: float = key(1.0, "Longest gradient, by its global norm; 0: any.", least=0)
    accumulate: int = key(
        1, "Micro-batches per update of SFT; DAPO has dapo.micro_batch.", harmless=True, least=1
    )
    rounding: Literal["nearest", "stochastic"] = key(
        "nearest",
        (
            "Of bfloat16 weights (compute.param_dtype): to the nearest, which loses updates below "
            "half a step of theirs, or up or down by chance, so that the mean is right."
        ),
    )

    def broken(self) -> Iterator[tuple[str, str]]:
        """See `Ruled`: what makes AdamW divide by 0, at the first update or where a gradient is."""
        if self.eps == 0:
            yield "eps", "above 0"
        for name in ("b1", "b2"):
            if getattr(self, name) == 1:
                yield name, "below 1"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) in place of all weights."""

    rank: int = key(
        0,
        (
            "Of the adapters; 0: off, all weights are trained; 16 with a learning rate of 2e-4 is "
            "a usual start."
        ),
        least=0,
    )
    alpha: float = key(32.0, "What an adapter adds counts alpha / rank times.", least=0)
    targets: tuple[str, ...] = key(
        ("q", "k", "v", "o", "gate", "up", "down"), "Matrices that have an adapter."
    )


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """What stands before the first sampled token."""

    style: Literal["minimal", "chat"] = key(
        "chat",
        "minimal: the task text alone; chat: instructions in the tokenizer's chat template.",
    )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on packed rows."""

    steps: int = required("Updates.", least=1)
    curriculum: str = required('"0:mixture,200:mixture": the mixture in force from each step on.')
    batch_size: int = key(128, "Packed rows per step, all hosts.", least=1)
    seq_len: int = key(4096, "Tokens of a packed row, at least the longest record's.", least=1)
    context_loss_weight: float = key(
        0.0, "Loss weight of tokens that the agent did not write, such as observations.", least=0
    )
    log_every: int = key(10, "Steps between lines of metrics.", harmless=True, least=1)
    seed: int = seed_key("Of the order of the data.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DapoConfig(RewardConfig, LossConfig):
    """DAPO (arXiv 2503.14476), group-relative, token-level, no KL, unless it is told otherwise."""

    steps: int = required("Rounds of sampling and updating.", least=1)
    curriculum: str = required('"0:mixture,200:mixture": the mixture in force from each step on.')
    groups: int = key(64, "Prompts with spread in reward per step.", least=1)
    group_size: int = key(16, "Samples per prompt; the paper's.", least=2)
    minibatches: int = key(4, "Updates per step.", least=1)
    micro_batch: int = key(
        0,
        (
            "Rows of rollout.max_len, which trajectories share, per gradient micro-batch; 0: one "
            "for each shard of the mesh."
        ),
        harmless=True,
        least=0,
    )
    keep_by: Literal["accuracy", "spread"] = key(
        "accuracy",
        (
            "Groups that train: those with right and wrong samples (accuracy), or all whose "
            "rewards differ, such as partly right ones (spread)."
        ),
    )
    accuracy_threshold: float = key(0.999, "A sample is right at or above it.")
    min_spread: float = key(
        0.01,
        "Rewards of a group that trains lie further apart, the lowest and the highest.",
        least=0,
    )
    rest_steps: int = key(
        0,
        (
            "Steps that a prompt rests whose samples had no spread (by default: were all right or "
            "all wrong), twice as many each time; 0: none."
        ),
        least=0,
    )
    max_bad_fraction: float = share(
        0.01,
        "Share of prompts without room to answer in rollout.max_len that is tolerated.",
        harmless=True,
    )
    max_refills: int = key(
        10,
        "Sampling rounds of a step, the first one included, before it trains on what there is.",
        least=1,
    )
    overlong_buffer: int = key(
        256, "Sampled tokens before max_new_tokens where the penalty ramps.", least=0
    )
    overlong_penalty: float = key(1.0, "Taken off at max_new_tokens; the paper's.", least=0)
    overlong_filter: bool = key(False, "Drop truncated samples from the loss.")
    allow_filters: bool = key(
        False,
        "Sample with top_k, top_p or min_p, though the trainer knows none.",
        harmless=True,
    )
    oversample: float = key(
        1.0,
        "Groups in flight as a step begins, per group wanted, where in_flight keeps them.",
        least=1,
    )
    keep_rollouts: float = key(
        0.0,
        (
            "Trajectories stored in WORKDIR/rollouts/STEP.jsonl.gz, in whole groups: up to 1 "
            "a share of the step's, above 1 their number, 0: none."
        ),
        harmless=True,
        least=0,
    )
    split: Literal["train", "rl"] = key(
        "train", "Of the prompts; rl where ramp.rl_fraction kept some."
    )
    seed: int = seed_key("Of the order of the prompts.")
    warn_after: int = key(
        5, "Steps in a row without an update before this is said.", harmless=True, least=1
    )
    patience: int = key(
        20,
        "Steps in a row without an update that end the run with 1; 0: none do.",
        harmless=True,
        least=0,
    )


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What `plan` compiles a run for; nothing else reads it."""

    topology: str = key(
        "", "A TPU slice: v5p-64, v6e-256, or by its sides, v5p:2x4x4.", harmless=True
    )
    slices: int = key(
        1, "Number of slices, joined by the data centre's network.", harmless=True, least=1
    )
    improve: bool = key(
        True,
        "Try other ways too: smaller where it does not fit, faster where it does.",
        harmless=True,
    )
    json: str = key("", "File for the figures; empty: none.", harmless=True)
    passages: int = key(
        0,
        "Tell what dense search of so many on the run's own devices costs; 0: do not.",
        harmless=True,
        least=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What every main that runs a model is told."""

    workdir: str = required("Folder or bucket of the run: what it writes.", harmless=True)
    data: str = required(
        "Folder of tokenised records with their manifest; of evaluate: examples.", content="sampled"
    )
    tokenizer: str = key("", "Folder with tokenizer.json; needed.", content="sampled")
    init: str = key(
        "",
        "Folder in HF format or of checkpoints, or a GGUF file; empty: random weights.",
    )
    base: str = key(
        "",
        "Where init holds adapters: their base model; empty: where they say it is.",
        harmless=True,
    )
    model: ModelConfig = section(ModelConfig)
    compute: ComputeConfig = section(ComputeConfig)
    mesh: MeshConfig = section(MeshConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRun(ModelRun):
    """What every main that trains is told."""

    seed: int = seed_key("Of random weights and adapters, and of stochastic rounding.")
    optim: OptimConfig = section(OptimConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    log: LogConfig = section(LogConfig)
    lessons: LessonsConfig = section(LessonsConfig)
    eval: HeldoutConfig = section(HeldoutConfig)
    alarms: AlarmsConfig = section(AlarmsConfig)
    prompt: PromptConfig = section(PromptConfig, "What held-out examples and RL prompts look like.")
    tools: tuple[str, ...] = tools_key()
    search: SearchConfig = section(SearchConfig)
    rollout: RolloutConfig = section(RolloutConfig)
    survival: SurvivalConfig = section(SurvivalConfig)
    lora: LoraConfig = section(LoraConfig)
    plan: PlanConfig = section(PlanConfig)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if not self.eval.every:
            for name in ("data", "examples", "temperature", "seed"):
                yield f"eval.{name}", "it is read with config.eval.every above 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRun(TrainRun):
    """`train_sft`: supervised fine-tuning on cached trajectories."""

    sft: SftConfig = section(SftConfig)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        yield from super().idle()
        yield "rollout.temperature", "config.eval.temperature is read in its place"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DapoRun(TrainRun):
    """`train_dapo`: reinforcement learning with live search."""

    dapo: DapoConfig = section(DapoConfig)
    judge: JudgeConfig = section(JudgeConfig)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        yield from super().idle()
        if self.dapo.reward != "judge":
            yield "judge", "it is read with config.dapo.reward=judge"
        elif self.judge.own_model:
            read = ("own_model", "base_url", "max_tokens", "language", "max_unreadable")
            for name in keys_but(JudgeConfig, *read):  # base_url has an error of its own
                yield f"judge.{name}", "the judge is the model itself, by config.judge.own_model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRun(ModelRun):
    """`evaluate`: a model on suites, by several methods."""

    prompt: PromptConfig = section(PromptConfig)
    tools: tuple[str, ...] = tools_key()
    search: SearchConfig = section(SearchConfig)
    rollout: RolloutConfig = section(RolloutConfig)
    eval: EvalConfig = section(EvalConfig)
    endpoint: EndpointConfig = section(EndpointConfig)
    judge: JudgeConfig = section(JudgeConfig, "With an endpoint, each answer is judged too.")

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        for name in ("rollout", "endpoint"):
            yield f"{name}.temperature", "config.eval.temperature is read in its place"
        for name in keys_but(EndpointConfig, "base_url"):
            if not self.endpoint.base_url:
                yield f"endpoint.{name}", "it is read with config.endpoint.base_url"
        for name in keys_but(JudgeConfig, "base_url", "own_model"):
            if not self.judge.base_url:
                yield f"judge.{name}", "it is read with config.judge.base_url"
        if self.endpoint.base_url:
            read = ("seed", "max_turns", "tool_turns", "temperature")
            ours = [f"rollout.{name}" for name in keys_but(RolloutConfig, *read)]
            for name in ("init", "base", "prompt", "compute", "mesh", *ours):
                yield name, "it is of a model of ours, and that of config.endpoint is asked"
