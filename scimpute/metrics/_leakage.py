"""Whether a layer was made from a matrix in which what it is scored on was still there."""

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
    """Say so where one of our functions made the layer ``name`` from more than the layer ``kept``; ``hidden`` is what it has seen.

    ``run`` says whether the score takes ``run=True``.
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
        f"layer {name!r} was made from {source_name(adata, source)} and has seen {hidden}, so that its score is too good; "
        f"make it again, from what was kept: scimpute.tl.{function}(adata, ..., layer={kept!r}, key_added={name!r})"
        + (", or pass run=True" if run and name in _replay.find(adata) else "")
    )


def _made_from_more(adata: AnnData, name: str, source: str | None, kept: str) -> bool:
    """Whether what a layer was made from, wherever that lies now, is anywhere above what was kept."""
    known = fingerprint_of(adata, name)
    if known is None:
        try:
            whole = read_matrix(adata, source)
        except (KeyError, TypeError, ValueError):
            return True  # it is gone, and was another
        return _has_more(adata, whole, params_of(adata, name).get("mask_layer"), kept)
    if is_same(read_finite(adata, kept), known):
        return False
    found = find_counts(adata, name)
    return found is None or _has_more(adata, found[1], None, kept)


def _has_more(adata: AnnData, whole: Any, mask: str | None, kept: str) -> bool:
    """Whether a matrix, where its mask shows it, is anywhere above what was kept: the same may lie in another place."""
    part = read_matrix(adata, kept)
    shown = read_matrix(adata, mask) if mask in layer_names(adata) else None
    whole, part = (matrix.tocsr() if sp.issparse(matrix) else matrix for matrix in (whole, part))
    for rows in chunks(*adata.shape):
        seen = _size(whole, rows)
        if shown is not None:
            seen = seen * _size(shown, rows)
        if (seen > _size(part, rows)).any():
            return True
    return False


def _size(matrix: Any, rows: slice) -> np.ndarray:
    """Absolute values of some rows in float32, as our functions write what they keep; what is missing is 0."""
    part = rows_in_memory(matrix, rows)
    part = part.toarray() if sp.issparse(part) else np.asarray(part)
    return np.abs(np.nan_to_num(part.astype(np.float32)))
