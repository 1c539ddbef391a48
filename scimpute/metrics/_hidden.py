"""Entries hidden by :func:`scimpute.pp.hide`, moments of the visible entries, and predictions, one chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .. import _check
from .._anndata import keys
from .._anndata.matrix import rows_in_memory
from .._anndata.obs import Categorical
from .._anndata.read import entry_name, layer_names, read_layer, read_matrix, read_neighbours, source_name
from .._anndata.results import all_written_by, params_of, written_by
from .._sparse import chunks
from . import _leakage, _scale

if TYPE_CHECKING:
    from anndata import AnnData


_MIN_TOTAL = 0.5
"""Lowest right total of an imputed cell, as a share of its visible molecules: an imputation does not see the hidden ones."""


@dataclass(frozen=True)
class Hidden:
    """The hidden entries, and moments of the visible ones.

    Attributes
    ----------
    key
        ``key_added`` of :func:`scimpute.pp.hide`.
    truth, mask
        The source matrix, and where its entries are hidden, ``(n, g)``.
    codes
        Group of each cell, ``(n,)``.
    mean, variance, known
        Moments of the visible values of each gene, and whether it has any, ``(g,)``.
    group_mean
        Mean of the visible values of each group and gene, ``(groups, g)``; the gene's mean if there are none.
    totals, visible
        Sum of all and of the visible values of each cell, ``(n,)``.
    observed
        Fraction of each cell's entries that is visible, ``(n,)``.
    counts
        Whether counts were hidden.
    """

    adata: AnnData
    key: str
    truth: Any
    mask: Any
    codes: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    known: np.ndarray
    group_mean: np.ndarray
    totals: np.ndarray
    visible: np.ndarray
    observed: np.ndarray
    counts: bool

    def entries(self) -> Iterator[Entries]:
        """Hidden entries of the genes that have visible values, chunk by chunk."""
        for rows in chunks(*self.adata.shape):
            row, gene = np.nonzero(_dense(self.mask, rows, bool) & self.known)
            yield Entries(rows, row, row + rows.start, gene, _dense(self.truth, rows)[row, gene])


@dataclass(frozen=True)
class Entries:
    """Hidden entries of a chunk of rows: row within the chunk, cell, gene, and value."""

    rows: slice
    row: np.ndarray
    cell: np.ndarray
    gene: np.ndarray
    value: np.ndarray


Predict = Callable[[Entries], np.ndarray]


def predictions(hidden: Hidden, names: Sequence[str], *, grouped: bool) -> dict[str, Predict]:
    """Functions that predict entries, for each baseline and layer."""
    predictors: dict[str, Predict] = {"gene_mean": lambda entries: hidden.mean[entries.gene]}
    if grouped:
        predictors["group_mean"] = lambda entries: hidden.group_mean[hidden.codes[entries.cell], entries.gene]
    graph = read_neighbours(hidden.adata)
    if graph is not None:
        predictors["neighbour_mean"] = _neighbour_mean(hidden, graph)
    return predictors | {name: _of_layer(hidden, name) for name in names}


def read(adata: AnnData, key: str, label: Categorical | None) -> Hidden:
    """The first pass: means and variances of the visible values."""
    name, of = _require(adata, key)
    truth, visible = _in_rows(read_matrix(adata, name)), _in_rows(read_matrix(adata, key))
    mask = _in_rows(read_matrix(adata, keys.mask(key)))
    codes = np.zeros(adata.n_obs, dtype=np.int64) if label is None else label.codes
    n_groups, counts = 1 if label is None else len(label.levels), of == "nonzero"
    n, mean, squares = np.zeros((3, adata.n_vars))
    total, number = np.zeros((2, n_groups, adata.n_vars))
    totals, visible_totals, observed = np.zeros((3, adata.n_obs))
    for rows in chunks(*adata.shape):
        x, masked, stored = _dense(truth, rows), _dense(mask, rows, bool), _dense(visible, rows)
        same = (x == stored) | (np.isnan(x) & np.isnan(stored))
        wrong = np.argwhere(np.where(masked, ~np.isfinite(x), ~same))
        if wrong.size:
            first = entry_name(adata, rows.start + int(wrong[0, 0]), int(wrong[0, 1]))
            raise ValueError(
                f"{source_name(adata, name)} was changed since scimpute.pp.hide, or adata.layers[{key!r}] was changed: they disagree "
                f"(first: {first}); call scimpute.pp.hide again"
            )
        known = ~masked & ~np.isnan(x)
        present = x != 0 if of == "nonzero" else np.ones_like(known)
        with np.errstate(invalid="ignore"):
            observed[rows] = (known & present).sum(axis=1) / present.sum(axis=1)
        counts = counts and bool(np.all((x >= 0) & (x == np.rint(x))))
        totals[rows] = x.sum(axis=1)
        x[~known] = 0
        visible_totals[rows] = x.sum(axis=1)
        member = sp.csr_matrix((np.ones(len(x)), (codes[rows], np.arange(len(x)))), shape=(n_groups, len(x)))
        total, number = total + member @ x, number + member @ known.astype(np.float64)
        # Mean and sum of squares of the chunk are combined with the earlier ones (Chan et al.): exact for genes far from zero.
        n_chunk = known.sum(axis=0)
        middle = x.sum(axis=0) / np.maximum(n_chunk, 1)
        step, both = middle - mean, np.maximum(n + n_chunk, 1)
        squares += np.where(known, np.square(x - middle), 0).sum(axis=0) + np.square(step) * n * n_chunk / both
        mean, n = mean + step * n_chunk / both, n + n_chunk
    group_mean = np.where(number > 0, total / np.maximum(number, 1), mean)
    return Hidden(
        adata, key, truth, mask, codes, mean, squares / np.maximum(n, 1), n > 0, group_mean, totals, visible_totals, observed, counts
    )


def _require(adata: AnnData, key: str) -> tuple[str | None, str]:
    """The layer with the hidden entries (None for ``X``), and the argument ``of`` of :func:`scimpute.pp.hide`."""
    if written_by(adata, key) != "hide" or not {key, keys.mask(key)} <= set(layer_names(adata)):
        others = _check.listing(all_written_by(adata, ["hide"]))
        raise KeyError(
            f"key={key!r} has no hidden entries; call scimpute.pp.hide(adata, key_added={key!r}) first. Keys that have: {others}"
        )
    params = params_of(adata, key)
    return keys.layer_of(params), str(params.get("of"))


def _in_rows(matrix: Any) -> Any:
    """The matrix; CSR if it is sparse, because rows of another format are slow to read."""
    return matrix.tocsr() if sp.issparse(matrix) else matrix


def _dense(matrix: Any, rows: Any, dtype: type = np.float64) -> np.ndarray:
    """Some rows as a new array, in the precision of float32, as everywhere in the package."""
    part = rows_in_memory(matrix, rows)
    part = part.toarray() if sp.issparse(part) else np.asarray(part)
    if dtype is bool:
        return part.astype(bool)
    with np.errstate(over="ignore"):
        return part.astype(np.float32).astype(dtype)


def _of_layer(hidden: Hidden, name: str) -> Predict:
    matrix = _in_rows(read_layer(hidden.adata, name, require_output="counts" if hidden.counts else None))
    _leakage.warn_of_leak(hidden.adata, name, hidden.key, "the hidden entries")
    if hidden.counts:
        _warn_of_scale(hidden, name, matrix)

    def read(entries: Entries) -> np.ndarray:
        values = _dense(matrix, entries.rows)[entries.row, entries.gene]
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            first = entry_name(hidden.adata, int(entries.cell[bad[0]]), int(entries.gene[bad[0]]))
            raise ValueError(f"layer {name!r} has NaN or infinite values at hidden entries (first: {first}); fill all hidden entries")
        return values

    return read


def _warn_of_scale(hidden: Hidden, name: str, matrix: Any) -> None:
    totals, one_for_all, alone = np.zeros(hidden.adata.n_obs), True, True
    first = _dense(matrix, slice(0, 1))
    for rows in chunks(*hidden.adata.shape):
        part = _dense(matrix, rows)
        totals[rows] = np.nansum(part, axis=1)
        one_for_all = one_for_all and np.array_equal(part, np.broadcast_to(first, part.shape), equal_nan=True)
        alone = alone and not np.nan_to_num(part[~_dense(hidden.mask, rows, bool)]).any()
    # Totals say nothing if a method predicts the same for all cells, or fills only the hidden entries.
    if not (one_for_all or alone):
        _scale.warn_of_scale(f"layer {name!r}", totals, hidden.totals, "the counts", least=hidden.visible * _MIN_TOTAL)


def _neighbour_mean(hidden: Hidden, graph: sp.csr_matrix) -> Predict:
    def mean(entries: Entries) -> np.ndarray:
        near = graph[entries.rows]
        needed = np.unique(near.indices)
        total, number = np.zeros((2, near.shape[0], len(hidden.mean)))
        # A chunk may have many more neighbours than cells.
        for part in chunks(len(needed), len(hidden.mean)):
            cells = needed[part]
            x = _dense(hidden.truth, cells)
            visible = ~_dense(hidden.mask, cells, bool) & ~np.isnan(x)
            total += near[:, cells] @ np.where(visible, x, 0)
            number += near[:, cells] @ visible.astype(np.float64)
        total, number = total[entries.row, entries.gene], number[entries.row, entries.gene]
        return np.where(number > 0, total / np.maximum(number, 1), hidden.mean[entries.gene])

    return mean
