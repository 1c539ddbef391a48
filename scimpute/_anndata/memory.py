"""Checks before the work that the result of a run fits into memory."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from .. import _check, _memory
from .read import layer_names


def check_memory(
    adata: ad.AnnData, counts: sp.csr_matrix, k: int, *, sd: bool, own: bool, dtype: str, copy: bool, hint: str, **work: Any
) -> None:
    """Refuse an imputation of ``k`` genes that would not fit into memory. The error lists remedies, ``hint`` as the last.

    With ``own``, rates in the cell's own batch are stored beside rates in the target batch. ``work`` has further arguments of
    :func:`._memory.of_counts`.
    """
    arrays = 1 + sd + own
    needed = _memory.of_counts(
        adata.n_obs, k, counts.nnz, arrays=arrays, half=dtype == "float16", copied=bytes_of_copy(adata, copy=copy), **work
    )
    remedies = [*(["pass sd=False"] if sd else []), *(["pass copy=False"] if copy else []), hint]
    _check.memory(needed, ", or ".join(remedies))


def bytes_of_copy(adata: ad.AnnData, *, copy: bool) -> int:
    """Bytes of the copy that gets the result; 0 if there is none. Writing to a view copies it."""
    return _matrix_bytes(adata) if copy or adata.is_view else 0


def _matrix_bytes(adata: ad.AnnData) -> int:
    """Bytes of all matrices of the object."""
    matrices = [adata.X, *(adata.layers[name] for name in layer_names(adata)), adata.raw.X if adata.raw is not None else None]
    matrices += [matrix for slot in ("obsm", "varm", "obsp", "varp") for matrix in getattr(adata, slot).values()]
    arrays = [part for matrix in matrices for part in (vars(matrix).values() if sp.issparse(matrix) else [matrix])]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
