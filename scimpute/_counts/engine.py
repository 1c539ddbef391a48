"""What one count method adds to a run: its network, its fixed complexity, and its rule for early stopping."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from .. import _random
from .partition import EMPTY, Partition
from .settings import Complexity
from .split import CountSplit, SplitInContext


class Engine(ABC):
    """A count method on plain arrays. A frozen dataclass whose fields are the parameters that only this method has.

    Attributes
    ----------
    all_genes
        Whether the network needs all genes, even if few are imputed.
    """

    all_genes: ClassVar[bool] = False

    @property
    def square(self) -> bool:
        """Whether blocks of genes must be squares."""
        return False

    @abstractmethod
    def build(self, source: SplitInContext, partition: Partition, complexity: Complexity, rng: np.random.Generator) -> nn.Module:
        """The model of one repeat. It has a ``generator`` and yields the losses for the training loop."""

    def fixed(self, split: CountSplit, steps_per_epoch: int) -> tuple[str, Complexity] | None:
        """A reason and a complexity, if held-out molecules do not choose it; else None."""
        return split.fixed(steps_per_epoch)

    def watch(self, split: CountSplit) -> tuple[str, ...]:
        """Measures of which one must improve, or the training stops early."""
        return split.watch

    def contributions(self, generator: nn.Module, source: SplitInContext, partition: Partition) -> pd.DataFrame | None:
        """Weight and contribution of each modality; None for a method without modalities."""
        return None

    def params(self, split: CountSplit, complexity: Complexity) -> dict[str, Any]:
        """Values of the parameters that only this method has."""
        return {}

    def factors(self, generator: nn.Module, partition: Partition) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the spots ``(n, f)`` and of the genes ``(g, f)``. Only a factorisation has them."""
        raise NotImplementedError

    def warn_of_a_failed_fit(self, variation: float, heldout: Mapping[str, float]) -> None:
        """Warn if the fit is useless. :class:`.fit.Fit` explains the two measures."""
        return


def starts(rng: np.random.Generator) -> torch.Generator:
    """The random generator for the initial weights of a network."""
    return torch.Generator().manual_seed(_random.seed(rng))


def draws(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    """The random generator of a network during the training."""
    return torch.Generator(device).manual_seed(_random.seed(rng))


def log_shares(split: CountSplit, partition: Partition) -> torch.Tensor:
    """The null model: log share of every gene, ``(P, 1, m)``."""
    return partition.to_blocks(np.log(split.share), EMPTY)
