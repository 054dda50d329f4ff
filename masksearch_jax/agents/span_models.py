"""Models that a RAMP build asks: one names the spans of a passage, one says how hard they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from masksearch_jax.agents import salient, teachers
from masksearch_jax.core.corpus_config import PplConfig, RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.ramp import masking
from masksearch_jax.ramp.llm_spans import Named, Namer


class SpanModels:
    """`namer` where `ramp.extractor` is llm, `scorer` where `ramp.strategy` is ppl, else None.

    max_failed: share of passages for which the namer may get no reply. Raises ConfigError where the
    section of a model that is needed is missing or names none, and what loading its weights or
    opening its cache of replies raises.
    """

    def __init__(
        self,
        ramp: RampConfig,
        llm: LLMConfig | None,
        ppl: PplConfig | None,
        language: str,
        max_failed: float,
    ):
        self._session: teachers.Session | None = None
        self.namer: Namer | None = None
        self.scorer = load_scorer(ppl) if ramp.strategy == "ppl" else None
        if ramp.extractor == "llm":
            if llm is None:
                raise ConfigError("ramp.extractor is 'llm' and config.llm is None")
            self._session = teachers.Session(llm)
            self._language, self.namer = language, self._name
            self._failures = salient.Failures(max_failed)

    def _name(self, passages: Sequence[Any]) -> Sequence[Named]:
        asked = salient.name_spans(self._session.llm, passages, self._language, self._failures)
        return self._session.run(asked)

    def figures(self) -> dict[str, Any]:
        """What the replies cost; empty where none was asked for."""
        return self._session.figures() if self._session else {}

    def forget_unread(self) -> str:
        """Where not one reply could be read, has all asked for anew, and says so; else ""."""
        return self._session.llm.forget_unread() if self._session else ""

    def close(self) -> None:
        if self._session:
            self._session.close()


def load_scorer(cfg: PplConfig | None) -> masking.Scorer:
    """The model of `config.ppl`: (context, target) texts to nats per token of each target."""
    if cfg is None:
        raise ConfigError("ramp.strategy is 'ppl' and config.ppl is None: it names the model")
    import jax  # only where a model is asked

    from masksearch_jax.models import likelihood, load
    from masksearch_jax.parallel import sharding

    mesh = sharding.make_mesh(cfg.mesh)  # before a checkpoint is read, for which JAX begins
    config, vocab = load.describe(cfg.init, cfg.tokenizer, "config.ppl")
    model = load.initial(cfg.init, config, cfg.compute, mesh, 0)

    def score(asked: Sequence[tuple[str, str]]) -> list[float]:
        with jax.set_mesh(mesh):
            rows = masking.token_rows(asked, vocab.encode)
            return likelihood.losses(model, rows, cfg.batch, cfg.max_len)

    return score
