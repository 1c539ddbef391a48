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
HALF = "random_half"
"""Column of ``obs`` with the random halves."""
_STEP = 1e-5
"""Relative difference below which two values are equal: layers are float32, and so is the arithmetic of many imputers."""
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
    """Impute data in which there is nothing to be found, and count what is found.

    Two null experiments :cite:p:`Andrews2018`. *Halves*: cells of one group are dealt at random into two halves; no gene differs between
    these. *Permuted*: the counts of every gene are dealt anew over the cells, each gene apart; no two genes are correlated. What the
    imputation makes of either is beside what the counts themselves give. Then both once more with the random half given to the
    imputation as a label, which shows what conditioning on a label does to a test of this label.

    Parameters
    ----------
    adata
        Object with counts. It is not changed.
    impute
        ``"began"`` or ``"nmf"`` for the method of this package at its defaults, or any function that takes an object with counts in
        ``X`` (a copy of its own) and returns the imputed matrix, ``n_obs`` x ``n_vars``. One that takes a second argument without a
        default is given ``"random_half"``, the column of ``obs`` to be conditioned on, or None.
    groups
        Column of ``obs`` with cell types. The largest is taken, so that halves differ by nothing that is known. None: all cells are
        one group.
    layer
        Layer with the counts; ``X`` where None.
    output
        Scale of what a function returns: ``"counts"`` (expected counts), ``"rate"`` or ``"log1p"`` (of CP10k).
    n_splits
        Number of random deals into halves.
    n_labelled
        Number of these that are imputed once more with the half as a label; all where None, and at most all. 0 leaves the label out.
    n_genes
        Number of genes between which correlations are looked at: those with the most molecules.
    alpha
        False discovery rate (Benjamini-Hochberg) at which a gene is called different.
    random_state
        Seed of the deals, generator, or None for a fresh one.

    Returns
    -------
    Rows ``"raw"`` (the counts), ``"imputed"`` and, where the imputation takes a label, ``"imputed_with_label"``. The columns:

    ``differential_genes``
        Number of genes called different between two random halves, by the Mann-Whitney test of log1p(CP10k), mean over the splits.
        0 is right.
    ``tested_genes``
        Number of genes tested, those with a molecule in the group.
    ``correlation``
        Mean absolute Spearman correlation between permuted genes. That of the counts is what chance gives; more was made by the imputation.

    Raises
    ------
    KeyError
        The layer or the column does not exist.
    TypeError
        ``impute`` is no function.
    ValueError
        The group has fewer than 20 cells; the matrix that was returned is of another shape or has NaN, infinite or negative values.
    RuntimeError
        ``impute`` has changed the object it was given.

    Notes
    -----
    The imputation is called ``2 + n_labelled + 1`` times where it takes a label, else twice. Tests work through chunks of genes.

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

    def row(whole: Callable[[np.ndarray], Any], of_permuted: Any, scale: str, n_deals: int = n_splits) -> dict[str, float]:
        found = [_differential(whole(half), half, tested, alpha, scale) for half in halves[:n_deals]]
        correlation = _correlation(_logged(of_permuted, most, _totals(of_permuted, scale)))
        return {"differential_genes": float(np.mean(found)), "tested_genes": len(tested), "correlation": correlation}

    rows = {"raw": row(lambda half: counts, permuted, "counts")}
    once = run(counts, halves[0], label=False)
    rows["imputed"] = row(lambda half: once, run(permuted, halves[0], label=False), output)
    if labelled and n_labelled:
        of_permuted = run(permuted, halves[0], label=True)
        rows["imputed_with_label"] = row(lambda half: run(counts, half, label=True), of_permuted, output, n_labelled)
    return pd.DataFrame.from_dict(rows, orient="index").astype({"tested_genes": int})


def _imputer(impute: str | Callable[..., Any], output: str) -> tuple[Callable[[AnnData, str | None], Any], str, bool]:
    """A function of the object and the label, the scale it writes, and whether it takes a label."""
    _check.option("output", output, OUTPUTS)
    if isinstance(impute, str):
        from .. import tl

        method = METHODS[_check.option("impute", impute, _METHODS)]

        def of_ours(given: AnnData, label: str | None) -> Any:
            arguments = {**(method.on_cells or {}), **({"celltype_key": label} if method.takes_label else {})}
            getattr(tl, method.name)(given, **arguments)
            return result_of(given, method.key)

        return of_ours, "counts", method.takes_label
    if not callable(impute):
        raise TypeError(f"impute must be a function or one of {_check.listing(_METHODS)}, got {impute!r}")
    try:
        parameters = list(inspect.signature(impute).parameters.values())
    except (TypeError, ValueError):  # some functions written in C do not say
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
    """Every gene's counts dealt anew over the cells."""
    columns = counts.tocsc().copy()
    for gene in range(columns.shape[1]):
        first, last = columns.indptr[gene : gene + 2]
        columns.indices[first:last] = rng.choice(columns.shape[0], last - first, replace=False)
    found = columns.tocsr()
    found.sort_indices()
    return found


def _run(
    call: Callable[[AnnData, str | None], Any], counts: sp.csr_matrix, names: pd.Index, half: np.ndarray, *, label: bool
) -> np.ndarray:
    """What the imputation makes of these counts, checked."""
    obs = pd.DataFrame({HALF: pd.Categorical(np.where(half == 0, "first", "second"))}, index=[f"cell{i}" for i in range(len(half))])
    given = of_counts(counts.copy(), names, obs if label else obs[[]])
    found = call(given, HALF if label else None)
    if not holds_only(given, counts):
        raise RuntimeError("impute has changed the object it was given; let it work on a copy and return the imputed matrix")
    if sp.issparse(found) or isinstance(found, np.matrix):
        found = found.toarray() if sp.issparse(found) else np.asarray(found)
    if not isinstance(found, np.ndarray) or found.shape != counts.shape:
        what = f"shape {found.shape}" if isinstance(found, np.ndarray) else f"type {type(found).__name__}"
        raise ValueError(f"impute returned {what}; a matrix of shape {counts.shape} is needed")
    if found.dtype.kind not in "biuf" or not np.isfinite(found).all() or found.min() < 0:
        raise ValueError("impute returned NaN, infinite or negative values; expected counts, rates or log1p(CP10k) are needed")
    return found


def _totals(matrix: Any, scale: str) -> np.ndarray | None:
    """Sum of every row, ``(n,)``; None where the matrix is log1p(CP10k) already."""
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
    for some in chunks(len(genes), len(half)):
        values = _levels(_logged(matrix, genes[some], totals))
        varies = np.ptp(values, axis=0) > 0
        if varies.any():
            values = values[:, varies]
            p[np.flatnonzero(varies) + some.start] = stats.mannwhitneyu(values[half == 0], values[half == 1], method="asymptotic").pvalue
    return int((stats.false_discovery_control(p) < alpha).sum()) if len(p) else 0


def _levels(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of the values of each column, ``(n, genes)``; equal where these differ by rounding alone.

    Steps are counted from the highest value, so that those of a constant column are all 0, wherever it lies.
    """
    logs = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    return np.round((logs - logs.max(axis=0)) / _STEP)


def _correlation(values: np.ndarray) -> float:
    """Mean absolute Spearman correlation between columns; one that is constant is correlated with none."""
    ranks = centred_ranks(_levels(values))
    norm = np.sqrt(np.square(ranks).sum(axis=0))
    ranks /= np.where(norm > 0, norm, 1)
    return float(np.abs(ranks.T @ ranks)[np.triu_indices(values.shape[1], 1)].mean())
