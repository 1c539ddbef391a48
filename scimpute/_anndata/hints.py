"""What an object shows that is not as it seems to be meant: cut genes, genes in rows, control probes. Warnings; nothing is refused."""

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
"""Columns of obs in which scanpy, Seurat and others keep the molecules of a cell."""
_CUT = 1.5
"""So many times the molecules of the matrix are more than what filtering takes away."""
_BARCODE = re.compile(r"(^|[^A-Za-z])[ACGT]{10,}($|[^A-Za-z])")
_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{8,}")
_COMMON = frozenset(
    {"ACTB", "GAPDH", "MALAT1", "B2M", "TMSB4X", "EEF1A1", "RPLP0", "RPL13", "RPS18", "FTL", "FTH1", "VIM", "MT-CO1", "MT-ND1"}
    | {"CD3E", "CD3D", "CD8A", "CD4", "CD14", "CD19", "MS4A1", "NKG7", "LYZ", "EPCAM", "PTPRC", "COL1A1", "PECAM1", "GFAP", "XIST"}
)
"""Genes of which every panel has some, in capitals."""
# By the readers of 10x Genomics, NanoString and Vizgen; what stands before the number is what they have in common.
_CONTROL = re.compile(
    r"^(NegControlProbe|NegControlCodeword|NegPrb|Negative|SystemControl|FalseCode|BLANK|Blank|UnassignedCodeword|DeprecatedCodeword|"
    r"GenomicControlProbe|IntergenicProbe|Intergenic_Region)(?=[_\- ]?\d|_)[_\-]?|^antisense_"
)
_CONTROL_TYPE = re.compile(r"control|codeword|blank", re.IGNORECASE)


def warn_of_hints(adata: AnnData, size: np.ndarray, layer: str | None, size_key: str | None) -> None:
    """One warning for each of these. ``size`` are the library sizes, ``(n,)``: without ``size_key`` sums over the genes of the object."""
    if size_key is None:
        _warn_of_cut_genes(adata, size, layer)
    warn_of_genes_in_rows(adata)
    _warn_of_controls(adata)


def _warn_of_cut_genes(adata: AnnData, sums: np.ndarray, layer: str | None) -> None:
    # Library sizes of the whole would tell what was taken out.
    for key in adata.uns:
        parts: dict[str | None, list[str]] = {"thin": [keys.train(key), keys.test(key)], "hide": [key]}
        if layer in parts.get(written_by(adata, key), []):
            return
    for column in _TOTALS:
        values = adata.obs.get(column)
        if not isinstance(values, pd.Series) or not pd.api.types.is_numeric_dtype(values.dtype):
            continue
        totals = values.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(totals).all() and totals.sum() > _CUT * sums.sum() and np.mean(totals >= sums - 1) > 0.99:
            _check.warn(
                f"adata.obs[{column!r}] adds up to {totals.sum() / sums.sum():.1f} times the molecules of these {adata.n_vars} genes, as "
                f"where an object was cut to some of its genes: library sizes are too small. Pass size_key={column!r}"
            )
            return
    if is_raw(adata, layer) and adata.raw.n_vars > _CUT * adata.n_vars:
        _check.warn(
            f"adata.raw has {adata.raw.n_vars} genes, adata {adata.n_vars} of them, over which library sizes are summed up. Write those "
            "over all, e.g. adata.obs['total_counts'] = adata.raw.X.sum(axis=1), and pass size_key='total_counts'"
        )


def _share(pattern: re.Pattern[str], names: pd.Index) -> float:
    some = [str(name) for name in names[:1000]]
    return float(np.mean([pattern.search(name) is not None for name in some]))


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
        by_type = types.str.contains(_CONTROL_TYPE).to_numpy(dtype=bool)
        if by_type.any() and (types == "Gene Expression").any():
            _say_controls(adata, by_type, "adata.var['feature_types'] == 'Gene Expression'")
            return
    found = [_CONTROL.match(str(name)) for name in adata.var_names]
    control = np.array([match is not None for match in found])
    if control.any() and not control.all():
        starts = sorted({match.group() for match in found if match is not None})
        _say_controls(adata, control, f"~adata.var_names.str.startswith({tuple(starts)!r})")


def _say_controls(adata: AnnData, control: np.ndarray, kept: str) -> None:
    _check.warn(
        f"{control.sum()} of the {adata.n_vars} genes are control probes ({_check.listing(adata.var_names[control], 3)}), which would be "
        f"imputed like genes. Drop them: adata = adata[:, {kept}].copy()"
    )
