"""Empirical Bayes, against scipy and naive loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gammaln

from scimpute.models.posterior import GRID, choose_sizes, heldout_deviance, marginal_deviance, mean_and_variance


def drawn(n: int, theta: np.ndarray, mean: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, held-out counts at a ninth of the depth, and their prior means."""
    rng = np.random.default_rng(seed)
    mu = mean * rng.lognormal(0, 0.5, size=(n, len(mean)))
    rate = mu * rng.gamma(theta, 1 / theta, size=mu.shape)
    return rng.poisson(rate), rng.poisson(rate / 9), mu


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(array, dtype=np.float32)) for array in arrays]


@pytest.fixture
def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return drawn(25, np.array([0.2, 1.0, 5.0, 100.0]), np.array([0.05, 0.5, 3.0, 40.0]))


def test_mean_and_variance_are_those_of_the_gamma_posterior(example):
    counts, _, mu = example
    theta = np.array([0.1, 1.0, 20.0, 300.0])
    mean, variance = mean_and_variance(*tensors(counts, mu, theta, np.zeros(1)))
    # Prior Gamma(theta, rate theta / mu), one Poisson count.
    posterior = stats.gamma(counts + theta, scale=1 / (theta / mu + 1))
    np.testing.assert_allclose(mean, posterior.mean(), rtol=1e-5)
    np.testing.assert_allclose(variance, posterior.var(), rtol=1e-5)


def test_spread_of_the_prediction_enters_by_the_slope(example):
    counts, _, mu = example
    theta, spread = np.array([0.1, 1.0, 20.0, 300.0]), mu**2 * 0.01
    _, without = mean_and_variance(*tensors(counts, mu, theta, np.zeros(1)))
    _, with_spread = mean_and_variance(*tensors(counts, mu, theta, spread))

    def mean(value: np.ndarray) -> np.ndarray:
        return (counts + theta) / (1 + theta / value)

    slope = (mean(mu * 1.0001) - mean(mu * 0.9999)) / (mu * 0.0002)
    np.testing.assert_allclose(with_spread.double() - without.double(), slope**2 * spread, rtol=2e-3, atol=1e-5)


def test_limits_of_the_size():
    counts, mu = tensors(np.array([[0, 3, 9]]), np.array([[2.0, 2.0, 2.0]]))
    own, _ = mean_and_variance(counts, mu, torch.full((3,), 1e-6), torch.zeros(()))
    prior, _ = mean_and_variance(counts, mu, torch.full((3,), 1e6), torch.zeros(()))
    torch.testing.assert_close(own, counts, atol=1e-4, rtol=0)
    torch.testing.assert_close(prior, mu, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sizes", [GRID, GRID[::3]], ids=["all", "some"])
def test_heldout_deviance_against_loops(example, sizes):
    counts, target, mu = example
    ratio = np.random.default_rng(1).uniform(0.05, 0.2, size=len(counts))
    got = heldout_deviance(*tensors(counts, mu, target, ratio), sizes)
    expected = np.zeros((len(sizes), 4))
    for t, theta in enumerate(sizes.double().tolist()):
        for i, j in np.ndindex(*counts.shape):
            rate = (counts[i, j] + theta) / (1 + theta / mu[i, j]) * ratio[i]
            expected[t, j] += rate - target[i, j] * np.log(rate)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_marginal_deviance_is_the_negative_binomial(example):
    counts, _, mu = example
    got = marginal_deviance(*tensors(counts, mu))
    theta = GRID.double().numpy()[:, None, None]
    logpmf = stats.nbinom.logpmf(counts, theta, theta / (theta + mu)).sum(1)
    np.testing.assert_allclose(got, -logpmf - gammaln(counts + 1).sum(0), rtol=1e-4, atol=5e-3)


def test_marginal_deviance_is_precise_for_many_small_counts():
    """A rounding of lgamma that is the same in every entry would add up over cells and decide the size."""
    mu = np.random.default_rng(0).uniform(0.3, 0.7, size=(2000, 20))
    got = marginal_deviance(*tensors(np.ones((2000, 20)), mu)).double().sum(1).numpy()
    theta = GRID.double().numpy()[:, None, None]
    expected = -stats.nbinom.logpmf(1, theta, theta / (theta + mu)).sum((1, 2))
    np.testing.assert_allclose(np.diff(got), np.diff(expected), atol=0.5)


def test_zero_prediction_is_finite():
    counts, mu, target, ratio = tensors(np.array([[1, 0]]), np.zeros((1, 2)), np.array([[1, 0]]), np.array([0.1]))
    for value in (*mean_and_variance(counts, mu, torch.ones(2), torch.zeros(1, 2)), heldout_deviance(counts, mu, target, ratio)):
        assert torch.isfinite(value).all()
    assert torch.isfinite(marginal_deviance(counts, mu)).all()


@pytest.mark.parametrize("seed", range(3))
def test_choose_sizes_recovers_planted_sizes(seed):
    theta = np.repeat([0.3, 2.0, 30.0], 20)
    counts, target, mu = drawn(400, theta, np.full(60, 5.0), seed)
    arguments = tensors(counts, mu, target, np.full(400, 1 / 9))
    marginal, heldout = marginal_deviance(*arguments[:2]), heldout_deviance(*arguments)
    # Every size in one abundance bin: only the genes' own counts can tell them apart.
    sizes = choose_sizes(marginal, heldout, torch.full((60,), 1 / 60), n_bins=1).numpy()
    error = np.log(sizes / theta)
    assert np.abs(np.median(error.reshape(3, 20), axis=1)).max() < 1.0
    common = np.log(float(GRID[marginal.sum(1).argmin()]) / theta)
    assert np.abs(error).mean() < 0.4 * np.abs(common).mean()


def test_rare_genes_take_the_size_of_their_bin():
    rare, common = 40, 40
    theta = np.repeat([0.5, 50.0], [rare, common])
    counts, target, mu = drawn(500, theta, np.repeat([0.02, 8.0], [rare, common]))
    arguments = tensors(counts, mu, target, np.full(500, 1 / 9))
    marginal, heldout = marginal_deviance(*arguments[:2]), heldout_deviance(*arguments)
    share = torch.from_numpy(np.repeat([0.02, 8.0], [rare, common]).astype(np.float32))
    alone = GRID[marginal.argmin(0)].log().numpy()
    sizes = choose_sizes(marginal, heldout, share, n_bins=2).log().numpy()
    # Alone, a gene with ten molecules may have any size; with its bin all are alike.
    assert sizes[:rare].std() < 0.5 * alone[:rare].std()
    assert sizes[:rare].max() < sizes[rare:].min()


def test_heldout_molecules_move_a_bin_as_one():
    """The training counts say 1000, the held-out ones that all is a factor of ten too large."""
    log_grid = GRID.log()
    marginal = 1e4 * (log_grid[:, None] - torch.tensor([100.0, 300.0, 1000.0]).log()).square()
    heldout = 1e4 * (log_grid[:, None] - torch.tensor([10.0, 30.0, 100.0]).log()).square()
    before = choose_sizes(marginal, marginal, torch.full((3,), 1 / 3), n_bins=1)
    after = choose_sizes(marginal, heldout, torch.full((3,), 1 / 3), n_bins=1)
    np.testing.assert_allclose((before / after).log(), float(before[0].log() - after[0].log()), rtol=1e-4)
    assert 5 < float(before[0] / after[0]) < 20
