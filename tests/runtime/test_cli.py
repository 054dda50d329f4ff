"""A command line of which something lies where this process cannot read it."""

from typing import NoReturn

import pytest

from masksearch_jax.core import config
from masksearch_jax.core.bucket import StorageError, StorageOutageError
from masksearch_jax.runtime import cli

HF = ("--config=ramp_sft:hf", "--config.init=gs://models/on-the-hosts-alone")


def status(error: Exception, *args: str) -> int:
    """How a main ends that reads a model, and how its agent was trained, by raising `error`."""

    def fail(*_: object) -> NoReturn:
        raise error

    try:
        cli.run(fail, config.SftRun, ["job.py", *args], fail, read_defaults=fail)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_check_says_what_is_wrong_and_reads_no_model(capsys):
    nothing = AssertionError("must not be read")
    assert (status(nothing, *HF, "--check"), capsys.readouterr()) == (0, ("", ""))
    assert status(nothing, *HF, "--check", "--config.eval.every=often") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "'often' is no whole number" in said
    assert status(nothing, HF[0], "--check") == 2
    said = capsys.readouterr().err
    assert "is to be read from a Hugging Face folder and none is named" in said


@pytest.mark.parametrize("spec", ["ramp_sft:hf", "ramp_sft:tiny"])
@pytest.mark.parametrize(
    ("error", "ends"),
    [(StorageOutageError("gs://models: no answer"), 42), (StorageError("gs://models: no"), None)],
)
def test_a_bucket_that_cannot_be_read_is_one_line(capsys, spec, error, ends):
    """And starts again where that passes: the command is right."""
    found = status(error, f"--config={spec}", HF[1])
    assert found == (ends or (2 if spec.endswith(":hf") else 1))
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert str(error) in said
