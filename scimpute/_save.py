"""Saved models: safetensors with JSON metadata, written whole or not at all. No pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import _device, _files
from ._version import __version__

FORMAT = "2"
"""Since 2 there is a checksum."""
_AGAIN = "copy it again, or save the model again with save=..."
_NO_MODEL = "is not a model of scimpute"
_LONGEST_HEADER = 100_000_000
"""Bytes of the JSON at the start of a safetensors file, by the format's own rule."""


def model_target(path: str | os.PathLike[str] | None) -> Path | None:
    """Where a model is to be saved, if it is; found out before any work is done (see :func:`._files.target`)."""
    if path is None:
        return None
    found = _files.target("save", path, ours=is_model, refusal=_NO_MODEL)
    if not _is_utf8(found):
        raise ValueError(f"save: {str(found)!r} has letters that are no UTF-8, which a model cannot be called by; choose another name")
    return found


def _is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether safetensors writes to this path, and not to another."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_model(path: Path) -> bool:
    """Whether a file is one of our models, of this or another version; it may be cut or damaged behind its header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _LONGEST_HEADER else b""
    try:
        return {"format", "method", "genes"} <= json.loads(header)["__metadata__"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def save_model(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors with their metadata; each value of the metadata is stored as JSON."""
    text = {name: json.dumps(value) for name, value in {**metadata, "format": FORMAT}.items()}
    # Copies of large tensors run in parallel, as they may in a forked child within a session only.
    with _device.session(torch.device("cpu")):
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text["checksum"] = json.dumps(checksum(whole, text))
    # Minutes have passed since it was looked at what is there.
    _files.replace_file(path, lambda temporary: save_file(whole, temporary, metadata=text), ours=is_model, refusal=_NO_MODEL)


def checksum(tensors: Mapping[str, torch.Tensor], text: Mapping[str, str]) -> str:
    """SHA-256 of all tensors and of the metadata as they are in the file."""
    found = hashlib.sha256()
    for name in sorted(text.keys() - {"checksum"}):
        found.update(json.dumps([name, text[name]]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(json.dumps([name, str(tensor.dtype), *tensor.shape]).encode())
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a file that :func:`save_model` wrote. Nothing in the file is ever executed.

    Raises
    ------
    TypeError, FileNotFoundError, IsADirectoryError, PermissionError
        There is no such file, or it may not be read.
    ValueError
        The file is no regular one, a pickle, no safetensors, cut short, damaged, not ours, or of a newer version.
    """
    with _opened(path) as (file, metadata):
        name, keys = repr(os.fspath(path)), file.keys()
        try:
            tensors = {key: file.get_tensor(key) for key in keys}
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:  # types that torch does not know
            raise ValueError(f"model: {name} is damaged; {_AGAIN}") from error
        # Models of format 1 have none.
        needed = "checksum" in metadata or int(metadata["format"]) > 1
        if needed and metadata.get("checksum") != checksum(tensors, file.metadata()):
            raise ValueError(f"model: {name} is damaged: its content does not agree with its checksum; {_AGAIN}")
        return tensors, metadata


def require(
    tensors: Mapping[str, torch.Tensor],
    name: str,
    *shape: int | None,
    dtype: str = "real",
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> torch.Tensor:
    """A tensor of a model, of this shape (None: any length), with finite values from ``low`` to ``high`` and above ``above``.

    Raises KeyError or RuntimeError, which those who read a model tell as one ValueError.
    """
    tensor = tensors[name]
    if len(tensor.shape) != len(shape) or any(n is not None and n != length for n, length in zip(shape, tensor.shape, strict=True)):
        raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}, {tuple('any' if n is None else n for n in shape)} is needed")
    kinds = {"real": tensor.is_floating_point(), "bool": tensor.dtype == torch.bool, "int": tensor.dtype == torch.int64}
    if not kinds[dtype]:
        raise RuntimeError(f"{name} has values of type {tensor.dtype}")
    if tensor.numel() and not (torch.isfinite(tensor).all() and tensor.min() >= low and tensor.max() <= high and tensor.min() > above):
        raise RuntimeError(f"{name} has values that are NaN, infinite or out of range")
    return tensor


def whole(name: str, value: Any, tensors: Mapping[str, torch.Tensor]) -> int:
    """A size in the metadata. It is no larger than those of the tensors, so that a damaged one does not ask for all of the memory."""
    most = max((length for tensor in tensors.values() for length in (len(tensors), *tensor.shape)), default=0)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RuntimeError(f"{name} is {value!r}")
    return value


def texts(name: str, value: Any, *, unique: bool = True) -> list[str]:
    """Names in the metadata."""
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RuntimeError(f"{name} are no list of names")
    if unique and len(set(value)) < len(value):
        raise RuntimeError(f"{name} has a name twice")
    return value


@contextlib.contextmanager
def reading(method: Any) -> Iterator[None]:
    """One ValueError for whatever is found wrong with a model of this method."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (KeyError, TypeError, AttributeError, RuntimeError, IndexError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the file does not hold a whole model of tl.{method} ({reason}); {_AGAIN}") from error


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata alone, whatever the size of the tensors. Raises as :func:`load_model`."""
    with _opened(path) as (_, metadata):
        return metadata


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[safe_open, dict[str, Any]]]:
    """The file, of which the header was read and compared with the length, and its metadata."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"model must be the path of a file written with save=..., got {path!r} of type {type(path).__name__}")
    name = repr(os.fspath(path))
    if not _is_utf8(path):
        raise ValueError(f"model: {name} has letters that are no UTF-8; rename the file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"model: {name} does not exist; give the file that was written with save=...")
    if os.path.isdir(path):
        raise IsADirectoryError(f"model: {name} is a directory; give the file that was written with save=...")
    # Who opens a pipe waits for a writer.
    if not os.path.isfile(path):
        raise ValueError(f"model: {name} is not a regular file; give the file that was written with save=...")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"model: {name} may not be read by you; ask its owner, or allow it with chmod u+r")
    try:
        with safe_open(path, "pt") as file:
            yield file, _read_metadata(name, file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"model: {name} {_damage(Path(path))}") from error
    except OSError as error:
        raise ValueError(f"model: {name} cannot be read: {error}") from error


def _read_metadata(name: str, text: Mapping[str, str]) -> dict[str, Any]:
    try:
        metadata = {key: json.loads(value) for key, value in text.items()}
        version = int(metadata["format"])
        if version < 1:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
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
    if not start:
        return f"is empty; {_AGAIN}"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
        return f"is cut short or damaged; {_AGAIN}"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "is a pickle (as torch.save writes), not safetensors; pickles can run code and are never loaded; use save=..."
    return "is not a safetensors file; give the file that was written with save=..."
