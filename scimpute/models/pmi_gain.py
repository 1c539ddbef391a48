"""Networks that fill what a mask hides: PMI and GAIN (Viñas 2021; GAIN after Yoon 2018).

Shapes: b samples, g genes. Values are standardised per gene, 0 where missing. Covariates come as level codes ``(b, a)`` of
the categorical ones and standardised numbers ``(b, c)`` of the continuous ones.
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
        # An unknown level (-1) gets the mean of the known ones.
        parts = [torch.where(codes[:, i, None] < 0, table.mean(0), table[codes[:, i].clamp(min=0)]) for i, table in enumerate(self.tables)]
        return torch.cat([*parts, numbers], dim=1)


class Network(nn.Module):
    """``[values, covariates, mask] -> n_layers x (Linear, BatchNorm, ReLU, Dropout) -> Linear``.

    ``rescale`` divides the values by the observed fraction of the sample, so that the first layer sees the same scale
    whatever is missing. ``zero`` starts the last layer at the mean of every gene. ``rng``, on the network's device, draws the dropout.
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
        """Dropout from a generator of its own: torch's draws from the global one."""
        if not self.training or not self.dropout:
            return hidden
        kept = torch.rand(hidden.shape, generator=self.rng, device=hidden.device, dtype=torch.float32) >= self.dropout
        return hidden * kept / (1 - self.dropout)


def _masked_error(output: Tensor, target: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the wanted entries of each sample, mean over the samples that have any."""
    number = wanted.sum(1)
    error = ((output - target).square() * wanted).sum(1) / number.clamp(min=1)
    return error.sum() / (number > 0).sum().clamp(min=1)


class Pmi(nn.Module):
    r"""Pseudo-mask imputation.

    For every sample :math:`p \sim U(\alpha, \beta)`, :math:`m_2 \sim \mathrm{Bernoulli}(p)`; of the observed entries :math:`m` the
    network reads :math:`m \cdot m_2` and is asked for :math:`m \cdot (1 - m_2)`. ``mask_rate`` is :math:`(\alpha, \beta)`, the range of the
    fraction that is shown.
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
        shown = torch.rand(values.shape, generator=self.rng, device=device, dtype=torch.float32) < kept
        mask = (samples.observed & shown).to(values)
        wanted = (samples.observed & ~shown).to(values)
        loss = _masked_error(self.network(values * mask, mask, samples), values, wanted)
        self.metrics = {"loss": loss.detach()}
        yield "network", loss

    def forward(self, samples: Samples) -> Tensor:
        """Every entry, ``(b, g)``."""
        mask = samples.observed.to(samples.values)
        return self.network(samples.values * mask, mask, samples)


class Gain(nn.Module):
    r"""GAIN with covariates.

    The generator fills the missing entries of :math:`x \cdot m + z (1 - m)`, :math:`z` noise; the discriminator is told half of the mask
    (the hint: :math:`h = b m + (1 - b) / 2`, :math:`b \sim \mathrm{Bernoulli}`) and guesses the rest, from the filled sample. Losses: its
    cross-entropy where :math:`b = 0`; for the generator the same with the answers turned round on missing entries, and
    ``supervised_weight`` times the squared error on observed ones.

    In the default variant the mask is a pseudo-mask as in :class:`Pmi`, so the squared error is over observed entries that were
    hidden from the generator: the published one, over those it was shown, rewards copying.
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
        values, seen = samples.values, samples.observed
        if self.mask_rate is not None:
            low, high = self.mask_rate
            seen = seen & (self._uniform(*values.shape) < low + (high - low) * self._uniform(len(values), 1))
        mask = seen.to(values)
        noise = torch.randn(values.shape, generator=self.rng, device=values.device, dtype=torch.float32) * 0.01
        output = self.generator(values * mask + noise * (1 - mask), mask, samples)
        filled = values * mask + output * (1 - mask)
        told = (self._uniform(*values.shape) < self.hint_rate).to(values)
        hint = told * mask + 0.5 * (1 - told)
        guess = self.discriminator(filled.detach(), hint, samples)
        open_entries = (1 - told).sum().clamp(min=1)
        loss_d = (F.binary_cross_entropy_with_logits(guess, mask, reduction="none") * (1 - told)).sum() / open_entries
        yield "discriminator", loss_d
        self.discriminator.requires_grad_(False)
        guess = self.discriminator(filled, hint, samples)
        self.discriminator.requires_grad_(True)
        missing = (1 - mask) * (1 - told)
        fooled = (F.softplus(-guess) * missing).sum() / missing.sum().clamp(min=1)
        wanted = (samples.observed & ~seen).to(values) if self.mask_rate is not None else mask
        error = _masked_error(output, values, wanted)
        self.metrics = {"loss": error.detach(), "adversary": fooled.detach(), "discriminator": loss_d.detach()}
        yield "generator", fooled + self.supervised_weight * error

    def forward(self, samples: Samples) -> Tensor:
        """Every entry, ``(b, g)``, with the noise at its mean."""
        mask = samples.observed.to(samples.values)
        return self.generator(samples.values * mask, mask, samples)
