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

# Greys for the baselines; for the layers colours told apart by all.
_GREYS = {"group_mean": "#8C8C8C", "neighbour_mean": "#C8C8C8"}
# Another number of markers than of colours: no two of the first 35 look the same.
_MARKERS = "os^Dv"
# That fit into an inch of tick labels; more are turned.
_LETTERS = 7
_EDGE = "#333333"
# Width of a bin of samples, in fractions observed.
_BIN = 0.1
# A gene may be predicted far worse than by its mean; whiskers are cut off here.
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
    """How much of what was hidden the layers give back.

    Left, pooled R2 of :func:`scimpute.metrics.recovery` against the fraction of a sample's entries that is observed: one point for
    every tenth that the samples span, of equally many samples. A curve needs entries hidden with a pair of fractions. Right, R2 of
    the genes, a box for each method; with ``groupby``, below, R2 of the genes over the samples of each group. The zero of all panels
    is the gene's mean over all samples. Boxes are quartiles with the median, whiskers the 5th and 95th percentile, cut off below -1.

    With ``genes``, such as those of a pathway, all panels are of these alone: right, a point for each gene and method, under the
    name of the gene; below, a point for each gene on the boxes of the groups.

    Parameters
    ----------
    adata
        Object with entries hidden by :func:`scimpute.pp.hide`.
    layers
        Name or names of the layers to show.
    key
        ``key_added`` of :func:`scimpute.pp.hide`.
    groupby
        Categorical column of ``obs``, such as the tissue. Its means are shown beside the layers. A column with one level is left out.
    genes
        Names of the genes to show, in this order, or a boolean column of ``var``; all where None.
    ax
        Axes to draw on, two or, with ``groupby``, three, of which only the first then has a legend; a new figure where None.
    show
        Show the figure; ``scanpy.settings.autoshow`` where None.
    save
        File to save the figure to, or True for ``recovery`` in ``scanpy.settings.figdir``.

    Returns
    -------
    None where the figure is shown, else the axes. Nothing is written to ``adata``.

    Raises
    ------
    KeyError, ValueError
        As :func:`scimpute.metrics.recovery`; a gene does not exist, or no entry of the genes is hidden; there is nothing to draw; ``ax``
        is not as many axes as there are panels.

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
        raise ValueError("layers is empty and there is no baseline to draw but the gene mean; name a layer, or give groupby")
    colors = {name: _GREYS.get(name) or OKABE_ITO[names.index(name) % len(OKABE_ITO)] for name in methods}
    groups = {} if label is None else {level: label.levels.index(level) for level in sorted(label.levels)}
    used = _axes(ax, len(methods), len(groups), 0 if places is None else len(places))
    _curves(used[0], sums, colors, beside=ax is None)
    if places is None:
        _boxes(used[1], {name: [(i, sums.r2(name))] for i, name in enumerate(methods)}, colors, methods)
    else:
        _points(used[1], {name: sums.r2(name)[places] for name in methods}, colors, list(adata.var_names[places].astype(str)))
    used[1].set_title("Genes")
    if label is not None:
        # The boxes of a group share the unit of width around its tick.
        place = (np.arange(len(methods)) - (len(methods) - 1) / 2) / (len(methods) + 1)
        r2 = {name: sums.r2(name, by_group=True) for name in methods}
        boxes = {name: [(i + at, r2[name][groups[level]]) for i, level in enumerate(groups)] for name, at in zip(methods, place)}
        _boxes(used[2], boxes, colors, list(groups), each=places is not None)
        used[2].set_title(f"Genes by {_figure.plain(label.column)}")
        if ax is None:
            _legend(
                used[2], [Patch(facecolor=color, edgecolor=_EDGE, label=_figure.plain(name)) for name, color in colors.items()], beside=True
            )
    return _figure.finish(used, "recovery", show, save)


def _axes(given: Axes | Sequence[Axes] | None, n_methods: int, n_groups: int, n_genes: int) -> list[Axes]:
    """The axes given, or two of a new figure and, where there are groups, one below them as wide as its boxes need.

    ``n_genes`` is the number of genes that are named in the second; 0 where they are not.
    """
    if given is not None:
        panels = ["curves", "genes", "genes by group"][: 3 if n_groups else 2]
        return _figure.axes(given, 1, len(panels), (4.8, 3.2), ", ".join(panels))
    named = min(19.2, max(4.8, 0.18 * n_genes))
    width = max(4.8 + named, min(24.0, 0.16 * n_groups * (n_methods + 1)))
    figure = plt.figure(figsize=(width, 6.8 if n_groups else 3.2), layout="constrained")
    return list(figure.subplot_mosaic("ab;cc" if n_groups else "ab", width_ratios=[4.8, named]).values())


def _curves(axis: Axes, sums: Sums, colors: dict[str, str], *, beside: bool) -> None:
    """Pooled R2 of every bin of samples."""
    used = np.flatnonzero(sums.cell_null > 0)
    order = used[np.argsort(sums.observed[used], kind="stable")]
    span = np.subtract(*np.quantile(sums.observed[order], (0.95, 0.05))) if order.size else 0
    bins = np.array_split(order, max(1, min(order.size, round(span / _BIN))))
    for i, (name, color) in enumerate(colors.items()):
        error = sums.methods[name].cell_error
        points = [(sums.observed[some].mean(), 1 - error[some].sum() / sums.cell_null[some].sum()) for some in bins if some.size]
        line = "--" if name in _GREYS else "-"
        axis.plot(
            *np.reshape(points, (-1, 2)).T,
            color=color,
            ls=line,
            lw=1.4,
            marker=_MARKERS[i % len(_MARKERS)],
            ms=4,
            label=_figure.plain(name),
        )
    axis.set(title="Samples", xlabel="fraction of the sample observed", ylabel="pooled $R^2$ of hidden entries", xlim=(0, 1))
    _finish(axis, "gene_mean")
    _legend(axis, axis.get_lines(), beside=beside)


def _points(axis: Axes, r2: dict[str, np.ndarray], colors: dict[str, str], genes: Sequence[str]) -> None:
    """A point for each gene and method, above the gene's name; undefined ones are left out, and those below the scale lie on its edge."""
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
    """A box for each place and the genes' R2 there, with a point for each where they are few; undefined ones are left out."""
    low = []
    for name, places in boxes.items():
        found = [(place, r2[~np.isnan(r2)]) for place, r2 in places]
        found = [(place, r2) for place, r2 in found if r2.size]
        low += [np.quantile(r2, (0.05, 0.25)) for _, r2 in found]
        axis.boxplot(
            [r2 for _, r2 in found],
            positions=[place for place, _ in found],
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
            points = [(place, value) for place, r2 in found for value in r2]
            axis.plot(*np.reshape(points, (-1, 2)).T, ls="", marker="o", ms=2.5, mfc="white", mec=_EDGE, mew=0.6)
            low += [np.array([r2.min(), r2.max()]) for _, r2 in found]
    # A single box is not made as wide as the panel.
    middle, half = (len(ticks) - 1) / 2, max(len(ticks), 3) / 2
    axis.set(xlim=(middle - half, middle + half), ylabel="$R^2$ of a gene")
    axis.set_xticks(range(len(ticks)), [_figure.plain(tick) for tick in ticks])
    if sum(map(len, ticks)) > _LETTERS * axis.figure.canvas.figure.get_figwidth() * axis.get_position().width:
        plt.setp(axis.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    if low:
        whiskers, quartiles = np.min(low, axis=0)
        axis.set_ylim(bottom=min(max(whiskers, _BOTTOM), quartiles, 0) - 0.05)
    _finish(axis)


def _legend(axis: Axes, handles: Sequence[Artist], *, beside: bool) -> None:
    """Beside the axes where there is room: no corner is free for certain."""
    if beside:
        axis.legend(handles=handles, frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axis.legend(handles=handles, frameon=False, fontsize="small")


def _finish(axis: Axes, label: str | None = None) -> None:
    axis.axhline(0, color="0.4", lw=0.8, ls=":", zorder=0, label=label)
    axis.spines[["top", "right"]].set_visible(False)
