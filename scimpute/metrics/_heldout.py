from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import _adata, _check
from .._counts import TARGET, chunks, expected_log1p
from . import _thinned

if TYPE_CHECKING:
    from anndata import AnnData

EPSILON = 1e-6


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
    To beat ``"gene_mean"`` does not show that genes inform each other: a cell's own count of a gene tells of its held-out molecules, too,
    also where all genes were permuted over the cells. Score ``posterior=False`` beside it, which leans less on the own count.

    Warns of a layer of this package that was made from another matrix than the training part. A ``size_key`` tells of the held-out
    molecules, too: give it a column that is less by ``layers[f"{key}_test"].sum(axis=1)``.

    Works through chunks of rows; no dense copy of the matrix is made. Source: molecular cross-validation :cite:p:`Batson2019`.
    """
    _adata.check_object(adata)
    names = _check.layers(layers, ("raw", "gene_mean"))
    parts = _thinned.read(adata, key)
    rows = {name: scores(of_cells(read, parts), parts) for name, read in parts.predictions(adata, names).items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def of_cells(read: _thinned.Read, parts: _thinned.Thinned) -> pd.DataFrame:
    """What one prediction scores in every cell, summed over the genes."""
    found = []
    scale = TARGET / np.maximum(parts.depth_test, 1)
    for rows in chunks(*parts.test.shape):
        y, p = parts.test[rows].toarray(), read(rows)
        q = p * np.float32(parts.ratio)
        truth = np.log1p(y * scale[rows, None].astype(np.float32))
        total = p.sum(axis=1, keepdims=True)
        renormalized = np.log1p(p / np.where(total > 0, total, 1) * np.float32(TARGET))
        sums = {
            "poisson": _per_cell(q - y * np.log(q + EPSILON)),
            "poisson_openproblems": _per_cell(y - q * np.log(y + EPSILON)),
            "mse_log": _per_cell(np.square(truth - expected_log1p(q, scale[rows]))),
            "mse_log_renormalized": _per_cell(np.square(truth - renormalized)),
        }
        found.append(pd.DataFrame(sums))
    return pd.concat(found, ignore_index=True)


def _per_cell(values: np.ndarray) -> np.ndarray:
    return values.sum(axis=1, dtype=np.float64)


def scores(sums: pd.DataFrame, parts: _thinned.Thinned) -> dict[str, float]:
    """The row of one prediction: means over all entries."""
    return {name: float(values.sum()) / math.prod(parts.test.shape) for name, values in sums.items()}
