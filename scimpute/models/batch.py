"""A minibatch of cells: the inputs of a generator and its targets."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A minibatch of cells with hidden molecules (or entries), which are the targets.

    Attributes
    ----------
    inputs
        ``(P, b, m + c)``: log1p(CP10k) of the kept molecules of each block, then the context of the cell.
    labels
        Level codes ``(b,)`` of each label.
    features
        Features ``(b, ...)`` of each modality beside the counts (spatial methods).
    place, removed
        Position of every target in the flat ``(P, b, m)`` output, and its count; shape ``(nnz,)``.
    exposure
        Library size of the hidden part of each cell, ``(b,)``.
    neighbours
        Row indices of two sampled neighbours in each ring for the first ``a`` spots, ``(rings, 2, a)``. In ``inputs``, ``labels`` and
        ``features`` the neighbours follow the ``b`` spots with targets.
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
