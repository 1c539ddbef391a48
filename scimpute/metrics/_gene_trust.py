from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import xlogy

from .. import _adata, _check, _keys
from .._counts import chunks, column_sums
from . import _thinned

if TYPE_CHECKING:
    from anndata import AnnData

_EPSILON = 1e-6


def gene_trust(adata: AnnData, key: str, *, thin: str = "thin") -> pd.DataFrame:
    r"""Say of every gene how much of its held-out molecules an imputation explains, so that genes can be chosen by it.

    Below, :math:`y` are the gene's molecules held out by :func:`scimpute.pp.thin`, :math:`q` the prediction and :math:`m` that of the
    gene's mean (its share of all training molecules times the cell's depth), both at the depth of the test part.

    Parameters
    ----------
    adata
        Object thinned with :func:`scimpute.pp.thin`.
    key
        Layer to be judged: expected counts (``output="counts"``), made from ``layers[f"{thin}_train"]`` alone. For a result made from all
        counts, judge a second run of the same method on the training part.
    thin
        ``key_added`` of :func:`scimpute.pp.thin`.

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
        The layer, or the thinned layers, do not exist.
    ValueError
        The layer is on another scale than counts, or holds NaN, infinite or negative values.

    Notes
    -----
    Warns of a layer of this package that was made from another matrix than the training part.

    Works through chunks of rows; no dense copy of the matrix is made.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.pp.thin(adata)
    >>> scimpute.tl.began(adata, layer="thin_train", max_epochs=2)
    >>> table = scimpute.metrics.gene_trust(adata, "began")
    >>> adata[:, adata.var["began_trust"] > 0].n_vars <= adata.n_vars
    True
    """
    _adata.check_writable(adata, copy=False)
    if not isinstance(key, str):
        raise ValueError(f"key must be the name of one layer, got {key!r}")
    (name,) = _check.layers(key, ("raw", "gene_mean"))
    parts = _thinned.read(adata, thin)
    read = parts.of_layer(adata, name)
    null, gain, squares = np.zeros((3, len(parts.kept)))
    for rows in chunks(*parts.test.shape):
        y = parts.test[rows].toarray().astype(np.float64)
        m, q = (np.maximum(part(rows) * parts.ratio, _EPSILON) for part in (parts.gene_mean, read))
        null += 2 * (xlogy(y, y / m) - y + m).sum(axis=0)
        # Half the difference of the deviances, of every cell.
        gained = y * np.log(q / m) - q + m
        gain += gained.sum(axis=0)
        squares += np.square(gained).sum(axis=0)
    n = parts.test.shape[0]
    error = np.sqrt(np.maximum(squares - np.square(gain) / n, 0) * n / max(n - 1, 1))
    molecules = column_sums(_adata.read_counts(adata, _keys.test(thin))).astype(np.int64)
    known = molecules[parts.kept] > 0
    table = pd.DataFrame({"trust": np.nan, "z": np.nan, "molecules": molecules}, index=adata.var_names)
    table.iloc[parts.kept, 0] = np.where(known, 2 * gain / np.where(null > 0, null, 1), np.nan)
    table.iloc[parts.kept, 1] = np.where(known & (error > 0), gain / np.where(error > 0, error, 1), np.nan)
    _adata.write_column(adata, _keys.trust(name), table["trust"].to_numpy())
    return table
