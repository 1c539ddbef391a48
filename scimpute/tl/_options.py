"""How a saved model is applied."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Options:
    """How a model is to be applied, checked."""

    layer: str | None
    rounding: str | None
    key: str
    unseen: str
    sd: bool
    dtype: str
    device: torch.device
    progress: bool
    copy: bool
