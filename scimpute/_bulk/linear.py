"""The linear part of the bulk methods: it fits the models of :mod:`.models.sample_regression` and chooses their two parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import _random
from ..models.pmi_gain import Samples
from ..models.sample_regression import FactorModel, predict_residuals, regress_on_samples, residual_correlation, similarity
from .table import hide, rows_of, uniform

RANK = 50
MIN_WEIGHTS = (1.0, 0.3, 0.1)
RIDGES = (1.0, 2.0, 4.0)
CHOICE_SAMPLES = 200
"""Number of samples for the choice of ``min_weight`` and ``ridge``."""
MIN_NEIGHBOUR_GENES = 20
"""A sample needs this many observed genes to find its neighbours. With fewer, the factor model and the covariates predict."""
MIN_SHARED_GENES = 5
"""Two samples can be the same sample only if they agree in this many genes."""
CORRELATION_SAMPLES = 1000
"""Number of samples for the residual correlations."""
SAVED = ("reference", "observed", "codes", "covariate_weights", "precision", "residual_sd")
"""Tensors of :class:`Linear` that are saved under their own names."""


def design(samples: Samples, levels: Sequence[int]) -> Tensor:
    """Design matrix ``(n, c)``: ones, indicators of the levels (all 0 for an unknown level), continuous covariates."""
    parts = [samples.values.new_ones(len(samples.values), 1)]
    parts += [_indicators(samples, column, n) for column, n in enumerate(levels)]
    return torch.cat([*parts, samples.numbers], dim=1)


def _indicators(samples: Samples, column: int, n: int) -> Tensor:
    """1 where a sample has a level of a covariate, ``(n, levels)``."""
    return (samples.codes[:, column, None] == torch.arange(n, device=samples.codes.device)).to(samples.values)


@dataclass
class Linear:
    """The fitted linear part.

    Attributes
    ----------
    factors
        The factor model. It fills the reference first.
    levels
        Number of levels of each categorical covariate.
    reference, observed, codes
        Filled training samples ``(n, g)``, their observed entries ``(n, g)``, and their level codes ``(n, a)``.
    covariate_weights
        Weight of each categorical covariate in the similarity of two samples, ``(a,)``.
    precision
        Weight of each gene in the regression, mean 1, ``(g,)``.
    min_weight
        Prior variance of the weight of a sample that shares no covariate, between 0 and 1.
    ridge
        Penalty of the regression, in units of the mean noise variance.
    residual_sd, residual_correlation
        Standard deviation ``(g,)`` and sparse correlation ``(g, g)`` of the residuals of the regression.
    """

    factors: FactorModel
    levels: tuple[int, ...]
    reference: Tensor
    observed: Tensor
    codes: Tensor
    covariate_weights: Tensor
    precision: Tensor
    min_weight: float
    ridge: float
    residual_sd: Tensor
    residual_correlation: Tensor

    @classmethod
    def fit(cls, samples: Samples, levels: tuple[int, ...], rng: np.random.Generator) -> Linear:
        """Fit the factor model and fill the reference with it. :meth:`refit_reference` fits the rest."""
        values, observed = samples.values, samples.observed
        n, g = values.shape
        start = torch.Generator().manual_seed(_random.seed(rng))
        covariates = design(samples, levels)
        factors = FactorModel.fit(values, observed, covariates, min(RANK, n // 4, g // 4), start)
        mean, _ = factors.predict(values, observed, covariates)
        precision = factors.noise.rsqrt()
        no_pairs = torch.zeros(2, 0, dtype=torch.long, device=values.device)
        return cls(
            factors,
            levels,
            torch.where(observed, values, mean),
            observed,
            samples.codes,
            _covariate_weights(samples, levels),
            precision / precision.mean(),
            1.0,
            RIDGES[1],
            values.new_ones(g),
            torch.sparse_coo_tensor(no_pairs, values.new_zeros(0), (g, g), check_invariants=False).coalesce(),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensors and numbers to save."""
        tensors = {name: getattr(self, name) for name in SAVED}
        tensors |= {f"factors.{name}": getattr(self.factors, name) for name in ("weights", "second", "noise")}
        pairs = self.residual_correlation
        tensors |= {"residual_correlation.indices": pairs.indices(), "residual_correlation.values": pairs.values()}
        return tensors, {"min_weight": self.min_weight, "ridge": self.ridge, "rank": self.factors.rank}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, float], levels: tuple[int, ...]) -> Linear:
        """The reverse of :meth:`state`."""
        weights, second, noise = (tensors[f"factors.{name}"] for name in ("weights", "second", "noise"))
        factors = FactorModel(weights, second, noise, int(numbers["rank"]))
        indices, values = tensors["residual_correlation.indices"], tensors["residual_correlation.values"]
        g = len(factors.noise)
        pairs = torch.sparse_coo_tensor(indices, values, (g, g), check_invariants=True).coalesce()
        parts: dict[str, Tensor] = {name: tensors[name] for name in SAVED}
        return cls(factors, levels, **parts, min_weight=numbers["min_weight"], ridge=numbers["ridge"], residual_correlation=pairs)

    def choose(self, query: Samples, own: Tensor | None, truth: Tensor, targets: Tensor) -> list[dict[str, float]]:
        """Choose ``min_weight`` and ``ridge`` by the error on the hidden entries of some samples."""
        rows = torch.arange(min(CHOICE_SAMPLES, len(truth)), device=truth.device)
        subset = rows_of(query, rows)
        itself, trials = self._itself(subset, None if own is None else own[rows]), []
        for min_weight in MIN_WEIGHTS if float(self.covariate_weights.sum()) else MIN_WEIGHTS[:1]:
            for ridge in RIDGES:
                self.min_weight, self.ridge = min_weight, ridge
                error = (self._regress(subset, itself) - truth[rows])[targets[rows]].square().mean()
                trials.append({"min_weight": min_weight, "ridge": ridge, "mse": float(error)})
        best = min(trials, key=lambda trial: trial["mse"])
        self.min_weight, self.ridge = best["min_weight"], best["ridge"]
        return trials

    def refit_reference(self, samples: Samples, rng: np.random.Generator) -> None:
        """Fill the reference again by regression on samples, which is more accurate; then fit the residual correlation."""
        n = len(samples.values)
        own = torch.arange(n, device=samples.values.device)
        if not samples.observed.all():
            self.reference = torch.where(samples.observed, samples.values, self._regress(samples, self._itself(samples, own)))
        rows = torch.from_numpy(rng.permutation(n)[:CORRELATION_SAMPLES]).to(own.device)
        self._fit_residuals(rows_of(samples, rows), own[rows], rng)

    def _fit_residuals(self, samples: Samples, own: Tensor, rng: np.random.Generator) -> None:
        """Predict each random half of a sample's genes from the other half. The errors are the residuals."""
        half, itself = uniform(samples.values, rng) < 0.5, self._itself(samples, own)
        residual = torch.zeros_like(samples.values)
        for part in (half, ~half):
            filled = self._regress(hide(samples, part), itself)
            residual = torch.where(part & samples.observed, samples.values - filled, residual)
        number = samples.observed.sum(0).clamp(min=1)
        self.residual_sd = (residual.square().sum(0) / number).sqrt().clamp(min=1e-3)
        self.residual_correlation = residual_correlation(residual / self.residual_sd, samples.observed)

    def _regress(self, samples: Samples, itself: Tensor) -> Tensor:
        """Regression on the rows of the reference that are not the sample itself."""
        prior = similarity(samples.codes, self.codes, self.covariate_weights, self.min_weight).masked_fill_(itself, 0)
        noise = self.ridge * float(self.factors.noise.mean())
        return regress_on_samples(self.reference, self.precision, samples.values, samples.observed, prior, noise)

    def _itself(self, samples: Samples, own: Tensor | None) -> Tensor:
        """A mask ``(n, r)``: True for each row of the reference that is the sample itself.

        Sample i is row ``own[i]``. If ``own`` is None, the row is found by its values.
        """
        rows = torch.arange(len(samples.values), device=samples.values.device)
        mask = torch.zeros(len(rows), len(self.reference), dtype=torch.bool, device=rows.device)
        if own is None:
            usable = samples.observed & (self.reference.std(0) > 1e-6)
            for i in range(len(rows)):
                mask[i, self._same(samples.values[i], usable[i].nonzero()[:, 0])] = True
        else:
            mask[rows, own] = True
        return mask

    def _same(self, values: Tensor, genes: Tensor) -> Tensor:
        """Rows of the reference with the same values in all genes that both observe.

        Such a row is the sample itself, and it must not predict its own hidden genes. Many equal rows are not copies. They only share
        uninformative genes, such as genes that few samples express. Then no row is returned.
        """
        rows = torch.arange(len(self.reference), device=values.device)
        # A few genes rule out nearly all rows.
        for subset in (genes[:: max(1, len(genes) // 64)], genes):
            both = self.observed[rows][:, subset]
            agree = ~both | (self.reference[rows][:, subset] - values[subset]).abs().le(1e-4)
            rows = rows[agree.all(1)]
        enough = self.observed[rows][:, genes].sum(1) >= MIN_SHARED_GENES
        return rows[enough] if int(enough.sum()) <= max(3, len(self.reference) // 100) else rows[:0]

    def predict(self, samples: Samples, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every entry; for ``own`` see :meth:`_itself`."""
        mean = self._regress(samples, self._itself(samples, own))
        residual = (samples.values - mean) / self.residual_sd * samples.observed
        mean += predict_residuals(self.residual_correlation, residual, samples.observed) * self.residual_sd
        by_factors, variance = self.factors.predict(samples.values, samples.observed, design(samples, self.levels))
        few = samples.observed.sum(1) < min(MIN_NEIGHBOUR_GENES, samples.values.shape[1] // 2)
        return torch.where(few[:, None], by_factors, mean), variance.sqrt()


def _covariate_weights(samples: Samples, levels: Sequence[int]) -> Tensor:
    """Weight of each categorical covariate: the share of the observed variance that it alone explains, scaled to sum 1, ``(a,)``."""
    mask = samples.observed.to(samples.values)
    total = float(samples.values.square().sum())
    explained = []
    for column, n in enumerate(levels):
        indicators = _indicators(samples, column, n)
        number = (indicators.T @ mask).clamp(min=1)
        sums = indicators.T @ samples.values
        # As many random groups would explain this much.
        chance = float(mask.sum(0).gt(0).sum()) * (n - 1)
        explained.append(max(0.0, (float((sums.square() / number).sum()) - chance) / max(total, 1e-12)))
    weights = samples.values.new_tensor(explained)
    return weights / weights.sum() if explained and weights.sum() > 0.01 else torch.zeros_like(weights)
