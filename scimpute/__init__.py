"""scimpute: imputation of single-cell and spatial RNA counts inside AnnData."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__

__all__ = ["__version__", "datasets", "metrics", "pl", "pp", "tl"]

_PARTS = ("datasets", "metrics", "pl", "pp", "tl")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# The command line imports these modules only when it needs them. scanpy and torch take seconds, and the help should appear at once.
if TYPE_CHECKING or not sys.argv or (sys.argv[0] != "-m" and Path(sys.argv[0]).stem != "scimpute"):
    from . import datasets, metrics, pl, pp, tl
