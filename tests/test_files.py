"""Where files may be written is found out first; they are written whole or not at all, private ones stay so, nothing stays behind."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scimpute import _files
from scimpute._files import replace_file, target


def text(content: str):
    return lambda temporary: temporary.write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# Where a file may be written


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (3, TypeError, "OUT must be the path of a file, got 3 of type int"),
        (b"name", TypeError, "OUT must be the path of a file"),
        ("", ValueError, "OUT is empty"),
        ("a\0b", ValueError, "cannot be the name of a file: it has a NUL"),
        ("\ud800", ValueError, "cannot be the name of a file"),
        ("m" * 300, ValueError, "cannot be the name of a file: File name too long"),
        ("a/" * 3000, ValueError, "cannot be the name of a file: File name too long"),
        (".", IsADirectoryError, "'.' is a directory; give a file name"),
        ("new/", IsADirectoryError, "'new/' is a directory; give a file name"),
        ("pipe/name", NotADirectoryError, "OUT: 'pipe' is a file, not a directory"),
        ("no/folder/name", FileNotFoundError, "OUT: the directory 'no/folder' does not exist"),
        ("/dev/null", ValueError, "'/dev/null' is not a regular file"),
        ("loop", ValueError, "loop' is not a regular file"),
        ("pipe", ValueError, "pipe' is not a regular file"),
        ("nowhere", FileNotFoundError, "the directory '.*/none' does not exist"),
    ],
)
def test_places_where_no_file_can_be(tmp_path, monkeypatch, path, error, message):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    os.mkfifo("pipe")
    os.symlink("none/name", "nowhere")
    with pytest.raises(error, match=message) as caught:
        target("OUT", path)
    assert caught.type is error
    assert names(tmp_path) == ["loop", "nowhere", "pipe"]


@pytest.mark.parametrize("name", ["m" * 250, "m" * 242 + ".safetensors", "é" * 120, "x." + "y" * 250])
def test_a_long_name_is_written_or_refused_at_once(tmp_path, name):
    """A temporary name that is longer still would fail when all is done."""
    path = target("OUT", tmp_path / name)
    replace_file(path, text("new"))
    assert names(tmp_path) == [name]


def test_write_protected_files_and_folders(tmp_path, monkeypatch):
    path = tmp_path / "name"
    path.write_text("old")
    path.chmod(0o444)
    for attempt in (lambda: target("OUT", path), lambda: replace_file(path, text("new"))):
        with pytest.raises(PermissionError, match="'.*name' is write-protected"):
            attempt()
    path.chmod(0o644)
    assert target("OUT", path) == path
    monkeypatch.setattr("scimpute._files.os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="is write-protected"):
        target("OUT", path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["name"]


def test_a_full_disk_is_noticed(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="OUT: nothing can be written in '.*': No space left on device"):
        target("OUT", tmp_path / "name")
    assert names(tmp_path) == []


def test_only_ours_are_replaced(tmp_path):
    path = tmp_path / "name"

    def ours(path: Path) -> bool:
        return path.read_text() == "ours"

    assert target("save", path, ours=ours) == path
    path.write_text("theirs")
    for attempt in (
        lambda: target("save", path, ours=ours, refusal="is not mine"),
        lambda: replace_file(path, text("ours"), ours=ours, refusal="is not mine"),
    ):
        with pytest.raises(FileExistsError, match="name' exists and is not mine; choose another name or delete it"):
            attempt()
    assert path.read_text() == "theirs"
    path.write_text("ours")
    assert target("save", path, ours=ours) == path
    with pytest.raises(FileExistsError):
        target("save", "/dev/null", ours=ours)


def test_what_may_not_be_read_is_left(tmp_path):
    def locked(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "name").write_text("theirs")
    with pytest.raises(PermissionError, match="save: '.*name' exists and may not be read by you"):
        target("save", tmp_path / "name", ours=locked)


def test_links_are_followed(tmp_path):
    (tmp_path / "deep").mkdir()
    link, file = tmp_path / "link", tmp_path / "deep" / "file"
    link.symlink_to("deep/file")
    for content in ("first", "second"):
        assert target("OUT", link) == file
        replace_file(link, text(content))
        assert link.is_symlink()
        assert file.read_text() == content
        assert names(tmp_path / "deep") == ["file"]
    with pytest.raises(FileExistsError):
        target("OUT", link, ours=lambda _: False)


# How it is written


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "result.txt"
    for content in ("first", "second"):
        replace_file(path, text(content))
        assert path.read_text() == content
        assert names(tmp_path) == ["result.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("earlier", [True, False])
def test_failure_leaves_the_old_file_and_no_temporary(tmp_path, error, earlier):
    path = tmp_path / "result.txt"
    if earlier:
        path.write_text("old")
    seen = []

    def write(temporary):
        seen.append(temporary)
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        replace_file(path, write)
    assert seen[0].parent == tmp_path
    assert seen[0].suffix == ".txt"
    assert names(tmp_path) == (["result.txt"] if earlier else [])
    if earlier:
        assert path.read_text() == "old"


def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    umask(0o027)
    replace_file(tmp_path / "result.txt", text("x"))
    assert mode(tmp_path / "result.txt") == 0o640
    assert umask(0o027) == 0o027


@pytest.mark.parametrize("given", [0o600, 0o640, 0o664, 0o755])
@pytest.mark.usefixtures("umask")
def test_permissions_of_a_file_that_is_replaced_stay(tmp_path, given):
    path = tmp_path / "result.txt"
    path.write_text("old")
    path.chmod(given)

    def write(temporary):
        assert mode(temporary) == 0o600  # nobody else reads along
        temporary.write_text("new")

    replace_file(path, write)
    assert (path.read_text(), mode(path)) == ("new", given)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("allowed", [True, False])
def test_the_group_stays_or_loses_its_rights(tmp_path, monkeypatch, allowed):
    path = tmp_path / "result.txt"
    path.write_text("old")
    os.chown(path, 12, 34)
    path.chmod(0o660)
    if not allowed:

        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr("scimpute._files.os.chown", refuse)
    replace_file(path, text("new"))
    status = path.stat()
    assert (status.st_uid, status.st_gid) == ((12, 34) if allowed else (os.geteuid(), os.getegid()))
    assert mode(path) == (0o660 if allowed else 0o600)


# What killed runs leave

KILLED = """
import os, signal, sys
from pathlib import Path
from scimpute._files import replace_file
def write(temporary):
    temporary.write_text("private")
    print("writing", flush=True)
    signal.pause() if sys.argv[2] == "wait" else os.kill(os.getpid(), signal.SIGKILL)
replace_file(Path(sys.argv[1]), write)
"""


def start(path: Path, what: str) -> subprocess.Popen[str]:
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(path), what], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "writing\n"
    return run


def test_the_next_run_removes_what_a_killed_one_left(tmp_path):
    with start(tmp_path / "out.h5ad", "die") as run:
        run.wait(60)
    left = names(tmp_path)
    assert len(left) == 2
    assert any(name.startswith(".out.h5ad.") and name.endswith(".h5ad") for name in left)
    assert target("OUT", tmp_path / "another.h5ad") == tmp_path / "another.h5ad"
    assert names(tmp_path) == []


def test_what_a_live_run_needs_stays(tmp_path):
    with start(tmp_path / "out.h5ad", "wait") as run:
        left = names(tmp_path)
        target("OUT", tmp_path / "out.h5ad")
        assert names(tmp_path) == left
        run.kill()
        run.wait(60)
    target("OUT", tmp_path / "out.h5ad")
    assert names(tmp_path) == []


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_hidden_files_beside_a_name_without_an_ending_stay(tmp_path):
    """Of old temporary files the name alone says what they are."""
    theirs = tmp_path / ".model.settings"
    theirs.write_text("mine")
    age(theirs, 3600 * 100)
    target("OUT", tmp_path / "model")
    assert theirs.read_text() == "mine"


def test_files_of_others_stay(tmp_path, monkeypatch):
    """Also those of a run on another machine, of which no lock is seen."""
    hours = {
        ".out.h5ad.abcdefgh.h5ad": 2,  # of an earlier version
        ".out.h5ad.abcdefg2.h5ad": 0.5,  # perhaps at work
        ".out.h5ad.abc.h5ad": 100,
        ".out.h5ad.swp": 100,
        ".other.h5ad.abcdefgh.h5ad": 100,
        "out.h5ad": 100,
        ".out.h5ad.11111111.scimpute-lock": 100,  # of another machine, long ago
        ".out.h5ad.11111111.h5ad": 30,
        ".out.h5ad.22222222.scimpute-lock": 100,  # of another machine, still written to
        ".out.h5ad.22222222.h5ad": 3,
    }
    for name, old in hours.items():
        (tmp_path / name).write_text("elsewhere")
        age(tmp_path / name, 3600 * old)
    target("OUT", tmp_path / "out.h5ad")
    gone = {".out.h5ad.abcdefgh.h5ad", ".out.h5ad.11111111.scimpute-lock", ".out.h5ad.11111111.h5ad"}
    assert set(names(tmp_path)) == set(hours) - gone
    monkeypatch.setattr("scimpute._files.os.geteuid", lambda: 4711)
    age(tmp_path / ".out.h5ad.22222222.h5ad", 3600 * 100)
    target("OUT", tmp_path / "out.h5ad")
    assert set(names(tmp_path)) == set(hours) - gone


@pytest.mark.parametrize("lock", [".scimpute-lock", ".a.scimpute-lock", ".a.b.scimpute-lock", "..11111111.scimpute-lock"])
@pytest.mark.parametrize("host", [socket.gethostname(), ""])
def test_a_lock_that_no_run_made_removes_nothing(tmp_path, lock, host):
    for name in (".a", ".a.b", ".a.py", ".abc", ".bashrc", "..11111111", "..11111111.h5ad", "thesis.txt", lock):
        (tmp_path / name).write_text(host if name == lock else "years of work")
        age(tmp_path / name, 3600 * 100)
    before = names(tmp_path)
    target("OUT", tmp_path / "out.h5ad")
    assert names(tmp_path) == before


def test_beside_a_lock_that_was_left_only_its_own_file_goes(tmp_path):
    stem = ".out.h5ad.11111111"
    own, others = {stem + ".scimpute-lock", stem + ".h5ad"}, {stem + "2.h5ad", stem + ".tar.gz", stem + "~", ".out.h5ad", "x" + stem}
    for name in own | others:
        (tmp_path / name).write_text(socket.gethostname())
    target("OUT", tmp_path / "out.h5ad")
    assert set(names(tmp_path)) == others


def test_where_there_are_no_locks_nothing_is_taken_for_left_behind(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    with start(tmp_path / "out.h5ad", "die") as run:
        run.wait(60)
    left = names(tmp_path)
    monkeypatch.setattr("scimpute._files.fcntl.flock", unsupported)
    replace_file(target("OUT", tmp_path / "out.h5ad"), text("new"))
    assert names(tmp_path) == sorted([*left, "out.h5ad"])
    monkeypatch.setattr(_files, "fcntl", None)
    replace_file(target("OUT", tmp_path / "out.h5ad"), text("newer"))
    assert (tmp_path / "out.h5ad").read_text() == "newer"
