from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .. import _check, _random
from .._anndata import keys
from .._anndata.obs import read_genes, read_label
from .._anndata.read import check_object, names_in, read_neighbours
from .._keywords import helpful
from .._space.graph import within
from .._sparse import chunks
from . import _log_profiles
from ._log_profiles import Profiles

if TYPE_CHECKING:
    from anndata import AnnData

_PERMUTED = "permuted"
# A standard deviation below 1e-5 of the values is rounding of float32: such a gene is constant.
_ROUNDING = 1e-10
# A difference from the counts below this is rounding, not inflation.
_SAME = 1e-6


@helpful
def spatial_autocorrelation(
    adata: AnnData,
    layers: str | Sequence[str],
    *,
    key: str = keys.SPATIAL,
    genes: str | Sequence[str] | None = None,
    by: str | None = None,
    library_key: str | None = None,
    layer: str | None = None,
    output: str | None = None,
    random_state: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    r"""Compare the spatial structure of the genes (Moran's I) before and after an imputation.

    Let :math:`z` be log1p(CP10k) of a gene minus its mean, over the :math:`n` spots with a neighbour. Then

    .. math:: I = \frac{n}{\sum_{ik} w_{ik}} \frac{\sum_{ik} w_{ik} z_i z_k}{\sum_i z_i^2}

    with :math:`w_{ik} = 1` for neighbours in ``obsp[f"{key}_connectivities"]``. With permuted spots, :math:`I` is
    :math:`-1 / (n - 1)` on average.

    Parameters
    ----------
    adata
        Object with the counts, the layers and the graph of :func:`scimpute.pp.spatial_rings` (or of squidpy).
    layers
        Name or names of the layers to score.
    key
        ``key_added`` of :func:`scimpute.pp.spatial_rings`.
    genes
        Names of genes, or a boolean column of ``var``; all if None.
    by
        ``"gene"`` for :math:`I` of each gene instead of the table.
    library_key
        Column of ``obs`` with the section (slide) of each spot. Edges between sections are left out. A gene's mean is its mean in the
        section, because a difference between sections is not spatial structure.
    layer
        Layer with the counts to compare with; ``X`` if None.
    output
        Scale of layers of other packages: ``"counts"`` (expected counts), ``"rate"`` or ``"log1p"`` (of CP10k). Layers of this package
        record their scale. None means counts; layers that look like logarithms are then refused.
    random_state
        Seed of the permutation, generator, or None for a fresh one.

    Returns
    -------
    A row for each layer, after one for ``"raw"`` (the counts) and one for ``"permuted"`` (the counts with permuted spots, which have no
    spatial structure; with ``library_key`` permuted within the section). Genes that are constant in the counts or in the layer are left
    out. The columns:

    ``mean``
        Mean of :math:`I` over genes.
    ``difference``
        Mean of :math:`I` minus the mean of the counts, over the same genes.
    ``inflated``
        Share of the genes with a higher :math:`I` than in the counts.
    ``correlation``
        Pearson correlation, over genes, of :math:`I` and :math:`I` of the counts: do the same genes have spatial structure?
    ``genes``
        Number of genes.

    With ``by="gene"``, a row for each gene and, for each row above, a column with :math:`I`, NaN for a constant gene.

    Raises
    ------
    KeyError
        There is no graph; a layer, a gene or the column of ``obs`` does not exist.
    ValueError
        The graph has no edge; the counts are not counts; a layer has NaN, infinite or negative values; a layer looks like logarithms and
        ``output`` is None, or the reverse with ``"log1p"``; a layer is named twice or like a baseline.

    Notes
    -----
    The noise of the counts lowers :math:`I`, so honest denoising raises it. But the plain mean over a spot's neighbours raises it most,
    and may keep the highest ``correlation``. A higher value of either is not a gain by itself. Read them together with scores that reward
    truth (:func:`heldout`, :func:`recovery`, :func:`cluster_agreement`). Works through chunks of genes; no dense copy of a matrix is made.
    """
    check_object(adata)
    if by is not None:
        _check.option("by", by, ("gene",))
    names = _check.layers(layers, [_log_profiles.RAW, _PERMUTED])
    places = read_genes(adata, genes)
    places = np.arange(adata.n_vars) if places is None else places
    section = np.zeros(adata.n_obs, dtype=np.int64)
    if library_key is not None:
        label = read_label(adata, library_key, "library_key")
        section = section if label is None else label.codes
    rng = _random.generator(random_state)
    graph, spots = _edges(adata, key, section)
    profiles = _log_profiles.read(adata, names, layer, output)

    order = _permutation(section[spots], rng)
    values = {name: _morans_i(graph, profiles[name], places, spots, section) for name in profiles}
    # A permutation within sections keeps the mean of each section.
    values[_PERMUTED] = _morans_i(graph[order][:, order], profiles[_log_profiles.RAW], places, spots, section)
    rows = [_log_profiles.RAW, _PERMUTED, *names]
    if by == "gene":
        return pd.DataFrame({name: values[name] for name in rows}, index=adata.var_names[places])
    table = pd.DataFrame.from_dict({name: _scores(values[name], values[_log_profiles.RAW]) for name in rows}, orient="index")
    return table.astype({"genes": int})


def _edges(adata: AnnData, key: str, section: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
    """The graph of the spots with a neighbour, and the places of these spots."""
    name = f"obsp[{keys.connectivities(key)!r}]"
    graph = read_neighbours(adata, key)
    if graph is None:
        call = "scimpute.pp.spatial_rings(adata" + (f", key_added={key!r})" if key != keys.SPATIAL else ")")
        graphs = _check.listing(names_in(adata, "obsp"))
        raise KeyError(f"{name} not found; call {call} first. obsp: {graphs}")
    graph = within(graph, section)
    spots = np.flatnonzero(np.asarray(graph.sum(axis=0)).ravel() + np.asarray(graph.sum(axis=1)).ravel())
    if not spots.size:
        raise ValueError(f"{name} has no edge between two spots (of one section); call scimpute.pp.spatial_rings again")
    return graph[spots][:, spots], spots


def _permutation(section: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of the spots within each section."""
    order = np.arange(len(section))
    for level in np.unique(section):
        members = np.flatnonzero(section == level)
        order[members] = rng.permutation(members)
    return order


def _morans_i(graph: sp.csr_matrix, profiles: Profiles, genes: np.ndarray, spots: np.ndarray, section: np.ndarray) -> np.ndarray:
    """Moran's I of each gene, NaN if the gene is constant within the sections.

    scanpy's ``morans_i`` gives the same, but changes the number of threads of torch to numba's.
    """
    _, codes = np.unique(section[spots], return_inverse=True)
    member = sp.csr_matrix((np.ones(len(spots)), (codes, np.arange(len(spots)))))
    sizes = np.asarray(member.sum(axis=1))
    result = np.full(len(genes), np.nan)
    for part, values in _by_gene(profiles, genes):
        z = values[spots].astype(np.float64)
        level = np.square(z).sum(axis=0)
        z -= (member @ z / sizes)[codes]
        varies = np.square(z).sum(axis=0) > _ROUNDING * level
        if varies.any():
            z = z[:, varies]
            result[part][varies] = len(spots) / graph.sum() * (z * (graph @ z)).sum(axis=0) / np.square(z).sum(axis=0)
    return result


def _by_gene(profiles: Profiles, genes: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Dense log1p(CP10k), one chunk of genes at a time."""
    for part in chunks(len(genes), profiles.matrix.shape[0]):
        yield part, profiles.dense(genes[part])


def _scores(after: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """A row of the table."""
    both = ~np.isnan(after) & ~np.isnan(before)
    after, before = after[both], before[both]
    if not both.any():
        return {"mean": np.nan, "difference": np.nan, "inflated": np.nan, "correlation": np.nan, "genes": 0}
    spread = min(np.ptp(after), np.ptp(before))
    return {
        "mean": float(after.mean()),
        "difference": float((after - before).mean()),
        "inflated": float((after > before + _SAME).mean()),
        "correlation": float(np.corrcoef(after, before)[0, 1]) if spread > _SAME else np.nan,
        "genes": int(both.sum()),
    }
