"""Whether the result of a run fits into memory, found before the work."""

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
    """Refuse before the work an imputation of ``k`` genes that would not fit, and say what helps.

    ``own``: rates in the cell's own batch are held beside those of another one. ``work`` is passed to :func:`._memory.of_counts`.
    """
    arrays = 1 + sd + own
    needed = _memory.of_counts(
        adata.n_obs, k, counts.nnz, arrays=arrays, half=dtype == "float16", copied=bytes_of_copy(adata, copy=copy), **work
    )
    ways = [*(["pass sd=False"] if sd else []), *(["pass copy=False"] if copy else []), hint]
    _check.memory(needed, ", or ".join(ways))


def bytes_of_copy(adata: ad.AnnData, *, copy: bool) -> int:
    """Bytes of the object, where a result goes to a copy: a view becomes an object of its own as soon as it is written to."""
    return _bytes_of(adata) if copy or adata.is_view else 0


def _bytes_of(adata: ad.AnnData) -> int:
    """Of the matrices that a copy has."""
    found = [adata.X, *(adata.layers[name] for name in layer_names(adata)), adata.raw.X if adata.raw is not None else None]
    found += [matrix for slot in ("obsm", "varm", "obsp", "varp") for matrix in getattr(adata, slot).values()]
    arrays = [part for matrix in found for part in (vars(matrix).values() if sp.issparse(matrix) else [matrix])]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
