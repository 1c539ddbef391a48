"""Figures: how the training went, and what was imputed."""

from ._imputed import imputed
from ._training import training

__all__ = ["imputed", "training"]
