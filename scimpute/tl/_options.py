"""Options of `tl.apply`."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Options:
    """Parameters of :func:`scimpute.tl.apply`, checked."""

    layer: str | None
    rounding: str | None
    key: str
    unseen: str
    sd: bool
    dtype: str
    device: torch.device
    progress: bool
    copy: bool
