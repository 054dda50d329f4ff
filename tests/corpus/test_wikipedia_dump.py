"""Pages of a dump that are no articles, by the templates that they call."""

import pytest

from masksearch_jax.corpus import wikipedia_dump
from tests.corpus.wiki import HEAD, SEE, page

OF_ARTICLES = (
    "[[Rehn]]{{disambiguation needed|date=May 2024}}",
    "{{Disambig needed}}",
    "{{needs disambiguation|date=May 2024}}",
    "{{ needs disambiguation }}",
    "{{More citations needed disambiguation|date=May 2024}}",
    "{{Redirect to disambiguation}}",
    "{{Dablink|Of the town.}}",
    "{{Dablinks|date=May 2024}}",
    "{{DAB receiver}}",
    "{{消歧义链接|date=2024}}",
    "{{消歧義連結}}",
    "{{需要消歧义}}",
    "{{hndisplay}}",
    "{{other uses|Ember (disambiguation)}}",
    "{{about|a town|the river|Ember disambiguation}}",
)
OF_NO_ARTICLES = (
    "{{disambiguation}}",
    "{{ Disambiguation |geo|surname}}",
    "{{Disambiguation\n|geo}}",
    "{{disambiguation<!-- of places -->|geo}}",
    "{{Template:Disambig}}",
    "{{disambiguation page}}",
    "{{disambig-cleanup}}",
    "{{Disambiguation cleanup|date=May 2024}}",
    "{{Airport disambiguation}}",
    "{{Human_name_disambiguation}}",
    "{{Letter–number combination disambiguation}}",
    "{{SpeciesLatinNameDisambig}}",
    "{{dab}}",
    "{{hndis|Lind, Anna}}",
    "{{hndis-cleanup}}",
    "{{geodis}}",
    "{{消歧义}}",
    "{{消歧義頁}}",
    "{{人名消歧义|}}",
)


@pytest.mark.parametrize(
    ("templates", "refusal"), [(OF_ARTICLES, ""), (OF_NO_ARTICLES, "disambiguation")]
)
def test_pages_of_disambiguation_are_known_by_whole_names_of_templates(
    tmp_path, templates, refusal
):
    pages = (page(i, f"P{i}", f"{SEE} {text}") for i, text in enumerate(templates, start=1))
    (tmp_path / "wiki.xml").write_text(f"{HEAD}{''.join(pages)}</mediawiki>", encoding="utf-8")
    read = wikipedia_dump.read_pages(tmp_path / "wiki.xml")
    found = {template: p.refusal for template, p in zip(templates, read, strict=True)}
    assert found == dict.fromkeys(templates, refusal)
