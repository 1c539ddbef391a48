"""The names of everything the package reads from or writes to an AnnData."""

from __future__ import annotations


def sd(key: str) -> str:
    """Layer (or obsm) of the standard deviation that belongs to an imputed one."""
    return f"{key}_sd"


def train(key: str) -> str:
    """Layer of the molecules kept for training by :func:`scimpute.pp.thin`."""
    return f"{key}_train"


def test(key: str) -> str:
    """Layer of the molecules held out by :func:`scimpute.pp.thin`."""
    return f"{key}_test"


def mask(key: str) -> str:
    """Layer that is True where :func:`scimpute.pp.hide` hid an entry."""
    return f"{key}_mask"


SPATIAL_CONNECTIVITIES = "spatial_connectivities"
"""Graph in ``obsp`` of the cells or spots that are next to each other, as squidpy names it."""

METHOD = "method"
"""Entry of ``uns[key]`` that says which function wrote it."""
