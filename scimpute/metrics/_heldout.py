from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import _check
from .._anndata.read import check_object
from .._anndata.tables import is_table
from .._counts.output import expected_log1p
from .._keywords import helpful
from .._sparse import TARGET_SUM, chunks, log1p_cp10k
from . import _replay, _second_run, _thinned

if TYPE_CHECKING:
    from anndata import AnnData

EPSILON = 1e-6


@helpful
def heldout(
    adata: AnnData,
    layers: str | Sequence[str],
    *,
    key: str = "thin",
    rescale: bool = False,
    run: bool = False,
    frac: float = 0.9,
    random_state: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Score imputed layers on molecules that were held out by :func:`scimpute.pp.thin`.

    The layers must hold expected counts at the depth of the training part (``output="counts"``), made from
    ``layers[f"{key}_train"]`` alone. Below, :math:`x` is the training part, :math:`y` the test part, :math:`p` the prediction and
    :math:`q = p\, \sum y / \sum x` the prediction at the depth of the test part.

    Parameters
    ----------
    adata
        Object thinned with :func:`scimpute.pp.thin`; with ``run=True``, any object with imputations of ``scimpute.tl``.
    layers
        Name or names of the layers to score. With ``run=True``, imputations of the same counts, on any scale.
    key
        ``key_added`` of :func:`scimpute.pp.thin`. Not read with ``run=True``.
    rescale
        Bring each cell of a layer to the total of its training part, for a layer on another scale, such as CP10k (not its logarithm).
        Second runs have the right scale.
    run
        Hide some molecules, repeat the imputations on the others, on copies, and score these second runs. They take as long as the
        imputations did. Without ``run=True``, a result made from all counts has no valid score: it has seen the held-out molecules.
    frac, random_state, device, progress
        For the second runs: the fraction of the molecules they see, the seed (or generator, or None) of their selection, their device,
        and whether to show a progress bar. As for :func:`report`.

    Returns
    -------
    A row for each layer, after one for ``"raw"`` (the training part itself) and one for ``"gene_mean"`` (every cell is the
    average cell at its own depth). Genes without a molecule in the training part are left out. Lower is better in every column:

    ``poisson``
        :math:`\mathrm{mean}(q - y \log(q + 10^{-6}))`, the Poisson deviance of the held-out molecules up to a constant. Trust this score.
    ``poisson_openproblems``
        :math:`\mathrm{mean}(y - q \log(y + 10^{-6}))`: the score of the Open Problems leaderboard, whose call has its arguments
        swapped. For comparison only: an output multiplied by a millionth scores close to the best there.
    ``mse_log``
        Mean squared difference of log1p(CP10k) of the test part and its expectation under the prediction,
        :math:`E[\log(1 + 10^4 N / \sum_j y_{ij})]` with :math:`N \sim \mathrm{Poisson}(q_{ij})`. Not renormalised.
    ``mse_log_renormalized``
        Mean squared difference of log1p(CP10k) of the test part and log1p of the prediction normalised to CP10k: the MSE of the Open
        Problems leaderboard. It rewards averages of square roots and misplaced mass.

    Raises
    ------
    KeyError
        A layer or the thinned layers do not exist; with ``run=True``, an imputation does not exist, or the object has lost a column or
        table that it used.
    ValueError
        A layer is not on the scale of counts, or has NaN, infinite or negative values; a layer is named twice or like a baseline;
        with ``run=True``, an imputation has some genes only, was made from other counts than the others, or was not made by
        :func:`scimpute.tl.began`, :func:`scimpute.tl.spatial`, :func:`scimpute.tl.nmf` or a model of these.
    FileNotFoundError
        The applied model was moved or deleted.

    Notes
    -----
    Beating ``"gene_mean"`` is not proof that genes inform each other. A cell's own count predicts its held-out molecules, even if all
    genes were permuted over the cells. Compare ``posterior=False``, which depends less on the own count.

    Warns if a layer of this package was not made from the training part, or if the totals of its cells differ from those of the training
    part. A ``size_key`` leaks the number of held-out molecules: pass a column from which ``layers[f"{key}_test"].sum(axis=1)`` is
    subtracted.

    Works through chunks of rows; no dense copy of the matrix is made. Source: molecular cross-validation :cite:p:`Batson2019`.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.tl.began(adata, max_epochs=2)
    >>> scimpute.metrics.heldout(adata, "began", run=True).index.to_list()
    ['raw', 'gene_mean', 'began']
    """
    check_object(adata)
    names = _check.layers(layers, ("raw", "gene_mean"))
    rescale = _check.boolean("rescale", rescale)
    if _check.boolean("run", run):
        return _of_second_runs(adata, names, frac, random_state, device, progress)
    parts = _thinned.read(adata, key, *names)
    rows = {name: scores(of_cells(read, parts), parts) for name, read in parts.predictions(adata, names, rescale=rescale).items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _of_second_runs(
    adata: AnnData,
    names: Sequence[str],
    frac: float,
    random_state: int | np.random.Generator | None,
    device: str,
    progress: bool | None,
) -> pd.DataFrame:
    """The table of second runs."""
    if not names:
        raise ValueError("layers is empty, and run=True is for imputations; name one")
    tables = [name for name in names if is_table(adata, name)]
    if tables:
        raise ValueError(f"{_check.listing(tables)} have some genes only; score these with metrics.gene_trust(run=True) or metrics.report")
    rows: dict[str, dict[str, float]] = {}
    runs = _second_run.second_runs(adata, names, "metrics.heldout", frac, random_state, device, progress)
    for name, second in zip(names, runs, strict=True):
        for row, read in second.whole.predictions(second.work, [_replay.RESULT], own=True).items():
            row = name if row == _replay.RESULT else row
            if row not in rows:
                rows[row] = scores(of_cells(read, second.whole), second.whole)
    return pd.DataFrame.from_dict(rows, orient="index")


def of_cells(read: _thinned.Read, parts: _thinned.Thinned) -> pd.DataFrame:
    """Scores of one prediction in each cell, summed over the genes, ``(n, scores)``."""
    tables = []
    scale = TARGET_SUM / np.maximum(parts.depth_test, 1)
    for rows in chunks(*parts.test.shape):
        y, p = parts.test[rows].toarray(), read(rows)
        q = p * np.float32(parts.ratio)
        truth = log1p_cp10k(y, parts.depth_test[rows])
        total = p.sum(axis=1, keepdims=True)
        # The share comes first, as in the leaderboard: another order differs in the last digit.
        renormalized = np.log1p(p / np.where(total > 0, total, 1) * np.float32(TARGET_SUM))
        sums = {
            "poisson": _per_cell(q - y * np.log(q + EPSILON)),
            "poisson_openproblems": _per_cell(y - q * np.log(y + EPSILON)),
            "mse_log": _per_cell(np.square(truth - expected_log1p(q, scale[rows]))),
            "mse_log_renormalized": _per_cell(np.square(truth - renormalized)),
        }
        tables.append(pd.DataFrame(sums))
    return pd.concat(tables, ignore_index=True)


def _per_cell(values: np.ndarray) -> np.ndarray:
    return values.sum(axis=1, dtype=np.float64)


def scores(sums: pd.DataFrame, parts: _thinned.Thinned) -> dict[str, float]:
    """The row of one prediction: means over all entries."""
    return {name: float(values.sum()) / math.prod(parts.test.shape) for name, values in sums.items()}
