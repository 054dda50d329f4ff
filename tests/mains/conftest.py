"""The miniature with a cache, and a whole run of each trainer on it."""

import dataclasses
import os
import shutil
import subprocess
import sys

import pytest

from masksearch_jax import train_dapo, train_sft
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.types import QAExample, RampExample
from tests.mains.train_runs import dapo_config, sft_config


@pytest.fixture(scope="module")
def cached(miniature, make_once, repository):
    """The miniature with questions that are easy, and its cache."""
    cfg = miniature.cfg

    def at(folder):
        return dataclasses.replace(miniature, data=folder / "data", cache=folder / "cache")

    def make(folder):
        made = at(folder)
        shutil.copytree(miniature.data, made.data)
        train = read_jsonl(made.data / "ramp" / "train.jsonl", RampExample)
        easy = [
            QAExample(f"easy:{e.id}", "easy", e.paragraph, ("million", "Africa"))
            for e in train[:40]  # that a policy of a few updates gets right now and then
        ]
        questions = made.data / "questions" / "train.jsonl"
        write_jsonl(questions, [*read_jsonl(questions, QAExample), *easy])
        values = {
            "folder": made.data,
            "cache": made.cache,
            "tokenizer": made.tokenizer,
            "prompt.style": cfg.prompt.style,
            "max_len": cfg.sft.seq_len,
            "max_prompt_len": cfg.rollout.max_len // 2,
        }
        # The one process here that imports TensorFlow.
        command = [sys.executable, "-m", "masksearch_jax.build_cache"]
        command += [f"--config={repository / 'configs' / 'build_cache.py'}"]
        command += [f"--config.{name}={value}" for name, value in values.items()]
        subprocess.run(command, check=True, cwd=repository)

    return at(make_once("cached", make))


@pytest.fixture(scope="module")
def sft(cached, optimised, one_device, make_once):
    """The config of a whole SFT run, which has been run."""
    folder = make_once("sft", lambda folder: train_sft.run(sft_config(cached, folder)))
    return sft_config(cached, folder)


@pytest.fixture(scope="module")
def dapo(cached, sft, make_once):
    """The config of a whole DAPO run on it, which has been run."""
    init = os.path.join(sft.workdir, "checkpoints")
    folder = make_once("dapo", lambda folder: train_dapo.run(dapo_config(cached, folder, init)))
    return dapo_config(cached, folder, init)
