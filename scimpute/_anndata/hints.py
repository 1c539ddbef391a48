"""Warns of objects that are probably not what the user means: subsets of the genes, genes in rows, control probes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import _check
from . import keys
from .read import is_raw
from .results import written_by

if TYPE_CHECKING:
    from anndata import AnnData


_TOTALS = ("total_counts", "n_counts", "nCount_RNA", "nCount_Spatial", "nCount_SCT", "n_umis", "nUMI", "total_umis", "transcript_counts")
"""Columns of obs in which scanpy, Seurat and others store the number of molecules of a cell."""
_MIN_RATIO = 1.5
"""Smallest ratio of stored to present molecules, or genes, that the usual filtering of genes does not explain."""
_BARCODE = re.compile(r"(^|[^A-Za-z])[ACGT]{10,}($|[^A-Za-z])")
_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{8,}")
_COMMON = frozenset(
    {"ACTB", "GAPDH", "MALAT1", "B2M", "TMSB4X", "EEF1A1", "RPLP0", "RPL13", "RPS18", "FTL", "FTH1", "VIM", "MT-CO1", "MT-ND1"}
    | {"CD3E", "CD3D", "CD8A", "CD4", "CD14", "CD19", "MS4A1", "NKG7", "LYZ", "EPCAM", "PTPRC", "COL1A1", "PECAM1", "GFAP", "XIST"}
)
"""Common genes, in capitals. Every panel has some of them."""
# Names of control probes by 10x Genomics, NanoString and Vizgen. The pattern matches the part before the number.
_CONTROL = re.compile(
    r"^(NegControlProbe|NegControlCodeword|NegPrb|Negative|SystemControl|FalseCode|BLANK|Blank|UnassignedCodeword|DeprecatedCodeword|"
    r"GenomicControlProbe|IntergenicProbe|Intergenic_Region)(?=[_\- ]?\d|_)[_\-]?|^antisense_"
)
_CONTROL_TYPE = re.compile(r"control|codeword|blank", re.IGNORECASE)


def warn_of_hints(adata: AnnData, size: np.ndarray, layer: str | None, size_key: str | None) -> None:
    """Warn at most once of each kind.

    ``size`` has the library sizes, ``(n,)``. Without ``size_key`` they are sums over the genes of the object.
    """
    if size_key is None:
        _warn_of_cut_genes(adata, size, layer)
    warn_of_genes_in_rows(adata)
    _warn_of_controls(adata)


def _warn_of_cut_genes(adata: AnnData, sums: np.ndarray, layer: str | None) -> None:
    # Library sizes over all molecules would reveal the molecules that pp.thin or pp.hide took out.
    for key in adata.uns:
        part_layers: dict[str | None, list[str]] = {"thin": [keys.train(key), keys.test(key)], "hide": [key]}
        if layer in part_layers.get(written_by(adata, key), []):
            return
    for column in _TOTALS:
        values = adata.obs.get(column)
        if not isinstance(values, pd.Series) or not pd.api.types.is_numeric_dtype(values.dtype):
            continue
        totals = values.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(totals).all() and totals.sum() > _MIN_RATIO * sums.sum() and np.mean(totals >= sums - 1) > 0.99:
            _check.warn(
                f"adata.obs[{column!r}] adds up to {totals.sum() / sums.sum():.1f} times the molecules of these {adata.n_vars} genes: "
                f"the object seems to have a subset of its genes, so library sizes are too small. Pass size_key={column!r}"
            )
            return
    if is_raw(adata, layer) and adata.raw.n_vars > _MIN_RATIO * adata.n_vars:
        _check.warn(
            f"adata.raw has {adata.raw.n_vars} genes, but library sizes are sums over the {adata.n_vars} genes of adata. "
            "Write sums over all genes, e.g. adata.obs['total_counts'] = adata.raw.X.sum(axis=1), and pass size_key='total_counts'"
        )


def _share(pattern: re.Pattern[str], names: pd.Index) -> float:
    first_names = [str(name) for name in names[:1000]]
    return float(np.mean([pattern.search(name) is not None for name in first_names]))


def _n_common(names: Iterable[str]) -> int:
    return len({str(name).upper() for name in names} & _COMMON)


def warn_of_genes_in_rows(adata: AnnData) -> None:
    by_barcode = _share(_BARCODE, adata.var_names) > 0.5 and _share(_BARCODE, adata.obs_names) < 0.5
    by_number = _share(_ENSEMBL, adata.obs_names) > 0.5 and _share(_ENSEMBL, adata.var_names) < 0.5
    by_name = _n_common(adata.obs_names) >= 3 and _n_common(adata.var_names) == 0
    if by_barcode or by_number or by_name:
        _check.warn(
            f"genes seem to be in rows and cells in columns: obs_names are {_check.listing(adata.obs_names, 3)}, var_names "
            f"{_check.listing(adata.var_names, 3)}. Pass adata.T.copy()"
        )


def _warn_of_controls(adata: AnnData) -> None:
    types = adata.var.get("feature_types")
    if isinstance(types, pd.Series):
        types = types.astype(str)
        is_control_type = types.str.contains(_CONTROL_TYPE).to_numpy(dtype=bool)
        if is_control_type.any() and (types == "Gene Expression").any():
            _warn_of_probes(adata, is_control_type, "adata.var['feature_types'] == 'Gene Expression'")
            return
    matches = [_CONTROL.match(str(name)) for name in adata.var_names]
    is_control = np.array([match is not None for match in matches])
    if is_control.any() and not is_control.all():
        prefixes = sorted({match.group() for match in matches if match is not None})
        _warn_of_probes(adata, is_control, f"~adata.var_names.str.startswith({tuple(prefixes)!r})")


def _warn_of_probes(adata: AnnData, is_control: np.ndarray, gene_selection: str) -> None:
    _check.warn(
        f"{is_control.sum()} of the {adata.n_vars} genes are control probes ({_check.listing(adata.var_names[is_control], 3)}), which "
        f"would be imputed like genes. Drop them: adata = adata[:, {gene_selection}].copy()"
    )
