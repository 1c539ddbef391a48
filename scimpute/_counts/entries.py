"""The split of ``likelihood="squared"``: whole non-zero entries are held out and hidden. Zeros count as missing."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
import torch

from .._space.side import SideInformation
from .._sparse import chunks, column_sums, columns, median_size_of
from ..models.batch import Batch
from ..models.likelihood import HiddenEntries
from ..models.posterior import Prior
from .minibatches import CellBatches
from .settings import STEPS, Complexity
from .split import HELDOUT, VALIDATION_CELLS, CountSplit, n_levels

PSEUDO = 10.0
"""So many hidden entries, with the variance over all genes, are added to every gene."""


class EntrySplit(CountSplit):
    """A split of the non-zero entries.

    ``share`` is the mean share of a gene in its non-zero entries, at the median library size. The log of it changes by ``depth_slope`` with
    the log of the depth.
    """

    likelihood = HiddenEntries()
    watch = ()  # the error on held-out entries rises and falls again as the steps become small
    factor_penalty = 200.0

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
    ) -> EntrySplit:
        mask = rng.random(counts.nnz) < HELDOUT
        train, heldout = _only(counts, ~mask), _only(counts, mask)
        depth = np.log(np.maximum(size, 1) / median_size_of(size))
        # Sums of every gene. Only these two arrays are as large as the data.
        logs = sp.csr_matrix((np.log(train.data), train.indices, train.indptr), shape=train.shape)
        ones = sp.csr_matrix((np.ones_like(train.data), train.indices, train.indptr), shape=train.shape)
        number = np.maximum(train.getnnz(axis=0), 1)
        log_sums, depth_sums = column_sums(logs), ones.T @ depth
        # One slope for all genes, from the variation within each gene.
        spread = float((ones.T @ np.square(depth) - np.square(depth_sums) / number).sum())
        slope = float((logs.T @ depth - depth_sums * log_sums / number).sum()) / max(spread, 1e-9)
        share = np.exp((log_sums - slope * depth_sums) / number) / median_size_of(size)
        validation = np.sort(rng.permutation(counts.shape[0])[:VALIDATION_CELLS])
        parts = (counts, size, labels, n_levels(labels), genes, train, heldout, size, size, share, validation)
        return cls(*parts, device, side, depth_slope=slope - 1)

    def fixed(self, steps_per_epoch: int) -> tuple[str, Complexity]:
        return "fixed for likelihood='squared'", Complexity(15, 16, 600.0, math.ceil(STEPS[1] / steps_per_epoch))

    def hide(self, batches: CellBatches, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        return batches.with_hidden_entries(rows, rng)

    def prior_precision(self, penalty: float) -> float:
        return penalty / max(self.train.nnz, 1)

    def gene_weights(self) -> np.ndarray:
        return self.train.getnnz(axis=0) / max(self.train.nnz, 1)

    @property
    def level_correction(self) -> np.ndarray:
        # The mean of the entries does not depend on their number.
        return np.zeros_like(self.share)

    @property
    def measured(self) -> None:
        return None

    def judge(self, rates: np.ndarray) -> tuple[Prior, dict[str, float]]:
        """Prior, and the mean squared error of the logs of held-out entries, for the gene mean (at the depth of the spot) and the network.

        The inverse dispersion is 1 over the variance of the log of a hidden entry around its prediction. Both are relative variances.
        """
        heldout = columns(self.heldout, self.genes)
        share, n = np.log(self.share[self.genes]), np.zeros(len(self.genes))
        squares, null = np.zeros_like(n), 0.0
        for rows in chunks(len(self.validation), len(n)):
            spots = self.validation[rows]
            part = heldout[spots].tocoo()
            depth = np.log(np.maximum(self.size[spots], 1))[part.row]
            observed = np.log(part.data)
            predicted = np.log(np.maximum(rates[rows][part.row, part.col], 1e-12)) + depth
            gene_mean = share[part.col] + depth + self.depth_slope * (depth - np.log(median_size_of(self.size)))
            n += np.bincount(part.col, minlength=len(n))
            squares += np.bincount(part.col, np.square(observed - predicted), minlength=len(n))
            null += float(np.square(observed - gene_mean).sum())
        total = max(n.sum(), 1.0)
        # A gene with few hidden entries gets nearly the variance over all genes.
        variance = (squares + PSEUDO * squares.sum() / total) / (n + PSEUDO)
        scores = {"gene_mean": null / total, "network": squares.sum() / total}
        precision = torch.from_numpy(1 / np.maximum(variance, 1e-6)).float()
        return Prior(precision, torch.ones_like(precision)), {name: float(value) for name, value in scores.items()}


def _only(counts: sp.csr_matrix, mask: np.ndarray) -> sp.csr_matrix:
    """The matrix with the non-zero entries of the mask only."""
    part = sp.csr_matrix((np.where(mask, counts.data, 0), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    part.eliminate_zeros()
    return part
