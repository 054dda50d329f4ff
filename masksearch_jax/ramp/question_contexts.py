"""Documents that a file of questions ships beside them and that support an answer.

HotpotQA and 2WikiMultihopQA have them in `context`, by the titles in `supporting_facts`; MuSiQue in
`paragraphs`, by `is_supporting`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from masksearch_jax.ramp.question_files import rows


def gold_documents(path: Path) -> list[tuple[str, str]]:
    """(title, text) of all supporting documents, each once: MuSiQue has several of one article.

    Empty where the file ships none. Raises QuestionsError for a file that cannot be read.
    """
    told = (row for _, row in rows(path) if isinstance(row, Mapping))
    return list(dict.fromkeys(document for row in told for document in _documents(row)))


def _documents(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is malformed ships nothing."""
    try:
        if "paragraphs" in row:
            for part in row["paragraphs"]:
                if part.get("is_supporting"):
                    yield str(part["title"]), str(part["paragraph_text"])
        elif "context" in row and "supporting_facts" in row:
            wanted = {title for title, _ in _pairs(row["supporting_facts"], "sent_id")}
            for title, sentences in _pairs(row["context"], "sentences"):
                if title in wanted:
                    yield str(title), " ".join(s.strip() for s in sentences)
    except (TypeError, LookupError, AttributeError, ValueError):
        return


def _pairs(told: Any, key: str) -> list[tuple[str, Any]]:
    """[[title, x], …], or as Hugging Face has it {"title": [...], key: [...]}."""
    if isinstance(told, Mapping):
        return list(zip(told["title"], told[key], strict=True))
    return [(title, rest) for title, rest in told]
