from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .. import _adata, _check, _keys
from .._counts import TARGET, chunks, column_sums, expected_log1p, row_sums
from .._matrix import some_rows

if TYPE_CHECKING:
    from anndata import AnnData

_EPSILON = 1e-6


def heldout(adata: AnnData, layers: str | Sequence[str], *, key: str = "thin") -> pd.DataFrame:
    r"""Score imputed layers on molecules that were held out by :func:`scimpute.pp.thin`.

    The layers must hold expected counts at the depth of the training part (``output="counts"``), made from
    ``layers[f"{key}_train"]`` alone. Below, :math:`x` is the training part, :math:`y` the test part, :math:`p` the prediction and
    :math:`q = p\, \sum y / \sum x` the prediction at the depth of the test part.

    Parameters
    ----------
    adata
        Object thinned with :func:`scimpute.pp.thin`.
    layers
        Name or names of the layers to score.
    key
        ``key_added`` of :func:`scimpute.pp.thin`.

    Returns
    -------
    A row for each layer, after one for ``"raw"`` (the training part itself) and one for ``"gene_mean"`` (every cell is the
    average cell at its own depth). Genes with no molecule in the training part are left out: nothing can be said of them.
    Lower is better in every column:

    ``poisson``
        :math:`\mathrm{mean}(q - y \log(q + 10^{-6}))`, the Poisson deviance of the held-out molecules up to a constant. The one to trust.
    ``poisson_openproblems``
        :math:`\mathrm{mean}(y - q \log(y + 10^{-6}))`: the score of the Open Problems leaderboard, whose call has its arguments
        swapped. Given for comparison only: an output multiplied by a millionth scores close to the best there.
    ``mse_log``
        Mean squared difference of log1p(CP10k) of the test part and its expectation under the prediction,
        :math:`E[\log(1 + 10^4 N / \sum_j y_{ij})]` with :math:`N \sim \mathrm{Poisson}(q_{ij})`. Not renormalised.
    ``mse_log_renormalized``
        Mean squared difference of log1p(CP10k) of the test part and log1p of the prediction normalised to CP10k: the MSE of that
        leaderboard. It rewards averages of square roots and misplaced mass.

    Raises
    ------
    KeyError
        A layer, or the thinned layers, do not exist.
    ValueError
        A layer is on another scale than counts, or holds NaN, infinite or negative values; a layer is named twice, or as a baseline is.

    Notes
    -----
    Works through chunks of rows; no dense copy of the matrix is made. Source: Batson et al. 2019, *Molecular cross-validation*.
    """
    _adata.check_object(adata)
    names = _check.layers(layers, ("raw", "gene_mean"))
    train, test = (_adata.read_counts(adata, _require(adata, name, key)) for name in (_keys.train(key), _keys.test(key)))
    totals = column_sums(train)
    kept = np.flatnonzero(totals > 0)
    train, test = train[:, kept], test[:, kept]
    depth, depth_test, share = row_sums(train), row_sums(test), totals[kept] / totals.sum()

    def raw(rows: slice) -> np.ndarray:
        return train[rows].toarray()

    def gene_mean(rows: slice) -> np.ndarray:
        return (depth[rows, None] * share).astype(np.float32)

    def of_layer(name: str) -> Callable[[slice], np.ndarray]:
        matrix = _adata.read_layer(adata, name, require_output="counts")

        def read(rows: slice) -> np.ndarray:
            part = some_rows(matrix, rows)
            part = np.asarray(part.toarray() if sp.issparse(part) else part, dtype=np.float32)[:, kept]
            if not np.isfinite(part).all() or part.min() < 0:
                raise ValueError(f"layer {name!r} has NaN, infinite or negative values; expected counts are needed")
            return part

        return read

    predictions = {"raw": raw, "gene_mean": gene_mean} | {name: of_layer(name) for name in names}
    rows = {name: _scores(read, test, depth_test, depth_test.sum() / depth.sum()) for name, read in predictions.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _require(adata: AnnData, layer: str, key: str) -> str:
    if layer not in _adata.layer_names(adata):
        found = _check.listing(_adata.layer_names(adata))
        raise KeyError(f"layer {layer!r} not found; call scimpute.pp.thin(adata, key_added={key!r}) first. Layers: {found}")
    return layer


def _scores(read: Callable[[slice], np.ndarray], test: sp.csr_matrix, depth_test: np.ndarray, ratio: float) -> dict[str, float]:
    sums = dict.fromkeys(("poisson", "poisson_openproblems", "mse_log", "mse_log_renormalized"), 0.0)
    scale = TARGET / np.maximum(depth_test, 1)
    for rows in chunks(*test.shape):
        y, p = test[rows].toarray(), read(rows)
        q = p * np.float32(ratio)
        sums["poisson"] += float((q - y * np.log(q + _EPSILON)).sum(dtype=np.float64))
        sums["poisson_openproblems"] += float((y - q * np.log(y + _EPSILON)).sum(dtype=np.float64))
        truth = np.log1p(y * scale[rows, None].astype(np.float32))
        sums["mse_log"] += float(np.square(truth - expected_log1p(q, scale[rows])).sum(dtype=np.float64))
        total = p.sum(axis=1, keepdims=True)
        renormalized = np.log1p(p / np.where(total > 0, total, 1) * np.float32(TARGET))
        sums["mse_log_renormalized"] += float(np.square(truth - renormalized).sum(dtype=np.float64))
    n_entries = test.shape[0] * test.shape[1]
    return {name: value / n_entries for name, value in sums.items()}
