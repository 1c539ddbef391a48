"""How a run of `tl.pmi` or `tl.gain` is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _check

if TYPE_CHECKING:
    pass


from dataclasses import dataclass

# n_layers, n_hidden, dropout, learning_rate (Vinas 2021, supplement), by method and mode.
_PUBLISHED = {
    ("pmi", "inplace"): (2, 1366, 0.0, 1e-4),
    ("pmi", "inductive"): (1, 3072, 0.2, 1e-4),
    ("gain", "inplace"): (3, 296, 0.2, 1e-3),
    ("gain", "inductive"): (4, 1902, 0.2, 1e-3),
}


def checked_settings(method: str, asked: dict[str, Any]) -> BulkSettings:
    """Check every number of the training; "auto" becomes the variant's own value."""
    mode = _check.option("mode", asked["mode"], ("inplace", "inductive"))
    variant = _check.option("variant", asked["variant"], ("default", "published"))
    published = variant == "published"
    layers, hidden, dropout, rate = _PUBLISHED[method, mode] if published else (2, 256, 0.2, 1e-3)

    def whole(name: str, auto: Any, low: int = 1) -> Any:
        return auto if _check.auto(name, asked[name]) else _check.integer(name, asked[name], low)

    def real(name: str, auto: float, **bounds: Any) -> float:
        return auto if _check.auto(name, asked[name]) else _check.number(name, asked[name], **bounds)

    return BulkSettings(
        method=method,
        mode=mode,
        linear=not published,
        n_models=whole("n_models", 1 if published else 2),
        n_layers=whole("n_layers", layers),
        n_hidden=whole("n_hidden", hidden),
        dropout=real("dropout", dropout, low=0, high=1, open_high=True),
        mask_rate=_mask_rate(asked["mask_rate"], (0.5, 0.9) if published else (0.3, 0.9)),
        max_epochs=whole("max_epochs", 1000 if published else None),
        batch_size=_check.integer("batch_size", asked["batch_size"], 2),
        learning_rate=real("learning_rate", rate, low=0, open_low=True),
        weight_decay=0.0 if published else 1.0,
        one_cycle=not published,
        supervised_weight=_check.number("supervised_weight", asked.get("supervised_weight", 1.0), 0),
        hint_rate=_check.number("hint_rate", asked.get("hint_rate", 0.5), 0, 1, open_high=True),
    )


def _mask_rate(asked: Any, auto: tuple[float, float]) -> tuple[float, float]:
    if isinstance(asked, str) and asked == "auto":
        return auto
    if not isinstance(asked, tuple | list) or len(asked) != 2:
        raise ValueError(f"mask_rate must be a pair (low, high) of fractions, or 'auto'; got {asked!r}")
    low, high = (_check.number("mask_rate", value, 0, 1, open_low=True, open_high=True) for value in asked)
    if low > high:
        raise ValueError(f"mask_rate must be (low, high) with low <= high, got {asked!r}")
    return low, high


@dataclass(frozen=True)
class BulkSettings:
    """How a run is to be done. ``linear`` False: the network alone, as published."""

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
