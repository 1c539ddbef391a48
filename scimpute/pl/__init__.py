"""Figures of the training, of embeddings, clusters and imputed values, and of the recovery of hidden values."""

from ._clusters import clusters
from ._embeddings import embeddings
from ._imputed import imputed
from ._recovery import recovery
from ._spatial import spatial
from ._training import training

__all__ = ["clusters", "embeddings", "imputed", "recovery", "spatial", "training"]
