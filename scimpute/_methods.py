"""The imputation methods: one record each, read by the command line, the report, the leak check, the null test and `tl.apply`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """What the rest of the package needs to know of a function of ``scimpute.tl``.

    Attributes
    ----------
    name
        The function ``scimpute.tl.<name>``.
    key
        Name of its result where the caller gives none.
    data
        Data it is for, in words.
    of_counts
        Whether it imputes counts of molecules; otherwise it fills missing log expression.
    saves
        Whether it can save a model.
    takes_label
        Whether it takes a cell type, ``celltype_key``.
    factors
        Whether it writes a vector for each spot and each gene.
    on_cells
        Arguments with which it runs on counts alone, without positions; None where it needs positions.
    """

    name: str
    key: str
    data: str
    of_counts: bool = True
    saves: bool = True
    takes_label: bool = False
    factors: bool = False
    on_cells: Mapping[str, Any] | None = None


_SPOTS = "counts of spots or cells with their positions in obsm['spatial']"
_CELLS = "counts of single cells or nuclei, as droplets and plates give them (also of spots, whose places are not used)"
_BULK = "log expression of bulk samples, in which missing values are NaN (or zero: see --missing)"

METHODS = {
    method.name: method
    for method in (
        Method("began", "began", _CELLS, takes_label=True, on_cells={}),
        Method("spatial", "spatial_imputed", f"{_SPOTS}, and the image of the tissue where there is one"),
        Method("nmf", "nmf", _SPOTS, saves=False, factors=True, on_cells={"spatial_weight": 0}),
        Method("pmi", "pmi", _BULK, of_counts=False),
        Method("gain", "gain", _BULK, of_counts=False),
    )
}
OF_COUNTS = [name for name, method in METHODS.items() if method.of_counts]
