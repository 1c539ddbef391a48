"""The low-rank context: every block of genes reads these scores of the whole cell."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from .._sparse import TARGET_SUM, median_size_of

RANK = 1e-4
"""Singular values below this share of the largest are rounding errors."""


class Context:
    """The low-rank scores of a cell, which every block of genes reads.

    ``sqrt(CP10k)`` is projected on the leading right singular vectors. Each score is divided by its standard deviation over the cells (with
    a tenth of its mean, added in squares). The last value is the log of the library size over its median.

    Parameters
    ----------
    loadings
        Scaled singular vectors, ``(g, c)``.
    median_size
        Median library size of the cells with any molecule.
    """

    def __init__(self, loadings: torch.Tensor, median_size: float) -> None:
        self.loadings, self.median_size = loadings, median_size

    @classmethod
    def fit(cls, counts: sp.csr_matrix, size: np.ndarray, n_scores: int, seed: int) -> Context:
        """Truncated SVD of the counts, with at most ``n_scores`` scores; a small matrix has fewer."""
        from sklearn.utils.extmath import randomized_svd

        root = counts.multiply(TARGET_SUM / np.maximum(size, 1)[:, None]).tocsr().astype(np.float32)
        root.data = np.sqrt(root.data)
        n_scores = min(n_scores, min(counts.shape) - 1)
        if n_scores < 1:
            return cls.of_array(np.zeros((counts.shape[1], 0)), median_size_of(size))
        left, values, right = randomized_svd(root, n_scores, n_iter=3, random_state=seed)
        # If cells are similar and deep, the first score is nearly constant. Divided by its spread alone it would be in the thousands.
        scores = left * values
        spread = np.hypot(scores.std(axis=0), 0.1 * scores.mean(axis=0))
        # Beyond the rank of the data (few cells, or copies of a cell) directions are rounding errors. Their loadings are set to 0.
        real = values > RANK * values[0]
        return cls.of_array(np.where(real, right.T / np.where(real, spread, 1.0), 0.0), median_size_of(size))

    @classmethod
    def of_array(cls, loadings: np.ndarray, median_size: float) -> Context:
        return cls(torch.from_numpy(np.ascontiguousarray(loadings, dtype=np.float32)), median_size)

    @property
    def n_values(self) -> int:
        """Number of scores, plus 1 for the library size."""
        return self.loadings.shape[1] + 1

    def truncated(self, n_scores: int) -> Context:
        """The context with the first scores only."""
        return Context(self.loadings[:, :n_scores].contiguous(), self.median_size)

    def to(self, device: torch.device) -> Context:
        return Context(self.loadings.to(device), self.median_size)

    def __call__(self, genes: torch.Tensor, cp10k: torch.Tensor, starts: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """Context of some cells ``(b, c)`` from their non-zero entries. ``starts`` is the first entry of each cell."""
        scores = torch.nn.functional.embedding_bag(genes, self.loadings, starts, mode="sum", per_sample_weights=cp10k.sqrt())
        return torch.cat([scores, (size / self.median_size).log()[:, None]], dim=1)
