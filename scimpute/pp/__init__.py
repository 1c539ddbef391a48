"""Preprocessing: functions to call before an imputation."""

from ._hide import hide
from ._spatial_rings import spatial_rings
from ._thin import thin
from ._tiles import tiles

__all__ = ["hide", "spatial_rings", "thin", "tiles"]
