"""What the building of examples from a corpus can be told; see `config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from masksearch_jax.core.config import ComputeConfig, MeshConfig
from masksearch_jax.core.schema import key, section, seed_key, share

ATLAS_KEYS = ("cities", "reworded", "arithmetic")  # of section `ramp`, of the atlas alone


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """The text that there is, and how it is read."""

    path: str = key(
        "", "A file or folder of `format`; empty: the built-in atlas of facts.", content="text"
    )
    questions: str = key(
        "",
        ("A file of questions, in a form of `ramp.question_files`; empty: the atlas's, or none."),
        content="text",
    )
    limit: int = key(0, "Passages kept; 0: all.", least=0)
    max_bad_fraction: float = share(
        0.01, "Share of malformed rows tolerated before the build stops."
    )
    format: Literal["auto", "jsonl", "tsv", "hf", "dump", "wikiextractor", "tfds"] = key(
        "auto",
        (
            "jsonl: id, title, text, or one JSON array of them; tsv: with a header of id, text, "
            "title; hf: parquet or arrow files; dump: Wikipedia's pages-articles.xml; "
            "wikiextractor: wiki_00 files; tfds: a prepared dataset's folder; auto: told by the "
            "names. Text may be .gz, .bz2 or .xz."
        ),
    )
    language: Literal["en", "zh"] = key("en", "Of the text.")
    articles: bool = key(
        False,
        "Rows of jsonl, tsv or hf are whole articles, which are cut into passages, not passages.",
    )
    passage_words: int = key(100, "Words of the passages that articles are cut into.", least=1)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if not self.path:
            for name in ("questions", "format", "articles", "passage_words", "max_bad_fraction"):
                yield name, "it is read with config.corpus.path"


@dataclasses.dataclass(frozen=True)
class RampConfig:
    """Salient spans and masks (MaskSearch, section 3.1)."""

    cities: int = key(3000, "Of the atlas: articles on this many of the largest cities.", least=0)
    reworded: bool = key(
        False,
        (
            "Of the atlas: mask paragraphs in other words than the indexed articles, which is "
            "harder: read, not copy."
        ),
    )
    arithmetic: bool = key(
        False, "Of the atlas: further questions, which want a calculator or dates besides search."
    )
    statements: bool = key(
        False,
        "Of the atlas: write statements to check too, true, false and not told by any passage.",
    )
    extractor: Literal["rules", "spacy", "llm"] = key("rules", "What finds salient spans.")
    max_masks: int = key(4, "Masked spans of an example are 1..max_masks, balanced.", least=1)
    examples_per_passage: int = key(2, "Examples made of a paragraph, at most.", least=1)
    min_words: int = key(8, "Shorter paragraphs are dropped.", least=0)
    max_words: int = key(160, "Longer paragraphs are dropped.", least=1)
    heldout_fraction: float = share(
        0.05, "Share of articles held out for evaluation, by a hash of the title."
    )
    rl_fraction: float = share(
        0.0, "Share of the other articles kept from demonstrations, for DAPO."
    )
    max_examples: int = key(0, "Examples made; 0: all.", least=0)
    seed: int = seed_key("Of the choice of spans.")
    strategy: Literal["random", "weighted", "ppl"] = key(
        "random",
        (
            "Which spans are masked: any; by type and rarity; by how hard the model `ppl` finds "
            "them."
        ),
    )
    min_nll: float = key(0.5, "Of ppl, nats per token: easier spans are not masked.", least=0)
    max_nll: float = key(6.0, "Of ppl, nats per token: harder spans are not masked.")
    gazetteer: int = key(0, "Names learned from titles and links, at most; 0: none.", least=0)
    spacy_model: str = key(
        "", "An installed pipeline for the extractor spacy, such as en_core_web_sm."
    )
    supported: bool = key(
        False,
        (
            "Keep only spans that a search finds in another passage of the corpus: for "
            "`search.exclude_source`."
        ),
    )
    linked: bool = key(
        False,
        (
            "Of such spans mask two or more, of which what tells one names the article that tells "
            "another: to fill both, one search has to lead to the next."
        ),
    )

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if self.strategy != "ppl":
            for name in ("min_nll", "max_nll"):
                yield name, "it is read with config.ramp.strategy=ppl"
        if self.extractor != "spacy":
            yield "spacy_model", "it is read with config.ramp.extractor=spacy"
        if self.extractor != "rules":
            yield "gazetteer", "it is read with config.ramp.extractor=rules"


def idle_by_text(corpus: CorpusConfig, other: str = "") -> Iterator[tuple[str, str]]:
    """Of a run from text to examples: the keys of the atlas alone, or that of other text alone."""
    if corpus.path:
        for name in ATLAS_KEYS:
            yield f"ramp.{name}", "it is of the atlas, which is read without config.corpus.path"
    elif other:
        yield other, "it is read with config.corpus.path"


@dataclasses.dataclass(frozen=True)
class PplConfig:
    """The model that says how hard a span is, for the strategy ppl."""

    init: str = key("", "Folder in HF format or of checkpoints, or a GGUF file; needed.")
    tokenizer: str = key("", "Folder with tokenizer.json; empty: that of init.")
    batch: int = key(16, "Spans scored at once.", least=1)
    max_len: int = key(
        1024, "Tokens of a masked paragraph and the paragraph up to the span.", least=1
    )
    compute: ComputeConfig = section(ComputeConfig)
    mesh: MeshConfig = section(MeshConfig)
