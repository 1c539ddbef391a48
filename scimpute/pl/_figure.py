"""What the figures share: axes, given or new, and what happens to them at the end."""

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
    """A function that closes the figures it has made where it fails: pyplot would keep them, and show them with the next one.

    What cannot be the name of a file is refused before anything is drawn.
    """

    @functools.wraps(function)
    def call(*positional: Options.args, **named: Options.kwargs) -> Result:
        save = named.get("save")
        if save is not None and not isinstance(save, str | os.PathLike | bool):
            raise TypeError(f"save must be the path of a file or True, got {save!r} of type {type(save).__name__}")
        before = plt.get_fignums()
        try:
            return function(*positional, **named)
        except BaseException:
            for number in plt.get_fignums():
                if number not in before:
                    plt.close(number)
            raise

    return call


def axes(given: Axes | Sequence[Axes] | None, rows: int, columns: int, panel: tuple[float, float], what: str) -> list[Axes]:
    """The axes given, row by row, or those of a new figure with panels of this width and height in inches."""
    if given is None:
        figure = plt.figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
        return list(figure.subplots(rows, columns, squeeze=False).flat)
    found: list[Any] = list(np.ravel(np.asarray(given, dtype=object)))
    if len(found) != rows * columns or not all(isinstance(a, Axes) for a in found):
        raise ValueError(
            f"ax must be {rows * columns} axes ({what}), got {len(found)} of type {type(found[0]).__name__ if found else None}"
        )
    return found


def plain(text: str) -> str:
    """A name of the user's, without what matplotlib would take for a formula."""
    return text.replace("$", r"\$")


def finish(used: list[Axes], name: str, show: bool | None, save: str | os.PathLike[str] | bool | None) -> list[Axes] | None:
    """Save and show; the axes where they are not shown."""
    if save:
        path = settings.figdir / f"{name}.{settings.file_format_figs}" if save is True else Path(save)
        if not path.suffix:
            path = path.with_name(f"{path.name}.{mpl.rcParams['savefig.format']}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(f"save: the directory {str(path.parent)!r} cannot be made: {error.strerror}") from error
        figure = used[0].figure.canvas.figure
        _files.replace_file(_files.target("save", path), lambda temporary: figure.savefig(temporary, bbox_inches="tight"))
    if settings.autoshow if show is None else show:
        plt.show()
        return None
    return used
