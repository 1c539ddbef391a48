"""Rings of neighbours, against counting by hand on dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scimpute._space.graph import further_rings, is_regular, neighbours, symmetric, within


def check_graph(graph: sp.csr_matrix, sections: np.ndarray | None = None) -> np.ndarray:
    """What every ring is, whatever it was made of; the ring, dense."""
    assert graph.format == "csr"
    assert graph.dtype == np.float32
    assert graph.has_canonical_format
    assert np.all(graph.data == 1)
    dense = graph.toarray() > 0
    assert np.array_equal(dense, dense.T)
    assert not dense.diagonal().any()
    if sections is not None:
        assert not dense[sections[:, None] != sections].any()
    return dense


def rings_by_hand(first: np.ndarray, n_rings: int) -> list[np.ndarray]:
    """Number of steps between any two spots, by Floyd and Warshall."""
    steps = np.where(first, 1.0, np.inf)
    np.fill_diagonal(steps, 0)
    for k in range(len(steps)):
        steps = np.minimum(steps, steps[:, [k]] + steps[[k]])
    return [steps == ring for ring in range(1, n_rings + 1)]


@st.composite
def spots(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Positions, many of them the same, and codes of sections, some of them of one spot."""
    n_obs, n_columns = draw(st.integers(1, 25)), draw(st.sampled_from([2, 3]))
    place = st.integers(0, 4) if draw(st.booleans()) else st.floats(-1e6, 1e6)
    points = draw(st.lists(st.lists(place, min_size=n_columns, max_size=n_columns), min_size=n_obs, max_size=n_obs))
    codes = draw(st.lists(st.integers(0, 3), min_size=n_obs, max_size=n_obs))
    return np.array(points, dtype=float), np.array(codes)


@given(spots(), st.integers(1, 30), st.sampled_from([None, "hexagonal", "square"]), st.booleans())
def test_rings_of_any_spots(both, n_neighs, lattice, told_apart):
    points, sections = both
    points = points[:, :2] if lattice == "hexagonal" else points
    sections = sections if told_apart else None
    connectivities, distances = neighbours(points, sections, n_neighs=n_neighs, lattice=lattice)
    first = check_graph(connectivities, sections)
    assert np.all(np.isfinite(distances.data))
    assert abs(distances - distances.T).nnz == 0
    assert not (distances.toarray() > 0)[~first].any()
    sizes = np.bincount(np.zeros(len(points), int) if sections is None else sections)
    if lattice is None:
        assert distances.dtype == np.float64
        enough = np.minimum(n_neighs, (sizes if sections is None else sizes[sections]) - 1)
        assert np.all(first.sum(axis=1) >= enough)
        np.testing.assert_allclose(
            distances.toarray()[first], np.linalg.norm(points[:, None] - points, axis=2)[first], rtol=1e-6, atol=1e-6
        )
    else:
        assert distances.dtype == np.float32
        assert np.array_equal(distances.toarray(), connectivities.toarray())
    rings = [connectivities, *further_rings(connectivities, 4)]
    assert len(rings) == 4
    for ring, expected in zip(rings, rings_by_hand(first, 4), strict=True):
        assert np.array_equal(check_graph(ring, sections), expected)
    assert sum(ring.toarray() for ring in rings).max() <= 1


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 12))
def test_nearest_by_hand(seed, n_obs, n_neighs):
    points = np.random.default_rng(seed).normal(size=(n_obs, 2))
    far = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(far, np.inf)
    nearest = np.zeros((n_obs, n_obs), bool)
    np.put_along_axis(nearest, np.argsort(far, axis=1)[:, : min(n_neighs, n_obs - 1)], True, axis=1)
    found, _ = neighbours(points, n_neighs=n_neighs)
    assert np.array_equal(found.toarray() > 0, nearest | nearest.T)


HEXAGONAL = [(0, 2), (0, -2), (1, 1), (1, -1), (-1, 1), (-1, -1)]
SQUARE = [(0, 1), (0, -1), (1, 0), (-1, 0)]
DIAGONAL = [(1, 1), (1, -1), (-1, 1), (-1, -1)]


@pytest.mark.parametrize(
    ("lattice", "n_neighs", "offsets"),
    [("hexagonal", 6, HEXAGONAL), ("square", 4, SQUARE), ("square", 6, SQUARE), ("square", 8, SQUARE + DIAGONAL)],
)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 1))
def test_lattices_with_holes_by_hand(lattice, n_neighs, offsets, seed, share):
    array = np.array([(row, 2 * i + row % 2 if lattice == "hexagonal" else i) for row in range(7) for i in range(6)])
    rng = np.random.default_rng(seed)
    array = rng.permutation(array[rng.random(len(array)) < share])
    if not len(array):
        return
    steps = (array[:, None] - array).reshape(-1, 2)
    expected = np.array([tuple(step) in offsets for step in steps.tolist()]).reshape(len(array), len(array))
    found, _ = neighbours(array, n_neighs=n_neighs, lattice=lattice, spacing=1.0)
    assert np.array_equal(check_graph(found), expected)


@pytest.mark.parametrize(("n_neighs", "offsets"), [(4, SQUARE), (6, SQUARE), (8, SQUARE + DIAGONAL)])
def test_the_spacing_of_a_square_lattice_is_measured(n_neighs, offsets):
    """In spots printed a little beside their place, of two sections at different scales, one of them turned, both with holes."""
    rng = np.random.default_rng(0)
    array = np.array([(row, i) for row in range(12) for i in range(12)])
    parts = [array[rng.random(144) < 0.8] for _ in range(2)]
    array, sections = np.concatenate(parts), np.repeat([0, 1], [len(part) for part in parts])
    points = (array + rng.normal(0, 0.03, array.shape)) @ np.array([[0.8, 0.6], [-0.6, 0.8]])
    points[sections == 1] *= 300
    steps = (array[:, None] - array).reshape(-1, 2)
    expected = np.array([tuple(step) in offsets for step in steps.tolist()]).reshape(len(array), len(array))
    found, _ = neighbours(points, sections, n_neighs=n_neighs, lattice="square")
    assert np.array_equal(check_graph(found, sections), expected & (sections[:, None] == sections))


def test_a_narrow_strip_and_hexagons_in_pixels():
    strip = np.column_stack([np.arange(9.0) * 250, np.zeros(9)])
    found, _ = neighbours(strip, n_neighs=6, lattice="square")
    assert np.array_equal(found.toarray(), np.eye(9, k=1) + np.eye(9, k=-1))
    array = np.array([(row, 2 * i + row % 2) for row in range(8) for i in range(8)])
    pixels = array[:, ::-1] * [50, 50 * np.sqrt(3)]
    by_array, by_pixels = (neighbours(x, n_neighs=6, lattice=kind)[0] for x, kind in ((array, "hexagonal"), (pixels, "square")))
    assert np.array_equal(by_array.toarray(), by_pixels.toarray())


def test_spots_at_the_very_same_place():
    connectivities, distances = neighbours(np.zeros((7, 2)), n_neighs=3)
    assert np.all(check_graph(connectivities).sum(axis=1) >= 3)
    assert distances.nnz == 0
    # Two sections that were not told apart: half of the nearest are at no distance, and say nothing of the spacing.
    twice = np.repeat([(row, i) for row in range(5) for i in range(5)], 2, axis=0)
    found, _ = neighbours(twice, n_neighs=8, lattice="square")
    assert np.all(check_graph(found).sum(axis=1) >= 4)


def test_a_graph_is_made_symmetric_and_cut_at_sections():
    graph = sp.csr_matrix(np.array([[5.0, 2, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 0], [3, 0, 0, 0]]))
    expected = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]], bool)
    assert np.array_equal(check_graph(symmetric(graph)), expected)
    sections = np.array([0, 0, 1, 0])
    left = within(graph, sections)
    assert np.array_equal(left.toarray(), np.array([[5.0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0]]))
    stored = sp.csr_matrix((np.array([0.0, 1.0]), ([0, 1], [1, 2])), shape=(4, 4))
    assert check_graph(symmetric(stored)).sum() == 2  # a stored zero is no edge


def test_what_is_regular():
    rng = np.random.default_rng(0)
    array = np.array([(row, i) for row in range(15) for i in range(15)], float)
    assert is_regular(array + rng.normal(0, 0.05, array.shape))
    assert is_regular(np.concatenate([array, 100 * array]), np.repeat([0, 1], len(array)))
    assert not is_regular(rng.uniform(size=(300, 2)))
    assert not is_regular(np.zeros((5, 2)))
    assert not is_regular(array[:1])
