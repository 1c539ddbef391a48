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
    """Draw measured and imputed genes side by side on the tissue, on the same colour scale.

    Each gene has a row. The left panel shows log1p(CP10k) of the counts, the right panel log1p(CP10k) of the imputed values, for any
    ``output`` of the imputation. Spots have their true size on the tissue.

    Parameters
    ----------
    adata
        Object with an imputation, and with the positions of the spots in pixels of the full-resolution image in ``obsm["spatial"]``.
    genes
        Name or names of genes.
    key
        ``key_added`` of the imputation: a layer, or a table in ``obsm`` if only some genes were imputed. A layer of another package is
        scaled by its own totals to 10,000 molecules a cell; it must not be logged.
    layer
        Layer with the counts to show as *measured*; None shows the counts that were imputed. If no layer holds these counts any more, the
        imputed values are assumed to be at the depth of ``layer``.
    image_key
        Image in ``uns["spatial"][library_id]["images"]``; None draws no image. Without images in the object, only the spots are drawn.
    library_key
        Column of ``obs`` with the section of each spot, if there are several sections. Only the spots of one section are shown.
    library_id
        The section to show, if there are several.
    spot_size
        Diameter of a spot in units of the coordinates. None uses ``spot_diameter_fullres`` of the section, or else the distance of
        neighbouring spots.
    alpha, image_alpha
        Opacity of the spots and of the image.
    cmap
        Colour map.
    vmax
        Upper end of the colour scale of every gene; None uses the highest value in both panels of the gene.
    ax
        Axes to draw on, two for each gene, row by row; None makes a new figure.
    show
        Show the figure; None uses ``scanpy.settings.autoshow``.
    save
        File for the figure, or True for ``spatial`` in ``scanpy.settings.figdir``.

    Returns
    -------
    None if the figure is shown, else the axes without the axes of the colour bars. Nothing is written to ``adata``.

    Raises
    ------
    KeyError
        A gene, the result, the coordinates, the section, its image or its scale factor do not exist.
    ValueError
        There are several sections, and you chose none. The matrix to show as *measured* does not hold counts. Imputed values are NaN.
        More than a twentieth of the spots are outside the image. ``ax`` does not have two axes for each gene.

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
    panel_values = [values[section.spots] for values in _read.before_and_after(adata, genes, key, layer)]
    if not np.isfinite(panel_values[1]).all():
        n_bad = int((~np.isfinite(panel_values[1])).sum())
        raise ValueError(f"key={key!r}: {n_bad} imputed values of these genes are NaN or infinite; impute again, or leave out these genes")
    width, height = section.panel
    all_axes = _figure.axes(ax, len(genes), 2, (width + _BAR / 2, height), "two for each gene")
    for i, gene in enumerate(genes):
        pair = all_axes[2 * i : 2 * i + 2]
        highest = max(float(values[:, i].max()) for values in panel_values)
        top = (highest or 1) if vmax is None else vmax
        for axis, values, when in zip(pair, panel_values, ("measured", "imputed"), strict=True):
            discs = _tissue.draw(axis, section, image_alpha, array=values[:, i], cmap=cmap, clim=(0, top), alpha=alpha)
            axis.set_title(_figure.plain(f"{gene} {when}"))
        bar = pair[0].figure.colorbar(
            discs, ax=pair, label="log1p(CP10k)", aspect=20, pad=0.02, extend="max" if highest > top else "neither"
        )
        bar.outline.set_visible(False)
    return _figure.finish(all_axes, "spatial", show, save)
