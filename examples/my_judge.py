"""A judge of your own: an LLM is asked in your words, and its verdict is the reward.

    MY_JUDGE=http://127.0.0.1:8000/v1 python -m masksearch_jax.train_dapo \\
        --config=configs/qa_dapo.py:qwen2.5-1.5b --config.tokenizer=Qwen2.5-1.5B-Instruct \\
        --config.dapo.reward=examples.my_judge:reward

A reward may be an `async def`; many are then under way at once. What raises is no score of 0: the
sample is left out. The judge that comes with the project is `--config.dapo.reward=judge`.
"""

from __future__ import annotations

import os

from openai import AsyncOpenAI

from masksearch_jax.core import markup
from masksearch_jax.core.types import QAExample, Trajectory


async def reward(example: QAExample, trajectory: Trajectory) -> float:
    """1 where the judge says yes."""
    answer = markup.extract_answer(trajectory.text_by("policy"))
    if not answer:
        return 0.0
    asked = f"{example.question}\nRight: {example.answers[0]}\nGiven: {answer}\nThe same? yes or no"
    async with AsyncOpenAI(base_url=os.environ["MY_JUDGE"], api_key="none") as llm:
        reply = await llm.chat.completions.create(
            model="judge", messages=[{"role": "user", "content": asked}], temperature=0
        )
    return float((reply.choices[0].message.content or "").strip().lower().startswith("yes"))
