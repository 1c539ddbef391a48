"""The counts that an imputation was made from, wherever they lie now."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import scipy.sparse as sp
from scanpy import logging as logg

from .. import _check
from . import keys as _keys
from .counts import holds_counts, read_counts, read_values, round_values
from .fingerprint import is_same
from .read import layer_choices, matrix_of, source_name
from .results import fingerprint_of, params_of, recorded_rounding, written_by


def find_counts(adata: ad.AnnData, key: str) -> tuple[str | None, sp.csr_matrix] | None:
    """The counts that an imputation was made from, and the layer that holds them now; None where they are nowhere.

    They are known by their fingerprint. Where nothing can be compared (results of earlier versions, cells and genes both cut) they
    are where they were recorded, as long as counts are there, or else in the only other place with counts.
    """
    params, known = params_of(adata, key), fingerprint_of(adata, key)
    rounding, rng = recorded_rounding(params)
    recorded = _keys.layer_of(params)
    perhaps: list[tuple[str | None, sp.csr_matrix]] = []
    same_hashes: list[tuple[str | None, sp.csr_matrix]] = []
    for name in dict.fromkeys([recorded, None, *layer_choices(adata)]):
        try:
            matrix = matrix_of(adata, name)
            whole = holds_counts(adata, matrix)
            if name == key or not (whole or rounding):
                continue
            csr = read_values(adata, name, rounding, can_round=False)
        except (KeyError, TypeError, ValueError):
            continue
        same = None if known is None else is_same(csr, known)
        if name == recorded and same is not False:
            return name, round_values(adata, name, csr, rounding, rng)
        if same:
            same_hashes.append((name, csr))
        # Of decimals only a fingerprint tells whether they are these.
        if same is None and whole and not any(_equal(csr, other) for _, other in perhaps):
            perhaps.append((name, csr))
    if not same_hashes and len(perhaps) != 1:
        return None
    # Of zeros and ones, some cells of a part of the molecules may look like some cells of all.
    name, csr = max(same_hashes, key=lambda match: match[1].data.sum(dtype=np.float64)) if same_hashes else perhaps[0]
    return name, round_values(adata, name, csr, rounding, rng)


def read_counts_or_source(adata: ad.AnnData, keys: Sequence[str], layer: str | None) -> sp.csr_matrix:
    """The counts of a layer; where None those of ``X``, and where it holds none those that the first of ``keys`` was imputed from."""
    ours = [key for key in keys if written_by(adata, key) is not None and fingerprint_of(adata, key)]
    if layer is None and ours and (adata.X is None or not holds_counts(adata, adata.X)):
        return read_counts_of(adata, ours[0], None)
    return read_counts(adata, layer)


def _equal(a: sp.csr_matrix, b: sp.csr_matrix) -> bool:
    return a.nnz == b.nnz and np.array_equal(a.indices, b.indices) and np.array_equal(a.data, b.data)


def read_counts_of(adata: ad.AnnData, key: str, layer: str | None) -> sp.csr_matrix:
    """The counts that an imputation of ours was made from; of a layer, where it is given."""
    params = params_of(adata, key)
    recorded = _keys.layer_of(params)
    if layer is not None:
        return read_counts(adata, layer, *recorded_rounding(params))
    found = find_counts(adata, key)
    if found is None:
        counts = read_counts(adata, recorded, *recorded_rounding(params))
        _check.warn(
            f"{source_name(adata, recorded)} holds other counts than those that {key!r} was imputed from; pass layer=... where these are"
        )
        return counts
    name, counts = found
    if name != recorded:
        logg.info(
            f"{source_name(adata, recorded)} does not hold the counts any more that {key!r} was imputed from; they are read from "
            f"{source_name(adata, name)}"
        )
    return counts
