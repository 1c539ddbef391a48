"""The counts of a run, split once into a part that is learnt from and a held-out part."""

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
from .batches import CellBatches
from .context import Context
from .partition import Partition
from .settings import Complexity

HELDOUT = 0.05
"""Fraction of the molecules, or entries, that no repeat is trained on: they choose the complexity and correct the dispersions."""
VALIDATION_CELLS = 2048
APART, DEEPER = 16.0, 4.0
"""Ratio of depths from which shallow cells are another technology, and the largest weight of a deep cell over that of a shallow one."""
LEAST = 10
"""Cells of a level that are enough to say how deep it is."""


@dataclass
class CountSplit(ABC):
    """Counts of a run: ``train`` is learnt from, ``heldout`` is for choices, ``counts`` is what is imputed.

    Attributes
    ----------
    counts, train, heldout
        Canonical CSR, ``(n, g)``.
    size, size_train, size_heldout
        Library sizes of each, ``(n,)``.
    labels, levels
        Level codes ``(n,)`` of each label, and how many levels it has.
    genes
        Places of the genes that are imputed, ``(k,)``.
    share
        Share of each gene of all molecules of the training part, ``(g,)``; of entries see :class:`.EntrySplit`.
    validation
        Cells whose held-out part is looked at.
    side
        What there is beside the counts of a spot.
    weight
        Weight of each cell in every loss, ``(n,)`` (see :func:`depth_weights`); None where all weigh the same.
    depth_slope
        By how much the log of all shares changes with the log of the depth.
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
        """Hold a part out, find how much there is of each gene, draw the validation cells."""

    @abstractmethod
    def hide(self, batches: CellBatches, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """A minibatch for the training."""

    def fixed(self, steps_per_epoch: int) -> tuple[str, Complexity] | None:
        """A reason and a complexity, if the held-out part cannot choose one; else None."""
        return None

    @abstractmethod
    def prior_precision(self, penalty: float) -> float:
        """The weight of squared output weights in a loss that is per target of one cell."""

    @abstractmethod
    def gene_weights(self) -> np.ndarray:
        """Weight of each gene in the neighbour loss, ``(g,)``: its share of all molecules, or of all entries."""

    @property
    @abstractmethod
    def level_correction(self) -> np.ndarray:
        """Log of the share of every gene of all counts over that of the training part, ``(g,)``."""

    @property
    @abstractmethod
    def measured(self) -> np.ndarray | None:
        """True for each gene that has a share of the cell's molecules, ``(g,)``; None where predictions are no shares."""

    @abstractmethod
    def judge(self, rates: np.ndarray) -> tuple[Prior, dict[str, float]]:
        """Prior of the genes, and held-out scores, from the predicted rates of the validation cells, ``(v, k)``."""

    @property
    def learnt_from(self) -> np.ndarray:
        """Cells the networks are trained on: a cell without a molecule says nothing, but a spot without one has neighbours."""
        return np.arange(len(self.size_train)) if self.side is not None else with_molecules(self.size_train)

    def weights_of(self, rows: np.ndarray) -> np.ndarray:
        """Weights of some cells, ``(b,)``."""
        return np.ones(len(rows)) if self.weight is None else self.weight[rows]

    def dense(self, matrix: sp.csr_matrix, rows: np.ndarray, genes: np.ndarray) -> torch.Tensor:
        """Some cells and genes of one of the parts on the device."""
        return torch.from_numpy(columns(matrix[rows], genes).toarray()).to(self.device)


class SplitInContext:
    """Minibatches of a split for generators that read the same low-rank context. Features are made once for all repeats."""

    def __init__(self, split: CountSplit, context: Context) -> None:
        self.split, self.context = split, context

    def train_batches(self, partition: Partition) -> CellBatches:
        """Of the part that is learnt from."""
        return self._batches(self.split.train, self.split.size_train, self.train_features, partition)

    def all_batches(self, partition: Partition) -> CellBatches:
        """Of all counts."""
        return self._batches(self.split.counts, self.split.size, self._all_features, partition)

    @functools.cached_property
    def train_features(self) -> list[np.ndarray]:
        """Features of every modality; to be made before several threads need them."""
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
    """Weight of each cell in the losses, ``(n,)``; None where all cells weigh the same.

    In a Poisson likelihood a cell counts by its molecules. Beside reads of full-length protocols, cells with a few thousand UMIs would be
    drowned: the networks would not follow them, and no choice would be made for them. But what a network leaves unexplained of a deep
    cell is biology and not sampling, and does not become less with more molecules. So where depths are APART, a cell counts by its
    molecules up to DEEPER times those of a shallow cell, and no more beyond. The depths compared are the outer deciles of all cells, or
    medians of the levels of a label where these are further out.
    """
    there = size > 0
    if not there.any():
        return None
    depths = list(np.quantile(size[there], [0.1, 0.9]))
    enough = max(LEAST, there.sum() // 100)
    for codes in labels:
        levels = np.flatnonzero(np.bincount(codes[there]) >= enough)
        depths += [float(np.median(size[there & (codes == level)])) for level in levels]
    if max(depths) < APART * min(depths):
        return None
    most = DEEPER * min(depths)
    return most / np.maximum(size, most)


def with_molecules(size: np.ndarray) -> np.ndarray:
    """Rows of the cells that have any molecule; all rows where none has."""
    return np.flatnonzero(size > 0) if (size > 0).any() else np.arange(len(size))


def n_levels(labels: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Number of levels of each label."""
    return tuple(int(codes.max()) + 1 for codes in labels)
