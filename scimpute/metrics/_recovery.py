from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import _check
from .._anndata.obs import Categorical, read_label
from .._anndata.read import check_object
from .._keywords import helpful
from .._sparse import log1p_cp10k
from . import _hidden

if TYPE_CHECKING:
    from anndata import AnnData

    from ._hidden import Entries, Hidden, Predict

BASELINES = ("gene_mean", "group_mean", "neighbour_mean")
# A standard deviation below a millionth of the values is rounding: such a gene is constant.
_ROUNDING = 1e-12


@helpful
def recovery(
    adata: AnnData, layers: str | Sequence[str], *, key: str = "hidden", groupby: str | None = None, by: str | None = None
) -> pd.DataFrame:
    r"""Score layers on the entries that were hidden by :func:`scimpute.pp.hide`.

    The layers must be made from ``layers[key]`` alone, on the scale of the matrix with the hidden entries. Below, :math:`x` is a hidden
    value, :math:`p` its prediction and :math:`m_j` the mean of the visible values of gene :math:`j`. Visible values are all entries that
    are not hidden and not NaN. With ``of="nonzero"`` they include the zeros.

    Parameters
    ----------
    adata
        Object with entries hidden by :func:`scimpute.pp.hide`.
    layers
        Name or names of the layers to score.
    key
        ``key_added`` of :func:`scimpute.pp.hide`.
    groupby
        Categorical column of ``obs``, such as the tissue. The means of its groups are a baseline. A column with one level is ignored.
    by
        ``"gene"`` for the :math:`R^2` of each gene instead of the table of scores.

    Returns
    -------
    A row for each layer, after the baselines. ``"gene_mean"`` is :math:`m_j`. ``"group_mean"``, with ``groupby``, is the mean of the
    gene's visible values in the cell's group. ``"neighbour_mean"`` exists if ``obsp["spatial_connectivities"]`` does: the mean of the
    gene's visible values over the cell's neighbours, unweighted and without the cell itself. Both are :math:`m_j` if no value is visible.
    Genes without any visible value are left out. The columns:

    ``rmse``
        Root of the mean squared error over all hidden entries.
    ``rmse_log1p_cp10k``
        The same after dividing truth and prediction by the cell's total in the source matrix, in log1p of CP10k. A negative
        prediction counts as zero. This column exists only if non-zero counts were hidden.
    ``r2``
        Mean over genes of :math:`R_j^2 = 1 - \sum_i (x_{ij} - p_{ij})^2 / \sum_i (x_{ij} - m_j)^2`, with sums over the gene's hidden
        entries. Genes with fewer than 2 hidden entries, or with :math:`x_{ij} = m_j` in all of them, are left out.
    ``r2_pooled``
        The same with both sums over all genes, each divided by the variance of the gene's visible values. A gene's weight is its
        number of hidden entries. Genes whose visible values are all equal are left out.
    ``correlation``
        Mean over genes of the Pearson correlation of :math:`x` and :math:`p` over the hidden entries; 0 for a gene with a constant
        prediction. Genes with fewer than 2 hidden entries, or constant in them, are left out.
    ``r2_within``
        With ``groupby``: ``r2`` with the group mean instead of :math:`m_j`. Differences between groups earn nothing.

    With ``by="gene"``, a row for each gene and, for each row above, a column with :math:`R_j^2`, NaN if undefined.

    Raises
    ------
    KeyError
        A layer, the hidden entries, their source or the column of ``obs`` do not exist.
    ValueError
        A layer has NaN or infinite values at hidden entries; counts were hidden and a layer is on another scale; the source
        or ``layers[key]`` was changed since; no entry is hidden; a layer is named twice or like a baseline.

    Notes
    -----
    Warns if a layer of this package was not made from ``layers[key]``. If counts were hidden, warns of layers on another scale.

    Works through chunks of rows; no dense copy of the matrix is made.
    """
    check_object(adata)
    if by is not None:
        _check.option("by", by, ("gene",))
    names = _check.layers(layers, BASELINES)
    label = read_label(adata, groupby, "groupby") if groupby is not None else None
    sums = add_up(adata, names, key, label)
    if by == "gene":
        return pd.DataFrame({name: sums.r2(name) for name in sums.methods}, index=adata.var_names)
    rows = {name: sums.scores(name, grouped=label is not None) for name in sums.methods}
    return pd.DataFrame.from_dict(rows, orient="index")


class _Method:
    """Sums of one method: squared error of groups and genes, and of cells; moments of the prediction minus the gene's mean."""

    def __init__(self, shape: tuple[int, int], n_obs: int) -> None:
        self.error, self.cell_error = np.zeros(shape), np.zeros(n_obs)
        self.p, self.pp, self.xp = np.zeros((3, shape[1]))
        self.log_error = 0.0


class Sums:
    """Sums over the hidden entries, for all scores.

    Attributes
    ----------
    n, square, null
        Number of entries, sum of squared values, and sum of squared distances from the gene's mean: ``(groups, genes)``.
    x, within
        Sum of distances from the gene's mean, and sum of squared distances from the group's mean: ``(genes,)``.
    cell_null
        Sum of squared distances from the gene's mean in each cell, each divided by the gene's variance, ``(n,)``. ``cell_error`` of a
        method is weighted in the same way.
    observed
        Fraction of the cell's entries (``of="nonzero"``: of its non-zero entries) that is visible.
    """

    def __init__(self, hidden: Hidden, names: Iterable[str]) -> None:
        self._hidden, self.observed = hidden, hidden.observed
        shape, n_obs = hidden.group_mean.shape, len(hidden.observed)
        self.n, self.square, self.null = np.zeros((3, *shape))
        self.x, self.within = np.zeros((2, shape[1]))
        self.cell_null = np.zeros(n_obs)
        self.methods = {name: _Method(shape, n_obs) for name in names}
        spread = hidden.variance > _ROUNDING * np.square(hidden.mean)
        self._weight = np.where(spread, 1 / np.where(spread, hidden.variance, 1), 0)

    def add(self, entries: Entries, predictions: Mapping[str, Predict]) -> None:
        hidden, gene, cell = self._hidden, entries.gene, entries.cell
        group = hidden.codes[cell]
        n_groups, n_genes = self.n.shape
        weight = self._weight[gene]

        def by_group(values: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(group * n_genes + gene, values, minlength=n_groups * n_genes).reshape(n_groups, n_genes)

        def by_gene(values: np.ndarray) -> np.ndarray:
            return np.bincount(gene, values, minlength=n_genes)

        def by_row(values: np.ndarray) -> np.ndarray:
            return np.bincount(entries.row, values, minlength=entries.rows.stop - entries.rows.start)

        # Subtracting the gene's mean keeps the digits of second moments in genes with large values.
        x = entries.value - hidden.mean[gene]
        self.n += by_group()
        self.square += by_group(np.square(entries.value))
        self.null += by_group(np.square(x))
        self.cell_null[entries.rows] += by_row(weight * np.square(x))
        self.x += by_gene(x)
        self.within += by_gene(np.square(entries.value - hidden.group_mean[group, gene]))
        for name, predict in predictions.items():
            method, value = self.methods[name], predict(entries)
            p, error = value - hidden.mean[gene], np.square(entries.value - value)
            method.error += by_group(error)
            method.cell_error[entries.rows] += by_row(weight * error)
            method.p += by_gene(p)
            method.pp += by_gene(np.square(p))
            method.xp += by_gene(x * p)
            if hidden.counts:
                truth, predicted = (log1p_cp10k(counts, hidden.totals[cell]) for counts in (entries.value, np.maximum(value, 0)))
                method.log_error += float(np.square(truth - predicted).sum())

    def r2(self, name: str, *, by_group: bool = False) -> np.ndarray:
        """R2 of each gene ``(genes,)``, or of each group and gene; NaN if undefined."""
        parts = (self.n, self._scale(), self.null, self.methods[name].error)
        return _r2(*(part if by_group else part.sum(axis=0) for part in parts))

    def _scale(self) -> np.ndarray:
        """Sum of squares of each group and gene, the reference for rounding errors."""
        return self.square + self.n * np.square(self._hidden.mean)

    def _correlation(self, name: str) -> np.ndarray:
        method, n, tiny = self.methods[name], np.maximum(self.n.sum(axis=0), 1), _ROUNDING * self._scale().sum(axis=0)
        of_x, of_p = self.null.sum(axis=0) - np.square(self.x) / n, method.pp - np.square(method.p) / n
        defined, varies = (n >= 2) & (of_x > tiny), of_p > tiny + _ROUNDING * method.pp
        both = np.sqrt(np.where(defined & varies, of_x * of_p, 1))
        return np.where(defined, np.where(varies, (method.xp - self.x * method.p / n) / both, 0), np.nan)

    def scores(self, name: str, *, grouped: bool) -> dict[str, float]:
        """A row of the table."""
        method, n = self.methods[name], self.n.sum(axis=0)
        scores = {"rmse": float(np.sqrt(method.error.sum() / n.sum()))}
        if self._hidden.counts:
            scores["rmse_log1p_cp10k"] = float(np.sqrt(method.log_error / n.sum()))
        error, null = method.error.sum(axis=0) @ self._weight, self.null.sum(axis=0) @ self._weight
        scores |= {"r2": _mean(self.r2(name)), "r2_pooled": 1 - error / null if null > 0 else np.nan}
        scores["correlation"] = _mean(self._correlation(name))
        if grouped:
            scores["r2_within"] = _mean(_r2(n, self._scale().sum(axis=0), self.within, method.error.sum(axis=0)))
        return scores


def _r2(n: np.ndarray, scale: np.ndarray, null: np.ndarray, error: np.ndarray) -> np.ndarray:
    defined = (n >= 2) & (null > _ROUNDING * scale)
    # The same numbers summed in two orders differ by rounding. Such a difference counts as R2 = 0.
    r2 = np.where(np.abs(null - error) <= _ROUNDING * null, 0, 1 - error / np.where(defined, null, 1))
    return np.where(defined, r2, np.nan)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else np.nan


def add_up(adata: AnnData, names: Sequence[str], key: str, label: Categorical | None, genes: np.ndarray | None = None) -> Sums:
    """The sums of the baselines and the layers, over all genes or over some."""
    hidden = _hidden.read(adata, key, label)
    if genes is not None:
        hidden = replace(hidden, known=hidden.known & np.isin(np.arange(adata.n_vars), genes))
    predictions = _hidden.predictions(hidden, names, grouped=label is not None)
    sums = Sums(hidden, predictions)
    for entries in hidden.entries():
        sums.add(entries, predictions)
    if not sums.n.any():
        which = "a gene" if genes is None else "any of these genes"
        raise ValueError(f"key={key!r}: no entry is hidden in {which} with visible values; call scimpute.pp.hide with another frac")
    return sums
