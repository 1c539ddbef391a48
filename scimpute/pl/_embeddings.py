from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _check, _random
from .._anndata.covariates import column_names
from .._anndata.read import check_object
from .._anndata.results import records
from .._keywords import helpful
from . import _figure
from ._palette import palette

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

_METHODS = ("pca", "umap")
# Fewest levels for a UMAP: with fewer, its picture says nothing about the data. And the number of its nearest neighbours.
_MIN_UMAP_LEVELS, _NEIGHBOURS = 10, 15
# Places of a label relative to its point, in points: right, left, above, below, and between these. The first free place is used.
_PLACES = ((5, 0), (-5, 0), (0, 5), (0, -5), (4, 4), (-4, 4), (4, -4), (-4, -4), (4, 10), (-4, 10), (4, -10), (-4, -10))
_SIDES = {1: "left", 0: "center", -1: "right"}
_HEIGHTS = {1: "bottom", 0: "center", -1: "top"}


@helpful
@_figure.closed_on_failure
def embeddings(
    adata: AnnData,
    key: str,
    *,
    columns: str | Sequence[str] | None = None,
    method: str = "pca",
    random_state: int | np.random.Generator | None = 0,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | bool | None = None,
) -> list[Axes] | None:
    """Draw the embeddings that a bulk imputation learnt for the levels of its covariates. Close levels, such as tissues, are similar.

    Each categorical covariate has a panel, with a labelled point for each of its levels.

    Parameters
    ----------
    adata
        Object imputed with :func:`scimpute.tl.pmi` or :func:`scimpute.tl.gain` and categorical covariates.
    key
        ``key_added`` of the imputation. ``uns[key]["embeddings"]`` has a table for each covariate, levels x dimensions.
    columns
        Name or names of the covariates to show; None shows all.
    method
        ``"pca"``: the first two principal components, with their shares of the variance. ``"umap"``: a UMAP (scanpy) with 15 nearest
        levels, for covariates with at least 10 levels. Long distances in a UMAP mean nothing.
    random_state
        Seed of the UMAP, generator, or None for a fresh one.
    ax
        Axes to draw on, one for each covariate; None makes a new figure.
    show
        Show the figure; None uses ``scanpy.settings.autoshow``.
    save
        File for the figure, or True for ``embeddings`` in ``scanpy.settings.figdir``.

    Returns
    -------
    None if the figure is shown, else the axes. Nothing is written to ``adata``.

    Raises
    ------
    KeyError
        This imputation does not exist, or it has no embeddings, or no embedding of this covariate.
    ValueError
        A table has NaN or infinite values, or fewer than 2 levels (10 for a UMAP). ``ax`` does not have one axes for each covariate.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_bulk()
    >>> scimpute.tl.pmi(adata, categorical_covariates="tissue")  # doctest: +SKIP
    >>> scimpute.pl.embeddings(adata, "pmi")  # doctest: +SKIP
    """
    check_object(adata)
    _check.option("method", method, _METHODS)
    tables = _read(adata, key, columns, _MIN_UMAP_LEVELS if method == "umap" else 2)
    seed = _random.seed(_random.generator(random_state))
    layouts = {column: _pca(values) if method == "pca" else _umap(values, seed) for column, (_, values) in tables.items()}
    n_levels = max(len(levels) for levels, _ in tables.values())
    all_axes = _figure.axes(ax, 1, len(tables), (4.6, 4.2) if n_levels <= 20 else (6.9, 6.3), "one for each of: " + ", ".join(tables))
    for axis, (column, (levels, _)) in zip(all_axes, tables.items(), strict=True):
        points, labels = layouts[column]
        _draw(axis, points, levels)
        axis.set(title=_figure.plain(column), xlabel=labels[0], ylabel=labels[1])
    return _figure.finish(all_axes, "embeddings", show, save)


def _read(adata: AnnData, key: str, columns: str | Sequence[str] | None, min_levels: int) -> dict[str, tuple[list[str], np.ndarray]]:
    """Names of the levels and their embeddings ``(levels, dimensions)``, by covariate."""
    entries = records(adata)
    with_embeddings = [name for name, entry in entries.items() if _has_embeddings(entry)]
    if not isinstance(key, str):
        raise TypeError(f"key must be the name of an imputation, got {key!r}; those with embeddings: {_check.listing(with_embeddings)}")
    entry = entries.get(key)
    if entry is None:
        raise _check.missing("key: imputation with embeddings", key, with_embeddings)
    if not _has_embeddings(entry):
        raise KeyError(
            f"uns[{key!r}] has no embeddings of covariates: tl.pmi and tl.gain learn them if you pass categorical_covariates=. "
            f"Imputations with embeddings: {_check.listing(with_embeddings)}"
        )
    stored = entry["embeddings"]
    names = list(stored) if columns is None else column_names("columns", columns)
    if not names:
        raise ValueError("columns is empty; pass the name of a covariate, or None for all")
    tables = {}
    for name in names:
        if name not in stored:
            raise _check.missing(f"columns: embedding in uns[{key!r}]", name, list(stored))
        tables[name] = _table(f"uns[{key!r}]['embeddings'][{name!r}]", stored[name], min_levels)
    return tables


def _has_embeddings(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("embeddings"), Mapping) and len(entry["embeddings"]) > 0


def _table(name: str, table: Any, min_levels: int) -> tuple[list[str], np.ndarray]:
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{name} must be a DataFrame of levels x dimensions, got {type(table).__name__}")
    values = table.to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.isfinite(values).all() or not values.size:
        raise ValueError(f"{name} is empty or has NaN or infinite values; impute again")
    if len(values) < min_levels:
        hint = "; take method='pca'" if min_levels == _MIN_UMAP_LEVELS else ""
        raise ValueError(f"{name} has {len(values)} level(s); at least {min_levels} are needed{hint}")
    return [str(level) for level in table.index], values


def _pca(values: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """The first two components ``(levels, 2)`` and their names. A missing second component is 0."""
    left, singular, right = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    # The sign of a component is arbitrary: make its largest loading positive.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    scores = np.zeros((len(values), 2))
    scores[:, : min(2, len(singular))] = (left * singular * signs)[:, :2]
    share = np.square(singular) / max(float(np.square(singular).sum()), np.finfo(float).tiny)
    first, second = (f"PC{i + 1} ({share[i] if i < len(share) else 0:.0%})" for i in range(2))
    return scores, (first, second)


def _umap(values: np.ndarray, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    from ..metrics import _clusters

    points = _clusters.umap(values.astype(np.float32), min(_NEIGHBOURS, len(values) - 1), seed)
    return points, ("UMAP1", "UMAP2")


def _draw(axis: Axes, points: np.ndarray, levels: Sequence[str]) -> None:
    """A point for each level with its name beside it."""
    axis.scatter(points[:, 0], points[:, 1], c=palette(len(levels)), s=26, linewidths=0.4, edgecolors="#333333")
    axis.margins(0.18)
    axis.set(xticks=[], yticks=[])
    axis.spines[["top", "right"]].set_visible(False)
    size = "small" if len(levels) <= 15 else "x-small"
    names = [
        axis.annotate(_figure.plain(level), point, fontsize=size, annotation_clip=False)
        for level, point in zip(levels, points, strict=True)
    ]
    _spread(axis, points, names)


def _spread(axis: Axes, points: np.ndarray, names: Sequence[Annotation]) -> None:
    """Put each name at the place beside its point where it covers the fewest points and the least of the names before it."""
    figure = axis.figure.canvas.figure
    for name in names:
        name.set_in_layout(False)
    # Settle the layout now, so that free places stay free.
    figure.draw_without_rendering()
    dots = axis.transData.transform(points)
    inside = axis.get_window_extent()
    name_boxes: list[np.ndarray] = []
    for i, name in enumerate(names):
        candidates = []
        for x, y in _PLACES:
            name.set_position((x, y))
            name.set(anncoords="offset points", ha=_SIDES[np.sign(x)], va=_HEIGHTS[np.sign(y)])
            box = name.get_window_extent()
            extent = np.array([box.x0, box.y0, box.x1, box.y1])
            others = np.delete(dots, i, axis=0)
            covered = ((others > extent[:2] - 3) & (others < extent[2:] + 3)).all(axis=1).sum()
            outside = max(0.0, inside.x0 - box.x0, box.x1 - inside.x1, inside.y0 - box.y0, box.y1 - inside.y1)
            candidates.append((covered * 100 + sum(_overlap(extent, other) for other in name_boxes) + 10 * outside, (x, y), extent))
            if candidates[-1][0] == 0:
                break
        _, (x, y), extent = min(candidates, key=lambda candidate: candidate[0])
        name.set_position((x, y))
        name.set(ha=_SIDES[np.sign(x)], va=_HEIGHTS[np.sign(y)])
        name_boxes.append(extent)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Area that two boxes share, in square pixels."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    return float(np.prod(np.maximum(sides, 0)))
