"""Neighbours in space, ring by ring. All graphs are sparse; no dense n x n array is made."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

# Spots are never exactly in their place, so neighbours on a lattice may lie at up to 1.3 times the nominal distance. The next nearest spots
# lie at sqrt(2) = 1.41 times this distance on a square lattice and at 1.73 times on a hexagonal one.
_SLACK = 1.3
# 90% quantile minus 10% quantile of the distances to the nearest spot, in units of their median. It is below 0.2 for spots that were
# printed on a lattice and located in the image, and above 1 for random spots.
_IRREGULAR = 0.4


def neighbours(
    coordinates: np.ndarray,
    sections: np.ndarray | None = None,
    *,
    n_neighs: int = 6,
    lattice: str | None = None,
    spacing: float | None = None,
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """The first ring: connectivities (ones) and distances. Both are symmetric and have no diagonal.

    Parameters
    ----------
    coordinates
        Position of every spot, ``(n, 2)`` or ``(n, 3)``. For the hexagonal lattice: row and column in Visium's array. There, neighbouring
        spots in a row are two columns apart.
    sections
        Code of every spot's section, ``(n,)``. No edge joins two sections.
    n_neighs
        Number of nearest spots that become neighbours of a spot. The graph is symmetric, so a spot can have more neighbours. A section with
        fewer spots has fewer neighbours. On a lattice: 6 if it is hexagonal; 4, or 8 with the diagonals, if it is square (6 means 4).
    lattice
        ``"hexagonal"``, ``"square"``, or None for spots anywhere. On a lattice, no other spot replaces a missing one. For a hexagonal
        lattice in other coordinates than those of the array, use ``"square"`` with ``n_neighs=6``: on both lattices, all spots at a
        distance of one spacing are neighbours.
    spacing
        Distance of neighbouring spots on a square lattice; None measures it in every section.

    Returns
    -------
    On a lattice both are float32, and a distance is 1 step. Otherwise distances are Euclidean and float64; distances of 0 (spots at the
    same position) are not stored. squidpy does the same.
    """
    points = np.asarray(coordinates, dtype=np.float64)
    if lattice == "hexagonal":
        points = points * [np.sqrt(3), 1]
    parts = []
    for members in _members(sections, len(points)):
        source, target, distance = _nearest(points[members], n_neighs)
        if lattice is not None:
            near = distance <= _cutoff(distance, source, n_neighs, 2.0 if lattice == "hexagonal" else spacing)
            source, target, distance = source[near], target[near], np.ones(near.sum())
        parts.append((members[source], members[target], distance))
    rows, columns, values = (np.concatenate([part[i] for part in parts]) for i in range(3))
    shape = (len(points), len(points))
    connectivities = symmetric(sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape))
    if lattice is not None:
        return connectivities, connectivities.copy()
    distances = sp.csr_matrix((values, (rows, columns)), shape=shape)
    distances = distances.maximum(distances.T).tocsr()
    distances.eliminate_zeros()
    return connectivities, distances


def further_rings(first: sp.csr_matrix, n_rings: int) -> list[sp.csr_matrix]:
    """Rings 2 to ``n_rings`` of a symmetric graph without a diagonal. Ring r holds the spots that need r steps and not fewer."""
    step = _ones(first)
    inner = (step + sp.identity(step.shape[0], dtype=np.float32, format="csr")).tocsr()
    rings, ring = [], step
    for _ in range(2, n_rings + 1):
        ring = _ones(ring @ step)
        ring = (ring - ring.multiply(inner)).tocsr()
        ring.eliminate_zeros()
        ring.sort_indices()
        inner = inner + ring
        rings.append(ring)
    return rings


def symmetric(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Ones for all pairs of spots with an edge in at least one direction, without a diagonal, in canonical CSR float32."""
    graph = graph.tocoo()
    edges = (graph.row != graph.col) & (graph.data != 0)
    rows, columns = graph.row[edges], graph.col[edges]
    both = (np.concatenate([rows, columns]), np.concatenate([columns, rows]))
    result = sp.csr_matrix((np.ones(2 * len(rows), np.float32), both), shape=graph.shape)
    result.sum_duplicates()
    return _ones(result)


def within(graph: sp.csr_matrix, sections: np.ndarray) -> sp.csr_matrix:
    """The graph without the edges between sections."""
    graph = graph.tocoo()
    same = sections[graph.row] == sections[graph.col]
    return sp.csr_matrix((graph.data[same], (graph.row[same], graph.col[same])), shape=graph.shape)


def is_regular(coordinates: np.ndarray, sections: np.ndarray | None = None) -> bool:
    """Whether the spots lie on a lattice, that is, whether all distances to the nearest spot in a section are nearly equal."""
    points = np.asarray(coordinates, dtype=np.float64)
    relative = []
    for members in _members(sections, len(points)):
        _, _, distance = _nearest(points[members], 1)
        if len(distance) and np.median(distance) > 0:
            relative.append(distance / np.median(distance))
        elif len(distance):
            return False
    if not relative:
        return False
    low, high = np.quantile(np.concatenate(relative), [0.1, 0.9])
    return bool(high - low < _IRREGULAR)


def _ones(graph: sp.csr_matrix) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(graph.nnz, np.float32), graph.indices, graph.indptr), shape=graph.shape)


def _members(sections: np.ndarray | None, n_obs: int) -> list[np.ndarray]:
    """Indices of the spots of each section."""
    if sections is None:
        return [np.arange(n_obs)]
    order = np.argsort(sections, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(sections[order])) + 1)


def _nearest(points: np.ndarray, n_neighs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges from every spot to its nearest spots: source, target, distance."""
    n_neighs = min(n_neighs, len(points) - 1)
    if n_neighs < 1:
        no_edges = np.zeros(0, dtype=np.int64)
        return no_edges, no_edges, np.zeros(0)
    distance, target = cKDTree(points).query(points, n_neighs + 1)
    # Remove the spot itself. With many spots at the same position it may not be among the nearest; then remove the last of them.
    extra = target == np.arange(len(points))[:, None]
    extra[~extra.any(axis=1), -1] = True
    return np.repeat(np.arange(len(points)), n_neighs), target[~extra], distance[~extra]


def _cutoff(distance: np.ndarray, source: np.ndarray, n_neighs: int, spacing: float | None) -> float:
    """Largest distance of neighbours on a lattice."""
    if spacing is None:
        # Use only the nearest spot of each spot, because in narrow tissue most others are missing. Ignore spots at the same position.
        positive = distance > 0
        first = np.flatnonzero(np.diff(source[positive], prepend=-1))
        spacing = float(np.median(distance[positive][first])) if len(first) else 0.0
    return _SLACK * spacing * (np.sqrt(2) if n_neighs == 8 else 1)
