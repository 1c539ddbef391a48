"""The engine of :func:`scimpute.tl.began`: dense or convolutional networks with an adversary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _check
from ..models.began import Began
from ..models.conv import ConvDiscriminator, ConvGenerator
from ..models.dense import Discriminator, Generator
from .engine import Engine, draws, log_shares, starts
from .partition import Partition
from .settings import Complexity, default_complexity
from .split import CountSplit, SplitInContext

ARCHITECTURES = ("dense", "conv")
FLAT = 1e-3
"""If no log rate has a larger standard deviation over cells, all cells got the same profile."""
WORSE = 0.02
"""A network that is worse than the gene mean by more nats per held-out molecule has failed."""


@dataclass(frozen=True)
class BeganEngine(Engine):
    """Generator and discriminator.

    The attributes are the parameters of :func:`scimpute.tl.began` with these names. ``drop_quantile`` is None for ``"auto"``.
    """

    architecture: str
    drop_quantile: float | None
    drop_shape: float
    gamma: float
    adversarial_weight: float
    reconstruction_weight: float

    @classmethod
    def checked(
        cls,
        block_size: int | None,
        *,
        architecture: Any,
        drop_quantile: Any,
        drop_shape: Any,
        gamma: Any,
        adversarial_weight: Any,
        reconstruction_weight: Any,
    ) -> BeganEngine:
        """Check every parameter; ``block_size`` has been checked."""
        _check.option("architecture", architecture, ARCHITECTURES)
        side = math.isqrt(block_size or 0)
        if architecture == "conv" and (side**2 != block_size or side % 4):
            raise ValueError(
                f"block_size must be the square of a multiple of 4 for architecture='conv', as 256, 400 or 576; got {block_size}"
            )
        engine = cls(
            architecture,
            None if _check.auto("drop_quantile", drop_quantile) else _check.number("drop_quantile", drop_quantile, 0, 100),
            _check.number("drop_shape", drop_shape, 0, open_low=True),
            _check.number("gamma", gamma, 0, 1),
            _check.number("adversarial_weight", adversarial_weight, 0),
            _check.number("reconstruction_weight", reconstruction_weight, 0),
        )
        if engine.adversarial_weight == engine.reconstruction_weight == 0:
            raise ValueError("adversarial_weight and reconstruction_weight are both 0: the generator would have nothing to learn")
        return engine

    @property
    def square(self) -> bool:
        return self.architecture == "conv"

    def build(self, source: SplitInContext, partition: Partition, complexity: Complexity, rng: np.random.Generator) -> Began:
        split, start = source.split, starts(rng)
        blocks, genes = partition.blocks, partition.genes_per_block
        make = ConvGenerator if self.square else Generator
        shares = log_shares(split, partition)
        generator = make(blocks, genes, source.context.n_values, split.levels, shares, start, width=complexity.width)
        discriminator = None
        if self.adversarial_weight:
            discriminator = (ConvDiscriminator if self.square else Discriminator)(blocks, genes, split.levels, start)
        return Began(
            generator,
            discriminator,
            penalty=split.prior_precision(complexity.penalty),
            adversarial_weight=self.adversarial_weight,
            reconstruction_weight=self.reconstruction_weight,
            gamma=self.gamma,
            drop_quantile=self._quantile(split),
            drop_shape=self.drop_shape,
            rng=draws(rng, split.device),
            likelihood=split.likelihood,
        )

    def fixed(self, split: CountSplit, steps_per_epoch: int) -> tuple[str, Complexity] | None:
        # A trial of the convolutional network takes minutes.
        return ("fixed for architecture='conv'", default_complexity(steps_per_epoch)) if self.square else None

    def watch(self, split: CountSplit) -> tuple[str, ...]:
        return ("heldout", "M") if self.adversarial_weight else ("heldout",)

    def params(self, split: CountSplit, complexity: Complexity) -> dict[str, Any]:
        return asdict(self) | {"drop_quantile": self._quantile(split)}

    def warn_of_a_failed_fit(self, variation: float, heldout: Mapping[str, float]) -> None:
        if variation < FLAT:
            _check.tell(
                f"the generator gives every cell the same profile (largest sd of a log rate over cells {variation:.1e}): "
                "the result is the gene mean. Is adversarial_weight too large for reconstruction_weight?"
            )
        elif heldout["network"] > heldout["gene_mean"] + WORSE:
            _check.tell(
                f"the generator predicts held-out molecules worse than the gene mean ({heldout['network']:.3f} against "
                f"{heldout['gene_mean']:.3f} nats per molecule); do not rely on the result. Is adversarial_weight or learning_rate "
                "too large?"
            )

    def _quantile(self, split: CountSplit) -> float:
        """Percentile at which Drop keeps half of the entries. By default it is the percentage of zeros in the counts."""
        if self.drop_quantile is not None:
            return self.drop_quantile
        return 100 * (1 - split.counts.nnz / math.prod(split.counts.shape))


def empty_generator(
    state: Mapping[str, Tensor], architecture: str, n_values: int, levels: tuple[int, ...], width: int
) -> tuple[nn.Module, torch.Size]:
    """A generator for the weights of a saved one, and the shape ``(P, 1, m)`` of its blocks."""
    conv = architecture == "conv"
    # The bias of the last layer has a value for every place of every block.
    bias = state["bias" if conv else "output.bias"]
    blocks, _, size = bias.shape
    start = torch.Generator().manual_seed(0)
    return (ConvGenerator if conv else Generator)(blocks, size, n_values, levels, bias, start, width=width), bias.shape
