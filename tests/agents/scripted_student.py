"""A student that thinks, searches once and answers, always with the same words."""

from masksearch_jax.agents import selection
from masksearch_jax.testing.models import ScriptedModel, scripted_model

LENIENT = selection.Rules(min_recall=0.0, grounded=False)
SAID = ["<think>", "a", "</think>", "<search>", "e", "</search>"]
THEN = ["</information>", "<answer>", "o", "</answer>"]


def scripted(vocab) -> ScriptedModel:
    """After the prompt it thinks and searches once; after what it finds it answers `o`."""
    last = vocab.encode("x\n")[-1:]
    return scripted_model(vocab, last + vocab.encode("".join(SAID)), vocab.encode("".join(THEN)))
