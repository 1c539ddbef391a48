"""The counts of a run, split once into a training part and a held-out part."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from .._space.side import SideInformation
from .._sparse import columns
from ..models.batch import Batch
from ..models.likelihood import Likelihood
from ..models.posterior import Prior
from .context import Context
from .minibatches import CellBatches
from .partition import Partition
from .settings import Complexity

HELDOUT = 0.05
"""Fraction of the molecules, or entries, that no repeat is trained on. They choose the complexity and fit the prior."""
VALIDATION_CELLS = 2048
"""The held-out molecules of at most so many cells are used."""
DEPTH_RATIO, MAX_DEPTH_WEIGHT = 16.0, 4.0
"""From this ratio of depths on, shallow cells come from another technology. Then a deep cell counts at most so many shallow ones."""
MIN_LEVEL_CELLS = 10
"""A level needs so many cells for a median depth."""


@dataclass
class CountSplit(ABC):
    """Counts of a run. Networks train on ``train``, ``heldout`` is for choices, and all ``counts`` are imputed.

    Attributes
    ----------
    counts, train, heldout
        Canonical CSR, ``(n, g)``.
    size, size_train, size_heldout
        Library sizes of each, ``(n,)``.
    labels, levels
        Level codes ``(n,)`` of each label, and its number of levels.
    genes
        Places of the imputed genes, ``(k,)``.
    share
        Share of each gene of all training molecules, ``(g,)``; for entries see :class:`.EntrySplit`.
    validation
        Rows of the cells whose held-out part is used, ``(v,)``.
    side
        Neighbours and features of the spots; None for cells.
    weight
        Weight of each cell in every loss, ``(n,)`` (see :func:`depth_weights`); None for equal weights.
    depth_slope
        Change of the log of all shares with the log of the depth.
    """

    counts: sp.csr_matrix
    size: np.ndarray
    labels: tuple[np.ndarray, ...]
    levels: tuple[int, ...]
    genes: np.ndarray
    train: sp.csr_matrix
    heldout: sp.csr_matrix
    size_train: np.ndarray
    size_heldout: np.ndarray
    share: np.ndarray
    validation: np.ndarray
    device: torch.device
    side: SideInformation | None
    weight: np.ndarray | None = None
    depth_slope: float = 0.0

    likelihood: ClassVar[Likelihood]
    watch: ClassVar[tuple[str, ...]] = ("heldout",)
    """Measures that must improve, or the training stops early."""
    factor_penalty: ClassVar[float]
    """Default penalty of a factorisation."""

    @classmethod
    @abstractmethod
    def prepare(
        cls,
        counts: sp.csr_matrix,
        size: np.ndarray,
        labels: tuple[np.ndarray, ...],
        genes: np.ndarray,
        device: torch.device,
        rng: np.random.Generator,
        side: SideInformation | None = None,
    ) -> CountSplit:
        """Hold out a part, compute the shares of the genes, and draw the validation cells."""

    @abstractmethod
    def hide(self, batches: CellBatches, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """A minibatch for the training."""

    def fixed(self, steps_per_epoch: int) -> tuple[str, Complexity] | None:
        """A reason and a complexity, if the held-out part cannot choose one; else None."""
        return None

    @abstractmethod
    def prior_precision(self, penalty: float) -> float:
        """Weight of the squared output weights in a loss per target of one cell."""

    @abstractmethod
    def gene_weights(self) -> np.ndarray:
        """Weight of each gene in the neighbour loss, ``(g,)``: its share of all molecules, or of all entries."""

    @property
    @abstractmethod
    def level_correction(self) -> np.ndarray:
        """Log ratio of the share of every gene in all counts and in the training part, ``(g,)``."""

    @property
    @abstractmethod
    def measured(self) -> np.ndarray | None:
        """True for each gene with a share of the cell's molecules, ``(g,)``; None if predictions are no shares."""

    @abstractmethod
    def judge(self, rates: np.ndarray) -> tuple[Prior, dict[str, float]]:
        """Prior of the genes and held-out scores, from the predicted rates of the validation cells, ``(v, k)``."""

    @property
    def train_rows(self) -> np.ndarray:
        """Rows of the cells that networks train on. Cells without a molecule are left out; spots without one have neighbours and stay."""
        return np.arange(len(self.size_train)) if self.side is not None else rows_with_molecules(self.size_train)

    def weights_of(self, rows: np.ndarray) -> np.ndarray:
        """Weights of some cells, ``(b,)``."""
        return np.ones(len(rows)) if self.weight is None else self.weight[rows]

    def dense(self, matrix: sp.csr_matrix, rows: np.ndarray, genes: np.ndarray) -> torch.Tensor:
        """Some cells and genes of one of the parts on the device."""
        return torch.from_numpy(columns(matrix[rows], genes).toarray()).to(self.device)


class SplitInContext:
    """A split with its low-rank context. It makes the minibatches, and computes features once for all repeats."""

    def __init__(self, split: CountSplit, context: Context) -> None:
        self.split, self.context = split, context

    def train_batches(self, partition: Partition) -> CellBatches:
        """Minibatches of the training part."""
        return self._batches(self.split.train, self.split.size_train, self.train_features, partition)

    def all_batches(self, partition: Partition) -> CellBatches:
        """Minibatches of all counts."""
        return self._batches(self.split.counts, self.split.size, self._all_features, partition)

    @functools.cached_property
    def train_features(self) -> list[np.ndarray]:
        """Features of every modality. Read them once before several threads need them."""
        return self._features(self.split.train, self.split.size_train)

    @functools.cached_property
    def _all_features(self) -> list[np.ndarray]:
        return self._features(self.split.counts, self.split.size)

    def _features(self, counts: sp.csr_matrix, size: np.ndarray) -> list[np.ndarray]:
        side = self.split.side
        return [] if side is None else side.features_with(counts, size, self.context.loadings.cpu().numpy())

    def _batches(self, counts: sp.csr_matrix, size: np.ndarray, features: Sequence[np.ndarray], partition: Partition) -> CellBatches:
        split = self.split
        covered = split.share.sum()
        return CellBatches(
            counts, size, split.labels, partition, self.context, split.device, split.side, features, split.measured, covered, split.weight
        )


def depth_weights(size: np.ndarray, labels: Sequence[np.ndarray]) -> np.ndarray | None:
    """Weight of each cell in the losses, ``(n,)``; None for equal weights.

    In a Poisson likelihood a cell counts by its molecules. Cells with a few thousand UMIs would count nothing beside cells with the reads
    of a full-length protocol. But the unexplained part of a deep cell is biology, not sampling. More molecules do not reduce it. So if
    depths differ by more than DEPTH_RATIO, a cell counts by its molecules up to MAX_DEPTH_WEIGHT times those of a shallow cell. The depths
    are the outer deciles of all cells, and the medians of the levels of each label.
    """
    nonempty = size > 0
    if not nonempty.any():
        return None
    depths = list(np.quantile(size[nonempty], [0.1, 0.9]))
    enough = max(MIN_LEVEL_CELLS, nonempty.sum() // 100)
    for codes in labels:
        levels = np.flatnonzero(np.bincount(codes[nonempty]) >= enough)
        depths += [float(np.median(size[nonempty & (codes == level)])) for level in levels]
    if max(depths) < DEPTH_RATIO * min(depths):
        return None
    cap = MAX_DEPTH_WEIGHT * min(depths)
    return cap / np.maximum(size, cap)


def rows_with_molecules(size: np.ndarray) -> np.ndarray:
    """Rows of the cells with any molecule; all rows if there are none."""
    return np.flatnonzero(size > 0) if (size > 0).any() else np.arange(len(size))


def n_levels(labels: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Number of levels of each label."""
    return tuple(int(codes.max()) + 1 for codes in labels)
