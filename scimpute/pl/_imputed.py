from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._anndata.read import check_object
from .._anndata.tables import read_embedding
from .._keywords import helpful
from . import _figure, _read

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

# scanpy's axis names of its own embeddings. Axes of other embeddings have the name of the embedding.
_AXES = {"diffmap": "DC", "tsne": "tSNE", "umap": "UMAP", "pca": "PC"}


@helpful
@_figure.closed_on_failure
def imputed(
    adata: AnnData,
    genes: str | Sequence[str],
    key: str = "began",
    *,
    layer: str | None = None,
    basis: str = "umap",
    cmap: str | Colormap = "viridis",
    size: float | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | bool | None = None,
) -> list[Axes] | None:
    """Draw genes before and after the imputation side by side, on the same embedding and the same colour scale.

    Each gene has a row. The left panel shows log1p(CP10k) of the counts, the right panel log1p(CP10k) of the imputed values, for any
    ``output`` of the imputation. Cells with the highest values are drawn last.

    Parameters
    ----------
    adata
        Object imputed with :func:`scimpute.tl.began`.
    genes
        Name or names of genes.
    key
        ``key_added`` of the imputation: a layer, or a table in ``obsm`` if only some genes were imputed. A layer of another package is
        scaled by its own totals to 10,000 molecules a cell; it must not be logged.
    layer
        Layer with the counts to show as *before*; None shows the counts that were imputed. If no layer holds these counts any more, the
        imputed values are assumed to be at the depth of ``layer``.
    basis
        Embedding in ``obsm``, with or without the prefix ``X_``.
    cmap
        Colour map.
    size
        Area of a point in square points; None uses 60000 / ``n_obs``, at most 20.
    ax
        Axes to draw on, two for each gene, row by row; None makes a new figure.
    show
        Show the figure; None uses ``scanpy.settings.autoshow``.
    save
        File for the figure, or True for ``imputed`` in ``scanpy.settings.figdir``.

    Returns
    -------
    None if the figure is shown, else the axes without the axes of the colour bars. Nothing is written to ``adata``.

    Raises
    ------
    KeyError
        A gene, the result, the embedding, or the library sizes of the imputation do not exist.
    ValueError
        The matrix to show as *before* does not hold counts. ``ax`` does not have two axes for each gene.

    Notes
    -----
    CP10k is molecules per 10,000 of the library size. As in the imputation, this is ``size_key``, else the sum of the cell's counts.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.pbmc68k()
    >>> scimpute.tl.began(adata, size_key="n_counts")  # doctest: +SKIP
    >>> scimpute.pl.imputed(adata, ["CST3", "NKG7"])  # doctest: +SKIP
    """
    check_object(adata)
    genes = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    coordinates, name = read_embedding(adata, basis), _axis_name(basis.removeprefix("X_"))
    panel_values = _read.before_and_after(adata, genes, key, layer)
    size = min(20, 60_000 / adata.n_obs) if size is None else size
    all_axes = _figure.axes(ax, len(genes), 2, (3.4, 2.8), "two for each gene")
    for i, gene in enumerate(genes):
        pair = all_axes[2 * i : 2 * i + 2]
        top = max(float(values[:, i].max()) for values in panel_values)
        for axis, values, when in zip(pair, panel_values, ("before", "after"), strict=True):
            order = np.argsort(values[:, i], kind="stable")
            points = axis.scatter(
                coordinates[order, 0],
                coordinates[order, 1],
                c=values[order, i],
                s=size,
                cmap=cmap,
                vmin=0,
                vmax=top or 1,
                linewidths=0,
                plotnonfinite=True,
                rasterized=True,
            )
            axis.set(title=_figure.plain(f"{gene} {when}"), xticks=[], yticks=[])
            axis.set_xlabel(_figure.plain(f"{name}1"), loc="left", fontsize="x-small", color="0.4")
            axis.set_ylabel(_figure.plain(f"{name}2"), loc="bottom", fontsize="x-small", color="0.4")
            axis.spines[:].set_visible(False)
        pair[0].figure.colorbar(points, ax=pair, label="log1p(CP10k)", aspect=25, pad=0.02).outline.set_visible(False)
    return _figure.finish(all_axes, "imputed", show, save)


def _axis_name(basis: str) -> str:
    """The name of an axis without its number, as in ``scanpy.pl.embedding``."""
    return _AXES.get(basis) or (basis.replace("draw_graph_", "").upper() if "draw_graph" in basis else basis)
