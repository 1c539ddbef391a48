"""Calls scanpy's functions on plain arrays. All options that a preset of scanpy may change are set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp


def is_highly_variable(values: sp.csr_matrix | np.ndarray, n_top_genes: int) -> np.ndarray:
    """True for the genes that vary most, ``(g,)``, by their log1p(CP10k) ``(n, g)``."""
    table = sc.pp.highly_variable_genes(ad.AnnData(values), n_top_genes=n_top_genes, flavor="seurat", inplace=False)
    return table["highly_variable"].to_numpy()


def principal_components(values: sp.csr_matrix | np.ndarray, n_pcs: int, seed: int) -> np.ndarray:
    """Scores ``(n, n_pcs)``, float32."""
    return sc.pp.pca(values, n_comps=n_pcs, zero_center=True, svd_solver="arpack", random_state=seed, dtype="float32")


def nearest_neighbours(scores: np.ndarray, n_neighbors: int, seed: int) -> ad.AnnData:
    """An object with scanpy's graph of nearest neighbours."""
    graph = ad.AnnData(scores)
    with warnings.catch_warnings():
        # scanpy adds neighbours at distance 0 to its sparse matrix one by one.
        warnings.simplefilter("ignore", sp.SparseEfficiencyWarning)
        sc.pp.neighbors(graph, n_neighbors=n_neighbors, use_rep="X", knn=True, method="umap", metric="euclidean", random_state=seed)
    return graph


def leiden(graph: ad.AnnData, resolution: float, seed: int) -> np.ndarray:
    """Code of every cell's cluster, ``(n,)``."""
    sc.tl.leiden(
        graph,
        resolution,
        random_state=seed,
        key_added="leiden",
        directed=False,
        use_weights=True,
        n_iterations=2,
        flavor="igraph",
        objective_function="modularity",
    )
    return graph.obs["leiden"].cat.codes.to_numpy()


def umap(graph: ad.AnnData, seed: int) -> np.ndarray:
    """Two coordinates of every cell, ``(n, 2)``."""
    sc.tl.umap(graph, min_dist=0.5, spread=1.0, n_components=2, init_pos="spectral", random_state=seed)
    # The graph has no other embedding. Its name depends on scanpy's preset.
    (coordinates,) = graph.obsm.values()
    return np.asarray(coordinates, dtype=float)


def marker_genes(
    values: sp.csr_matrix | np.ndarray, codes: np.ndarray, n_groups: int, groups: Sequence[int], n_genes: int
) -> dict[int, list[int]]:
    """Indices of the marker genes of each of ``groups`` against all other cells, by t-test; best first.

    ``values`` are log1p(CP10k) ``(n, g)``. ``codes`` has the group of every cell, ``(n,)``.
    """
    label = pd.Categorical.from_codes(codes, categories=[str(i) for i in range(n_groups)])
    # Gene names may not be unique, so numbers replace them.
    obs = pd.DataFrame({"group": label}, index=pd.RangeIndex(len(codes)).astype(str))
    work = ad.AnnData(values, obs=obs, var=pd.DataFrame(index=pd.RangeIndex(values.shape[1]).astype(str)))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        sc.tl.rank_genes_groups(
            work,
            "group",
            mask_var=None,
            groups=[str(group) for group in groups],
            reference="rest",
            n_genes=n_genes,
            method="t-test",
            use_raw=False,
            rankby_abs=False,
            key_added="rank_genes_groups",
        )
    return {group: [int(place) for place in work.uns["rank_genes_groups"]["names"][str(group)]] for group in groups}
