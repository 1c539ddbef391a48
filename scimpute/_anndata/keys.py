"""The names of everything the package reads from or writes to an AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def trust(key: str) -> str:
    """Column of ``var`` with the share of every gene's held-out deviance that an imputed layer explains."""
    return f"{key}_trust"


def spot_factors(key: str) -> str:
    """Factors of the spots in ``obsm`` that :func:`scimpute.tl.nmf` wrote, as scanpy names an embedding."""
    return f"X_{key}"


def gene_factors(key: str) -> str:
    """Factors of the genes in ``varm`` that belong to them."""
    return key.upper()


SPATIAL = "spatial"
"""Positions in ``obsm``, images in ``uns``, and what the graph of neighbours is called by, as in scanpy and squidpy."""

ARRAY_ROW, ARRAY_COL = "array_row", "array_col"
"""Columns of ``obs``: the place of a spot in the array it was printed in, as Space Ranger names it."""

IN_TISSUE = "in_tissue"
"""Column of ``obs``, 0 for the spots beside the tissue, as Space Ranger names it."""


def connectivities(key: str) -> str:
    """Graph in ``obsp`` of the cells or spots that are next to each other, as squidpy names it."""
    return f"{key}_connectivities"


def distances(key: str) -> str:
    """Distances in ``obsp`` that belong to it, as squidpy names them."""
    return f"{key}_distances"


def neighbors(key: str) -> str:
    """Entry of ``uns`` that describes it, as squidpy names it."""
    return f"{key}_neighbors"


def ring(key: str, number: int) -> str:
    """Graph in ``obsp`` of the spots that are exactly ``number`` >= 2 steps apart."""
    return f"{key}_ring{number}"


def rings(key: str) -> str:
    """Entry of ``uns`` that describes what :func:`scimpute.pp.spatial_rings` wrote."""
    return f"{key}_rings"


SPATIAL_CONNECTIVITIES = connectivities(SPATIAL)
"""The graph that is read where no other is named."""


def layer_in_params(layer: str | None) -> str:
    """What ``params["layer"]`` says of the matrix that was read: ``"X"`` for ``adata.X``, else the layer.

    A layer that is itself called so is ``"layers/X"``: no layer of a file has a ``/`` in its name.
    """
    if layer is None:
        return "X"
    return f"{_LAYERS}{layer}" if layer == "X" or layer.startswith(_LAYERS) else layer


def layer_of(params: Mapping[str, Any]) -> str | None:
    """The layer that recorded parameters name; None for ``adata.X``, as which earlier versions recorded a layer called "X" as well."""
    found = str(params.get("layer", "X"))
    return None if found == "X" else found.removeprefix(_LAYERS)


_LAYERS = "layers/"

RAW = "raw"
"""What ``layer=`` calls ``adata.raw``."""

SOURCE = "source"
"""Entry of ``uns[key]`` with the fingerprint of the counts that were imputed."""

METHOD = "method"
"""Entry of ``uns[key]`` that says which function wrote it."""
