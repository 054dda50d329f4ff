"""A student's own trajectories as demonstrations, beside those of the teacher that it learned from.

One iteration of self-evolution (MaskSearch, section 3.2) as a step of a study.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from masksearch_jax import build_trajectories, quickstart
from masksearch_jax.agents import selection
from masksearch_jax.agents.selection import EvolveConfig, StudentConfig
from masksearch_jax.build_trajectories import DEMONSTRATIONS, BuildTrajectoriesRun
from masksearch_jax.core.errors import UserError
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.types import Demonstration, RampExample
from masksearch_jax.data.folder import EXAMPLES
from masksearch_jax.recipes import steps


class NothingAcceptedError(UserError):
    """A student of whose trajectories too few are demonstrations to learn from."""


def sample(
    run: quickstart.Run, folder: Path, examples: int, samples: int, least: int
) -> dict[str, Any]:
    """Writes FOLDER/data: the demonstrations of the run's data, and what rules accept of its own.

    The run's weights sample `samples` trajectories of each of so many examples of the split rl,
    whose articles the teacher has not shown, or where that is empty of train. Raises
    NothingAcceptedError where fewer than `least` say what the teacher has not said.
    """
    cfg = run.cfg
    pool = _new_examples(run, examples)
    write_jsonl(folder / "pool" / "ramp" / "train.jsonl", pool)
    student = StudentConfig(
        init=run.checkpoints("init"),
        tokenizer=str(run.tokenizer),
        samples=samples,
        model=cfg.model,
        compute=cfg.compute,
        mesh=cfg.mesh,
        prompt=cfg.prompt,
        rollout=cfg.rollout,
    )
    made = build_trajectories.run(
        BuildTrajectoriesRun(
            folder=str(folder / "pool"),
            kinds=("ramp",),
            search=run.search,
            tools=cfg.tools,
            max_searches=cfg.rollout.max_turns,
            seed=cfg.seed,
            teacher="local",
            language=cfg.corpus.language,
            student=student,
        ),
        may_be_empty=True,  # told below
    )
    accepted = read_jsonl(folder / "pool" / DEMONSTRATIONS, Demonstration)
    kept, dropped = selection.select(accepted, EvolveConfig().per_example, cfg.seed)
    shown = read_jsonl(run.data / DEMONSTRATIONS, Demonstration)
    merged, known = selection.merge(shown, kept)
    steps.log(f"{len(accepted):,} of {made['tried']:,} own trajectories accepted")
    lost = made["rejected"] | dropped | {"known before": known}
    if len(kept) - known < least:
        why = ", ".join(f"{n:,} {reason}" for reason, n in lost.items() if n)
        raise NothingAcceptedError(
            f"{made['tried']:,} trajectories of {len(pool):,} examples were sampled, and "
            f"{len(kept) - known} of them are demonstrations that the teacher has not shown, below "
            f"config.own_least, {least}: self_sft would learn from the teacher alone; without: "
            f"{why}; train the stage before for longer, or raise config.own_examples or "
            "config.own_samples"
        )
    write_jsonl(folder / "data" / DEMONSTRATIONS, merged)
    for kind in EXAMPLES:
        _link(run.data / kind, folder / "data" / kind)
    return steps.counted("own trajectories", made["tried"], len(kept), lost)


def _new_examples(run: quickstart.Run, wanted: int) -> list[RampExample]:
    """The first of `rl`, or where that is empty of `train`; a line where there are fewer."""
    splits = (run.data / "ramp" / f"{split}.jsonl" for split in ("rl", "train"))
    found = next(filter(None, (read_jsonl(path, RampExample) for path in splits)), [])
    if len(found) < wanted:
        steps.log(
            f"{len(found):,} examples are sampled, and {wanted:,} were wanted: no more are new"
        )
    return found[:wanted]


def _link(target: Path, path: Path) -> None:
    path.unlink(missing_ok=True)
    if target.is_dir():
        path.symlink_to(os.path.relpath(target, path.parent), target_is_directory=True)
