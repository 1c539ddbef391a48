"""Sections (slides) of the spots: which spot is in which, and spots that cannot be in the same one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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

_MAX_NUMERIC_SECTIONS = 50
"""Most levels of a numeric column of obs that may name sections."""
MIN_SHARE_AT_ONE_PLACE = 0.05
"""Share of spots at the place of another that chance does not explain; a few cells may share a pixel."""
ARRAY_PLACE = "row and column of the array"


class Consequence(NamedTuple):
    """What happens if several sections are read as one, and what to pass beside ``library_key``; for messages."""

    text: str
    also_pass: str = ""


_NEIGHBOURS_ACROSS = Consequence("spots would be neighbours across them")
_DRAWN_ON_TOP = Consequence("they would be drawn over one another", " and the section to draw as library_id")


class MixedSections(NamedTuple):
    """Several sections that are read as one: columns of obs that tell them apart, and the message for the user."""

    columns: list[str]
    message: str


def read_sections(adata: AnnData, library_key: str | None) -> Categorical:
    """The section of every spot. Without ``library_key`` all spots are in one; a warning says so if there are several images."""
    if library_key is not None:
        label = read_label(adata, library_key, "library_key")
        if label is not None:
            return label
    else:
        images = stored_sections(adata)
        if len(images) > 1:
            _check.warn(
                f"uns[{keys.SPATIAL!r}] has {len(images)} sections, {_check.listing(images)}, but without library_key all spots are "
                "read as one section: some will be neighbours of spots in other sections. Pass the column of obs that tells them apart"
            )
    return one_section(adata)


def warn_of_spots_off_tissue(adata: AnnData, use: str) -> None:
    """Warn of spots that are not on the tissue; ``use`` says how the method uses them."""
    if keys.IN_TISSUE not in adata.obs:
        return
    values = adata.obs[keys.IN_TISSUE].astype(str)
    off = values.isin(["0", "0.0", "False", "false"])
    if off.any():
        numbers = pd.api.types.is_numeric_dtype(adata.obs[keys.IN_TISSUE].dtype)
        on = "1" if numbers or off.all() else repr(values[~off].iloc[0])
        _check.warn(
            f"{off.sum()} of {adata.n_obs} spots are not on the tissue (obs[{keys.IN_TISSUE!r}] is {values[off].iloc[0]}); "
            f"they are {use}. Drop them first: adata = adata[adata.obs[{keys.IN_TISSUE!r}] == {on}].copy()"
        )


def one_section(adata: AnnData) -> Categorical:
    """All spots in one section without a name."""
    return Categorical("", [""], np.zeros(adata.n_obs, dtype=np.int64))


def check_overlapping_sections(adata: AnnData) -> None:
    """Refuse several sections that would be drawn over one another. Sections that lie side by side may be drawn as one."""
    coordinates = read_coordinates(adata)
    if coordinates.shape[1] == 2:
        # Graphs of three neighbours do not join sections that nearly touch, and join those that overlap.
        graph, _ = neighbours(coordinates, n_neighs=3)
        check_array_places(adata, connected_components(graph, directed=False)[1], _DRAWN_ON_TOP)
        check_coordinates(adata, one_section(adata).codes, coordinates, _DRAWN_ON_TOP)


def check_array_places(adata: AnnData, sections: np.ndarray, consequence: Consequence = _NEIGHBOURS_ACROSS) -> None:
    """Refuse two spots of one section at the same place of the printed array: they are of different sections."""
    if (mixed := find_mixed_sections_by_array(adata, sections, consequence)) is not None:
        raise ValueError(mixed.message)


def check_coordinates(adata: AnnData, sections: np.ndarray, coordinates: np.ndarray, consequence: Consequence = _NEIGHBOURS_ACROSS) -> None:
    """Refuse many spots of one section with the same coordinates. Only warn if no column of obs tells several sections apart."""
    mixed = find_mixed_sections(adata, sections, coordinates, "position", consequence, min_share=MIN_SHARE_AT_ONE_PLACE)
    if mixed is not None and mixed.columns:
        raise ValueError(mixed.message)
    if mixed is not None:
        _check.warn(mixed.message)


def find_mixed_sections_by_array(
    adata: AnnData, sections: np.ndarray, consequence: Consequence = _NEIGHBOURS_ACROSS
) -> MixedSections | None:
    """As :func:`find_mixed_sections`, by row and column in the printed array; numbers that are stored as text are read too."""
    columns = [adata.obs.get(name) for name in (keys.ARRAY_ROW, keys.ARRAY_COL)]
    if any(column is None for column in columns):
        return None
    numbers = [column if pd.api.types.is_numeric_dtype(column.dtype) else pd.to_numeric(column.astype(str), "coerce") for column in columns]
    array = np.column_stack([column.to_numpy(dtype=np.float64, na_value=np.nan) for column in numbers])
    array[~np.isfinite(array)] = np.nan
    complete = array[np.isfinite(array).all(axis=1)]
    # A constant column is no array, and numbers that are not whole are no places of one.
    if not len(complete) or not np.ptp(complete, axis=0).all() or not np.array_equal(complete, np.rint(complete)):
        return None
    return find_mixed_sections(adata, sections, array, ARRAY_PLACE, consequence)


def find_mixed_sections(
    adata: AnnData,
    sections: np.ndarray,
    places: np.ndarray,
    what: str,
    consequence: Consequence = _NEIGHBOURS_ACROSS,
    min_share: float = 0.0,
) -> MixedSections | None:
    """Whether spots of one section share a place, so that they must be of several sections; None if they need not be.

    Parameters
    ----------
    sections
        Section of every spot, ``(n,)``.
    places
        Place of every spot, ``(n, d)``; spots with NaN are left out.
    what
        Name of a place in the message.
    min_share
        Smallest share of spots at the place of another.
    """
    frame = pd.DataFrame(places).dropna()
    duplicated = frame.assign(section=sections[frame.index]).duplicated()
    if not duplicated.any() or duplicated.mean() < min_share:
        return None
    columns = _columns_that_separate(adata, frame)
    problem = (
        f"{duplicated.sum()} of {adata.n_obs} spots have the same {what} as another spot of their section, which two spots of one section "
        f"cannot have: several sections are read as one, and {consequence.text}. "
    )
    if columns:
        names = f"obs[{columns[0]!r}] tells" if len(columns) == 1 else f"The columns {_check.listing(columns, 5)} of obs tell"
        remedy = f"{names} them apart: pass library_key={columns[0]!r}{consequence.also_pass}"
        return MixedSections(columns, f"{problem}{remedy}, or use one section at a time (as for tl.apply)")
    return MixedSections(
        columns,
        f"{problem}No column of obs tells them apart: add one with the section of each spot, as anndata.concat(..., label='library_id') "
        f"does, and pass it as library_key{consequence.also_pass}, or use one section at a time (as for tl.apply). "
        "Remove spots that are in the object twice",
    )


def _columns_that_separate(adata: AnnData, places: pd.DataFrame) -> list[str]:
    """Columns of obs that may name the section: no two spots of a level share a place. Columns with fewest levels come first."""
    n_levels = {}
    for column, values in adata.obs.items():
        if pd.api.types.is_float_dtype(values.dtype) or values.isna().any():
            continue
        codes, levels = pd.factorize(values.iloc[places.index].astype(str))
        # A column with nearly as many levels as spots, such as a number of molecules, separates any two of them.
        most = min(len(places) // 3, _MAX_NUMERIC_SECTIONS if pd.api.types.is_numeric_dtype(values.dtype) else len(places))
        if 1 < len(levels) <= most and not places.assign(level=codes).duplicated().any():
            n_levels[str(column)] = len(levels)
    return sorted(n_levels, key=lambda column: n_levels[column])
