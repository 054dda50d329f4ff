"""One trajectory as HTML: read turn by turn, or token by token as the policy saw it."""

from __future__ import annotations

import itertools
import re
from typing import Any

from markupsafe import Markup, escape

from masksearch_jax.core import markup
from masksearch_jax.viewer import figures
from masksearch_jax.viewer.load import as_dict, as_list, is_number

MAX_TOKENS = 4000  # shown per trajectory: a page with more is slow to open on a phone
AUTHORS = {"prompt": "prompt", "policy": "policy", "tool": "search tool"}
_BLOCK = re.compile(rf"<({'|'.join(markup.TAGS)})>(.*?)</\1>", re.DOTALL)
# Shades of a sampled token by its log-probability: certain, likely, unsure, surprising.
_SHADES = (-0.05, -0.7, -2.3)


def view(record: dict[str, Any], index: int) -> dict[str, Any]:
    """What the page shows of one line of trajectories.jsonl; absent fields are left out."""
    example = as_dict(record.get("example"))
    golds = gold_texts(example)
    counts = count_tokens(record)
    return {
        "index": index,
        "id": record.get("example_id") or example.get("id") or "unnamed",
        "checkpoint": record.get("checkpoint", ""),
        "status": figures.words(str(record.get("status", "status unknown"))),
        "facts": _facts(record, example),
        "scores": [
            (figures.words(k), figures.number(v), repr(v))
            for k, v in as_dict(record.get("scores")).items()
        ],
        "golds": golds,
        "question": example.get("question", ""),
        "title": example.get("title", ""),
        "pieces": pieces(record, golds),
        "counts": [(a, AUTHORS[a], n) for a, n in counts.items() if n],
        "tokens": token_spans(record),
        "hidden": max(0, len(as_list(record.get("ids"))) - MAX_TOKENS),
    }


def gold_texts(example: dict[str, Any]) -> list[str]:
    """The masked spans of a RAMP example in order, or the accepted answers of a question."""
    if "question" in example:
        return [str(a) for a in as_list(example.get("answers"))]
    return [str(as_dict(s).get("text", "")) for s in as_list(example.get("spans"))]


def pieces(record: dict[str, Any], golds: list[str]) -> list[dict[str, Any]]:
    """Segments split at the grammar's blocks, in order; text outside any block stays a piece.

    A search result carries the facts of its turn: passages, seconds, error.
    """
    turns = iter(as_list(record.get("turns")))
    found = []
    for segment in map(as_dict, as_list(record.get("segments"))):
        author = segment.get("author") if segment.get("author") in AUTHORS else "prompt"
        turn = as_dict(next(turns, None)) if author == "tool" else {}
        text, at = str(segment.get("text", "")), 0
        # The prompt is the user's text: tags in it (an instruction may show some) are not actions.
        for match in _BLOCK.finditer(text) if author != "prompt" else ():
            found.append((author, "", text[at : match.start()], {}))
            found.append((author, match[1], match[2], turn))
            at = match.end()
        found.append((author, "", text[at:], {}))
    return [
        {
            "author": author,
            "tag": tag or AUTHORS[author],
            "text": highlight(text.strip(), golds if author != "prompt" else []),
            "note": _turn_note(turn),
            "error": str(turn.get("error") or ""),
        }
        for author, tag, text, turn in found
        if text.strip() or tag
    ]


def highlight(text: str, golds: list[str]) -> Markup:
    """Escaped text with masks boxed and every gold text marked where it stands as whole words."""
    texts = sorted({g for g in golds if g.strip()}, key=len, reverse=True)
    options = [re.escape(markup.MASK), *(rf"(?<!\w){re.escape(g)}(?!\w)" for g in texts)]
    out, at = [], 0
    for match in re.finditer("|".join(options), text):
        kind = "mask" if match[0] == markup.MASK else "gold"
        out += [escape(text[at : match.start()]), f'<mark class="{kind}">{escape(match[0])}</mark>']
        at = match.end()
    return Markup("".join([*map(str, out), str(escape(text[at:]))]))


def count_tokens(record: dict[str, Any]) -> dict[str, int]:
    """Tokens by author; empty counts where the trajectory holds no ids."""
    counts = dict.fromkeys(AUTHORS, 0)
    for author, _ in zip(_authors(record), as_list(record.get("ids")), strict=False):
        counts[author] += 1
    return counts


def token_spans(record: dict[str, Any]) -> Markup:
    """One span per token, coloured by author; its title holds position, id and logprob."""
    ids, texts = as_list(record.get("ids")), as_list(record.get("tokens"))
    logprobs = as_list(record.get("logprobs"))
    rows = itertools.zip_longest(ids, texts[: len(ids)], logprobs[: len(ids)], _authors(record))
    return Markup(
        "".join(_span(i, *row) for i, row in enumerate(itertools.islice(rows, MAX_TOKENS)))
        if ids
        else ""
    )


def _span(position: int, token: Any, text: Any, logprob: Any, author: str) -> str:
    shown = f"⟨{token}⟩" if text is None else str(text)
    title = f"{AUTHORS[author]} · position {position} · id {token}"
    shade = ""
    if author == "policy" and is_number(logprob):
        title += f" · logprob {logprob:.4f}"
        shade = f" s{sum(logprob < limit for limit in _SHADES)}"
    # A line break is shown as a sign and also taken, so that the text keeps its lines.
    body = str(escape(shown)).replace("\n", '<i class="nl"></i>\n')
    return f'<span class="t {author}{shade}" title="{escape(title)}">{body}</span>'


def _authors(record: dict[str, Any]) -> list[str]:
    """Who wrote each token: the prompt up to `prompt_len`, then policy where sampled, else tool."""
    ids, sampled = as_list(record.get("ids")), as_list(record.get("sampled"))
    prompt = record.get("prompt_len") if is_number(record.get("prompt_len")) else 0
    wrote = itertools.chain(sampled, itertools.repeat(False))
    return [
        "prompt" if i < prompt else "policy" if mine else "tool"
        for i, mine in zip(range(len(ids)), wrote, strict=False)
    ]


def _facts(record: dict[str, Any], example: dict[str, Any]) -> list[str]:
    searches = len(as_list(record.get("turns")))
    suite = record.get("suite")
    facts = [figures.SUITES.get(suite, figures.words(suite))] if isinstance(suite, str) else []
    facts.append(f"{searches} search{'' if searches == 1 else 'es'}")
    if "spans" in example:
        masks = len(as_list(example["spans"]))
        facts.append(f"{masks} mask{'' if masks == 1 else 's'}")
    if is_number(record.get("seconds")):
        facts.append(figures.seconds(record["seconds"]))
    versions = sorted({v for v in as_list(record.get("versions")) if is_number(v) and v >= 0})
    if versions:
        shown = versions if len(versions) == 1 else (versions[0], versions[-1])
        facts.append(f"policy version {'–'.join(map(str, shown))}")
    return facts


def _turn_note(turn: dict[str, Any]) -> str:
    if not turn:
        return ""
    titles = as_list(turn.get("titles"))
    note = f"{len(titles)} passage{'' if len(titles) == 1 else 's'}"
    if is_number(turn.get("seconds")):
        note += f" in {1000 * turn['seconds']:.0f} ms"
    return note + (": " + "; ".join(map(str, titles)) if titles else "")
