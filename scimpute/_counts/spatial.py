"""The engines of :func:`scimpute.tl.spatial` and :func:`scimpute.tl.nmf`: networks that read more than the counts of a spot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from .._space.side import SideInformation
from .._sparse import chunks
from ..models.factor import FactorGenerator
from ..models.multimodal import MultimodalGenerator
from ..models.spatial import SpatialModel
from .engine import Engine, draws, log_shares, starts
from .partition import Partition
from .settings import STEPS, Complexity, Settings
from .split import CountSplit, SplitInContext


@dataclass(frozen=True)
class SpatialEngine(Engine):
    """One encoder for each modality, their codes summed, then the generator of BEGAN; no adversary."""

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

    def fixed(self, split: CountSplit, settings: Settings, steps_per_epoch: int) -> tuple[str, Complexity] | None:
        if split.likelihood.name == "squared":
            return "fixed for likelihood='squared'", Complexity(15, 16, 600.0, math.ceil(STEPS[1] / steps_per_epoch))
        if "counts" not in _side_of(split).modalities:
            return "fixed where counts are not among the modalities", Complexity(30, 32, 200.0, math.ceil(STEPS[0] / steps_per_epoch))
        return None

    def watch(self, split: CountSplit) -> tuple[str, ...]:
        # Entries that are hidden are learnt by heart early, and forgotten again as the steps become small.
        return () if split.likelihood.name == "squared" else ("heldout",)

    def contributions(self, generator: nn.Module, source: SplitInContext, partition: Partition) -> pd.DataFrame:
        assert isinstance(generator, MultimodalGenerator), "build made it"
        return contributions(generator, source, partition)


@dataclass(frozen=True)
class FactorEngine(Engine):
    """Neural matrix factorisation: a vector for every spot and every gene."""

    all_genes: ClassVar[bool] = True  # the vector of a spot comes from all genes

    def build(self, source: SplitInContext, partition: Partition, complexity: Complexity, rng: np.random.Generator) -> SpatialModel:
        split, start = source.split, starts(rng)
        scores = source.train_batches(partition).scores().cpu()
        # The vectors of the spots start where the scores are, which have variance 1: so has their prior.
        generator = FactorGenerator(
            partition.genes_per_block,
            scores - scores.mean(dim=0),
            log_shares(split, partition),
            start,
            spot_penalty=split.prior_precision(1.0),
            depth_slope=split.depth_slope,
        )
        return _model(generator, split, partition, complexity)

    def fixed(self, split: CountSplit, settings: Settings, steps_per_epoch: int) -> tuple[str, Complexity]:
        penalty = 200.0 if split.likelihood.name == "squared" else 100.0
        # A spot is read once an epoch, however many there are.
        return "fixed for a factorisation", Complexity(20, FactorGenerator.PAIRS, penalty, max(20, math.ceil(STEPS[1] / steps_per_epoch)))

    def watch(self, split: CountSplit) -> tuple[str, ...]:
        # A factorisation begins slowly, from nothing.
        return ()

    def params(self, split: CountSplit, complexity: Complexity) -> dict[str, Any]:
        return {"n_factors": complexity.n_context}

    def factors(self, generator: nn.Module, partition: Partition) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(generator, FactorGenerator), "build made it"
        return generator.of_spots.detach().cpu().numpy(), generator.of_genes.detach().cpu().numpy()[partition.place]


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
    """For every modality the weight of its code, and by how much the loss per held-out molecule (or entry) rises without it."""
    split = source.split
    batches = source.train_batches(partition)
    lost, number = dict.fromkeys((None, *generator.names), 0.0), 0.0
    with torch.no_grad():
        for rows in chunks(len(split.validation), partition.blocks * partition.genes_per_block):
            batch = batches.against(split.validation[rows], split.heldout, split.size_heldout)
            number += float(split.likelihood.n_targets(batch))
            for name in lost:
                with generator.without(name):
                    lost[name] += float(split.likelihood.loss(generator(batch.inputs, batch.labels, batch.features), batch))
    rise = [(lost[name] - lost[None]) / max(number, 1.0) for name in generator.names]
    return pd.DataFrame({"weight": generator.weights.tolist(), "contribution": rise}, index=list(generator.names))
