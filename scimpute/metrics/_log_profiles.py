"""Layers as log1p(CP10k), whatever scale they were written on: what the scores that compare them with the counts work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .. import _check
from .._anndata.matrix import rows_in_memory, to_csr
from .._anndata.read import entry_name, read_layer, source_name
from .._anndata.results import params_of, written_by
from .._anndata.source import read_counts_or_source
from .._counts.output import OUTPUTS
from .._sparse import TARGET, chunks, log1p_cp10k, row_sums

if TYPE_CHECKING:
    from anndata import AnnData

RAW = "raw"
"""Row or panel of the counts themselves."""

# No value of log1p(CP10k) is above log1p(10,000); counts that reach twice as far, imputed, seldom stay below it.
_HIGHEST_LOG = np.log1p(TARGET) + 0.01
_HIGH_COUNT = 20


@dataclass(frozen=True)
class Profiles:
    """A matrix (CSC, as genes are taken from it, or dense), and the sum of each of its rows; None where it is log1p(CP10k) already."""

    matrix: Any
    sums: np.ndarray | None

    def of(self, genes: np.ndarray) -> sp.csr_matrix | np.ndarray:
        """log1p(CP10k) of some genes, ``(n, genes)`` float32; sparse where the layer is. CP10k is of the sum over all genes."""
        if sp.issparse(self.matrix):
            part = self.matrix[:, genes].tocsr()
            return part if self.sums is None else log1p_cp10k(part, self.sums)
        dense = np.empty((self.matrix.shape[0], len(genes)), dtype=np.float32)
        for rows in chunks(*self.matrix.shape):
            part = rows_in_memory(self.matrix, rows)
            dense[rows] = part[:, genes].toarray() if sp.issparse(part) else np.asarray(part)[:, genes]
            if self.sums is not None:
                dense[rows] = log1p_cp10k(dense[rows], self.sums[rows])
        return dense

    def dense(self, genes: np.ndarray) -> np.ndarray:
        """The same as an array, also where the layer is sparse."""
        found = self.of(genes)
        return found if isinstance(found, np.ndarray) else found.toarray()


def read(adata: AnnData, names: Sequence[str], layer: str | None, output: str | None) -> dict[str, Profiles]:
    """Counts as ``"raw"``, and the layers, each on the scale it was written on.

    The counts are those of ``layer`` or ``X``; where this holds none any more, those that the layers were imputed from.

    That of a layer which does not say it (another package's) is ``output``; where this is None, it must not look like logarithms.
    """
    if output is not None:
        _check.option("output", output, OUTPUTS)
    matrices = {name: read_layer(adata, name) for name in names}
    counts = read_counts_or_source(adata, names, layer)
    found = {RAW: Profiles(counts.tocsc(), _row_sums(adata, counts, source_name(adata, layer))[0])}
    for name, stored in matrices.items():
        what = f"layer {name!r}"
        matrix = to_csr(stored, what) if sp.issparse(stored) else stored
        written = _written_output(adata, name)
        scale = written or output
        sums, highest, whole = _row_sums(adata, matrix, what, negative=scale == "log1p")
        if scale is None and not whole and 1 < highest < _HIGHEST_LOG and counts.data.max() > _HIGH_COUNT:
            raise ValueError(
                f"{what} has no value above {highest:.3g}, where the counts reach {counts.data.max():g}: it looks like log1p(CP10k). "
                "Pass output='log1p' if it is, output='counts' if these are expected counts"
            )
        if written is None and scale == "log1p" and highest > _HIGHEST_LOG:
            raise ValueError(
                f"{what} has values up to {highest:.3g}, and log1p(CP10k) none above log1p(10,000) = {np.log1p(TARGET):.2f}. Pass "
                "output='counts' if these are expected counts, or take logs after sc.pp.normalize_total with target_sum=1e4"
            )
        found[name] = Profiles(matrix.tocsc() if sp.issparse(matrix) else matrix, None if scale == "log1p" else sums)
    return found


def _written_output(adata: AnnData, name: str) -> str | None:
    """The scale that one of our functions recorded for its layer."""
    if written_by(adata, name) is None:
        return None
    found = params_of(adata, name).get("output")
    return None if found is None else _check.option(f"uns[{name!r}]['params']['output']", found, OUTPUTS)


def _row_sums(adata: AnnData, matrix: Any, name: str, *, negative: bool = False) -> tuple[np.ndarray, float, bool]:
    """Sum of every row, the highest value, and whether all values are whole numbers; NaN, and negative values, are refused."""
    sums, highest, whole = np.empty(adata.n_obs), 0.0, True
    for rows in chunks(*matrix.shape):
        part = rows_in_memory(matrix, rows)
        values = part.data if sp.issparse(part) else np.asarray(part)
        bad = ~np.isfinite(values)
        if bad.any():
            dense = part.toarray() if sp.issparse(part) else values
            row, column = np.argwhere(~np.isfinite(dense))[0]
            first = entry_name(adata, rows.start + int(row), int(column))
            raise ValueError(f"{name} has NaN or infinite values (first: {first}); fill them, or leave the layer out")
        if values.size and values.min() < 0 and not negative:
            raise ValueError(
                f"{name} has negative values (min {values.min():g}): it looks scaled. Expected counts, rates or log1p(CP10k) "
                "(output='log1p', where another package wrote it) are needed"
            )
        sums[rows] = row_sums(part)
        highest = max(highest, float(values.max(initial=0)))
        whole = whole and np.array_equal(values, np.rint(values))
    return sums, highest, whole
