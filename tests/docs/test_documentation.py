"""What the documents say of the code holds: links, keys, code; and their generated page."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import common
from masksearch_jax import export_hf
from masksearch_jax.core.config import ComputeConfig, MeshConfig, ModelConfig
from masksearch_jax.core.schema import flat_keys, to_dataclass
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import QAExample, Segment, Trajectory, Turn
from masksearch_jax.corpus import atlas
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.models.load import initial
from masksearch_jax.parallel.sharding import make_mesh
from tests.docs.shown import DOCUMENTS, ROOT, blocks, name_of, without_blocks

sys.path.insert(0, str(ROOT / "docs"))

import check_site
import configuration_reference as reference


def anchors(text: str) -> set[str]:
    """The anchors of a Markdown file's headings, as GitHub and MyST make them."""
    found = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        if "_generated" in name:  # made by the build
            continue
        assert file.exists(), f"{name_of(path)}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{name_of(path)}: {target}"


def test_every_page_is_in_the_table_of_contents():
    trees = [
        b.text for b in blocks((ROOT / "docs" / "index.md").read_text()) if "toctree" in b.language
    ]
    listed = {
        line for tree in trees for line in tree.splitlines() if re.fullmatch(r"[a-z_]+", line)
    }
    assert listed == {p.stem for p in (ROOT / "docs").glob("*.md")} - {"index"}


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=name_of)
def test_a_page_says_first_who_needs_it(path):
    text = path.read_text(encoding="utf-8")
    if included := re.match(r"```\{include\} (\S+)", text):
        text = (path.parent / included[1]).read_text(encoding="utf-8")
    title, first = text.split("\n\n")[:2]
    assert re.fullmatch(r"# .+", title)
    assert re.match(r"This page is for (whoever|newcomers)\b", first)


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150


def test_there_is_one_chain_of_commands():
    """The README shows the chain that the documentation explains."""
    readme, page = (
        next(b.text for b in blocks((ROOT / n).read_text()) if ".build_ramp --" in b.text)
        for n in ("README.md", "docs/your_model_and_text.md")
    )
    assert readme == page


# ---- blocks of code


def test_blocks_of_python_do_what_they_say(tmp_path):
    """The reward scores; the seqio script names what is there, with arguments that it takes."""
    found = [
        (path.stem, block.text)
        for path in DOCUMENTS
        for block in blocks(path.read_text(encoding="utf-8"))
        if block.language == "python"
    ]
    assert [name for name, _ in found] == ["rewards", "your_model_and_text"]
    (_, reward), (_, script) = found
    scope: dict[str, Any] = {}
    exec(reward, scope)
    segments = (Segment("policy", "<search>a</search>"), Segment("policy", "<answer>Oslo</answer>"))
    none, turn = np.zeros(0), Turn(("a",), (), (), 0.0)
    said = Trajectory("q", 0, none, none, none, none, 0, segments, (turn,), "answered")
    asked = QAExample("q", "made", "Which city?", ("Oslo",))
    assert scope["reward"](asked, said) == {"total": 0.98, "accuracy": True}
    source = ast.parse((ROOT / "masksearch_jax" / "data" / "tasks.py").read_text(encoding="utf-8"))
    (register,) = (n for n in source.body if getattr(n, "name", "") == "register")
    taken = {a.arg for a in (*register.args.args, *register.args.kwonlyargs)}
    (call,) = (
        n
        for n in ast.walk(ast.parse(script))
        if isinstance(n, ast.Call) and ast.unparse(n.func) == "tasks.register"
    )
    assert {k.arg for k in call.keywords} <= taken


def test_the_plan_that_is_shown_is_the_one_that_is_kept():
    """Line by line, where the page leaves none out; how long it compiled is the machine's doing."""
    page = (ROOT / "docs" / "tpu_pods.md").read_text(encoding="utf-8")
    whole = (ROOT / "examples" / "worked" / "read_plan.txt").read_text(encoding="utf-8")
    shown, kept = (
        re.sub(r"compiled in \d+ s", "compiled", text).splitlines()
        for text in (
            next(b.text for b in blocks(page) if b.text.startswith("1 x v5p:2x4x4")),
            whole,
        )
    )
    left = iter(kept)
    for line in (line for line in shown if line.strip() not in ("", "…")):
        assert line in left, line


# ---- the site


def test_links_of_a_site_are_followed(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><a href="#own">3</a>'
        '<a href="c.html">4</a><img src="d.png"><a href="https://example.org/x">5</a><p id="own">'
    )
    (tmp_path / "b.html").write_text('<h1 id="here">B</h1>')
    wrong = ["a.html: b.html#gone", "a.html: c.html", "a.html: d.png"]
    assert check_site.faults(tmp_path) == wrong


@pytest.fixture(scope="module")
def keys() -> set[str]:
    schemas = (s for main in reference.main_names() for s in reference.schemas(main))
    return {key for schema in schemas for key in flat_keys(schema)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_keys_and_files_named_in_the_text_exist(path, keys):
    sections = {k.partition(".")[0] for k in keys if "." in k}
    for code in re.findall(r"`([^`\n]+)`", without_blocks(path.read_text(encoding="utf-8"))):
        told = f"{name_of(path)}: {code}"
        assert set(re.findall(r"--config\.([a-z_.]+)", code)) <= keys, told
        key = re.fullmatch(r"(([a-z_]+)\.[a-z_.]+)(=\S*)?", code)
        if key and key[2] in sections and not re.search(r"\.(jsonl?|html|py)$", code):
            assert key[1] in keys, told
        if re.fullmatch(r"(configs|tests|benchmarks|launch)/[\w/.]+", code):
            assert (ROOT / code).exists(), told
        if module := re.match(r"python -m (benchmarks|masksearch_jax)\.([a-z_]+)", code):
            assert (ROOT / module[1] / f"{module[2]}.py").is_file(), told


# ---- the chain, run


@pytest.fixture
def tiny_inputs(tmp_path) -> Path:
    """A folder with what the README's chain starts from, small: its corpus and its HF folder."""
    passages = atlas.build(0, 150, verbatim=True).passages
    write_passages(tmp_path / "wiki.jsonl.gz", passages)
    train_bpe((p.text for p in passages), tmp_path / "tokenizer", 2048)
    model = to_dataclass(ModelConfig, common.model("tiny"))
    compute = ComputeConfig("float32", "float32", "xla", "none", 1024)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    weights = initial("", model, compute, mesh, 0)
    export_hf.export(weights, tmp_path / "Qwen2.5-1.5B-Instruct", tmp_path / "tokenizer")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.mark.slow  # eight processes
@pytest.mark.usefixtures("optimised")
def test_the_readmes_chain_runs_as_it_stands_but_for_its_size(tiny_inputs):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    chain = next(b.text for b in blocks(text) if ".build_ramp --" in b.text)
    assert len(re.findall("^python ", chain, re.MULTILINE)) <= 8
    chain = chain.replace("export_hf.py:qwen2.5-1.5b", "export_hf.py:tiny")
    chain = chain.replace(".py:qwen2.5-1.5b", ".py:tiny,runlocal")
    chain = re.sub(r"(build_(?:ramp|trajectories|cache)\.py)", r"\1:runlocal", chain)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", chain],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": programs},
        cwd=tiny_inputs,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["greedy_tokens_equal"]
    figures = json.loads((tiny_inputs / "runs" / "evaluate" / "eval.json").read_text())
    assert list(figures["results"]) == ["ramp"]

    start, end = tiny_inputs / "Qwen2.5-1.5B-Instruct", tiny_inputs / "runs/ramp_dapo/export"
    weights = [load_file(folder / "model.safetensors") for folder in (start, end)]
    assert weights[0].keys() == weights[1].keys()
    assert any(not np.array_equal(x, weights[1][name]) for name, x in weights[0].items())
    assert Vocab.load(end).fingerprint == Vocab.load(start).fingerprint


# ---- the generated reference


def test_the_reference_has_every_key_of_every_main():
    page = reference.page()
    roots = {p.stem for p in (ROOT / "masksearch_jax").glob("*.py")} - {"__init__"}
    assert set(reference.main_names()) == roots
    for main in roots:
        for schema in reference.schemas(main):
            sections = {schema, *(s for _, s in reference.places(schema))}
            for section in sections:
                for field in dataclasses.fields(section):
                    assert f"`{field.name}`" in page


@dataclasses.dataclass(frozen=True)
class Section:
    """How.

    More.
    """

    name: str
    kind: Literal["a", "b"] = dataclasses.field(default="a", metadata={"sentence": "Of `a*`|b*."})
    parts: tuple[int, ...] = dataclasses.field(default=(1, 2), metadata={"harmless": True})
    limit: int | None = None
    folder: str = ""


def test_a_table_of_the_reference_has_type_default_and_sentence():
    assert reference.first_line(Section) == "How."
    assert reference.key_rows(Section)[2:] == [
        "| `name` | str | given by the config file |  |",
        "| `kind` | `a`, `b` | `a` | Of `a*`\\|b\\*. |",
        "| `parts`\u00a0° | list of int | `1,2` |  |",
        "| `limit` | int or none | none |  |",
        "| `folder` | str | empty |  |",
    ]
