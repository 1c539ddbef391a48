from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from .. import _check
from .._anndata.obs import read_genes, read_label
from .._anndata.read import check_object
from .._keywords import helpful
from ..metrics._recovery import BASELINES, add_up
from . import _figure
from ._palette import OKABE_ITO

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from ..metrics._recovery import Sums

# Greys of the baselines; layers have colours that colour-blind people can tell apart, too.
_GREYS = {"group_mean": "#8C8C8C", "neighbour_mean": "#C8C8C8"}
# Five markers and seven colours: the first 35 layers all look different.
_MARKERS = "os^Dv"
# Letters of tick labels that fit into an inch. With more letters, the labels are turned.
_LETTERS_PER_INCH = 7
_EDGE = "#333333"
# Width of a bin of samples, as a difference in the observed fraction.
_BIN = 0.1
# Whiskers are cut off here, because some genes are predicted far worse than by their mean.
_BOTTOM = -1.0


@helpful
@_figure.closed_on_failure
def recovery(
    adata: AnnData,
    layers: str | Sequence[str],
    *,
    key: str = "hidden",
    groupby: str | None = None,
    genes: str | Sequence[str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | bool | None = None,
) -> list[Axes] | None:
    """Draw how well the layers recover hidden entries.

    The left panel shows the pooled R2 of :func:`scimpute.metrics.recovery` against the observed fraction of a sample's entries. Samples
    are sorted by this fraction into equally large bins, about one bin for each 0.1 of the range. Each bin has one point. A curve needs
    entries that were hidden with a pair of fractions. The right panel shows the R2 of the genes, with a box for each method. With
    ``groupby``, a panel below shows the R2 of the genes over the samples of each group. In all panels, 0 is the R2 of the gene's mean
    over all samples. Boxes are quartiles with the median. Whiskers are the 5th and 95th percentile, cut off below -1.

    With ``genes``, for example the genes of a pathway, all panels show these genes only. The right panel then has a point for each
    gene and method, above the name of the gene. The panel below has a point for each gene on the boxes of the groups.

    Parameters
    ----------
    adata
        Object with entries hidden by :func:`scimpute.pp.hide`.
    layers
        Name or names of the layers to show.
    key
        ``key_added`` of :func:`scimpute.pp.hide`.
    groupby
        Categorical column of ``obs``, such as the tissue. The group means are shown beside the layers. A column with one level is ignored.
    genes
        Names of the genes to show, in this order, or a boolean column of ``var``; None shows all genes.
    ax
        Axes to draw on: two, or three with ``groupby``; only the first of them gets a legend. None makes a new figure.
    show
        Show the figure; None uses ``scanpy.settings.autoshow``.
    save
        File for the figure, or True for ``recovery`` in ``scanpy.settings.figdir``.

    Returns
    -------
    None if the figure is shown, else the axes. Nothing is written to ``adata``.

    Raises
    ------
    KeyError, ValueError
        As in :func:`scimpute.metrics.recovery`. Also: a gene does not exist, no entry of the genes is hidden, there is nothing to draw,
        or ``ax`` does not have one axes for each panel.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_bulk()
    >>> scimpute.pp.hide(adata, (0.1, 0.9), of="all")
    >>> scimpute.pl.recovery(adata, "truth", groupby="tissue")  # doctest: +SKIP
    """
    check_object(adata)
    names = _check.layers(layers, BASELINES)
    label = read_label(adata, groupby, "groupby") if groupby is not None else None
    places = read_genes(adata, genes)
    sums = add_up(adata, names, key, label, places)
    methods = [name for name in sums.methods if name != "gene_mean"]
    if not methods:
        raise ValueError("layers is empty, and gene_mean is the only baseline; pass the name of a layer, or groupby")
    colors = {name: _GREYS.get(name) or OKABE_ITO[names.index(name) % len(OKABE_ITO)] for name in methods}
    groups = {} if label is None else {level: label.levels.index(level) for level in sorted(label.levels)}
    all_axes = _axes(ax, len(methods), len(groups), 0 if places is None else len(places))
    _curves(all_axes[0], sums, colors, has_room=ax is None)
    if places is None:
        _boxes(all_axes[1], {name: [(i, sums.r2(name))] for i, name in enumerate(methods)}, colors, methods)
    else:
        _points(all_axes[1], {name: sums.r2(name)[places] for name in methods}, colors, list(adata.var_names[places].astype(str)))
    all_axes[1].set_title("Genes")
    if label is not None:
        # The boxes of a group share the unit of width around its tick.
        offsets = (np.arange(len(methods)) - (len(methods) - 1) / 2) / (len(methods) + 1)
        r2 = {name: sums.r2(name, by_group=True) for name in methods}
        boxes = {name: [(i + offset, r2[name][groups[level]]) for i, level in enumerate(groups)] for name, offset in zip(methods, offsets)}
        _boxes(all_axes[2], boxes, colors, list(groups), each=places is not None)
        all_axes[2].set_title(f"Genes by {_figure.plain(label.column)}")
        if ax is None:
            _legend(
                all_axes[2],
                [Patch(facecolor=color, edgecolor=_EDGE, label=_figure.plain(name)) for name, color in colors.items()],
                has_room=True,
            )
    return _figure.finish(all_axes, "recovery", show, save)


def _axes(ax: Axes | Sequence[Axes] | None, n_methods: int, n_groups: int, n_genes: int) -> list[Axes]:
    """The axes of the caller, or two axes of a new figure; with groups, also a third one below, as wide as its boxes need.

    ``n_genes`` is the number of gene names below the second panel; 0 if it has no gene names.
    """
    if ax is not None:
        panels = ["curves", "genes", "genes by group"][: 3 if n_groups else 2]
        return _figure.axes(ax, 1, len(panels), (4.8, 3.2), ", ".join(panels))
    gene_width = min(19.2, max(4.8, 0.18 * n_genes))
    width = max(4.8 + gene_width, min(24.0, 0.16 * n_groups * (n_methods + 1)))
    figure = plt.figure(figsize=(width, 6.8 if n_groups else 3.2), layout="constrained")
    return list(figure.subplot_mosaic("ab;cc" if n_groups else "ab", width_ratios=[4.8, gene_width]).values())


def _curves(axis: Axes, sums: Sums, colors: dict[str, str], *, has_room: bool) -> None:
    """Draw the pooled R2 of every bin of samples, a curve for each method."""
    scored = np.flatnonzero(sums.cell_null > 0)
    order = scored[np.argsort(sums.observed[scored], kind="stable")]
    span = np.subtract(*np.quantile(sums.observed[order], (0.95, 0.05))) if order.size else 0
    bins = np.array_split(order, max(1, min(order.size, round(span / _BIN))))
    for i, (name, color) in enumerate(colors.items()):
        error = sums.methods[name].cell_error
        points = [
            (sums.observed[samples].mean(), 1 - error[samples].sum() / sums.cell_null[samples].sum()) for samples in bins if samples.size
        ]
        line_style = "--" if name in _GREYS else "-"
        axis.plot(
            *np.reshape(points, (-1, 2)).T,
            color=color,
            ls=line_style,
            lw=1.4,
            marker=_MARKERS[i % len(_MARKERS)],
            ms=4,
            label=_figure.plain(name),
        )
    axis.set(title="Samples", xlabel="fraction of the sample observed", ylabel="pooled $R^2$ of hidden entries", xlim=(0, 1))
    _finish(axis, "gene_mean")
    _legend(axis, axis.get_lines(), has_room=has_room)


def _points(axis: Axes, r2: dict[str, np.ndarray], colors: dict[str, str], genes: Sequence[str]) -> None:
    """Draw a point for each gene and method above the name of the gene. Undefined R2 are left out; R2 below -1 are drawn at -1."""
    for i, (name, values) in enumerate(r2.items()):
        axis.plot(np.maximum(values, _BOTTOM), color=colors[name], ls="", marker=_MARKERS[i % len(_MARKERS)], ms=5, alpha=0.9)
    axis.set(xlim=(-0.7, max(len(genes), 3) - 0.3), ylabel="$R^2$ of a gene")
    axis.set_xticks(range(len(genes)), [_figure.plain(gene) for gene in genes], rotation=90, fontsize="small")
    _finish(axis)


def _boxes(
    axis: Axes,
    boxes: dict[str, list[tuple[float, np.ndarray]]],
    colors: dict[str, str],
    ticks: Sequence[str],
    *,
    each: bool = False,
) -> None:
    """Draw a box of the genes' R2 at each place, and with ``each`` a point for each gene. Undefined R2 are left out."""
    low_ends = []
    for name, places in boxes.items():
        defined = [(place, r2[~np.isnan(r2)]) for place, r2 in places]
        defined = [(place, r2) for place, r2 in defined if r2.size]
        low_ends += [np.quantile(r2, (0.05, 0.25)) for _, r2 in defined]
        axis.boxplot(
            [r2 for _, r2 in defined],
            positions=[place for place, _ in defined],
            widths=0.6 if len(places) == 1 else 0.8 / (len(boxes) + 1),
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": colors[name], "edgecolor": _EDGE, "lw": 0.8},
            medianprops={"color": "black", "lw": 1.4},
            whiskerprops={"color": _EDGE, "lw": 0.8},
            capprops={"color": _EDGE, "lw": 0.8},
        )
        if each:
            points = [(place, value) for place, r2 in defined for value in r2]
            axis.plot(*np.reshape(points, (-1, 2)).T, ls="", marker="o", ms=2.5, mfc="white", mec=_EDGE, mew=0.6)
            low_ends += [np.array([r2.min(), r2.max()]) for _, r2 in defined]
    # The axis has room for three boxes, so that a single box is not as wide as the panel.
    middle, half = (len(ticks) - 1) / 2, max(len(ticks), 3) / 2
    axis.set(xlim=(middle - half, middle + half), ylabel="$R^2$ of a gene")
    axis.set_xticks(range(len(ticks)), [_figure.plain(tick) for tick in ticks])
    if sum(map(len, ticks)) > _LETTERS_PER_INCH * axis.figure.canvas.figure.get_figwidth() * axis.get_position().width:
        plt.setp(axis.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    if low_ends:
        whiskers, quartiles = np.min(low_ends, axis=0)
        axis.set_ylim(bottom=min(max(whiskers, _BOTTOM), quartiles, 0) - 0.05)
    _finish(axis)


def _legend(axis: Axes, handles: Sequence[Artist], *, has_room: bool) -> None:
    """Draw the legend beside the axes if there is room, because any corner may hold points."""
    if has_room:
        axis.legend(handles=handles, frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axis.legend(handles=handles, frameon=False, fontsize="small")


def _finish(axis: Axes, label: str | None = None) -> None:
    axis.axhline(0, color="0.4", lw=0.8, ls=":", zorder=0, label=label)
    axis.spines[["top", "right"]].set_visible(False)
