"""Files: where one may be written is found out before the work; it is written whole or not at all, and is no more open to others.

Beside a file that is being written are one with the new content and one that is locked while a process is at work on it, so that what
a killed run left behind can be told from what a live one needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix system; there, nothing is taken for left behind
    fcntl = None  # type: ignore[assignment]

_LOCK = ".scimpute-lock"
_OUR_LOCK = re.compile(rf"(\..+\.[0-9a-f]{{8}}){re.escape(_LOCK)}", re.DOTALL)
_KEPT = 40
"""Letters of a file's name that its temporary name keeps: a long name has to stay legal."""
_PROOF = 4096
"""Bytes that are written to find out whether there is room for any."""
_HOUR, _DAY = 3600.0, 86400.0


def target(name: str, path: str | os.PathLike[str], *, ours: Callable[[Path], bool] | None = None, else_it: str = "") -> Path:
    """Where a file is to be written, links followed; a place where it cannot be is refused before any work is done.

    What killed runs left beside it is removed.

    Parameters
    ----------
    name
        The argument, for messages.
    path
        What the user gave.
    ours
        Whether an existing file may be replaced; where None, any regular file that is not write-protected.
    else_it
        What a file that may not be replaced is, or is not, for messages.

    Raises
    ------
    TypeError, ValueError
        It is no path, or no legal one; it is a device, a pipe or the like.
    IsADirectoryError, FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError, OSError
        It is a directory; its directory does not exist, or is a file; something that may not be replaced is there; nothing can be
        written there.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{name} must be the path of a file, got {path!r} of type {type(path).__name__}")
    text = os.fspath(path)
    if not text:
        raise ValueError(f"{name} is empty; give the name of a file")
    if "\0" in text:
        raise ValueError(f"{name}: {text!r} cannot be the name of a file: it has a NUL")
    try:
        found = Path(os.path.realpath(text))
        if found.is_dir() or text.endswith(("/", os.sep)):
            raise IsADirectoryError(f"{name}: {text!r} is a directory; give a file name")
        for folder in (Path(text).parent, found.parent):
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(f"{name}: {str(folder)!r} is a file, not a directory")
            if not folder.is_dir():
                raise FileNotFoundError(f"{name}: the directory {str(folder)!r} does not exist")
        _refuse_what_is_there(name, found, ours, else_it)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError):
        raise
    except (OSError, UnicodeError) as error:  # too long; letters that no file name has
        raise ValueError(f"{name}: {text!r} cannot be the name of a file: {getattr(error, 'strerror', None) or error}") from error
    _remove_what_killed_runs_left(found)
    try:
        # What a system says of permissions is not always so (root, network drives): the only proof is a file.
        with _temporary(found) as (temporary, _):
            temporary.write_bytes(bytes(_PROOF))
    except OSError as error:
        kind = OSError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else PermissionError
        raise kind(f"{name}: nothing can be written in {str(found.parent)!r}: {error.strerror}") from error
    return found


def _refuse_what_is_there(name: str, path: Path, ours: Callable[[Path], bool] | None, else_it: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{name}: {str(path)!r} is a directory; give a file name")
    try:
        replaceable = ours is None or (stat.S_ISREG(mode) and ours(path))
    except PermissionError as error:
        raise PermissionError(f"{name}: {str(path)!r} exists and may not be read by you, so it is left; choose another name") from error
    if not replaceable:
        raise FileExistsError(f"{name}: {str(path)!r} exists and {else_it}; choose another name or delete it")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name}: {str(path)!r} is not a regular file; give the name of a file")
    # To root everything is writable, but who takes away every right to write means it.
    if not mode & 0o222 or not os.access(path, os.W_OK):
        raise PermissionError(f"{name}: {str(path)!r} is write-protected; choose another name, or allow it with chmod u+w")


def replace_file(path: Path, write: Callable[[Path], object], *, ours: Callable[[Path], bool] | None = None, else_it: str = "") -> None:
    """Have ``write`` fill a temporary file beside ``path`` and rename it: a failure leaves what was there.

    The new file has the permissions of the one it replaces, or those of any new file. What is at ``path`` by then is looked at once
    more, as in :func:`target`.
    """
    path = Path(os.path.realpath(path))
    with _temporary(path) as (temporary, mode):
        write(temporary)
        _refuse_what_is_there("file", path, ours, else_it)
        if path.exists():
            _same_access(path, temporary)
        else:
            temporary.chmod(mode)
        os.replace(temporary, path)


def _same_access(old: Path, new: Path) -> None:
    status = old.stat()
    mode = stat.S_IMODE(status.st_mode)
    if hasattr(os, "chown") and (status.st_uid, status.st_gid) != (new.stat().st_uid, new.stat().st_gid):
        try:
            os.chown(new, status.st_uid if os.geteuid() == 0 else -1, status.st_gid)
        except OSError:
            # What the old group was allowed, another one is not.
            mode &= ~stat.S_IRWXG
    new.chmod(mode)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, int]]:
    """An empty private file beside ``path``, removed in the end, and the permissions of any new file there."""
    # For a figure the ending says what is to be drawn.
    suffix = path.suffix if len(path.suffix) <= 20 else ""
    lock, descriptor = _locked(path.parent, f".{path.name[:_KEPT]}.")
    temporary = lock.with_name(lock.name.removesuffix(_LOCK) + suffix)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        yield temporary, stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        temporary.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(folder: Path, stem: str) -> tuple[Path, int]:
    """A new lock file that this process holds; it names the machine."""
    while True:
        lock = folder / f"{stem}{secrets.token_hex(4)}{_LOCK}"
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            os.write(descriptor, socket.gethostname().encode())
            if _hold(descriptor) is not False and lock.exists():
                return lock, descriptor
        except BaseException:
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        # Another run is looking whether it was left behind.
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _hold(descriptor: int) -> bool | None:
    """Lock an open file: whether nobody else had; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_what_killed_runs_left(path: Path) -> None:
    """Temporary files of this user that no live process works on; whatever cannot be removed stays."""
    with contextlib.suppress(OSError):
        names = os.listdir(path.parent)
        for name in names:
            # Other names may be those of files that are not ours.
            found = _OUR_LOCK.fullmatch(name)
            if found:
                # As in _temporary: the same name, with the ending of the file or without.
                file = re.compile(rf"{re.escape(found[1])}(\.[^.]{{0,19}})?")
                beside = [path.with_name(other) for other in names if file.fullmatch(other) and other != name]
                with contextlib.suppress(OSError):
                    _remove_if_left(path.parent / name, beside)
        if not path.suffix:
            return  # such a name might be anybody's
        # Earlier versions had no lock.
        old = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(path.suffix)}")
        for name in filter(old.fullmatch, names):
            lock = name.removesuffix(path.suffix) + _LOCK
            if lock not in names and _is_mine(path.with_name(name), idle=_HOUR):
                with contextlib.suppress(OSError):
                    path.with_name(name).unlink()


def _remove_if_left(lock: Path, beside: list[Path]) -> None:
    descriptor = os.open(lock, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        # A lock need not be seen on another machine.
        here = os.read(descriptor, 1000) == socket.gethostname().encode()
        idle = 0.0 if here else _DAY
        if _hold(descriptor) and all(_is_mine(file, idle) for file in [lock, *beside]):
            for file in [*beside, lock]:
                file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_mine(path: Path, idle: float) -> bool:
    """Whether it is a regular file of this user, or gone, that nobody has written to for so many seconds."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return mine and stat.S_ISREG(status.st_mode) and (not idle or time.time() - status.st_mtime > idle)
