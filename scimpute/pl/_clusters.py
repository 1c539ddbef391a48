from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Patch
from scipy.optimize import linear_sum_assignment

from .. import _check, _random
from .._anndata.covariates import column_names
from .._anndata.obs import Categorical, read_annotation
from .._anndata.read import check_object
from .._keywords import helpful
from ..metrics import _log_profiles
from ..metrics._clusters import Settings, ari, cluster
from . import _figure, _tissue
from ._palette import palette

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

_NONE = "#D0D0D0"
# Of a second line of a title, of a legend, and of each letter of its labels, in inches.
_LINE, _LEGEND, _LETTER = 0.2, 0.5, 0.075


@helpful
@_figure.closed_on_failure
def clusters(
    adata: AnnData,
    layers: str | Sequence[str] = (),
    labels: str | None = None,
    *,
    columns: str | Sequence[str] = (),
    method: str = "kmeans",
    unlabelled: str | Sequence[str] = (),
    layer: str | None = None,
    output: str | None = None,
    n_clusters: int | None = None,
    resolution: float | None = None,
    n_top_genes: int = 2000,
    n_pcs: int = 30,
    n_neighbors: int = 15,
    random_state: int | np.random.Generator | None = 0,
    image_key: str | None = "hires",
    library_key: str | None = None,
    library_id: str | None = None,
    spot_size: float | None = None,
    alpha: float = 1.0,
    image_alpha: float = 0.6,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | bool | None = None,
) -> list[Axes] | None:
    """Clusters on the tissue, side by side: of the counts, of imputed layers, and of columns of ``obs``, beside known labels.

    The panels are, in this order: the labels; the columns; and, where layers are given, the clusters of the counts (*raw*) and of each
    layer, made as :func:`scimpute.metrics.cluster_agreement` makes them. A cluster has the colour of the label (without labels: of
    the cluster of the first panel) that it is matched with, so that as many spots as possible keep their colour.
    With ``labels`` the title of a panel says its adjusted Rand index over all cells with a label, also those of other sections.

    Parameters
    ----------
    adata
        Object with the places of the spots in ``obsm["spatial"]``.
    layers
        Name or names of layers to cluster.
    labels
        Categorical column of ``obs`` with known labels. Cells where it is missing are grey.
    columns
        Categorical columns of ``obs`` with clusters that were made elsewhere.
    method, unlabelled, layer, output, n_clusters, resolution, n_top_genes, n_pcs, n_neighbors, random_state
        As of :func:`scimpute.metrics.cluster_agreement`; one ``method``.
    image_key, library_key, library_id, spot_size, alpha, image_alpha
        As of :func:`scimpute.pl.spatial`. All sections are clustered together.
    ax
        Axes to draw on, one for each panel; a new figure where None.
    show
        Show the figure; ``scanpy.settings.autoshow`` where None.
    save
        File to save the figure to, or True for ``clusters`` in ``scanpy.settings.figdir``.

    Returns
    -------
    None where the figure is shown, else the axes. Nothing is written to ``adata``.

    Raises
    ------
    KeyError, ValueError, ImportError
        As :func:`scimpute.metrics.cluster_agreement` and :func:`scimpute.pl.spatial`; there is nothing to draw; the number of clusters
        is not known because neither ``labels`` nor ``n_clusters`` was given.

    Examples
    --------
    >>> import scimpute
    >>> scimpute.pl.clusters(adata, "spatial_imputed", labels="layer")  # doctest: +SKIP
    """
    check_object(adata)
    names = _check.layers(layers, [_log_profiles.RAW])
    columns = column_names("columns", columns)
    if not names and not columns:
        raise ValueError("there is nothing to draw beside the labels; give layers to cluster, or columns of obs with clusters")
    given = {"n_clusters": n_clusters, "resolution": resolution, "layer": layer, "output": output}
    unused = [name for name, value in given.items() if value is not None]
    if unused and not names:
        raise ValueError(f"{_check.listing(unused)} are of the clustering, and no layers to cluster were given; leave them out")
    _check.number("alpha", alpha, 0, 1)
    _check.number("image_alpha", image_alpha, 0, 1)
    known = None if labels is None else read_annotation(adata, labels, unlabelled)
    if known is None and unlabelled:
        raise ValueError("unlabelled says which labels are none, and labels is None; leave one of them out")
    section = _tissue.read(adata, image_key, library_key, library_id, spot_size)
    panels = {} if known is None else {known.column: known}
    panels |= {column: read_annotation(adata, column, (), "columns") for column in columns if labels != column}
    if names:
        seed = _random.seed(_random.generator(random_state))
        settings = Settings([method], n_clusters, resolution, n_top_genes, n_pcs, n_neighbors, seed)
        settings = settings.checked(adata, None if known is None else len(known.levels))
        for name, found in cluster(_log_profiles.read(adata, names, layer, output), settings).items():
            title = name if name not in panels else f"{name} (layer)"
            codes = found[method]
            panels[title] = Categorical(title, [str(i) for i in range(codes.max() + 1)], codes)
    return _draw(panels, known, section, alpha, image_alpha, ax, show, save)


def _draw(
    panels: dict[str, Categorical],
    known: Categorical | None,
    section: _tissue.Section,
    alpha: float,
    image_alpha: float,
    ax: Axes | Sequence[Axes] | None,
    show: bool | None,
    save: str | os.PathLike[str] | bool | None,
) -> list[Axes] | None:
    first = next(iter(panels.values()))
    matched = {title: match(panel, first) for title, panel in panels.items()}
    colors = palette(max(int(codes.max()) for codes in matched.values()) + 1)
    width, height = section.panel
    if known is not None:
        width, height = width + (_LEGEND + _LETTER * max(map(len, [*known.levels, "no label"]))) / len(panels), height + _LINE
    used = _figure.axes(ax, 1, len(panels), (width, height), ", ".join(panels))
    for axis, (title, codes) in zip(used, matched.items(), strict=True):
        shown = [_NONE if code < 0 else colors[code] for code in codes[section.spots]]
        _tissue.draw(axis, section, image_alpha, facecolors=shown, alpha=alpha)
        agreement = f"\nARI {ari(known, codes):.2f}" if known is not None and panels[title] is not known else ""
        axis.set_title(_figure.plain(title) + agreement)
    if known is not None:
        handles = [Patch(facecolor=color, label=_figure.plain(level)) for color, level in zip(colors, known.levels)]
        if (known.codes[section.spots] < 0).any():
            handles.append(Patch(facecolor=_NONE, label="no label"))
        used[-1].legend(handles=handles, frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _figure.finish(used, "clusters", show, save)


def match(panel: Categorical, reference: Categorical) -> np.ndarray:
    """Codes of the panel's clusters, each the code of the reference's level it shares most cells with, one to one.

    Clusters beyond the number of the reference's levels have codes of their own, the largest first.
    """
    both = (panel.codes >= 0) & (reference.codes >= 0)
    n_reference = len(reference.levels)
    shared = np.zeros((len(panel.levels), n_reference))
    np.add.at(shared, (panel.codes[both], reference.codes[both]), 1)
    clusters, levels = linear_sum_assignment(-shared)
    new = np.full(len(panel.levels), -1)
    new[clusters] = levels
    rest = np.flatnonzero(new < 0)
    sizes = np.bincount(panel.codes[panel.codes >= 0], minlength=len(new))
    new[rest[np.argsort(-sizes[rest], kind="stable")]] = np.arange(n_reference, n_reference + len(rest))
    return np.append(new, -1)[panel.codes]
