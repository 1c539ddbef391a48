"""The Drop operator: artificial dropout of the imputed cell before the discriminator sees it."""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 1 << 13


def percentile(values: Tensor, percent: float, generator: torch.Generator) -> Tensor:
    """Percentile of all entries, of 8,192 random ones where there are more (a full sort would cost more than the network)."""
    flat = values.reshape(-1)
    if flat.numel() > _SAMPLE:
        flat = flat[torch.randint(flat.numel(), (_SAMPLE,), generator=generator, device=flat.device)]
    return torch.quantile(flat, percent / 100)


def drop(expression: Tensor, quantile: float, shape: float, generator: torch.Generator) -> Tensor:
    r"""Set entries to zero, low ones more often.

    .. math:: P(\text{kept}) = \sigma\bigl(s\,(G' - \mathrm{percentile}(G', q))\bigr)

    The mask is a Bernoulli draw and a constant in the backward pass. (The source's formula calls the success "dropped
    out", which contradicts its own text: success means kept.)

    Parameters
    ----------
    expression
        Imputed values :math:`G' = \log(1 + G(x))` in log1p(CP10k), any shape.
    quantile
        q in percent, 0 to 100: the percentile of the values at which half of the entries are kept.
    shape
        s > 0: how sharply the chance rises around that percentile.
    """
    with torch.no_grad():
        keep = torch.sigmoid(shape * (expression - percentile(expression, quantile, generator)))
        # Three times as fast as torch.bernoulli.
        mask = torch.rand(keep.shape, generator=generator, dtype=keep.dtype, device=keep.device) < keep
    return expression * mask
