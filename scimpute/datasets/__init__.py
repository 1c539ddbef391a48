"""Data to try things on; nothing is downloaded."""

from ._pbmc68k import pbmc68k
from ._toy import toy_counts
from ._toy_bulk import toy_bulk

__all__ = ["pbmc68k", "toy_bulk", "toy_counts"]
