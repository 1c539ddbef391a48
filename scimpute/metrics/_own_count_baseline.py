"""The baseline ``"own_count"``: the gene mean shrunk towards the cell's own count. It uses no other gene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from .. import _device
from .._sparse import CACHED_ENTRIES, chunks, row_sums, split_molecules
from ..models import dispersion, posterior
from . import _thinned

_KEEP = 0.9


def own_count(parts: _thinned.Thinned, rng: np.random.Generator) -> _thinned.Read:
    """The posterior mean (:mod:`scimpute.models.posterior`) with the gene's mean as prior mean.

    The dispersion is estimated as in `tl.began`, on a tenth of the training molecules.
    """
    train, target = split_molecules(parts.train, _KEEP, rng)
    inner = replace(parts, train=train, test=target, depth=row_sums(train), depth_test=row_sums(target))
    ratio = (inner.depth_test / np.maximum(inner.depth, 1)).astype(np.float32)
    share = torch.from_numpy(parts.share.astype(np.float32))

    def pieces() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        for rows in chunks(len(ratio), len(share), CACHED_ENTRIES):
            counts, mean, hidden = map(torch.from_numpy, (inner.raw(rows), inner.gene_mean(rows), target[rows].toarray()))
            yield counts, mean, hidden, torch.from_numpy(ratio[rows]), torch.ones(len(counts), dtype=torch.float32)

    reference = share * max(float(np.median(inner.depth)), 1.0)
    with _device.session(torch.device("cpu")):
        prior = dispersion.estimate(pieces(), len(ratio), share, reference)
        step = posterior.Posterior(prior, len(ratio), sd=False)

    def read(rows: slice) -> np.ndarray:
        mean = torch.from_numpy(parts.gene_mean(rows))
        with _device.session(torch.device("cpu")):
            return step(mean.clamp(min=posterior.LEAST).log_(), posterior.NonZero.of(parts.train[rows]))[0].mul_(mean).numpy()

    return read
