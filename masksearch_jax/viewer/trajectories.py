"""Trajectories for the page: which are shown, and what the page keeps of each."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Collection, Iterator
from typing import Any

from masksearch_jax.core import markup, scoring
from masksearch_jax.core.types import (
    SEARCH,
    SEARCH_ALONE,
    JsonObject,
    RampExample,
    Segment,
    from_json,
)
from masksearch_jax.viewer import load, names
from masksearch_jax.viewer.load import Folder, Run, as_dict, as_list, is_number

_DIGITS = 4  # decimals of log-probabilities and advantages on the page
# Fields that the page shows as they are.
TEXT_FIELDS = (
    *("group", "step", "sample", "seconds", "status", "advantage", "trained", "prompt_len"),
    "version",
)


@dataclasses.dataclass
class Group:
    """The trajectories of one folder, suite and method, and of these the first lines.

    file: the hash of the suite's file, "" where it is not known. verdicts: of an item's id what
    judges said, [judge, verdict] each. ids, scores: of all of them. lines: of the first `most`.
    """

    run: int
    place: str
    suite: str
    method: str
    file: str = ""
    verdicts: dict[str, list[list[str]]] = dataclasses.field(default_factory=dict)
    most: float = math.inf
    ids: list[str] = dataclasses.field(default_factory=list)
    scores: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)
    lines: list[str] = dataclasses.field(default_factory=list)

    def add(self, line: str, row: JsonObject) -> None:
        for name in as_dict(row.get("scores")):
            self.scores.setdefault(name, [None] * len(self.ids))
        for name, values in self.scores.items():
            value = as_dict(row.get("scores")).get(name)
            values.append(_rounded(value) if is_number(value) else None)
        self.ids.append(str(row.get("example_id") or as_dict(row.get("example")).get("id") or ""))
        if len(self.lines) < self.most:
            self.lines.append(line)


def read(run: Run, number: int, most: int) -> list[Group]:
    """All trajectories of a run, by folder, suite and method, with the lines that `take` may take.

    At most twice as many are held as `most`, and two more of each group.
    """
    groups: dict[tuple[str, ...], Group] = {}
    held = 0
    for folder in run.folders:
        place = names.place(folder.parts, is_evaluation=folder.is_evaluation)
        suites, verdicts = load.suites(folder), _verdicts(folder, run)
        for line, row in _rows(folder, run):
            suite, method = _suite(row), _method(row)
            key = (place, suite, method)
            if key not in groups:
                file = str(as_dict(suites.get(suite)).get("sha256") or "")
                said = verdicts.get((suite, method), {})
                groups[key] = Group(number, place, suite, method, file, said)
            before = len(groups[key].lines)
            groups[key].add(line, row)
            held += len(groups[key].lines) - before
            room = most + len(groups)  # one more of each: shares are rounded
            if held > 2 * room:
                take(list(groups.values()), room)
                held = sum(len(group.lines) for group in groups.values())
    return list(groups.values())


def _verdicts(folder: Folder, run: Run) -> dict[tuple[str, str], dict[str, list[list[str]]]]:
    """By suite and method, then by the item's id: what each judge said."""
    found: dict[tuple[str, str], dict[str, list[list[str]]]] = {}
    if load.VERDICTS in folder.files:
        for _, told in load.read_lines(folder.path / load.VERDICTS, run):
            suite, method, item = (str(told.get(k)) for k in ("suite", "method", "id"))
            said = [str(told.get("model", "")), str(told.get("verdict", ""))]
            found.setdefault((suite, method), {}).setdefault(item, []).append(said)
    return found


def _rows(folder: Folder, run: Run) -> Iterator[tuple[str, JsonObject]]:
    for name in folder.partial:
        run.notes.append(f"{'/'.join((*folder.parts, name))}: of an evaluation that has not ended.")
        yield from load.read_lines(folder.path / name, run)
    if load.TRAJECTORIES in folder.files:
        yield from load.read_lines(folder.path / load.TRAJECTORIES, run)
    if folder.has_rollouts:
        paths = (folder.path / load.ROLLOUTS).glob("*.jsonl.gz")
        for path in sorted(paths, key=lambda p: names.place_order((p.name,))):
            yield from load.read_lines(path, run)


def _suite(row: JsonObject) -> str:
    """The suite of an evaluation; of a training's rollout, what its prompt was drawn from."""
    if row.get("suite"):
        return str(row["suite"])
    example = as_dict(row.get("example"))
    drawn_from = "ramp" if "spans" in example else str(example.get("dataset") or "")
    return f"rl/{drawn_from}" if drawn_from else ""


def _method(row: JsonObject) -> str:
    return str(row.get("method") or ("rollout" if "group" in row else ""))


def take(groups: list[Group], most: int) -> None:
    """Cuts the groups' lines so that `most` are left, as evenly as can be, the first of each."""
    left = most
    by_size = sorted(groups, key=lambda g: len(g.lines))
    for i, group in enumerate(by_size):
        share = left // (len(by_size) - i)
        if len(group.lines) > share:
            del group.lines[share:]
            group.most = share  # groups that come later only lower it
        left -= len(group.lines)


def name_of(run: str, group: Group, row: JsonObject) -> str:
    """A short name of a trajectory, the same whenever the page is made of the same run."""
    parts = (run, group.place, group.suite, group.method, row.get("step"), row.get("example_id"))
    said = json.dumps([*parts, row.get("sample")])
    return hashlib.sha256(said.encode()).hexdigest()[:10]


def shown(row: JsonObject) -> JsonObject:
    """What the page keeps of a trajectory but for its tokens; absent fields are left out."""
    example = as_dict(row.get("example"))
    corrections = markup.corrections(_tools(row))
    segments = [
        [_author(s, corrections), str(s["text"])]
        for s in map(as_dict, as_list(row.get("segments")))
        if isinstance(s.get("text"), str)
    ]
    said = as_scored(row, segments)
    policy = "".join(s.text for s in said if s.author == "policy")
    scored = row.get("answer")  # of an evaluation, which may take a reply without the tag
    answer = scored if isinstance(scored, str) else markup.extract_answer(policy, _tools(row))
    kept = {k: row[k] for k in TEXT_FIELDS if row.get(k) not in (None, "")}
    kept |= {"tools": list(_tools(row))} if _tools(row) != SEARCH_ALONE else {}
    kept |= {
        "example_id": row.get("example_id") or example.get("id") or "",
        "example": example,
        "scores": as_dict(row.get("scores")),
        "reward": _reward(as_dict(row.get("reward"))),
        "segments": segments,
        "turns": _turns(row, example, segments),
        "answer": answer,
        "wanted": _wanted(example, answer, as_list(row.get("slots"))),
    }
    versions = [v for v in as_list(row.get("versions")) if is_number(v) and v >= 0]
    if versions:
        kept["versions"] = [min(versions), max(versions)]
    return kept


def _author(segment: JsonObject, corrections: Collection[str]) -> str:
    """Who wrote a segment: a correction is what a turn is told that made no call."""
    author = segment.get("author")
    if author == "tool" and segment["text"] in corrections:
        return "correction"
    return author if author in ("policy", "tool") else "prompt"


def as_scored(row: JsonObject, segments: list[list[str]]) -> list[Segment]:
    """The segments as they are scored: the policy's first after what its prompt wrote of it."""
    opening = str(row.get("opening") or "")
    found = []
    for author, text in segments:
        if author == "policy":
            text, opening = opening + text, ""
        found.append(Segment(author, text))
    return found


def _tools(row: JsonObject) -> tuple[str, ...]:
    """The names of the tools that it could call; what is no name of one is left out."""
    named = map(str, as_list(row.get("tools")))
    return tuple(name for name in named if markup.is_name(name)) or SEARCH_ALONE


def _reward(terms: JsonObject) -> JsonObject:
    """The terms of a reward by name, those that are only logged and those of turns among them."""
    turns = [v for v in as_list(terms.get("turns")) if is_number(v)]
    found = {k: v for k, v in terms.items() if is_number(v) or (k == "failure" and v)}
    found |= {k: v for k, v in as_dict(terms.get("logged")).items() if is_number(v)}
    return found | {f"turn {i}": v for i, v in enumerate(turns, 1) if v}


def _wanted(example: JsonObject, answer: str | None, recalls: list[Any]) -> list[JsonObject]:
    """Each masked span with what the answer put in its place, or each accepted answer.

    recalls: of the spans, where the trajectory was scored.
    """
    if "spans" not in example:
        return [{"text": str(a)} for a in as_list(example.get("answers"))]
    spans = [as_dict(s) for s in as_list(example["spans"])]
    wanted = [{"text": str(s.get("text", "")), "type": str(s.get("type", ""))} for s in spans]
    if len(recalls) == len(wanted):
        wanted = [w | {"recall": r} for w, r in zip(wanted, recalls, strict=True)]
    try:
        ramp = from_json(RampExample, example)
        fills = scoring.fill_slots(ramp, answer) if answer else [None] * len(spans)
    except (ValueError, TypeError, AttributeError):  # of an older version, or written by hand
        return wanted
    plain = [
        (scoring.straight(f or ""), scoring.straight(w["text"]))
        for f, w in zip(fills, wanted, strict=True)
    ]
    return [
        w | {"fill": fill, "is_right": scoring.is_exact_match(*pair)}
        for w, fill, pair in zip(wanted, fills, plain, strict=True)
    ]


def _turns(row: JsonObject, example: JsonObject, segments: list[list[str]]) -> list[JsonObject]:
    """Calls with their documents: id, title, text, and whether it is the source or gold.

    tool: of a call of another than search. answered_by: who answered, where that was recorded.
    """
    told = (text for author, text in segments if author == "tool")
    gold = {*map(str, as_list(example.get("gold")))}
    titles = {*map(str, as_list(example.get("titles")))}
    turns = []
    for turn in map(as_dict, as_list(row.get("turns"))):
        text = next(told, "")
        ids = [str(i) for i in as_list(turn.get("passage_ids"))]
        named = [str(t) for t in as_list(turn.get("titles"))]
        named += [""] * (len(ids) - len(named))
        pieces = split_documents(text, named)
        documents = []
        for name, title, piece in itertools.zip_longest(ids, named, pieces, fillvalue=""):
            is_source = bool(name) and name == example.get("passage_id")
            kind = "source" if is_source else "gold" if name in gold or title in titles else ""
            documents.append({"id": name, "title": title, "text": piece, "kind": kind})
        kept = {k: turn[k] for k in ("queries", "seconds", "error", "tool") if turn.get(k)}
        if by := _answered_by(turn):
            kept["answered_by"] = by
        turns.append(kept | {"documents": documents})
    return turns


def _answered_by(turn: JsonObject) -> list[str]:
    """Who answered the queries of a turn, each once."""
    found = (as_dict(record).get("answered_by") for record in as_list(turn.get("found")))
    return list(dict.fromkeys(name for name in found if name and isinstance(name, str)))


def split_documents(information: str, titles: list[str]) -> list[str]:
    """The text of each document of an `<information>` block, which begins a line by its title.

    Where the titles are not found in their order, the whole block is the first's.
    """
    body = information.removeprefix("<information>").removesuffix("</information>")
    starts, at = [], 0
    for title in map(markup.escape, titles):
        at = body.find(title, at) if not starts else body.find(f"\n{title}", at)
        if at < 0:
            return [body, *[""] * (len(titles) - 1)]
        starts.append(at)
        at += 1
    ends = [*starts[1:], len(body)] if starts else []
    return [body[start:end].strip("\n") for start, end in zip(starts, ends, strict=True)]


class Tokens:
    """The tokens of some trajectories: a table of (id, text), and of each trajectory its columns.

    Columns: `tokens`, places in the table; `sampled`, lengths of runs that are not and are sampled
    in turn; `logprobs` and `trainer_logprobs` of the sampled tokens alone; `advantages` of them
    where these differ.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, str | None], int] = {}
        self.rows: list[JsonObject | None] = []

    def add(self, row: JsonObject) -> None:
        ids = as_list(row.get("ids"))
        texts = as_list(row.get("tokens"))[: len(ids)]
        pairs = itertools.zip_longest(ids, texts)
        tokens = [self._places.setdefault(p, len(self._places)) for p in pairs]
        mine = [bool(x) for x in as_list(row.get("sampled"))[: len(ids)]]
        mine += [False] * (len(ids) - len(mine))
        runs = [(m, len(list(same))) for m, same in itertools.groupby(mine)]
        lengths = [n for _, n in runs]
        columns: JsonObject = {
            "tokens": tokens,
            "sampled": [0, *lengths] if runs and runs[0][0] else lengths,
        }
        for name in ("logprobs", "trainer_logprobs", "advantages"):
            values = as_list(row.get(name))
            if len(values) == len(ids):
                columns[name] = [_rounded(v) for v, m in zip(values, mine, strict=True) if m]
        self.rows.append(columns if ids else None)

    def packed(self) -> JsonObject:
        return {"table": [list(p) for p in self._places], "rows": self.rows}


def listed(row: JsonObject, kept: JsonObject, metric: str) -> JsonObject:
    """What the list shows of a trajectory and is filtered by. metric: its suite's, "": not said."""
    example, scores = kept["example"], kept["scores"]
    score = scores.get(metric or names.main_score(scores), kept["reward"].get("total"))
    title = example.get("question") or example.get("title") or kept["example_id"]
    return {
        "title": str(title)[:160],
        "status": str(row.get("status") or ""),
        "score": _rounded(score) if is_number(score) else None,
        "searches": sum(turn.get("tool", SEARCH) == SEARCH for turn in kept["turns"]),
        "masks": len(as_list(example.get("spans"))) or None,
        "group": _group(row),
        "well_formed": markup.is_well_formed(as_scored(row, kept["segments"]), _tools(row)),
    }


def _group(row: JsonObject) -> str:
    """What the samples of one prompt in one step have in common; "" outside of RL."""
    if row.get("group") is None:
        return ""
    return f"{row['step']}/{row['group']}" if is_number(row.get("step")) else str(row["group"])


def _rounded(value: Any) -> Any:
    if not is_number(value):
        return None
    short = round(float(value), _DIGITS)
    return int(short) if short == int(short) else short
