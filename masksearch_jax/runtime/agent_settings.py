"""How an agent was trained to be asked, told by the folder of its model.

An HF folder that `export_hf` wrote has `agent.json`; a folder of checkpoints has run.json beside
it. Of another folder nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from masksearch_jax.core.errors import UserError
from masksearch_jax.core.types import JsonObject
from masksearch_jax.runtime import run_record, storage

FILE = "agent.json"
# Of each section of a run, what decides how an agent is asked and what it may do.
KEYS = {
    "prompt": ("style",),
    "search": ("kind", "index", "url", "top_k", "max_passages", "max_queries"),
    "rollout": (
        *("max_len", "max_turns", "tool_turns", "max_new_tokens", "max_turn_tokens"),
        *("max_observation_tokens", "answer_tokens", "corrections", "max_repeats"),
    ),
    "compute": ("dtype", "param_dtype"),
}


def of_run(config: Mapping[str, Any]) -> JsonObject:
    """Those of a run's config, as JSON has it; of sections that it lacks none.

    And `tools`, where it has others than search.
    """
    tools = {"tools": list(config["tools"])} if config.get("tools") else {}
    return tools | {
        name: {key: config[name][key] for key in keys if key in config[name]}
        for name, keys in KEYS.items()
        if isinstance(config.get(name), Mapping)
    }


def read(folder: str) -> JsonObject:
    """Those of a model's folder, by section; {} where it tells none.

    Raises UserError for a file that cannot be read.
    """
    if not folder:
        return {}
    path = storage.path(folder)
    if (path / FILE).exists():
        try:
            return of_run(json.loads((path / FILE).read_text()))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path / FILE} tells no settings of an agent: {error}") from error
    if (record := run_record.of_checkpoints(folder)) is not None:
        return of_run(record["config"])
    return {}
