"""What a type checker reads: models and vocabularies, real ones and fakes, are what rollouts ask.

Nothing here runs; `mypy` fails where one of them is not.
"""

from masksearch_jax.core.tokenizer import Vocab, Vocabulary
from masksearch_jax.models.kv_cache import Fresh, KVCache
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.models.unrolled import Unrolled
from masksearch_jax.rollout.model import Policy, SamplingModel
from masksearch_jax.testing.models import ScriptedModel, TextVocab, WordVocab


def policies(real: Transformer, unrolled: Unrolled, scripted: ScriptedModel) -> list[Policy]:
    return [real, unrolled, scripted]


def stacked(model: Transformer) -> SamplingModel[KVCache, Fresh]:
    return model


def unrolled(model: Unrolled) -> SamplingModel[KVCache, tuple[Fresh, ...]]:
    return model


def scripted(model: ScriptedModel) -> SamplingModel[KVCache, tuple[()]]:
    return model


def vocabularies(real: Vocab, words: WordVocab, text: TextVocab) -> list[Vocabulary]:
    return [real, words, text]
