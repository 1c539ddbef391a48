"""Who is next to whom in space, ring by ring. Arrays and sparse matrices only; nothing is ever made n x n and dense."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

# Neighbours on a lattice lie within this many times the distance that they should lie at: spots are never quite in their place. The next
# nearest are at sqrt(2) = 1.41 times of it in a square, at 1.73 times among hexagons.
_SLACK = 1.3
# Of the distances to the nearest spot in units of their median, the 90% quantile less the 10% quantile: below 0.2 for spots printed on
# a lattice and found again in the image, above 1 for spots at random.
_IRREGULAR = 0.4


def neighbours(
    coordinates: np.ndarray,
    sections: np.ndarray | None = None,
    *,
    n_neighs: int = 6,
    lattice: str | None = None,
    spacing: float | None = None,
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """The first ring: connectivities (ones) and distances, both symmetric and without a diagonal.

    Parameters
    ----------
    coordinates
        Position of every spot, ``(n, 2)`` or ``(n, 3)``; for the hexagonal lattice its row and its column in Visium's array, where
        a column is half as far from the next as spots in the same row are from each other.
    sections
        Code of every spot's section ``(n,)``; no edge joins two sections.
    n_neighs
        Neighbours of a spot: those that are nearest, and those whose nearest it is. Capped at the section's other spots. On a lattice: 6
        for the hexagonal one; 4, or 8 with the diagonals, for a square one (6 is taken as 4).
    lattice
        ``"hexagonal"``, ``"square"``, or None for spots anywhere. On a lattice, a spot that is missing has no substitute. Hexagons in
        other coordinates than those of the array go as ``"square"`` with ``n_neighs=6``: what is one spacing away is a neighbour in both.
    spacing
        From a spot of a square lattice to the next; measured in every section where None.

    Returns
    -------
    Both float32 on a lattice, where a distance is a number of steps, 1; otherwise the distances are Euclidean and float64, and those
    that are 0 (at the very same place) are not stored. So does squidpy.
    """
    points = np.asarray(coordinates, dtype=np.float64)
    if lattice == "hexagonal":
        points = points * [np.sqrt(3), 1]
    parts = []
    for members in _members(sections, len(points)):
        here, there, distance = _nearest(points[members], n_neighs)
        if lattice is not None:
            near = distance <= _cut(distance, here, n_neighs, 2.0 if lattice == "hexagonal" else spacing)
            here, there, distance = here[near], there[near], np.ones(near.sum())
        parts.append((members[here], members[there], distance))
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
    """Rings 2 to ``n_rings`` of a symmetric graph without a diagonal: spots that are reached in so many steps and not in fewer."""
    step = _ones(first)
    reached = (step + sp.identity(step.shape[0], dtype=np.float32, format="csr")).tocsr()
    rings, last = [], step
    for _ in range(2, n_rings + 1):
        last = _ones(last @ step)
        last = (last - last.multiply(reached)).tocsr()
        last.eliminate_zeros()
        last.sort_indices()
        reached = reached + last
        rings.append(last)
    return rings


def symmetric(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Ones, in canonical CSR float32, where either of two spots has an edge to the other; no diagonal."""
    graph = graph.tocoo()
    other = (graph.row != graph.col) & (graph.data != 0)
    rows, columns = graph.row[other], graph.col[other]
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
    """Whether the spots lie on a lattice: all are about as far from their nearest spot as the others of their section are."""
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
    """Places of the spots of each section."""
    if sections is None:
        return [np.arange(n_obs)]
    order = np.argsort(sections, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(sections[order])) + 1)


def _nearest(points: np.ndarray, n_neighs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges from every spot to those nearest to it: from, to, distance."""
    n_neighs = min(n_neighs, len(points) - 1)
    if n_neighs < 1:
        none = np.zeros(0, dtype=np.int64)
        return none, none, np.zeros(0)
    distance, there = cKDTree(points).query(points, n_neighs + 1)
    # One too many: the spot itself, or, where that is crowded out by others at the very same place, the last of those.
    spare = there == np.arange(len(points))[:, None]
    spare[~spare.any(axis=1), -1] = True
    return np.repeat(np.arange(len(points)), n_neighs), there[~spare], distance[~spare]


def _cut(distance: np.ndarray, here: np.ndarray, n_neighs: int, spacing: float | None) -> float:
    """Distance within which spots are neighbours on a lattice."""
    if spacing is None:
        # From the nearest spot of each, for where the tissue is narrow most others are missing; not at the very same place, though.
        apart = distance > 0
        first = np.flatnonzero(np.diff(here[apart], prepend=-1))
        spacing = float(np.median(distance[apart][first])) if len(first) else 0.0
    return _SLACK * spacing * (np.sqrt(2) if n_neighs == 8 else 1)
