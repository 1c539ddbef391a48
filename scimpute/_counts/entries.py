"""Hidden entries: whole non-zero entries are held out, hidden and predicted, and zeros count as missing."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
import torch

from .._space.side import SideInformation
from .._sparse import chunks, column_sums, columns, usual_size
from ..models.batch import Batch
from ..models.likelihood import HiddenEntries
from ..models.posterior import Prior
from .batches import CellBatches
from .settings import STEPS, Complexity
from .split import HELDOUT, VALIDATION_CELLS, CountSplit, n_levels

PSEUDO = 10.0
"""Hidden entries with the variance of all that every gene is given."""


class EntrySplit(CountSplit):
    """Non-zero entries are split.

    ``share`` is that of a gene where it is not zero, at the median library size. It changes with the depth by ``depth_slope`` (in logs).
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
        # The mean of the entries of a gene does not depend on how many there are.
        return np.zeros_like(self.share)

    @property
    def measured(self) -> None:
        return None

    def judge(self, rates: np.ndarray) -> tuple[Prior, dict[str, float]]:
        """Prior, and the mean squared error of the log of held-out entries for gene mean (at the spot's depth) and network.

        The inverse dispersion is one over the variance of the log of a hidden entry around its prediction, which is relative as well.
        """
        heldout = columns(self.heldout, self.genes)
        share, n = np.log(self.share[self.genes]), np.zeros(len(self.genes))
        squares, null = np.zeros_like(n), 0.0
        for rows in chunks(len(self.validation), len(n)):
            spots = self.validation[rows]
            part = heldout[spots].tocoo()
            depth = np.log(np.maximum(self.size[spots], 1))[part.row]
            measured = np.log(part.data)
            predicted = np.log(np.maximum(rates[rows][part.row, part.col], 1e-12)) + depth
            of_gene = share[part.col] + depth + self.depth_slope * (depth - np.log(usual_size(self.size)))
            n += np.bincount(part.col, minlength=len(n))
            squares += np.bincount(part.col, np.square(measured - predicted), minlength=len(n))
            null += float(np.square(measured - of_gene).sum())
        total = max(n.sum(), 1.0)
        # A gene with few hidden entries has the variance of all.
        variance = (squares + PSEUDO * squares.sum() / total) / (n + PSEUDO)
        scores = {"gene_mean": null / total, "network": squares.sum() / total}
        precision = torch.from_numpy(1 / np.maximum(variance, 1e-6)).float()
        return Prior(precision, torch.ones_like(precision)), {name: float(value) for name, value in scores.items()}


def _where(counts: sp.csr_matrix, some: np.ndarray) -> sp.csr_matrix:
    """The same with some of the non-zero entries only."""
    part = sp.csr_matrix((np.where(some, counts.data, 0), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    part.eliminate_zeros()
    return part
