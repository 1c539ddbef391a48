"""Makes objects for a second run. They hold only what an imputation reads: counts of the same cells, labels and positions."""

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
"""Name of the result of a second run."""


@dataclass(frozen=True)
class Surroundings:
    """Everything but the counts that an imputation reads, and the gene names. All copies share it."""

    var_names: pd.Index
    obs: pd.DataFrame
    obsm: dict[str, Any]
    obsp: dict[str, Any]
    uns: dict[str, Any]

    def around(
        self,
        counts: sp.csr_matrix,
        more_obs: pd.DataFrame | None = None,
        dropped_column: str | None = None,
        layers: Mapping[str, Any] | None = None,
    ) -> ad.AnnData:
        """An object with these counts in ``X``, with the columns ``more_obs`` added to ``obs`` and ``dropped_column`` removed."""
        obs = self.obs[[name for name in self.obs if name != dropped_column]]
        if more_obs is not None:
            obs = pd.concat([obs, more_obs.set_axis(obs.index)], axis=1)
        # anndata would warn of duplicate names in every copy. Numbers replace them: nobody reads the names of a copy.
        names = self.var_names if self.var_names.is_unique else pd.RangeIndex(len(self.var_names)).astype(str)
        other_slots = {"obsm": dict(self.obsm), "obsp": dict(self.obsp), "uns": dict(self.uns)}
        return ad.AnnData(counts, obs=obs.copy(), var=pd.DataFrame(index=names), layers=layers, **other_slots)


def read_surroundings(adata: ad.AnnData, columns: Collection[str], features: str | None) -> Surroundings:
    """These columns of ``obs``, and what the object has of positions, neighbours, images and ``features`` of the spots."""
    array_columns = [name for name in (keys.ARRAY_ROW, keys.ARRAY_COL) if name in adata.obs]
    obsm_keys = [name for name in (keys.SPATIAL, features) if name is not None and name in adata.obsm]
    obsp_keys = [name for name in (keys.SPATIAL_CONNECTIVITIES,) if name in adata.obsp]
    uns_keys = [name for name in (keys.SPATIAL, keys.neighbors(keys.SPATIAL)) if name in adata.uns]
    return Surroundings(
        adata.var_names,
        adata.obs[[name for name in adata.obs if name in columns or name in array_columns]].copy(),
        {name: adata.obsm[name] for name in obsm_keys},
        {name: adata.obsp[name] for name in obsp_keys},
        {name: adata.uns[name] for name in uns_keys},
    )


def of_counts(counts: sp.csr_matrix, names: pd.Index | None = None, obs: pd.DataFrame | None = None) -> ad.AnnData:
    """An object with nothing but counts, gene names and columns of ``obs``."""
    return ad.AnnData(counts, obs=obs, var=None if names is None else pd.DataFrame(index=names))


def holds_only(adata: ad.AnnData, counts: sp.csr_matrix) -> bool:
    """Whether ``X`` still holds these counts."""
    return adata.shape == counts.shape and sp.issparse(adata.X) and not (counts != adata.X).nnz


def counts_and_obs(adata: ad.AnnData) -> tuple[Any, pd.DataFrame]:
    """``X`` and all columns of ``obs`` of an object from this module."""
    return adata.X, adata.obs


def result_of(adata: ad.AnnData, key: str = RESULT) -> Any:
    """Imputed values: a layer, or a table if only some genes were imputed."""
    return adata.layers[key] if key in layer_names(adata) else adata.obsm[key]


def with_all_genes(adata: ad.AnnData, table: pd.DataFrame, genes: np.ndarray, layers: Mapping[str, Any]) -> ad.AnnData:
    """An object whose ``layers["imputed"]`` has the imputed values of some genes, and 0 for all other genes."""
    placement = sp.csr_matrix((np.ones(len(genes)), (np.arange(len(genes)), genes)), shape=(len(genes), adata.n_vars))
    return ad.AnnData(adata.X, layers={**layers, RESULT: sp.csr_matrix(table.to_numpy()) @ placement})


def for_display(
    adata: ad.AnnData,
    key: str,
    counts: sp.csr_matrix,
    surroundings: Surroundings,
    genes: np.ndarray | None,
    record: Mapping[str, Any],
    embedding: tuple[str, np.ndarray],
) -> ad.AnnData:
    """The user's own result with unique gene names and one embedding.

    ``genes`` has the indices of the imputed genes, or None for all genes. ``record`` is written to ``uns[key]``.
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
