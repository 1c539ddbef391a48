"""The networks of `tl.pmi` and `tl.gain`, which fill masked entries (Viñas 2021; GAIN after Yoon 2018).

Shapes: b samples, g genes. Values are standardised per gene, 0 where missing. Categorical covariates are level codes ``(b, a)``.
Continuous covariates are standardised numbers ``(b, c)``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import linear


@dataclass(frozen=True)
class Samples:
    """A minibatch: values ``(b, g)``, True where observed ``(b, g)``, covariates."""

    values: Tensor
    observed: Tensor
    codes: Tensor
    numbers: Tensor


class Covariates(nn.Module):
    """Embeddings of size ``int(sqrt(levels)) + 1`` for categorical covariates, beside the continuous ones."""

    def __init__(self, levels: Sequence[int], n_numbers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.tables = nn.ParameterList()
        for n in levels:
            self.tables.append(nn.Parameter(torch.randn(n, math.isqrt(n) + 1, generator=generator, dtype=torch.float32)))
        self.size = sum(math.isqrt(n) + 1 for n in levels) + n_numbers

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        # An unknown level (-1) gets the mean embedding of the known levels.
        parts = [torch.where(codes[:, i, None] < 0, table.mean(0), table[codes[:, i].clamp(min=0)]) for i, table in enumerate(self.tables)]
        return torch.cat([*parts, numbers], dim=1)


class Network(nn.Module):
    """``[values, covariates, mask] -> n_layers x (Linear, BatchNorm, ReLU, Dropout) -> Linear``.

    ``rescale`` divides the values by the observed fraction of the sample, so the scale does not depend on how much is missing. ``zero``
    starts the last layer at the mean of every gene. ``rng``, on the network's device, draws the dropout.
    """

    def __init__(
        self,
        genes: int,
        levels: Sequence[int],
        n_numbers: int,
        generator: torch.Generator,
        *,
        n_layers: int,
        n_hidden: int,
        dropout: float,
        rescale: bool,
        zero: bool,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.covariates = Covariates(levels, n_numbers, generator)
        self.dropout, self.rescale, self.rng = dropout, rescale, rng
        sizes = [2 * genes + self.covariates.size, *[n_hidden] * n_layers, genes]
        self.layers = nn.ModuleList(linear(a, b, generator, bias=True) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(n_hidden, dtype=torch.float32) for _ in range(n_layers))
        if zero:
            nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, values: Tensor, mask: Tensor, samples: Samples) -> Tensor:
        if self.rescale:
            values = values / mask.mean(1, keepdim=True).clamp(min=1e-3)
        hidden = torch.cat([values, self.covariates(samples.codes, samples.numbers), mask], dim=1)
        for layer, norm in zip(self.layers, self.norms, strict=False):
            hidden = self._drop(F.relu(norm(layer(hidden))))
        return self.layers[-1](hidden)

    def _drop(self, hidden: Tensor) -> Tensor:
        """Dropout with its own generator; torch's dropout draws from the global one."""
        if not self.training or not self.dropout:
            return hidden
        kept = torch.rand(hidden.shape, generator=self.rng, device=hidden.device, dtype=torch.float32) >= self.dropout
        return hidden * kept / (1 - self.dropout)


def _masked_error(output: Tensor, values: Tensor, targets: Tensor) -> Tensor:
    """Squared error over the target entries of each sample, mean over the samples with a target."""
    number = targets.sum(1)
    error = ((output - values).square() * targets).sum(1) / number.clamp(min=1)
    return error.sum() / (number > 0).sum().clamp(min=1)


class Pmi(nn.Module):
    r"""Pseudo-mask imputation.

    For every sample :math:`p \sim U(\alpha, \beta)` and :math:`m_2 \sim \mathrm{Bernoulli}(p)`. Of the observed entries :math:`m` the
    network reads :math:`m \cdot m_2` and predicts :math:`m \cdot (1 - m_2)`. ``mask_rate`` is :math:`(\alpha, \beta)`, the range of the
    visible fraction.
    """

    def __init__(self, network: Network, mask_rate: tuple[float, float], rng: torch.Generator) -> None:
        super().__init__()
        self.network, self.mask_rate, self.rng = network, mask_rate, rng
        self.metrics: dict[str, Tensor | float] = {}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters())}

    def losses(self, samples: Samples) -> Iterator[tuple[str, Tensor]]:
        values, device = samples.values, samples.values.device
        low, high = self.mask_rate
        kept = low + (high - low) * torch.rand(len(values), 1, generator=self.rng, device=device, dtype=torch.float32)
        visible = torch.rand(values.shape, generator=self.rng, device=device, dtype=torch.float32) < kept
        mask = (samples.observed & visible).to(values)
        targets = (samples.observed & ~visible).to(values)
        loss = _masked_error(self.network(values * mask, mask, samples), values, targets)
        self.metrics = {"loss": loss.detach()}
        yield "network", loss

    def forward(self, samples: Samples) -> Tensor:
        """Every entry, ``(b, g)``."""
        mask = samples.observed.to(samples.values)
        return self.network(samples.values * mask, mask, samples)


class Gain(nn.Module):
    r"""GAIN with covariates.

    The generator fills the missing entries of :math:`x \cdot m + z (1 - m)`, where :math:`z` is noise. The discriminator reads the filled
    sample and a part of the mask, the hint :math:`h = b m + (1 - b) / 2` with :math:`b \sim \mathrm{Bernoulli}`. It guesses the rest of the
    mask. Its loss is the cross-entropy where :math:`b = 0`. The loss of the generator is the same with reversed answers on missing
    entries, plus ``supervised_weight`` times the squared error on observed entries.

    In the default variant the mask is a pseudo-mask as in :class:`Pmi`. Then the squared error is over observed entries that the generator
    did not read. The published error is over entries that it read, which rewards copying.
    """

    def __init__(
        self,
        generator: Network,
        discriminator: Network,
        *,
        supervised_weight: float,
        hint_rate: float,
        mask_rate: tuple[float, float] | None,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.supervised_weight, self.hint_rate, self.mask_rate, self.rng = supervised_weight, hint_rate, mask_rate, rng
        self.metrics: dict[str, Tensor | float] = {}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"discriminator": list(self.discriminator.parameters()), "generator": list(self.generator.parameters())}

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng, device=self.rng.device, dtype=torch.float32)

    def losses(self, samples: Samples) -> Iterator[tuple[str, Tensor]]:
        values, visible = samples.values, samples.observed
        if self.mask_rate is not None:
            low, high = self.mask_rate
            visible = visible & (self._uniform(*values.shape) < low + (high - low) * self._uniform(len(values), 1))
        mask = visible.to(values)
        noise = torch.randn(values.shape, generator=self.rng, device=values.device, dtype=torch.float32) * 0.01
        output = self.generator(values * mask + noise * (1 - mask), mask, samples)
        filled = values * mask + output * (1 - mask)
        hinted = (self._uniform(*values.shape) < self.hint_rate).to(values)
        hint = hinted * mask + 0.5 * (1 - hinted)
        guess = self.discriminator(filled.detach(), hint, samples)
        n_guesses = (1 - hinted).sum().clamp(min=1)
        loss_d = (F.binary_cross_entropy_with_logits(guess, mask, reduction="none") * (1 - hinted)).sum() / n_guesses
        yield "discriminator", loss_d
        self.discriminator.requires_grad_(False)
        guess = self.discriminator(filled, hint, samples)
        self.discriminator.requires_grad_(True)
        missing = (1 - mask) * (1 - hinted)
        fooled = (F.softplus(-guess) * missing).sum() / missing.sum().clamp(min=1)
        targets = (samples.observed & ~visible).to(values) if self.mask_rate is not None else mask
        error = _masked_error(output, values, targets)
        self.metrics = {"loss": error.detach(), "adversary": fooled.detach(), "discriminator": loss_d.detach()}
        yield "generator", fooled + self.supervised_weight * error

    def forward(self, samples: Samples) -> Tensor:
        """Every entry, ``(b, g)``. The noise is at its mean, 0."""
        mask = samples.observed.to(samples.values)
        return self.generator(samples.values * mask, mask, samples)
