from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import xlogy

from .. import _check
from .._anndata import keys
from .._anndata.counts import read_counts
from .._anndata.write import check_writable, write_column
from .._keywords import helpful
from .._sparse import chunks, column_sums
from . import _replay, _second_run, _thinned
from ._heldout import EPSILON

if TYPE_CHECKING:
    from anndata import AnnData


@helpful
def gene_trust(
    adata: AnnData,
    key: str,
    *,
    thin: str = "thin",
    rescale: bool = False,
    run: bool = False,
    frac: float = 0.9,
    random_state: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Score each gene: how much of its held-out molecules an imputation explains. Use the score to select genes.

    Below, :math:`y` are the gene's molecules held out by :func:`scimpute.pp.thin` and :math:`q` is the prediction. :math:`m` is the
    prediction by the gene's mean: its share of all training molecules times the cell's depth. Both are at the depth of the test part.

    Parameters
    ----------
    adata
        Object thinned with :func:`scimpute.pp.thin`; with ``run=True``, any object with an imputation of ``scimpute.tl``.
    key
        Layer to score: expected counts (``output="counts"``), made from ``layers[f"{thin}_train"]`` alone. With ``run=True``, the
        ``key_added`` of an imputation of all counts, on any scale.
    thin
        ``key_added`` of :func:`scimpute.pp.thin`. Not read with ``run=True``.
    rescale
        Bring each cell of the layer to the total of its training part, as in :func:`heldout`.
    run
        Hide some molecules and repeat the imputation on the others, on a copy. The scores of this second run stand for ``key``. The run
        takes as long as the imputation did. Without ``run=True``, a result made from all counts has no valid score: it has seen the
        molecules that would be predicted.
    frac, random_state, device, progress
        For the second run: the fraction of the molecules it sees, the seed (or generator, or None) of their selection, its device, and
        whether to show a progress bar. As for :func:`report`.

    Returns
    -------
    A row for each gene. The column ``trust`` is also written to ``adata.var[f"{key}_trust"]`` and replaces any earlier content. The
    columns:

    ``trust``
        :math:`1 - D(y, q) / D(y, m)` with the Poisson deviance :math:`D(y, q) = 2 \sum_i y_i \log(y_i / q_i) - y_i + q_i`. 0 is the gene's
        mean, 1 would predict every molecule, and below 0 the imputation made the gene worse. Molecules are random, so even the true rates
        are far from 1 in a gene with few molecules. NaN if the gene has no molecule in the training or the test part.
    ``z``
        Gain over the gene's mean, summed over cells, in its standard errors. A gene with ``trust`` near 0 and a small ``z`` is filled
        with little more than its mean. Do not use a gene with a large negative ``z``.
    ``molecules``
        Number of held-out molecules, also for genes without a training molecule.

    Raises
    ------
    KeyError
        The layer or the thinned layers do not exist; with ``run=True``, the imputation does not exist, or the object has lost a column
        or table that the imputation used.
    ValueError
        The layer is not on the scale of counts, or has NaN, infinite or negative values; with ``run=True``, the key was not imputed by
        :func:`scimpute.tl.began`, :func:`scimpute.tl.spatial`, :func:`scimpute.tl.nmf` or a model of these.
    FileNotFoundError
        The applied model was moved or deleted.

    Notes
    -----
    Warns if a layer of this package was not made from the training part, or if the totals of its cells differ from those of the training
    part.

    Works through chunks of rows; no dense copy of the matrix is made.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.tl.began(adata, max_epochs=2)
    >>> table = scimpute.metrics.gene_trust(adata, "began", run=True)
    >>> adata[:, adata.var["began_trust"] > 0].n_vars <= adata.n_vars
    True

    The same by hand, for any method:

    >>> scimpute.pp.thin(adata)
    >>> scimpute.tl.began(adata, layer="thin_train", key_added="of_train", max_epochs=2)
    >>> table = scimpute.metrics.gene_trust(adata, "of_train")
    """
    check_writable(adata, copy=False)
    if not isinstance(key, str):
        raise ValueError(f"key must be the name of one layer, got {key!r}")
    (name,) = _check.layers(key, ("raw", "gene_mean"))
    second, rescale = _check.boolean("run", run), _check.boolean("rescale", rescale)
    table = _of_second_run(adata, name, frac, random_state, device, progress) if second else of_layer(adata, name, thin, rescale=rescale)
    write_column(adata, keys.trust(name), table["trust"].to_numpy())
    return table


def _of_second_run(
    adata: AnnData, key: str, frac: float, random_state: int | np.random.Generator | None, device: str, progress: bool | None
) -> pd.DataFrame:
    """The table of a second run. ``trust`` and ``z`` are NaN for genes that were not imputed."""
    (second,) = _second_run.second_runs(adata, [key], "metrics.gene_trust", frac, random_state, device, progress)
    table = of_layer(second.work, _replay.RESULT, _second_run.THIN, own=True).set_axis(adata.var_names)
    others = np.setdiff1d(np.arange(adata.n_vars), second.genes)
    table.iloc[others, :2] = np.nan
    return table


def of_layer(adata: AnnData, name: str, thin: str, *, rescale: bool = False, own: bool = False) -> pd.DataFrame:
    """The table of a layer made from the training part; nothing is written. ``own`` marks the layer of a second run."""
    parts = _thinned.read(adata, thin, name)
    read = parts.of_layer(adata, name, rescale=rescale, own=own)
    null, gain, squares = np.zeros((3, len(parts.kept)))
    for rows in chunks(*parts.test.shape):
        y = parts.test[rows].toarray().astype(np.float64)
        m, q = (np.maximum(part(rows) * parts.ratio, EPSILON) for part in (parts.gene_mean, read))
        null += 2 * (xlogy(y, y / m) - y + m).sum(axis=0)
        # Half the difference of the deviances, for each cell.
        per_cell = y * np.log(q / m) - q + m
        gain += per_cell.sum(axis=0)
        squares += np.square(per_cell).sum(axis=0)
    n = parts.test.shape[0]
    error = np.sqrt(np.maximum(squares - np.square(gain) / n, 0) * n / max(n - 1, 1))
    molecules = column_sums(read_counts(adata, keys.test(thin))).astype(np.int64)
    known = molecules[parts.kept] > 0
    table = pd.DataFrame({"trust": np.nan, "z": np.nan, "molecules": molecules}, index=adata.var_names)
    table.iloc[parts.kept, 0] = np.where(known, 2 * gain / np.where(null > 0, null, 1), np.nan)
    table.iloc[parts.kept, 1] = np.where(known & (error > 0), gain / np.where(error > 0, error, 1), np.nan)
    return table
