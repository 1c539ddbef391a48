"""Empirical Bayes, against scipy and a plain quadrature in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import integrate, stats
from scipy.special import gammaln

from scimpute.models.posterior import LEAST, MAX_LOG_RATIO, TABLE_CELLS, TOLERANCE, NonZero, Posterior, Prior
from scimpute.models.quadrature import LOG_THETA, NODES, WEIGHTS

MANY = 10 * TABLE_CELLS
"""Cells enough for a table."""


def prior(theta: np.ndarray, slope: float = 0.0, spread: float = 0.0, reference: float | np.ndarray = 1.0) -> Prior:
    theta = np.asarray(theta, dtype=np.float32)
    return Prior(torch.from_numpy(theta), torch.from_numpy(np.full_like(theta, reference)), slope, spread)


def posterior_of(
    counts: np.ndarray, mu: np.ndarray, given: Prior, mu_variance: np.ndarray | None = None, cells: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every entry."""
    step = Posterior(given, cells, repeats=mu_variance is not None)
    log_mu = torch.from_numpy(np.log(np.maximum(mu, LEAST)).astype(np.float32))
    relative = None if mu_variance is None else torch.from_numpy((np.sqrt(mu_variance) / mu).astype(np.float32))
    mean, sd = step(log_mu, NonZero.of(sp.csr_matrix(np.asarray(counts, dtype=np.float32))), relative)
    assert sd is not None
    return mean.numpy() * np.float64(mu), np.square(sd.numpy() * np.float64(mu))


def quadrature(counts: np.ndarray, mu: np.ndarray, given: Prior, mu_variance: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The same in float64, without a table."""
    counts, mu = np.float64(counts), np.float64(mu)
    ratio = np.log(mu / given.reference.double().numpy()).clip(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    centre = np.log(given.theta.double().numpy()) + given.slope * ratio
    nodes, weights = (np.array(NODES), np.array(WEIGHTS)) if given.spread else (np.zeros(1), np.ones(1))
    theta = np.exp((centre + given.spread * nodes[:, None, None]).clip(*LOG_THETA))
    fit = gammaln(counts + theta) - gammaln(theta) - counts * np.log(mu + theta) - theta * np.log1p(mu / theta)
    share = np.exp(fit - fit.max(0)) * weights[:, None, None]
    share /= share.sum(0)
    each = (counts + theta) / (1 + theta / mu)
    mean = (share * each).sum(0)
    variance = (share * (np.square(each - mean) + each / (1 + theta / mu))).sum(0)
    slope = (share * each * theta / mu / ((1 + theta / mu) * mu)).sum(0)
    return mean, variance + slope**2 * mu_variance


@pytest.fixture
def example() -> tuple[np.ndarray, np.ndarray]:
    """Counts and their predictions."""
    rng = np.random.default_rng(0)
    mu = np.array([0.05, 0.5, 3.0, 40.0]) * rng.lognormal(0, 0.5, size=(25, 4))
    theta = np.array([0.2, 1.0, 5.0, 100.0])
    return rng.poisson(mu * rng.gamma(theta, 1 / theta, size=mu.shape)), mu


def test_with_one_size_a_gene_it_is_the_gamma_posterior(example):
    counts, mu = example
    theta = np.array([0.1, 1.0, 20.0, 300.0])
    mean, variance = posterior_of(counts, mu, prior(theta))
    # Prior Gamma(theta, rate theta / mu), one Poisson count.
    posterior = stats.gamma(counts + theta, scale=1 / (theta / mu + 1))
    np.testing.assert_allclose(mean, posterior.mean(), rtol=1e-5)
    np.testing.assert_allclose(variance, posterior.var(), rtol=1e-4)


@pytest.mark.parametrize(("x", "mu"), [(0, 0.02), (1, 0.02), (4, 0.02), (0, 3.0), (3, 3.0), (12, 3.0), (900, 700.0)])
def test_sizes_that_vary_are_integrated_out(x, mu):
    theta, reference, slope, spread = 2.0, 0.5, 0.6, 0.8
    centre = np.log(theta) + slope * np.log(mu / reference)

    def moment(power: int) -> float:
        def inner(z: float) -> float:
            size = np.exp(centre + spread * z)
            gamma = stats.gamma(x + size, scale=1 / (size / mu + 1))
            value = 1.0 if power == 0 else gamma.mean() if power == 1 else gamma.var() + gamma.mean() ** 2
            return value * stats.nbinom.pmf(x, size, size / (size + mu)) * stats.norm.pdf(z)

        return integrate.quad(inner, -8, 8, epsabs=0, limit=400)[0]

    expected = moment(1) / moment(0)
    mean, variance = posterior_of(np.array([[x]]), np.array([[mu]]), prior([theta], slope, spread, reference))
    # The quadrature has five points.
    assert float(mean[0, 0]) == pytest.approx(expected, rel=0.05)
    assert float(variance[0, 0]) == pytest.approx(moment(2) / moment(0) - expected**2, rel=0.15)


def drawn(seed: int, cells: int) -> tuple[np.ndarray, Prior]:
    """Predictions of 30 genes far and near their references, and a prior with any parameters."""
    rng = np.random.default_rng(seed)
    reference = rng.lognormal(0, 3, 30)
    slope, spread = rng.uniform(-1.5, 1.5), rng.uniform(0.02, 3)
    given = prior(np.exp(rng.uniform(*LOG_THETA, 30)), slope, spread, reference)
    return reference * np.exp(rng.uniform(-11, 9, (cells, 30))), given


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_zeros_from_a_table_are_precise(seed, repeats):
    mu, given = drawn(seed, 3000)
    variance = mu**2 * np.random.default_rng(seed).exponential(0.1, mu.shape) if repeats else None
    found = posterior_of(np.zeros_like(mu), mu, given, variance, MANY)
    expected = quadrature(np.zeros_like(mu), mu, given, 0.0 if variance is None else variance)
    errors = abs(found[0] / expected[0] - 1), abs(np.sqrt(found[1] / expected[1]) - 1)
    for error in errors:
        assert error.max() < TOLERANCE
        assert np.quantile(error, 0.99) < 3e-4


@pytest.mark.parametrize("cells", [0, MANY], ids=["exact", "table"])
@pytest.mark.parametrize("seed", range(4))
def test_counts_of_any_size_among_zeros(seed, cells):
    mu, given = drawn(seed, 200)
    rng = np.random.default_rng(seed)
    powers = rng.choice([0.0, 0.0, 0.3, 1.0, 1.2, 2.0, 5.0, 8.0, 10.0], size=mu.shape)
    counts = np.float32(rng.integers(0, 2, mu.shape) * np.floor(10**powers)).astype(np.float64)
    counts[:, 0] = 0
    variance = mu**2 * 0.04
    found, expected = posterior_of(counts, mu, given, variance, cells), quadrature(counts, mu, given, variance)
    np.testing.assert_allclose(found[0], expected[0], rtol=TOLERANCE)
    np.testing.assert_allclose(found[1], expected[1], rtol=2 * TOLERANCE)


def test_a_table_is_used(monkeypatch):
    """Else it would cost, and save nothing."""
    rng = np.random.default_rng(0)
    reference = rng.lognormal(-3, 1.5, 200)
    mu, given = reference * rng.lognormal(0, 1, (100, 200)), prior(rng.lognormal(1, 1, 200), -0.5, 2.5, reference)
    exact, calls = Posterior._exact, []

    def spy(self, log_mu, *args, **kwargs):
        calls.append(len(log_mu))
        return exact(self, log_mu, *args, **kwargs)

    monkeypatch.setattr(Posterior, "_exact", spy)
    posterior_of(np.zeros_like(mu), mu, given, cells=MANY)
    assert sum(calls) < 0.05 * mu.size


def test_without_standard_deviations_the_mean_is_the_same(example):
    counts, mu = example
    given = prior([0.1, 1.0, 20.0, 300.0], 0.5, 1.0)
    log_mu, own = torch.from_numpy(np.log(mu).astype(np.float32)), NonZero.of(sp.csr_matrix(counts.astype(np.float32)))
    for cells in (0, MANY):
        mean, none = Posterior(given, cells, sd=False)(log_mu, own)
        assert none is None
        torch.testing.assert_close(mean, Posterior(given, cells)(log_mu, own)[0], rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("cells", [0, MANY], ids=["exact", "table"])
def test_a_prediction_that_is_not_a_number_spoils_no_other(cells):
    mu, counts = np.full((2, 3), 0.5), np.array([[0, 1, 0], [0, 0, 20]])
    expected = posterior_of(counts, mu, prior([1.0] * 3, 0.5, 1.0), cells=cells)
    mu[0, 1] = mu[1, 0] = np.nan
    for found, value in zip(posterior_of(counts, mu, prior([1.0] * 3, 0.5, 1.0), cells=cells), expected, strict=True):
        assert np.isnan(found[[0, 1], [1, 0]]).all()
        np.testing.assert_allclose(found[~np.isnan(mu)], value[~np.isnan(mu)], rtol=1e-6)


def test_variance_before_the_counts_are_seen():
    theta, spread = 2.0, 0.5
    given = prior([theta, theta], 1.0, spread, reference=0.5)
    mu = torch.tensor([[0.5, 2.0]])
    # E[1 / size] of a log-normal size, which is four times as large at four times the reference.
    expected = np.exp(spread**2 / 2) / theta / torch.tensor([[1.0, 4.0]])
    torch.testing.assert_close(given.relative_sd(mu.log()).square(), expected, rtol=1e-3, atol=0)


def test_a_stray_molecule_is_believed_less_than_three():
    """With sizes that vary, the share of the own count rises with the count; with one size it is the same for all counts."""
    counts, mu = np.array([[1], [3], [6]]), np.full((3, 1), 0.05)

    def trust(given: Prior) -> np.ndarray:
        return ((posterior_of(counts, mu, given)[0] - mu) / (counts - mu)).ravel()

    one, varying = trust(prior([5.0])), trust(prior([5.0], spread=2.0))
    np.testing.assert_allclose(one, one[0], rtol=1e-5)
    assert varying[0] < varying[1] < varying[2]


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_spread_of_the_prediction_enters_by_the_slope(example, spread):
    counts, mu = example
    given, variance = prior([0.1, 1.0, 20.0, 300.0], spread=spread), mu**2 * 0.01
    got = posterior_of(counts, mu, given, variance)[1] - posterior_of(counts, mu, given)[1]
    up, down = (quadrature(counts, mu * factor, given)[0] for factor in (1.0001, 0.9999))
    slope = (up - down) / (mu * 0.0002)
    if spread:
        # What the data say of the size changes with the prediction, too; that is left out.
        assert 0.5 < got.sum() / (slope**2 * variance).sum() < 2
    else:
        np.testing.assert_allclose(got, slope**2 * variance, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("spread", [0.0, 2.5])
def test_limits_of_the_size(spread):
    counts, mu = np.array([[0, 3, 9]]), np.array([[2.0, 2.0, 2.0]])
    own, _ = posterior_of(counts, mu, prior([1e-6] * 3, 0.0))
    network, _ = posterior_of(counts, mu, prior([1e6] * 3, 0.0))
    np.testing.assert_allclose(own, counts, atol=5e-3, rtol=0)
    np.testing.assert_allclose(network, mu, atol=1e-4, rtol=0)
    mixed, variance = posterior_of(counts, mu, prior([2.0] * 3, 0.5, spread))
    assert (mixed >= np.minimum(counts, mu)).all()
    assert (mixed <= np.maximum(counts, mu)).all()
    assert (variance > 0).all()


@pytest.mark.parametrize("cells", [0, MANY], ids=["exact", "table"])
def test_predictions_whose_square_no_float_holds(cells):
    given = prior([1.0, 1.0], 0.5, 1.0, 1e18)
    mu, counts = np.array([[1e20, 1e25], [1e33, 1e-12]]), np.array([[0, 1e24], [0, 1e24]])
    found, expected = posterior_of(counts, mu, given, cells=cells), quadrature(counts, mu, given)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    np.testing.assert_allclose(np.sqrt(found[1]), np.sqrt(expected[1]), rtol=1e-3)
