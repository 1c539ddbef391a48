"""Other methods for counts, as they are called for the tables of run.py: each takes an object with counts in X, and gives counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import scipy.sparse as sp


def scaled(counts: sp.csr_matrix, function) -> tuple[sp.csr_matrix, np.ndarray]:
    size = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    cp10k = (sp.diags(1e4 / size) @ counts).tocsr()
    cp10k.data = function(cp10k.data)
    return cp10k, size[:, None] / 1e4


def magic(adata: ad.AnnData, norm: str = "log") -> np.ndarray:
    """MAGIC at its defaults, exact solver, on log1p or square roots of the normalised counts; taken back to counts."""
    import magic as package

    # "log": log1p of shares, as in the measurements this project started from; close to linear.
    function, inverse = (np.sqrt, np.square) if norm == "sqrt" else (np.log1p, np.expm1)
    size = np.maximum(np.asarray(adata.X.sum(1)).ravel(), 1)
    share = (sp.diags(1 / size) @ adata.X).tocsr()
    share.data = function(share.data)
    smooth = package.MAGIC(solver="exact", verbose=False, n_jobs=2).fit_transform(share.toarray().astype(np.float32), genes="all_genes")
    return inverse(np.maximum(np.asarray(smooth), 0)) * size[:, None]


def knn(adata: ad.AnnData, k: int = 15) -> np.ndarray:
    """Counts summed over the nearest cells in 30 principal components."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.neighbors import NearestNeighbors

    logged, _ = scaled(adata.X, np.log1p)
    scores = TruncatedSVD(30, random_state=0).fit_transform(logged)
    total = NearestNeighbors(n_neighbors=k).fit(scores).kneighbors_graph(scores) @ adata.X
    ratio = np.asarray(adata.X.sum(1)).ravel() / np.maximum(np.asarray(total.sum(1)).ravel(), 1)
    return total.toarray() * ratio[:, None]


def svd(adata: ad.AnnData, k: int = 30) -> np.ndarray:
    """Truncated SVD of square roots."""
    from sklearn.utils.extmath import randomized_svd

    root, size = scaled(adata.X, np.sqrt)
    left, values, right = randomized_svd(root, k, n_iter=5, random_state=0)
    return np.square(np.maximum((left * values) @ right, 0)) * size


def scvi(adata: ad.AnnData, **options) -> np.ndarray:
    """The variational autoencoder of scvi-tools at its defaults, with the batch where there is one."""
    import scvi as package

    package.settings.seed, package.settings.verbosity = 0, 30
    work = ad.AnnData(adata.X.copy(), obs=adata.obs.copy())
    batch = "batch" if "batch" in work.obs and len(work.obs["batch"].unique()) > 1 else None
    package.model.SCVI.setup_anndata(work, batch_key=batch)
    model = package.model.SCVI(work)
    model.train(enable_progress_bar=False, accelerator="cpu", **options)
    size = np.asarray(work.X.sum(1)).ravel()
    return model.get_normalized_expression(library_size=1, return_numpy=True) * size[:, None]
