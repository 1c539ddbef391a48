"""Preprocessing: what is done to an object before imputing it."""

from ._hide import hide
from ._thin import thin

__all__ = ["hide", "thin"]
