"""Positions, sections and rings of neighbours: the half of the door for what lies in space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from .. import _check
from .._space import graph as _graph
from . import adata as _adata
from . import keys as _keys
from . import obs as _annotations

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

COORD_TYPES = ("grid", "generic")
N_NEIGHS = 6
"""Neighbours of a spot where nothing else is asked for."""

_ON_A_GRID = (4, 6, 8)
_MOST_SECTIONS = 50
_AT_ONE_PLACE = 0.05
"""Share of spots at the place of another from which chance is no explanation: cells may be at the same pixel."""
_ARRAY = "row and column of the array"
_NEIGHBOURS = ("spots would be neighbours across them", "")
_DRAWN = ("they would be drawn over one another", " and the one to show as library_id")
"""What becomes of sections that are taken for one, and what is to be passed beside ``library_key``."""
_FARTHEST = 1e100
"""Squares of longer distances are infinite soon."""


@dataclass(frozen=True)
class Sections:
    """Names of the sections, code of every spot's section ``(n,)``; one without a name where they are not told apart."""

    names: list[str]
    codes: np.ndarray


@dataclass(frozen=True)
class Neighbours:
    """First ring: connectivities and distances ``(n, n)``, as squidpy has them, and the lattice it was found on.

    That is ``"hexagonal"`` or ``"square"`` by the array of the spots, ``"measured"`` by their positions, or None where on no lattice.
    """

    connectivities: sp.csr_matrix
    distances: sp.csr_matrix
    lattice: str | None

    @property
    def coord_type(self) -> str:
        return "generic" if self.lattice is None else "grid"


def read_coordinates(adata: AnnData) -> np.ndarray:
    """Positions of the spots ``(n, 2)`` or ``(n, 3)`` as float64: x to the right, y downwards, in whatever unit they are in."""
    if _keys.SPATIAL not in adata.obsm:
        raise _check.missing("positions of the spots: obsm key", _keys.SPATIAL, list(adata.obsm))
    name, stored = f"adata.obsm[{_keys.SPATIAL!r}]", adata.obsm[_keys.SPATIAL]
    values = stored.to_numpy() if isinstance(stored, pd.DataFrame) else np.asarray(stored)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{name} has dtype {values.dtype}, expected numbers; convert it, e.g. with .astype(float)")
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        raise ValueError(f"{name} has shape {values.shape}, expected ({adata.n_obs}, 2) or ({adata.n_obs}, 3): x, y and perhaps z")
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        first = adata.obs_names[int(np.flatnonzero(wrong)[0])]
        raise ValueError(f"{name} is NaN or infinite for {wrong.sum()} spots (first: {first!r}); remove these spots")
    far = np.abs(values.astype(np.float64)).max(axis=1) > _FARTHEST
    if far.any():
        first = adata.obs_names[int(np.flatnonzero(far)[0])]
        raise ValueError(
            f"{name} is beyond {_FARTHEST:g} for {far.sum()} spots (first: {first!r}), which is no place; correct or remove them"
        )
    return values.astype(np.float64)


def read_array(adata: AnnData) -> np.ndarray | None:
    """Row and column of every spot in the array it was printed in ``(n, 2)``; None where obs does not say, or not in whole numbers."""
    columns = [adata.obs.get(name) for name in (_keys.ARRAY_ROW, _keys.ARRAY_COL)]
    if any(column is None or not pd.api.types.is_numeric_dtype(column.dtype) for column in columns):
        return None
    values = np.column_stack([column.to_numpy(dtype=np.float64, na_value=np.nan) for column in columns])
    return values if np.isfinite(values).all() and np.array_equal(values, np.rint(values)) else None


def stored(adata: AnnData) -> dict[str, Mapping[str, Any]]:
    """Entries of ``uns["spatial"]`` by section; some objects have flags beside them."""
    entries = adata.uns.get(_keys.SPATIAL)
    return {str(name): entry for name, entry in entries.items() if isinstance(entry, Mapping)} if isinstance(entries, Mapping) else {}


def read_sections(adata: AnnData, library_key: str | None) -> Sections:
    """The section of every spot; one for all without a key, with a warning where there is more than one image."""
    if library_key is not None:
        label = _annotations.read_label(adata, library_key, "library_key")
        if label is not None:
            return Sections(label.levels, label.codes)
    else:
        images = stored(adata)
        if len(images) > 1:
            _check.warn(
                f"uns[{_keys.SPATIAL!r}] has {len(images)} sections, {_check.listing(images)}, but without library_key all spots are "
                "taken to lie in one: some will be neighbours of spots in other sections. Pass the column of obs that tells them apart"
            )
    return one_section(adata)


def warn_of_spots_off_tissue(adata: AnnData, what: str) -> None:
    """Say so where spots are beside the tissue, and ``what`` becomes of them."""
    if _keys.IN_TISSUE not in adata.obs:
        return
    values = adata.obs[_keys.IN_TISSUE].astype(str)
    off = values.isin(["0", "0.0", "False", "false"])
    if off.any():
        numbers = pd.api.types.is_numeric_dtype(adata.obs[_keys.IN_TISSUE].dtype)
        on = "1" if numbers or off.all() else repr(values[~off].iloc[0])
        _check.warn(
            f"{off.sum()} of {adata.n_obs} spots are not on the tissue (obs[{_keys.IN_TISSUE!r}] is {values[off].iloc[0]}); "
            f"they are {what}. Drop them first: adata = adata[adata.obs[{_keys.IN_TISSUE!r}] == {on}].copy()"
        )


def one_section(adata: AnnData) -> Sections:
    """All spots in one."""
    return Sections([""], np.zeros(adata.n_obs, dtype=np.int64))


def check_drawn(adata: AnnData) -> None:
    """Refuse several sections that would be drawn over one another; side by side, they may be drawn as one."""
    coordinates = read_coordinates(adata)
    if coordinates.shape[1] == 2:
        # By three neighbours, sections that nearly touch are not joined, and those that overlap are.
        graph, _ = _graph.neighbours(coordinates, n_neighs=3)
        check_array(adata, connected_components(graph, directed=False)[1], _DRAWN)
        check_coordinates(adata, one_section(adata).codes, coordinates, _DRAWN)


def check_array(adata: AnnData, sections: np.ndarray, then: Sequence[str] = _NEIGHBOURS) -> None:
    """Refuse spots of one section that are at the same place of the array: they are of several."""
    if (problem := _one_place_of_the_array(adata, sections, then)) is not None:
        raise ValueError(problem[1])


def _one_place_of_the_array(adata: AnnData, sections: np.ndarray, then: Sequence[str] = _NEIGHBOURS) -> tuple[list[str], str] | None:
    """As :func:`_one_place`, of the spots whose row and column can be read, also where these are text."""
    columns = [adata.obs.get(name) for name in (_keys.ARRAY_ROW, _keys.ARRAY_COL)]
    if any(column is None for column in columns):
        return None
    numbers = [column if pd.api.types.is_numeric_dtype(column.dtype) else pd.to_numeric(column.astype(str), "coerce") for column in columns]
    array = np.column_stack([column.to_numpy(dtype=np.float64, na_value=np.nan) for column in numbers])
    array[~np.isfinite(array)] = np.nan
    known = array[np.isfinite(array).all(axis=1)]
    # A column that is the same everywhere stands for none, and so do places between those of an array.
    if not len(known) or not np.ptp(known, axis=0).all() or not np.array_equal(known, np.rint(known)):
        return None
    return _one_place(adata, sections, array, _ARRAY, then)


def check_coordinates(adata: AnnData, sections: np.ndarray, coordinates: np.ndarray, then: Sequence[str] = _NEIGHBOURS) -> None:
    """The same of their positions; a warning where no column of obs shows that they are of several sections."""
    problem = _one_place(adata, sections, coordinates, "position", then, at_least=_AT_ONE_PLACE)
    if problem is not None and problem[0]:
        raise ValueError(problem[1])
    if problem is not None:
        _check.warn(problem[1])


def _one_place(
    adata: AnnData, sections: np.ndarray, places: np.ndarray, what: str, then: Sequence[str] = _NEIGHBOURS, at_least: float = 0.0
) -> tuple[list[str], str] | None:
    """The columns of obs that tell apart spots which cannot be of one section, and what is to be said; None where all can.

    Places that are NaN are not looked at. ``then`` is what would happen, and what else is to be passed.
    """
    frame = pd.DataFrame(places).dropna()
    twice = frame.assign(section=sections[frame.index]).duplicated()
    if not twice.any() or twice.mean() < at_least:
        return None
    found = _parting(adata, frame)
    said = (
        f"{twice.sum()} of {adata.n_obs} spots have the same {what} as another spot of their section, which two spots of one section "
        f"cannot have: several sections are taken for one, and {then[0]}. "
    )
    if found:
        columns = f"obs[{found[0]!r}] tells" if len(found) == 1 else f"The columns {_check.listing(found, 5)} of obs tell"
        return found, f"{said}{columns} them apart: pass library_key={found[0]!r}{then[1]}, or take one section at a time (as for tl.apply)"
    return found, (
        f"{said}No column of obs tells them apart: add one with the section of each spot, as anndata.concat(..., label='library_id') does, "
        f"and pass it as library_key{then[1]}, or take one section at a time (as for tl.apply). Remove spots that are there twice"
    )


def _parting(adata: AnnData, places: pd.DataFrame) -> list[str]:
    """Columns of obs that could be the section, for no two spots of a level are at the same place; those of fewest levels first."""
    found = {}
    for column, values in adata.obs.items():
        if pd.api.types.is_float_dtype(values.dtype) or values.isna().any():
            continue
        codes, levels = pd.factorize(values.iloc[places.index].astype(str))
        # A column with nearly as many levels as spots, such as a number of molecules, parts any two of them.
        most = min(len(places) // 3, _MOST_SECTIONS if pd.api.types.is_numeric_dtype(values.dtype) else len(places))
        if 1 < len(levels) <= most and not places.assign(level=codes).duplicated().any():
            found[str(column)] = len(levels)
    return sorted(found, key=lambda column: found[column])


def find_neighbours(adata: AnnData, sections: Sections, n_neighs: int = N_NEIGHS, coord_type: str | None = None) -> Neighbours:
    """The first ring of neighbours, by where the spots are."""
    coordinates, array = read_coordinates(adata), read_array(adata)
    if coord_type is None:
        coord_type = "grid" if _is_grid(adata, coordinates, array, sections) else "generic"
    if coord_type == "generic":
        check_coordinates(adata, sections.codes, coordinates)
        _warn_of_small_sections(sections, n_neighs)
        return _by_position(adata, Neighbours(*_graph.neighbours(coordinates, sections.codes, n_neighs=n_neighs), None), coordinates)
    if coordinates.shape[1] == 3:
        raise ValueError("coord_type='grid' is for positions in two dimensions, adata.obsm['spatial'] has 3; pass coord_type='generic'")
    if n_neighs not in _ON_A_GRID:
        raise ValueError(
            f"n_neighs={n_neighs}, but on a grid a spot has 4 or 8 neighbours (square) or 6 (hexagonal); these spots are on a grid. "
            f"Pass coord_type='generic' for the {n_neighs} nearest spots"
        )
    if array is None:
        check_coordinates(adata, sections.codes, coordinates)
        found = _graph.neighbours(coordinates, sections.codes, n_neighs=n_neighs, lattice="square")
        return _by_position(adata, Neighbours(*found, "measured"), coordinates)
    if (problem := _one_place(adata, sections.codes, array, _ARRAY)) is not None:
        raise ValueError(problem[1])
    lattice = "hexagonal" if _is_hexagonal(array) else "square"
    if lattice == "hexagonal" and n_neighs != 6:
        raise ValueError(
            f"n_neighs={n_neighs}, but by obs['array_row'] and obs['array_col'] the spots are on Visium's hexagonal grid, where a "
            f"spot has 6 neighbours; pass n_neighs=6, or coord_type='generic' for the {n_neighs} nearest spots"
        )
    return Neighbours(*_graph.neighbours(array, sections.codes, n_neighs=n_neighs, lattice=lattice, spacing=1.0), lattice)


def _by_position(adata: AnnData, found: Neighbours, coordinates: np.ndarray) -> Neighbours:
    """The neighbours, where none are of two sections by the array. Sections far from one another are told apart by that, or by depth."""
    if coordinates.shape[1] == 2:
        check_array(adata, connected_components(found.connectivities, directed=False)[1])
    return found


def _is_grid(adata: AnnData, coordinates: np.ndarray, array: np.ndarray | None, sections: Sections) -> bool:
    if coordinates.shape[1] == 3:
        return False
    return array is not None or (_keys.SPATIAL in adata.uns and _graph.is_regular(coordinates, sections.codes))


def _is_hexagonal(array: np.ndarray) -> bool:
    """Whether every other column is empty, in odd rows the others than in even ones, as in Visium's array."""
    rows, both = array[:, 0] % 2, array.sum(axis=1) % 2
    return bool(np.ptp(rows) == 1 and np.ptp(both) == 0)


def _warn_of_small_sections(sections: Sections, n_neighs: int) -> None:
    sizes = np.bincount(sections.codes, minlength=len(sections.names))
    # Sections of 1 or 2 spots were named when they were read.
    small = [name for name, size in zip(sections.names, sizes, strict=True) if (3 if name else 1) <= size <= n_neighs]
    if small:
        where = f"sections {_check.listing(small)} have" if small[0] else f"the object has {len(sections.codes)} spots,"
        _check.warn(f"n_neighs={n_neighs}, but {where} no more than that many spots: there, each has all others for neighbours")


def read_features(adata: AnnData, key: str) -> np.ndarray:
    """Features of every spot in obsm, as they are: float64 ``(n, q)``."""
    if key not in adata.obsm:
        raise _check.missing("tile_features: obsm key", key, list(adata.obsm))
    stored = adata.obsm[key]
    values = stored.to_numpy() if isinstance(stored, pd.DataFrame) else np.asarray(stored)
    if values.ndim != 2 or values.dtype.kind not in "iufb" or not values.shape[1]:
        raise ValueError(f"adata.obsm[{key!r}] has shape {values.shape} and dtype {values.dtype}, expected numbers, a row for each spot")
    wrong = ~np.isfinite(values.astype(np.float64)).all(axis=1)
    if wrong.any():
        first = adata.obs_names[int(np.flatnonzero(wrong)[0])]
        raise ValueError(f"adata.obsm[{key!r}] is NaN or infinite for {wrong.sum()} spots (first: {first!r}); make it again")
    return values.astype(np.float64)


def read_rings(adata: AnnData, n_rings: int, sections: Sections | None = None, key: str = _keys.SPATIAL) -> list[sp.csr_matrix]:
    """Rings 1 to ``n_rings`` of neighbours as symmetric graphs of ones without a diagonal; written is nothing.

    The first is the object's graph, whoever made it, without edges between ``sections`` where they are given, or else
    is found from the positions. The others always belong to it as it is now: what the object has of them may be older.
    """
    first = _adata.read_neighbours(adata, key)
    if first is None:
        first = _graph.symmetric(find_neighbours(adata, sections or read_sections(adata, None)).connectivities)
        return [first, *_graph.further_rings(first, n_rings)]
    if sections is not None:
        first = _graph.within(first, sections.codes)
    first = _graph.symmetric(first)
    _warn_of_a_graph_across(adata, first, key)
    return [first, *_graph.further_rings(first, n_rings)]


def _warn_of_a_graph_across(adata: AnnData, graph: sp.csr_matrix, key: str) -> None:
    """Say so where a graph leads from a spot to another that cannot be of the same section."""
    try:
        coordinates = read_coordinates(adata)
    except (KeyError, TypeError, ValueError):
        return  # a graph that is there needs no positions
    _, joined = connected_components(graph, directed=False)
    problem = _one_place_of_the_array(adata, joined) if coordinates.shape[1] == 2 else None
    problem = problem or _one_place(adata, joined, coordinates, "position", at_least=_AT_ONE_PLACE)
    if problem is not None:
        _check.warn(f"adata.obsp[{_keys.connectivities(key)!r}] joins spots of several sections: {problem[1]}")
