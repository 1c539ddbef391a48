"""Rows of the count matrix as minibatches. Only the non-zero entries are touched."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from .._space.side import SideInformation
from .._sparse import TARGET_SUM, binomial, chunks, row_sums
from ..models.batch import Batch
from .context import Context
from .partition import Partition

NEIGHBOUR_STRIDE = 4
"""The neighbour loss covers one in so many spots of a minibatch, because each of them costs four more spots."""
THINNING = (0.5, 0.9)
"""In the training the generator reads a fraction of the molecules in this range."""
VISIBLE_RANGE = (0.3, 0.9)
"""The same for entries, if entries are hidden instead of molecules."""
TILE_MAPS = 4
"""The first maps of the convolutional network have so many values for each value of a tile."""
SHARE_ERROR = 0.05
"""Assumed relative error of the sum of a network's shares."""


def nonzero_entries(counts: sp.csr_matrix, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Non-zero entries of some rows: value, gene, row within the batch, and the start of each row."""
    first, length = counts.indptr[rows], np.diff(counts.indptr)[rows]
    starts = np.concatenate([[0], np.cumsum(length[:-1])])
    row = np.repeat(np.arange(len(rows)), length)
    entry = np.arange(length.sum()) + np.repeat(first - starts, length)
    return counts.data[entry], counts.indices[entry], row, starts


class CellBatches:
    """Minibatches of one gene partition.

    Parameters
    ----------
    counts
        Canonical CSR of shape ``(n, g)``.
    size
        Library sizes ``(n,)``: the row sums, or more if the object has only some of the genes.
    labels
        Level codes ``(n,)`` of each label.
    partition, context, device
        Place of each gene, low-rank scores of a cell, device of the tensors.
    side
        Neighbours and features of the spots (`tl.spatial`, `tl.nmf`).
    features
        Features of every modality, ``(n, ...)`` (:meth:`SideInformation.features_with`).
    measured
        True for each measured gene, ``(g,)``; None if the predictions are no shares of a cell's molecules.
    covered
        Share of these genes of all molecules, over many cells.
    weight
        Weight of each cell in the losses, ``(n,)``; None for equal weights.
    """

    def __init__(
        self,
        counts: sp.csr_matrix,
        size: np.ndarray,
        labels: tuple[np.ndarray, ...],
        partition: Partition,
        context: Context,
        device: torch.device,
        side: SideInformation | None = None,
        features: Sequence[np.ndarray] = (),
        measured: np.ndarray | None = None,
        covered: float = 1.0,
        weight: np.ndarray | None = None,
    ) -> None:
        self.counts, self.size, self._labels, self._features = counts, size, labels, features
        self.partition, self.context, self.device, self.side = partition, context.to(device), device, side
        self.weight, self.measured, self.covered = weight, measured, min(max(covered, 1e-6), 1.0)

    def chunks(self) -> Iterator[slice]:
        """Row chunks in which neither features nor the first maps of tiles need more memory than the gene blocks."""
        widest = max([part[0].size * TILE_MAPS for part in self._features if part.ndim > 2], default=0)
        return chunks(self.counts.shape[0], max(self.partition.blocks * self.partition.genes_per_block, widest))

    def labels(self, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Level codes of some cells for each label, on the device."""
        return tuple(torch.from_numpy(codes[rows]).to(self.device) for codes in self._labels)

    def features(self, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Features of some spots in each modality, on the device."""
        return tuple(torch.from_numpy(part[rows]).to(self.device) for part in self._features)

    def inputs(self, rows: np.ndarray) -> torch.Tensor:
        """Inputs of the generator for whole cells, ``(P, b, m + c)``."""
        return self._inputs(*nonzero_entries(self.counts, rows), self.size[rows])

    def scores(self) -> torch.Tensor:
        """Low-rank scores of all cells, ``(n, c)``."""
        n, g = self.counts.shape
        parts = [self._context(*nonzero_entries(self.counts, np.arange(n)[rows]), self.size[rows])[1][:, :-1] for rows in chunks(n, g)]
        return torch.cat(parts)

    def thinned(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Cells split at random: the generator reads the kept molecules and predicts the removed ones."""
        n_cells = len(rows)
        rows, neighbours = self._with_neighbours(rows, rng)
        values, genes, row, starts = nonzero_entries(self.counts, rows)
        keep = float(rng.uniform(*THINNING))
        kept = binomial(values, keep, rng)
        removed = values - kept
        # Molecules of genes that the object lacks (size above the row sum) are split at the same rate.
        n_removed = np.bincount(row, weights=removed, minlength=len(rows))
        n_kept = np.bincount(row, weights=kept, minlength=len(rows))
        outside = np.maximum(self.size[rows] - n_removed - n_kept, 0)
        inputs = self._inputs(kept, genes, row, starts, n_kept + keep * outside)
        targets = np.flatnonzero((removed > 0) & (row < n_cells))
        exposure = (n_removed + (1 - keep) * outside)[:n_cells]
        return replace(self._with_target(rows, inputs, genes[targets], row[targets], removed[targets], exposure), **neighbours)

    def with_hidden_entries(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Cells with random hidden entries, which the generator predicts. The depth of a cell is known."""
        n_cells = len(rows)
        rows, neighbours = self._with_neighbours(rows, rng)
        values, genes, row, starts = nonzero_entries(self.counts, rows)
        kept = rng.random(len(values)) < rng.uniform(*VISIBLE_RANGE)
        inputs = self._inputs(values * kept, genes, row, starts, self.size[rows])
        # A hidden entry is missing, not zero. So the scores of the visible part are scaled up to the whole cell.
        share = np.bincount(row, weights=kept, minlength=len(rows)) / np.maximum(np.bincount(row, minlength=len(rows)), 1)
        scale = 1 / np.maximum(share, 0.05).astype(np.float32)
        inputs[..., self.partition.genes_per_block : -1] *= torch.from_numpy(scale).to(self.device)[:, None]
        targets = np.flatnonzero(~kept & (row < n_cells))
        batch = self._with_target(rows, inputs, genes[targets], row[targets], values[targets], self.size[rows[:n_cells]])
        return replace(batch, **neighbours)

    def against(self, rows: np.ndarray, target: sp.csr_matrix, exposure: np.ndarray) -> Batch:
        """Whole cells, whose targets are the counts of another matrix of the same shape."""
        removed, genes, row, _ = nonzero_entries(target, rows)
        return self._with_target(rows, self.inputs(rows), genes, row, removed, exposure[rows])

    def shares(self, rows: np.ndarray, log_rate: torch.Tensor) -> torch.Tensor:
        """Turn log shares ``(P, b, m)`` into shares, in place, and rescale them to the molecules of each cell.

        Of the N molecules of a cell, y belong to measured genes. If all genes were measured, y = N and the shares sum to 1. Otherwise the
        sum has a Beta prior around the network's sum, with the relative error SHARE_ERROR in the mean cell. Without the rescaling,
        unusual cells would lose or gain molecules. If some genes are in no block, the sum is unknown and nothing is rescaled.
        """
        if self._molecule_sums is None:
            return log_rate.clamp_(max=0).exp_()
        absent, measured, prior_size = self._molecule_sums
        # The largest log share is subtracted first. Otherwise a diverging network may give shares that are all 0 in float32.
        top = log_rate.add_(absent).amax(dim=(0, 2))
        rate = log_rate.sub_(top[:, None]).exp_()
        total = rate.sum(dim=(0, 2))
        size = torch.from_numpy(self.size[rows]).to(total)
        expected = torch.from_numpy(measured[rows]).to(total) + prior_size * total * top.clamp(max=0).exp()
        expected = expected / (size + prior_size).clamp(min=1e-12)
        return rate.mul_((torch.where(size + prior_size > 0, expected, 1.0) / total)[:, None])

    @functools.cached_property
    def _molecule_sums(self) -> tuple[torch.Tensor, np.ndarray, float] | None:
        """For :meth:`shares`: 0 or minus infinity in the places of measured and other genes, molecules of each cell, size of the prior."""
        if self.measured is None:
            return None
        places = self.partition.place[self.measured]
        if (places < 0).any():
            return None
        absent = np.full(self.partition.blocks * self.partition.genes_per_block, -np.inf, dtype=np.float32)
        absent[places] = 0
        prior_size = (1 - self.covered) / (self.covered * SHARE_ERROR**2)
        return torch.from_numpy(absent).view(self.partition.blocks, 1, -1).to(self.device), row_sums(self.counts), prior_size

    def _flat(self, genes: np.ndarray, row: np.ndarray, n_rows: int, stride: int) -> np.ndarray:
        """Position in a flat ``(P, b, stride)`` tensor of each entry."""
        # The division is done once a gene, not once an entry.
        block, offset = np.divmod(self.partition.place, self.partition.genes_per_block)
        return (block * (n_rows * stride) + offset)[genes] + row * stride

    def _context(
        self, values: np.ndarray, genes: np.ndarray, row: np.ndarray, starts: np.ndarray, size: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """CP10k of some entries, and the context of their cells, ``(b, c)``."""
        size = np.maximum(size, 1).astype(np.float32)
        cp10k = torch.from_numpy(values * (np.float32(TARGET_SUM) / size)[row]).to(self.device)
        columns = torch.from_numpy(genes.astype(np.int64)).to(self.device)
        return cp10k, self.context(columns, cp10k, torch.from_numpy(starts).to(self.device), torch.from_numpy(size).to(self.device))

    def _inputs(self, values: np.ndarray, genes: np.ndarray, row: np.ndarray, starts: np.ndarray, size: np.ndarray) -> torch.Tensor:
        cp10k, context = self._context(values, genes, row, starts, size)
        part = self.partition
        stride = part.genes_per_block + context.shape[1]
        logged = cp10k.log1p()
        if not part.complete:
            placed = np.flatnonzero(part.place[genes] >= 0)
            genes, row, logged = genes[placed], row[placed], logged[torch.from_numpy(placed).to(self.device)]
        x = torch.zeros(part.blocks, len(size), stride, dtype=torch.float32, device=self.device)
        x.view(-1)[torch.from_numpy(self._flat(genes, row, len(size), stride)).to(self.device)] = logged
        x[..., part.genes_per_block :] = context
        return x

    def _with_neighbours(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """The rows, followed by random neighbours of the first of them, and the fields of a batch about these neighbours."""
        if self.side is None or not self.side.spatial_weight or not self.side.rings:
            return rows, {}
        centres = rows[: math.ceil(len(rows) / NEIGHBOUR_STRIDE)]
        near = self.side.draw_neighbours(centres, rng)
        places = np.arange(len(rows), len(rows) + near.size).reshape(near.shape)
        # A spot without neighbours is compared with its own row. Another thinning of it would add a difference.
        neighbours = torch.from_numpy(np.where(near == centres, np.arange(len(centres)), places)).to(self.device)
        return np.concatenate([rows, near.ravel()]), {"neighbours": neighbours, "ring_weights": self.side.ring_weights}

    def _with_target(
        self, rows: np.ndarray, inputs: torch.Tensor, genes: np.ndarray, row: np.ndarray, removed: np.ndarray, exposure: np.ndarray
    ) -> Batch:
        if not self.partition.complete:
            placed = self.partition.place[genes] >= 0
            genes, row, removed = genes[placed], row[placed], removed[placed]
        if self.weight is not None:
            weight = self.weight[rows[: len(exposure)]]
            removed, exposure = removed * weight[row], exposure * weight
        place = self._flat(genes, row, len(exposure), self.partition.genes_per_block)
        return Batch(
            inputs=inputs,
            labels=self.labels(rows),
            features=self.features(rows),
            place=torch.from_numpy(place).to(self.device),
            removed=torch.from_numpy(removed.astype(np.float32)).to(self.device),
            exposure=torch.from_numpy(exposure.astype(np.float32)).to(self.device),
        )
