"""Figures: how the training went, what was imputed, on an embedding or on the tissue, and how much of what was hidden was found again."""

from ._clusters import clusters
from ._imputed import imputed
from ._recovery import recovery
from ._spatial import spatial
from ._training import training

__all__ = ["clusters", "imputed", "recovery", "spatial", "training"]
