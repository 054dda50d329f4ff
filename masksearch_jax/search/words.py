"""How text and queries become terms, by language; pure configuration of tantivy's analysers.

English: words, lower-cased, accents folded, stemmed; stop words are kept in titles only. Chinese:
overlapping pairs of characters, since its words are not spaced; a title or a query of one character
is a pair of it.
"""

from __future__ import annotations

import tantivy

LANGUAGES = ("en", "zh")

# Words that make a sentence a question, and auxiliaries: they say nothing about its subject. Longer
# lists (pronouns, demonstratives, "called", "same") lowered recall on multi-hop questions.
QUESTION_WORDS = """
what which who whom whose when where why how
do does did done doing am is are was were be been being has have had having
can could shall should will would may might must ought
"""

_Builder = tantivy.TextAnalyzerBuilder


def title_words(language: str) -> tantivy.TextAnalyzer:
    """Terms of a title: every word, since a title may be nothing but stop words ("The Who")."""
    return _english() if language == "en" else _chinese()


def text_words(language: str) -> tantivy.TextAnalyzer:
    """Terms of a passage: every word but stop words."""
    return _english(stop_words=True) if language == "en" else _chinese()


def as_pair(text: str, language: str) -> str:
    """The title or query that is analysed: twice itself where it is one character of Chinese."""
    alone = text.strip()
    return alone * 2 if language == "zh" and len(alone) == 1 else text


def query_words(language: str) -> tuple[tantivy.TextAnalyzer, ...]:
    """Analysers for a query, narrowest first: the one to use is the first that leaves a term."""
    if language == "zh":
        return (_chinese(),)
    narrowest = _english(stop_words=True, question_words=True)
    return narrowest, text_words(language), title_words(language)


def _english(*, stop_words: bool = False, question_words: bool = False) -> tantivy.TextAnalyzer:
    """Drops the words asked for before stemming, so that the lists hold plain words."""
    step = tantivy.Filter
    words = _Builder(tantivy.Tokenizer.simple()).filter(step.remove_long(40))
    words = words.filter(step.lowercase())
    if stop_words:
        words = words.filter(step.stopword("english"))
    if question_words:
        words = words.filter(step.custom_stopword(QUESTION_WORDS.split()))
    return words.filter(step.ascii_fold()).filter(step.stemmer("english")).build()


def _chinese() -> tantivy.TextAnalyzer:
    return _Builder(tantivy.Tokenizer.ngram(2, 2)).filter(tantivy.Filter.lowercase()).build()
