"""BEGAN with a Drop operator: generator, discriminator and their losses.

Shapes: P gene blocks, m genes a block, b cells, c context values, L levels of a label.

The generator G reads a thinned real cell. For every gene of its block it predicts the log of the gene's share of the cell's
molecules. Its loss has three terms:

* *reconstruction by count splitting* (Batson 2019; Neufeld 2023): G predicts the removed molecules under a likelihood. It never sees
  its targets, so it is unbiased. It starts from the null model, in which every cell is the average cell;
* *the adversary* (BEGAN, Berthelot 2017, eqs. 2-5): the discriminator is an autoencoder. After Drop, it should reconstruct the imputed
  cell as well as a real cell;
* *a squared penalty on the output weights* keeps a gene with few molecules at its mean, instead of at noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch
from .dense import Generator
from .drop import drop
from .head import BlockGenerator
from .likelihood import Likelihood, Poisson

POISSON = Poisson()
ADVERSARY_STRIDE = 4
"""The discriminator reads one in so many cells of one in so many minibatches: a sixteenth of the cost."""


class Began(nn.Module):
    r"""Generator and discriminator, and the losses of both.

    .. math::
        L(v) &= \mathrm{mean}\,|v - D(v)| \\
        L_D &= L(x) - k_t\,L(\mathrm{Drop}(G(x))) \\
        L_G &= w_r\,\mathrm{likelihood} + w_a\,L(\mathrm{Drop}(G(x))) + \mathrm{prior}\,\|W_{out}\|^2 / n \\
        k_{t+1} &= \mathrm{clip}\bigl(k_t + \lambda_k(\gamma L(x) - L(\mathrm{Drop}(G(x)))), 0, 1\bigr) \\
        M &= L(x) + |\gamma L(x) - L(\mathrm{Drop}(G(x)))|

    The likelihood term is per removed molecule (nats), so it does not depend on the depth of the data. The discriminator reads a part
    of the cells (:data:`ADVERSARY_STRIDE`). If there is no likelihood term, it reads all.

    Parameters
    ----------
    penalty
        Prior precision of the output weights, divided by the number of cells and the mean number of removed molecules.
    adversarial_weight, reconstruction_weight
        :math:`w_a` and :math:`w_r`.
    gamma
        :math:`\gamma`, the wanted ratio of the two reconstruction errors.
    drop_quantile, drop_shape
        See :func:`.drop.drop`.
    likelihood
        Loss on the removed molecules.
    """

    K_RATE = 0.001

    def __init__(
        self,
        generator: BlockGenerator,
        discriminator: nn.Module | None,
        *,
        penalty: float,
        adversarial_weight: float,
        reconstruction_weight: float,
        gamma: float,
        drop_quantile: float,
        drop_shape: float,
        rng: torch.Generator,
        likelihood: Likelihood = POISSON,
    ) -> None:
        super().__init__()
        self.generator, self.discriminator, self.likelihood = generator, discriminator, likelihood
        self.penalty, self.gamma = penalty, gamma
        self.adversarial_weight, self.reconstruction_weight = adversarial_weight, reconstruction_weight
        self.drop_quantile, self.drop_shape, self.rng = drop_quantile, drop_shape, rng
        self.k: Tensor
        self.register_buffer("k", torch.zeros((), dtype=torch.float32))
        self.step = 0
        self.metrics: dict[str, Tensor | float] = {}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the name of the loss that trains them."""
        groups = {"generator": list(self.generator.parameters())}
        if self.discriminator is not None:
            groups["discriminator"] = list(self.discriminator.parameters())
        return groups

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield ``(name, loss)``. Step each loss before you ask for the next."""
        self.metrics = {}
        head = self.generator.head(batch.inputs, batch.labels)
        if self.reconstruction_weight:
            deviance, squares = self.likelihood.objective(self.generator, head, batch)
            reconstruction = deviance / self.likelihood.scale(batch).clamp(min=1)
            self.metrics["reconstruction"] = reconstruction.detach()
            loss = self.reconstruction_weight * reconstruction + self.penalty * squares
        else:
            loss = self.penalty * self.generator.penalty().sum()
        self.step += 1
        stride = ADVERSARY_STRIDE if self.reconstruction_weight else 1
        if self.discriminator is not None and (self.step - 1) % stride == 0:
            n_cells = math.ceil(batch.inputs.shape[1] / stride)
            labels = tuple(codes[:n_cells] for codes in batch.labels)
            log_rate = head.log_rate(n_cells)
            real = batch.inputs[:, :n_cells, : log_rate.shape[2]]
            # G' = log1p(CP10k) of the imputed cell. The log rate is capped as in the Poisson likelihood.
            imputed = torch.log1p(1e4 * log_rate.clamp(max=0).exp())
            fake = drop(imputed, self.drop_quantile, self.drop_shape, self.rng)
            # One pass for real and fake cells: two passes of small products cost half as much again.
            both = torch.cat([real, fake.detach()], dim=1)
            error = (self.discriminator(both, tuple(codes.repeat(2) for codes in labels)) - both).abs()
            loss_real, loss_fake = error[:, :n_cells].mean(), error[:, n_cells:].mean()
            yield "discriminator", loss_real - self.k * loss_fake
            # The step above changed D. So D runs again for the generator, without gradients for D itself.
            self.discriminator.requires_grad_(False)
            loss_fake = F.l1_loss(self.discriminator(fake, labels), fake)
            self.discriminator.requires_grad_(True)
            loss = loss + self.adversarial_weight * loss_fake
            self._balance(loss_real.detach(), loss_fake.detach())
        yield "generator", loss

    def _balance(self, loss_real: Tensor, loss_fake: Tensor) -> None:
        # All of these stay on the device, so no step waits for it.
        balance = self.gamma * loss_real - loss_fake
        self.metrics |= {"loss_real": loss_real, "loss_fake": loss_fake, "k": self.k, "M": loss_real + balance.abs()}
        self.k = (self.k + self.K_RATE * balance).clamp(0, 1)


class Candidates(nn.Module):
    """Several settings of the generator, trained side by side on the same gene blocks. :mod:`scimpute._counts.complexity` chooses one.

    The blocks of a generator are independent networks. So ``K`` settings on ``S`` blocks are one generator with ``K * S`` blocks. A
    setting with fewer context scores multiplies the others by zero.

    Parameters
    ----------
    context_mask
        ``(K, c)``, 1 where a setting reads a context value.
    penalty
        ``(K,)``, the :class:`Began` penalty of each setting.
    likelihood
        Loss on the removed molecules.
    """

    def __init__(self, generator: Generator, context_mask: Tensor, penalty: Tensor, likelihood: Likelihood = POISSON) -> None:
        super().__init__()
        self.generator, self.n_settings, self.likelihood = generator, len(penalty), likelihood
        self.mask: Tensor
        self.penalty: Tensor
        self.register_buffer("mask", context_mask[:, None, None, :])
        self.register_buffer("penalty", penalty)
        self.metrics: dict[str, Tensor | float] = {}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"generator": list(self.generator.parameters())}

    def log_rate(self, batch: Batch) -> Tensor:
        """Log shares of every setting, ``(K, S, b, m)``."""
        blocks, cells, _ = batch.inputs.shape
        genes = self.generator.genes
        inputs = batch.inputs.repeat(self.n_settings, 1, 1)
        inputs.view(self.n_settings, blocks, cells, -1)[..., genes:] *= self.mask
        return self.generator(inputs, batch.labels).view(self.n_settings, blocks, cells, genes)

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        losses = [self.likelihood.loss(log_rate, batch) for log_rate in self.log_rate(batch)]
        penalties = self.generator.penalty().view(self.n_settings, -1).sum(1)
        yield "generator", torch.stack(losses).sum() / self.likelihood.scale(batch).clamp(min=1) + (self.penalty * penalties).sum()
