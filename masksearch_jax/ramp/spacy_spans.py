"""Salient spans by any installed spaCy pipeline; loads spaCy, an optional extra."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from masksearch_jax.core.types import Passage, Span
from masksearch_jax.ramp import spans

if TYPE_CHECKING:
    from spacy.language import Language

# Labels of OntoNotes and of WikiNER, as spaCy's pipelines for English, Chinese and others use them.
LABELS = {
    **dict.fromkeys(("PERSON", "PER"), "PERSON"),
    **dict.fromkeys(("GPE", "LOC", "FAC", "PLACE"), "PLACE"),
    **dict.fromkeys(("ORG",), "ORG"),
    **dict.fromkeys(("DATE", "TIME"), "DATE"),
    **dict.fromkeys(("CARDINAL", "QUANTITY", "MONEY", "PERCENT", "NUMBER"), "NUMBER"),
    **dict.fromkeys(("EVENT", "WORK_OF_ART", "LAW", "PRODUCT", "MISC", "TERM", "LANGUAGE"), "TERM"),
}


class SpacyError(RuntimeError):
    """spaCy or the pipeline is not installed; the message says how to install it."""


def lemmatizer(model: str) -> Callable[[str], str]:
    """A text to the lemmas of its words, a space between them. Raises SpacyError."""
    pipeline = _load(model, "eval.lemmatizer")
    return lambda text: " ".join(word.lemma_ for word in pipeline(text))


class SpacyExtractor:
    """The entities of a pipeline as spans. Labels that are none of `LABELS` are refused.

    model: the name of an installed pipeline or its folder, or a pipeline itself.
    """

    def __init__(self, model: str | Language):
        self._nlp = _load(model, "ramp.spacy_model") if isinstance(model, str) else model

    def find(self, passages: Sequence[Passage]) -> list[spans.Candidates]:
        found = []
        texts = self._nlp.pipe(p.text for p in passages)
        for passage, document in zip(passages, texts, strict=True):
            proposed: list[Span] = []
            refused: Counter[str] = Counter()
            for entity in document.ents:
                span = _trimmed(passage.text, entity.start_char, entity.end_char, entity.label_)
                if span is None:
                    refused[f"label_{entity.label_}"] += 1
                else:
                    proposed.append(span)
            found.append(spans.sift(passage, proposed, refused))
        return found


def _trimmed(text: str, start: int, end: int, label: str) -> Span | None:
    """The entity without a leading article or a trailing possessive; None for other labels."""
    if label not in LABELS:
        return None
    if text[start:end].lower().startswith("the "):
        start += 4
    if text[start:end].endswith(("'s", "’s")):
        end -= 2
    return Span(start, end, text[start:end], LABELS[label]) if start < end else None


def _load(model: str, key: str) -> Language:
    """The pipeline that a key of the config names."""
    if importlib.util.find_spec("spacy") is None:
        raise SpacyError(
            f"{key} {model!r} needs spaCy, which is not installed: "
            "pip install 'masksearch_jax[spacy]', then python -m spacy download en_core_web_sm"
        )
    import spacy

    try:
        return spacy.load(model)
    except OSError as error:
        installed = ", ".join(sorted(spacy.util.get_installed_models())) or "none"
        raise SpacyError(
            f"{key} {model!r} is no installed pipeline or folder; installed: {installed}"
        ) from error
