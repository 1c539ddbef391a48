"""Checked settings of a run of `tl.pmi` or `tl.gain`. ``variant="published"`` uses the published values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import _check

# n_layers, n_hidden, dropout, learning_rate (Vinas 2021, supplement), by method and mode.
_PUBLISHED = {
    ("pmi", "inplace"): (2, 1366, 0.0, 1e-4),
    ("pmi", "inductive"): (1, 3072, 0.2, 1e-4),
    ("gain", "inplace"): (3, 296, 0.2, 1e-3),
    ("gain", "inductive"): (4, 1902, 0.2, 1e-3),
}


def checked_settings(method: str, arguments: dict[str, Any]) -> BulkSettings:
    """Check every number of the training. "auto" becomes the value of the variant."""
    mode = _check.option("mode", arguments["mode"], ("inplace", "inductive"))
    variant = _check.option("variant", arguments["variant"], ("default", "published"))
    published = variant == "published"
    layers, hidden, dropout, rate = _PUBLISHED[method, mode] if published else (2, 256, 0.2, 1e-3)

    def whole(name: str, auto: Any, low: int = 1) -> Any:
        return auto if _check.auto(name, arguments[name]) else _check.integer(name, arguments[name], low)

    def real(name: str, auto: float, **bounds: Any) -> float:
        return auto if _check.auto(name, arguments[name]) else _check.number(name, arguments[name], **bounds)

    return BulkSettings(
        method=method,
        mode=mode,
        linear=not published,
        n_models=whole("n_models", 1 if published else 2),
        n_layers=whole("n_layers", layers),
        n_hidden=whole("n_hidden", hidden),
        dropout=real("dropout", dropout, low=0, high=1, open_high=True),
        mask_rate=_mask_rate(arguments["mask_rate"], (0.5, 0.9) if published else (0.3, 0.9)),
        max_epochs=whole("max_epochs", 1000 if published else None),
        batch_size=_check.integer("batch_size", arguments["batch_size"], 2),
        learning_rate=real("learning_rate", rate, low=0, open_low=True),
        weight_decay=0.0 if published else 1.0,
        one_cycle=not published,
        supervised_weight=_check.number("supervised_weight", arguments.get("supervised_weight", 1.0), 0),
        hint_rate=_check.number("hint_rate", arguments.get("hint_rate", 0.5), 0, 1, open_high=True),
    )


def _mask_rate(value: Any, auto: tuple[float, float]) -> tuple[float, float]:
    if isinstance(value, str) and value == "auto":
        return auto
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"mask_rate must be a pair (low, high) of fractions, or 'auto'; got {value!r}")
    low, high = (_check.number("mask_rate", edge, 0, 1, open_low=True, open_high=True) for edge in value)
    if low > high:
        raise ValueError(f"mask_rate must be (low, high) with low <= high, got {value!r}")
    return low, high


@dataclass(frozen=True)
class BulkSettings:
    """Settings of a run. Without ``linear`` the networks stand alone, as published."""

    method: str
    mode: str
    linear: bool
    n_models: int
    n_layers: int
    n_hidden: int
    dropout: float
    mask_rate: tuple[float, float]
    max_epochs: int | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    one_cycle: bool
    supervised_weight: float
    hint_rate: float
