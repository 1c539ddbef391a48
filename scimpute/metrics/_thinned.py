"""What :func:`scimpute.pp.thin` kept and held out, and what layers predict of it: chunks of rows, genes that were seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .. import _adata, _check, _keys
from .._counts import column_sums, row_sums
from .._matrix import some_rows
from . import _seen

if TYPE_CHECKING:
    from anndata import AnnData

Read = Callable[[slice], np.ndarray]
"""Expected counts of some rows at the depth of the training part, ``(b, k)`` float32."""


@dataclass(frozen=True)
class Thinned:
    """Training and test part, of the ``kept`` genes that have a molecule in the former: of others nothing can be said.

    Attributes
    ----------
    train, test
        Counts, ``(n, k)``.
    kept
        Places of the genes in the object, ``(k,)``.
    share
        Share of each gene of the molecules of the training part, ``(k,)``.
    depth, depth_test
        Molecules of every cell in each part, ``(n,)``.
    key
        What the object was thinned under.
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
        """Molecules of the test part for one of the training part."""
        return float(self.depth_test.sum() / self.depth.sum())

    def only(self, columns: np.ndarray) -> Thinned:
        """Some of the genes; shares and depths stay those among all."""
        return replace(self, train=self.train[:, columns], test=self.test[:, columns], kept=self.kept[columns], share=self.share[columns])

    def raw(self, rows: slice) -> np.ndarray:
        return self.train[rows].toarray()

    def gene_mean(self, rows: slice) -> np.ndarray:
        return (self.depth[rows, None] * self.share).astype(np.float32)

    def of_layer(self, adata: AnnData, name: str) -> Read:
        """A layer with expected counts, checked as it is read."""
        matrix = _adata.read_layer(adata, name, require_output="counts")
        _seen.warn_of_leak(adata, name, _keys.train(self.key), "the held-out molecules")

        def read(rows: slice) -> np.ndarray:
            part = some_rows(matrix, rows)
            part = np.asarray(part.toarray() if sp.issparse(part) else part, dtype=np.float32)[:, self.kept]
            if not np.isfinite(part).all() or part.min() < 0:
                raise ValueError(f"layer {name!r} has NaN, infinite or negative values; expected counts are needed")
            return part

        return read

    def predictions(self, adata: AnnData, names: Iterable[str]) -> dict[str, Read]:
        """The baselines and the layers."""
        return {"raw": self.raw, "gene_mean": self.gene_mean} | {name: self.of_layer(adata, name) for name in names}


def read(adata: AnnData, key: str) -> Thinned:
    """Both parts; KeyError where the object was not thinned under this key."""
    train, test = (_adata.read_counts(adata, _require(adata, name, key)) for name in (_keys.train(key), _keys.test(key)))
    totals = column_sums(train)
    kept = np.flatnonzero(totals > 0)
    train, test = train[:, kept], test[:, kept]
    return Thinned(train, test, kept, totals[kept] / totals.sum(), row_sums(train), row_sums(test), key)


def _require(adata: AnnData, layer: str, key: str) -> str:
    if layer not in _adata.layer_names(adata):
        found = _check.listing(_adata.layer_names(adata))
        raise KeyError(f"layer {layer!r} not found; call scimpute.pp.thin(adata, key_added={key!r}) first. Layers: {found}")
    return layer
