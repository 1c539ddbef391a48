"""Objects made for a second run: the same counts, or others of the same cells, with only what an imputation reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.utils import make_index_unique

from . import keys
from .read import layer_names, read_layer

RESULT = "imputed"
"""Name of the result in the object of a second run."""


@dataclass(frozen=True)
class Surroundings:
    """What an imputation reads beside the counts, and the names of the genes: the same in every copy."""

    var_names: pd.Index
    obs: pd.DataFrame
    obsm: dict[str, Any]
    obsp: dict[str, Any]
    uns: dict[str, Any]

    def around(
        self,
        counts: sp.csr_matrix,
        more_obs: pd.DataFrame | None = None,
        without: str | None = None,
        layers: Mapping[str, Any] | None = None,
    ) -> ad.AnnData:
        """An object with these counts in ``X``, with more columns of ``obs``, and without one of them."""
        obs = self.obs[[name for name in self.obs if name != without]]
        if more_obs is not None:
            obs = pd.concat([obs, more_obs.set_axis(obs.index)], axis=1)
        # Names that are not unique become numbers, as anndata would warn of each copy. Nobody reads these names.
        names = self.var_names if self.var_names.is_unique else pd.RangeIndex(len(self.var_names)).astype(str)
        others = {"obsm": dict(self.obsm), "obsp": dict(self.obsp), "uns": dict(self.uns)}
        return ad.AnnData(counts, obs=obs.copy(), var=pd.DataFrame(index=names), layers=layers, **others)


def read_surroundings(adata: ad.AnnData, columns: Collection[str], features: str | None) -> Surroundings:
    """Some columns of ``obs``; positions, neighbours, images and ``features`` of the spots, as far as they are there."""
    spatial = [name for name in (keys.ARRAY_ROW, keys.ARRAY_COL) if name in adata.obs]
    obsm = [name for name in (keys.SPATIAL, features) if name is not None and name in adata.obsm]
    obsp = [name for name in (keys.SPATIAL_CONNECTIVITIES,) if name in adata.obsp]
    uns = [name for name in (keys.SPATIAL, keys.neighbors(keys.SPATIAL)) if name in adata.uns]
    return Surroundings(
        adata.var_names,
        adata.obs[[name for name in adata.obs if name in columns or name in spatial]].copy(),
        {name: adata.obsm[name] for name in obsm},
        {name: adata.obsp[name] for name in obsp},
        {name: adata.uns[name] for name in uns},
    )


def of_counts(counts: sp.csr_matrix, names: pd.Index | None = None, obs: pd.DataFrame | None = None) -> ad.AnnData:
    """An object with counts, names of the genes and columns of ``obs``, and nothing else."""
    return ad.AnnData(counts, obs=obs, var=None if names is None else pd.DataFrame(index=names))


def holds_only(adata: ad.AnnData, counts: sp.csr_matrix) -> bool:
    """Whether ``X`` still holds these counts."""
    return adata.shape == counts.shape and sp.issparse(adata.X) and not (counts != adata.X).nnz


def counts_and_obs(adata: ad.AnnData) -> tuple[Any, pd.DataFrame]:
    """``X`` and all columns of ``obs`` of an object that was made here."""
    return adata.X, adata.obs


def result_of(adata: ad.AnnData, key: str = RESULT) -> Any:
    """Imputed values: a layer, or a table of some genes."""
    return adata.layers[key] if key in layer_names(adata) else adata.obsm[key]


def with_all_genes(adata: ad.AnnData, table: pd.DataFrame, genes: np.ndarray, layers: Mapping[str, Any]) -> ad.AnnData:
    """An object with imputed values of some genes in their places in ``layers["imputed"]``, and 0 for the other genes."""
    places = sp.csr_matrix((np.ones(len(genes)), (np.arange(len(genes)), genes)), shape=(len(genes), adata.n_vars))
    return ad.AnnData(adata.X, layers={**layers, RESULT: sp.csr_matrix(table.to_numpy()) @ places})


def for_display(
    adata: ad.AnnData,
    key: str,
    counts: sp.csr_matrix,
    surroundings: Surroundings,
    genes: np.ndarray | None,
    record: Mapping[str, Any],
    embedding: tuple[str, np.ndarray],
) -> ad.AnnData:
    """The user's own result with unique names of the genes and one embedding.

    ``genes`` are the places of the imputed genes, or None for all; ``record`` goes to ``uns[key]``.
    """
    names = make_index_unique(pd.Index(surroundings.var_names.astype(str)))
    basis, points = embedding
    layers, obsm = {}, {f"X_{basis}": points}
    if genes is None:
        layers[key] = read_layer(adata, key)
    else:
        obsm[key] = adata.obsm[key].set_axis(names[genes], axis=1)
    var = pd.DataFrame(index=names)
    return ad.AnnData(counts, obs=surroundings.obs, var=var, obsm=obsm, uns={key: dict(record)}, layers=layers)
