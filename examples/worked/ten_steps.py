"""Ten steps of DAPO by a reward of one's own, on a model of random weights.

    python -m examples.worked.ten_steps

The reward is the share of small letters in what the policy writes. A model of random weights can
learn that in ten steps; it cannot learn to search. All else is a real run of `train_dapo`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from masksearch_jax import train_dapo
from masksearch_jax.core.config import DapoRun
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import Example, QAExample, Trajectory, to_json
from masksearch_jax.data import cache, prompt
from masksearch_jax.runtime import cli
from masksearch_jax.runtime.metric_writer import read_metrics
from masksearch_jax.search.tool import NoSearch

QUESTIONS = [
    QAExample(f"q{i}", "made", f"Which river is number {i}?", ("the Thames",)) for i in range(8)
]


def reward(example: Example, trajectory: Trajectory) -> dict[str, float]:
    """The share of small letters; `length` is logged and not trained on."""
    said = trajectory.text_by("policy")
    small = sum("a" <= letter <= "z" for letter in said)
    return {"total": small / max(len(said), 1), "length": float(len(said))}


def write_cache(folder: Path, vocab: Vocab) -> None:
    """The questions as prompts, as `build_cache` writes them."""
    records = (
        {
            "id": question.id,
            "ids": np.asarray(vocab.encode(prompt.render(question, "minimal", vocab)), np.int32),
            "example": json.dumps(to_json(question)),
        }
        for question in QUESTIONS
    )
    given = {"kind": "prompt", "max_len": 64, "made_from": "ten_steps"}
    split = cache.write_split(folder, "qa_made", "train", records, **given)
    cache.Manifest(
        folder=folder,
        made_from="ten_steps",
        tokenizer=vocab.fingerprint,
        vocab_size=vocab.size,
        eos_id=vocab.eos_ids[0],
        pad_id=vocab.pad_id,
        prompt_style="minimal",
        tasks={"qa_made": {"train": split}},
        mixtures={},
    ).save()


def config(folder: Path, vocab: Vocab) -> DapoRun:
    """The smoke run of `qa_dapo`, smaller, with the reward above and more steps."""
    c = cli.load_config("qa_dapo:tiny,runlocal")
    c.workdir, c.data = str(folder / "run"), str(folder / "cache")
    c.tokenizer, c.init, c.seed = str(folder / "tokenizer"), "", 0
    c.model.update(hidden_size=32, intermediate_size=64, num_layers=2, head_dim=8)
    c.model.vocab_size = vocab.size
    c.prompt = {"style": "minimal"}
    c.optim.learning_rate, c.optim.weight_decay = 0.02, 0.0
    c.optim.warmup_steps = 0
    c.dapo.update(steps=10, curriculum="0:qa_made", groups=4, group_size=8, micro_batch=8)
    c.dapo.update(reward="examples.worked.ten_steps:reward", keep_by="spread", minibatches=1)
    c.dapo.overlong_buffer = 0
    c.rollout.update(slots=32, decode_share=(1.0,), max_len=64, page_tokens=16, max_new_tokens=24)
    c.rollout.update(corrections=0, max_repeats=0, answer_tokens=0, max_observation_tokens=16)
    c.checkpoint.every = 10
    c.survival.compile_cache = ""
    return to_dataclass(DapoRun, c)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = (question.question for question in QUESTIONS)
        vocab = Vocab.load(train_bpe(texts, folder / "tokenizer", 280))
        write_cache(folder / "cache", vocab)
        train_dapo.run(config(folder, vocab), search=NoSearch())
        print("step  reward  spread  length")
        for row in read_metrics(folder / "run"):
            figures = row["reward"], row["reward_spread"], row["reward_length"]
            print("{:4}  {:6.2f}  {:6.2f}  {:6.1f}".format(row["step"], *figures))


if __name__ == "__main__":
    main()
