"""Labels, library sizes and genes, read from ``obs`` and ``var``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from .. import _check
from .._sparse import row_sums
from .rounding import MAX_COUNT

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

_MAX_FLOAT_LEVELS = 50
"""Most different numbers in a column of floats that can be a categorical one."""


@dataclass(frozen=True)
class Categorical:
    """A categorical column of ``obs``.

    Attributes
    ----------
    column
        Name of the column; empty if all cells have one level.
    levels
        Names of the levels.
    codes
        Index in ``levels`` of the level of every cell, ``(n,)``; -1 for a cell without a level.
    """

    column: str
    levels: list[str]
    codes: np.ndarray


def read_column(frame: pd.DataFrame, column: Any, argument: str, slot: str = "obs") -> pd.Series:
    """A column of ``obs`` or ``var``. Refused if there is none of this name, or more than one."""
    _check.name_of(argument, column, f"a column of {slot}")
    if column not in frame:
        raise _check.missing(f"{argument}: {slot} column", column, frame.columns)
    values = frame[column]
    if isinstance(values, pd.DataFrame):
        raise ValueError(f"{argument}={column!r}: {slot} has {values.shape[1]} columns of this name; rename or drop all but one")
    return values


def _label_values(adata: AnnData, column: str, argument: str) -> pd.Series:
    """A column of obs, refused if a cell has no value in it."""
    values = read_column(adata.obs, column, argument)
    empty = values.isna().to_numpy()
    if empty.any():
        first = adata.obs_names[int(np.flatnonzero(empty)[0])]
        raise ValueError(
            f"{argument}={column!r} is missing in {empty.sum()} cells (first: {first!r}); fill them, e.g. with 'unknown', or drop the cells"
        )
    return values


def read_codes(adata: AnnData, column: str, argument: str, levels: Sequence[str]) -> np.ndarray:
    """Index in ``levels`` of the value of every cell in a column of obs; -1 for a value that is not in ``levels``."""
    names = np.asarray(_label_values(adata, column, argument).astype(str), dtype=object)
    return pd.Index(levels, dtype=object).get_indexer(names).astype(np.int64)


def read_names(adata: AnnData, column: str, argument: str) -> np.ndarray:
    """A column of obs as text, ``(n,)``."""
    return np.asarray(read_column(adata.obs, column, argument).astype(str), dtype=object)


def _check_categorical(values: pd.Series, column: str, argument: str) -> None:
    if pd.api.types.is_float_dtype(values.dtype) and values.nunique() > _MAX_FLOAT_LEVELS:
        raise ValueError(f"{argument}={column!r} looks continuous ({values.nunique()} different numbers); a categorical column is needed")


def read_label(adata: AnnData, column: str, argument: str) -> Categorical | None:
    """A column of obs in which every cell has a level; None if all cells have the same level."""
    values = _label_values(adata, column, argument)
    _check_categorical(values, column, argument)
    # Levels in order of appearance: the result must depend on the grouping only, not on names or their order.
    codes, names = pd.factorize(np.asarray(values.astype(str), dtype=object))
    _check.storable(f"{argument}={column!r}: level", names)
    if len(names) == 1:
        logg.info(f"{argument}={column!r} has one level only ({names[0]!r}); it is left out")
        return None
    few = [str(n) for n, size in zip(names, np.bincount(codes), strict=True) if size <= 2]
    if few:
        _check.warn(f"{argument}={column!r}: {_check.listing(few)} have 1 or 2 cells each; little can be learnt from them")
    return Categorical(column, [str(n) for n in names], codes.astype(np.int64))


def read_annotation(adata: AnnData, column: str, unlabelled: str | Sequence[str], argument: str = "labels") -> Categorical:
    """A column of obs, levels sorted by name. Cells may have no level; the names in ``unlabelled`` count as no level."""
    values = read_column(adata.obs, column, argument)
    _check_categorical(values, column, argument)
    names = np.array(values.astype(str), dtype=object)
    no_level = [unlabelled] if isinstance(unlabelled, str) else [str(level) for level in unlabelled]
    unknown = sorted(set(no_level) - set(names))
    if unknown:
        raise ValueError(
            f"unlabelled: {_check.listing(unknown)} are not in {argument}={column!r}; its levels: {_check.listing(set(names))}"
        )
    names[values.isna().to_numpy() | np.isin(names, no_level)] = None
    codes, levels = pd.factorize(names, sort=True)
    if len(levels) < 2:
        raise ValueError(f"{argument}={column!r} has {len(levels)} level(s) beside missing ones; at least 2 are needed to compare with")
    return Categorical(column, [str(level) for level in levels], codes)


def as_numbers(values: pd.Series) -> np.ndarray:
    """Values as floats. Text with a number in it is read; anything else, such as dates, becomes NaN."""
    dtype = values.cat.categories.dtype if isinstance(values.dtype, pd.CategoricalDtype) else values.dtype
    if dtype.kind in "mMc":
        return np.full(len(values), np.nan)
    if dtype.kind == "O":
        values = values.astype(object)
        values = values.where(values.map(lambda value: isinstance(value, str | Real | Decimal) and not _is_beyond_floats(value)))
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _is_beyond_floats(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > sys.float_info.max


def read_size(adata: AnnData, size_key: str | None, counts: sp.csr_matrix, rounding: str | None = None) -> np.ndarray:
    """Library size of every cell, ``(n,)``: row sums, or the column ``size_key`` of obs if the object has only some of the genes.

    With ``rounding``, row sums may exceed library sizes by half a molecule for each entry.
    """
    totals = row_sums(counts)
    if size_key is None:
        return totals
    stored = read_column(adata.obs, size_key, "size_key")
    size = as_numbers(stored)
    wrong = ~(np.isfinite(size) & (size > 0))
    if wrong.any():
        first = adata.obs_names[int(np.flatnonzero(wrong)[0])]
        raise ValueError(f"size_key={size_key!r} is not a positive number in {wrong.sum()} cells (first: {first!r})")
    high = np.flatnonzero(size > MAX_COUNT)
    if high.size:
        raise ValueError(
            f"size_key={size_key!r} is above 2^53, which is no number of molecules, in {high.size} cells "
            f"(first: {adata.obs_names[high[0]]!r}, {size[high[0]]:g})"
        )
    short = size < totals * (1 - 1e-4) - 1 - (0.5 * np.diff(counts.indptr) if rounding is not None else 0)
    if short.any():
        i = int(np.flatnonzero(short)[0])
        raise ValueError(
            f"size_key={size_key!r} is below the cell's own number of molecules in {short.sum()} cells "
            f"(first: {adata.obs_names[i]!r}, {size[i]:g} < {totals[i]:g}); pass library sizes over all genes"
        )
    return np.maximum(size, totals)


def read_genes(adata: AnnData, genes: str | Sequence[str] | None) -> np.ndarray | None:
    """Indices of the genes to impute, ``(k,)``; ``genes`` is a boolean column of var, or names. None for None."""
    if genes is None:
        return None
    if isinstance(genes, str):
        mask = read_column(adata.var, genes, "genes", "var")
        if not pd.api.types.is_bool_dtype(mask.dtype) or mask.isna().any():
            raise ValueError(f"genes={genes!r}: the var column is of dtype {mask.dtype}, a boolean one is needed")
        indices = np.flatnonzero(mask.to_numpy(dtype=bool))
        if not indices.size:
            raise ValueError(f"genes={genes!r}: the var column selects no gene")
        if not adata.var_names[indices].is_unique:
            raise ValueError(
                f"genes={genes!r}: these genes become columns, and their names are not unique; call adata.var_names_make_unique() first"
            )
        return indices
    if not isinstance(genes, Iterable) or isinstance(genes, bytes) or (isinstance(genes, np.ndarray) and genes.ndim != 1):
        raise TypeError(f"genes must be gene names, a boolean column of var, or None for all genes; got {genes!r}")
    genes = list(genes)
    if genes and all(isinstance(gene, bool | np.bool_) for gene in genes):
        raise TypeError("genes is a mask of True and False; pass names, adata.var_names[mask], or the name of a boolean column of var")
    wanted = [str(g) for g in genes]
    if not wanted:
        raise ValueError("genes is empty; pass gene names, a boolean column of var, or None for all genes")
    if not adata.var_names.is_unique:
        raise ValueError("genes are selected by name, but adata.var_names are not unique; call adata.var_names_make_unique() first")
    repeated = sorted(name for name, times in Counter(wanted).items() if times > 1)
    if repeated:
        raise ValueError(f"genes names some genes more than once: {_check.listing(repeated, 5)}")
    indices = adata.var_names.get_indexer(wanted)
    unknown = [g for g, index in zip(wanted, indices, strict=True) if index < 0]
    if unknown:
        close = _check.closest(unknown[0], adata.var_names)
        hint = f"; did you mean {close!r}?" if close else ""
        raise KeyError(f"{len(unknown)} of {len(wanted)} genes not found in adata.var_names: {_check.listing(unknown, 5)}{hint}")
    return indices


def check_columns(adata: AnnData, names: Sequence[str] | pd.Index) -> None:
    """Refuse gene names that cannot become columns of an obsm table in a file."""
    names = list(map(str, names))
    wrong = [name for name in names if not name or name.startswith("/") or _check.has_own_meaning(name)]
    if wrong:
        raise ValueError(f"genes become columns of a table, and {_check.listing(wrong)} have a meaning of their own in files; rename them")
    if adata.obs_names.name in names:
        raise ValueError(
            f"genes become columns of a table, and {adata.obs_names.name!r} is the name of its index, adata.obs_names; "
            "set adata.obs_names.name = None first"
        )
    nested = [name for name in names if "/" in name]
    if set(names) & {name.rpartition("/")[0] for name in nested}:
        raise ValueError(
            f"genes become columns of a table, and {_check.listing(nested)} would lie inside the entry of another gene in files; "
            "rename them"
        )
    if nested:
        _check.warn(
            f"{_check.listing(nested)} become columns of a table with a '/' in their names, which zarr and anndata 0.13 do not write: "
            "rename the genes, or the columns before you write a file"
        )


def read_labels_as_trained(adata: AnnData, labels: Mapping[str, tuple[str, list[str]]], unseen: str) -> tuple[np.ndarray, ...]:
    """Level codes of each label of a model, -1 for an unknown level. ``labels`` maps each argument to its column and levels."""
    columns = [column for column, _ in labels.values()]
    absent = [column for column in columns if column not in adata.obs]
    if absent:
        raise KeyError(
            f"the model is conditioned on the obs columns {_check.listing(columns)}, adata.obs lacks {_check.listing(absent)}; "
            f"available: {_check.listing(adata.obs.columns)}"
        )
    all_codes = []
    for argument, (column, levels) in labels.items():
        codes = read_codes(adata, column, argument, levels)
        unknown = codes < 0
        if unknown.any() and unseen == "error":
            names = adata.obs[column][unknown].astype(str).unique()
            raise ValueError(
                f"{argument}={column!r}: {unknown.sum()} cells have levels that the model does not know: {_check.listing(names, 5)}; "
                f"known: {_check.listing(levels)}. Rename them, or pass unseen='average'"
            )
        all_codes.append(codes)
    return tuple(all_codes)


def read_size_as_trained(
    adata: AnnData, size_key: str | None, raw: sp.csr_matrix, counts: sp.csr_matrix, rounding: str | None
) -> tuple[np.ndarray, str | None]:
    """Library sizes of cells for a model that was trained with ``size_key``, and the column they are from; None for row sums.

    ``raw`` are the counts of the object, ``counts`` those of the genes of the model.
    """
    if size_key is None:
        # Rates are shares of the molecules of the model's genes.
        return read_size(adata, None, counts), None
    if size_key in adata.obs:
        return read_size(adata, size_key, raw, rounding), size_key
    _check.warn(
        f"the model was trained with size_key={size_key!r}, which adata.obs does not have; library sizes are sums over the "
        f"{adata.n_vars} genes of adata. They are too small if adata has only some of the genes"
    )
    return read_size(adata, None, raw), None
