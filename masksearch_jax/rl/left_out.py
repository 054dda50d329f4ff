"""Prompts that leave no room to answer: counted, listed in the run's folder, bounded in share."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from masksearch_jax.core.errors import UserError
from masksearch_jax.core.files import write_lines

if TYPE_CHECKING:
    from etils import epath

    from masksearch_jax.core.config import DapoRun
    from masksearch_jax.data.batches import PromptBatches

FILE = "left_out.jsonl"
REASON = "prompt_too_long"


class LeftOutError(UserError):
    """More prompts cannot be asked than the run tolerates."""


def check_share(prompts: PromptBatches, cfg: DapoRun) -> None:
    """Raises LeftOutError where more than `dapo.max_bad_fraction` of the prompts are left out."""
    left_out, total = len(prompts.left_out()), prompts.total
    if left_out > cfg.dapo.max_bad_fraction * total:
        raise LeftOutError(
            f"{left_out} of {total} prompts leave no room to answer in rollout.max_len "
            f"{cfg.rollout.max_len}, more than config.dapo.max_bad_fraction="
            f"{cfg.dapo.max_bad_fraction:g} allows; raise rollout.max_len, build the cache with a "
            "smaller max_prompt_len, or allow more"
        )


def write(prompts: PromptBatches, cfg: DapoRun, workdir: epath.Path) -> None:
    """Lists what is left out in WORKDIR/left_out.jsonl, {"id", "reason"}, and tells their number.

    Where nothing is, an earlier list is deleted. For the first process.
    """
    left_out, path = prompts.left_out(), workdir / FILE
    if not left_out:
        path.unlink(missing_ok=True)
        return
    write_lines(path, (json.dumps({"id": name, "reason": REASON}) for name in left_out))
    print(
        f"  {len(left_out)} of {prompts.total} prompts are left out, {REASON}: they leave no room "
        f"to answer in rollout.max_len {cfg.rollout.max_len}; their ids: {path}",
        file=sys.stderr,
        flush=True,
    )
