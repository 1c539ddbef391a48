"""Finds the counts that an imputation was made from, in whatever layer they are now."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import scipy.sparse as sp
from scanpy import logging as logg

from .. import _check
from . import keys
from .counts import holds_counts, read_counts, read_values, round_values
from .fingerprint import is_same
from .read import layer_choices, matrix_of, source_name
from .results import fingerprint_of, params_of, recorded_rounding, written_by


def find_counts(adata: ad.AnnData, key: str) -> tuple[str | None, sp.csr_matrix] | None:
    """The counts that an imputation was made from, and the layer that holds them now; None if no layer does.

    Counts are recognised by their fingerprint. It cannot be compared if it was not recorded, or if both cells and genes were cut.
    Then the recorded layer is read if it holds counts, else the only other layer with counts.
    """
    params, stored = params_of(adata, key), fingerprint_of(adata, key)
    rounding, rng = recorded_rounding(params)
    recorded_layer = keys.layer_of(params)
    candidates: list[tuple[str | None, sp.csr_matrix]] = []
    matches: list[tuple[str | None, sp.csr_matrix]] = []
    for name in dict.fromkeys([recorded_layer, None, *layer_choices(adata)]):
        try:
            matrix = matrix_of(adata, name)
            whole = holds_counts(adata, matrix)
            if name == key or not (whole or rounding):
                continue
            csr = read_values(adata, name, rounding, can_round=False)
        except (KeyError, TypeError, ValueError):
            continue
        same = None if stored is None else is_same(csr, stored)
        if name == recorded_layer and same is not False:
            return name, round_values(adata, name, csr, rounding, rng)
        if same:
            matches.append((name, csr))
        # Decimals can be recognised by a fingerprint only.
        if same is None and whole and not any(_equal(csr, other) for _, other in candidates):
            candidates.append((name, csr))
    if not matches and len(candidates) != 1:
        return None
    # With zeros and ones, some cells of the training part of pp.thin may have the same hashes as some cells of the whole.
    name, csr = max(matches, key=lambda match: match[1].data.sum(dtype=np.float64)) if matches else candidates[0]
    return name, round_values(adata, name, csr, rounding, rng)


def read_counts_or_source(adata: ad.AnnData, result_keys: Sequence[str], layer: str | None) -> sp.csr_matrix:
    """The counts of a layer, or of ``X`` for None. If ``X`` holds no counts, those that the first of the results was imputed from."""
    imputed = [key for key in result_keys if written_by(adata, key) is not None and fingerprint_of(adata, key)]
    if layer is None and imputed and (adata.X is None or not holds_counts(adata, adata.X)):
        return read_counts_of(adata, imputed[0], None)
    return read_counts(adata, layer)


def _equal(a: sp.csr_matrix, b: sp.csr_matrix) -> bool:
    return a.nnz == b.nnz and np.array_equal(a.indices, b.indices) and np.array_equal(a.data, b.data)


def read_counts_of(adata: ad.AnnData, key: str, layer: str | None) -> sp.csr_matrix:
    """The counts of ``layer``; for None those that an imputation of scimpute was made from."""
    params = params_of(adata, key)
    recorded_layer = keys.layer_of(params)
    if layer is not None:
        return read_counts(adata, layer, *recorded_rounding(params))
    source = find_counts(adata, key)
    if source is None:
        counts = read_counts(adata, recorded_layer, *recorded_rounding(params))
        _check.warn(
            f"{source_name(adata, recorded_layer)} holds other counts than those that {key!r} was imputed from; "
            "pass the layer with these as layer=..."
        )
        return counts
    name, counts = source
    if name != recorded_layer:
        logg.info(
            f"{source_name(adata, recorded_layer)} no longer holds the counts that {key!r} was imputed from; they are read from "
            f"{source_name(adata, name)}"
        )
    return counts
