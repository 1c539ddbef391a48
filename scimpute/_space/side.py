"""Side information of spots: their neighbours, their positions, and the image around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from .._sparse import TARGET_SUM, chunks

SPOT = "spot"
"""Name of the modality that numbers the spots. Each spot has its own vector (:func:`scimpute.tl.nmf`)."""


@dataclass(frozen=True)
class SideInformation:
    """Inputs of a network beside the counts of ``n`` spots.

    Attributes
    ----------
    modalities
        Names, in the order of the network's inputs.
    features
        For ``"position"`` ``(n, p)``; for ``"image"`` ``(n, q)``, or tiles ``(n, 3, h, w)`` as uint8; for ``"spot"`` ``(n,)``.
    rings
        Weights of the neighbours of every spot, ``(n, n)``, one matrix per ring. Rows sum to 1 or are empty. A run without neighbours has
        no rings.
    ring_weights
        Weight of each ring in the spatial contribution.
    spatial_weight
        Weight of the spatial contribution.
    """

    modalities: tuple[str, ...]
    features: Mapping[str, np.ndarray]
    rings: Sequence[sp.csr_matrix]
    ring_weights: tuple[float, ...]
    spatial_weight: float

    def shapes(self, n_scores: int) -> dict[str, tuple[int, ...]]:
        """Shape of the features of one spot in each modality; the context has ``n_scores`` low-rank scores."""
        own = {"counts": (len(self.rings) * n_scores,)}
        return {name: own[name] if name == "counts" else self.features[name].shape[1:] for name in self.modalities}

    def features_with(self, counts: sp.csr_matrix, size: np.ndarray, loadings: np.ndarray) -> list[np.ndarray]:
        """Features of every modality, ``(n, ...)``. The features of ``"counts"`` are the scores of the neighbours."""
        return [self.neighbour_scores(counts, size, loadings) if name == "counts" else self.features[name] for name in self.modalities]

    def neighbour_scores(self, counts: sp.csr_matrix, size: np.ndarray, loadings: np.ndarray) -> np.ndarray:
        """Low-rank scores of each ring, ``(n, rings * c)``. The molecules of a ring are pooled, since a ring is deeper than a spot."""
        n, n_scores = counts.shape[0], loadings.shape[1]
        scores = np.zeros((n, len(self.rings) * n_scores), dtype=np.float32)
        for number, ring in enumerate(self.rings):
            depth = np.maximum(ring @ size, 1e-6)
            # A ring expresses nearly every gene. All rows at once would be as large as a dense matrix.
            for rows in chunks(n, counts.shape[1]):
                root = (sp.diags((TARGET_SUM / depth[rows]).astype(np.float32)) @ (ring[rows] @ counts)).tocsr()
                root.data = np.sqrt(root.data)
                scores[rows, number * n_scores : (number + 1) * n_scores] = root @ loadings
        return scores

    def draw_neighbours(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Two neighbours of every spot in each ring, ``(rings, 2, b)``.

        The probability of a neighbour is its weight. A spot without neighbours gets itself.
        """
        neighbours = np.broadcast_to(rows, (len(self.rings), 2, len(rows))).copy()
        for number, ring in enumerate(self.rings):
            weights = ring[rows]
            first, last = weights.indptr[:-1], weights.indptr[1:]
            not_empty = last > first
            cumulative = np.concatenate([[0.0], np.cumsum(weights.data)])
            low, high = cumulative[first[not_empty]], cumulative[last[not_empty]]
            for draw in range(2):
                entries = np.searchsorted(cumulative, low + rng.random(len(low)) * (high - low), side="right") - 1
                neighbours[number, draw, not_empty] = weights.indices[np.clip(entries, first[not_empty], last[not_empty] - 1)]
        return neighbours
