"""Shared parts of the figures: axes of the caller or of a new figure, and saving and showing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scanpy import settings

from .. import _files

if TYPE_CHECKING:
    from collections.abc import Sequence

Options = ParamSpec("Options")
Result = TypeVar("Result")


def closed_on_failure(function: Callable[Options, Result]) -> Callable[Options, Result]:
    """Wrap a function so that it closes its new figures if it fails. Else pyplot keeps them and shows them with the next figure.

    The wrapper also refuses a ``save`` that cannot be a file name, before anything is drawn.
    """

    @functools.wraps(function)
    def call(*positional: Options.args, **named: Options.kwargs) -> Result:
        save = named.get("save")
        if save is not None and not isinstance(save, str | os.PathLike | bool):
            raise TypeError(f"save must be the path of a file or True, got {save!r} of type {type(save).__name__}")
        open_figures = plt.get_fignums()
        try:
            return function(*positional, **named)
        except BaseException:
            for number in plt.get_fignums():
                if number not in open_figures:
                    plt.close(number)
            raise

    return call


def axes(ax: Axes | Sequence[Axes] | None, rows: int, columns: int, panel: tuple[float, float], panel_names: str) -> list[Axes]:
    """The axes of the caller, row by row, or of a new figure whose panels have this width and height in inches."""
    if ax is None:
        figure = plt.figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
        return list(figure.subplots(rows, columns, squeeze=False).flat)
    all_axes: list[Any] = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(all_axes) != rows * columns or not all(isinstance(a, Axes) for a in all_axes):
        raise ValueError(
            f"ax must be {rows * columns} axes ({panel_names}), "
            f"got {len(all_axes)} of type {type(all_axes[0]).__name__ if all_axes else None}"
        )
    return all_axes


def plain(text: str) -> str:
    """A name of the user, escaped so that matplotlib does not read it as a formula."""
    return text.replace("$", r"\$")


def finish(all_axes: list[Axes], name: str, show: bool | None, save: str | os.PathLike[str] | bool | None) -> list[Axes] | None:
    """Save and show the figure. Returns the axes, or None if the figure is shown."""
    if save:
        path = settings.figdir / f"{name}.{settings.file_format_figs}" if save is True else Path(save)
        if not path.suffix:
            path = path.with_name(f"{path.name}.{mpl.rcParams['savefig.format']}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(f"save: the directory {str(path.parent)!r} cannot be made: {error.strerror}") from error
        figure = all_axes[0].figure.canvas.figure
        _files.replace_file(_files.target("save", path), lambda temporary: figure.savefig(temporary, bbox_inches="tight"))
    if settings.autoshow if show is None else show:
        plt.show()
        return None
    return all_axes
