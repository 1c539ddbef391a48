"""Reads positions of spots: coordinates, and row and column in the printed array. Also reads stored images and image features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _check
from . import keys

if TYPE_CHECKING:
    from anndata import AnnData


_MAX_COORDINATE = 1e100
"""Largest coordinate. Squares of much larger numbers are infinite."""


def _as_array(table: Any) -> np.ndarray:
    return table.to_numpy() if isinstance(table, pd.DataFrame) else np.asarray(table)


def read_coordinates(adata: AnnData) -> np.ndarray:
    """Positions of the spots ``(n, 2)`` or ``(n, 3)`` as float64, in the unit of the object: x to the right, y downwards."""
    if keys.SPATIAL not in adata.obsm:
        raise _check.missing("positions of the spots: obsm key", keys.SPATIAL, list(adata.obsm))
    name = f"adata.obsm[{keys.SPATIAL!r}]"
    values = _as_array(adata.obsm[keys.SPATIAL])
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{name} has dtype {values.dtype}, expected numbers; convert it, e.g. with .astype(float)")
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        raise ValueError(f"{name} has shape {values.shape}, expected ({adata.n_obs}, 2) or ({adata.n_obs}, 3): x, y and perhaps z")
    not_finite = ~np.isfinite(values).all(axis=1)
    if not_finite.any():
        first = adata.obs_names[int(np.flatnonzero(not_finite)[0])]
        raise ValueError(f"{name} is NaN or infinite for {not_finite.sum()} spots (first: {first!r}); remove these spots")
    too_large = np.abs(values.astype(np.float64)).max(axis=1) > _MAX_COORDINATE
    if too_large.any():
        first = adata.obs_names[int(np.flatnonzero(too_large)[0])]
        raise ValueError(f"{name} is beyond {_MAX_COORDINATE:g} for {too_large.sum()} spots (first: {first!r}); correct or remove them")
    return values.astype(np.float64)


def read_array(adata: AnnData) -> np.ndarray | None:
    """Row and column of every spot in the printed array ``(n, 2)``; None if obs lacks these columns or they are not whole numbers."""
    columns = [adata.obs.get(name) for name in (keys.ARRAY_ROW, keys.ARRAY_COL)]
    if any(column is None or not pd.api.types.is_numeric_dtype(column.dtype) for column in columns):
        return None
    values = np.column_stack([column.to_numpy(dtype=np.float64, na_value=np.nan) for column in columns])
    return values if np.isfinite(values).all() and np.array_equal(values, np.rint(values)) else None


def stored_sections(adata: AnnData) -> dict[str, Mapping[str, Any]]:
    """Entries of ``uns["spatial"]`` by section. Some objects also store flags there; these are ignored."""
    entries = adata.uns.get(keys.SPATIAL)
    return {str(name): entry for name, entry in entries.items() if isinstance(entry, Mapping)} if isinstance(entries, Mapping) else {}


def read_features(adata: AnnData, key: str) -> np.ndarray:
    """Image features of every spot, read from obsm, float64 ``(n, q)``."""
    if key not in adata.obsm:
        raise _check.missing("tile_features: obsm key", key, list(adata.obsm))
    values = _as_array(adata.obsm[key])
    if values.ndim != 2 or values.dtype.kind not in "iufb" or not values.shape[1]:
        raise ValueError(f"adata.obsm[{key!r}] has shape {values.shape} and dtype {values.dtype}, expected numbers, one row for each spot")
    not_finite = ~np.isfinite(values.astype(np.float64)).all(axis=1)
    if not_finite.any():
        first = adata.obs_names[int(np.flatnonzero(not_finite)[0])]
        raise ValueError(f"adata.obsm[{key!r}] is NaN or infinite for {not_finite.sum()} spots (first: {first!r}); make it again")
    return values.astype(np.float64)
