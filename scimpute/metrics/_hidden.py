"""What :func:`scimpute.pp.hide` hid, what the visible entries say of it, and what others say: one chunk of rows at a time."""

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


_LEAST = 0.5
"""Share of the visible molecules that the total of an imputation may have, as the hidden ones are not there."""


@dataclass(frozen=True)
class Hidden:
    """The hidden entries, and what the visible ones say of every gene and of every gene in a group."""

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
        """Those of the genes that have visible values, chunk by chunk."""
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
    """The baselines and the layers: what each says of the entries it is given."""
    found: dict[str, Predict] = {"gene_mean": lambda entries: hidden.mean[entries.gene]}
    if grouped:
        found["group_mean"] = lambda entries: hidden.group_mean[hidden.codes[entries.cell], entries.gene]
    graph = read_neighbours(hidden.adata)
    if graph is not None:
        found["neighbour_mean"] = _neighbour_mean(hidden, graph)
    return found | {name: _of_layer(hidden, name) for name in names}


def read(adata: AnnData, key: str, label: Categorical | None) -> Hidden:
    """The first pass: means and variances of the visible values."""
    name, of = _require(adata, key)
    truth, visible = _in_rows(read_matrix(adata, name)), _in_rows(read_matrix(adata, key))
    mask = _in_rows(read_matrix(adata, keys.mask(key)))
    codes = np.zeros(adata.n_obs, dtype=np.int64) if label is None else label.codes
    n_groups, counts = 1 if label is None else len(label.levels), of == "nonzero"
    n, mean, squares = np.zeros((3, adata.n_vars))
    total, number = np.zeros((2, n_groups, adata.n_vars))
    totals, shown_totals, observed = np.zeros((3, adata.n_obs))
    for rows in chunks(*adata.shape):
        x, hid, shown = _dense(truth, rows), _dense(mask, rows, bool), _dense(visible, rows)
        same = (x == shown) | (np.isnan(x) & np.isnan(shown))
        wrong = np.argwhere(np.where(hid, ~np.isfinite(x), ~same))
        if wrong.size:
            first = entry_name(adata, rows.start + int(wrong[0, 0]), int(wrong[0, 1]))
            raise ValueError(
                f"{source_name(adata, name)} was changed since scimpute.pp.hide, or adata.layers[{key!r}] was: they disagree "
                f"(first: {first}); call scimpute.pp.hide again"
            )
        seen = ~hid & ~np.isnan(x)
        present = x != 0 if of == "nonzero" else np.ones_like(seen)
        with np.errstate(invalid="ignore"):
            observed[rows] = (seen & present).sum(axis=1) / present.sum(axis=1)
        counts = counts and bool(np.all((x >= 0) & (x == np.rint(x))))
        totals[rows] = x.sum(axis=1)
        x[~seen] = 0
        shown_totals[rows] = x.sum(axis=1)
        member = sp.csr_matrix((np.ones(len(x)), (codes[rows], np.arange(len(x)))), shape=(n_groups, len(x)))
        total, number = total + member @ x, number + member @ seen.astype(np.float64)
        # Mean and sum of squares of the chunk are joined with those so far (Chan et al.): exact for genes far from zero.
        here = seen.sum(axis=0)
        middle = x.sum(axis=0) / np.maximum(here, 1)
        step, both = middle - mean, np.maximum(n + here, 1)
        squares += np.where(seen, np.square(x - middle), 0).sum(axis=0) + np.square(step) * n * here / both
        mean, n = mean + step * here / both, n + here
    group_mean = np.where(number > 0, total / np.maximum(number, 1), mean)
    return Hidden(
        adata, key, truth, mask, codes, mean, squares / np.maximum(n, 1), n > 0, group_mean, totals, shown_totals, observed, counts
    )


def _require(adata: AnnData, key: str) -> tuple[str | None, str]:
    """The layer whose entries were hidden (None for ``X``), and which of them."""
    if written_by(adata, key) != "hide" or not {key, keys.mask(key)} <= set(layer_names(adata)):
        found = _check.listing(all_written_by(adata, ["hide"]))
        raise KeyError(f"key={key!r} has no hidden entries; call scimpute.pp.hide(adata, key_added={key!r}) first. Keys that have: {found}")
    params = params_of(adata, key)
    return keys.layer_of(params), str(params.get("of"))


def _in_rows(matrix: Any) -> Any:
    """The matrix, or as CSR where it is sparse: rows of another format are slow to take."""
    return matrix.tocsr() if sp.issparse(matrix) else matrix


def _dense(matrix: Any, rows: Any, dtype: type = np.float64) -> np.ndarray:
    """Some rows as an array of its own, in the precision of float32 as everywhere in the package."""
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
        found = _dense(matrix, entries.rows)[entries.row, entries.gene]
        bad = np.flatnonzero(~np.isfinite(found))
        if bad.size:
            first = entry_name(hidden.adata, int(entries.cell[bad[0]]), int(entries.gene[bad[0]]))
            raise ValueError(f"layer {name!r} has NaN or infinite values at hidden entries (first: {first}); fill all that were hidden")
        return found

    return read


def _warn_of_scale(hidden: Hidden, name: str, matrix: Any) -> None:
    totals, one_for_all, alone = np.zeros(hidden.adata.n_obs), True, True
    first = _dense(matrix, slice(0, 1))
    for rows in chunks(*hidden.adata.shape):
        part = _dense(matrix, rows)
        totals[rows] = np.nansum(part, axis=1)
        one_for_all = one_for_all and np.array_equal(part, np.broadcast_to(first, part.shape), equal_nan=True)
        alone = alone and not np.nan_to_num(part[~_dense(hidden.mask, rows, bool)]).any()
    # Where a method says the same of all cells, or fills the hidden entries alone, totals tell nothing.
    if not (one_for_all or alone):
        _scale.warn_of_scale(f"layer {name!r}", totals, hidden.totals, "the counts", least=hidden.visible * _LEAST)


def _neighbour_mean(hidden: Hidden, graph: sp.csr_matrix) -> Predict:
    def mean(entries: Entries) -> np.ndarray:
        near = graph[entries.rows]
        needed = np.unique(near.indices)
        total, number = np.zeros((2, near.shape[0], len(hidden.mean)))
        # The neighbours of a chunk may be many more cells than it has.
        for some in chunks(len(needed), len(hidden.mean)):
            cells = needed[some]
            x = _dense(hidden.truth, cells)
            seen = ~_dense(hidden.mask, cells, bool) & ~np.isnan(x)
            total += near[:, cells] @ np.where(seen, x, 0)
            number += near[:, cells] @ seen.astype(np.float64)
        total, number = total[entries.row, entries.gene], number[entries.row, entries.gene]
        return np.where(number > 0, total / np.maximum(number, 1), hidden.mean[entries.gene])

    return mean
