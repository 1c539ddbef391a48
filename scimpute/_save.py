"""Saved models: safetensors with JSON metadata, written whole or not at all. No pickle."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FORMAT = "1"


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
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda temporary: save_file(whole, temporary, metadata=text))
