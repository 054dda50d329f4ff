"""The package where there is no checkout: its command, its configs by name, its wheel."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import masksearch_jax
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.runtime import cli, command, installed

ROOT = Path(__file__).resolve().parents[2]


def asked(monkeypatch, capsys, *argv):
    """What `masksearch argv` says, with its status."""
    monkeypatch.setattr(sys, "argv", ["masksearch", *argv])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        command.main()
        status = 0
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_config_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = cli.load_config("qa_dapo:qwen2.5-1.5b")
    assert found == cli.load_config(f"{ROOT / 'configs' / 'qa_dapo.py'}:qwen2.5-1.5b")
    with pytest.raises(ConfigError, match=r"no config 'qa_dopa' in .*; did you mean qa_dapo"):
        cli.load_config("qa_dopa")
    for asked in ("qa_dapo.py", "qa_dapo.py:tiny"):
        said = f"no file 'configs/qa_dapo.py'; did you mean --config={asked.replace('.py', '')}, of"
        with pytest.raises(ConfigError, match=said):
            cli.load_config(f"configs/{asked}")
    with pytest.raises(ConfigError, match=r"there is no file 'configs/mine.py'; choices: none"):
        cli.load_config("configs/mine.py")


def test_every_main_tells_its_version(capsys):
    cli.run(lambda cfg: None, object, ["masksearch_jax/train_dapo.py", "--version"])
    line = capsys.readouterr().out
    assert line == f"masksearch_jax {masksearch_jax.__version__}, commit {installed.commit()}\n"
    assert f"\nversion: {masksearch_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_command_lists_the_mains_and_runs_them(monkeypatch, capsys):
    status, out, _ = asked(monkeypatch, capsys)
    assert status == 0
    roots = {p.stem.replace("_", "-") for p in installed.PACKAGE.glob("*.py")} - {"--init--"}
    assert set(re.findall(r"^  ([a-z-]+)  +\S", out, re.MULTILINE)) == roots
    assert f"configs: {ROOT / 'configs'}\n" in out

    assert asked(monkeypatch, capsys, "--version") == (0, installed.version_line() + "\n", "")
    for spelled in ("serve-search", "serve_search"):  # each imported as at a start
        monkeypatch.delitem(sys.modules, "masksearch_jax.serve_search", raising=False)
        status, out, _ = asked(monkeypatch, capsys, spelled, "--config=serve_search", "--help")
        assert status == 0
        assert out.startswith("usage: python -m masksearch_jax.serve_search --config=")
    monkeypatch.setattr(sys, "orig_argv", ["python3", "/bin/masksearch", "serve_search", "--help"])
    monkeypatch.delitem(sys.modules, "masksearch_jax.serve_search", raising=False)
    status, out, _ = asked(monkeypatch, capsys, "serve_search", "--help")
    assert status == 0
    assert out.startswith("usage: masksearch serve-search --config=")

    status, out, err = asked(monkeypatch, capsys, "train-dpo")
    assert (status, out) == (2, "")
    assert err == (
        "error: masksearch train-dpo: there is no main 'train-dpo'; did you mean train-dapo?\n"
    )


def test_the_extra_of_a_package_that_is_missing_is_told(monkeypatch, capsys):
    lines = ["numpy>=2.0", 'A-b<2,>=1.0; extra == "ramp"', 'a-b<2,>=1.0; extra == "test"']
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert [installed.extra_of(name) for name in ("a_b.c", "numpy", "other")] == ["ramp", "", ""]

    def fail() -> None:
        raise ModuleNotFoundError("No module named 'a_b'", name="a_b")

    with pytest.raises(SystemExit) as ended:
        cli.call(fail)
    assert ended.value.code == 1
    said = "error: a_b is not installed; pip install 'masksearch_jax[ramp]'\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("argv", [[], ["--version"]])
def test_a_reader_that_goes_away_is_no_failure(argv, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        monkeypatch.setattr(sys, "argv", ["masksearch", *argv])
        command.main()


def test_two_modules_alone_know_where_the_package_lies():
    """Others ask `installed.root()`: in a wheel configs and scripts lie elsewhere."""
    package = installed.PACKAGE
    files = {p.relative_to(package).as_posix(): p for p in package.rglob("*.py")}
    knowing = {name for name, p in files.items() if "__file__" in p.read_text(encoding="utf-8")}
    assert knowing == {"runtime/installed.py", "runtime/watchdog.py"}


# ---- the wheel

COMMIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> tuple[Path, str]:
    """A copy of the checkout, and its commit."""
    source = tmp_path_factory.mktemp("checkout") / "source"
    no_junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("masksearch_jax", "configs", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=no_junk)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, source)
    for line in (["git", "init", "-q"], [*COMMIT, "-m", "all"]):
        subprocess.run(line, cwd=source, check=True)
    line = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(line, cwd=source, check=True, capture_output=True, text=True).stdout
    return source, head.strip()


def wheel_of(source: Path, folder: Path) -> Path:
    """The wheel that is built in `folder`. Nothing is fetched."""
    build = ["-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run(
        [sys.executable, *build, "--disable-pip-version-check", "-w", str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> tuple[Path, str]:
    """The wheel of the copy, and the copy's commit."""
    source, head = checkout
    return wheel_of(source, tmp_path_factory.mktemp("wheel")), head


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel but their list, which is in the order of the build."""
    with zipfile.ZipFile(wheel) as file:
        return {n: file.read(n) for n in file.namelist() if not n.endswith("/RECORD")}


@pytest.mark.slow
def test_a_source_distribution_makes_the_wheel_of_the_checkout(checkout, wheel, tmp_path):
    """As `python -m build` does; launch/ finds in it the pins that it installs."""
    source, _ = checkout
    pack = ["setup.py", "-q", "sdist", "-d", str(tmp_path / "packed")]
    subprocess.run([sys.executable, *pack], cwd=source, check=True)
    (packed,) = (tmp_path / "packed").glob("*.tar.gz")
    shutil.unpack_archive(packed, tmp_path, filter="data")
    (unpacked,) = (p for p in tmp_path.iterdir() if p.name.startswith("masksearch_jax-"))
    assert (unpacked / "requirements.txt").is_file()
    made = contents(wheel_of(unpacked, tmp_path / "wheel"))
    assert made == contents(wheel[0])
    assert "masksearch_jax/shipped/configs/quickstart.py" in made
    assert "masksearch_jax/shipped/launch/quickstart.sh" in made


@pytest.mark.slow
def test_the_wheel_has_the_package_the_configs_and_the_scripts(wheel):
    made, head = wheel
    with zipfile.ZipFile(made) as file:
        names = {n for n in file.namelist() if ".dist-info/" not in n}
        commit = file.read("masksearch_jax/shipped/commit.txt").decode().strip()
        (entry,) = (n for n in file.namelist() if n.endswith("entry_points.txt"))
        commands = file.read(entry).decode()
    package = {
        str(p.relative_to(ROOT))
        for p in installed.PACKAGE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    shipped = {f"masksearch_jax/shipped/configs/{p.name}" for p in ROOT.glob("configs/*.py")}
    scripts = ("setup_env.sh", "quickstart.sh", "real.sh", "cells.sh", "worker.sh")
    shipped |= {f"masksearch_jax/shipped/launch/{name}" for name in scripts}
    assert names == package | shipped | {"masksearch_jax/shipped/commit.txt"}
    assert commit == head
    assert "masksearch = masksearch_jax.runtime.command:main" in commands
    check = [sys.executable, "-m", "twine", "check", "--strict", str(made)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_installed_wheel_runs_in_another_folder(wheel, tmp_path):
    made, head = wheel
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", str(site)]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([sys.executable, *install, str(made)], check=True, env=environment)
    (tmp_path / "mine" / "configs").mkdir(parents=True)
    (tmp_path / "mine" / "configs" / "mine.py").write_text(
        "from configs import qa_dapo\nget_config = qa_dapo.get_config\n"
    )

    def say(*argv: str) -> str:
        """What the command prints in a folder of ours, with the wheel first among the modules."""
        done = subprocess.run(
            argv,
            cwd=tmp_path / "mine",
            env=os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    masksearch = str(site / "bin" / "masksearch")
    line = f"masksearch_jax {masksearch_jax.__version__}, commit {head}\n"
    assert say(masksearch, "--version") == line
    assert f"configs: {site / 'masksearch_jax' / 'shipped' / 'configs'}\n" in say(masksearch)
    config = ["--config=qa_dapo:tiny", "--print-config"]
    ours = subprocess.run(
        [sys.executable, "-m", "masksearch_jax.train_dapo", *config],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert say(masksearch, "train-dapo", *config) == ours.stdout != ""
    config[0] = "--config=configs/mine.py:tiny"  # imports ours
    assert say(masksearch, "train-dapo", *config) == ours.stdout
    script = site / "masksearch_jax" / "shipped" / "launch" / "quickstart.sh"
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    assert "workdir = " in say("env", path, "bash", str(script), "--print-config")


def test_a_checkout_is_packed_where_git_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    packing = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setitem(packing["commit"].__globals__, "ROOT", tmp_path)
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert packing["commit"]() == ""
