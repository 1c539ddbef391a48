"""scimpute: imputation of single-cell and spatial RNA counts inside AnnData."""

from . import datasets, metrics, pl, pp, tl
from ._version import __version__

__all__ = ["__version__", "datasets", "metrics", "pl", "pp", "tl"]
