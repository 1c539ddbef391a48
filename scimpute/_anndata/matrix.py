"""Any kind of matrix that an AnnData may hold, converted to canonical CSR."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from .._sparse import chunks

_CPU_READABLE = (1, 3, 11, 13)
"""Numbers of DLPack devices whose memory the CPU can read: its own, and memory that CUDA and ROCm share with it."""
_TO_CPU = {"torch": ".cpu().numpy()", "cupy": ".get()", "cupyx": ".get()"}


def as_numpy(matrix: Any, name: str) -> Any:
    """An array of another library as a numpy array that shares its memory; any other matrix unchanged.

    Raises
    ------
    TypeError
        The array is on a GPU, or numpy cannot read it.
    """
    library = type(matrix).__module__.split(".")[0]
    foreign = hasattr(matrix, "__dlpack_device__") and not isinstance(matrix, np.ndarray)
    if library not in ("cupy", "cupyx") and not foreign:
        return matrix
    conversion = f"jax.device_get({name})" if library in ("jax", "jaxlib") else f"{name}{_TO_CPU[library]}" if library in _TO_CPU else ""
    kind = f"{library}.{type(matrix).__name__}"
    if library in ("cupy", "cupyx") or int(matrix.__dlpack_device__()[0]) not in _CPU_READABLE:
        raise TypeError(f"{name} is on a GPU ({kind}); bring it to the CPU first, e.g. {name} = {conversion or 'a numpy array of it'}")
    try:
        return np.from_dlpack(matrix.detach() if hasattr(matrix, "detach") else matrix)
    except Exception as error:  # libraries differ in their errors for sparse arrays and dtypes that numpy lacks
        raise TypeError(f"{name} is a {kind} that numpy cannot read ({error}); make it a numpy array or a scipy sparse matrix") from error


def rows_in_memory(matrix: Any, rows: slice) -> Any:
    """Rows of any kind of matrix, dask and backed ones included, in memory."""
    part = matrix[rows]
    if hasattr(part, "compute"):
        part = part.compute()
    return as_numpy(part, "the matrix")


def check_kind(matrix: Any, name: str) -> None:
    """Refuse anything but a matrix of real numbers."""
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; fill it first, e.g. with .filled(0)")
    if not hasattr(matrix, "shape") or not hasattr(matrix, "dtype"):
        raise TypeError(f"{name} is of the unsupported type {type(matrix).__name__}; use a numpy array or a scipy sparse matrix")
    kind = np.dtype(matrix.dtype).kind
    if kind not in "biuf":
        raise TypeError(f"{name} has dtype {matrix.dtype}, expected real numbers; convert it, e.g. with .astype('float32')")
    if any(not np.isfinite(size) for size in matrix.shape):
        raise ValueError(f"{name} is a dask array whose chunk sizes are unknown; call .compute_chunk_sizes() on it first")


def is_logged(matrix: Any) -> bool:
    """Whether the first rows are log1p of normalised values: ``exp(x) - 1`` has the same sum in each row, ``x`` has not.

    True is certain, False is not. Logs to another base, or of a part of the normalised genes, are not recognised.
    """
    part = rows_in_memory(matrix, slice(0, 50))
    values = np.asarray(part.toarray() if sp.issparse(part) else part, dtype=np.float64)
    with np.errstate(over="ignore"):
        normalized = np.expm1(values).sum(axis=1)
    sums = values.sum(axis=1)[normalized > 0]
    normalized = normalized[normalized > 0]
    if len(normalized) < 10 or not np.isfinite(normalized).all():
        return False
    return bool(np.ptp(normalized) < 1e-4 * normalized.max() and np.ptp(sums) > 1e-3 * sums.max())


def to_csr(matrix: Any, name: str) -> sp.csr_matrix:
    """Canonical CSR float32 of any supported matrix, without a copy if it is that already.

    The caller's arrays are never sorted or changed. Dense, dask and backed input is read in row chunks. Values too large for
    float32 become infinite.
    """
    check_kind(matrix, name)
    with np.errstate(over="ignore"):
        return _to_csr(matrix)


def _to_csr(matrix: Any) -> sp.csr_matrix:
    if hasattr(matrix, "to_memory"):  # backed sparse
        matrix = matrix.to_memory()
    if sp.issparse(matrix):
        if matrix.format != "csr":
            matrix = matrix.tocsr()
        # A new wrapper, because scipy caches flags on the object and sorts in place.
        csr = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
        if csr.has_canonical_format and (csr.data.dtype != np.float32 or not csr.data.dtype.isnative):
            csr = sp.csr_matrix((csr.data.astype(np.float32), csr.indices, csr.indptr), shape=csr.shape)
        elif not csr.has_canonical_format:
            csr = sp.csr_matrix((csr.data.astype(np.float32), csr.indices.copy(), csr.indptr.copy()), shape=csr.shape)
            csr.sum_duplicates()
        if np.any(csr.data == 0):
            csr = csr.copy()
            csr.eliminate_zeros()
        return csr
    parts = []
    for rows in chunks(*matrix.shape):
        part = rows_in_memory(matrix, rows)
        if sp.issparse(part):
            parts.append(_to_csr(part))
        else:
            parts.append(sp.csr_matrix(np.asarray(part).astype(np.float32)))
    return sp.vstack(parts, format="csr") if len(parts) > 1 else parts[0]
