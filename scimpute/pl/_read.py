"""Reads the data of the figures from an AnnData, as numpy arrays and DataFrames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .. import _check
from .._anndata.counts import read_counts
from .._anndata.obs import read_genes, read_size
from .._anndata.read import layer_names, read_layer
from .._anndata.results import params_of, records, written_by
from .._anndata.source import find_counts, read_counts_of
from .._anndata.tables import read_imputed
from .._counts.output import OUTPUTS
from .._sparse import log1p_cp10k, row_sums
from ..metrics import _scale

if TYPE_CHECKING:
    from anndata import AnnData


def history(adata: AnnData, key: str) -> pd.DataFrame:
    """The table ``uns[key]["history"]`` with a row for each repeat and epoch."""
    histories = {name: record["history"] for name, record in records(adata).items() if "history" in record}
    if _check.name_of("key", key, "an imputation") not in histories:
        raise _check.missing("training history: uns key", key, histories)
    return histories[key]


def before_and_after(adata: AnnData, genes: Sequence[str], key: str, layer: str | None) -> tuple[np.ndarray, np.ndarray]:
    """log1p(CP10k) of the counts and of the imputed values of these genes, both ``(n, genes)``."""
    _check.name_of("key", key, "an imputation")
    places = read_genes(adata, genes)
    params: Mapping[str, Any] = params_of(adata, key) if written_by(adata, key) else {}
    matrix = read_layer(adata, key, require_output=None if params else "counts") if key in layer_names(adata) else None
    result = read_imputed(adata, genes, key) if matrix is None else _dense(matrix[:, places])
    scale = _check.option(f"uns[{key!r}]['params']['output']", params.get("output", "counts"), OUTPUTS)
    size_key = params.get("size_key")

    counts = read_counts_of(adata, key, layer) if params else read_counts(adata, layer)
    size = np.maximum(read_size(adata, size_key, counts, params.get("rounding")), 1)
    before = log1p_cp10k(counts[:, places].toarray().astype(float), size)
    if scale == "log1p":
        return before, result
    if scale == "rate":
        return before, log1p_cp10k(result, np.ones(1))
    totals = None if matrix is None else np.asarray(matrix.sum(axis=1), dtype=float).ravel()
    if totals is not None and (not params or _scale.are_equal(totals, row_sums(counts))):
        # Another package's values, or values normalised since: molecules, CP10k or CPM. Their own totals scale all of these.
        size = totals
    elif params and size_key is None and layer is not None:
        # Imputed counts are at the depth of their source counts. If no layer holds these any more, `layer` gives the depth.
        source = find_counts(adata, key)
        if source is not None:
            size = np.maximum(read_size(adata, None, source[1]), 1)
    return before, log1p_cp10k(result, size)


def _dense(part: Any) -> np.ndarray:
    part = part.compute() if hasattr(part, "compute") else part
    return np.asarray(part.toarray() if sp.issparse(part) else part, dtype=float)
