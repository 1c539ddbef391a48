"""Matrices of an AnnData as they are stored, checked. Read only."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from .. import _check
from .._sparse import chunks
from . import keys
from .matrix import as_numpy, check_kind, is_logged, rows_in_memory, to_csr
from .results import missing_sd, params_of, written_by


def check_object(adata: Any) -> None:
    """Refuse anything but an AnnData, and say how to get one."""
    if isinstance(adata, ad.AnnData):
        if adata.n_obs == 0 or adata.n_vars == 0:
            raise ValueError(f"adata has {adata.n_obs} cells and {adata.n_vars} genes; there is nothing to work on")
        return
    name = type(adata).__name__
    hints = {
        "MuData": "pass one modality, e.g. mdata.mod['rna']",
        "SpatialData": "pass its table, e.g. sdata.tables['table']",
        "str": "read the file first, e.g. with anndata.read_h5ad",
        "PosixPath": "read the file first, e.g. with anndata.read_h5ad",
    }
    raise TypeError(f"expected AnnData, got {name}; {hints.get(name, 'wrap it with anndata.AnnData(x)')}")


def names_in(adata: ad.AnnData, slot: str) -> list[str]:
    """Names in ``layers`` (anndata 0.13 lists X among them as None), ``obs``, ``obsm``, ``obsp`` or ``uns``."""
    return [name for name in getattr(adata, slot) if name is not None]


def layer_names(adata: ad.AnnData) -> list[str]:
    """Layers of the object."""
    return names_in(adata, "layers")


def matrix_of(adata: ad.AnnData, layer: str | None) -> Any:
    """``X``, a layer, or ``raw`` for the genes of the object, of any kind that can be stored."""
    if layer is None:
        if adata.X is None:
            raise ValueError(f"adata.X is empty; pass layer=..., available: {_check.listing(layer_choices(adata))}")
        return as_numpy(adata.X, "adata.X")
    _check.name_of("layer", layer, "a layer")
    if is_raw(adata, layer):
        return _raw_matrix(adata)
    if layer not in layer_names(adata):
        raise missing_sd(adata, layer) or _check.missing("layer", layer, layer_choices(adata))
    return as_numpy(adata.layers[layer], f"adata.layers[{layer!r}]")


def layer_choices(adata: ad.AnnData) -> list[str]:
    """Names that ``layer=`` may have: the layers, and "raw" if the object has ``adata.raw``."""
    return [*layer_names(adata), *([keys.RAW] if is_raw(adata, keys.RAW) else [])]


def is_raw(adata: ad.AnnData, layer: str | None) -> bool:
    """Whether ``layer`` names ``adata.raw``: it is "raw", and no layer has this name."""
    return layer == keys.RAW and adata.raw is not None and layer not in layer_names(adata)


def _raw_matrix(adata: ad.AnnData) -> Any:
    """``adata.raw`` for the genes of the object."""
    raw = adata.raw
    matrix = as_numpy(raw.X, "adata.raw.X")
    if raw.var_names.equals(adata.var_names):
        return matrix
    remedy = "pass adata.raw.to_adata() to impute raw itself"
    if not raw.var_names.is_unique or not adata.var_names.is_unique:
        raise ValueError(f"adata.raw has other genes than adata, and gene names that are not unique cannot be matched; {remedy}")
    columns = raw.var_names.get_indexer(adata.var_names)
    if (columns < 0).any():
        absent = adata.var_names[columns < 0]
        raise ValueError(f"adata.raw lacks {len(absent)} of the {adata.n_vars} genes of adata: {_check.listing(absent, 5)}; {remedy}")
    if not sp.issparse(matrix) and not isinstance(matrix, np.ndarray) and not hasattr(matrix, "compute"):
        matrix = to_csr(matrix, "adata.raw")  # on disk
    return matrix[:, columns]


def csr_entry_name(csr: sp.csr_matrix, adata: ad.AnnData, place: int) -> str:
    """Cell and gene of a stored entry, for messages. ``place`` is its index in ``csr.data``; ``csr`` may be raw with all its genes."""
    row, column = int(np.searchsorted(csr.indptr, place, side="right") - 1), int(csr.indices[place])
    return entry_name(adata if csr.shape[1] == adata.n_vars else adata.raw, row, column)


def read_layer(adata: ad.AnnData, layer: str, *, require_output: str | None = None) -> Any:
    """A layer as it is stored.

    Refused if a function of scimpute wrote it on another scale than ``require_output``, or if counts were logged since.
    """
    matrix = matrix_of(adata, layer)
    params = params_of(adata, layer) if written_by(adata, layer) else {}
    scale = params.get("output")
    if require_output and scale and scale != require_output:
        raise ValueError(f"layer {layer!r} was written with output={scale!r}; output={require_output!r} is needed here")
    if require_output == "counts" and params.get("fill") == "expressed":
        _check.warn(
            f"layer {layer!r} was written with fill='expressed'. Its exact zeros make held-out scores too pessimistic: "
            "impute again with fill='all' and score that"
        )
    check_kind(matrix, f"adata.layers[{layer!r}]")
    if "counts" in (scale, None if scale else require_output) and is_logged(matrix):
        raise ValueError(
            f"layer {layer!r} {'was written as' if scale else 'must hold'} expected counts, and holds log1p of normalised values; "
            "impute again, and normalise a copy of the layer"
        )
    return _in_memory(matrix)


def read_matrix(adata: ad.AnnData, layer: str | None) -> Any:
    """``X`` or a layer of real numbers as it is stored, read only. Values may be NaN or infinite."""
    matrix = matrix_of(adata, layer)
    check_kind(matrix, source_name(adata, layer))
    return _in_memory(matrix)


def _in_memory(matrix: Any) -> Any:
    if hasattr(matrix, "to_memory"):  # backed sparse
        matrix = matrix.to_memory()
    # float16 is for storage only: sums over a row overflow, and scipy has no sparse float16.
    return matrix.astype(np.float32) if matrix.dtype == np.float16 else matrix


def source_name(adata: ad.AnnData, layer: str | None) -> str:
    """Name of ``X``, a layer or ``raw`` for messages."""
    return "adata.X" if layer is None else "adata.raw" if is_raw(adata, layer) else f"adata.layers[{layer!r}]"


def entry_name(adata: ad.AnnData | ad.Raw, row: int, column: int) -> str:
    """Cell and gene of an entry, for messages."""
    return f"cell {adata.obs_names[row]!r}, gene {adata.var_names[column]!r}"


def read_finite(adata: ad.AnnData, layer: str | None) -> sp.csr_matrix:
    """``X`` or a layer as canonical CSR float32, all values finite. The result shares its buffers with the object: read only."""
    csr = to_csr(matrix_of(adata, layer), source_name(adata, layer))
    bad = np.flatnonzero(~np.isfinite(csr.data))
    if bad.size:
        raise ValueError(
            f"{source_name(adata, layer)} has {bad.size} values that are NaN or infinite (first: {csr_entry_name(csr, adata, bad[0])}); "
            "finite values are needed here. Remove or fill them"
        )
    return csr


def read_with_gaps(adata: ad.AnnData, layer: str | None) -> np.ndarray:
    """``X`` or a layer as a new dense float32 array, NaN where a value is missing."""
    matrix = read_matrix(adata, layer)
    if sp.issparse(matrix) and not matrix.dtype.isnative:
        matrix = matrix.astype(matrix.dtype.newbyteorder("="))  # scipy slices native byte order only
    dense = np.empty(adata.shape, dtype=np.float32)
    n_bad, first = 0, (0, 0)
    for rows in chunks(*adata.shape):
        part = rows_in_memory(matrix, rows)
        with np.errstate(over="ignore"):
            dense[rows] = part.toarray() if sp.issparse(part) else np.asarray(part)
        bad = np.argwhere(np.isinf(dense[rows]))
        if bad.size and not n_bad:
            first = (rows.start + int(bad[0, 0]), int(bad[0, 1]))
        n_bad += len(bad)
    if n_bad:
        raise ValueError(
            f"{source_name(adata, layer)} has {n_bad} infinite values (first: {entry_name(adata, *first)}); "
            "set them to NaN if they stand for missing values, or remove them"
        )
    return dense


def read_mask(adata: ad.AnnData, layer: str) -> np.ndarray:
    """A layer of True and False, or 1 and 0, as a dense boolean array."""
    _check.name_of("mask_layer", layer, "a layer")
    if layer not in layer_names(adata):
        raise _check.missing("mask_layer: layer", layer, layer_names(adata))
    matrix = matrix_of(adata, layer)
    matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix
    dense = np.empty(adata.shape, dtype=bool)
    for rows in chunks(*adata.shape):
        part = rows_in_memory(matrix, rows)
        part = part.toarray() if sp.issparse(part) else np.asarray(part)
        if part.dtype != bool and not np.isin(part, (0, 1)).all():
            raise ValueError(f"mask_layer={layer!r} holds other values than True (observed) and False (missing)")
        dense[rows] = part.astype(bool)
    return dense


def read_neighbours(adata: ad.AnnData, key: str = keys.SPATIAL) -> sp.csr_matrix | None:
    """Graph of neighbours in space: ones, none on the diagonal. None if the object has no such graph."""
    if keys.connectivities(key) not in adata.obsp:
        return None
    name = f"adata.obsp[{keys.connectivities(key)!r}]"
    graph = to_csr(adata.obsp[keys.connectivities(key)], name)
    remedy = "delete it and make it again, e.g. with scimpute.pp.spatial_rings"
    if not np.isfinite(graph.data).all():
        raise ValueError(f"{name} has NaN or infinite values; {remedy}")
    if graph.nnz and graph.data.min() < 0:
        raise ValueError(f"{name} has negative values (min {graph.data.min():g}), and a graph of neighbours has none; {remedy}")
    rows = np.repeat(np.arange(adata.n_obs), np.diff(graph.indptr))
    other = graph.indices != rows
    return sp.csr_matrix((np.ones(other.sum()), (rows[other], graph.indices[other])), shape=graph.shape)
