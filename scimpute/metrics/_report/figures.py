"""The figures of a report, as PNG in data URIs. They use no pyplot and keep the settings of matplotlib."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from anndata import AnnData

Picture = tuple[str, int]
"""Data URI, and the width in CSS pixels."""
_DPI = 130
_BLUE, _GREY = "#0072B2", "#555555"
_LOWEST = -1.0
"""Lowest trust on the axis; lower values are drawn here."""


def _uri(figure: Figure) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), round(96 * figure.get_figwidth())


def trust(table: pd.DataFrame) -> Picture:
    """Histogram of the trust, and trust against the number of molecules."""
    known = table.dropna(subset="trust")
    values, molecules = known["trust"].clip(lower=_LOWEST), known["molecules"]
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(9, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.hist(values, bins=40, color=_BLUE)
        left.set(xlabel="trust", ylabel="genes", title="Distribution over genes")
        left.axvline(0, color=_GREY, lw=1)
        right.scatter(molecules, values, s=6, color=_BLUE, alpha=0.5, linewidths=0)
        right.axhline(0, color=_GREY, lw=1)
        right.set(xscale="log", xlabel="held-out molecules of the gene", ylabel="trust", title="Against abundance")
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
        return _uri(figure)


def training(history: pd.DataFrame, *, squared: bool) -> Picture:
    """Curves of :func:`scimpute.pl.training`."""
    from ...pl._training import draw, panels

    with matplotlib.style.context("default"):
        curves = panels(history, squared=squared)
        figure = Figure(figsize=(3.4 * len(curves), 3), layout="constrained")
        draw(history, list(figure.subplots(1, len(curves), squeeze=False).flat), curves)
        return _uri(figure)


def heatmap(before: pd.DataFrame, after: pd.DataFrame) -> Picture:
    """Means of groups (rows) in genes (columns), as shares of the gene's highest mean in both tables."""
    from ...pl._figure import plain

    top = np.maximum(before.max(), after.max()).replace(0, 1)
    with matplotlib.style.context("default"):
        size = (max(4.5, 2.2 + 0.32 * before.shape[1]), 1.6 + 2 * (0.5 + 0.3 * len(before)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(2, 1, sharex=True)
        for axis, table, when in zip(axes, (before, after), ("Before: counts", "After: imputed"), strict=True):
            image = axis.imshow(table / top, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            axis.set_yticks(range(len(table)), [plain(name) for name in table.index])
            axis.set_title(when, loc="left", fontsize="medium")
            axis.tick_params(length=0, labelbottom=axis is axes[-1])
        axes[-1].set_xticks(range(before.shape[1]), [plain(name) for name in before.columns], rotation=90)
        figure.colorbar(image, ax=list(axes), label="mean, share of\nthe gene's highest", shrink=0.6)
        return _uri(figure)


def embedding(display: AnnData, genes: Sequence[str], key: str, basis: str) -> Picture:
    """Genes before and after imputation, by :func:`scimpute.pl.imputed`."""
    from ... import pl

    with matplotlib.style.context("default"):
        figure = Figure(figsize=(7.2, 2.7 * len(genes)), layout="constrained")
        pl.imputed(display, genes, key, basis=basis, ax=list(figure.subplots(len(genes), 2, squeeze=False).flat), show=False)
        return _uri(figure)


def means(values: np.ndarray, codes: np.ndarray, names: Sequence[str], groups: Mapping[str, list[int]]) -> pd.DataFrame:
    """Mean of each column in each group."""
    places = {name: place for place, name in enumerate(names)}
    return pd.DataFrame({group: values[codes == places[group]].mean(axis=0) for group in groups}).T
