"""Functions that a config names: what is said of one that is not there."""

import pytest

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.user_code import import_function


def test_modules_that_no_config_can_name_are_no_choices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pay.py", "plot-run.py", "_generated_1.py"):
        (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match=r"there is no module 'zzzz'; choices: pay$"):
        import_function("zzzz:f", "config.eval.metrics", ())
