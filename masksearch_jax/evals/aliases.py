"""Other names of the entity that an answer is, as 2WikiMultihopQA's id_aliases.json has them."""

from __future__ import annotations

import json
import os

from masksearch_jax.core.errors import ConfigError


def read_aliases(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Wikidata's id of an entity → its names and demonyms.

    The file is JSON lines of `Q_id`, `aliases`, `demonyms`. Raises ConfigError for a file that is
    missing, and for a line of another form.
    """
    found: dict[str, tuple[str, ...]] = {}
    read = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line in file:
                read += 1
                if line.strip():
                    row = json.loads(line)
                    found[str(row["Q_id"])] = _names(row["aliases"]) + _names(row["demonyms"])
    except OSError as error:
        raise ConfigError(f"cannot read config.eval.aliases={path}: {error.strerror}") from None
    except (ValueError, TypeError, LookupError) as error:
        raise ConfigError(
            f"config.eval.aliases names {path}, whose line {read} is not as those of "
            f"2WikiMultihopQA's id_aliases.json ({error!r}); it must be an object of Q_id, aliases "
            "and demonyms"
        ) from None
    return found


def _names(told: object) -> tuple[str, ...]:
    """Raises TypeError for what is no list of texts."""
    if not isinstance(told, list) or not all(isinstance(name, str) for name in told):
        raise TypeError(f"{told!r:.60} is no list of texts")
    return tuple(told)
