from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import _check
from .._anndata.read import check_object, layer_names
from .._anndata.tables import read_measurements
from .._keywords import helpful
from .._sparse import TARGET_SUM, chunks, column_sums
from . import _log_profiles
from ._ranks import centred_ranks

if TYPE_CHECKING:
    from anndata import AnnData

_GENE_MEAN = "gene_mean"
# A spread below this share of the values is rounding.
_ROUNDING = 1e-6


@helpful
def agreement(
    adata: AnnData,
    layers: str | Sequence[str],
    truth: str,
    *,
    genes: Mapping[str, str] | None = None,
    layer: str | None = None,
    output: str | None = None,
    by: str | None = None,
) -> pd.DataFrame:
    """Compare layers with a truth that is independent of the counts: other profiles of the same cells, or their proteins.

    Profiles are compared as log1p(CP10k). Proteins are compared unchanged.

    Parameters
    ----------
    adata
        Object with the counts, the layers and the truth.
    layers
        Name or names of the layers to compare.
    truth
        A layer with the true profile of each cell, such as the profile of the cell's pooled sample. Or a key of ``obsm`` with a DataFrame
        of other measurements of the same cells, such as surface proteins.
    genes
        For a table in ``obsm``: the gene of each column to compare, as ``{"CD3": "CD3E"}``. None compares the columns with the name of a
        gene.
    layer
        Layer with the counts; ``X`` if None.
    output
        Scale of layers of other packages, including the truth: ``"counts"``, ``"rate"`` or ``"log1p"`` (of CP10k). Layers of this package
        record their scale. None means counts; layers that look like logarithms are then refused.
    by
        ``"gene"`` for the correlation of each gene instead of the table.

    Returns
    -------
    A row for each layer, after ``"raw"`` (the counts) and ``"gene_mean"`` (every cell the average cell). The columns:

    ``gene_correlation``
        Mean over genes (proteins) of Spearman's correlation over cells: are the right cells high? 0 for a constant prediction.
        Genes with a constant truth are left out.
    ``cell_correlation``
        Mean over cells of Pearson's correlation over genes. High for any prediction, because genes differ in level.
    ``cell_correlation_centred``
        The same after subtracting each gene's mean over the cells from the truth and from the prediction: are the cell's own features
        right? 0 for a cell whose prediction is the average cell.
    ``rmse``
        Root of the mean squared difference over all entries.

    The last three columns exist only if the truth is a layer. With ``by="gene"``, a row for each gene (for proteins, each column of the
    table) and a column for each row above, with Spearman's correlation; NaN if the truth is constant.

    Raises
    ------
    KeyError
        A layer, the truth, or a gene or column in ``genes`` does not exist.
    TypeError, ValueError
        The table in ``obsm`` has NaN, or no column with the name of a gene; ``genes`` is passed but the truth is a layer; the counts are
        not counts; a layer has NaN, infinite or negative values; a layer looks like logarithms and ``output`` is None, or the reverse
        with ``"log1p"``; a layer is named twice or is the truth.

    Notes
    -----
    Works through chunks of genes; no dense copy of a matrix is made.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.tl.began(adata, max_epochs=2)
    >>> scimpute.metrics.agreement(adata, "began", "rate", output="rate").shape
    (3, 4)
    """
    check_object(adata)
    if by is not None:
        _check.option("by", by, ("gene",))
    names = _check.layers(layers, (_log_profiles.RAW, _GENE_MEAN))
    if truth in names:
        raise ValueError(f"truth={truth!r} is also one of the layers; leave it out of layers")
    is_layer = truth in layer_names(adata)
    table = None if is_layer else read_measurements(adata, truth, "truth")
    if is_layer and genes is not None:
        raise ValueError(f"genes= is for a table in obsm, but truth={truth!r} is a layer; leave genes out")
    columns, places = _columns(adata, table, genes)
    profiles = _log_profiles.read(adata, [*names, *([truth] if is_layer else [])], layer, output)
    of_truth = profiles.pop(truth, None)
    share = column_sums(profiles[_log_profiles.RAW].matrix)
    share = np.log1p(TARGET_SUM * share / max(share.sum(), 1))
    rows = [_log_profiles.RAW, _GENE_MEAN, *names]
    sums = {name: _Sums(adata.n_obs, len(places)) for name in rows}
    for part in chunks(len(places), adata.n_obs):
        place = places[part]
        if of_truth is not None:
            y = of_truth.dense(place).astype(np.float64)
        else:
            assert table is not None, "the truth is a layer or a table"
            y = table[[columns[i] for i in range(part.start, part.stop)]].to_numpy(dtype=np.float64)
        for name in rows:
            x = np.tile(share[place], (adata.n_obs, 1)) if name == _GENE_MEAN else profiles[name].dense(place).astype(np.float64)
            sums[name].add(part, x, y)
    if by == "gene":
        return pd.DataFrame({name: sums[name].of_genes for name in rows}, index=columns)
    return pd.DataFrame.from_dict({name: sums[name].scores(profiles=is_layer) for name in rows}, orient="index")


def _columns(adata: AnnData, table: pd.DataFrame | None, genes: Mapping[str, str] | None) -> tuple[list[str], np.ndarray]:
    """Names of the columns to compare, and the places of their genes in the object."""
    names = adata.var_names.astype(str)
    if table is None:
        return list(names), np.arange(adata.n_vars)
    if not names.is_unique:
        raise ValueError("genes are matched by name but adata.var_names are not unique; call adata.var_names_make_unique() first")
    pairs = {str(column): str(column) for column in table.columns if column in names} if genes is None else dict(genes)
    if not pairs:
        raise ValueError(
            f"no column of the table has the name of a gene: {_check.listing(table.columns, 5)}; pass the gene of each column with "
            "genes={column: gene}"
        )
    for column, gene in pairs.items():
        if column not in table.columns:
            raise _check.missing("genes: column", column, table.columns)
        if gene not in names:
            raise _check.missing("genes: gene", gene, names)
    return list(pairs), names.get_indexer(list(pairs.values()))


class _Sums:
    """Correlation of each gene, and the sums for the correlations of each cell."""

    def __init__(self, n_obs: int, n_genes: int) -> None:
        self.of_genes = np.full(n_genes, np.nan)
        self.plain, self.centred = np.zeros((2, 5, n_obs))
        self.error, self.n = 0.0, 0

    def add(self, part: slice, x: np.ndarray, y: np.ndarray) -> None:
        """Add a part of the genes: prediction and truth, ``(n, genes)``."""
        self.of_genes[part] = _spearman(x, y)
        self.n += x.shape[1]
        self.error += float(np.square(x - y).sum())
        for sums, a, b in ((self.plain, x, y), (self.centred, _centred(x), _centred(y))):
            sums += np.stack([a.sum(axis=1), b.sum(axis=1), (a * a).sum(axis=1), (b * b).sum(axis=1), (a * b).sum(axis=1)])

    def scores(self, *, profiles: bool) -> dict[str, float]:
        """A row of the table."""
        defined = self.of_genes[~np.isnan(self.of_genes)]
        scores = {"gene_correlation": float(defined.mean()) if defined.size else np.nan}
        if profiles:
            scores["cell_correlation"] = _mean_correlation(self.plain, self.n)
            scores["cell_correlation_centred"] = _mean_correlation(self.centred, self.n)
            scores["rmse"] = float(np.sqrt(self.error / (self.n * self.plain.shape[1])))
        return scores


def _centred(values: np.ndarray) -> np.ndarray:
    """Each gene minus its mean; exactly 0 in a constant gene."""
    mean = values.mean(axis=0)
    centred = values - mean
    centred[:, np.abs(centred).max(axis=0) <= _ROUNDING * np.maximum(np.abs(mean), 1)] = 0
    return centred


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of the ranks of each column; 0 if ``x`` is constant, NaN if ``y`` is."""
    a, b = (centred_ranks(np.round(values, 9)) for values in (x, y))
    of_a, of_b = np.square(a).sum(axis=0), np.square(b).sum(axis=0)
    both = np.sqrt(np.where((of_a > 0) & (of_b > 0), of_a * of_b, 1))
    return np.where(of_b > 0, (a * b).sum(axis=0) / both, np.nan)


def _mean_correlation(sums: np.ndarray, n: int) -> float:
    """Mean over cells of Pearson's correlation. A constant prediction counts as 0; cells with a constant truth are left out."""
    of_x, of_y, of_xx, of_yy, of_xy = sums
    spread_x, spread_y = of_xx - np.square(of_x) / n, of_yy - np.square(of_y) / n
    defined, varies = spread_y > _ROUNDING * of_yy / n, spread_x > _ROUNDING * of_xx / n
    both = np.sqrt(np.where(defined & varies, spread_x * spread_y, 1))
    correlation = np.where(varies, (of_xy - of_x * of_y / n) / both, 0)[defined]
    return float(correlation.mean()) if correlation.size else np.nan
