"""From rates to imputed values and standard deviations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scimpute._counts.output import Imputed, Output, finish
from scimpute._counts.rates import RateMoments, Rates
from scimpute.models.posterior import Prior

SHARE, SPREAD, THETA = 1e-2, 0.1, 4.0
"""Rate of every gene, its standard deviation over repeats as a part of it, and inverse dispersion."""


def imputed(counts: np.ndarray, size: np.ndarray, *, own: bool = False, posterior: bool = True, sd: bool = True) -> Imputed:
    """Values of cells with the same rate of every gene, which two repeats agree on but for a tenth."""
    moments = RateMoments(*counts.shape, spread=sd)
    for repeat, step in enumerate((1 - SPREAD / 2**0.5, 1 + SPREAD / 2**0.5)):
        moments.add(slice(None), torch.full(counts.shape, SHARE * step), repeat)
    in_own_batch = None
    if own:
        in_own_batch = RateMoments(*counts.shape, spread=False)
        in_own_batch.add(slice(None), torch.full(counts.shape, SHARE / 2), 0)
    n_genes = counts.shape[1]
    prior = Prior(torch.full((n_genes,), THETA), torch.full((n_genes,), float(np.median(size) * SHARE)))
    rates = Rates(moments, in_own_batch, 2, prior, torch.ones(n_genes, dtype=torch.bool))
    output = Output(posterior, "counts", "all", sd=sd)
    whole = sp.csr_matrix(counts.astype(np.float32))
    return finish(rates, whole, size, np.arange(n_genes), output, expressed_above=None, zeros_missing=False)


def of_gamma(counts: np.ndarray, mu: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the Gamma posterior."""
    mean = (counts + THETA) / (1 + THETA / mu)
    slope = mean * THETA / mu / ((1 + THETA / mu) * mu)
    return mean, np.sqrt(mean / (1 + THETA / mu) + np.square(slope * spread * mu))


@pytest.mark.parametrize("depth", [500.0, 1e21, 1e38])
def test_values_of_any_library_size(depth):
    """The square of a library size of 1e20 is beyond float32, its values and standard deviations are not."""
    size = np.array([depth, depth / 4, depth])
    counts = np.round(size[:, None] * np.array([[0, 0, 0.5], [1e-2, 0, 0], [0, 0.1, 0]]))
    mu = np.repeat(SHARE * size[:, None], 3, axis=1)
    found, (mean, sd) = imputed(counts, size), of_gamma(counts, mu, SPREAD)
    np.testing.assert_allclose(found.values, mean, rtol=1e-5)
    np.testing.assert_allclose(found.sd, sd, rtol=1e-5)
    without = imputed(counts, size, sd=False)
    assert without.sd is None
    np.testing.assert_array_equal(without.values, found.values)


@pytest.mark.parametrize("depth", [500.0, 1e21])
def test_the_target_batch_gets_the_ratio_of_the_own_batch(depth):
    size, counts = np.array([depth, depth]), np.round(depth * np.array([[0, 0.1], [0.02, 0]]))
    found = imputed(counts, size, own=True)
    mean, sd = of_gamma(counts, np.full((2, 2), SHARE * depth / 2), 0.0)
    np.testing.assert_allclose(found.values, 2 * mean, rtol=1e-5)
    np.testing.assert_allclose(found.sd, np.hypot(2 * sd, SPREAD * 2 * mean), rtol=1e-5)


@pytest.mark.parametrize("depth", [500.0, 1e21])
def test_without_the_posterior_the_prior_is_the_uncertainty(depth):
    found = imputed(np.zeros((2, 2)), np.array([depth, depth]), posterior=False)
    np.testing.assert_allclose(found.values, SHARE * depth, rtol=1e-6)
    np.testing.assert_allclose(found.sd, SHARE * depth * np.hypot(THETA**-0.5, SPREAD), rtol=1e-5)


@pytest.mark.parametrize("posterior", [True, False])
def test_a_cell_without_a_molecule_gets_zeros(posterior):
    found = imputed(np.zeros((2, 2)), np.array([0.0, 100.0]), posterior=posterior)
    assert (found.values[0] < 1e-9).all()
    assert (found.values[1] > 0.1).all()
    assert np.isfinite(found.sd).all()
