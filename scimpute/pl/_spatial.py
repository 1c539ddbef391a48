from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _check
from .._anndata.read import check_object
from .._keywords import helpful
from . import _figure, _read, _tissue

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap


# Width of a colour bar with its ticks and label, in inches.
_BAR = 0.8


@helpful
@_figure.closed_on_failure
def spatial(
    adata: AnnData,
    genes: str | Sequence[str],
    key: str = "spatial_imputed",
    *,
    layer: str | None = None,
    image_key: str | None = "hires",
    library_key: str | None = None,
    library_id: str | None = None,
    spot_size: float | None = None,
    alpha: float = 1.0,
    image_alpha: float = 0.6,
    cmap: str | Colormap = "viridis",
    vmax: float | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | bool | None = None,
) -> list[Axes] | None:
    """Genes on the tissue, measured and imputed side by side on the same colour scale.

    A row for each gene. Both columns show log1p(CP10k): of the counts, and of the imputed values, whatever ``output`` they were
    written as. Spots are as large as they are on the tissue.

    Parameters
    ----------
    adata
        Object with an imputation and, in ``obsm["spatial"]``, the places of the spots in pixels of the full-resolution image.
    genes
        Name or names of genes.
    key
        ``key_added`` of the imputation; a layer, or a table in ``obsm`` where only some genes were imputed. A layer that is not of
        this package is brought to 10,000 molecules a cell by its own totals; it must not be logged.
    layer
        Layer with the counts to show as *measured*; the one that was imputed where None. Where that one holds no counts any more, the
        imputed counts are taken to be at the depth of this layer.
    image_key
        Image of ``uns["spatial"][library_id]["images"]``; None for none. Without images in the object, the spots are drawn alone.
    library_key
        Column of ``obs`` with the section of each spot, where there are several. Only the spots of the section are shown.
    library_id
        The section to show, where there are several.
    spot_size
        Diameter of a spot in units of the coordinates; ``spot_diameter_fullres`` of the section, else the distance of
        neighbouring spots, where None.
    alpha, image_alpha
        Opacity of the spots and of the image.
    cmap
        Colour map.
    vmax
        Value at the upper end of the colour scale of every gene; the highest one in either column where None.
    ax
        Axes to draw on, two for each gene, row by row; a new figure where None.
    show
        Show the figure; ``scanpy.settings.autoshow`` where None.
    save
        File to save the figure to, or True for ``spatial`` in ``scanpy.settings.figdir``.

    Returns
    -------
    None where the figure is shown, else the axes (those of the colour bars are not among them). Nothing is written to ``adata``.

    Raises
    ------
    KeyError
        A gene, the result, the coordinates, the section, its image or its scale factor do not exist.
    ValueError
        There are several sections and none was chosen; the matrix shown as *measured* does not hold counts; imputed values are NaN;
        more than a twentieth of the spots are outside the image; ``ax`` is not two axes for each gene.

    Examples
    --------
    >>> import scimpute
    >>> scimpute.pl.spatial(adata, ["ERBB2", "KRT8"], library_key="section", library_id="B4")  # doctest: +SKIP
    """
    check_object(adata)
    genes = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    _check.number("alpha", alpha, 0, 1)
    _check.number("image_alpha", image_alpha, 0, 1)
    if vmax is not None:
        _check.number("vmax", vmax, 0, open_low=True)
    section = _tissue.read(adata, image_key, library_key, library_id, spot_size)
    both = [values[section.spots] for values in _read.before_and_after(adata, genes, key, layer)]
    if not np.isfinite(both[1]).all():
        n_bad = int((~np.isfinite(both[1])).sum())
        raise ValueError(f"key={key!r}: {n_bad} imputed values of these genes are NaN or infinite; there is nothing to show of them")
    width, height = section.panel
    used = _figure.axes(ax, len(genes), 2, (width + _BAR / 2, height), "two for each gene")
    for i, gene in enumerate(genes):
        pair = used[2 * i : 2 * i + 2]
        highest = max(float(values[:, i].max()) for values in both)
        top = (highest or 1) if vmax is None else vmax
        for axis, values, when in zip(pair, both, ("measured", "imputed"), strict=True):
            discs = _tissue.draw(axis, section, image_alpha, array=values[:, i], cmap=cmap, clim=(0, top), alpha=alpha)
            axis.set_title(_figure.plain(f"{gene} {when}"))
        bar = pair[0].figure.colorbar(
            discs, ax=pair, label="log1p(CP10k)", aspect=20, pad=0.02, extend="max" if highest > top else "neither"
        )
        bar.outline.set_visible(False)
    return _figure.finish(used, "spatial", show, save)
