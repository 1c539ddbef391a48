"""Features of positions and images, and weights of neighbours."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from .._sparse import chunks

FREQUENCIES = (1, 2, 4)


def extents(coordinates: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Lowest and highest coordinates of every section, ``(sections, 2, d)``."""
    masks = [sections == section for section in range(int(sections.max()) + 1)]
    return np.array([[coordinates[mask].min(axis=0), coordinates[mask].max(axis=0)] for mask in masks])


def position_features(coordinates: np.ndarray, extent: np.ndarray, codes: np.ndarray, n_sections: int) -> np.ndarray:
    """Scaled coordinates, their sines and cosines, and indicators of the section, ``(n, p)``.

    Coordinates are relative to the middle of the section, in units of half its larger side.

    Parameters
    ----------
    coordinates
        Position of each spot, ``(n, d)``.
    extent
        Lowest and highest coordinates of each spot's section, ``(n, 2, d)``.
    codes
        Code of each spot's section among the ``n_sections`` sections of the training; -1 for a new section.
    """
    low, high = extent[:, 0], extent[:, 1]
    side = np.maximum((high - low).max(axis=1, keepdims=True) / 2, 1e-12)
    scaled = (coordinates - (low + high) / 2) / side
    waves = [wave(np.pi / 2 * frequency * scaled) for frequency in FREQUENCIES for wave in (np.sin, np.cos)]
    indicators = [] if n_sections < 2 else [codes[:, None] == np.arange(n_sections)]
    return np.concatenate([scaled, *waves, *indicators], axis=1).astype(np.float32)


def colour_features(tiles: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each colour in every tile, ``(n, 6)``; tiles are uint8 ``(n, h, w, 3)``."""
    features = np.empty((len(tiles), 6))
    for rows in chunks(len(tiles), tiles[0].size):
        part = tiles[rows].astype(np.float32)
        features[rows] = np.concatenate([part.mean(axis=(1, 2)), part.std(axis=(1, 2))], axis=1)
    return features


def column_moments(features: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of every column, ``(2, q)``."""
    return np.stack([features.mean(axis=0), features.std(axis=0)])


def standardise(features: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Every column minus its mean, divided by its standard deviation, and clipped to [-5, 5]. Constant columns become 0.

    ``moments`` are the means and standard deviations, ``(2, q)``; see :func:`column_moments`.
    """
    mean, sd = moments
    return np.clip((features - mean) / np.where(sd > 1e-9, sd, np.inf), -5, 5).astype(np.float32)


def edge_scale(ring: sp.csr_matrix, tile_features: np.ndarray) -> float:
    """Median distance between the tiles of two neighbours, without equal tiles; 1 if all tiles are equal."""
    distance = _tile_distance(ring, tile_features)
    positive = distance[distance > 0]
    return float(np.median(positive)) if positive.size else 1.0


def neighbour_weights(ring: sp.csr_matrix, tile_features: np.ndarray | None, scale: float = 1.0) -> sp.csr_matrix:
    """The ring with weights: every row with neighbours sums to 1.

    Without tiles all neighbours of a spot have equal weights. With ``tile_features``, ``(n, q)``, neighbours with a similar tile weigh
    more. If the tile of a neighbour is further away than the most similar tile by ``scale``, its weight is 1/e of the highest weight (see
    :func:`edge_scale`).
    """
    ring = ring.astype(np.float32).tocsr().copy()
    if tile_features is not None and ring.nnz:
        distance = _tile_distance(ring, tile_features)
        # Distances are relative to the most similar neighbour. A spot unlike all its neighbours keeps them.
        spots = np.flatnonzero(np.diff(ring.indptr))
        smallest = np.minimum.reduceat(distance, ring.indptr[spots])
        ring.data = np.exp(-(distance - np.repeat(smallest, np.diff(ring.indptr)[spots])) / scale)
    total = np.asarray(ring.sum(axis=1)).ravel()
    return (sp.diags((1 / np.where(total > 0, total, 1)).astype(np.float32)) @ ring).tocsr()


def _tile_distance(ring: sp.csr_matrix, tile_features: np.ndarray) -> np.ndarray:
    """Mean squared difference between the features of the two spots of every entry, in the order of the entries."""
    row = np.repeat(np.arange(ring.shape[0]), np.diff(ring.indptr))
    distance = np.empty(ring.nnz)
    for part in chunks(ring.nnz, tile_features.shape[1]):
        distance[part] = np.square(tile_features[row[part]] - tile_features[ring.indices[part]]).mean(axis=1)
    return distance
