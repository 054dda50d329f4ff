"""What the documents say of the code holds: links, commands, keys; and their generated page."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import common
from masksearch_jax import export_hf, report
from masksearch_jax.core.config import ComputeConfig, MeshConfig, ModelConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import flat_keys, to_dataclass
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import QAExample, Segment, Trajectory, Turn
from masksearch_jax.corpus import atlas
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.models.load import initial
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.runtime import cli

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import check_site  # noqa: E402
import configuration_reference as reference  # noqa: E402

DOCUMENTS = [
    *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAMS = [
    "masksearch",
    "python",
    "python3",
    "bash",
    "pip",
    "gcloud",
    "xpk",
    "sky",
    "kubectl",
    "cp",
    "source",
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Block(NamedTuple):
    language: str
    text: str


def blocks(text: str) -> list[Block]:
    return [
        Block(*m) for m in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


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


# ---- commands


class Command(NamedTuple):
    argv: list[str]
    printed: str  # what the document shows as its output


def shell(text: str, folder: Path) -> list[list[str]]:
    """The commands of a bash script, run with stand-ins for every program: nothing is started.

    The programs of a pipe write at once: each holds the file while it writes its words.
    """
    log = folder / "commands"
    stubs = "".join(
        f"{name}() {{ {{ flock 9; printf '%s\\0' {name} \"$@\" $'\\n'; }} 9>>'{log}' >&9; }}\n"
        for name in PROGRAMS
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", stubs + text],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=folder,
    )
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    said = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return [call.split("\0")[:-1] for call in said.split("\n\0") if call]


def commands(path: Path, folder: Path) -> list[Command]:
    found = []
    for language, text in blocks(path.read_text(encoding="utf-8")):
        if language == "bash":
            found += [Command(argv, "") for argv in shell(text, folder)]
        elif language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                typed = re.match(r"(?:.*\\\n)*.*\n", part)[0]
                (argv,) = shell(typed, folder)
                found.append(Command(argv, part[len(typed) :]))
    return found


def parse(main: str, argv: list[str]) -> Any:
    given = [main, *argv]
    given = report.arguments(given) if main == "report" else given  # which begins with folders
    return cli.parse(tuple(reference.schemas(main)), given)


def check_command(command: Command) -> None:
    """Raises AssertionError, or ConfigError, where a command cannot be as it is shown."""
    argv = command.argv
    scripts = [a for a in argv if re.match(r"(launch|configs)/", a)]
    assert all((ROOT / s).exists() for s in scripts), argv
    ours = [a for a in argv if a.startswith("masksearch_jax.")]
    benchmark = [a for a in argv if a.startswith("benchmarks.")]
    assert all((ROOT / f"{b.replace('.', '/')}.py").is_file() for b in benchmark), argv
    if ours:
        main, given = ours[0].partition(".")[2], argv[argv.index(ours[0]) + 1 :]
    elif "--" in argv and argv[1].startswith("launch/"):
        main, *given = argv[argv.index("--") + 1 :]
    elif argv[0] == "masksearch" and argv[1:] != ["--version"]:
        main, given = argv[1].replace("-", "_"), argv[2:]
    elif argv[:2] == ["bash", "launch/quickstart.sh"]:
        main, given = "quickstart", ["--config=configs/quickstart.py", *argv[2:]]
    else:
        return
    assert main in reference.main_names(), argv
    if command.printed.startswith("error: "):
        with pytest.raises(ConfigError) as error:
            parse(main, given)
        assert f"error: {error.value}" == command.printed.strip()
    elif "--help" not in given:
        parse(main, [a for a in given if a != "--print-config"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_is_one_that_the_code_takes(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(path, tmp_path):
        check_command(command)


def test_commands_are_found_and_faults_in_them_too(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(commands(ROOT / "README.md", tmp_path)) >= 14
    for text, fault in (
        (
            "python -m masksearch_jax.train_sft --config=configs/ramp_sft.py --config.sft.step=1",
            "steps",
        ),
        ("python -m masksearch_jax.train_sft --config=configs/ramp_stf.py", "ramp_stf"),
        (
            "bash launch/tpu_vm.sh --name=a -- train_sft --config=configs/ramp_sft.py --config.a=1",
            "flag",
        ),
        ("python -m masksearch_jax.train_ppo --config=configs/ramp_sft.py", "train_ppo"),
        ("bash launch/quickstart.sh --config.sft.steps=few", "few"),
        ("masksearch train-ppo --config=ramp_sft", "train_ppo"),
        ("masksearch train-sft --config=ramp_stf", "ramp_stf"),
        ("bash launch/tpu.sh", "tpu.sh"),
    ):
        (argv,) = shell(text, tmp_path)
        with pytest.raises((AssertionError, ConfigError), match=fault):
            check_command(Command(argv, ""))


LAUNCHERS = ("launch/tpu_vm.sh", "launch/gke/xpk.sh", "launch/gke/jobset.py")


def name_of_command(argv: list[str]) -> str:
    """The main or the script that a command is of; the program where it is another's."""
    if ours := [a for a in argv if a.startswith("masksearch_jax.")]:
        return ours[0].partition(".")[2]
    if argv[0] == "masksearch":
        return argv[1].replace("-", "_")
    return argv[1] if argv[0] in ("bash", "python3") else argv[0]


def test_every_command_is_in_the_table_of_what_was_run(tmp_path):
    """And every row is of a command, has a test that names it, and a day or a word for it."""
    page = (ROOT / "docs" / "what_was_run.md").read_text(encoding="utf-8")
    rows = {
        row[0].strip("`"): row[1:]
        for line in re.findall(r"^\| (`.*) \|$", page, re.MULTILINE)
        if (row := [cell.strip() for cell in line.split("|")])
    }
    shown = {name_of_command(c.argv) for path in DOCUMENTS for c in commands(path, tmp_path)}
    others = {*PROGRAMS, "__version"} - {"masksearch", "python3", "bash"}
    assert shown - others == set(rows)
    for name, (day, what, test) in rows.items():
        last = day.strip("`")
        assert Path(name).stem in (ROOT / test.strip("`")).read_text(encoding="utf-8"), name
        assert re.fullmatch(r"2026-\d\d-\d\d|never|each change", last), name
        assert bool(what) == (last[0] == "2"), name


def test_commands_for_clouds_run_dry(tmp_path, monkeypatch):
    """As they stand; what they would start was parsed by another test."""
    monkeypatch.chdir(tmp_path)
    shown = [c.argv for path in DOCUMENTS for c in commands(path, tmp_path)]
    found = [argv for argv in shown if argv[1] in LAUNCHERS and "--delete" not in argv]
    assert {argv[1] for argv in found} == set(LAUNCHERS)
    for program, script, *given in found:
        dry = [] if script.endswith(".py") else ["--dry-run"]
        done = subprocess.run(
            [program, str(ROOT / script), *dry, *given],
            env={"PATH": os.environ["PATH"], "LAUNCH_PYTHON": "/bin/true"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        main = given[given.index("--") + 1]
        assert main in done.stdout


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file stays open
def test_lines_of_python_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wiki.jsonl").write_text('{"id": "1", "title": "Oslo", "text": "A city."}\n')
    shown = [c.argv for path in DOCUMENTS for c in commands(path, tmp_path)]
    (line,) = [argv[2] for argv in shown if argv[:2] == ["python", "-c"]]
    exec(line, {})
    assert Vocab.load("tokenizer").decode(Vocab.load("tokenizer").encode("Oslo")) == "Oslo"


def test_blocks_of_python_do_what_they_say(tmp_path):
    """The reward scores; the seqio script names what is there, with arguments that it takes."""
    found = [
        (path.stem, block.text)
        for path in DOCUMENTS
        for block in blocks(path.read_text(encoding="utf-8"))
        if block.language == "python"
    ]
    assert [name for name, _ in found] == ["dapo", "your_model_and_text"]
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
