"""A minibatch of cells: what a generator reads, and what it has to predict."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A minibatch of cells, thinned, with the molecules that were removed.

    Attributes
    ----------
    inputs
        ``(P, b, m + c)``: log1p(CP10k) of the kept molecules of each block, then the context of the cell.
    labels
        Level codes ``(b,)`` of each label that conditions the generator.
    features
        Features ``(b, ...)`` of each modality beside the counts (spatial methods).
    place, removed
        Position in the flat ``(P, b, m)`` output of every removed molecule count, and the count; shape ``(nnz,)``.
    exposure
        Size of the removed part of each cell, ``(b,)``.
    neighbours
        Row indices of two sampled neighbours in each ring for the first ``a`` spots, ``(rings, 2, a)``. The rows of neighbours follow the
        ``b`` spots with targets in ``inputs``, ``labels`` and ``features``.
    ring_weights
        Weight of each ring.
    """

    inputs: Tensor
    labels: tuple[Tensor, ...]
    place: Tensor
    removed: Tensor
    exposure: Tensor
    features: tuple[Tensor, ...] = ()
    neighbours: Tensor | None = None
    ring_weights: tuple[float, ...] = ()
