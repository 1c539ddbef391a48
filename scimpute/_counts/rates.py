"""The rates a network gives, and how those of all repeats become one result with its held-out scores.

Knows numpy, scipy and torch, not AnnData.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from .. import _device
from .._sparse import CACHED, chunks, column_sums, columns, usual_size
from ..models import dispersion as sizes
from ..models import posterior
from ..models.began import Began
from ..models.multimodal import Modal
from .batches import CellBatches, Context
from .partition import Partition, RunningMoments
from .split import Data

PSEUDO = 10.0
"""Hidden entries of the common variance that every gene is given."""


class Predictor(Protocol):
    """What a rate is asked of: in training :class:`Began`, later a generator that was loaded."""

    @property
    def generator(self) -> torch.nn.Module: ...


def predict(module: Predictor, batches: CellBatches, rows: np.ndarray, label: int | None = None, level: int | None = None) -> torch.Tensor:
    """Rates ``(b, k)`` of some cells, as if they had another level of one of their labels where one is given."""
    codes = list(batches.codes(rows))
    if label is not None and level is not None:
        codes[label] = torch.full_like(codes[label], level)
    with torch.no_grad():
        return batches.partition.gather(batches.shares(rows, module.generator(batches.inputs(rows), codes)))


def add_rates(
    module: Predictor,
    batches: CellBatches,
    target: tuple[int, Sequence[int]] | None,
    rates: RunningMoments,
    own: RunningMoments | None,
    repeat: int,
) -> None:
    """Take in what one repeat says of all cells: as the mean over the target's levels, and in ``own`` as what they are."""

    def chunk(rows: slice, alive: Callable[[], None]) -> None:
        cells = np.arange(rows.start, rows.stop)
        if target is None:
            rate = predict(module, batches, cells)
        else:
            label, levels = target
            rate = predict(module, batches, cells, label, levels[0])
            # One level at a time: held together they would take as many times the memory of a chunk.
            for level in levels[1:]:
                rate += predict(module, batches, cells, label, level)
            rate /= len(levels)
            if own is not None:
                own.add(rows, predict(module, batches, cells).cpu(), repeat)
        rates.add(rows, rate.cpu(), repeat)

    _device.side_by_side(chunk, batches.chunks(), batches.device)


@dataclass
class Rates:
    """Rates over repeats and the sizes of the genes: what the posterior step needs.

    Attributes
    ----------
    rates
        Mean and, where standard deviations are wanted, spread over repeats of the rate each cell is imputed at, ``(n, k)``.
    own
        Mean rate in the cell's own batch where ``rates`` is of another one, else None.
    prior
        How the rates of the imputed genes vary around their prediction.
    seen
        Whether the counts trained on have any molecule of the gene, ``(k,)``.
    """

    rates: RunningMoments
    own: RunningMoments | None
    prior: posterior.Prior
    seen: torch.Tensor


@dataclass
class Result(Rates):
    """The rates of a run, and how it went.

    Attributes
    ----------
    heldout
        Deviance of the held-out molecules, in nats per molecule: gene mean, network, posterior. Of held-out entries, mean squared error of
        the log: gene mean (at the spot's depth), network.
    variation
        Largest standard deviation over (at most 256) cells of any gene's log rate: zero where every cell got the same, infinite where
        there is only one.
    """

    heldout: dict[str, float]
    variation: float


class Combiner:
    """Takes in the repeats one after the other."""

    def __init__(self, data: Data, target: tuple[int, Sequence[int]] | None, *, keep_own: bool, spread: bool = True) -> None:
        self.data, self.target = data, target
        n, k = data.counts.shape[0], len(data.genes)
        self.rates = RunningMoments(n, k, spread=spread)
        self.own = RunningMoments(n, k, spread=False) if target is not None and keep_own else None
        self.validation = RunningMoments(len(data.validation), k, spread=False)
        self.repeats = 0

    def add(self, module: Began | Modal, context: Context, partition: Partition) -> None:
        """Predict the validation cells from their training part, and then all cells from all their molecules."""
        # A factorisation has all genes in its block, whichever are asked for.
        asked = replace(partition, genes=self.data.genes)
        whole, training = self.data.whole(asked, context), self.data.of_training(asked, context)
        for rows in chunks(len(self.data.validation), partition.blocks * partition.genes_per_block):
            self.validation.add(rows, predict(module, training, self.data.validation[rows]).cpu(), self.repeats)
        # How much there is of a gene is known from all molecules: the held-out ones are a twentieth of a rare gene's evidence.
        module.generator.shift(partition.deal(self.data.held_back(), 0.0).to(self.data.device))  # type: ignore[operator]
        add_rates(module, whole, self.target, self.rates, self.own, self.repeats)
        self.repeats += 1

    def finish(self) -> Result:
        """Sizes of the genes, and what the held-out molecules say of gene mean, network and posterior."""
        data, genes = self.data, self.data.genes
        prior, scores = self._of_molecules() if data.likelihood == "poisson" else self._of_entries()
        log_rates = np.log(np.maximum(self.validation.mean[:256], 1e-12))
        # One cell cannot differ from others.
        variation = float(log_rates.std(axis=0).max()) if len(log_rates) > 1 else math.inf
        seen = torch.from_numpy(column_sums(columns(data.counts, genes)) > 0)
        return Result(self.rates, self.own, prior.to("cpu"), seen, scores, variation)

    def _of_molecules(self) -> tuple[posterior.Prior, dict[str, float]]:
        data, genes = self.data, self.data.genes
        share = torch.from_numpy(data.share[genes].astype(np.float32)).to(data.device)
        parts = list(chunks(len(data.validation), len(genes), CACHED))
        reference = share * usual_size(data.size_train)
        weights = torch.from_numpy(data.weights_of(data.validation).astype(np.float32)).to(data.device)
        prior = sizes.estimate(((*self._validation(rows), weights[rows]) for rows in parts), len(data.validation), share, reference)
        sums = {"gene_mean": 0.0, "network": 0.0, "posterior": 0.0}
        for rows in parts:
            seen, mu, target, ratio = self._validation(rows)
            depth = torch.from_numpy(data.size_train[data.validation[rows]].astype(np.float32)).to(data.device)[:, None]
            mean, _ = posterior.mean_and_variance(seen, mu, prior, mu.new_zeros(()))
            hits = target.nonzero(as_tuple=True)
            for name, value in (("gene_mean", share * depth), ("network", mu), ("posterior", mean)):
                rate = value * ratio[:, None]
                sums[name] += float(rate.sum(dtype=torch.float64) - target[hits].double() @ rate[hits].clamp(min=1e-12).double().log())
        return prior, {name: data.per_molecule(value, genes) for name, value in sums.items()}

    def _of_entries(self) -> tuple[posterior.Prior, dict[str, float]]:
        """As sizes, one over the variance of the log of a hidden entry around its prediction: that is relative, too."""
        data = self.data
        heldout = columns(data.heldout, data.genes)
        share, n = np.log(data.share[data.genes]), np.zeros(len(data.genes))
        squares, null = np.zeros_like(n), 0.0
        for rows in chunks(len(data.validation), len(n)):
            spots = data.validation[rows]
            part = heldout[spots].tocoo()
            depth = np.log(np.maximum(data.size[spots], 1))[part.row]
            measured = np.log(part.data)
            predicted = np.log(np.maximum(self.validation.mean[rows][part.row, part.col], 1e-12)) + depth
            of_gene = share[part.col] + depth + data.depth_slope * (depth - np.log(usual_size(data.size)))
            n += np.bincount(part.col, minlength=len(n))
            squares += np.bincount(part.col, np.square(measured - predicted), minlength=len(n))
            null += float(np.square(measured - of_gene).sum())
        total = max(n.sum(), 1.0)
        # A gene with few hidden entries has the variance of all.
        variance = (squares + PSEUDO * squares.sum() / total) / (n + PSEUDO)
        scores = {"gene_mean": null / total, "network": squares.sum() / total}
        precision = torch.from_numpy(1 / np.maximum(variance, 1e-6)).float()
        return posterior.Prior(precision, torch.ones_like(precision)), {name: float(value) for name, value in scores.items()}

    def _validation(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        data = self.data
        cells = data.validation[rows]
        depth = torch.from_numpy(data.size_train[cells].astype(np.float32))[:, None]
        mu = (torch.from_numpy(self.validation.mean[rows]) * depth).to(data.device)
        return data.dense(data.train, cells, data.genes), mu, data.dense(data.heldout, cells, data.genes), data.heldout_ratio(cells)
