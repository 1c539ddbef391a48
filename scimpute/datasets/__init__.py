"""Example data. Nothing is downloaded."""

from ._pbmc68k import pbmc68k
from ._toy import toy_counts
from ._toy_bulk import toy_bulk
from ._toy_visium import toy_visium

__all__ = ["pbmc68k", "toy_bulk", "toy_counts", "toy_visium"]
