"""Fixtures of the tests of the rollout engine."""

import pytest

from tests.rollout.word_engine import ROLLOUT, colours, rollouts


@pytest.fixture(scope="module")
def plain():
    """REQUESTS by (example, sample): four slots that all decode, never interrupted."""
    return rollouts(colours(), seed=ROLLOUT.seed)
