"""The Drop operator: artificial dropout of the imputed cell before the discriminator reads it."""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 1 << 13


def percentile(values: Tensor, percent: float, generator: torch.Generator) -> Tensor:
    """Percentile of the entries. Of more than 8,192, a random sample is used: a full sort costs more than the network."""
    flat = values.reshape(-1)
    if flat.numel() > _SAMPLE:
        flat = flat[torch.randint(flat.numel(), (_SAMPLE,), generator=generator, device=flat.device)]
    return torch.quantile(flat, percent / 100)


def drop(expression: Tensor, quantile: float, shape: float, generator: torch.Generator) -> Tensor:
    r"""Set entries to zero, low entries more often.

    .. math:: P(\text{kept}) = \sigma\bigl(s\,(G' - \mathrm{percentile}(G', q))\bigr)

    The mask is a Bernoulli draw. It is a constant in the backward pass. (The formula of the source calls the success "dropped out".
    Its text says that success means kept, as here.)

    Parameters
    ----------
    expression
        Imputed values :math:`G' = \log(1 + G(x))` in log1p(CP10k), any shape.
    quantile
        q in percent, 0 to 100. At this percentile of the values half of the entries are kept.
    shape
        s > 0: how steeply the probability rises around that percentile.
    """
    with torch.no_grad():
        keep = torch.sigmoid(shape * (expression - percentile(expression, quantile, generator)))
        # Three times as fast as torch.bernoulli.
        mask = torch.rand(keep.shape, generator=generator, dtype=keep.dtype, device=keep.device) < keep
    return expression * mask
