"""What a network is given of a spot beside its own counts: its neighbours, its position, the image around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from .._sparse import TARGET, chunks

SPOT = "spot"
"""Name of the modality that is the number of the spot: each spot has a vector of its own (:func:`scimpute.tl.nmf`)."""


@dataclass(frozen=True)
class SideInformation:
    """Beside the counts of ``n`` spots.

    Attributes
    ----------
    modalities
        Names, in the order in which the network takes them.
    features
        For ``"position"`` ``(n, p)``; for ``"image"`` ``(n, q)``, or tiles ``(n, 3, h, w)`` as uint8; for ``"spot"`` ``(n,)``.
    rings
        Rows of neighbours, weights that sum to 1 or none, ``(n, n)``; empty where neighbours are not looked at.
    ring_weights
        What each ring counts in the spatial contribution.
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
        """Features of every modality, ``(n, ...)``; those of the counts are the scores of the neighbours."""
        return [self.neighbour_scores(counts, size, loadings) if name == "counts" else self.features[name] for name in self.modalities]

    def neighbour_scores(self, counts: sp.csr_matrix, size: np.ndarray, loadings: np.ndarray) -> np.ndarray:
        """Low-rank scores of the molecules of each ring together, ``(n, rings * c)``: a ring is deeper than a spot."""
        n, scores = counts.shape[0], loadings.shape[1]
        found = np.zeros((n, len(self.rings) * scores), dtype=np.float32)
        for number, ring in enumerate(self.rings):
            depth = np.maximum(ring @ size, 1e-6)
            # A ring has nearly every gene: all of them at once would be as large as a dense matrix.
            for rows in chunks(n, counts.shape[1]):
                root = (sp.diags((TARGET / depth[rows]).astype(np.float32)) @ (ring[rows] @ counts)).tocsr()
                root.data = np.sqrt(root.data)
                found[rows, number * scores : (number + 1) * scores] = root @ loadings
        return found

    def draw_neighbours(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Two neighbours of every spot in each ring, ``(rings, 2, b)``.

        One is drawn as often as its weight says. A spot without neighbours gets itself.
        """
        found = np.broadcast_to(rows, (len(self.rings), 2, len(rows))).copy()
        for number, ring in enumerate(self.rings):
            near = ring[rows]
            first, last = near.indptr[:-1], near.indptr[1:]
            some = last > first
            running = np.concatenate([[0.0], np.cumsum(near.data)])
            low, high = running[first[some]], running[last[some]]
            for which in range(2):
                at = np.searchsorted(running, low + rng.random(len(low)) * (high - low), side="right") - 1
                found[number, which, some] = near.indices[np.clip(at, first[some], last[some] - 1)]
        return found
