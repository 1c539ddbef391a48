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
    r"""Say of every gene how much of its held-out molecules an imputation explains, so that genes can be chosen by it.

    Below, :math:`y` are the gene's molecules held out by :func:`scimpute.pp.thin`, :math:`q` the prediction and :math:`m` that of the
    gene's mean (its share of all training molecules times the cell's depth), both at the depth of the test part.

    Parameters
    ----------
    adata
        Object thinned with :func:`scimpute.pp.thin`; with ``run=True``, any object with an imputation of ``scimpute.tl``.
    key
        Layer to be judged: expected counts (``output="counts"``), made from ``layers[f"{thin}_train"]`` alone. With ``run=True``, the
        ``key_added`` of an imputation of all counts, on any scale.
    thin
        ``key_added`` of :func:`scimpute.pp.thin`. Not read with ``run=True``.
    rescale
        Bring every cell of the layer to the total of its training part, as in :func:`heldout`.
    run
        Hide molecules of what was imputed, and impute the others once more in the same way, on a copy: what is found of this second run
        is taken to hold for ``key``. It takes as long as the imputation did. Without, a result that was made from all counts cannot be
        judged, as it has seen the molecules that it would be scored on.
    frac, random_state, device, progress
        Of the second run: fraction of the molecules that it is given, seed (or generator, or None) of which these are, where it runs, and
        whether a progress bar is shown, as of :func:`report`.

    Returns
    -------
    A row for each gene. ``adata.var[f"{key}_trust"]`` is written with the column ``trust``, whatever was there. The columns:

    ``trust``
        :math:`1 - D(y, q) / D(y, m)` with the Poisson deviance :math:`D(y, q) = 2 \sum_i y_i \log(y_i / q_i) - y_i + q_i`. 0 is the gene's
        mean, 1 would be the very molecules, and below 0 the gene was made worse. The molecules are random themselves, so that even
        the truth is far from 1 in a gene with few; NaN where the gene has none in the training or in the test part.
    ``z``
        Gain over the gene's mean, summed over cells, in its standard errors. A gene with ``trust`` near 0 and a small ``z`` is filled
        with little more than its mean; one with a large negative ``z`` should not be used.
    ``molecules``
        Number of molecules held out, also of genes of which none was kept.

    Raises
    ------
    KeyError
        The layer, or the thinned layers, do not exist; with ``run=True``, there is no such imputation, or what it was told is not in the
        object any more.
    ValueError
        The layer is on another scale than counts, or holds NaN, infinite or negative values; with ``run=True``, it was not imputed by
        :func:`scimpute.tl.began`, :func:`scimpute.tl.spatial`, :func:`scimpute.tl.nmf` or a model of these.
    FileNotFoundError
        The model that was applied is not where it was.

    Notes
    -----
    Warns of a layer of this package that was made from another matrix than the training part, and of one whose cells have other totals
    than there.

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
    """The table of an imputation made again; what was not imputed has no trust."""
    (second,) = _second_run.second_runs(adata, [key], "metrics.gene_trust", frac, random_state, device, progress)
    table = of_layer(second.work, _replay.RESULT, _second_run.THIN, own=True).set_axis(adata.var_names)
    others = np.setdiff1d(np.arange(adata.n_vars), second.genes)
    table.iloc[others, :2] = np.nan
    return table


def of_layer(adata: AnnData, name: str, thin: str, *, rescale: bool = False, own: bool = False) -> pd.DataFrame:
    """The table of a layer that was made from the training part; nothing is written. ``own``: it is of a second run."""
    parts = _thinned.read(adata, thin, name)
    read = parts.of_layer(adata, name, rescale=rescale, own=own)
    null, gain, squares = np.zeros((3, len(parts.kept)))
    for rows in chunks(*parts.test.shape):
        y = parts.test[rows].toarray().astype(np.float64)
        m, q = (np.maximum(part(rows) * parts.ratio, EPSILON) for part in (parts.gene_mean, read))
        null += 2 * (xlogy(y, y / m) - y + m).sum(axis=0)
        # Half the difference of the deviances, of every cell.
        gained = y * np.log(q / m) - q + m
        gain += gained.sum(axis=0)
        squares += np.square(gained).sum(axis=0)
    n = parts.test.shape[0]
    error = np.sqrt(np.maximum(squares - np.square(gain) / n, 0) * n / max(n - 1, 1))
    molecules = column_sums(read_counts(adata, keys.test(thin))).astype(np.int64)
    known = molecules[parts.kept] > 0
    table = pd.DataFrame({"trust": np.nan, "z": np.nan, "molecules": molecules}, index=adata.var_names)
    table.iloc[parts.kept, 0] = np.where(known, 2 * gain / np.where(null > 0, null, 1), np.nan)
    table.iloc[parts.kept, 1] = np.where(known & (error > 0), gain / np.where(error > 0, error, 1), np.nan)
    return table
