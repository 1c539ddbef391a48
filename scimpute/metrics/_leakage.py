"""Leak check: warn if a layer was imputed from a matrix that still has the values on which the layer is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .. import _check
from .._anndata import keys
from .._anndata.fingerprint import is_same
from .._anndata.matrix import rows_in_memory
from .._anndata.read import layer_names, read_finite, read_matrix, source_name
from .._anndata.results import fingerprint_of, params_of, written_by
from .._anndata.source import find_counts
from .._methods import METHODS
from .._sparse import chunks
from . import _replay

if TYPE_CHECKING:
    from anndata import AnnData


def warn_of_leak(adata: AnnData, name: str, kept: str, hidden: str, *, run: bool = False) -> None:
    """Warn if a function of this package made a layer from more than the kept values.

    Parameters
    ----------
    name, kept
        The layer that is scored, and the layer with the kept values.
    hidden
        Name of the hidden values in the warning.
    run
        Whether the score takes ``run=True``.
    """
    method = written_by(adata, name)
    if method not in METHODS:
        return
    params = params_of(adata, name)
    source = keys.layer_of(params)
    if source == kept or not _made_from_more(adata, name, source, kept):
        return
    function = "apply" if params.get("applied") else method
    _check.warn(
        f"layer {name!r} was made from {source_name(adata, source)} and has seen {hidden}. Its score is too good. "
        f"Impute again from the kept values: scimpute.tl.{function}(adata, ..., layer={kept!r}, key_added={name!r})"
        + (", or pass run=True" if run and name in _replay.find(adata) else "")
    )


def _made_from_more(adata: AnnData, name: str, source: str | None, kept: str) -> bool:
    """Whether the source of a layer has any value above the kept one. The source may have moved to another layer."""
    print_of_source = fingerprint_of(adata, name)
    if print_of_source is None:
        try:
            whole = read_matrix(adata, source)
        except (KeyError, TypeError, ValueError):
            return True  # the source is gone, and it was not the kept layer
        return _has_more(adata, whole, params_of(adata, name).get("mask_layer"), kept)
    if is_same(read_finite(adata, kept), print_of_source):
        return False
    place = find_counts(adata, name)
    return place is None or _has_more(adata, place[1], None, kept)


def _has_more(adata: AnnData, whole: Any, mask: str | None, kept: str) -> bool:
    """Whether a matrix has any value above the kept one, at the entries that its mask shows. The kept values may be a copy of it."""
    part = read_matrix(adata, kept)
    visible = read_matrix(adata, mask) if mask in layer_names(adata) else None
    whole, part = (matrix.tocsr() if sp.issparse(matrix) else matrix for matrix in (whole, part))
    for rows in chunks(*adata.shape):
        values = _magnitudes(whole, rows)
        if visible is not None:
            values = values * _magnitudes(visible, rows)
        if (values > _magnitudes(part, rows)).any():
            return True
    return False


def _magnitudes(matrix: Any, rows: slice) -> np.ndarray:
    """Absolute values of some rows in float32, the type of the kept values; 0 for NaN."""
    part = rows_in_memory(matrix, rows)
    part = part.toarray() if sp.issparse(part) else np.asarray(part)
    return np.abs(np.nan_to_num(part.astype(np.float32)))
