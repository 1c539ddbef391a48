from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp

from .._anndata.matrix import to_csr
from .._keywords import helpful
from .._sparse import TARGET_SUM

# The bundled values are float32 logarithms. The error of the largest count, 259, is at most 0.08; the error of small counts is 0.001.
_TOLERANCE = 0.2


@helpful
def pbmc68k() -> ad.AnnData:
    """700 peripheral blood cells with UMI counts: real data without a download.

    scanpy contains :func:`scanpy.datasets.pbmc68k_reduced`, a subset of the cells and genes of :cite:t:`Zheng2017`. Its ``raw.X`` is
    log1p(CP10k), and ``obs["n_counts"]`` is the library size of each cell over all genes. The counts are therefore
    ``round(expm1(raw.X) * n_counts / 1e4)``. A check makes sure that every value is close to a whole number before it is rounded.

    Returns
    -------
    An object of 700 cells x 765 genes, with

    ``X``
        UMI counts, CSR float32, 67% zeros.
    ``obs["bulk_labels"]``
        Cell type (10), by correlation with purified populations.
    ``obs["n_counts"]``
        Library size over all genes, in UMIs. The 765 genes hold 11% to 28% of it. Pass it as ``size_key="n_counts"``.
    ``obsm["X_pca"]``, ``obsm["X_umap"]``, ``uns["bulk_labels_colors"]``
        As in scanpy: made from the observed counts, before any imputation.

    Raises
    ------
    RuntimeError
        The installed version of scanpy contains other data.

    Notes
    -----
    Source: :cite:t:`Zheng2017` (10x Genomics, "Fresh 68k PBMCs, Donor A").

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.pbmc68k()
    >>> adata.shape
    (700, 765)
    """
    with warnings.catch_warnings():
        # anndata warns that the file is old. The caller cannot do anything about this.
        warnings.simplefilter("ignore")
        bundled = sc.datasets.pbmc68k_reduced()
    logged = to_csr(bundled.raw.X, "raw.X")
    size = bundled.obs["n_counts"].to_numpy(dtype=np.float64)
    values = np.expm1(logged.data.astype(np.float64)) * np.repeat(size / TARGET_SUM, np.diff(logged.indptr))
    counts = np.rint(values)
    if np.abs(values - counts).max() > _TOLERANCE:
        raise RuntimeError(
            "scanpy.datasets.pbmc68k_reduced() does not hold log1p(CP10k) of counts in this version of scanpy; counts cannot be recovered"
        )
    return ad.AnnData(
        sp.csr_matrix((counts.astype(np.float32), logged.indices, logged.indptr), shape=logged.shape),
        obs=bundled.obs[["bulk_labels", "n_counts"]].copy(),
        var=bundled.raw.var[[]].copy(),
        obsm={name: np.asarray(bundled.obsm[name]) for name in ("X_pca", "X_umap")},
        uns={"bulk_labels_colors": bundled.uns["bulk_labels_colors"]},
    )
