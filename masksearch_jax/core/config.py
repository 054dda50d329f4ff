"""What a run can be told: frozen sections, each key documented here and defaulted in `configs/`.

ConfigDict stops here: `to_dataclass` turns it into these dataclasses once, strictly. The last part
of the module puts the sections together: one `*Run` per main.
"""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.x frequency scaling (`rope_type: llama3` of an HF config)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of one decoder-only transformer; the numbers of an HF `config.json`."""

    family: Literal["qwen2", "qwen3", "llama"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    tie_embeddings: bool
    max_position: int


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed; changes speed and memory, not the function."""

    dtype: Literal["bfloat16", "float32"]  # activations and matrix products
    param_dtype: Literal["float32", "bfloat16"]  # stored weights
    # splash: the kernel for TPUs, in training; cudnn: that for NVIDIA GPUs
    attention: Literal["xla", "splash", "cudnn"]
    # What the backward pass finds of a layer: all; its matrix products; these, kept in the host's
    # memory; its input alone.
    remat: Literal["none", "dots", "offload", "block"]
    loss_chunk: int  # tokens per chunk of the LM head and the loss


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1 (what is left)."""

    data: int
    fsdp: int
    tensor: int
    context: int = 1


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    learning_rate: float
    schedule: Literal["constant", "linear", "cosine"]  # after the warm-up
    warmup_steps: int
    end_lr_ratio: float  # last learning rate / learning_rate
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    accumulate: int  # micro-batches per update
    # Of bfloat16 weights (compute.param_dtype): to the nearest, which loses updates below half a
    # step of theirs, or up or down by chance, so that the mean is right.
    rounding: Literal["nearest", "stochastic"] = "nearest"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) in place of all weights."""

    rank: int = 0  # of the adapters; 0: off, all weights are trained
    alpha: float = 32.0  # what an adapter adds counts alpha / rank times
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")  # adapted matrices


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int  # steps between saves
    keep: int  # newest checkpoints kept
    keep_every: int = 0  # those of every so many steps are kept for good; 0: none
    best_metric: str = ""  # the one with the best value of this metric is kept too; empty: none
    best_mode: Literal["max", "min"] = "max"
    folder: str = ""  # a folder or bucket of their own; empty: WORKDIR/checkpoints


@dataclasses.dataclass(frozen=True)
class SurvivalConfig:
    """How a run meets hangs, bad updates and lost hosts, and what it tells of its time."""

    # Until the first step is done, and for each save, there are `startup_seconds`; later a step or
    # rollout tick that takes `step_factor` times the median, and over `step_seconds`, is a hang:
    # all threads' stacks are dumped and the process exits with 42.
    startup_seconds: float = 3600.0  # 0: no watchdog
    step_factor: float = 10.0
    step_seconds: float = 300.0
    heartbeat_seconds: int = 30  # a host that is silent for so long is lost
    # An update whose loss or gradient is not finite, or whose loss is a spike, is never applied;
    # then the run stops, or counts it and goes on unless `max_skips` come in a row.
    guard: Literal["stop", "skip"] = "stop"
    spike_sigma: float = 0.0  # a spike: so many standard deviations above the mean; 0: none is
    spike_window: int = 128  # good losses that mean and deviation are taken of
    max_skips: int = 10
    profile_steps: tuple[int, ...] = ()  # traced to WORKDIR/profile; SIGUSR1: the next step
    compile_cache: str = ""  # folder or bucket of compiled programs; empty: none


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    path: str  # a file or folder of `format`; empty: the built-in atlas of facts
    questions: str  # a file of questions, see ramp.question_files; empty: the atlas's, or none
    limit: int  # passages kept, 0: all
    max_bad_fraction: float  # malformed rows tolerated before the build stops
    # jsonl: id, title, text, or one JSON array of them. tsv: with a header of id, text, title. hf:
    # parquet or arrow files. dump: Wikipedia's pages-articles.xml. wikiextractor: wiki_00 files.
    # tfds: a prepared dataset's folder. auto: told by the names. Text may be .gz, .bz2 or .xz
    format: Literal["auto", "jsonl", "tsv", "hf", "dump", "wikiextractor", "tfds"] = "auto"
    language: Literal["en", "zh"] = "en"
    articles: bool = False  # rows of jsonl, tsv or hf are whole articles, not passages
    passage_words: int = 100  # of the passages that articles are cut into


@dataclasses.dataclass(frozen=True)
class RampConfig:
    """Salient spans and masks (MaskSearch, section 3.1)."""

    cities: int  # of the atlas: articles on this many of the largest cities
    reworded: bool  # of the atlas: mask paragraphs in other words than the indexed articles
    extractor: Literal["rules", "spacy", "llm"]
    max_masks: int  # k is 1..max_masks, balanced
    examples_per_passage: int
    min_words: int  # shorter paragraphs are dropped
    max_words: int  # longer paragraphs are dropped
    heldout_fraction: float  # of articles, by a hash of the title
    rl_fraction: float  # of the other articles: kept from demonstrations, for DAPO
    max_examples: int  # 0: all
    seed: int
    # Which spans are masked: any; by type and rarity; by how hard the model `ppl` finds them
    strategy: Literal["random", "weighted", "ppl"] = "random"
    min_nll: float = 0.5  # of ppl, nats per token: easier spans are not masked
    max_nll: float = 6.0  # of ppl: harder spans are not masked
    gazetteer: int = 0  # names learned from titles and links, at most; 0: none
    spacy_model: str = ""  # an installed pipeline, for the extractor spacy


@dataclasses.dataclass(frozen=True)
class PplConfig:
    """The model that says how hard a span is, for the strategy ppl."""

    init: str  # folder in HF format, or of checkpoints
    tokenizer: str  # folder with tokenizer.json; empty: that of init
    batch: int  # spans scored at once
    max_len: int  # tokens of a masked paragraph and the paragraph up to the span
    compute: ComputeConfig
    mesh: MeshConfig


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    kind: Literal["bm25", "http", "none", "random"]
    index: str  # folder of the BM25 index
    url: str  # of a running `serve_search`, for kind http
    top_k: int  # passages per query
    max_passages: int  # passages shown per search, after merging
    max_queries: int  # queries read from one <search> block
    timeout: float  # seconds per search call
    workers: int  # searches in flight
    cache: str = ""  # SQLite file of results that need not be asked for again; empty: none
    replay: bool = False  # answer from the cache alone, and fail where it lacks a result
    # Hide the passage that a RAMP example masks from its own searches, as if it were not indexed
    exclude_source: bool = False


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    # minimal: the task text alone. chat: instructions in the tokenizer's chat template
    style: Literal["minimal", "chat"]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    slots: int  # trajectories open at once, if the KV cache holds them
    # Shares of them that decode at once, ascending: a program for each, the smallest that will do
    # is run. What is open beyond the last share waits for search. Programs of other sizes round
    # differently in the last bit: with one alone nothing ever does.
    decode_share: tuple[float, ...]
    max_len: int  # tokens of prompt, sampled text and observations together
    kv_tokens: int  # that the KV cache holds, all slots together; 0: slots times max_len
    page_tokens: int  # the KV cache is handed out in pages of so many
    kv_dtype: Literal["compute", "float32", "bfloat16", "int8"]
    # How a decode step reads the KV cache; pallas: by a kernel, on TPUs and GPUs; auto: by it where
    # it takes the head_dim and the page_tokens
    attention: Literal["auto", "xla", "pallas"]
    # Where devices share weights (mesh.fsdp, mesh.context): whole, in a copy on each while they
    # sample, in the compute dtype; or shared as they are, gathered layer by layer for every token
    weights: Literal["whole", "shared"]
    tick_tokens: int  # tokens decoded per tick
    extend_tokens: int  # prompt or observation tokens written per slot and tick
    chunk_tokens: int  # of those, written at once: a chunk is 8 rows of so many, padded
    max_turns: int  # searches allowed; the turn after the last must answer
    max_new_tokens: int  # sampled tokens per trajectory
    max_turn_tokens: int  # sampled tokens per turn; 0: no limit of its own
    max_observation_tokens: int  # tokens per search result
    answer_tokens: int  # kept free for the answer: observations are cut to it
    corrections: int  # per trajectory: invalid actions answered by a hint instead of the end
    temperature: float  # 0: greedy
    top_k: int  # 0: off. Filters break log-probabilities: training wants dapo.allow_filters
    top_p: float  # 1: off
    min_p: float  # 0: off
    max_repeats: int  # a phrase this often in a row ends the trajectory; 0: never
    deadline: float  # seconds per trajectory; 0: none
    # Trajectories in flight when sampling stops before all are done: dropped; kept with their
    # cache, which other weights wrote; or kept, the cache rebuilt by the next weights.
    in_flight: Literal["drop", "keep", "rebuild"]
    max_staleness: int  # versions since a kept trajectory's first token before it starts again
    seed: int


@dataclasses.dataclass(frozen=True)
class SftConfig:
    batch_size: int  # packed rows per step, all hosts
    seq_len: int
    steps: int
    other_loss_weight: float  # weight of tokens that the agent did not write
    curriculum: str  # "0:mixture,200:mixture": the mixture in force from each step on
    log_every: int
    seed: int


@dataclasses.dataclass(frozen=True)
class DapoConfig:
    """DAPO (arXiv 2503.14476), group-relative, token-level, no KL."""

    steps: int
    groups: int  # prompts with spread in reward per update
    group_size: int  # samples per prompt
    minibatches: int  # updates per step
    # Rows of rollout.max_len, which trajectories share, per gradient micro-batch; 0: one for each
    # part of the mesh
    micro_batch: int
    clip_low: float
    clip_high: float
    tis_cap: float  # cap of the truncated importance weight
    reward: Literal["recall", "penalised", "judge"]
    format_weight: float  # share of the reward for a well-formed trajectory
    length_penalty: float  # of the penalised reward, per excess answer token ratio
    accuracy_threshold: float  # a sample is right at or above it; all right or all wrong: no spread
    max_refills: int  # sampling rounds before training on what there is
    overlong_buffer: int  # sampled tokens before max_new_tokens where the penalty ramps
    overlong_penalty: float
    overlong_filter: bool  # drop truncated samples from the loss
    allow_filters: bool  # sample with top_k, top_p or min_p, though the trainer knows none
    oversample: float  # prompts in flight per group wanted, where rollout.in_flight keeps them
    curriculum: str  # as in SftConfig
    split: Literal["train", "rl"]  # of the prompts; rl where ramp.rl_fraction kept some
    seed: int


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    suites: tuple[str, ...]  # ramp, two_hop
    conditions: tuple[str, ...]  # search, no_search, random
    examples: int  # of the first suite, searching
    baseline_examples: int  # of the others and in the other conditions
    temperature: float  # of evaluation rollouts, in place of rollout.temperature; 0: greedy
    bootstrap: int  # resamples of the 95% interval
    seed: int
    # An item that ended for no fault of the model (its search failed, its time ran out) is sampled
    # again so often, then left out and counted; of more than this share the run ends with 1.
    retries: int = 3
    max_tool_failures: float = 0.01
    max_bad_fraction: float = 0.01  # items that cannot be run, found before any is, tolerated


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What `plan` compiles a run for; nothing else reads it."""

    topology: str = ""  # a TPU slice: v5p-64, v6e-256, or by its sides, v5p:2x4x4
    slices: int = 1  # of them, joined by the data centre's network
    improve: bool = True  # try other ways too: smaller where it does not fit, faster where it does
    json: str = ""  # file for the figures; empty: none


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What every main that runs a model is told."""

    workdir: str
    data: str  # folder of tokenised records with their manifest; of evaluate: of examples
    tokenizer: str  # folder with tokenizer.json
    init: str  # HF or checkpoint folder to start from; empty: random weights
    base: str = ""  # where init holds adapters: their base model; empty: where they say it is
    model: ModelConfig
    compute: ComputeConfig
    mesh: MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRun(ModelRun):
    seed: int
    optim: OptimConfig
    checkpoint: CheckpointConfig
    survival: SurvivalConfig = SurvivalConfig()
    lora: LoraConfig = LoraConfig()
    plan: PlanConfig = PlanConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRun(TrainRun):
    """`train_sft`: supervised fine-tuning on cached trajectories."""

    sft: SftConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DapoRun(TrainRun):
    """`train_dapo`: reinforcement learning with live search."""

    prompt: PromptConfig
    search: SearchConfig
    rollout: RolloutConfig
    dapo: DapoConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRun(ModelRun):
    """`evaluate`: a checkpoint on the suites, under each search condition."""

    prompt: PromptConfig
    search: SearchConfig
    rollout: RolloutConfig
    eval: EvalConfig
