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

# Colour of spots without a cluster or label.
_GREY = "#D0D0D0"
# Height of a second title line, width of a legend without text, and width of a letter in the legend, in inches.
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
    """Draw clusters of the counts, of imputed layers and from columns of ``obs`` on the tissue, beside known labels.

    The panels show, in this order, the labels, the columns, and, if you pass layers, the clusters of the counts (*raw*) and of each
    layer. Layers are clustered as in :func:`scimpute.metrics.cluster_agreement`. Each cluster is matched with a label (without
    ``labels``, with a cluster of the first panel) and has its colour. The matching lets as many spots as possible keep their colour.
    With ``labels``, each title has the adjusted Rand index over all labelled cells, including cells of other sections.

    Parameters
    ----------
    adata
        Object with the positions of the spots in ``obsm["spatial"]``.
    layers
        Name or names of layers to cluster.
    labels
        Categorical column of ``obs`` with known labels. Cells without a label are grey.
    columns
        Categorical columns of ``obs`` with clusters from elsewhere.
    method, unlabelled, layer, output, n_clusters, resolution, n_top_genes, n_pcs, n_neighbors, random_state
        See :func:`scimpute.metrics.cluster_agreement`; only one ``method``.
    image_key, library_key, library_id, spot_size, alpha, image_alpha
        See :func:`scimpute.pl.spatial`. All sections are clustered together.
    ax
        Axes to draw on, one for each panel; None makes a new figure.
    show
        Show the figure; None uses ``scanpy.settings.autoshow``.
    save
        File for the figure, or True for ``clusters`` in ``scanpy.settings.figdir``.

    Returns
    -------
    None if the figure is shown, else the axes. Nothing is written to ``adata``.

    Raises
    ------
    KeyError, ValueError, ImportError
        As in :func:`scimpute.metrics.cluster_agreement` and :func:`scimpute.pl.spatial`. Also: there is nothing to draw, or the number
        of clusters is unknown, because you passed neither ``labels`` nor ``n_clusters``.

    Examples
    --------
    >>> import scimpute
    >>> scimpute.pl.clusters(adata, "spatial_imputed", labels="layer")  # doctest: +SKIP
    """
    check_object(adata)
    names = _check.layers(layers, [_log_profiles.RAW])
    columns = column_names("columns", columns)
    if not names and not columns:
        raise ValueError("there is nothing to draw beside the labels; pass layers to cluster, or columns of obs with clusters")
    cluster_options = {"n_clusters": n_clusters, "resolution": resolution, "layer": layer, "output": output}
    unused = [name for name, value in cluster_options.items() if value is not None]
    if unused and not names:
        raise ValueError(f"{_check.listing(unused)} only apply to layers, and layers is empty; leave them out, or pass layers to cluster")
    _check.number("alpha", alpha, 0, 1)
    _check.number("image_alpha", image_alpha, 0, 1)
    labelling = None if labels is None else read_annotation(adata, labels, unlabelled)
    if labelling is None and unlabelled:
        raise ValueError("unlabelled says which labels are none, but labels is None; pass labels, or leave out unlabelled")
    section = _tissue.read(adata, image_key, library_key, library_id, spot_size)
    panels = {} if labelling is None else {labelling.column: labelling}
    panels |= {column: read_annotation(adata, column, (), "columns") for column in columns if labels != column}
    if names:
        seed = _random.seed(_random.generator(random_state))
        settings = Settings([method], n_clusters, resolution, n_top_genes, n_pcs, n_neighbors, seed)
        settings = settings.checked(adata, None if labelling is None else len(labelling.levels))
        for name, codes_by_method in cluster(_log_profiles.read(adata, names, layer, output), settings).items():
            title = name if name not in panels else f"{name} (layer)"
            codes = codes_by_method[method]
            panels[title] = Categorical(title, [str(i) for i in range(codes.max() + 1)], codes)
    return _draw(panels, labelling, section, alpha, image_alpha, ax, show, save)


def _draw(
    panels: dict[str, Categorical],
    labelling: Categorical | None,
    section: _tissue.Section,
    alpha: float,
    image_alpha: float,
    ax: Axes | Sequence[Axes] | None,
    show: bool | None,
    save: str | os.PathLike[str] | bool | None,
) -> list[Axes] | None:
    first = next(iter(panels.values()))
    codes_by_panel = {title: match(panel, first) for title, panel in panels.items()}
    colors = palette(max(int(codes.max()) for codes in codes_by_panel.values()) + 1)
    width, height = section.panel
    if labelling is not None:
        width, height = width + (_LEGEND + _LETTER * max(map(len, [*labelling.levels, "no label"]))) / len(panels), height + _LINE
    all_axes = _figure.axes(ax, 1, len(panels), (width, height), ", ".join(panels))
    for axis, (title, codes) in zip(all_axes, codes_by_panel.items(), strict=True):
        spot_colors = [_GREY if code < 0 else colors[code] for code in codes[section.spots]]
        _tissue.draw(axis, section, image_alpha, facecolors=spot_colors, alpha=alpha)
        agreement = f"\nARI {ari(labelling, codes):.2f}" if labelling is not None and panels[title] is not labelling else ""
        axis.set_title(_figure.plain(title) + agreement)
    if labelling is not None:
        handles = [Patch(facecolor=color, label=_figure.plain(level)) for color, level in zip(colors, labelling.levels)]
        if (labelling.codes[section.spots] < 0).any():
            handles.append(Patch(facecolor=_GREY, label="no label"))
        all_axes[-1].legend(handles=handles, frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _figure.finish(all_axes, "clusters", show, save)


def match(panel: Categorical, reference: Categorical) -> np.ndarray:
    """New codes of the panel's clusters, ``(n,)``, matched one to one with the levels of the reference by their shared cells.

    If there are more clusters than levels, the unmatched clusters get further codes, the largest cluster first.
    """
    in_both = (panel.codes >= 0) & (reference.codes >= 0)
    n_reference = len(reference.levels)
    n_shared = np.zeros((len(panel.levels), n_reference))
    np.add.at(n_shared, (panel.codes[in_both], reference.codes[in_both]), 1)
    clusters, levels = linear_sum_assignment(-n_shared)
    new_codes = np.full(len(panel.levels), -1)
    new_codes[clusters] = levels
    unmatched = np.flatnonzero(new_codes < 0)
    sizes = np.bincount(panel.codes[panel.codes >= 0], minlength=len(new_codes))
    new_codes[unmatched[np.argsort(-sizes[unmatched], kind="stable")]] = np.arange(n_reference, n_reference + len(unmatched))
    return np.append(new_codes, -1)[panel.codes]
