"""The gene mean drawn to the cell's own count: what can be predicted of a gene without a look at any other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .._counts import CACHED, chunks, row_sums, split
from ..models import posterior
from . import _thinned

_KEEP = 0.9


def own_count(parts: _thinned.Thinned, rng: np.random.Generator) -> _thinned.Read:
    """The posterior mean (:mod:`scimpute.models.posterior`) where the prior mean is the gene's mean.

    How far counts are drawn from it is found as in `tl.began`, on a tenth of the training molecules.
    """
    inner, target = split(parts.train, _KEEP, rng)
    depth, ratio = row_sums(inner), row_sums(target)
    ratio /= np.maximum(depth, 1)
    share = torch.from_numpy(parts.share.astype(np.float32))

    def prior_mean(depths: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(depths.astype(np.float32))[:, None] * share

    def pieces() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        for rows in chunks(len(depth), len(share), CACHED):
            seen, hidden = (torch.from_numpy(part[rows].toarray()) for part in (inner, target))
            yield seen, prior_mean(depth[rows]), hidden, torch.from_numpy(ratio[rows].astype(np.float32))

    reference = share * max(float(np.median(depth)), 1.0)
    prior = posterior.estimate(pieces(), len(depth), share, reference)

    def read(rows: slice) -> np.ndarray:
        seen = torch.from_numpy(parts.train[rows].toarray())
        return posterior.mean_and_variance(seen, prior_mean(parts.depth[rows]), prior, torch.zeros(()))[0].numpy()

    return read
