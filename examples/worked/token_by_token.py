"""A trajectory read token by token: who wrote it, what the loss counts, log-probability, advantage.

    python -m examples.worked.token_by_token

The policy is scripted, so that its text can be read: it searches for grey, and then answers red or
blue, each half of the time. The rollout engine, the search, the reward and the advantages are those
of a real run.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from examples import my_reward
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Passage, QAExample, Trajectory
from masksearch_jax.rl.advantages import group_advantages
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.models import ScriptedModel, WordVocab, scripted_model

VOCAB = WordVocab()  # each word is one token
QUESTION = QAExample("q1", "made", "plan:", ("blue",))
SEARCH = FakeSearch({"grey": [Passage("p1", "grey", "blue")]})
SAMPLES = 4
SEED = 3


@flax.struct.dataclass
class Undecided(ScriptedModel):
    """A scripted model that has two ways to go on from some tokens: `other` is the second."""

    other: jax.Array

    def logits(self, hidden: jax.Array) -> jax.Array:
        second = self.other[hidden[..., 0].astype(jnp.int32)]
        return jnp.maximum(super().logits(hidden), 8.0 * jax.nn.one_hot(second, len(self.other)))


def policy() -> Undecided:
    """It thinks, searches, and says one of two colours between the tags of an answer."""
    said = [
        ":<think>plan</think><search>grey</search>",
        "</information><answer>red</answer>",
    ]
    following = scripted_model(VOCAB, *(VOCAB.encode(text) for text in said)).following
    answer, red, blue, end = (VOCAB.encode(w)[0] for w in ("<answer>", "red", "blue", "</answer>"))
    following = following.at[jnp.array([red, blue])].set(end)
    return Undecided(following, following.at[answer].set(blue))


def sample_group() -> list[Trajectory]:
    """Trajectories of one prompt, in the order of their numbers."""
    rollout = RolloutConfig(
        slots=SAMPLES,
        decode_share=(1.0,),
        max_len=48,
        page_tokens=16,
        tick_tokens=4,
        extend_tokens=16,
        chunk_tokens=8,
        max_new_tokens=24,
        answer_tokens=8,
        max_observation_tokens=16,
        deadline=0.0,
        seed=SEED,
    )
    ids = np.asarray(VOCAB.encode(QUESTION.question), np.int32)
    requests = [Request(QUESTION.id, ids, stream=0, sample=i) for i in range(SAMPLES)]
    cfg = SearchConfig(top_k=1)
    with Engine(VOCAB, search_alone(SEARCH, cfg), rollout, cfg) as engine:
        return sorted(engine.run(policy(), requests), key=lambda t: t.sample)


def main() -> None:
    group = sample_group()
    rewards = [my_reward.reward(QUESTION, trajectory) for trajectory in group]
    advantages = group_advantages(np.array([[terms["total"] for terms in rewards]]))[0]
    for trajectory, terms, advantage in zip(group, rewards, advantages, strict=True):
        said = trajectory.text_by("policy").partition("<answer>")[2].removesuffix("</answer>")
        print(
            f"sample {trajectory.sample}: {trajectory.status}, {len(trajectory.turns)} search, "
            f"answer {said!r}, reward {terms['total']:.2f}, advantage {advantage:+.2f}"
        )
    first = group[0]
    print("\nsample 0\nplace  author  token             loss  logprob  advantage")
    for place, token in enumerate(first.ids.tolist()):
        sampled = bool(first.sampled[place])
        author = "policy" if sampled else "prompt" if place < first.prompt_len else "tool"
        figures = f"{first.logprobs[place]:+7.2f}  {advantages[0]:+9.2f}" if sampled else ""
        text = VOCAB.decode([token])
        print(f"{place:5}  {author:6}  {text:16}  {int(sampled):4}  {figures}".rstrip())


if __name__ == "__main__":
    main()
