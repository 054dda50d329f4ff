"""What a recipe from text to trained models is told: the keys that quickstart and study share."""

from __future__ import annotations

import dataclasses
from typing import Literal

from masksearch_jax.core import config as config_lib
from masksearch_jax.core.corpus_config import CorpusConfig, RampConfig
from masksearch_jax.core.curriculum_config import (
    SCHEDULE,
    LessonsConfig,
    check_last_lesson,
    check_lessons,
)
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import key, required, section, seed_key, share
from masksearch_jax.core.search_config import tools_key
from masksearch_jax.core.watch_config import AlarmsConfig
from masksearch_jax.ramp.survey import CleanConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeRun:
    """The keys of a recipe from text to trained models, which quickstart and study share."""

    workdir: str = required("Folder of the run: what it writes.", harmless=True)
    seed: int = seed_key("Of the atlas's wording, of demonstrations and of random weights.")
    init: str = key(
        "",
        (
            "What training starts from: an HF folder or a GGUF file, whose tokenizer is taken too; "
            "empty: random weights, and a tokenizer trained on the text."
        ),
        content="sampled",
    )
    corpus: CorpusConfig = section(CorpusConfig)
    clean: CleanConfig = section(CleanConfig)
    ramp: RampConfig = section(RampConfig)
    prompt: config_lib.PromptConfig = section(config_lib.PromptConfig)
    tools: tuple[str, ...] = tools_key()
    search: config_lib.SearchConfig = section(
        config_lib.SearchConfig, "An empty index is the one that this run builds in its workdir."
    )
    tokenizer_vocab_size: int = key(1024, "Of the tokenizer trained on this run's text.", least=1)
    demonstrations: int = key(
        0, "Teacher's trajectories kept; 0: one of every training example that it solves.", least=0
    )
    question_demonstrations: int = key(
        0, "The same of questions, evenly by type, and of statements.", least=0
    )
    qa_share: float = share(
        0.0, "Of questions in mixtures with masked paragraphs; 0: each task at the same rate."
    )
    thoughts: Literal["full", "short"] = key(
        "full", "Of the scripted teacher, as in build_trajectories."
    )
    model: config_lib.ModelConfig = section(config_lib.ModelConfig)
    compute: config_lib.ComputeConfig = section(config_lib.ComputeConfig)
    cpu_devices: int = key(
        2,
        "Where there is no accelerator: devices that the CPU is split into.",
        harmless=True,
        least=1,
    )
    mesh: config_lib.MeshConfig = section(config_lib.MeshConfig)
    sft: config_lib.SftConfig = section(config_lib.SftConfig, "The first stage, RAMP, by SFT.")
    sft_optim: config_lib.OptimConfig = section(config_lib.OptimConfig)
    dapo: config_lib.DapoConfig = section(config_lib.DapoConfig, "The first stage by DAPO.")
    dapo_optim: config_lib.OptimConfig = section(config_lib.OptimConfig)
    qa_sft: config_lib.SftConfig = section(
        config_lib.SftConfig, "The second stage, questions, by SFT."
    )
    qa_sft_optim: config_lib.OptimConfig = section(config_lib.OptimConfig)
    qa_dapo: config_lib.DapoConfig = section(config_lib.DapoConfig, "The second stage by DAPO.")
    qa_dapo_optim: config_lib.OptimConfig = section(config_lib.OptimConfig)
    judge: JudgeConfig = section(JudgeConfig)
    lessons: LessonsConfig = section(
        LessonsConfig, "Of trainings whose curriculum has several; gates want heldout_points."
    )
    alarms: AlarmsConfig = section(AlarmsConfig, "Of trainings by DAPO.")
    rollout: RolloutConfig = section(RolloutConfig)
    eval: EvalConfig = section(EvalConfig)
    heldout_points: int = key(
        0, "Times that a training is measured on held-out examples, evenly; 0: not once.", least=0
    )
    heldout_examples: int = key(
        16, "Masked paragraphs of each number of masks, and questions, of a measurement.", least=1
    )
    checkpoint: config_lib.CheckpointConfig = section(config_lib.CheckpointConfig)
    survival: config_lib.SurvivalConfig = section(config_lib.SurvivalConfig)


def lessons_of(cfg: RecipeRun, curriculum: str) -> LessonsConfig:
    """How a training goes through its curriculum: one lesson has no next one to wait for."""
    return cfg.lessons if "," in curriculum else SCHEDULE


def measured_every(cfg: RecipeRun, steps: int) -> int:
    """Steps between the measurements of a training of so many; 0 for none."""
    return max(1, steps // cfg.heldout_points) if cfg.heldout_points else 0


def check_watch(cfg: RecipeRun, *trainings: config_lib.SftConfig | config_lib.DapoConfig) -> None:
    """Raises ConfigError for a gate that can never open, or an alarm that can never ring.

    And for gates that keep a training's last lesson from ever beginning.
    """
    check_lessons(cfg.lessons)
    listens = {"lessons.by": cfg.lessons.by != "schedule", "alarms.plateau": cfg.alarms.plateau}
    for name in [name for name, wanted in listens.items() if wanted and not cfg.heldout_points]:
        section, _, key = name.partition(".")
        raise ConfigError(
            f"config.{name} is {getattr(getattr(cfg, section), key)}, and config.heldout_points "
            "is 0: nothing is measured; choose 1 or more measurements of each training"
        )
    for training in [t for t in trainings if cfg.heldout_points and t.steps]:
        lessons = lessons_of(cfg, training.curriculum)
        every = measured_every(cfg, training.steps)
        check_last_lesson(lessons, training.curriculum.count(",") + 1, every, training.steps)
