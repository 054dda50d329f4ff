"""How the weights of a folder were trained, as the records of the runs before it tell."""

from __future__ import annotations

from collections.abc import Iterator

from masksearch_jax.models.load import has_model
from masksearch_jax.runtime import run_record

_KINDS = {"sft": "SFT", "dapo": "DAPO"}
_UNKNOWN = "not recorded"


def told(checkpoints: str) -> str:
    """The trainings from the first on, as "SFT (ramp_sft_mixed), then DAPO (ramp_mixed)".

    Of each the mixtures of its curriculum. "not recorded" stands first where a training began with
    checkpoints of an unknown run. "" where nothing is known.
    """
    found = list(_backwards(checkpoints))
    return "" if found == [_UNKNOWN] else ", then ".join(reversed(found))


def _backwards(folder: str) -> Iterator[str]:
    """The trainings from the last on, until weights that came from elsewhere or from none."""
    seen = set()
    while folder and not has_model(folder):
        record = run_record.of_checkpoints(folder)
        config = record["config"] if record else {}
        kinds = [kind for kind in _KINDS if kind in config]
        if folder in seen or len(kinds) != 1:
            yield _UNKNOWN
            return
        seen.add(folder)
        lessons = config[kinds[0]]["curriculum"].split(",")
        mixtures = dict.fromkeys(lesson.partition(":")[2].strip() for lesson in lessons)
        yield f"{_KINDS[kinds[0]]} ({', '.join(mixtures)})"
        folder = config.get("init", "")
