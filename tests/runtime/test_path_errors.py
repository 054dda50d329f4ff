"""An error of the operating system about a path, told by the key of the config that names it."""

import dataclasses
import errno
import os

import pytest

from masksearch_jax.runtime import cli
from masksearch_jax.runtime.path_errors import path_error


def write(path):
    return os.close(os.open(path, os.O_RDWR))


@dataclasses.dataclass(frozen=True)
class Index:
    index: str
    kind: str = "bm25"


@dataclasses.dataclass(frozen=True)
class Settings:
    workdir: str
    search: Index
    files: tuple[str, ...] = ()
    empty: str = ""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("")
    (tmp_path / "file").write_text("")
    return Settings("folder", Index(str(tmp_path / "file")), ("a.jsonl", "file"))


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: os.mkdir("folder/inner/more"), "config.workdir is 'folder', in which "),
        (
            lambda: write("folder"),
            "config.workdir is 'folder', a folder where a file is needed",
        ),
        (
            lambda: write("folder/ramp/x"),
            "config.workdir is 'folder', which holds no ramp/x",
        ),
        (lambda: write("a.jsonl"), "config.files is 'a.jsonl', which does not exist"),
        (
            lambda: write("/"),
            "'/', a folder where a file is needed",
        ),  # no key names it
        (lambda: write("/none"), None),
        (lambda: os.kill(2**22 + 1, 0), None),
    ],
)
def test_the_key_whose_value_the_path_lies_under_is_named(settings, act, said):
    with pytest.raises(OSError) as raised:
        act()
    found = path_error(raised.value, settings)
    assert found == said or found.startswith(said)


def test_the_longest_value_is_the_one_that_names_it(settings, tmp_path):
    with pytest.raises(NotADirectoryError) as raised:
        (tmp_path / "file" / "counts.json").read_text()
    own = dataclasses.replace(settings, workdir=str(tmp_path))
    said = f"config.search.index is {str(tmp_path / 'file')!r}, a file where a folder is needed"
    assert path_error(raised.value, own) == said
    assert (
        path_error(raised.value) == f"{str(tmp_path / 'file')!r}, a file where a folder is needed"
    )


def test_the_command_says_it_in_one_line(settings, capsys):
    with pytest.raises(SystemExit) as end:
        cli.call(lambda: os.makedirs("folder/inner"), settings=settings)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config.workdir is 'folder', in which ")
    assert line.endswith("/folder/inner' is a file where a folder is needed")
    assert end.value.code == 1
    text = OSError(errno.EIO, "Input/output error", "folder/x")
    assert path_error(text, settings) is None
