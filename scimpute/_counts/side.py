"""What a network is told of a spot beside its own counts: its neighbours, its position, the image around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from .._sparse import TARGET, chunks

FREQUENCIES = (1, 2, 4)
SPOT = "spot"
"""Name of the modality that is the number of the spot."""


@dataclass(frozen=True)
class Side:
    """Beside the counts of ``n`` spots.

    Attributes
    ----------
    modalities
        Names, in the order in which they are told.
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
    features: Mapping[str, Tensor]
    rings: Sequence[sp.csr_matrix]
    ring_weights: tuple[float, ...]
    spatial_weight: float

    def shapes(self, n_scores: int) -> dict[str, tuple[int, ...]]:
        """What :class:`~scimpute.models.modal.ModalGenerator` is to expect; ``n_scores`` low-rank scores for each ring."""
        own = {"counts": (len(self.rings) * n_scores,)}
        return {name: own[name] if name == "counts" else tuple(self.features[name].shape[1:]) for name in self.modalities}

    def told(self, counts: sp.csr_matrix, size: np.ndarray, loadings: Tensor) -> list[Tensor]:
        """What is told of each modality, ``(n, ...)``."""
        return [self.of_counts(counts, size, loadings) if name == "counts" else self.features[name] for name in self.modalities]

    def of_counts(self, counts: sp.csr_matrix, size: np.ndarray, loadings: Tensor) -> Tensor:
        """Low-rank scores of each ring's molecules together, ``(n, rings * c)``: a ring is deeper than a spot."""
        n, scores = counts.shape[0], loadings.shape[1]
        found = np.zeros((n, len(self.rings) * scores), dtype=np.float32)
        projection = loadings.cpu().numpy()
        for number, ring in enumerate(self.rings):
            depth = np.maximum(ring @ size, 1e-6)
            # A ring has nearly every gene: all of them at once would be as large as a dense matrix.
            for rows in chunks(n, counts.shape[1]):
                root = (sp.diags((TARGET / depth[rows]).astype(np.float32)) @ (ring[rows] @ counts)).tocsr()
                root.data = np.sqrt(root.data)
                found[rows, number * scores : (number + 1) * scores] = root @ projection
        return torch.from_numpy(found)

    def draw(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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


def extents(coordinates: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Lowest and highest coordinates of every section, ``(sections, 2, d)``."""
    rows = [sections == section for section in range(int(sections.max()) + 1)]
    return np.array([[coordinates[some].min(axis=0), coordinates[some].max(axis=0)] for some in rows])


def positions(coordinates: np.ndarray, extent: np.ndarray, known: np.ndarray, n_known: int) -> np.ndarray:
    """Coordinates in units of half the section's larger side around its middle, their sines and cosines, and the section: ``(n, p)``.

    ``extent`` is that of each spot's section, ``(n, 2, d)``; ``known`` are codes of the ``n_known`` sections of the training, -1 for one
    that was not among them.
    """
    low, high = extent[:, 0], extent[:, 1]
    side = np.maximum((high - low).max(axis=1, keepdims=True) / 2, 1e-12)
    scaled = (coordinates - (low + high) / 2) / side
    waves = [wave(np.pi / 2 * frequency * scaled) for frequency in FREQUENCIES for wave in (np.sin, np.cos)]
    which = [] if n_known < 2 else [known[:, None] == np.arange(n_known)]
    return np.concatenate([scaled, *waves, *which], axis=1).astype(np.float32)


def colours(tiles: np.ndarray) -> np.ndarray:
    """Mean and spread of the colours of every tile: ``(n, 6)`` of uint8 ``(n, h, w, 3)``."""
    found = np.empty((len(tiles), 6))
    for rows in chunks(len(tiles), tiles[0].size):
        part = tiles[rows].astype(np.float32)
        found[rows] = np.concatenate([part.mean(axis=(1, 2)), part.std(axis=(1, 2))], axis=1)
    return found


def moments(features: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of every column, ``(2, q)``."""
    return np.stack([features.mean(axis=0), features.std(axis=0)])


def standardised(features: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Every column less its mean over its standard deviation, cut off at 5; 0 where it is constant."""
    mean, spread = of
    return np.clip((features - mean) / np.where(spread > 1e-9, spread, np.inf), -5, 5).astype(np.float32)


def edge_scale(ring: sp.csr_matrix, likeness: np.ndarray) -> float:
    """How far the tiles of two neighbours are apart by the median, of those that are not the same."""
    apart = _apart(ring, likeness)
    positive = apart[apart > 0]
    return float(np.median(positive)) if positive.size else 1.0


def weighted(ring: sp.csr_matrix, likeness: np.ndarray | None, scale: float = 1.0) -> sp.csr_matrix:
    """Rows that sum to 1; neighbours count by how alike their tiles are, where ``likeness`` has features of these, ``(n, q)``.

    One counts 1/e as much as the likest of the spot where its tile is further by ``scale``; see :func:`edge_scale`.
    """
    ring = ring.astype(np.float32).tocsr().copy()
    if likeness is not None and ring.nnz:
        apart = _apart(ring, likeness)
        # From the likest of each spot: one that is like none of its neighbours keeps them.
        some = np.flatnonzero(np.diff(ring.indptr))
        likest = np.minimum.reduceat(apart, ring.indptr[some])
        ring.data = np.exp(-(apart - np.repeat(likest, np.diff(ring.indptr)[some])) / scale)
    total = np.asarray(ring.sum(axis=1)).ravel()
    return (sp.diags((1 / np.where(total > 0, total, 1)).astype(np.float32)) @ ring).tocsr()


def _apart(ring: sp.csr_matrix, likeness: np.ndarray) -> np.ndarray:
    """Mean squared difference of the features of the two spots of every entry, in the order of the entries."""
    row = np.repeat(np.arange(ring.shape[0]), np.diff(ring.indptr))
    found = np.empty(ring.nnz)
    for part in chunks(ring.nnz, likeness.shape[1]):
        found[part] = np.square(likeness[row[part]] - likeness[ring.indices[part]]).mean(axis=1)
    return found
