"""Saved models: safetensors with JSON metadata, written whole or not at all. No pickle."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import _device
from ._version import __version__

FORMAT = "1"
_LONGEST_HEADER = 100_000_000
"""Bytes of the JSON at the start of a safetensors file, by the format's own rule."""


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write to a temporary name beside ``path`` and rename: a failure leaves what was there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes the file private; give it the permissions any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_model(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors with their metadata; each value of the metadata is stored as JSON."""
    text = {name: json.dumps(value) for name, value in {"format": FORMAT, **metadata}.items()}
    # Copies of large tensors run in parallel, as they may in a forked child within a session only.
    with _device.session(torch.device("cpu")):
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda temporary: save_file(whole, temporary, metadata=text))


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a file that :func:`save_model` wrote. Nothing in the file is ever executed.

    Raises
    ------
    TypeError, FileNotFoundError, IsADirectoryError
        There is no such file.
    ValueError
        The file is a pickle, no safetensors, cut short, not ours, or of a newer version.
    """
    with _opened(path) as (file, metadata):
        return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata alone, whatever the size of the tensors. Raises as :func:`load_model`."""
    with _opened(path) as (_, metadata):
        return metadata


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[safe_open, dict[str, Any]]]:
    """The file, of which the header was read and compared with the length, and its metadata."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"model must be the path of a file written with save=..., got {path!r} of type {type(path).__name__}")
    name = repr(os.fspath(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"model: {name} does not exist; give the file that was written with save=...")
    if os.path.isdir(path):
        raise IsADirectoryError(f"model: {name} is a directory; give the file that was written with save=...")
    try:
        with safe_open(path, "pt") as file:
            yield file, _read_metadata(name, file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"model: {name} {_damage(Path(path))}") from error


def _read_metadata(name: str, text: Mapping[str, str]) -> dict[str, Any]:
    try:
        metadata = {key: json.loads(value) for key, value in text.items()}
        version = int(metadata["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"model: {name} has no metadata of scimpute; give a file that was written with save=...") from error
    if version > int(FORMAT):
        raise ValueError(
            f"model: {name} has format {version}, written by scimpute {metadata.get('version', '(unknown)')}; scimpute {__version__} reads "
            f"formats up to {FORMAT}. Install a newer scimpute"
        )
    return metadata


def _damage(path: Path) -> str:
    """What is wrong with a file that is not whole safetensors."""
    with path.open("rb") as file:
        start = file.read(9)
    again = "save the model again with save=..."
    if not start:
        return f"is empty; {again}"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
        return f"is cut short or damaged; copy it again, or {again}"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return f"is a pickle (as torch.save writes), not safetensors; pickles can run code and are never loaded. Please {again}"
    return "is not a safetensors file; give the file that was written with save=..."
