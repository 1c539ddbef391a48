"""Layers of any scale as log1p(CP10k), for scores that compare layers with the counts."""

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
from .._sparse import TARGET_SUM, chunks, log1p_cp10k, row_sums

if TYPE_CHECKING:
    from anndata import AnnData

RAW = "raw"
"""Name of the counts in a table or figure."""

# log1p(CP10k) never exceeds log1p(10,000). Imputed counts seldom stay below that if the counts reach twice as far.
_HIGHEST_LOG = np.log1p(TARGET_SUM) + 0.01
_HIGH_COUNT = 20


@dataclass(frozen=True)
class Profiles:
    """A matrix, and the sum of each row; None if the matrix is log1p(CP10k) already. Sparse matrices are CSC: genes are read from them."""

    matrix: Any
    sums: np.ndarray | None

    def of(self, genes: np.ndarray) -> sp.csr_matrix | np.ndarray:
        """log1p(CP10k) of some genes, ``(n, genes)`` float32; sparse if the layer is. CP10k uses the sum over all genes."""
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
        """The same as an array, also for a sparse layer."""
        values = self.of(genes)
        return values if isinstance(values, np.ndarray) else values.toarray()


def read(adata: AnnData, names: Sequence[str], layer: str | None, output: str | None) -> dict[str, Profiles]:
    """The counts, as ``"raw"``, and the layers. Each layer is read on the scale on which it was written.

    ``layer`` or ``X`` has the counts. If it has no counts any more, the counts from which the layers were imputed are read.

    ``output`` is the scale of layers of other packages, which record none. If it is None, such a layer must not look like logarithms.
    """
    if output is not None:
        _check.option("output", output, OUTPUTS)
    matrices = {name: read_layer(adata, name) for name in names}
    counts = read_counts_or_source(adata, names, layer)
    profiles = {RAW: Profiles(counts.tocsc(), _row_sums(adata, counts, source_name(adata, layer))[0])}
    for name, stored in matrices.items():
        what = f"layer {name!r}"
        matrix = to_csr(stored, what) if sp.issparse(stored) else stored
        written = _written_output(adata, name)
        scale = written or output
        sums, highest, whole = _row_sums(adata, matrix, what, negative=scale == "log1p")
        if scale is None and not whole and 1 < highest < _HIGHEST_LOG and counts.data.max() > _HIGH_COUNT:
            raise ValueError(
                f"{what} has no value above {highest:.3g}, but the counts reach {counts.data.max():g}: it looks like log1p(CP10k). "
                "Pass output='log1p' if it is, output='counts' if these are expected counts"
            )
        if written is None and scale == "log1p" and highest > _HIGHEST_LOG:
            raise ValueError(
                f"{what} has values up to {highest:.3g}, but log1p(CP10k) never exceeds log1p(10,000) = {np.log1p(TARGET_SUM):.2f}. Pass "
                "output='counts' if these are expected counts, or take logs after sc.pp.normalize_total with target_sum=1e4"
            )
        profiles[name] = Profiles(matrix.tocsc() if sp.issparse(matrix) else matrix, None if scale == "log1p" else sums)
    return profiles


def _written_output(adata: AnnData, name: str) -> str | None:
    """The scale that a function of this package recorded for its layer."""
    if written_by(adata, name) is None:
        return None
    scale = params_of(adata, name).get("output")
    return None if scale is None else _check.option(f"uns[{name!r}]['params']['output']", scale, OUTPUTS)


def _row_sums(adata: AnnData, matrix: Any, name: str, *, negative: bool = False) -> tuple[np.ndarray, float, bool]:
    """Sum of each row, the highest value, and whether all values are whole numbers. ValueError for NaN and negative values."""
    sums, highest, whole = np.empty(adata.n_obs), 0.0, True
    for rows in chunks(*matrix.shape):
        part = rows_in_memory(matrix, rows)
        values = part.data if sp.issparse(part) else np.asarray(part)
        bad = ~np.isfinite(values)
        if bad.any():
            dense = part.toarray() if sp.issparse(part) else values
            row, column = np.argwhere(~np.isfinite(dense))[0]
            first = entry_name(adata, rows.start + int(row), int(column))
            raise ValueError(f"{name} has NaN or infinite values (first: {first}); fill them or omit the layer")
        if values.size and values.min() < 0 and not negative:
            raise ValueError(
                f"{name} has negative values (min {values.min():g}): it looks scaled. Pass expected counts, rates or log1p(CP10k) "
                "(output='log1p' for a layer of another package)"
            )
        sums[rows] = row_sums(part)
        highest = max(highest, float(values.max(initial=0)))
        whole = whole and np.array_equal(values, np.rint(values))
    return sums, highest, whole
