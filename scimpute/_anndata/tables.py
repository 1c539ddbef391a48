"""Reads tables and embeddings from ``obsm``."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd

from .. import _check
from .read import layer_names, names_in
from .results import missing_sd


def is_table(adata: ad.AnnData, key: str) -> bool:
    """Whether a result is a table of some genes in ``obsm`` instead of a layer."""
    return key not in layer_names(adata) and key in names_in(adata, "obsm")


def table_genes(adata: ad.AnnData, key: str) -> list[str]:
    """Names of the genes in a table of imputed values."""
    return list(adata.obsm[key].columns)


def read_embedding(adata: ad.AnnData, basis: str) -> np.ndarray:
    """The first two coordinates of every cell, ``(n, 2)``; the prefix ``X_`` of ``basis`` may be missing."""
    _check.name_of("basis", basis, "an embedding in obsm")
    name = f"X_{basis}" if f"X_{basis}" in adata.obsm else basis
    if name not in adata.obsm:
        raise _check.missing("basis: obsm key", basis, [str(k).removeprefix("X_") for k in adata.obsm])
    coordinates = np.asarray(adata.obsm[name], dtype=float)
    if coordinates.ndim != 2 or coordinates.shape[1] < 2:
        raise ValueError(f"basis={basis!r}: obsm[{name!r}] has shape {coordinates.shape}, expected at least two columns")
    return coordinates[:, :2]


def read_imputed(adata: ad.AnnData, genes: Sequence[str], key: str) -> np.ndarray:
    """Imputed values of these genes ``(n, genes)``, from a table in ``obsm``."""
    if key in adata.obsm and isinstance(adata.obsm[key], pd.DataFrame):
        table = adata.obsm[key]
        for gene in genes:
            if gene not in table:
                raise _check.missing(f"gene imputed in obsm[{key!r}]:", gene, table.columns)
        return table[list(genes)].to_numpy(dtype=float)
    tables = [name for name, value in adata.obsm.items() if isinstance(value, pd.DataFrame)]
    raise missing_sd(adata, key) or _check.missing("imputed layer or obsm table", key, [*layer_names(adata), *tables])


def read_measurements(adata: ad.AnnData, key: str, argument: str) -> pd.DataFrame:
    """A table of finite numbers with named columns, such as surface proteins."""
    if key not in adata.obsm:
        raise _check.missing(f"{argument}: layer or obsm key", key, [*layer_names(adata), *adata.obsm])
    table = adata.obsm[key]
    name = f"{argument}: adata.obsm[{key!r}]"
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{name} must be a DataFrame with named columns; got {type(table).__name__}")
    values = table.to_numpy()
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name} has columns that are not numeric; drop or convert them")
    if not table.columns.is_unique:
        raise ValueError(f"{name} has several columns of the same name; rename them")
    not_finite = ~np.isfinite(values.astype(np.float64)).all(axis=0)
    if not_finite.any():
        raise ValueError(f"{name} has NaN or infinite values in {_check.listing(table.columns[not_finite])}; drop these columns")
    return table
