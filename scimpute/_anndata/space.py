"""Rings of neighbours in space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse.csgraph import connected_components

from .. import _check
from .._space.graph import further_rings, is_regular, neighbours, symmetric, within
from . import keys
from .read import read_neighbours

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

from .obs import Categorical
from .positions import read_array, read_coordinates
from .sections import (
    ARRAY_PLACE,
    MIN_SHARE_AT_ONE_PLACE,
    check_array_places,
    check_coordinates,
    find_mixed_sections,
    find_mixed_sections_by_array,
    read_sections,
)

COORD_TYPES = ("grid", "generic")
N_NEIGHS = 6
"""Default number of neighbours of a spot."""

_GRID_N_NEIGHS = (4, 6, 8)
"""Numbers of neighbours on a square grid without and with diagonals, 4 and 8, and on a hexagonal one, 6."""


@dataclass(frozen=True)
class Neighbours:
    """First ring of neighbours.

    Attributes
    ----------
    connectivities, distances
        Graphs ``(n, n)``, as squidpy has them.
    lattice
        ``"hexagonal"`` or ``"square"`` by row and column in the printed array, ``"measured"`` by positions on a grid, None off a grid.
    """

    connectivities: sp.csr_matrix
    distances: sp.csr_matrix
    lattice: str | None

    @property
    def coord_type(self) -> str:
        return "generic" if self.lattice is None else "grid"


def find_neighbours(adata: AnnData, sections: Categorical, n_neighs: int = N_NEIGHS, coord_type: str | None = None) -> Neighbours:
    """The first ring of neighbours, from the positions or the printed array of the spots."""
    coordinates, array = read_coordinates(adata), read_array(adata)
    if coord_type is None:
        coord_type = "grid" if _is_grid(adata, coordinates, array, sections) else "generic"
    if coord_type == "generic":
        check_coordinates(adata, sections.codes, coordinates)
        _warn_of_small_sections(sections, n_neighs)
        return _checked_by_array(adata, Neighbours(*neighbours(coordinates, sections.codes, n_neighs=n_neighs), None), coordinates)
    if coordinates.shape[1] == 3:
        raise ValueError("coord_type='grid' is for positions in two dimensions, adata.obsm['spatial'] has 3; pass coord_type='generic'")
    if n_neighs not in _GRID_N_NEIGHS:
        raise ValueError(
            f"n_neighs={n_neighs}, but on a grid a spot has 4 or 8 neighbours (square) or 6 (hexagonal); these spots are on a grid. "
            f"Pass coord_type='generic' for the {n_neighs} nearest spots"
        )
    if array is None:
        check_coordinates(adata, sections.codes, coordinates)
        graphs = neighbours(coordinates, sections.codes, n_neighs=n_neighs, lattice="square")
        return _checked_by_array(adata, Neighbours(*graphs, "measured"), coordinates)
    if (mixed := find_mixed_sections(adata, sections.codes, array, ARRAY_PLACE)) is not None:
        raise ValueError(mixed.message)
    lattice = "hexagonal" if _is_hexagonal(array) else "square"
    if lattice == "hexagonal" and n_neighs != 6:
        raise ValueError(
            f"n_neighs={n_neighs}, but by obs['array_row'] and obs['array_col'] the spots are on Visium's hexagonal grid, where a "
            f"spot has 6 neighbours; pass n_neighs=6, or coord_type='generic' for the {n_neighs} nearest spots"
        )
    return Neighbours(*neighbours(array, sections.codes, n_neighs=n_neighs, lattice=lattice, spacing=1.0), lattice)


def _checked_by_array(adata: AnnData, ring: Neighbours, coordinates: np.ndarray) -> Neighbours:
    """The neighbours; refused if the printed array shows that some are in different sections.

    Distant sections are separate components of the graph and pass. Positions in three dimensions pass: depth separates sections.
    """
    if coordinates.shape[1] == 2:
        check_array_places(adata, connected_components(ring.connectivities, directed=False)[1])
    return ring


def _is_grid(adata: AnnData, coordinates: np.ndarray, array: np.ndarray | None, sections: Categorical) -> bool:
    if coordinates.shape[1] == 3:
        return False
    return array is not None or (keys.SPATIAL in adata.uns and is_regular(coordinates, sections.codes))


def _is_hexagonal(array: np.ndarray) -> bool:
    """Whether even rows have spots in every other column and odd rows in the columns between them, as on Visium."""
    rows, both = array[:, 0] % 2, array.sum(axis=1) % 2
    return bool(np.ptp(rows) == 1 and np.ptp(both) == 0)


def _warn_of_small_sections(sections: Categorical, n_neighs: int) -> None:
    sizes = np.bincount(sections.codes, minlength=len(sections.levels))
    # A warning on reading the sections has already named those of 1 or 2 spots.
    small = [name for name, size in zip(sections.levels, sizes, strict=True) if (3 if name else 1) <= size <= n_neighs]
    if small:
        where = f"sections {_check.listing(small)} have" if small[0] else f"the object has {len(sections.codes)} spots,"
        _check.warn(f"n_neighs={n_neighs}, but {where} no more than that many spots: there, all other spots are neighbours")


def read_rings(adata: AnnData, n_rings: int, sections: Categorical | None = None, key: str = keys.SPATIAL) -> list[sp.csr_matrix]:
    """Rings 1 to ``n_rings`` of neighbours as symmetric graphs of ones without a diagonal. Nothing is written.

    The first ring is the graph of the object, whoever made it, without edges between ``sections``. Without such a graph it is
    found from the positions. The other rings are always made from the first: those in the object may be older than its graph.
    """
    first = read_neighbours(adata, key)
    if first is None:
        first = symmetric(find_neighbours(adata, sections or read_sections(adata, None)).connectivities)
        return [first, *further_rings(first, n_rings)]
    if sections is not None:
        first = within(first, sections.codes)
    first = symmetric(first)
    _warn_of_a_graph_across(adata, first, key)
    return [first, *further_rings(first, n_rings)]


def _warn_of_a_graph_across(adata: AnnData, graph: sp.csr_matrix, key: str) -> None:
    """Warn of a graph that joins two spots that cannot be in the same section."""
    try:
        coordinates = read_coordinates(adata)
    except (KeyError, TypeError, ValueError):
        return  # an object with a graph needs no positions
    _, components = connected_components(graph, directed=False)
    mixed = find_mixed_sections_by_array(adata, components) if coordinates.shape[1] == 2 else None
    mixed = mixed or find_mixed_sections(adata, components, coordinates, "position", min_share=MIN_SHARE_AT_ONE_PLACE)
    if mixed is not None:
        _check.warn(f"adata.obsp[{keys.connectivities(key)!r}] joins spots of several sections: {mixed.message}")
