"""Output of the commands: files, which only whole new files replace, and lines on stdout and stderr."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .. import _files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Output:
    """The target of a new file. It is checked before the work. Only a file of the same kind is replaced."""

    def __init__(self, path: str | Path, kind: str = "h5ad") -> None:
        self.rule: dict[str, Any] = {
            "ours": functools.partial(_is_kind, kind),
            "refusal": {"h5ad": "is not an h5ad file", "png": "is not a png file"}[kind],
        }
        self.path = _files.target("OUT", path, **self.rule)

    def write(self, write: Callable[[Path], object]) -> None:
        _files.replace_file(self.path, write, **self.rule)


def _is_kind(kind: str, path: Path) -> bool:
    """Whether a file is of this kind, or is empty."""
    with path.open("rb") as file:
        start = file.read(8)
    if kind == "png":
        return start in (b"", b"\x89PNG\r\n\x1a\n")
    import h5py

    return not start or bool(h5py.is_hdf5(path))


def tell(text: str) -> None:
    """Print a line on stderr. If this fails, the line is lost and the run goes on."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)
    except ValueError:  # stderr is closed
        pass


def say(*lines: str) -> None:
    """Print lines on stdout. If nobody reads them any more (``| head``), they are lost without an error, since the work is done."""
    try:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    except BrokenPipeError:
        _give_up(sys.stdout)
    except (OSError, ValueError):  # the disk is full, or stdout is closed
        pass


def _give_up(stream: TextIO) -> None:
    """Redirect a broken stream to the null device, so that the flush at exit raises no error."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def lines_for_phases(progress: bool | None) -> Iterator[None]:
    """Print a line on stderr for each phase of a run that shows no bar, unless ``progress`` is False."""
    if progress is False:
        yield
        return
    from .. import _progress

    before, _progress.say = _progress.say, lambda line: tell(f"scimpute: {line}")
    try:
        yield
    finally:
        _progress.say = before
