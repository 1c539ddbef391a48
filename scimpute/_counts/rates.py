"""The predicted rates, and their mean and spread over repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .. import _device
from ..models.posterior import Prior
from .minibatches import CellBatches
from .target_batch import Target


class RateMoments:
    """Mean and spread of a matrix over repeats, updated in row chunks (Welford). It keeps two float32 arrays.

    Attributes
    ----------
    mean
        Mean rates, ``(n, k)``.
    m2
        Sums of squared differences from the mean, ``(n, k)``; None without ``spread``.
    """

    def __init__(self, n_rows: int, n_columns: int, *, spread: bool = True) -> None:
        self.mean = np.zeros((n_rows, n_columns), dtype=np.float32)
        self.m2 = np.zeros((n_rows, n_columns), dtype=np.float32) if spread else None

    def add(self, rows: slice, values: torch.Tensor, repeat: int) -> None:
        """Add the values of some rows in repeat number ``repeat`` (from 0). ``values`` is overwritten."""
        mean = torch.from_numpy(self.mean[rows])
        step = values.sub_(mean)
        mean.add_(step, alpha=1 / (repeat + 1))
        if self.m2 is not None and repeat:
            torch.from_numpy(self.m2[rows]).addcmul_(step, step, value=repeat / (repeat + 1))

    def variance(self, rows: slice, repeats: int) -> torch.Tensor:
        """Sample variance over repeats, 0 for one repeat."""
        assert self.m2 is not None, "moments were kept without their spread"
        return torch.from_numpy(self.m2[rows]) / max(1, repeats - 1)

    def release(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Hand over both arrays for reuse. The object is empty afterwards."""
        arrays = self.mean, self.m2
        del self.mean, self.m2
        return arrays


@dataclass(frozen=True)
class Rates:
    """Rates over repeats and the prior of the genes: the input of the posterior step.

    Attributes
    ----------
    moments
        Mean rate over repeats, ``(n, k)``, and its spread if standard deviations are needed.
    own
        Mean rate in the cell's own batch, if ``moments`` belongs to a target batch; else None.
    repeats
        Number of repeats.
    prior
        Prior of the imputed genes.
    seen
        True for each gene with any molecule in the training object, ``(k,)``.
    """

    moments: RateMoments
    own: RateMoments | None
    repeats: int
    prior: Prior
    seen: torch.Tensor


def predict(generator: torch.nn.Module, batches: CellBatches, rows: np.ndarray) -> torch.Tensor:
    """Rates ``(b, k)`` of some cells."""
    with torch.no_grad():
        return _rates(generator, batches, rows, batches.inputs(rows), batches.labels(rows))


def _rates(
    generator: torch.nn.Module, batches: CellBatches, rows: np.ndarray, inputs: torch.Tensor, labels: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    return batches.partition.to_genes(batches.shares(rows, generator(inputs, labels, batches.features(rows))))


def _rates_of_level(
    generator: torch.nn.Module, batches: CellBatches, rows: np.ndarray, inputs: torch.Tensor, label: int, level: int
) -> torch.Tensor:
    """Rates of some cells if one of their labels had another level."""
    labels = list(batches.labels(rows))
    labels[label] = torch.full_like(labels[label], level)
    return _rates(generator, batches, rows, inputs, tuple(labels))


def add_rates(
    generator: torch.nn.Module, batches: CellBatches, target: Target | None, moments: RateMoments, own: RateMoments | None, repeat: int
) -> None:
    """Add the rates of one repeat for all cells: to ``moments`` the mean over the target's levels, to ``own`` those of their own level."""

    def chunk(rows: slice, alive: Callable[[], None]) -> None:
        cells = np.arange(rows.start, rows.stop)
        with torch.no_grad():
            inputs = batches.inputs(cells)
            if target is None:
                rate = _rates(generator, batches, cells, inputs, batches.labels(cells))
            else:
                rate = _rates_of_level(generator, batches, cells, inputs, target.label, target.levels[0])
                # One level at a time, to save memory.
                for level in target.levels[1:]:
                    rate += _rates_of_level(generator, batches, cells, inputs, target.label, level)
                rate /= len(target.levels)
                if own is not None:
                    own.add(rows, _rates(generator, batches, cells, inputs, batches.labels(cells)).cpu(), repeat)
        moments.add(rows, rate.cpu(), repeat)

    _device.side_by_side(chunk, batches.chunks(), batches.device)
