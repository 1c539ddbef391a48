"""Figures: how the training went, what was learnt and imputed, and how much of what was hidden was found again."""

from ._clusters import clusters
from ._embeddings import embeddings
from ._imputed import imputed
from ._recovery import recovery
from ._spatial import spatial
from ._training import training

__all__ = ["clusters", "embeddings", "imputed", "recovery", "spatial", "training"]
