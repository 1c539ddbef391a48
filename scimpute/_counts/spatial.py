"""The engines of :func:`scimpute.tl.spatial` and :func:`scimpute.tl.nmf`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .._space.side import SideInformation
from .._sparse import chunks
from ..models.factor import FactorGenerator
from ..models.multimodal import MultimodalGenerator
from ..models.spatial import SpatialModel
from .engine import Engine, draws, log_shares, starts
from .partition import Partition
from .settings import STEPS, Complexity, default_complexity
from .split import CountSplit, SplitInContext


@dataclass(frozen=True)
class SpatialEngine(Engine):
    """One encoder for each modality. The generator of BEGAN reads the sum of the codes. There is no adversary."""

    def build(self, source: SplitInContext, partition: Partition, complexity: Complexity, rng: np.random.Generator) -> SpatialModel:
        split, side, start = source.split, _side_of(source.split), starts(rng)
        generator = MultimodalGenerator(
            partition.blocks,
            partition.genes_per_block,
            source.context.n_values,
            split.levels,
            side.shapes(source.context.n_values - 1),
            log_shares(split, partition),
            start,
            draws(rng, split.device),
            width=complexity.width,
            depth_slope=split.depth_slope,
        )
        return _model(generator, split, partition, complexity)

    def fixed(self, split: CountSplit, steps_per_epoch: int) -> tuple[str, Complexity] | None:
        fixed = split.fixed(steps_per_epoch)
        if fixed is None and "counts" not in _side_of(split).modalities:
            return "fixed where counts are not among the modalities", default_complexity(steps_per_epoch)
        return fixed

    def contributions(self, generator: nn.Module, source: SplitInContext, partition: Partition) -> pd.DataFrame:
        assert isinstance(generator, MultimodalGenerator), "build made it"
        return contributions(generator, source, partition)


@dataclass(frozen=True)
class FactorEngine(Engine):
    """Neural matrix factorisation: a vector for every spot and every gene."""

    all_genes: ClassVar[bool] = True  # all genes inform the vector of a spot

    def build(self, source: SplitInContext, partition: Partition, complexity: Complexity, rng: np.random.Generator) -> SpatialModel:
        split, start = source.split, starts(rng)
        scores = source.train_batches(partition).scores().cpu()
        # The vectors of the spots start at their scores. Scores have variance 1, and so has the prior of the vectors.
        generator = FactorGenerator(
            partition.genes_per_block,
            scores - scores.mean(dim=0),
            log_shares(split, partition),
            start,
            spot_weight=split.prior_precision(1.0),
            depth_slope=split.depth_slope,
        )
        return _model(generator, split, partition, complexity)

    def fixed(self, split: CountSplit, steps_per_epoch: int) -> tuple[str, Complexity]:
        # Each epoch reads a spot once, so a large data set needs as many epochs as a small one.
        epochs = max(20, math.ceil(STEPS[1] / steps_per_epoch))
        return "fixed for a factorisation", Complexity(20, FactorGenerator.PAIR_UNITS, split.factor_penalty, epochs)

    def watch(self, split: CountSplit) -> tuple[str, ...]:
        # A factorisation starts at 0 and improves slowly at first.
        return ()

    def params(self, split: CountSplit, complexity: Complexity) -> dict[str, Any]:
        return {"n_factors": complexity.n_context}

    def factors(self, generator: nn.Module, partition: Partition) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(generator, FactorGenerator), "build made it"
        return generator.spot_factors.detach().cpu().numpy(), generator.gene_factors.detach().cpu().numpy()[partition.place]


def _side_of(split: CountSplit) -> SideInformation:
    assert split.side is not None, "spots have side information"
    return split.side


def _model(
    generator: MultimodalGenerator | FactorGenerator, split: CountSplit, partition: Partition, complexity: Complexity
) -> SpatialModel:
    return SpatialModel(
        generator,
        split.likelihood,
        penalty=split.prior_precision(complexity.penalty),
        spatial_weight=_side_of(split).spatial_weight,
        share=partition.to_blocks(split.gene_weights(), 0.0),
    )


def contributions(generator: MultimodalGenerator, source: SplitInContext, partition: Partition) -> pd.DataFrame:
    """Weight of the code of every modality, and rise of the loss per held-out molecule (or entry) without that modality."""
    split = source.split
    batches = source.train_batches(partition)
    losses, number = dict.fromkeys((None, *generator.names), 0.0), 0.0
    with torch.no_grad():
        for rows in chunks(len(split.validation), partition.blocks * partition.genes_per_block):
            batch = batches.against(split.validation[rows], split.heldout, split.size_heldout)
            number += float(split.likelihood.n_targets(batch))
            for name in losses:
                with generator.without(name):
                    losses[name] += float(split.likelihood.loss(generator(batch.inputs, batch.labels, batch.features), batch))
    rise = [(losses[name] - losses[None]) / max(number, 1.0) for name in generator.names]
    return pd.DataFrame({"weight": generator.weights.tolist(), "contribution": rise}, index=list(generator.names))


def empty_generator(
    state: Mapping[str, Tensor], features: Mapping[str, tuple[int, ...]], n_values: int, levels: tuple[int, ...], width: int
) -> tuple[nn.Module, torch.Size]:
    """A generator of `tl.spatial` for the weights of a saved one, and the shape ``(P, 1, m)`` of its blocks."""
    bias = state["inner.output.bias"]
    blocks, _, size = bias.shape
    start = torch.Generator().manual_seed(0)
    return MultimodalGenerator(blocks, size, n_values, levels, features, bias, start, start, width=width), bias.shape
