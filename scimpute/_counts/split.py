"""What a run of `tl.began` works on and how it is to be done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from .. import _check
from .._space.side import SideInformation
from .._sparse import column_sums, columns, row_sums, split, usual_size
from .batches import CellBatches, Context
from .partition import Partition

HELDOUT = 0.05
"""Fraction of the molecules that no repeat is trained on: they choose the complexity and correct the sizes."""
REMOVED = 0.3
"""Mean fraction of the molecules the generator has to predict while it trains (see ``_batches.THINNING``)."""
VALIDATION_CELLS = 2048
APART, DEEPER = 16.0, 4.0
"""How many times the depth of shallow cells is another technology, and how much more than a shallow cell a deep one then counts."""
LEAST = 10
"""Cells of a level that are enough to tell its depth."""


@dataclass(frozen=True)
class Settings:
    """How a run is to be done; None where the data decide."""

    architecture: str
    block_size: int
    n_repeats: int
    n_context: int | None
    width: int | None
    penalty: float | None
    max_epochs: int | None
    batch_size: int
    learning_rate: float
    drop_quantile: float
    drop_shape: float
    gamma: float
    adversarial_weight: float
    reconstruction_weight: float


def checked_settings(n_obs: int, *, architecture, block_size, batch_size, **values: Any) -> Settings:
    """Check every number of the training; settings left to the data become None."""
    _check.option("architecture", architecture, ("dense", "conv"))
    block_size = _check.integer("block_size", block_size)
    if architecture == "conv" and (math.isqrt(block_size) ** 2 != block_size or math.isqrt(block_size) % 4):
        raise ValueError(f"block_size must be the square of a multiple of 4 for architecture='conv', as 256, 400 or 576; got {block_size}")
    checked: dict[str, Any] = {"architecture": architecture, "block_size": block_size}
    checked["n_repeats"] = _check.integer("n_repeats", values["n_repeats"])
    by_data = _check.auto("batch_size", batch_size)
    checked["batch_size"] = min(128, max(32, n_obs // 8)) if by_data else _check.integer("batch_size", batch_size, 2)
    checked["learning_rate"] = _check.number("learning_rate", values["learning_rate"], 0, open_low=True)
    for name, low in (("n_context", 1), ("width", 1), ("max_epochs", 1)):
        checked[name] = None if _check.auto(name, values[name]) else _check.integer(name, values[name], low)
    checked["penalty"] = None if _check.auto("penalty", values["penalty"]) else _check.number("penalty", values["penalty"], 0)
    quantile = values["drop_quantile"]
    # Of "auto" the percentage of zeros takes the place once the counts are read.
    checked["drop_quantile"] = 50.0 if _check.auto("drop_quantile", quantile) else _check.number("drop_quantile", quantile, 0, 100)
    checked["drop_shape"] = _check.number("drop_shape", values["drop_shape"], 0, open_low=True)
    checked["gamma"] = _check.number("gamma", values["gamma"], 0, 1)
    for name in ("adversarial_weight", "reconstruction_weight"):
        checked[name] = _check.number(name, values[name], 0)
    if checked["adversarial_weight"] == checked["reconstruction_weight"] == 0:
        raise ValueError("adversarial_weight and reconstruction_weight are both 0: the generator would have nothing to learn")
    return Settings(**checked)


def target_of(target_batch: str | None, levels: Mapping[str, Sequence[str]]) -> tuple[int, list[int]] | None:
    """Position of the batch label among the labels, and the levels to impute as."""
    if target_batch is None or "batch_key" not in levels:
        return None
    label, names = list(levels).index("batch_key"), list(levels["batch_key"])
    if target_batch == "average":
        if "average" in names:
            raise ValueError("target_batch='average' is the mean over all batches, and a batch is called so, too; rename the level")
        return label, list(range(len(names)))
    if target_batch not in names:
        raise ValueError(f"target_batch must be 'average' or one of {_check.listing(names)}, got {target_batch!r}")
    return label, [names.index(target_batch)]


@dataclass(frozen=True)
class Complexity:
    """What the settings or the data have decided."""

    n_context: int
    width: int
    penalty: float
    max_epochs: int


@dataclass
class Data:
    """Counts of a run, split once: ``train`` is learnt from, ``heldout`` is for choices, ``counts`` is what is imputed.

    With ``likelihood="poisson"`` molecules are split, with ``"squared"`` the non-zero entries; then ``share`` is that of a gene where it is
    not zero, at the median library size, and falls with the depth by ``depth_slope`` (in logs). What each cell counts in every loss is
    ``weight`` (see :func:`depth_weights`).
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
    likelihood: str = "poisson"
    depth_slope: float = 0.0
    weight: np.ndarray | None = None
    _told: dict[tuple[bool, int], tuple[Context, list[np.ndarray]]] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        counts: sp.csr_matrix,
        size: np.ndarray,
        labels: tuple[np.ndarray, ...],
        genes: np.ndarray,
        device: torch.device,
        rng: np.random.Generator,
        side: SideInformation | None = None,
    ) -> Data:
        """Hold out molecules, find each gene's share of all molecules, draw the cells whose held-out molecules are looked at."""
        train, heldout = split(counts, 1 - HELDOUT, rng)
        outside = size - row_sums(counts)
        size_train = row_sums(train) + (1 - HELDOUT) * outside
        size_heldout = row_sums(heldout) + HELDOUT * outside
        share = _share(train, size_train)
        validation = np.sort(rng.permutation(_with_molecules(size_train))[:VALIDATION_CELLS])
        levels = tuple(int(codes.max()) + 1 for codes in labels)
        found = cls(counts, size, labels, levels, genes, train, heldout, size_train, size_heldout, share, validation, device, side)
        # Spots of a section are of one technology, and their neighbours hold them.
        found.weight = depth_weights(size_train, labels) if side is None else None
        return found

    @classmethod
    def of_entries(
        cls,
        counts: sp.csr_matrix,
        size: np.ndarray,
        labels: tuple[np.ndarray, ...],
        genes: np.ndarray,
        device: torch.device,
        rng: np.random.Generator,
        side: SideInformation,
    ) -> Data:
        """Hold out non-zero entries, and find for each gene how large the others are."""
        aside = rng.random(counts.nnz) < HELDOUT
        train, heldout = (_where(counts, some) for some in (~aside, aside))
        depth = np.log(np.maximum(size, 1) / usual_size(size))
        # Sums of every gene; of arrays as large as the data there are only two more.
        logs = sp.csr_matrix((np.log(train.data), train.indices, train.indptr), shape=train.shape)
        there = sp.csr_matrix((np.ones_like(train.data), train.indices, train.indptr), shape=train.shape)
        number = np.maximum(train.getnnz(axis=0), 1)
        value, deep = column_sums(logs), there.T @ depth
        # One slope for all genes, of what is left of both within each gene.
        spread = float((there.T @ np.square(depth) - np.square(deep) / number).sum())
        slope = float((logs.T @ depth - deep * value / number).sum()) / max(spread, 1e-9)
        share = np.exp((value - slope * deep) / number) / usual_size(size)
        validation = np.sort(rng.permutation(counts.shape[0])[:VALIDATION_CELLS])
        levels = tuple(int(codes.max()) + 1 for codes in labels)
        return cls(counts, size, labels, levels, genes, train, heldout, size, size, share, validation, device, side, "squared", slope - 1)

    @property
    def learnt_from(self) -> np.ndarray:
        """Cells the networks are trained on: a cell without a molecule says nothing, but a spot without one has neighbours."""
        return np.arange(len(self.size_train)) if self.side is not None else _with_molecules(self.size_train)

    def of_training(self, partition: Partition, context: Context) -> CellBatches:
        return self._batches(self.train, self.size_train, partition, context)

    def whole(self, partition: Partition, context: Context) -> CellBatches:
        return self._batches(self.counts, self.size, partition, context)

    def _batches(self, counts: sp.csr_matrix, size: np.ndarray, partition: Partition, context: Context) -> CellBatches:
        measured = np.ones(counts.shape[1], dtype=bool) if self.likelihood == "poisson" else None
        told = self._looked(counts, size, context)
        return CellBatches(
            counts, size, self.labels, partition, context, self.device, self.side, told, measured, self.share.sum(), self.weight
        )

    def _looked(self, counts: sp.csr_matrix, size: np.ndarray, context: Context) -> list[np.ndarray]:
        """What is told of every modality: found once for all repeats with the same context."""
        if self.side is None:
            return []
        key = counts is self.counts, id(context)
        if key not in self._told:
            # With the context itself, whose number is its own as long as it exists.
            self._told[key] = context, self.side.features_with(counts, size, context.loadings.cpu().numpy())
        return self._told[key][1]

    def told(self, context: Context) -> None:
        """Find what is told of every modality before it is needed by several threads."""
        self._looked(self.train, self.size_train, context)

    def held_back(self) -> np.ndarray:
        """Log of the share of every gene of all molecules over that of the training part, ``(g,)``; 0 where entries are held out."""
        if self.likelihood == "squared":
            return np.zeros_like(self.share)
        return np.log(_share(self.counts, self.size) / self.share)

    def weights(self, partition: Partition) -> torch.Tensor:
        """What each gene counts in the spatial contribution, ``(P, 1, m)``: its share of all molecules, or of all entries."""
        share = self.share if self.likelihood == "poisson" else self.train.getnnz(axis=0) / max(self.train.nnz, 1)
        return partition.deal(share, 0.0)

    def heldout_ratio(self, rows: np.ndarray) -> torch.Tensor:
        ratio = self.size_heldout[rows] / np.maximum(self.size_train[rows], 1)
        return torch.from_numpy(ratio.astype(np.float32)).to(self.device)

    def weights_of(self, rows: np.ndarray) -> np.ndarray:
        """What some cells count, ``(b,)``."""
        return np.ones(len(rows)) if self.weight is None else self.weight[rows]

    def per_molecule(self, deviance: float, genes: np.ndarray, *, weighted: bool = False) -> float:
        """A deviance of the validation cells' held-out counts in nats per molecule, of shares instead of counts: comparable over depths.

        ``weighted``: it is a sum in which each cell has its weight.
        """
        molecules = row_sums(columns(self.heldout[self.validation], genes))
        if weighted:
            molecules = molecules * self.weights_of(self.validation)
        exposure = np.maximum(self.size_heldout[self.validation], 1e-6)
        return float((deviance + molecules @ np.log(exposure)) / max(molecules.sum(), 1.0))

    def dense(self, matrix: sp.csr_matrix, rows: np.ndarray, genes: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(columns(matrix[rows], genes).toarray()).to(self.device)


def _share(counts: sp.csr_matrix, size: np.ndarray) -> np.ndarray:
    # Half a molecule for a gene that has none keeps its log finite and its rate next to nothing.
    return np.maximum(column_sums(counts), 0.5) / max(size.sum(), 1.0)


def depth_weights(size: np.ndarray, labels: Sequence[np.ndarray]) -> np.ndarray | None:
    """What each cell counts in the losses, ``(n,)``; None where all cells count alike.

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


def _with_molecules(size: np.ndarray) -> np.ndarray:
    """Rows of the cells that have any molecule; all rows where none has."""
    return np.flatnonzero(size > 0) if (size > 0).any() else np.arange(len(size))


def _where(counts: sp.csr_matrix, some: np.ndarray) -> sp.csr_matrix:
    """The same with some of the non-zero entries only."""
    found = sp.csr_matrix((np.where(some, counts.data, 0), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    found.eliminate_zeros()
    return found


def prior_precision(penalty: float, data: Data) -> float:
    """The weight of the squared output weights in a loss that is per removed molecule of one cell, or per hidden entry."""
    if data.likelihood == "squared":
        return penalty / max(data.train.nnz, 1)
    size = data.size_train * data.weights_of(np.arange(len(data.size_train)))
    return penalty / (data.train.shape[0] * max(REMOVED * float(size.mean()), 1e-6))
