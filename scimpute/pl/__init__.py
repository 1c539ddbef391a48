"""Figures: how the training went, what was imputed, and how much of what was hidden was found again."""

from ._imputed import imputed
from ._recovery import recovery
from ._training import training

__all__ = ["imputed", "recovery", "training"]
