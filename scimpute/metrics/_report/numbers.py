"""The numbers of a report: held-out scores and four baselines, trust in genes, the null test, and markers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ... import _device, _progress
from ..._anndata import keys, with_scanpy
from ..._anndata.copies import RESULT, of_counts
from ..._anndata.obs import read_annotation, read_names
from ..._anndata.read import matrix_of, names_in
from ..._anndata.tables import read_embedding
from ..._sparse import chunks, row_sums
from .. import _clusters, _gene_trust, _heldout, _log_profiles, _thinned
from .._false_signal import MIN_CELLS, false_signal
from .._own_count_baseline import own_count
from .._replay import Imputation
from .._second_run import THIN, impute_again

if TYPE_CHECKING:
    from anndata import AnnData

BASELINES = {
    "raw": "the counts as they are",
    "gene_mean": "the gene mean",
    "own_count": "the gene mean and the cell's own count",
    "knn": "the mean of 15 similar cells",
}
_NEIGHBOURS = 15
_PCS = 30
_CLUSTERS = 8
"""Number of clusters of the counts if there is no label."""
_GROUPS, _MARKERS, _SMALLEST = 8, 3, 10
"""Highest number of groups on the page, markers of each group, and lowest number of cells in it."""


def settings(seed: int) -> _clusters.Settings:
    """Settings of the principal components. Neighbours, clusters and the embedding use the same ones."""
    return _clusters.Settings(["kmeans"], _CLUSTERS, None, 2000, _PCS, _NEIGHBOURS, seed)


def profile(counts: sp.csr_matrix) -> _log_profiles.Profiles:
    return _log_profiles.Profiles(counts.tocsc(), row_sums(counts))


def heldout(
    imputation: Imputation, frac: float, random_state: int | np.random.Generator, seed: int, progress: _progress.Progress
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Hide molecules. Returns the scores of the imputation and the baselines, and the trust in each gene."""
    second = impute_again(imputation, frac, random_state, progress)
    work, whole, genes, columns = second.work, second.whole, second.genes, second.columns
    parts = whole if imputation.genes is None else whole.only(columns)
    reads = {
        **whole.predictions(work, [RESULT], own=True),
        "own_count": own_count(whole, np.random.default_rng(seed)),
        "knn": _similar_cells(matrix_of(work, keys.train(THIN)), whole, seed),
    }
    if imputation.genes is not None:
        reads = {name: _of_some(read, len(whole.kept), columns) for name, read in reads.items()}
    sums = {name: _heldout.of_cells(reads[name], parts) for name in (*BASELINES, RESULT)}
    table = pd.DataFrame.from_dict({name: _heldout.scores(cells, parts) for name, cells in sums.items()}, orient="index")
    for name in BASELINES:
        # A paired difference: both predict the same molecules.
        lead = sums[name]["poisson"] - sums[RESULT]["poisson"]
        table.loc[name, "lead"] = lead.sum() / parts.test.sum()
        table.loc[name, "lead_se"] = np.sqrt(len(lead)) * lead.std(ddof=1) / parts.test.sum()
    if imputation.genes is not None:
        # Renormalisation needs predictions of all genes.
        table = table.drop(columns="mse_log_renormalized")
    return table, _gene_trust.of_layer(work, RESULT, THIN, own=True).iloc[genes].set_axis(imputation.names[genes])


def _of_some(read: _thinned.Read, n_genes: int, columns: np.ndarray) -> _thinned.Read:
    """Some columns of a prediction of ``n_genes``. Rows are read in chunks that fit all genes."""

    def read_columns(rows: slice) -> np.ndarray:
        start, stop = rows.start, rows.stop
        return np.concatenate([read(slice(start + part.start, start + part.stop))[:, columns] for part in chunks(stop - start, n_genes)])

    return read_columns


def _similar_cells(train: sp.csr_matrix, parts: _thinned.Thinned, seed: int) -> _thinned.Read:
    """The summed counts of the nearest cells, scaled to the depth of the cell."""
    from sklearn.neighbors import NearestNeighbors

    genes = np.flatnonzero(train.getnnz(axis=0))
    scores = _clusters.components(profile(train), genes, settings(seed))
    graph = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(scores))).fit(scores).kneighbors_graph(scores)

    def read(rows: slice) -> np.ndarray:
        total = (graph[rows] @ parts.train).toarray()
        sums = total.sum(axis=1, keepdims=True)
        return (total * (parts.depth[rows, None] / np.where(sums > 0, sums, 1))).astype(np.float32)

    return read


def untestable(imputation: Imputation) -> str | None:
    """Why the null test cannot run; None if it can."""
    if imputation.genes is not None:
        return "It needs all genes, and only some were imputed."
    if imputation.counts.shape[0] < MIN_CELLS:
        return f"It needs at least {MIN_CELLS} cells, but there are {imputation.counts.shape[0]}."
    return None


def null(
    imputation: Imputation, n_splits: int, n_labelled: int, random_state: int | np.random.Generator, progress: _progress.Progress
) -> tuple[pd.DataFrame | None, str]:
    """The table of :func:`scimpute.metrics.false_signal`, or None and the reason."""
    if not n_splits:
        return None, "n_splits=0 leaves it out."
    why = untestable(imputation)
    if why is not None:
        return None, why
    impute: Callable[..., Any] = lambda work: imputation.run_on_null(work, progress=progress)  # noqa: E731
    if n_labelled and imputation.takes_label:
        impute = lambda work, label: imputation.run_on_null(work, label, progress=progress)  # noqa: E731
    counts = of_counts(imputation.counts)
    with warnings.catch_warnings():
        # Warnings of missing signal are expected here, and warnings of the user's own counts came earlier.
        warnings.simplefilter("ignore", UserWarning)
        return false_signal(counts, impute, n_splits=n_splits, n_labelled=n_labelled, random_state=random_state), ""


def groups(adata: AnnData, imputation: Imputation, groupby: str | None, seed: int) -> tuple[np.ndarray, list[str], str | None]:
    """Groups for the markers: codes ``(n,)`` with -1 for cells without a group, names, and the column of ``obs``.

    Without a column the groups are clusters of the counts. Clusters of imputed values would show artefacts of the imputation.
    """
    column = groupby if groupby is not None else imputation.columns.get("celltype_key")
    if column is not None:
        annotation = read_annotation(adata, column, (), "groupby")
        return annotation.codes, annotation.levels, column
    n_clusters = max(1, min(_CLUSTERS, imputation.counts.shape[0] // _SMALLEST))
    counts, how = profile(imputation.counts), replace(settings(seed), n_clusters=n_clusters)
    codes = _clusters.cluster({"raw": counts}, how)["raw"]["kmeans"]
    return codes, [f"cluster {i + 1}" for i in range(n_clusters)], None


def markers(imputation: Imputation, codes: np.ndarray, names: list[str]) -> dict[str, list[int]]:
    """Places of the marker genes of each of the largest groups, from the counts, by the name of the group."""
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    largest = [int(i) for i in np.argsort(-sizes, kind="stable")[:_GROUPS] if sizes[i] >= _SMALLEST]
    genes = np.flatnonzero(imputation.counts.getnnz(axis=0))
    if imputation.genes is not None:
        genes = np.intersect1d(genes, imputation.genes)
    if not largest or (sizes > 0).sum() < 2 or not len(genes):
        return {}
    cells = np.flatnonzero(codes >= 0)
    values = profile(imputation.counts).of(genes)[cells]
    with _device.keep_threads():
        best = with_scanpy.marker_genes(values, codes[cells], len(names), largest, min(_MARKERS, len(genes)))
    return {names[group]: [int(genes[column]) for column in columns] for group, columns in best.items()}


def embedding(adata: AnnData, imputation: Imputation, basis: str | None, seed: int) -> tuple[np.ndarray, str, str]:
    """Two coordinates of each cell, ``(n, 2)``, their name, and a description."""
    if basis is not None:
        return read_embedding(adata, basis), basis.removeprefix("X_"), f"obsm[{basis!r}]"
    if imputation.method != "began" and keys.SPATIAL in names_in(adata, "obsm"):
        return _on_tissue(read_embedding(adata, keys.SPATIAL), adata, imputation), keys.SPATIAL, "the positions of the spots"
    counts, how = profile(imputation.counts), settings(seed)
    scores = _clusters.components(counts, _clusters.variable_genes(counts, how.n_top_genes), how)
    if adata.n_obs <= _SMALLEST or not scores.any():
        return np.asarray(scores[:, [0, -1]], dtype=float), "pca", "principal components of the raw counts"
    return _clusters.umap(scores, min(_NEIGHBOURS, adata.n_obs - 1), seed), "umap", "a UMAP of the raw counts"


def _on_tissue(place: np.ndarray, adata: AnnData, imputation: Imputation) -> np.ndarray:
    """Positions as in an image: y counts from the top. Sections lie side by side."""
    column = imputation.params.get("library_key")
    sections = np.zeros(len(place), dtype=np.int64)
    if column is not None and column in names_in(adata, "obs"):
        sections = pd.factorize(read_names(adata, column, "library_key"))[0]
    points, left = place * (1, -1), 0.0
    for section in np.unique(sections):
        inside = sections == section
        low, high = points[inside].min(axis=0), points[inside].max(axis=0)
        points[inside] += (left - low[0], -high[1])
        left += 1.1 * (high[0] - low[0])
    return points
