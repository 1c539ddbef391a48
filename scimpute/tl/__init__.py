"""Tools: each imputes an object and writes the result beside the data."""

from ._apply import apply
from ._began import began
from ._gain import gain
from ._nmf import nmf
from ._pmi import pmi
from ._spatial import spatial

__all__ = ["apply", "began", "gain", "nmf", "pmi", "spatial"]
