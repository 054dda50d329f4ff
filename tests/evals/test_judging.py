"""The judge as a measure."""

import pytest

from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.types import QAExample
from masksearch_jax.evals import judging
from masksearch_jax.evals.lost import LostItemsError
from masksearch_jax.evals.results import Scored
from masksearch_jax.evals.rows import Row
from masksearch_jax.testing.services import Answer, Endpoint


def test_an_outage_counts_among_the_answers_that_were_asked(tmp_path):
    """Items without an answer need no judge: they do not thin out what a judge lost."""
    rows = [
        Row(
            ("towns", "agent"),
            QAExample(f"q{i}", "towns", f"Which town is number {i}?", ("o",)),
            "o" if i < 2 else None,
            Scored(f"q{i}", {"em": 0.0}, {}),
        )
        for i in range(10)
    ]
    with Endpoint(Answer(status=500)) as endpoint:
        cfg = JudgeConfig(
            base_url=endpoint.url, retries=0, backoff=0.0, cache=str(tmp_path / "judge.sqlite")
        )
        with pytest.raises(LostItemsError, match="2 of 2 items got no reply of the judge"):
            judging.judged(rows, cfg, 0.5)
