"""Safe writing of files. The target is checked before the work. A file is written whole or not at all, and keeps its permissions.

During the writing two files stand beside the target. A temporary file holds the new content, and the process holds a lock on a lock file.
The lock shows whether a temporary file belongs to a live process or to a killed one.
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
except ImportError:  # not a Unix system: there are no locks, and no leftover file is removed
    fcntl = None  # type: ignore[assignment]

_LOCK = ".scimpute-lock"
_OUR_LOCK = re.compile(rf"(\..+\.[0-9a-f]{{8}}){re.escape(_LOCK)}", re.DOTALL)
_STEM_LENGTH = 40
"""Letters of a file's name that its temporary name keeps. A longer name could become illegal."""
_TEST_BYTES = 4096
"""Bytes of the test file that shows whether the disk has room."""
_HOUR, _DAY = 3600.0, 86400.0


def target(name: str, path: str | os.PathLike[str], *, ours: Callable[[Path], bool] | None = None, refusal: str = "") -> Path:
    """Resolve the path of a new file, and refuse it before the work if no file can be written there.

    Temporary files of killed runs beside the target are removed.

    Parameters
    ----------
    name
        The name of the argument, for messages.
    path
        The path that the user passed. Links are followed.
    ours
        Says whether an existing file may be replaced. None allows any regular file that is not write-protected.
    refusal
        Why an existing file may not be replaced, for messages, such as "is not a png file".

    Raises
    ------
    TypeError, ValueError
        The path is not a string or a path, is not legal, or is a device, a pipe or another special file.
    IsADirectoryError, FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError, OSError
        The path is a directory; its directory does not exist, or is a file; an existing file may not be replaced; the directory cannot be
        written to.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{name} must be the path of a file, got {path!r} of type {type(path).__name__}")
    text = os.fspath(path)
    if not text:
        raise ValueError(f"{name} is empty; give the name of a file")
    if "\0" in text:
        raise ValueError(f"{name}: {text!r} cannot be the name of a file: it has a NUL")
    try:
        resolved = Path(os.path.realpath(text))
        if resolved.is_dir() or text.endswith(("/", os.sep)):
            raise IsADirectoryError(f"{name}: {text!r} is a directory; give a file name")
        for folder in (Path(text).parent, resolved.parent):
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(f"{name}: {str(folder)!r} is a file, not a directory")
            if not folder.is_dir():
                raise FileNotFoundError(f"{name}: the directory {str(folder)!r} does not exist")
        _check_replaceable(name, resolved, ours, refusal)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError):
        raise
    except (OSError, UnicodeError) as error:  # the name is too long, or has characters that no file name can have
        raise ValueError(f"{name}: {text!r} cannot be the name of a file: {getattr(error, 'strerror', None) or error}") from error
    _remove_leftovers(resolved)
    try:
        # The permissions that a system reports can be wrong (root, network drives). Only a test file is proof.
        with _temporary(resolved) as (temporary, _):
            temporary.write_bytes(bytes(_TEST_BYTES))
    except OSError as error:
        kind = OSError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else PermissionError
        raise kind(f"{name}: nothing can be written in {str(resolved.parent)!r}: {error.strerror}") from error
    return resolved


def _check_replaceable(name: str, path: Path, ours: Callable[[Path], bool] | None, refusal: str) -> None:
    """Refuse an existing file that may not be replaced; see :func:`target`."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{name}: {str(path)!r} is a directory; give a file name")
    try:
        replaceable = ours is None or (stat.S_ISREG(mode) and ours(path))
    except PermissionError as error:
        raise PermissionError(f"{name}: {str(path)!r} exists and may not be read by you, so it is kept; choose another name") from error
    if not replaceable:
        raise FileExistsError(f"{name}: {str(path)!r} exists and {refusal}; choose another name or delete it")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name}: {str(path)!r} is not a regular file; give the name of a file")
    # Root can write to every file. A file without any write permission is protected on purpose.
    if not mode & 0o222 or not os.access(path, os.W_OK):
        raise PermissionError(f"{name}: {str(path)!r} is write-protected; choose another name, or allow it with chmod u+w")


def replace_file(path: Path, write: Callable[[Path], object], *, ours: Callable[[Path], bool] | None = None, refusal: str = "") -> None:
    """Let ``write`` fill a temporary file beside ``path``, and rename it to ``path``. A failure leaves the old file as it was.

    The new file keeps the permissions of the old file; without an old file it has the permissions of any new file. Before the renaming
    ``path`` is checked again, as in :func:`target`.
    """
    path = Path(os.path.realpath(path))
    with _temporary(path) as (temporary, mode):
        write(temporary)
        _check_replaceable("file", path, ours, refusal)
        if path.exists():
            _same_access(path, temporary)
        else:
            temporary.chmod(mode)
        os.replace(temporary, path)


def _same_access(old: Path, new: Path) -> None:
    """Give the new file the group and the permissions of the old one."""
    status = old.stat()
    mode = stat.S_IMODE(status.st_mode)
    if hasattr(os, "chown") and (status.st_uid, status.st_gid) != (new.stat().st_uid, new.stat().st_gid):
        try:
            os.chown(new, status.st_uid if os.geteuid() == 0 else -1, status.st_gid)
        except OSError:
            # The new file has another group, which must not get the permissions of the old group.
            mode &= ~stat.S_IRWXG
    new.chmod(mode)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, int]]:
    """An empty private file beside ``path``, and the permissions of any new file there. The private file is removed in the end."""
    # The ending stays, because it decides the format of a figure.
    suffix = path.suffix if len(path.suffix) <= 20 else ""
    lock, descriptor = _locked(path.parent, f".{path.name[:_STEM_LENGTH]}.")
    temporary = lock.with_name(lock.name.removesuffix(_LOCK) + suffix)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        yield temporary, stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        temporary.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(folder: Path, stem: str) -> tuple[Path, int]:
    """A new lock file that this process holds. The file contains the name of the machine."""
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
        # Another run tests at this moment whether the lock file is a leftover. Try another name.
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _hold(descriptor: int) -> bool | None:
    """Lock an open file. False if another process holds the lock; None if the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of this user that no live process uses. Errors are ignored."""
    with contextlib.suppress(OSError):
        names = os.listdir(path.parent)
        for name in names:
            # Files with other names may belong to other programs.
            match = _OUR_LOCK.fullmatch(name)
            if match:
                # As in _temporary: the same name, with the ending of the file or without.
                file = re.compile(rf"{re.escape(match[1])}(\.[^.]{{0,19}})?")
                beside = [path.with_name(other) for other in names if file.fullmatch(other) and other != name]
                with contextlib.suppress(OSError):
                    _remove_if_leftover(path.parent / name, beside)
        if not path.suffix:
            return  # other programs may use such names
        # Earlier versions wrote no lock files.
        old = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(path.suffix)}")
        for name in filter(old.fullmatch, names):
            lock = name.removesuffix(path.suffix) + _LOCK
            if lock not in names and _is_mine(path.with_name(name), idle=_HOUR):
                with contextlib.suppress(OSError):
                    path.with_name(name).unlink()


def _remove_if_leftover(lock: Path, beside: list[Path]) -> None:
    """Remove a lock file and the temporary files beside it if no live process holds the lock."""
    descriptor = os.open(lock, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        # The lock of another machine may be invisible on this one: wait a day.
        same_machine = os.read(descriptor, 1000) == socket.gethostname().encode()
        idle = 0.0 if same_machine else _DAY
        if _hold(descriptor) and all(_is_mine(file, idle) for file in [lock, *beside]):
            for file in [*beside, lock]:
                file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_mine(path: Path, idle: float) -> bool:
    """Whether the path is a regular file of this user without a change for ``idle`` seconds. True if the file is gone."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return mine and stat.S_ISREG(status.st_mode) and (not idle or time.time() - status.st_mtime > idle)
