"""Another evaluation of the same items, and the paired differences to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from masksearch_jax.core.errors import UserError
from masksearch_jax.core.types import JsonObject
from masksearch_jax.evals import results, rows
from masksearch_jax.evals.results import Bootstrap, Items
from masksearch_jax.runtime import storage


def compare(
    mine: Items, suites: Mapping[str, Any], other: str, results_file: JsonObject, how: Bootstrap
) -> JsonObject:
    """{run, differences}: mine minus the other's, over the items that both have.

    suites, results_file: of my eval.json and of the other's. Raises UserError where they share no
    suite, and where a suite that both have is of another file.
    """
    theirs = results_file["suites"]
    shared = [name for name in suites if name in theirs]
    if not shared:
        raise UserError(
            f"config.eval.compare: {other} has the suites {', '.join(theirs)}, and this evaluation "
            f"{', '.join(suites)}; there is nothing to compare"
        )
    for name in shared:
        if suites[name]["sha256"] != theirs[name]["sha256"]:
            raise UserError(
                f"config.eval.compare: the suite {name} of {other} is of another file "
                f"({theirs[name]['path']})"
            )
    others = rows.by_place(rows.Rows(storage.path(other) / rows.TRAJECTORIES))
    apart = results.differences(mine, others, how)
    return {"run": other, "differences": {s: apart[s] for s in shared if s in apart}}
