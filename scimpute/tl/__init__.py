"""Tools: each imputes an object and writes the result beside the data."""

from ._began import began

__all__ = ["began"]
