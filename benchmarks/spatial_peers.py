"""Baselines and other methods for the tables of spatial.py: each takes an object with counts in X and gives counts, ``(n, g)``."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from peers import knn, magic, svd

import scimpute


def size_of(adata: ad.AnnData) -> np.ndarray:
    return np.maximum(np.asarray(adata.X.sum(axis=1)).ravel(), 1)[:, None]


def gene_share(adata: ad.AnnData) -> np.ndarray:
    return np.asarray(adata.X.sum(axis=0)).ravel() / adata.X.sum()


def section_mean(adata: ad.AnnData) -> np.ndarray:
    total = pd.get_dummies(adata.obs["section"]).to_numpy(float)
    share = total.T @ adata.X
    return (total @ (share / share.sum(axis=1, keepdims=True))) * size_of(adata)


def neighbour_mean(adata: ad.AnnData, shrink: float = 0.0) -> np.ndarray:
    """Molecules of the neighbours, plus ``shrink`` molecules with the shares of all spots."""
    near = (adata.obsp["spatial_connectivities"] @ adata.X).toarray() + shrink * gene_share(adata)
    near[near.sum(axis=1) == 0] = gene_share(adata)
    return near / near.sum(axis=1, keepdims=True) * size_of(adata)


def shrunken_neighbour_mean(adata: ad.AnnData) -> np.ndarray:
    """The same with the spot itself, shrunk by the number of molecules that predicts a tenth of them best."""
    inner = adata.copy()
    inner.obsp["spatial_connectivities"] = (adata.obsp["spatial_connectivities"] + sp.eye(adata.n_obs)).tocsr()
    scimpute.pp.thin(inner, key_added="inner")
    inner.X = inner.layers["inner_train"]
    grid = (300, 1000, 3000, 10_000, 30_000, 100_000)
    for shrink in grid:
        inner.layers[str(shrink)] = neighbour_mean(inner, shrink).astype(np.float32)
    scores = scimpute.metrics.heldout(inner, [str(shrink) for shrink in grid], key="inner")["poisson"]
    inner.X = adata.X
    return neighbour_mean(inner, float(min(grid, key=lambda shrink: scores[str(shrink)])))


# Half of the non-zero entries hidden: zeros are missing


def of_non_zeros(adata: ad.AnnData, group: np.ndarray) -> np.ndarray:
    """Mean of the visible non-zero counts of the gene in the group; of all groups where there is none."""
    member = pd.get_dummies(group).to_numpy(float)
    total, number = member.T @ adata.X, member.T @ (adata.X > 0)
    overall = np.asarray(adata.X.sum(axis=0)).ravel() / np.maximum(adata.X.getnnz(axis=0), 1)
    return member @ np.where(number > 0, total / np.maximum(number, 1), overall)


def neighbours_at_depth(adata: ad.AnnData) -> np.ndarray:
    """Mean of the neighbours' visible non-zero shares times the depth; the gene's mean where none has any."""
    share = sp.diags(1 / size_of(adata)[:, 0]) @ adata.X
    near = adata.obsp["spatial_connectivities"]
    total, number = (near @ share).toarray(), (near @ (adata.X > 0).astype(float)).toarray()
    return np.where(number > 0, total / np.maximum(number, 1) * size_of(adata), of_non_zeros(adata, np.zeros(adata.n_obs)))


def ridge(adata: ad.AnnData) -> np.ndarray:
    """Logs of the visible non-zero counts of each gene on tile features, position, section and depth; strength by hidden entries."""
    from scimpute._space import features as of_space

    work = adata.copy()
    scimpute.pp.tiles(work, library_key="section")
    tiles = work.obsm["tiles"]
    codes = adata.obs["section"].cat.codes.to_numpy().astype(np.int64)
    coordinates = np.asarray(adata.obsm["spatial"], float)
    places = of_space.positions(coordinates, of_space.extents(coordinates, codes)[codes], codes, int(codes.max()) + 1)
    depth = np.log(size_of(adata) / np.median(size_of(adata)))
    features = np.column_stack([np.ones(adata.n_obs), of_space.standardise(tiles, of_space.column_moments(tiles)), places, depth]).astype(
        float
    )

    def fit(visible: np.ndarray, strength: float) -> np.ndarray:
        seen, logs = (visible > 0).astype(float), np.log(np.maximum(visible, 1))
        mean = (seen * logs).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        prior = strength * np.eye(features.shape[1])
        prior[0, 0] = 1e-6
        out = np.empty_like(visible, dtype=float)
        for gene, rows in enumerate(seen.T.astype(bool)):
            x = features[rows]
            out[:, gene] = features @ np.linalg.solve(x.T @ x + prior, x.T @ (logs[rows, gene] - mean[gene])) + mean[gene]
        return np.exp(out)

    visible = adata.X.toarray()
    heldout = (visible > 0) & (np.random.default_rng(0).random(visible.shape) < 0.1)
    errors = {}
    for strength in (3.0, 10.0, 30.0, 100.0):
        prediction = fit(np.where(heldout, 0, visible), strength)
        errors[strength] = np.square(np.log(prediction[heldout]) - np.log(visible[heldout])).mean()
    return fit(visible, min(errors, key=lambda strength: errors[strength]))


PEERS: dict[str, Callable[[ad.AnnData], np.ndarray]] = {
    "gene mean": lambda adata: gene_share(adata) * size_of(adata),
    "section mean": section_mean,
    "neighbour mean": neighbour_mean,
    "neighbour mean, shrunk": shrunken_neighbour_mean,
    "SVD": svd,
    "kNN": knn,
    "MAGIC (linear)": magic,
}
PEERS_OF_HIDDEN: dict[str, Callable[[ad.AnnData], np.ndarray]] = {
    "gene mean": lambda adata: of_non_zeros(adata, np.zeros(adata.n_obs)),
    "section mean": lambda adata: of_non_zeros(adata, adata.obs["section"].to_numpy()),
    "neighbour mean x depth": neighbours_at_depth,
    "ridge on image, position, section, depth": ridge,
}
