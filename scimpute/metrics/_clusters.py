from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import _check, _device, _random
from .._anndata import with_scanpy
from .._anndata.obs import Categorical, read_annotation
from .._anndata.read import check_object
from .._keywords import helpful
from . import _log_profiles
from ._log_profiles import Profiles

if TYPE_CHECKING:
    from anndata import AnnData

METHODS = ("kmeans", "leiden")
# Number of starts of k-means; the best one counts.
_RESTARTS = 50
# Range and number of steps of the search for the resolution of Leiden that gives the requested number of clusters.
_RESOLUTIONS = (1e-3, 1e1)
_STEPS = 15
# Scores are rounded to so many decimals. In a layer without differences between cells, the rest is rounding error.
_DECIMALS = 3


@helpful
def cluster_agreement(
    adata: AnnData,
    layers: str | Sequence[str],
    labels: str,
    *,
    method: str | Sequence[str] = "kmeans",
    unlabelled: str | Sequence[str] = (),
    layer: str | None = None,
    output: str | None = None,
    n_clusters: int | None = None,
    resolution: float | None = None,
    n_top_genes: int = 2000,
    n_pcs: int = 30,
    n_neighbors: int = 15,
    random_state: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """Compare clusters of the cells with known labels, before and after an imputation.

    The counts and each layer are clustered in the same way: log1p(CP10k) of the ``n_top_genes`` most variable genes of the counts, their
    first principal components, then k-means or Leiden. The clustering never uses the labels.

    Parameters
    ----------
    adata
        Object with the counts, the layers and the labels.
    layers
        Name or names of the layers to score.
    labels
        Categorical column of ``obs``, known independently of the counts. Cells without a label are clustered but not scored.
    method
        ``"kmeans"``, ``"leiden"``, or both. k-means takes the best of 50 starts. Leiden (of igraph) runs on the graph of
        :func:`scanpy.pp.neighbors`.
    unlabelled
        Levels of ``labels`` that stand for a missing label, such as ``"unannotated"``.
    layer
        Layer with the counts to compare with; ``X`` if None.
    output
        Scale of layers of other packages: ``"counts"`` (expected counts), ``"rate"`` or ``"log1p"`` (of CP10k). Layers of this package
        record their scale. None means counts; layers that look like logarithms are then refused.
    n_clusters
        Number of clusters; the number of levels of ``labels`` if None.
    resolution
        Resolution of Leiden. None searches for a resolution that gives ``n_clusters`` clusters, or the nearest number. This makes the
        layers comparable. With one resolution for all, a smoother layer has fewer clusters.
    n_top_genes
        Number of variable genes (:func:`scanpy.pp.highly_variable_genes` of the counts); all if there are no more.
    n_pcs
        Number of principal components, at most the number of cells or genes minus one.
    n_neighbors
        Neighbours of a cell in the graph of Leiden.
    random_state
        Seed, generator, or None for a fresh one. All layers use the same seeds.

    Returns
    -------
    A row for each layer, after one for ``"raw"`` (the counts themselves), and for each method the columns

    ``{method}_ari``
        Adjusted Rand index of clusters and labels: 1 if they are the same, about 0 if they are independent.
    ``{method}_nmi``
        Normalised mutual information: 1 if they are the same, 0 if they are independent. Not adjusted for chance.
    ``leiden_clusters``
        Number of clusters that Leiden found.

    Raises
    ------
    KeyError
        A layer or the column of ``obs`` does not exist.
    ValueError
        The counts are not counts; a layer has NaN, infinite or negative values; a layer looks like logarithms and ``output`` is None, or
        the reverse with ``"log1p"``; the labels have fewer than two levels; a layer is named twice; an argument is out of its range or
        does not apply to the chosen methods.
    ImportError
        Leiden needs igraph, which is not installed.

    Notes
    -----
    Another ``random_state`` or ``n_pcs`` changes the scores by a few hundredths, above all with Leiden. Compare several. No dense copy
    of a sparse layer is made.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.metrics.cluster_agreement(adata, "rate", "cell_type").index.to_list()
    ['raw', 'rate']
    """
    check_object(adata)
    names = _check.layers(layers, [_log_profiles.RAW])
    known = read_annotation(adata, labels, unlabelled)
    methods = [method] if isinstance(method, str) or not isinstance(method, Sequence) else list(method)
    settings = Settings(methods, n_clusters, resolution, n_top_genes, n_pcs, n_neighbors, _random.seed(_random.generator(random_state)))
    settings = settings.checked(adata, len(known.levels))
    rows = {}
    for name, clusters in cluster(_log_profiles.read(adata, names, layer, output), settings).items():
        row: dict[str, float] = {}
        for how, codes in clusters.items():
            row |= {f"{how}_ari": ari(known, codes), f"{how}_nmi": nmi(known, codes)}
            if how == "leiden":
                row["leiden_clusters"] = len(np.unique(codes))
        rows[name] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.astype({"leiden_clusters": int}) if "leiden" in methods else table


def ari(labels: Categorical, clusters: np.ndarray) -> float:
    """Adjusted Rand index over the cells with a label."""
    # The import of scikit-learn draws from Python's random generator. `import scimpute` must not draw, so the import is here.
    from sklearn.metrics import adjusted_rand_score

    labelled = labels.codes >= 0
    return float(adjusted_rand_score(labels.codes[labelled], clusters[labelled]))


def nmi(labels: Categorical, clusters: np.ndarray) -> float:
    """Normalised mutual information over the cells with a label."""
    from sklearn.metrics import normalized_mutual_info_score

    labelled = labels.codes >= 0
    return float(normalized_mutual_info_score(labels.codes[labelled], clusters[labelled]))


@dataclass(frozen=True)
class Settings:
    """Settings of the clustering. ``n_clusters`` may be None if there is a resolution and no k-means."""

    methods: Sequence[str]
    n_clusters: int | None
    resolution: float | None
    n_top_genes: int
    n_pcs: int
    n_neighbors: int
    seed: int

    def checked(self, adata: AnnData, n_levels: int | None) -> Settings:
        """The checked settings. The number of clusters becomes the number of labels if it is None."""
        for method in self.methods:
            _check.option("method", method, METHODS)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"method must be one or several of {_check.listing(METHODS)}, each once; got {list(self.methods)}")
        if self.resolution is not None:
            _check.number("resolution", self.resolution, 0, open_low=True)
            if "leiden" not in self.methods:
                raise ValueError("resolution needs method='leiden'; pass method='leiden' or leave resolution out")
            if self.n_clusters is not None and "kmeans" not in self.methods:
                raise ValueError("resolution and n_clusters both set the number of Leiden clusters; give one of them")
        for name, low in (("n_top_genes", 1), ("n_pcs", 1), ("n_neighbors", 2)):
            _check.integer(name, getattr(self, name), low)
        if "leiden" in self.methods:
            if self.n_neighbors >= adata.n_obs:
                raise ValueError(f"n_neighbors={self.n_neighbors} must be below the number of cells, {adata.n_obs}")
            _require_igraph()
        n_clusters = n_levels if self.n_clusters is None else self.n_clusters
        if n_clusters is None:
            if "kmeans" in self.methods or self.resolution is None:
                raise ValueError("the number of clusters is not known; give labels or n_clusters")
        elif _check.integer("n_clusters", n_clusters, 2) > adata.n_obs:
            raise ValueError(f"n_clusters={n_clusters} must not exceed the number of cells, {adata.n_obs}")
        return replace(self, n_clusters=n_clusters)


def _require_igraph() -> None:
    try:
        import igraph  # noqa: F401
    except ImportError as error:
        raise ImportError("method='leiden' needs the package igraph: pip install igraph; or use method='kmeans'") from error


def cluster(profiles: dict[str, Profiles], settings: Settings) -> dict[str, dict[str, np.ndarray]]:
    """Codes of the clusters ``(n,)`` by layer and method. The first layer determines the variable genes."""
    genes = variable_genes(next(iter(profiles.values())), settings.n_top_genes)
    clusters: dict[str, dict[str, np.ndarray]] = {}
    for name, layer in profiles.items():
        scores = components(layer, genes, settings)
        by_method = {"kmeans": _kmeans, "leiden": _leiden}
        clusters[name] = {method: by_method[method](scores, settings) for method in settings.methods}
    return clusters


def variable_genes(counts: Profiles, n_top_genes: int) -> np.ndarray:
    """The most variable genes among all genes with a count."""
    genes = np.flatnonzero(counts.matrix.getnnz(axis=0))
    if len(genes) <= n_top_genes:
        return genes
    with _device.keep_threads():
        return genes[with_scanpy.is_highly_variable(counts.of(genes), n_top_genes)]


def components(layer: Profiles, genes: np.ndarray, settings: Settings) -> np.ndarray:
    """Principal components, ``(n, n_pcs)``."""
    values = layer.of(genes)
    n_pcs = min(settings.n_pcs, min(values.shape) - 1)
    if n_pcs < 1:
        raise ValueError(f"{values.shape[0]} cells and {len(genes)} genes with counts are too few for a principal component")
    with _device.keep_threads():
        return np.round(with_scanpy.principal_components(values, n_pcs, settings.seed), _DECIMALS)


def _kmeans(scores: np.ndarray, settings: Settings) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # A layer may have fewer distinct cells than clusters, such as one constant profile. The score shows that.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(settings.n_clusters, n_init=_RESTARTS, random_state=settings.seed).fit_predict(scores)


def _leiden(scores: np.ndarray, settings: Settings) -> np.ndarray:
    if not scores.any():
        return np.zeros(len(scores), dtype=np.int64)
    with _device.keep_threads():
        graph = with_scanpy.nearest_neighbours(scores, settings.n_neighbors, settings.seed)

    def at(resolution: float) -> np.ndarray:
        with _device.keep_threads():
            return with_scanpy.leiden(graph, resolution, settings.seed)

    if settings.resolution is not None:
        return at(settings.resolution)
    n_clusters, (low, high) = settings.n_clusters or 0, _RESOLUTIONS
    best, error = np.zeros(len(scores), dtype=np.int64), np.inf
    for _ in range(_STEPS):
        middle = float(np.sqrt(low * high))
        codes = at(middle)
        number = int(codes.max()) + 1
        if abs(number - n_clusters) < error:
            best, error = codes, abs(number - n_clusters)
        if number == n_clusters:
            break
        low, high = (middle, high) if number < n_clusters else (low, middle)
    return best


def umap(scores: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    """Two coordinates of each row, ``(n, 2)``."""
    with _device.keep_threads():
        return with_scanpy.umap(with_scanpy.nearest_neighbours(scores, n_neighbors, seed), seed)
