"""The names of everything the package reads from or writes to an AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sd(key: str) -> str:
    """Layer or obsm table with the standard deviations of the imputed values."""
    return f"{key}_sd"


def train(key: str) -> str:
    """Layer of the molecules kept for training by :func:`scimpute.pp.thin`."""
    return f"{key}_train"


def test(key: str) -> str:
    """Layer of the molecules held out by :func:`scimpute.pp.thin`."""
    return f"{key}_test"


def mask(key: str) -> str:
    """Boolean layer: True for the entries that :func:`scimpute.pp.hide` hid."""
    return f"{key}_mask"


def trust(key: str) -> str:
    """Column of ``var``: the share of each gene's held-out deviance that an imputed layer explains."""
    return f"{key}_trust"


def spot_factors(key: str) -> str:
    """Factors of the spots in ``obsm``, written by :func:`scimpute.tl.nmf` and named like an embedding of scanpy."""
    return f"X_{key}"


def gene_factors(key: str) -> str:
    """Factors of the genes in ``varm``, written by :func:`scimpute.tl.nmf`."""
    return key.upper()


SPATIAL = "spatial"
"""Name of the positions in ``obsm``, of the images in ``uns``, and of the graph of neighbours, as in scanpy and squidpy."""

ARRAY_ROW, ARRAY_COL = "array_row", "array_col"
"""Columns of ``obs`` with the row and column of a spot in the printed array, as Space Ranger names them."""

IN_TISSUE = "in_tissue"
"""Column of ``obs``, 0 for spots that are not on the tissue, as Space Ranger names it."""


def connectivities(key: str) -> str:
    """Graph of neighbouring cells or spots in ``obsp``, as squidpy names it."""
    return f"{key}_connectivities"


def distances(key: str) -> str:
    """Distances of neighbours in ``obsp``, as squidpy names them."""
    return f"{key}_distances"


def neighbors(key: str) -> str:
    """Entry of ``uns`` that describes the graph of neighbours, as squidpy names it."""
    return f"{key}_neighbors"


def ring(key: str, number: int) -> str:
    """Graph in ``obsp`` of spots that are exactly ``number`` >= 2 steps apart."""
    return f"{key}_ring{number}"


def rings(key: str) -> str:
    """Entry of ``uns`` with the record of :func:`scimpute.pp.spatial_rings`."""
    return f"{key}_rings"


SPATIAL_CONNECTIVITIES = connectivities(SPATIAL)
"""Default graph of neighbours."""


def layer_in_params(layer: str | None) -> str:
    """The layer as ``params["layer"]`` records it: ``"X"`` for ``adata.X``, else the name of the layer.

    A layer with the name "X" is recorded as ``"layers/X"``, because a layer name in a file never has a ``/``.
    """
    if layer is None:
        return "X"
    return f"{_LAYERS}{layer}" if layer == "X" or layer.startswith(_LAYERS) else layer


def layer_of(params: Mapping[str, Any]) -> str | None:
    """The layer that recorded parameters name; None for ``adata.X``."""
    layer = str(params.get("layer", "X"))
    return None if layer == "X" else layer.removeprefix(_LAYERS)


_LAYERS = "layers/"

RAW = "raw"
"""Name of ``adata.raw`` as an argument ``layer=``."""

SOURCE = "source"
"""Entry of ``uns[key]`` with the fingerprint of the imputed counts."""

METHOD = "method"
"""Entry of ``uns[key]`` with the name of the function that wrote it."""
