"""Standardised samples of bulk expression, and the linear part of their imputation.

Knows numpy and torch, not AnnData.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import _random
from ..models import sample_regression as kriging
from ..models.pmi_gain import Samples

RANK = 50
FLOORS = (1.0, 0.3, 0.1)
STRENGTHS = (1.0, 2.0, 4.0)
FEW = 20
"""Observed genes below which the neighbours of a sample cannot be found; the factor model and the covariates answer then."""
ENOUGH = 5
"""Genes in which two samples have to agree to be taken for the same."""
SUBSET = 1000
"""Samples that are enough for residual correlations."""


@dataclass(frozen=True)
class Table:
    """Expression ``(n, g)`` with NaN where missing, level codes ``(n, a)`` (-1: unknown), continuous covariates ``(n, c)``."""

    values: np.ndarray
    codes: np.ndarray
    levels: tuple[int, ...]
    numbers: np.ndarray


@dataclass
class Scale:
    """Mean and standard deviation of every gene and continuous covariate, from what was observed in training only.

    ``lowest``, ``(1,)``, is what no value can be below: 0 where none is negative, as in log expression.
    """

    mean: np.ndarray
    sd: np.ndarray
    number_mean: np.ndarray
    number_sd: np.ndarray
    lowest: np.ndarray

    @classmethod
    def of(cls, table: Table) -> Scale:
        mean = np.asarray(np.nanmean(table.values, axis=0, dtype=np.float64))
        sd = np.asarray(np.nanstd(table.values, axis=0, dtype=np.float64))
        constant = sd <= 1e-6 * np.maximum(1, np.abs(mean))
        number_sd = table.numbers.std(axis=0)
        lowest = np.array([0.0 if np.nanmin(table.values) >= 0 else -np.inf])
        return cls(mean, np.where(constant, 1, sd), table.numbers.mean(axis=0), np.where(number_sd > 0, number_sd, 1), lowest)

    def samples(self, table: Table, device: torch.device) -> Samples:
        observed = ~np.isnan(table.values)
        values = np.where(observed, (table.values - self.mean) / self.sd, 0).astype(np.float32)
        numbers = ((table.numbers - self.number_mean) / self.number_sd).astype(np.float32)
        tensors = (torch.from_numpy(part).to(device) for part in (values, observed, table.codes, numbers))
        return Samples(*tensors)


def rows_of(samples: Samples, rows: Tensor) -> Samples:
    return Samples(samples.values[rows], samples.observed[rows], samples.codes[rows], samples.numbers[rows])


def hidden(samples: Samples, mask: Tensor) -> Samples:
    """The same samples without the entries where ``mask`` is True."""
    seen = samples.observed & ~mask
    return Samples(samples.values * seen, seen, samples.codes, samples.numbers)


def design(samples: Samples, levels: Sequence[int]) -> Tensor:
    """Ones, indicators of the levels (none for an unknown one), continuous covariates: ``(n, c)``."""
    parts = [samples.values.new_ones(len(samples.values), 1)]
    parts += [_members(samples, column, n) for column, n in enumerate(levels)]
    return torch.cat([*parts, samples.numbers], dim=1)


def _members(samples: Samples, column: int, n: int) -> Tensor:
    """1 where a sample is of a level of a covariate, ``(n, levels)``."""
    return (samples.codes[:, column, None] == torch.arange(n, device=samples.codes.device)).to(samples.values)


@dataclass
class Linear:
    """The fitted linear part: factor model, filled reference and what of it was observed, residual correlation."""

    factors: kriging.FactorModel
    levels: tuple[int, ...]
    reference: Tensor
    observed: Tensor
    codes: Tensor
    importance: Tensor
    precision: Tensor
    floor: float
    strength: float
    residual_sd: Tensor
    partners: Tensor

    @classmethod
    def fit(cls, samples: Samples, levels: tuple[int, ...], rng: np.random.Generator) -> Linear:
        """Factor model and first filling; the rest follows with :meth:`finish`."""
        values, observed = samples.values, samples.observed
        n, g = values.shape
        start = torch.Generator().manual_seed(_random.seed(rng))
        covariates = design(samples, levels)
        factors = kriging.FactorModel.fit(values, observed, covariates, min(RANK, n // 4, g // 4), start)
        mean, _ = factors.predict(values, observed, covariates)
        precision = factors.noise.rsqrt()
        nothing = torch.zeros(2, 0, dtype=torch.long, device=values.device)
        no_partners = torch.sparse_coo_tensor(nothing, values.new_zeros(0), (g, g), check_invariants=False).coalesce()
        return cls(
            factors,
            levels,
            torch.where(observed, values, mean),
            observed,
            samples.codes,
            _importance(samples, levels),
            precision / precision.mean(),
            1.0,
            STRENGTHS[1],
            values.new_ones(g),
            no_partners,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensors and numbers to be saved."""
        names = ("reference", "observed", "codes", "importance", "precision", "residual_sd")
        tensors = {name: getattr(self, name) for name in names}
        tensors |= {f"factors.{name}": getattr(self.factors, name) for name in ("weights", "second", "noise")}
        tensors |= {"partners.indices": self.partners.indices(), "partners.values": self.partners.values()}
        return tensors, {"floor": self.floor, "strength": self.strength, "rank": self.factors.rank}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, float], levels: tuple[int, ...]) -> Linear:
        """The reverse of :meth:`state`."""
        weights, second, noise = (tensors[f"factors.{name}"] for name in ("weights", "second", "noise"))
        factors = kriging.FactorModel(weights, second, noise, int(numbers["rank"]))
        g = len(factors.noise)
        partners = torch.sparse_coo_tensor(
            tensors["partners.indices"], tensors["partners.values"], (g, g), check_invariants=True
        ).coalesce()
        names = ("reference", "observed", "codes", "importance", "precision", "residual_sd")
        parts: dict[str, Tensor] = {name: tensors[name] for name in names}
        return cls(factors=factors, levels=levels, **parts, floor=numbers["floor"], strength=numbers["strength"], partners=partners)

    def choose(self, query: Samples, own: Tensor | None, truth: Tensor, wanted: Tensor) -> list[dict[str, float]]:
        """Floor and strength by entries that were hidden, on up to 200 samples."""
        some = torch.arange(min(200, len(truth)), device=truth.device)
        few = rows_of(query, some)
        itself, tried = self._itself(few, None if own is None else own[some]), []
        for floor in FLOORS if float(self.importance.sum()) else FLOORS[:1]:
            for strength in STRENGTHS:
                self.floor, self.strength = floor, strength
                error = (self._krige(few, itself) - truth[some])[wanted[some]].square().mean()
                tried.append({"floor": floor, "strength": strength, "mse": float(error)})
        best = min(tried, key=lambda trial: trial["mse"])
        self.floor, self.strength = best["floor"], best["strength"]
        return tried

    def finish(self, samples: Samples, rng: np.random.Generator) -> None:
        """Fill the reference once more, by kriging, which is better at it than the factor model; then find the partners."""
        n = len(samples.values)
        own = torch.arange(n, device=samples.values.device)
        if not samples.observed.all():
            self.reference = torch.where(samples.observed, samples.values, self._krige(samples, self._itself(samples, own)))
        some = torch.from_numpy(rng.permutation(n)[:SUBSET]).to(own.device)
        self._learn_partners(rows_of(samples, some), own[some], rng)

    def _learn_partners(self, samples: Samples, own: Tensor, rng: np.random.Generator) -> None:
        """Residuals of entries that were not shown: one random half of a sample's genes from the other."""
        half, itself = uniform(samples.values, rng) < 0.5, self._itself(samples, own)
        residual = torch.zeros_like(samples.values)
        for part in (half, ~half):
            filled = self._krige(hidden(samples, part), itself)
            residual = torch.where(part & samples.observed, samples.values - filled, residual)
        number = samples.observed.sum(0).clamp(min=1)
        self.residual_sd = (residual.square().sum(0) / number).sqrt().clamp(min=1e-3)
        self.partners = kriging.residual_correlation(residual / self.residual_sd, samples.observed)

    def _krige(self, samples: Samples, itself: Tensor) -> Tensor:
        """Kriging from the rows of the reference that are not the sample itself."""
        prior = kriging.similarity(samples.codes, self.codes, self.importance, self.floor).masked_fill_(itself, 0)
        noise = self.strength * float(self.factors.noise.mean())
        return kriging.krige(self.reference, self.precision, samples.values, samples.observed, prior, noise)

    def _itself(self, samples: Samples, own: Tensor | None) -> Tensor:
        """Which rows of the reference are the sample itself, ``(n, r)``: row ``own[i]`` of sample i, or, where None, what looks like it."""
        rows = torch.arange(len(samples.values), device=samples.values.device)
        found = torch.zeros(len(rows), len(self.reference), dtype=torch.bool, device=rows.device)
        if own is None:
            usable = samples.observed & (self.reference.std(0) > 1e-6)
            for i in range(len(rows)):
                found[i, self._same(samples.values[i], usable[i].nonzero()[:, 0])] = True
        else:
            found[rows, own] = True
        return found

    def _same(self, values: Tensor, genes: Tensor) -> Tensor:
        """Rows of the reference that are this very sample, of which some genes are known: neighbours that knew the answers.

        They agree in all genes observed in both. Where that is so of more samples than can be copies of one, the genes are of a kind
        that says nothing, such as some that few samples express.
        """
        rows = torch.arange(len(self.reference), device=values.device)
        # A few genes rule out nearly all.
        for some in (genes[:: max(1, len(genes) // 64)], genes):
            both = self.observed[rows][:, some]
            agree = ~both | (self.reference[rows][:, some] - values[some]).abs().le(1e-4)
            rows = rows[agree.all(1)]
        enough = self.observed[rows][:, genes].sum(1) >= ENOUGH
        return rows[enough] if int(enough.sum()) <= max(3, len(self.reference) // 100) else rows[:0]

    def predict(self, samples: Samples, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every entry; ``own`` are the rows of the samples in the reference, looked for where None."""
        mean = self._krige(samples, self._itself(samples, own))
        residual = (samples.values - mean) / self.residual_sd * samples.observed
        mean += kriging.from_partners(self.partners, residual, samples.observed) * self.residual_sd
        factors, variance = self.factors.predict(samples.values, samples.observed, design(samples, self.levels))
        few = samples.observed.sum(1) < min(FEW, samples.values.shape[1] // 2)
        return torch.where(few[:, None], factors, mean), variance.sqrt()


def uniform(like: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(like.shape, dtype=np.float32)).to(like.device)


def _importance(samples: Samples, levels: Sequence[int]) -> Tensor:
    """Share of each categorical covariate in what all of them explain alone of the observed values, ``(a,)``."""
    mask = samples.observed.to(samples.values)
    total = float(samples.values.square().sum())
    explained = []
    for column, n in enumerate(levels):
        member = _members(samples, column, n)
        number = (member.T @ mask).clamp(min=1)
        sums = member.T @ samples.values
        # What random groups of this number would explain is taken off.
        chance = float(mask.sum(0).gt(0).sum()) * (n - 1)
        explained.append(max(0.0, (float((sums.square() / number).sum()) - chance) / max(total, 1e-12)))
    out = samples.values.new_tensor(explained)
    return out / out.sum() if explained and out.sum() > 0.01 else torch.zeros_like(out)
