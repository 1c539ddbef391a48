"""Where the networks run."""

from __future__ import annotations

import torch


def resolve(device: str) -> torch.device:
    """``"auto"`` (a CUDA device if there is one, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device == "auto":
        return torch.device(found[1] if len(found) > 1 else "cpu")
    name = "cuda:0" if device == "cuda" else device
    if name not in found:
        raise ValueError(f"device {device!r} not available; found: {', '.join(found)}")
    return torch.device(name)
