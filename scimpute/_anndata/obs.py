"""Labels, covariates, library sizes and genes, read from obs and var: the other half of the door."""

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
from .rounding import HIGHEST

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData


_FLOAT_LEVELS = 50


@dataclass(frozen=True)
class Label:
    """A categorical column of obs: level names in order of appearance, level codes ``(n,)``."""

    column: str
    levels: list[str]
    codes: np.ndarray


def read_column(frame: pd.DataFrame, column: Any, argument: str, slot: str = "obs") -> pd.Series:
    """The column of this name, of which there must be one."""
    _check.name_of(argument, column, f"a column of {slot}")
    if column not in frame:
        raise _check.missing(f"{argument}: {slot} column", column, frame.columns)
    values = frame[column]
    if isinstance(values, pd.DataFrame):
        raise ValueError(f"{argument}={column!r}: {slot} has {values.shape[1]} columns of this name; rename or drop all but one")
    return values


def _label_values(adata: AnnData, column: str, argument: str) -> pd.Series:
    """A column of obs in which every cell has a value."""
    values = read_column(adata.obs, column, argument)
    empty = values.isna().to_numpy()
    if empty.any():
        first = adata.obs_names[int(np.flatnonzero(empty)[0])]
        raise ValueError(
            f"{argument}={column!r} is missing in {empty.sum()} cells (first: {first!r}); fill them, e.g. with 'unknown', or drop the cells"
        )
    return values


def read_codes(adata: AnnData, column: str, argument: str, levels: Sequence[str]) -> np.ndarray:
    """Place among ``levels``, by name, of every cell's value in a column of obs; -1 for a value that is none of them."""
    names = np.asarray(_label_values(adata, column, argument).astype(str), dtype=object)
    return pd.Index(levels, dtype=object).get_indexer(names).astype(np.int64)


def read_label(adata: AnnData, column: str, argument: str) -> Label | None:
    """A categorical column of obs, or None where all cells have the same level."""
    values = _label_values(adata, column, argument)
    if pd.api.types.is_float_dtype(values.dtype) and values.nunique() > _FLOAT_LEVELS:
        raise ValueError(f"{argument}={column!r} looks continuous ({values.nunique()} different numbers); a categorical column is needed")
    # Levels in order of appearance: the result depends on the grouping, not on how the levels are called or stored.
    codes, names = pd.factorize(np.asarray(values.astype(str), dtype=object))
    _check.storable(f"{argument}={column!r}: level", names)
    if len(names) == 1:
        logg.info(f"{argument}={column!r} has one level only ({names[0]!r}); it is left out")
        return None
    few = [str(n) for n, size in zip(names, np.bincount(codes), strict=True) if size <= 2]
    if few:
        _check.warn(f"{argument}={column!r}: {_check.listing(few)} have 1 or 2 cells each; little can be learnt of them")
    return Label(column, [str(n) for n in names], codes.astype(np.int64))


def _as_numbers(values: pd.Series) -> np.ndarray:
    """Floats; NaN for what is no real number, nor text that is one, such as dates."""
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
    """Library size of every cell: row sums, or a column of obs where the object was cut to some of its genes.

    Sums of ``rounding`` may be above a size that was found before it.
    """
    totals = row_sums(counts)
    if size_key is None:
        return totals
    stored = read_column(adata.obs, size_key, "size_key")
    size = _as_numbers(stored)
    wrong = ~(np.isfinite(size) & (size > 0))
    if wrong.any():
        first = adata.obs_names[int(np.flatnonzero(wrong)[0])]
        raise ValueError(f"size_key={size_key!r} is not a positive number in {wrong.sum()} cells (first: {first!r})")
    high = np.flatnonzero(size > HIGHEST)
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
            f"(first: {adata.obs_names[i]!r}, {size[i]:g} < {totals[i]:g}); give the size over all genes"
        )
    return np.maximum(size, totals)


def read_genes(adata: AnnData, genes: str | Sequence[str] | None) -> np.ndarray | None:
    """Positions of the genes asked for: a boolean column of var, or names."""
    if genes is None:
        return None
    if isinstance(genes, str):
        column = read_column(adata.var, genes, "genes", "var")
        if not pd.api.types.is_bool_dtype(column.dtype) or column.isna().any():
            raise ValueError(f"genes={genes!r}: the var column is of dtype {column.dtype}, a boolean one is needed")
        places = np.flatnonzero(column.to_numpy(dtype=bool))
        if not places.size:
            raise ValueError(f"genes={genes!r}: the var column selects no gene")
        if not adata.var_names[places].is_unique:
            raise ValueError(
                f"genes={genes!r}: these genes become columns, and their names are not unique; call adata.var_names_make_unique() first"
            )
        return places
    if not isinstance(genes, Iterable) or isinstance(genes, bytes) or (isinstance(genes, np.ndarray) and genes.ndim != 1):
        raise TypeError(f"genes must be gene names, a boolean column of var, or None for all genes; got {genes!r}")
    genes = list(genes)
    if genes and all(isinstance(gene, bool | np.bool_) for gene in genes):
        raise TypeError("genes is a mask of True and False; pass names, adata.var_names[mask], or the name of a boolean column of var")
    wanted = [str(g) for g in genes]
    if not wanted:
        raise ValueError("genes is empty; give gene names, a boolean column of var, or None for all genes")
    if not adata.var_names.is_unique:
        raise ValueError("genes was given but adata.var_names are not unique; call adata.var_names_make_unique() first")
    repeated = sorted(name for name, times in Counter(wanted).items() if times > 1)
    if repeated:
        raise ValueError(f"genes names some genes more than once: {_check.listing(repeated, 5)}")
    places = adata.var_names.get_indexer(wanted)
    unknown = [g for g, p in zip(wanted, places, strict=True) if p < 0]
    if unknown:
        close = _check.closest(unknown[0], adata.var_names)
        hint = f"; did you mean {close!r}?" if close else ""
        raise KeyError(f"{len(unknown)} of {len(wanted)} genes not found in adata.var_names: {_check.listing(unknown, 5)}{hint}")
    return places


def check_columns(adata: AnnData, names: Sequence[str] | pd.Index) -> None:
    """Refuse names of genes that cannot be those of columns, in a file, of a table with a row for each cell."""
    names = list(map(str, names))
    wrong = [name for name in names if not name or name.startswith("/") or _check.has_own_meaning(name)]
    if wrong:
        raise ValueError(f"genes become columns of a table, and {_check.listing(wrong)} have a meaning of their own in files; rename them")
    if adata.obs_names.name in names:
        raise ValueError(
            f"genes become columns of a table, in which {adata.obs_names.name!r} is what the names of the cells are called; "
            "set adata.obs_names.name = None first"
        )
    parts = [name for name in names if "/" in name]
    if set(names) & {name.rpartition("/")[0] for name in parts}:
        raise ValueError(f"genes become columns of a table, and {_check.listing(parts)} would be parts of others in files; rename them")
    if parts:
        _check.warn(
            f"{_check.listing(parts)} become columns of a table with a '/' in their names, which zarr and anndata 0.13 do not write: "
            "rename the genes, or the columns before you write a file"
        )


@dataclass(frozen=True)
class Covariates:
    """Level names by categorical column, names of the continuous columns, and their values for every sample.

    ``codes`` ``(n, a)`` has -1 for an unknown level, ``numbers`` is ``(n, c)``.
    """

    levels: dict[str, list[str]]
    continuous: list[str]
    codes: np.ndarray
    numbers: np.ndarray

    def describe(self) -> dict[str, Any]:
        return {"categorical": self.levels, "continuous": self.continuous}


def column_names(argument: str, columns: Any) -> list[str]:
    """Names of obs columns: one, or several."""
    if isinstance(columns, str):
        columns = [columns]
    if not isinstance(columns, Sequence) or not all(isinstance(column, str) for column in columns):
        raise TypeError(f"{argument} must be the name of an obs column or several, got {columns!r}")
    for column in columns:
        # Of a model that is applied they become keys.
        _check.key_name(f"{argument}: column", column)
    twice = sorted({column for column in columns if list(columns).count(column) > 1})
    if twice:
        raise ValueError(f"{argument} names {_check.listing(twice)} more than once")
    return list(columns)


def read_covariates(adata: AnnData, categorical: Any, continuous: Any) -> Covariates:
    """Covariates of samples to be trained on; a column with one value only is left out with an info line."""
    found = [column_names("categorical_covariates", categorical), column_names("continuous_covariates", continuous)]
    both = sorted(set(found[0]) & set(found[1]))
    if both:
        raise ValueError(f"{_check.listing(both)} named in both categorical_covariates and continuous_covariates; choose one")
    found_labels = [read_label(adata, column, "categorical_covariates") for column in found[0]]
    labels = [label for label in found_labels if label is not None]
    numbers, kept = [], []
    for column in found[1]:
        values = _numbers(adata, column)
        if np.ptp(values) == 0:
            logg.info(f"continuous_covariates={column!r} is {values[0]:g} in all samples; it is left out")
            continue
        numbers.append(values)
        kept.append(column)
    return _joined({label.column: label.levels for label in labels}, kept, [label.codes for label in labels], numbers, adata.n_obs)


def read_known_covariates(adata: AnnData, known: Mapping[str, Any], unseen: str) -> Covariates:
    """Covariates of new samples, by the names and levels of a trained model.

    A level the model has not seen is refused, or with ``unseen="average"`` taken as unknown.
    """
    codes = []
    for column, levels in known["categorical"].items():
        values = read_column(adata.obs, column, "the model's covariate")
        if values.isna().any() and unseen == "error":
            first = adata.obs_names[int(np.flatnonzero(values.isna().to_numpy())[0])]
            raise ValueError(
                f"covariate {column!r} is missing in {values.isna().sum()} samples (first: {first!r}); fill it, or pass unseen='average'"
            )
        code = pd.Index(levels).get_indexer(np.asarray(values.astype(str), dtype=object))
        if unseen == "error" and (code < 0).any():
            new = sorted(set(values.astype(str)[code < 0]))
            raise ValueError(
                f"covariate {column!r} has levels the model was not trained on: {_check.listing(new)}; known: {_check.listing(levels)}. "
                "Pass unseen='average' to take them as unknown"
            )
        codes.append(code.astype(np.int64))
    numbers = [_numbers(adata, column, known=True) for column in known["continuous"]]
    return _joined(dict(known["categorical"]), list(known["continuous"]), codes, numbers, adata.n_obs)


def _numbers(adata: AnnData, column: str, *, known: bool = False) -> np.ndarray:
    """A continuous covariate; with ``known`` it is a trained model's, and cannot become a categorical one."""
    given = read_column(adata.obs, column, "the model's covariate" if known else "continuous_covariates")
    name = f"covariate {column!r}" if known else f"continuous_covariates={column!r}"
    instead = "make numbers of it, as in the training" if known else f"pass it as categorical_covariates={column!r}, or make numbers of it"
    values = _as_numbers(given)
    wrong = ~np.isfinite(values)
    text = np.isnan(values) & given.notna().to_numpy()
    if text.any():
        kinds = given[text].astype(str).unique()
        what = "text that is no number" if any(isinstance(value, str) for value in given) else "values that are no numbers"
        raise ValueError(f"{name} holds {what} in {text.sum()} samples: {_check.listing(kinds, 5)}; {instead}")
    if wrong.any():
        first = adata.obs_names[int(np.flatnonzero(wrong)[0])]
        raise ValueError(
            f"{name} is missing or not a finite number in {wrong.sum()} samples (first: {first!r}); "
            "fill it, e.g. with the median, or drop the samples"
        )
    return values


def _joined(
    levels: dict[str, list[str]], continuous: list[str], codes: list[np.ndarray], numbers: list[np.ndarray], n_obs: int
) -> Covariates:
    return Covariates(
        levels,
        continuous,
        np.column_stack(codes) if codes else np.zeros((n_obs, 0), np.int64),
        np.column_stack(numbers) if numbers else np.zeros((n_obs, 0)),
    )
