"""Sections (slides) of the spots: which spot is of which, and spots that cannot be of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from .. import _check
from .._space.graph import neighbours
from . import keys
from .obs import Categorical, read_label

if TYPE_CHECKING:
    from anndata import AnnData

from .positions import read_coordinates, stored_sections

_MAX_SECTIONS_BY_NUMBER = 50
MIN_SHARE_AT_ONE_PLACE = 0.05
"""Share of spots at the place of another from which chance is no explanation: cells may be at the same pixel."""
_ARRAY = "row and column of the array"
_READ_AS_ONE = ("spots would be neighbours across them", "")
_DRAWN_AS_ONE = ("they would be drawn over one another", " and the one to show as library_id")
"""What becomes of sections that are taken for one, and what is to be passed beside ``library_key``."""


def read_sections(adata: AnnData, library_key: str | None) -> Categorical:
    """The section of every spot; one for all without a key, with a warning where there is more than one image."""
    if library_key is not None:
        label = read_label(adata, library_key, "library_key")
        if label is not None:
            return label
    else:
        images = stored_sections(adata)
        if len(images) > 1:
            _check.warn(
                f"uns[{keys.SPATIAL!r}] has {len(images)} sections, {_check.listing(images)}, but without library_key all spots are "
                "taken to lie in one: some will be neighbours of spots in other sections. Pass the column of obs that tells them apart"
            )
    return one_section(adata)


def warn_of_spots_off_tissue(adata: AnnData, what: str) -> None:
    """Say so where spots are beside the tissue, and ``what`` becomes of them."""
    if keys.IN_TISSUE not in adata.obs:
        return
    values = adata.obs[keys.IN_TISSUE].astype(str)
    off = values.isin(["0", "0.0", "False", "false"])
    if off.any():
        numbers = pd.api.types.is_numeric_dtype(adata.obs[keys.IN_TISSUE].dtype)
        on = "1" if numbers or off.all() else repr(values[~off].iloc[0])
        _check.warn(
            f"{off.sum()} of {adata.n_obs} spots are not on the tissue (obs[{keys.IN_TISSUE!r}] is {values[off].iloc[0]}); "
            f"they are {what}. Drop them first: adata = adata[adata.obs[{keys.IN_TISSUE!r}] == {on}].copy()"
        )


def one_section(adata: AnnData) -> Categorical:
    """All spots in one section, which has no name."""
    return Categorical("", [""], np.zeros(adata.n_obs, dtype=np.int64))


def check_overlapping_sections(adata: AnnData) -> None:
    """Refuse several sections that would be drawn over one another; side by side, they may be drawn as one."""
    coordinates = read_coordinates(adata)
    if coordinates.shape[1] == 2:
        # By three neighbours, sections that nearly touch are not joined, and those that overlap are.
        graph, _ = neighbours(coordinates, n_neighs=3)
        check_array_places(adata, connected_components(graph, directed=False)[1], _DRAWN_AS_ONE)
        check_coordinates(adata, one_section(adata).codes, coordinates, _DRAWN_AS_ONE)


def check_array_places(adata: AnnData, sections: np.ndarray, then: Sequence[str] = _READ_AS_ONE) -> None:
    """Refuse spots of one section that are at the same place of the array: they are of several."""
    if (problem := spots_at_one_array_place(adata, sections, then)) is not None:
        raise ValueError(problem[1])


def spots_at_one_array_place(adata: AnnData, sections: np.ndarray, then: Sequence[str] = _READ_AS_ONE) -> tuple[list[str], str] | None:
    """As :func:`spots_at_one_place`, of the spots whose row and column can be read, also where these are text."""
    columns = [adata.obs.get(name) for name in (keys.ARRAY_ROW, keys.ARRAY_COL)]
    if any(column is None for column in columns):
        return None
    numbers = [column if pd.api.types.is_numeric_dtype(column.dtype) else pd.to_numeric(column.astype(str), "coerce") for column in columns]
    array = np.column_stack([column.to_numpy(dtype=np.float64, na_value=np.nan) for column in numbers])
    array[~np.isfinite(array)] = np.nan
    known = array[np.isfinite(array).all(axis=1)]
    # A column that is the same everywhere stands for none, and so do places between those of an array.
    if not len(known) or not np.ptp(known, axis=0).all() or not np.array_equal(known, np.rint(known)):
        return None
    return spots_at_one_place(adata, sections, array, _ARRAY, then)


def check_coordinates(adata: AnnData, sections: np.ndarray, coordinates: np.ndarray, then: Sequence[str] = _READ_AS_ONE) -> None:
    """The same of their positions; a warning where no column of obs shows that they are of several sections."""
    problem = spots_at_one_place(adata, sections, coordinates, "position", then, at_least=MIN_SHARE_AT_ONE_PLACE)
    if problem is not None and problem[0]:
        raise ValueError(problem[1])
    if problem is not None:
        _check.warn(problem[1])


def spots_at_one_place(
    adata: AnnData, sections: np.ndarray, places: np.ndarray, what: str, then: Sequence[str] = _READ_AS_ONE, at_least: float = 0.0
) -> tuple[list[str], str] | None:
    """The columns of obs that tell apart spots which cannot be of one section, and what is to be said; None where all can.

    Places that are NaN are not looked at. ``then`` is what would happen, and what else is to be passed.
    """
    frame = pd.DataFrame(places).dropna()
    twice = frame.assign(section=sections[frame.index]).duplicated()
    if not twice.any() or twice.mean() < at_least:
        return None
    found = _columns_that_separate(adata, frame)
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


def _columns_that_separate(adata: AnnData, places: pd.DataFrame) -> list[str]:
    """Columns of obs that could be the section, for no two spots of a level are at the same place; those of fewest levels first."""
    found = {}
    for column, values in adata.obs.items():
        if pd.api.types.is_float_dtype(values.dtype) or values.isna().any():
            continue
        codes, levels = pd.factorize(values.iloc[places.index].astype(str))
        # A column with nearly as many levels as spots, such as a number of molecules, parts any two of them.
        most = min(len(places) // 3, _MAX_SECTIONS_BY_NUMBER if pd.api.types.is_numeric_dtype(values.dtype) else len(places))
        if 1 < len(levels) <= most and not places.assign(level=codes).duplicated().any():
            found[str(column)] = len(levels)
    return sorted(found, key=lambda column: found[column])
