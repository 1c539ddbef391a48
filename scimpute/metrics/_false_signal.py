from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import stats

from .. import _check, _random
from .._anndata.copies import holds_only, of_counts, result_of
from .._anndata.counts import read_counts
from .._anndata.obs import read_label
from .._anndata.read import check_object
from .._counts.output import OUTPUTS
from .._keywords import helpful
from .._methods import METHODS
from .._sparse import chunks, column_sums, log1p_cp10k
from ._ranks import centred_ranks

if TYPE_CHECKING:
    from anndata import AnnData

MIN_CELLS = 20
HALF_COLUMN = "random_half"
"""Column of ``obs`` with the random halves."""
_TIE = 1e-5
"""Relative difference below which two values are equal: layers are float32, and many imputers compute in float32."""
_METHODS = [name for name, method in METHODS.items() if method.on_cells is not None]


@helpful
def false_signal(
    adata: AnnData,
    impute: str | Callable[..., Any],
    *,
    groups: str | None = None,
    layer: str | None = None,
    output: str = "counts",
    n_splits: int = 5,
    n_labelled: int | None = None,
    n_genes: int = 200,
    alpha: float = 0.05,
    random_state: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """Impute data without any signal, and count false positives.

    There are two null experiments :cite:p:`Andrews2018`. *Halves*: the cells of one group are split at random into two halves. No gene
    differs between the halves. *Permuted*: the counts of each gene are permuted over the cells, gene by gene. No two genes are correlated.
    The table compares the imputed values with the counts. If the imputation takes a label, both experiments run once more with the random
    half as the label. That shows what conditioning on a label does to a test of this label.

    Parameters
    ----------
    adata
        Object with counts. It is not changed.
    impute
        ``"began"`` or ``"nmf"`` for the method of this package with its defaults. Or a function that takes an object with counts in
        ``X`` (a copy of its own) and returns the imputed matrix, ``n_obs`` x ``n_vars``. If the function has a second argument without a
        default, that argument is ``"random_half"``, the column of ``obs`` with the label, or None.
    groups
        Column of ``obs`` with cell types. Only the largest type is used, so that no known type differs between the halves. None: all cells
        are one group.
    layer
        Layer with the counts; ``X`` if None.
    output
        Scale of the matrix that a function returns: ``"counts"`` (expected counts), ``"rate"`` or ``"log1p"`` (of CP10k).
    n_splits
        Number of random splits into halves.
    n_labelled
        Number of these splits that are imputed once more with the half as a label; all if None, and at most all. 0 omits the label.
    n_genes
        Number of genes for the correlations: the genes with the most molecules.
    alpha
        False discovery rate (Benjamini-Hochberg) at which a gene is called different.
    random_state
        Seed of the splits, generator, or None for a fresh one.

    Returns
    -------
    Rows ``"raw"`` (the counts), ``"imputed"`` and, if the imputation takes a label, ``"imputed_with_label"``. The columns:

    ``differential_genes``
        Number of genes called different between two random halves, by the Mann-Whitney test of log1p(CP10k), mean over the splits.
        0 is right.
    ``tested_genes``
        Number of tested genes: the genes with a molecule in the group.
    ``correlation``
        Mean absolute Spearman correlation between permuted genes. The value of the counts is chance; the imputation made any excess.

    Raises
    ------
    KeyError
        The layer or the column does not exist.
    TypeError
        ``impute`` is not a function.
    ValueError
        The group has fewer than 20 cells; the returned matrix has another shape or NaN, infinite or negative values.
    RuntimeError
        ``impute`` changed its input object.

    Notes
    -----
    An imputation with a label runs ``2 + n_labelled + 1`` times, any other twice. Tests work through chunks of genes.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts(80)
    >>> table = scimpute.metrics.false_signal(adata, lambda a: a.X)
    >>> bool(table.loc["imputed", "correlation"] == table.loc["raw", "correlation"])
    True
    """
    check_object(adata)
    n_splits, n_genes = _check.integer("n_splits", n_splits), _check.integer("n_genes", n_genes, 2)
    n_labelled = n_splits if n_labelled is None else _check.integer("n_labelled", n_labelled, 0)
    alpha = _check.number("alpha", alpha, 0, 1, open_low=True, open_high=True)
    call, output, labelled = _imputer(impute, output)
    counts = _group(adata, groups, read_counts(adata, layer))
    rng = _random.generator(random_state)
    halves = [rng.permutation(counts.shape[0]) % 2 for _ in range(n_splits)]
    permuted = _permuted(counts, rng)
    names = adata.var_names
    tested = np.flatnonzero(column_sums(counts) > 0)
    if len(tested) < 2:
        raise ValueError(f"{len(tested)} genes have a molecule in these cells; at least 2 are needed")
    most = np.sort(tested[np.argsort(-column_sums(counts)[tested], kind="stable")[:n_genes]])

    def run(matrix: sp.csr_matrix, half: np.ndarray, *, label: bool) -> np.ndarray:
        return _run(call, matrix, names, half, label=label)

    def row(whole: Callable[[np.ndarray], Any], of_permuted: Any, scale: str, n_halves: int = n_splits) -> dict[str, float]:
        n_different = [_differential(whole(half), half, tested, alpha, scale) for half in halves[:n_halves]]
        correlation = _correlation(_logged(of_permuted, most, _totals(of_permuted, scale)))
        return {"differential_genes": float(np.mean(n_different)), "tested_genes": len(tested), "correlation": correlation}

    rows = {"raw": row(lambda half: counts, permuted, "counts")}
    imputed = run(counts, halves[0], label=False)
    rows["imputed"] = row(lambda half: imputed, run(permuted, halves[0], label=False), output)
    if labelled and n_labelled:
        of_permuted = run(permuted, halves[0], label=True)
        rows["imputed_with_label"] = row(lambda half: run(counts, half, label=True), of_permuted, output, n_labelled)
    return pd.DataFrame.from_dict(rows, orient="index").astype({"tested_genes": int})


def _imputer(impute: str | Callable[..., Any], output: str) -> tuple[Callable[[AnnData, str | None], Any], str, bool]:
    """A function of an object and a label, the scale of its result, and whether it takes a label."""
    _check.option("output", output, OUTPUTS)
    if isinstance(impute, str):
        from .. import tl

        method = METHODS[_check.option("impute", impute, _METHODS)]

        def impute_with_method(work: AnnData, label: str | None) -> Any:
            arguments = {**(method.on_cells or {}), **({"celltype_key": label} if method.takes_label else {})}
            getattr(tl, method.name)(work, **arguments)
            return result_of(work, method.key)

        return impute_with_method, "counts", method.takes_label
    if not callable(impute):
        raise TypeError(f"impute must be a function or one of {_check.listing(_METHODS)}, got {impute!r}")
    try:
        parameters = list(inspect.signature(impute).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        parameters = []
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    labelled = sum(p.kind in places and p.default is p.empty for p in parameters) > 1
    return (lambda adata, label: impute(adata, label) if labelled else impute(adata)), output, labelled


def _group(adata: AnnData, groups: str | None, counts: sp.csr_matrix) -> sp.csr_matrix:
    """The counts of the largest group."""
    where = "the object"
    if groups is not None:
        label = read_label(adata, groups, "groups")
        if label is not None:
            largest = int(np.bincount(label.codes).argmax())
            counts, where = counts[label.codes == largest], f"the largest group of {groups!r}, {label.levels[largest]!r},"
    if counts.shape[0] < MIN_CELLS:
        raise ValueError(f"{where} has {counts.shape[0]} cells; at least {MIN_CELLS} are needed for two halves")
    return counts


def _permuted(counts: sp.csr_matrix, rng: np.random.Generator) -> sp.csr_matrix:
    """The counts of each gene, permuted over the cells."""
    columns = counts.tocsc().copy()
    for gene in range(columns.shape[1]):
        first, last = columns.indptr[gene : gene + 2]
        columns.indices[first:last] = rng.choice(columns.shape[0], last - first, replace=False)
    permuted = columns.tocsr()
    permuted.sort_indices()
    return permuted


def _run(
    call: Callable[[AnnData, str | None], Any], counts: sp.csr_matrix, names: pd.Index, half: np.ndarray, *, label: bool
) -> np.ndarray:
    """The imputed matrix of these counts, checked."""
    obs = pd.DataFrame({HALF_COLUMN: pd.Categorical(np.where(half == 0, "first", "second"))}, index=[f"cell{i}" for i in range(len(half))])
    work = of_counts(counts.copy(), names, obs if label else obs[[]])
    imputed = call(work, HALF_COLUMN if label else None)
    if not holds_only(work, counts):
        raise RuntimeError("impute has changed its input object; let it work on a copy and return the imputed matrix")
    if sp.issparse(imputed) or isinstance(imputed, np.matrix):
        imputed = imputed.toarray() if sp.issparse(imputed) else np.asarray(imputed)
    if not isinstance(imputed, np.ndarray) or imputed.shape != counts.shape:
        what = f"shape {imputed.shape}" if isinstance(imputed, np.ndarray) else f"type {type(imputed).__name__}"
        raise ValueError(f"impute returned {what}; it must return a matrix of shape {counts.shape}")
    if imputed.dtype.kind not in "biuf" or not np.isfinite(imputed).all() or imputed.min() < 0:
        raise ValueError("impute returned NaN, infinite or negative values; it must return expected counts, rates or log1p(CP10k)")
    return imputed


def _totals(matrix: Any, scale: str) -> np.ndarray | None:
    """Sum of each row, ``(n,)``; None if the matrix is log1p(CP10k) already."""
    return None if scale == "log1p" else np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def _logged(matrix: Any, genes: np.ndarray, totals: np.ndarray | None) -> np.ndarray:
    """log1p(CP10k) of some genes, ``(n, genes)``."""
    part = matrix[:, genes]
    part = (part.toarray() if sp.issparse(part) else part).astype(np.float64)
    return part if totals is None else log1p_cp10k(part, totals)


def _differential(matrix: Any, half: np.ndarray, genes: np.ndarray, alpha: float, scale: str) -> int:
    """Number of genes that are called different between the halves."""
    p, totals = np.ones(len(genes)), _totals(matrix, scale)
    matrix = matrix.tocsc() if sp.issparse(matrix) else matrix
    for part in chunks(len(genes), len(half)):
        values = _rounded(_logged(matrix, genes[part], totals))
        varies = np.ptp(values, axis=0) > 0
        if varies.any():
            values = values[:, varies]
            p[np.flatnonzero(varies) + part.start] = stats.mannwhitneyu(values[half == 0], values[half == 1], method="asymptotic").pvalue
    return int((stats.false_discovery_control(p) < alpha).sum()) if len(p) else 0


def _rounded(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of the values of each column, ``(n, genes)``. Values that differ only by rounding get the same number.

    Steps are counted from the highest value. A constant column is therefore 0 everywhere, whatever its value.
    """
    logs = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    return np.round((logs - logs.max(axis=0)) / _TIE)


def _correlation(values: np.ndarray) -> float:
    """Mean absolute Spearman correlation between columns; 0 for a constant column."""
    ranks = centred_ranks(_rounded(values))
    norm = np.sqrt(np.square(ranks).sum(axis=0))
    ranks /= np.where(norm > 0, norm, 1)
    return float(np.abs(ranks.T @ ranks)[np.triu_indices(values.shape[1], 1)].mean())
