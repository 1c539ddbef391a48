"""Data to try things on; nothing is downloaded."""

from ._pbmc68k import pbmc68k
from ._toy import toy_counts

__all__ = ["pbmc68k", "toy_counts"]
