"""The judge as a measure."""

import dataclasses

import pytest

from masksearch_jax.core.errors import UserError
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.types import QAExample
from masksearch_jax.evals import judging, rows
from masksearch_jax.evals.lost import LostItemsError
from masksearch_jax.evals.results import Scored
from masksearch_jax.evals.rows import Row
from masksearch_jax.testing.services import Answer, Endpoint

ROWS = [
    Row(
        ("towns", "agent"),
        QAExample(f"q{i}", "towns", f"Which town is number {i}?", ("o",)),
        "o",
        Scored(f"q{i}", {"em": 0.0}, {}),
    )
    for i in range(4)
]


def test_verdicts_of_which_too_many_cannot_be_read_are_no_score(tmp_path):
    def few(request):
        is_read = "number 0?" in str(request["messages"])
        said = '{"reason": "so", "verdict": "correct"}' if is_read else "Well"
        return Answer(said, finish="stop" if is_read else "length")

    with Endpoint(few) as endpoint:
        cfg = JudgeConfig(base_url=endpoint.url, cache=str(tmp_path / "judge.sqlite"))
        said = (
            r"towns agent: 3 of 4 verdicts cannot be read, more than config\.judge\."
            r"max_unreadable=0\.5 allows: cut off .*finish_reason: length.*judge\.max_tokens"
        )
        for asked in (4, 7):  # what could not be read is asked for again, the others are paid for
            with pytest.raises(LostItemsError, match=said):
                judging.judged(ROWS, cfg, 0.5)
            assert len(endpoint.requests) == asked
        tolerant = dataclasses.replace(cfg, max_unreadable=0.75)
        found = judging.judged(ROWS, tolerant, 0.5)
        assert found == ["correct", "unreadable", "unreadable", "unreadable"]
        said = "3 of 3 verdicts cannot be read, so that there is no measure: "
        with pytest.raises(LostItemsError, match=said):
            judging.judged(ROWS[1:], dataclasses.replace(cfg, max_unreadable=1.0), 0.5)


def test_a_line_without_its_scored_answer_is_refused():
    with pytest.raises(UserError, match=r"no `answer`, .* evaluate again in a new folder"):
        rows.row_of({"suite": "towns", "method": "agent"})


def test_an_outage_counts_among_the_answers_that_were_asked(tmp_path):
    """Items without an answer need no judge: they do not thin out what a judge lost."""
    asked = [
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
            judging.judged(asked, cfg, 0.5)
