"""docs/metrics.md has a row for each name that a builder, coverage, a server or a study tells."""

import ast
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from masksearch_jax.agents import agent_teacher, scripted_teacher
from masksearch_jax.agents.llm_cache import Paid
from masksearch_jax.evals import arms, difficulty
from masksearch_jax.ramp import examples, support, survey
from masksearch_jax.search import coverage
from masksearch_jax.search.server import SearchServer
from masksearch_jax.search.tool import FakeSearch

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "masksearch_jax"
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
ROWS = PAGE.partition("\n## Demonstrations\n")[2]

# Functions whose texts are reasons for which something is left out, by module.
REASONS = {
    "corpus/wikipedia_dump.py": {"_page_refusal"},
    "corpus/readers.py": {"_prose"},
    "corpus/prose.py": {"refusal", "_language_refusal"},
    "ramp/examples.py": {"_usable", "refusal", "_within_nll", "_balanced", "build_examples"},
    "ramp/leakage.py": {"overlap"},
    "ramp/llm_spans.py": {"_located"},
    "ramp/masking.py": {"by_difficulty"},
    "ramp/rules_en.py": {"candidates", "_named"},
    "ramp/spans.py": {"sift", "_refusal"},
    "agents/salient.py": {"name"},
    "agents/selection.py": {"rejection"},
    "agents/policy_teacher.py": {"solve"},
    "agents/outcomes.py": {"unanswerable"},
}
# Texts of the same functions that are no reasons: languages, authors of segments and the like.
NO_REASONS = {
    *("en", "zh", "name", "date", "quoted", "utf", "random", "weighted", "ppl"),
    *("answered", "policy", "prompt", "tool", "salient"),
}
# Functions whose written keys are figures.
WRITERS = {"build_trajectories.py": {"_summary"}, "agents/teachers.py": {"figures"}}


def functions_of(module: str, wanted: set[str]) -> list[ast.AST]:
    """The functions of a module by name, each of which there is."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    defined = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert wanted <= {n.name for n in defined}, module
    return [n for n in defined if n.name in wanted]


def reasons() -> set[str]:
    """Why a builder leaves something out: of the code, and of its tables."""
    found = {*scripted_teacher.REASONS, *agent_teacher.REASONS, *survey._DUPLICATE.values()}
    found |= {support.UNSUPPORTED, examples.UNLINKED, examples.DUPLICATE, examples.BEYOND}
    found |= {"duplicate_id", "duplicate_text"}  # of ramp/beam.py, which needs Beam
    for module, wanted in REASONS.items():
        for function in functions_of(module, wanted):
            texts = (n.value for n in ast.walk(function) if isinstance(n, ast.Constant))
            found |= {text for text in texts if isinstance(text, str)}
    return {text for text in found if re.fullmatch("[a-z_]{2,}", text)} - NO_REASONS


def written() -> set[str]:
    """The keys of the dicts that `WRITERS` write."""
    found: set[str] = set()
    for module, wanted in WRITERS.items():
        for function in functions_of(module, wanted):
            dicts = [n for n in ast.walk(function) if isinstance(n, ast.Dict)]
            found |= {k.value for d in dicts for k in d.keys if isinstance(k, ast.Constant)}
    return found


def served() -> set[str]:
    """The names of /metrics."""
    server = SearchServer(FakeSearch({}), "127.0.0.1", 0)
    try:
        families = text_string_to_metric_families(server._figures.text().decode())
        return {family.name.removesuffix("_created") for family in families}
    finally:
        server.server_close()


def told() -> set[str]:
    """What coverage, difficulty and the table of a study tell."""
    covered = coverage.Covered("q", "set", (), (), True, 1, (1,), True)
    span = difficulty.SpanFacts("e", 1, "DATE", 1, None, 1, 1.0)
    found = {k.replace("@5", "@k") for k in coverage.summary([covered], (5,))["set"]}
    found |= set(difficulty._outcome(span))
    return found | {*arms.table({}, "x", (), 1, 1)[0].split()} - {"x", "by"}


def test_the_page_has_every_name_and_no_other():
    known = told() | served() | written() | reasons() | set(Paid._fields)
    assert {"gold@k", "search_requests", "reciprocal_rank", "paired", "by_searches"} <= known
    assert {"cut_off", "hole", "same_masks_again", "sentence_start", "not_grounded"} <= known
    rows = re.findall(r"^\|([^|]+)\|", ROWS, re.MULTILINE)
    shown = {name for row in rows for name in re.findall(r"`([\w@]+)`", row)}
    assert sorted(known - shown) == []
    assert sorted(shown - known) == []
