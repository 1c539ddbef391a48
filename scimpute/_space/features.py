"""Features of positions and images, and weights of neighbours, as plain arrays."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from .._sparse import chunks

FREQUENCIES = (1, 2, 4)


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
