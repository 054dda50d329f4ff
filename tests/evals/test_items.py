"""Items of an evaluation: which methods and suites may be asked for."""

import pytest

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.evals.items import check_methods


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (
            ("agent", "rag", "agent"),
            (
                "config.eval.methods has 'agent' twice: its items would count twice, and intervals "
                "be narrower than they are; give each method once"
            ),
        ),
        (
            (),
            (
                "config.eval.methods is empty; it must name some of closed_book, rag, agent, "
                "no_search, random"
            ),
        ),
        (("agnt",), "config.eval.methods has 'agnt'; did you mean agent?"),
    ],
)
def test_each_method_is_asked_once(methods, said):
    with pytest.raises(ConfigError) as error:
        check_methods(EvalConfig(methods=methods))
    assert str(error.value) == said
