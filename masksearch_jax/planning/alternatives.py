"""Other ways to do a run: those that need less memory, and one that computes less again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from masksearch_jax.core.config import DapoRun, SftRun

Run = SftRun | DapoRun
_LESS_AGAIN = {"block": "dots", "offload": "dots", "dots": "none"}  # remat that computes less again


def smaller(cfg: Run) -> Iterator[tuple[tuple[str, ...], Run]]:
    """Changes that need less memory, each with those before it, mildest first, and the run then."""
    names: tuple[str, ...] = ()

    def changed(section: str, key: str, value: Any) -> tuple[tuple[str, ...], Run]:
        part = dataclasses.replace(getattr(cfg, section), **{key: value})
        name = f"{section}.{key}={value}"
        return (*names, name), dataclasses.replace(cfg, **{section: part})

    for key, value in (("attention", "splash"), ("remat", "block")):
        if getattr(cfg.compute, key) != value:
            names, cfg = changed("compute", key, value)
            yield names, cfg
    for _ in range(2):
        if isinstance(cfg, DapoRun):
            if cfg.dapo.micro_batch and cfg.dapo.micro_batch % 2 == 0:
                names, cfg = changed("dapo", "micro_batch", cfg.dapo.micro_batch // 2)
                yield names, cfg
        elif cfg.sft.batch_size % (2 * cfg.optim.accumulate) == 0:
            names, cfg = changed("optim", "accumulate", cfg.optim.accumulate * 2)
            yield names, cfg
    if isinstance(cfg, DapoRun) and cfg.rollout.weights == "whole":
        names, cfg = changed("rollout", "weights", "shared")
        yield names, cfg
    yield changed("mesh", "context", cfg.mesh.context * 2)  # either, not both
    yield changed("mesh", "tensor", cfg.mesh.tensor * 2)


def quicker(cfg: Run) -> tuple[str, Run] | None:
    """A change that computes less of an update again, for more memory, and the run then.

    None where nothing but the head is computed again.
    """
    remat = _LESS_AGAIN.get(cfg.compute.remat)
    if remat is None:
        return None
    other = dataclasses.replace(cfg, compute=dataclasses.replace(cfg.compute, remat=remat))
    return f"compute.remat={remat}", other
