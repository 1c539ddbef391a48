"""Both parts of :func:`scimpute.pp.thin`, and predictions of the test part, in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .. import _check
from .._anndata import keys
from .._anndata.counts import read_counts
from .._anndata.matrix import rows_in_memory
from .._anndata.read import layer_names, read_layer
from .._anndata.tables import is_table
from .._sparse import chunks, column_sums, row_sums
from . import _leakage, _replay, _scale

if TYPE_CHECKING:
    from anndata import AnnData

Read = Callable[[slice], np.ndarray]
"""Expected counts of some rows at the depth of the training part, ``(b, k)`` float32."""


@dataclass(frozen=True)
class Thinned:
    """Training and test part of the ``kept`` genes. A gene without a molecule in the training part is left out: no one can predict it.

    Attributes
    ----------
    train, test
        Counts, ``(n, k)``.
    kept
        Places of the genes in the object, ``(k,)``.
    share
        Each gene's share of the training molecules, ``(k,)``.
    depth, depth_test
        Molecules of each cell in the two parts, ``(n,)``.
    key
        ``key_added`` of :func:`scimpute.pp.thin`.
    """

    train: sp.csr_matrix
    test: sp.csr_matrix
    kept: np.ndarray
    share: np.ndarray
    depth: np.ndarray
    depth_test: np.ndarray
    key: str

    @property
    def ratio(self) -> float:
        """Molecules of the test part divided by molecules of the training part."""
        return float(self.depth_test.sum() / self.depth.sum())

    def only(self, columns: np.ndarray) -> Thinned:
        """The same for some genes. Shares and depths still refer to all genes."""
        return replace(self, train=self.train[:, columns], test=self.test[:, columns], kept=self.kept[columns], share=self.share[columns])

    def raw(self, rows: slice) -> np.ndarray:
        return self.train[rows].toarray()

    def gene_mean(self, rows: slice) -> np.ndarray:
        return (self.depth[rows, None] * self.share).astype(np.float32)

    def of_layer(self, adata: AnnData, name: str, *, rescale: bool = False, own: bool = False) -> Read:
        """A layer with expected counts. Values are checked while they are read.

        ``rescale`` brings each cell to its depth. ``own`` marks the layer of a second run: its scale is right, but it may lack genes.
        """
        if is_table(adata, name):
            raise KeyError(
                f"{name!r} is a table of some genes in adata.obsm, not a layer; score it with "
                f"scimpute.metrics.gene_trust(adata, {name!r}, run=True), or impute all genes"
            )
        matrix = read_layer(adata, name, require_output="counts")
        _leakage.warn_of_leak(adata, name, keys.train(self.key), "the held-out molecules", run=True)

        def part(rows: slice) -> np.ndarray:
            part = rows_in_memory(matrix, rows)
            part = np.asarray(part.toarray() if sp.issparse(part) else part, dtype=np.float32)[:, self.kept]
            if not np.isfinite(part).all() or part.min(initial=0) < 0:
                raise ValueError(f"layer {name!r} has NaN, infinite or negative values; pass expected counts")
            return part

        if own:
            return part
        totals = np.concatenate([part(rows).sum(axis=1, dtype=np.float64) for rows in chunks(*self.train.shape)])
        if not rescale:
            _scale.warn_of_scale(f"layer {name!r}", totals, self.depth, "the training part", ", or pass rescale=True")
            return part
        factor = (self.depth / np.where(totals > 0, totals, 1)).astype(np.float32)
        return lambda rows: part(rows) * factor[rows, None]

    def predictions(self, adata: AnnData, names: Iterable[str], *, rescale: bool = False, own: bool = False) -> dict[str, Read]:
        """The baselines and the layers."""
        layers = {name: self.of_layer(adata, name, rescale=rescale, own=own) for name in names}
        return {"raw": self.raw, "gene_mean": self.gene_mean} | layers


def read(adata: AnnData, key: str, *names: str) -> Thinned:
    """Both parts. The KeyError for an object that was not thinned under this key says what to do for the named layers."""
    train, test = (read_counts(adata, _require(adata, part, key, names)) for part in (keys.train(key), keys.test(key)))
    totals = column_sums(train)
    kept = np.flatnonzero(totals > 0)
    train, test = train[:, kept], test[:, kept]
    return Thinned(train, test, kept, totals[kept] / totals.sum(), row_sums(train), row_sums(test), key)


def _require(adata: AnnData, layer: str, key: str, names: Sequence[str]) -> str:
    if layer not in layer_names(adata):
        choices = _check.listing(layer_names(adata))
        ours = names and set(names) <= set(_replay.find(adata))
        run = f"pass run=True to impute {_check.listing(names)} again from some molecules and score the others, or " if ours else ""
        raise KeyError(
            f"layer {layer!r} not found; {run}call scimpute.pp.thin(adata, key_added={key!r}) first and impute "
            f"layer={keys.train(key)!r}. Layers: {choices}"
        )
    return layer
