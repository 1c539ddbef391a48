"""Preprocessing: what is done to an object before imputing it."""

from ._thin import thin

__all__ = ["thin"]
