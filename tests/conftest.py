"""A stricter world than production: eight CPU devices, no silent dtype promotion, warnings fail."""

import atexit
import dataclasses
import fcntl
import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when jax and tokenizers start, so set before any test module imports them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most programs run once, and optimising them costs more than it saves, in the processes too that
# tests start. `optimised` is for those that run often. Without the fusion emitters each program is
# compiled in a quarter of the time.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1 "
    "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Each program is compiled by the first process of a run that needs it and read by the others.
    programs = tempfile.mkdtemp(prefix="masksearch_jax-programs-")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# A busy machine is no failure of what is tested.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# What a shell starts in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


# Begun first, so that at the end no worker waits long for another's last file.
LONGEST = (
    "quickstart",
    "train_mains",
    "train_processes",
    "train_options",
    "processes",
    "evolve",
    "mesh_parity",
    "beam",
    "lora",
    "transformer",
    "hf_stream",
    "tasks",
    "checkpoint",
    "hf",
    "build_trajectories",
    "schedule",
    "sharding",
)


def pytest_configure(config: pytest.Config) -> None:
    jax.devices()  # JAX begins here, so that no main that a test calls sets another number
    gc.disable()  # until all tests are collected: what is imported stays
    config.option.loadscopereorder = False  # xdist would begin with the files of the most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)  # tracing makes many objects, of which few stay
    gc.enable()


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; tests skip where it or playwright is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: neither chromium nor google-chrome is on PATH")
    with api.sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real text and question sets beside the checkout; skips where it is absent."""
    folder = Path(os.environ.get("MASKSEARCH_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not here: {folder} (set MASKSEARCH_SHARED_DATA to its folder)")
    return folder


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """The folder of small inputs that failed once, beside the checkout; skips where absent."""
    folder = Path(os.environ.get("MASKSEARCH_SHARED_CASES", REPOSITORY.parent / "shared" / "cases"))
    if not folder.is_dir():
        pytest.skip(f"the cases are not here: {folder} (set MASKSEARCH_SHARED_CASES to them)")
    return folder


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`make_once(name, make)`: the folder that `make(folder)` filled, in one worker, for all."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = root / name, root / f"{name}.made"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker in which it failed
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return once


@dataclasses.dataclass(frozen=True)
class Miniature:
    """What the quickstart builds before it trains, small: its configuration and the folders."""

    cfg: Any  # QuickstartRun
    data: Path
    index: Path
    tokenizer: Path
    cache: Path

    @property
    def search(self):
        return dataclasses.replace(self.cfg.search, index=str(self.index))


@pytest.fixture(scope="session")
def miniature(make_once) -> Miniature:
    """RAMP examples, questions, demonstrations, index and tokenizer of a few hundred articles.

    Nothing is tokenised: `cache` is not there. Other workers read the same folders.
    """
    from masksearch_jax import build_index, build_ramp, build_trajectories
    from masksearch_jax.core.corpus_config import CorpusConfig
    from masksearch_jax.core.schema import to_dataclass
    from masksearch_jax.core.tokenizer import train_bpe
    from masksearch_jax.corpus.passages import read_passages
    from masksearch_jax.quickstart import QuickstartRun
    from masksearch_jax.runtime import cli

    c = cli.load_config(f"{REPOSITORY / 'configs' / 'quickstart.py'}:runlocal")
    c.corpus.limit, c.ramp.max_examples, c.tokenizer_vocab_size = 300, 600, 512
    c.model.hidden_size, c.model.intermediate_size, c.model.head_dim = 64, 128, 16
    c.model.num_layers, c.compute.remat = 2, "none"
    cfg = to_dataclass(QuickstartRun, c)

    def at(folder: Path) -> Miniature:
        return Miniature(cfg, *(folder / n for n in ("data", "index", "tokenizer", "cache")))

    def make(folder: Path) -> None:
        made = at(folder)
        build_ramp.run(build_ramp.BuildRampRun(str(made.data), cfg.corpus, cfg.ramp, cfg.seed))
        passages = made.data / "passages.jsonl"
        source = CorpusConfig(str(passages), "", 0, 0.0)
        build_index.run(build_index.BuildIndexRun(source, str(made.index)))
        train_bpe((p.text for p in read_passages(passages)), made.tokenizer, 512)
        build_trajectories.run(
            build_trajectories.BuildTrajectoriesRun(
                folder=str(made.data),
                kinds=("ramp", "questions"),
                search=made.search,
                max_searches=cfg.rollout.max_turns,
                demonstrations=0,
                seed=cfg.seed,
                thoughts=cfg.thoughts,
            )
        )

    return at(make_once("miniature", make))


@pytest.fixture(scope="module")
def optimised():
    """Programs are optimised, those of processes that are started too: whole trainings gain by it.

    All programs: what is compared bit by bit must not have been compiled in two ways.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()
        yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture(scope="module")
def one_device():
    """Meshes of one device: as fast as tiny models can be."""
    from masksearch_jax import evaluate, quickstart, study, train_dapo, train_sft
    from masksearch_jax.parallel import sharding

    def make_mesh(config):
        return sharding.make_mesh(config, jax.devices()[:1])

    with pytest.MonkeyPatch.context() as patch:
        for main in (evaluate, quickstart, study, train_dapo, train_sft):
            patch.setattr(main, "make_mesh", make_mesh)
        yield


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte; skips where none can be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False)
    if made.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)
