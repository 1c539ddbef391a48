from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from .._anndata.results import params_of
from .._keywords import helpful
from . import _figure, _read

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    Panel = tuple[str, str, dict[str, tuple[str | None, str]]]

# Title, label of the y axis, and columns with their labels and colours. Colour-blind people can tell these colours apart, too.
_PANELS: tuple[Panel, ...] = (
    ("Deviance of held-out molecules", "nats per molecule", {"heldout": (None, "#333333")}),
    (
        "BEGAN losses",
        "loss",
        {"loss_real": ("$L(x)$", "#0072B2"), "loss_fake": ("$L(\\mathrm{Drop}(G(x)))$", "#E69F00"), "M": ("$M$", "#009E73")},
    ),
    ("BEGAN balance", "$k_t$", {"k": (None, "#333333")}),
)
# Replaces the first panel with likelihood="squared".
_SQUARED: Panel = ("Error of held-out entries", "squared error of logs", {"heldout": (None, "#333333")})


@helpful
@_figure.closed_on_failure
def training(
    adata: AnnData,
    key: str = "began",
    *,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | bool | None = None,
) -> list[Axes] | None:
    """Draw training curves, a line for each repeat.

    There are up to three panels. The first shows the deviance of the held-out molecules, or with ``likelihood="squared"`` the squared
    error of the logs of held-out entries; lower is better. The second shows the losses of BEGAN, L(x) of real and L(Drop(G(x))) of
    imputed cells, and the convergence measure M. The third shows the balance k. Panels without recorded values are left out: without
    an adversary, only the first remains.

    Parameters
    ----------
    adata
        Object imputed with :func:`scimpute.tl.began`, :func:`scimpute.tl.spatial` or :func:`scimpute.tl.nmf`.
    key
        ``key_added`` of the imputation.
    ax
        Axes to draw on, one for each panel; None makes a new figure.
    show
        Show the figure; None uses ``scanpy.settings.autoshow``.
    save
        File for the figure, or True for ``training`` in ``scanpy.settings.figdir``.

    Returns
    -------
    None if the figure is shown, else the axes. Nothing is written to ``adata``.

    Raises
    ------
    KeyError
        There is no training history under this key.
    ValueError
        The history has none of these columns (for example after :func:`scimpute.tl.pmi`). ``ax`` does not have one axes for each panel.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.tl.began(adata, max_epochs=2)  # doctest: +SKIP
    >>> scimpute.pl.training(adata)  # doctest: +SKIP
    """
    history = _read.history(adata, key)
    # The history of a bulk method has models instead of repeats.
    squared = params_of(adata, key).get("likelihood") == "squared"
    history_panels = panels(history, squared=squared) if "repeat" in history else []
    if not history_panels:
        raise ValueError(f"uns[{key!r}]['history'] has nothing to draw; its columns are {list(history.columns)}")
    all_axes = _figure.axes(
        ax, 1, len(history_panels), (3.6, 2.8), "one for each of: " + ", ".join(title for title, _, _ in history_panels)
    )
    draw(history, all_axes, history_panels)
    return _figure.finish(all_axes, "training", show, save)


def panels(history: pd.DataFrame, *, squared: bool) -> list[Panel]:
    """The panels with at least one column in the history."""
    first, *others = _PANELS
    return [panel for panel in (_SQUARED if squared else first, *others) if set(panel[2]) & set(history.columns)]


def draw(history: pd.DataFrame, all_axes: Sequence[Axes], history_panels: Sequence[Panel]) -> None:
    """Draw each panel on its axes."""
    for axis, (title, label, lines) in zip(all_axes, history_panels, strict=True):
        for column, (name, color) in lines.items():
            if column not in history:
                continue
            for i, (_, repeat) in enumerate(history.groupby("repeat")):
                # A single epoch has no line, only a point.
                marker = "o" if len(repeat) == 1 else None
                axis.plot(
                    repeat["epoch"], repeat[column], color=color, alpha=0.8, lw=1.4, marker=marker, ms=4, label=name if i == 0 else None
                )
        axis.set(title=title, xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axis.spines[["top", "right"]].set_visible(False)
        if "k" in lines:
            axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize="small")
