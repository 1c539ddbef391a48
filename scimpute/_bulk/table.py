"""A table of bulk samples, and its standardised form for the models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.pmi_gain import Samples


@dataclass(frozen=True)
class BulkTable:
    """Expression ``(n, g)`` with NaN for missing values, level codes ``(n, a)`` (-1: unknown), continuous covariates ``(n, c)``."""

    values: np.ndarray
    codes: np.ndarray
    levels: tuple[int, ...]
    numbers: np.ndarray


@dataclass
class Standardiser:
    """Mean and standard deviation of every gene and continuous covariate, over the observed values of the training.

    ``lowest``, ``(1,)``, is a lower bound of all values: 0 if no training value is negative, as in log expression.
    """

    mean: np.ndarray
    sd: np.ndarray
    number_mean: np.ndarray
    number_sd: np.ndarray
    lowest: np.ndarray

    @classmethod
    def of(cls, table: BulkTable) -> Standardiser:
        mean = np.asarray(np.nanmean(table.values, axis=0, dtype=np.float64))
        sd = np.asarray(np.nanstd(table.values, axis=0, dtype=np.float64))
        constant = sd <= 1e-6 * np.maximum(1, np.abs(mean))
        number_sd = table.numbers.std(axis=0)
        lowest = np.array([0.0 if np.nanmin(table.values) >= 0 else -np.inf])
        return cls(mean, np.where(constant, 1, sd), table.numbers.mean(axis=0), np.where(number_sd > 0, number_sd, 1), lowest)

    def samples(self, table: BulkTable, device: torch.device) -> Samples:
        """The table as tensors. Values are standardised; missing values are 0."""
        observed = ~np.isnan(table.values)
        values = np.where(observed, (table.values - self.mean) / self.sd, 0).astype(np.float32)
        numbers = ((table.numbers - self.number_mean) / self.number_sd).astype(np.float32)
        tensors = (torch.from_numpy(part).to(device) for part in (values, observed, table.codes, numbers))
        return Samples(*tensors)


def rows_of(samples: Samples, rows: Tensor) -> Samples:
    """The samples of these rows."""
    return Samples(samples.values[rows], samples.observed[rows], samples.codes[rows], samples.numbers[rows])


def hide(samples: Samples, mask: Tensor) -> Samples:
    """The same samples without the entries where ``mask`` is True."""
    visible = samples.observed & ~mask
    return Samples(samples.values * visible, visible, samples.codes, samples.numbers)


def uniform(like: Tensor, rng: np.random.Generator) -> Tensor:
    """Uniform random numbers in the shape of another tensor."""
    return torch.from_numpy(rng.random(like.shape, dtype=np.float32)).to(like.device)
