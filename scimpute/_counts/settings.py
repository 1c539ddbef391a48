"""Settings of a run of a count method, checked. None stands for a value that the data decide."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from .. import _check

WIDTH = 64
"""Default width of the hidden layers."""
STEPS = (160, 400)
"""Candidate lengths of the training, in minibatches."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run; None for a value that the data decide.

    The attributes are the parameters of :func:`scimpute.tl.began` with these names.
    """

    block_size: int | None
    n_repeats: int
    n_context: int | None
    width: int | None
    penalty: float | None
    max_epochs: int | None
    batch_size: int | None
    learning_rate: float

    @property
    def cells_per_batch(self) -> int:
        """``batch_size``, after :meth:`for_cells` has set it."""
        assert self.batch_size is not None, "for_cells() comes first"
        return self.batch_size

    def for_cells(self, n: int) -> Settings:
        """The settings with a ``batch_size``. By default it is an eighth of the cells, between 32 and 128."""
        return self if self.batch_size is not None else replace(self, batch_size=min(128, max(32, n // 8)))


@dataclass(frozen=True)
class Complexity:
    """Size of the networks and length of the training."""

    n_context: int
    width: int
    penalty: float
    max_epochs: int


def default_complexity(steps_per_epoch: int) -> Complexity:
    """The complexity if held-out molecules do not choose it."""
    return Complexity(30, 32, 200.0, math.ceil(STEPS[0] / steps_per_epoch))


def checked_settings(
    *,
    block_size: Any,
    n_repeats: Any,
    n_context: Any,
    width: Any,
    penalty: Any,
    max_epochs: Any,
    batch_size: Any,
    learning_rate: Any,
) -> Settings:
    """Check every number of the training. ``"auto"`` becomes None. ``block_size=None`` puts all genes into one block."""
    return Settings(
        block_size=None if block_size is None else _check.integer("block_size", block_size),
        n_repeats=_check.integer("n_repeats", n_repeats),
        batch_size=None if _check.auto("batch_size", batch_size) else _check.integer("batch_size", batch_size, 2),
        learning_rate=_check.number("learning_rate", learning_rate, 0, open_low=True),
        n_context=None if _check.auto("n_context", n_context) else _check.integer("n_context", n_context),
        width=None if _check.auto("width", width) else _check.integer("width", width),
        max_epochs=None if _check.auto("max_epochs", max_epochs) else _check.integer("max_epochs", max_epochs),
        penalty=None if _check.auto("penalty", penalty) else _check.number("penalty", penalty, 0),
    )
