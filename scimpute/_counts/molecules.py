"""The split of ``likelihood="poisson"``: count splitting holds out and hides molecules (Batson 2019; Neufeld 2023)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch

from .._space.side import SideInformation
from .._sparse import CACHED_ENTRIES, chunks, column_sums, columns, median_size_of, row_sums, split_molecules
from ..models import dispersion, posterior
from ..models.batch import Batch
from ..models.likelihood import Poisson
from .minibatches import CellBatches
from .split import HELDOUT, VALIDATION_CELLS, CountSplit, depth_weights, n_levels, rows_with_molecules

REMOVED = 0.3
"""Mean fraction of the molecules that the generator predicts in the training (see :data:`.batches.THINNING`)."""


class MoleculeSplit(CountSplit):
    """A binomial split of every entry: both parts are independent given the rates."""

    likelihood = Poisson()
    factor_penalty = 100.0

    @classmethod
    def prepare(
        cls,
        counts: sp.csr_matrix,
        size: np.ndarray,
        labels: tuple[np.ndarray, ...],
        genes: np.ndarray,
        device: torch.device,
        rng: np.random.Generator,
        side: SideInformation | None = None,
    ) -> MoleculeSplit:
        train, heldout = split_molecules(counts, 1 - HELDOUT, rng)
        outside = size - row_sums(counts)
        size_train = row_sums(train) + (1 - HELDOUT) * outside
        size_heldout = row_sums(heldout) + HELDOUT * outside
        share = _share(train, size_train)
        validation = np.sort(rng.permutation(rows_with_molecules(size_train))[:VALIDATION_CELLS])
        # All spots of a section come from one technology, and their neighbours inform shallow spots.
        weight = depth_weights(size_train, labels) if side is None else None
        parts = (counts, size, labels, n_levels(labels), genes, train, heldout, size_train, size_heldout, share, validation)
        return cls(*parts, device, side, weight)

    def hide(self, batches: CellBatches, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        return batches.thinned(rows, rng)

    def prior_precision(self, penalty: float) -> float:
        size = self.size_train * self.weights_of(np.arange(len(self.size_train)))
        return penalty / (self.train.shape[0] * max(REMOVED * float(size.mean()), 1e-6))

    def gene_weights(self) -> np.ndarray:
        return self.share

    @functools.cached_property
    def level_correction(self) -> np.ndarray:
        # Held-out molecules are a twentieth of all, which matters for a rare gene.
        return np.log(_share(self.counts, self.size) / self.share)

    @property
    def measured(self) -> np.ndarray:
        return np.ones(self.counts.shape[1], dtype=bool)

    def heldout_ratio(self, rows: np.ndarray) -> torch.Tensor:
        """Held-out depth of some cells over their training depth, ``(b,)``."""
        ratio = self.size_heldout[rows] / np.maximum(self.size_train[rows], 1)
        return torch.from_numpy(ratio.astype(np.float32)).to(self.device)

    def per_molecule(self, deviance: float, genes: np.ndarray, *, weighted: bool = False) -> float:
        """Turn the deviance of the validation cells' held-out counts into nats per molecule of shares, which does not depend on the depth.

        ``weighted`` says that the deviance is a sum over cells with their weights.
        """
        molecules = row_sums(columns(self.heldout[self.validation], genes))
        if weighted:
            molecules = molecules * self.weights_of(self.validation)
        exposure = np.maximum(self.size_heldout[self.validation], 1e-6)
        return float((deviance + molecules @ np.log(exposure)) / max(molecules.sum(), 1.0))

    def judge(self, rates: np.ndarray) -> tuple[posterior.Prior, dict[str, float]]:
        """Prior, and the deviance of the gene mean, the network and the posterior in nats per held-out molecule."""
        genes = self.genes
        share = torch.from_numpy(self.share[genes].astype(np.float32)).to(self.device)
        parts = list(chunks(len(self.validation), len(genes), CACHED_ENTRIES))
        reference = share * median_size_of(self.size_train)
        weights = torch.from_numpy(self.weights_of(self.validation).astype(np.float32)).to(self.device)
        cells: Iterator = ((*self._validation(rates, rows), weights[rows]) for rows in parts)
        prior = dispersion.estimate(cells, len(self.validation), share, reference)
        step = posterior.Posterior(prior, len(self.validation), sd=False)
        sums = {"gene_mean": 0.0, "network": 0.0, "posterior": 0.0}
        for rows in parts:
            _, mu, target, ratio = self._validation(rates, rows)
            depth = torch.from_numpy(self.size_train[self.validation[rows]].astype(np.float32)).to(self.device)[:, None]
            own = posterior.NonZero.of(columns(self.train[self.validation[rows]], genes)).to(self.device)
            mean = step(mu.clamp(min=posterior.LEAST).log_(), own)[0].mul_(mu)
            positive = target.nonzero(as_tuple=True)
            for name, value in (("gene_mean", share * depth), ("network", mu), ("posterior", mean)):
                rate = value * ratio[:, None]
                sums[name] += float(
                    rate.sum(dtype=torch.float64) - target[positive].double() @ rate[positive].clamp(min=1e-12).double().log()
                )
        return prior, {name: self.per_molecule(value, genes) for name, value in sums.items()}

    def _validation(self, rates: np.ndarray, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Training counts, their prediction, held-out counts, and ratio of the depths, of some validation cells."""
        cells = self.validation[rows]
        depth = torch.from_numpy(self.size_train[cells].astype(np.float32))[:, None]
        mu = (torch.from_numpy(rates[rows]) * depth).to(self.device)
        return self.dense(self.train, cells, self.genes), mu, self.dense(self.heldout, cells, self.genes), self.heldout_ratio(cells)


def _share(counts: sp.csr_matrix, size: np.ndarray) -> np.ndarray:
    # Half a molecule for a gene without any keeps its log finite and its rate near 0.
    return np.maximum(column_sums(counts), 0.5) / max(size.sum(), 1.0)
