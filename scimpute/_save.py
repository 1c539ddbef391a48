"""Saved models: safetensors with JSON metadata, never pickles. A file is written whole or not at all."""

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
"""Format 2 added the checksum."""
_REMEDY = "copy it again, or save the model again with save=..."
_NO_MODEL = "is not a model of scimpute"
_LONGEST_HEADER = 100_000_000
"""Most bytes of the JSON header that the safetensors format allows."""


def model_target(path: str | os.PathLike[str] | None) -> Path | None:
    """Check the path of a new model before the work (see :func:`._files.target`). None if no model is to be saved."""
    if path is None:
        return None
    target = _files.target("save", path, ours=is_model, refusal=_NO_MODEL)
    if not _is_utf8(target):
        raise ValueError(f"save: {str(target)!r} has letters that are no UTF-8, which safetensors cannot write; choose another name")
    return target


def _is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether the path is valid UTF-8. safetensors would write any other path under a different name."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_model(path: Path) -> bool:
    """Whether a file is a model of scimpute, of this or another version. Only the header is read; the rest may be damaged."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _LONGEST_HEADER else b""
    try:
        return {"format", "method", "genes"} <= json.loads(header)["__metadata__"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def save_model(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata. Each value of the metadata is stored as JSON."""
    text = {name: json.dumps(value) for name, value in {**metadata, "format": FORMAT}.items()}
    # torch copies large tensors in parallel. In a forked child this is safe only within a session.
    with _device.session(torch.device("cpu")):
        copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text["checksum"] = json.dumps(checksum(copies, text))
    # The target was checked minutes ago; replace_file checks it again.
    _files.replace_file(path, lambda temporary: save_file(copies, temporary, metadata=text), ours=is_model, refusal=_NO_MODEL)


def checksum(tensors: Mapping[str, torch.Tensor], text: Mapping[str, str]) -> str:
    """SHA-256 of all tensors and of the metadata, as the file stores them."""
    digest = hashlib.sha256()
    for name in sorted(text.keys() - {"checksum"}):
        digest.update(json.dumps([name, text[name]]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), *tensor.shape]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a file that :func:`save_model` wrote. Nothing in the file is ever executed.

    Raises
    ------
    TypeError, FileNotFoundError, IsADirectoryError, PermissionError
        The path is not a string or a path, the file does not exist, or it may not be read.
    ValueError
        The file is not regular, a pickle, not safetensors, cut short, damaged, not a model of scimpute, or of a newer version.
    """
    # safetensors makes its tensors on the default device.
    with _device.session(torch.device("cpu")), _opened(path) as (file, metadata):
        name, keys = repr(os.fspath(path)), file.keys()
        try:
            tensors = {key: file.get_tensor(key) for key in keys}
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:  # torch does not know the dtype
            raise ValueError(f"model: {name} is damaged; {_REMEDY}") from error
        # Models of format 1 have no checksum.
        needed = "checksum" in metadata or int(metadata["format"]) > 1
        if needed and metadata.get("checksum") != checksum(tensors, file.metadata()):
            raise ValueError(f"model: {name} is damaged: its content does not agree with its checksum; {_REMEDY}")
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
    """Check a tensor of a model: its shape (None: any length), and finite values from ``low`` to ``high`` and above ``above``.

    Raises KeyError or RuntimeError. :func:`reading` turns them into one ValueError.
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


def require_size(name: str, value: Any, tensors: Mapping[str, torch.Tensor]) -> int:
    """Check a size in the metadata. No size exceeds the longest axis of all tensors, so a damaged file cannot request all of the memory."""
    largest = max((length for tensor in tensors.values() for length in (len(tensors), *tensor.shape)), default=0)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise RuntimeError(f"{name} is {value!r}")
    return value


def require_names(name: str, value: Any, *, unique: bool = True) -> list[str]:
    """Check a list of names in the metadata."""
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RuntimeError(f"{name} are no list of names")
    if unique and len(set(value)) < len(value):
        raise RuntimeError(f"{name} has a name twice")
    return value


@contextlib.contextmanager
def reading(method: Any) -> Iterator[None]:
    """Turn every error about the content of a model into one ValueError. ``method`` is the method of the model."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (KeyError, TypeError, AttributeError, RuntimeError, IndexError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the file does not hold a whole model of tl.{method} ({reason}); {_REMEDY}") from error


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of a model; the tensors are not read. Raises the errors of :func:`load_model`."""
    with _opened(path) as (_, metadata):
        return metadata


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[safe_open, dict[str, Any]]]:
    """An open model file and its metadata. safetensors has compared the header with the length of the file."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"model must be the path of a file written with save=..., got {path!r} of type {type(path).__name__}")
    name = repr(os.fspath(path))
    if not _is_utf8(path):
        raise ValueError(f"model: {name} has letters that are no UTF-8; rename the file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"model: {name} does not exist; give the file that was written with save=...")
    if os.path.isdir(path):
        raise IsADirectoryError(f"model: {name} is a directory; give the file that was written with save=...")
    # Opening a pipe would wait for a writer.
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
    """Describe the damage of a file that is not whole safetensors."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        return f"is empty; {_REMEDY}"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
        return f"is cut short or damaged; {_REMEDY}"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "is a pickle (as torch.save writes), not safetensors; pickles can run code and are never loaded; use save=..."
    return "is not a safetensors file; give the file that was written with save=..."
