"""Files and folders are whole or not there, whatever ends the process that writes them."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading

import pytest

from masksearch_jax.core import files
from masksearch_jax.runtime import cli


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_what_it_was_until_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "old")
    with files.writing(path) as file:
        file.write("né")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "né"
    with files.writing(path, "wb") as file:
        file.write(b"\xff")
    assert path.read_bytes() == b"\xff"
    assert names(path.parent) == ["a.txt"]


def write_and_raise(path, error):
    with files.writing(path) as file:
        file.write("new")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    files.write_text(tmp_path / "a", "old")
    with pytest.raises(error):
        write_and_raise(tmp_path / "a", error)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_lines_are_counted_and_json_is_indented(tmp_path):
    assert files.write_lines(tmp_path / "l", (str(i) for i in range(3))) == 3
    assert (tmp_path / "l").read_text() == "0\n1\n2\n"
    assert files.write_lines(tmp_path / "l", []) == 0
    assert (tmp_path / "l").read_text() == ""
    files.write_json(tmp_path / "j", {"a": [1]})
    assert (tmp_path / "j").read_text() == '{\n "a": [\n  1\n ]\n}\n'
    files.write_json(tmp_path / "j", {"a": [1]}, indent=None)
    assert (tmp_path / "j").read_text() == '{"a": [1]}\n'


WRITE_FOREVER = """
import itertools, sys
from masksearch_jax.core import files
with files.writing(sys.argv[1]) as file:
    for number in itertools.count():
        file.write(f"line {number}\\n")
        if number == 100_000:
            file.flush()
            print("some", flush=True)
"""


@pytest.mark.parametrize("old", [None, "old"])
def test_kill_9_leaves_the_old_file_and_the_next_writer_clears_the_rest(tmp_path, repository, old):
    path = tmp_path / "a"
    if old:
        files.write_text(path, old)
    files.write_text(tmp_path / "b", "other")
    command = [sys.executable, "-c", WRITE_FOREVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=repository) as process:
        assert process.stdout.readline() == b"some\n"
        files.write_text(tmp_path / "b", "more")  # leaves the living writer's file alone
        (left,) = tmp_path.glob(".a.*.partial")
        assert left.stat().st_size > 100_000
        process.send_signal(signal.SIGKILL)
    assert (path.read_text() if path.exists() else None) == old
    assert names(tmp_path) == sorted([left.name, "b", *(["a"] if old else [])])
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a", "b"]


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with files.writing(path) as first, files.writing(path) as second:
        first.write("first")
        second.write("second")
        assert not path.exists()
    assert path.read_text() == "first"  # which ended last
    assert names(tmp_path) == ["a"]
    texts = [letter * 100_000 for letter in "abcdefgh"]

    def write(text):
        for _ in range(3):
            files.write_text(path, text)
            assert path.read_text() in texts

    writers = [threading.Thread(target=write, args=[text]) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in texts
    assert names(tmp_path) == ["a"]


def test_permissions_are_those_of_any_new_file_or_of_the_old_one(tmp_path):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "")
        with files.writing_folder(tmp_path / "f") as folder:
            pass
        assert not folder.exists()
        assert (mode(tmp_path / "a"), mode(tmp_path / "f")) == (0o640, 0o750)
        (tmp_path / "a").chmod(0o600)
        files.write_text(tmp_path / "a", "secret")
        assert mode(tmp_path / "a") == 0o600
    finally:
        os.umask(before)


def test_a_full_disk_names_the_file(small_disk, capsys):
    path = small_disk / "a.jsonl"
    files.write_text(path, "old")
    with pytest.raises(OSError, match="No space left on device") as error:
        files.write_lines(path, ("x" * 1000 for _ in range(2000)))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old"
    assert names(small_disk) == ["a.jsonl"]

    def fail():
        raise error.value

    with pytest.raises(SystemExit):
        cli.call(fail)
    assert f"the disk is full while writing {path};" in capsys.readouterr().err
    with pytest.raises(OSError, match="No space left") as error:
        fill(small_disk / "f", "x" * (2 << 20))
    assert error.value.filename == str(small_disk / "f")
    assert names(small_disk) == ["a.jsonl"]


def test_an_error_that_is_no_disks_keeps_its_own_words(tmp_path):
    reset = ConnectionResetError(errno.ECONNRESET, "reset")
    with pytest.raises(ConnectionResetError) as error:
        write_and_raise(tmp_path / "a", reset)
    assert error.value.filename is None


# ---- folders


def fill(path, text, made_from="", error=None):
    """Writes PATH/in/a unless it is there; the names that were there."""
    with files.writing_folder(path, made_from) as folder:
        there = [name for name in names(folder) if not name.startswith(".")]
        if not there:
            (folder / "in").mkdir()
            (folder / "in" / "a").write_text(text)
        if error:
            raise error(there)
    return there


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "f"
    for text in ("old", "new"):
        assert fill(path, text) == []
        assert (path / "in" / "a").read_text() == text
        assert names(path) == ["in"]
        assert names(path.parent) == ["f"]
    with files.writing_folder(path):
        assert (path / "in" / "a").read_text() == "new"
    assert names(path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path, error):
    fill(tmp_path / "f", "old")
    with pytest.raises(error):
        fill(tmp_path / "f", "new", error=error)
    assert (tmp_path / "f" / "in" / "a").read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_a_cut_off_folder_is_gone_on_from_when_it_is_made_from_the_same(tmp_path):
    for made_from, expected in (("x", []), ("x", ["in"]), ("y", []), ("y", ["in"]), ("", [])):
        with pytest.raises(KeyboardInterrupt) as error:
            fill(tmp_path / "f", "some", made_from, KeyboardInterrupt)
        assert error.value.args[0] == expected
    assert names(tmp_path) == []
    fill(tmp_path / "f", "all", "x")
    assert names(tmp_path) == ["f"]
    assert names(tmp_path / "f") == ["in"]


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with files.writing_folder(tmp_path / "f") as folder:
        (folder / "a").write_text("first")
        with pytest.raises(files.BeingWrittenError, match=r"\.f\.partial is being written by anot"):
            fill(tmp_path / "f", "second", "x")
    assert (tmp_path / "f" / "a").read_text() == "first"
    assert names(tmp_path) == ["f"]


WRITE_FOLDER = """
import os, pathlib, signal, sys
from masksearch_jax.core import files
at = sys.argv[2]

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

with files.writing_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("new")
    if at == "block":
        kill()
    rename = pathlib.Path.rename
    pathlib.Path.rename = lambda one, two: kill() if one == folder else rename(one, two)
"""


@pytest.mark.parametrize("at", ["block", "between the renames"])
def test_kill_9_never_loses_the_old_folder(tmp_path, repository, at):
    path = tmp_path / "f"
    with files.writing_folder(path) as folder:
        (folder / "a").write_text("old")
    done = subprocess.run([sys.executable, "-c", WRITE_FOLDER, str(path), at], cwd=repository)
    assert done.returncode == -signal.SIGKILL
    if at == "block":
        assert (path / "a").read_text() == "old"
    with pytest.raises(ValueError, match="no more"):
        fill(path, "new", error=lambda _: ValueError("no more"))
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["f"]
    with files.writing_folder(path) as folder:
        (folder / "a").write_text("new")
    assert (path / "a").read_text() == "new"
    assert names(tmp_path) == ["f"]


def test_nothing_else_renames_or_syncs_files(repository):
    own = re.compile(r"\b(fsync|mkstemp|mkdtemp|os\.replace|os\.rename)\b")
    package = repository / "masksearch_jax"
    found = [p for p in package.rglob("*.py") if own.search(p.read_text(encoding="utf-8"))]
    assert [p.relative_to(package).as_posix() for p in found] == ["core/files.py"]
