"""Other methods for counts: each takes an object with counts in X (training molecules) and gives expected counts, ``(n, g)``.

Settings not given are the method's own defaults. :data:`GRIDS` has the settings among which ``tuning.py`` looks for a method's best.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

THREADS = int(os.environ.get("OMP_NUM_THREADS", 2))
TRANSFORMS = {"log": (np.log1p, np.expm1), "sqrt": (np.sqrt, np.square)}


def depth(counts: sp.csr_matrix) -> np.ndarray:
    """Molecules of every cell, at least 1, ``(n, 1)``."""
    return np.maximum(np.asarray(counts.astype(np.float64).sum(1)).reshape(-1, 1), 1)


def scaled(counts: sp.csr_matrix, function: Callable[[np.ndarray], np.ndarray]) -> tuple[sp.csr_matrix, np.ndarray]:
    size = depth(counts)
    cp10k = (sp.diags(1e4 / size.ravel()) @ counts).tocsr()
    cp10k.data = function(cp10k.data)
    return cp10k, size / 1e4


def raw(adata: ad.AnnData, seed: int = 0) -> np.ndarray:
    """No imputation."""
    return adata.X.toarray()


def gene_mean(adata: ad.AnnData, seed: int = 0) -> np.ndarray:
    """Every cell the average cell at its own depth."""
    total = np.asarray(adata.X.astype(np.float64).sum(0)).ravel()
    return total / total.sum() * depth(adata.X)


def magic(adata: ad.AnnData, norm: str = "linear", t: int | str = 3, knn: int = 5, seed: int = 0) -> np.ndarray:
    """MAGIC, exact solver, on log1p of CP10k, on square roots, or nearly on the shares as they are; taken back to counts."""
    import magic as package

    # "linear": log1p of shares, as in the measurements this project started from, which are too small for it to bend.
    function, inverse = TRANSFORMS["log" if norm == "linear" else norm]
    size = depth(adata.X) / (1e4 if norm == "log" else 1)
    share = (sp.diags(1 / size.ravel()) @ adata.X).tocsr()
    share.data = function(share.data)
    operator = package.MAGIC(solver="exact", t=t, knn=knn, verbose=False, n_jobs=THREADS, random_state=seed)
    smooth = operator.fit_transform(share.toarray().astype(np.float32), genes="all_genes")
    return inverse(np.maximum(np.asarray(smooth), 0)) * size


def knn(adata: ad.AnnData, k: int = 15, n_pcs: int = 30, seed: int = 0) -> np.ndarray:
    """Counts summed over the nearest cells (itself among them) in principal components."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.neighbors import NearestNeighbors

    logged, _ = scaled(adata.X, np.log1p)
    scores = TruncatedSVD(n_pcs, random_state=seed).fit_transform(logged)
    total = NearestNeighbors(n_neighbors=min(k, adata.n_obs)).fit(scores).kneighbors_graph(scores) @ adata.X
    ratio = np.asarray(adata.X.sum(1)).ravel() / np.maximum(np.asarray(total.sum(1)).ravel(), 1)
    return total.toarray() * ratio[:, None]


def svd(adata: ad.AnnData, k: int = 30, norm: str = "sqrt", seed: int = 0) -> np.ndarray:
    """Truncated SVD of square roots or log1p of CP10k."""
    from sklearn.utils.extmath import randomized_svd

    function, inverse = TRANSFORMS[norm]
    values, size = scaled(adata.X, function)
    left, singular, right = randomized_svd(values, k, n_iter=5, random_state=seed)
    return inverse(np.maximum((left * singular) @ right, 0)) * size


def alra(adata: ad.AnnData, k: int | str = "auto", seed: int = 0) -> np.ndarray:
    """ALRA (Linderman et al. 2022, Nature Communications 13, 192), in numpy after the steps of its paper.

    Of log1p(CP10k) A: (1) the rank-k approximation by a randomised SVD; (2) of every gene, what is not above the magnitude of its
    0.1% quantile is set to 0; (3) what is left of the gene is moved and scaled to the mean and standard deviation of the non-zeros of A;
    negative values are set to 0; (4) a count that became 0 is put back.
    """
    from sklearn.utils.extmath import randomized_svd

    logged, size = scaled(adata.X, np.log1p)
    rank = _alra_rank(logged, seed) if k == "auto" else int(k)
    left, singular, right = randomized_svd(logged, rank, n_iter=10, random_state=seed)
    low = ((left * singular) @ right).astype(np.float64)
    low[low <= np.abs(np.quantile(low, 0.001, axis=0))] = 0
    dense = logged.toarray()
    (mean, sd), (mean_seen, sd_seen) = _of_non_zeros(low), _of_non_zeros(dense)
    # A gene with fewer than two different values left is not scaled.
    factor = np.where((sd > 0) & (sd_seen > 0), sd_seen / np.where(sd > 0, sd, 1), np.nan)
    moved = np.maximum((low - mean) * factor + mean_seen, 0)
    low = np.where(low > 0, np.where(np.isnan(factor), low, moved), 0)
    return np.expm1(np.where(low > 0, low, dense)) * size


def _alra_rank(logged: sp.csr_matrix, seed: int) -> int:
    """The last of 100 singular values that stands 6 standard deviations above the spacings of the last 20, as published."""
    from sklearn.utils.extmath import randomized_svd

    singular = randomized_svd(logged, 100, n_iter=2, random_state=seed)[1]
    spacing = singular[:-1] - singular[1:]
    noise = spacing[78:]
    above = np.flatnonzero(spacing > noise.mean() + 6 * noise.std(ddof=1))
    # Data without structure have none: the published code stops there.
    return int(above.max()) + 1 if above.size else 1


def _of_non_zeros(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column's non-zeros; 0 where there are too few."""
    there = values != 0
    number = there.sum(0)
    mean = values.sum(0) / np.maximum(number, 1)
    return mean, np.sqrt((np.square(values - mean) * there).sum(0) / np.maximum(number - 1, 1)) * (number > 1)


def scvi(adata: ad.AnnData, n_latent: int = 10, max_epochs: int | None = None, label: str | None = None, seed: int = 0) -> np.ndarray:
    """The variational autoencoder of scvi-tools, with the batch (or the column ``label``) where there is one."""
    import scvi as package

    package.settings.seed, package.settings.verbosity = seed, 30
    work = ad.AnnData(adata.X.copy(), obs=adata.obs.copy())
    column = label or "batch"
    package.model.SCVI.setup_anndata(work, batch_key=column if column in work.obs and len(work.obs[column].unique()) > 1 else None)
    model = package.model.SCVI(work, n_latent=n_latent)
    model.train(max_epochs=max_epochs, enable_progress_bar=False, accelerator="auto")
    return model.get_normalized_expression(library_size=1, return_numpy=True) * np.asarray(work.X.sum(1)).reshape(-1, 1)


def _grid(**values: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(values, point)) for point in product(*values.values())]


PEERS: dict[str, Callable[..., np.ndarray]] = {f.__name__: f for f in (raw, gene_mean, svd, knn, magic, alra, scvi)}
GRIDS: dict[str, list[dict[str, Any]]] = {
    "svd": _grid(norm=["sqrt", "log"], k=[3, 5, 10, 30, 100]),
    "knn": _grid(n_pcs=[10, 30], k=[5, 15, 50, 150]),
    "magic": _grid(norm=["linear", "sqrt", "log"], knn=[5, 15, 45], t=[1, 3, 6]),
    "alra": _grid(k=["auto", 5, 10, 20, 50]),
    "scvi": _grid(n_latent=[10, 30], max_epochs=[100, 400]),
}
# Their rows do not sum to the cell's depth; whether they are scaled to it is a part of the grid.
UNSCALED = ("svd", "magic", "alra")
