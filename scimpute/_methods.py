"""The imputation methods, one record each. The command line, the report, the leak check, the null test and `tl.apply` read the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """Description of a function of ``scimpute.tl`` for the rest of the package.

    Attributes
    ----------
    name
        The function ``scimpute.tl.<name>``.
    key
        Default name of the result (``key_added``).
    data
        The kind of data, in words.
    of_counts
        Whether the method imputes counts of molecules. Otherwise it fills missing log expression.
    saves
        Whether the method can save a model.
    takes_label
        Whether the method accepts a cell type, ``celltype_key``.
    factors
        Whether the method writes a vector for each spot and each gene.
    on_cells
        Arguments for a run on counts without positions; None if the method needs positions.
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
_CELLS = "counts of single cells or nuclei from droplets or plates (or of spots; their positions are not used)"
_BULK = "log expression of bulk samples, with NaN for missing values (or zero: see --missing)"

METHODS = {
    method.name: method
    for method in (
        Method("began", "began", _CELLS, takes_label=True, on_cells={}),
        Method("spatial", "spatial_imputed", f"{_SPOTS}, and the image of the tissue if there is one"),
        Method("nmf", "nmf", _SPOTS, saves=False, factors=True, on_cells={"spatial_weight": 0}),
        Method("pmi", "pmi", _BULK, of_counts=False),
        Method("gain", "gain", _BULK, of_counts=False),
    )
}
OF_COUNTS = [name for name, method in METHODS.items() if method.of_counts]
