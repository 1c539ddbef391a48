"""The prior of the posterior step, against scipy and naive loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import stats
from scipy.special import gammaln

from scimpute.models.dispersion import (
    GRID,
    OUTER_WEIGHT,
    QUADRATURE_STEPS,
    STEP,
    Sample,
    deviance,
    estimate,
    gene_thetas,
    heldout_deviance,
    marginal_deviance,
)
from scimpute.models.posterior import LEAST, NonZero, Posterior, Prior


def drawn(n: int, theta: np.ndarray, mean: np.ndarray, seed: int = 0, slope: float = 0, spread: float = 0) -> tuple[np.ndarray, ...]:
    """Counts, held-out counts at a ninth of the depth, and their prior means."""
    rng = np.random.default_rng(seed)
    mu = mean * rng.lognormal(0, 0.5, size=(n, len(mean)))
    size = theta * (mu / mean) ** slope * rng.lognormal(0, spread, size=mu.shape) if spread or slope else np.broadcast_to(theta, mu.shape)
    rate = mu * rng.gamma(size, 1 / size)
    return rng.poisson(rate), rng.poisson(rate / 9), mu


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(array, dtype=np.float32)) for array in arrays]


def prior(theta: np.ndarray, slope: float = 0.0, spread: float = 0.0, reference: float = 1.0) -> Prior:
    sizes = torch.as_tensor(np.asarray(theta, dtype=np.float32))
    return Prior(sizes, torch.full_like(sizes, reference), slope, spread)


def posterior_of(counts: torch.Tensor, mu: torch.Tensor, given: Prior) -> torch.Tensor:
    """Posterior mean of every entry."""
    return Posterior(given, sd=False)(mu.clamp(min=LEAST).log(), NonZero.of(sp.csr_matrix(counts.numpy())))[0] * mu


@pytest.fixture
def example() -> tuple[np.ndarray, ...]:
    return drawn(25, np.array([0.2, 1.0, 5.0, 100.0]), np.array([0.05, 0.5, 3.0, 40.0]))


@pytest.mark.parametrize("sizes", [GRID, GRID[::3]], ids=["all", "some"])
def test_heldout_deviance_against_loops(example, sizes):
    counts, target, mu = example
    ratio = np.random.default_rng(1).uniform(0.05, 0.2, size=len(counts))
    got = heldout_deviance(*tensors(counts, mu, target, ratio), sizes)
    for t, theta in enumerate(sizes):
        given = prior(np.full(4, float(theta)), spread=QUADRATURE_STEPS * STEP / 3**0.5)
        rate = posterior_of(*tensors(counts, mu), given).double().numpy() * ratio[:, None]
        np.testing.assert_allclose(got[t], (rate - target * np.log(rate)).sum(1), rtol=1e-3, atol=5e-3)


def test_deviance_against_loops(example):
    _, target, mu = example
    got = deviance(*tensors(mu / 9, target))
    np.testing.assert_allclose(got, (mu / 9 - target * np.log(mu / 9)).sum(1), rtol=1e-4)


def test_marginal_deviance_is_a_mixture_of_negative_binomials(example):
    counts, _, mu = example
    got = marginal_deviance(*tensors(counts, mu, np.ones(len(counts))))
    logs = []
    for place, weight in ((-QUADRATURE_STEPS, OUTER_WEIGHT), (0, 1 - 2 * OUTER_WEIGHT), (QUADRATURE_STEPS, OUTER_WEIGHT)):
        theta = GRID.double().numpy()[:, None, None] * np.exp(place * STEP)
        logs.append(np.log(weight) + stats.nbinom.logpmf(counts, theta, theta / (theta + mu)))
    logpmf = np.logaddexp.reduce(logs).sum(1)
    np.testing.assert_allclose(got, -logpmf - gammaln(counts + 1).sum(0), rtol=1e-4, atol=5e-3)


def test_marginal_deviance_is_precise_for_many_small_counts():
    """A rounding of lgamma that is the same in every entry would add up over cells and decide the size."""
    mu = np.random.default_rng(0).uniform(0.3, 0.7, size=(2000, 20))
    got = marginal_deviance(*tensors(np.ones((2000, 20)), mu, np.ones(2000))).double().sum(1).numpy()
    logs = []
    for place, weight in ((-QUADRATURE_STEPS, OUTER_WEIGHT), (0, 1 - 2 * OUTER_WEIGHT), (QUADRATURE_STEPS, OUTER_WEIGHT)):
        theta = GRID.double().numpy()[:, None, None] * np.exp(place * STEP)
        logs.append(np.log(weight) + stats.nbinom.logpmf(1, theta, theta / (theta + mu)))
    expected = -np.logaddexp.reduce(logs).sum((1, 2))
    np.testing.assert_allclose(np.diff(got), np.diff(expected), atol=0.5)


def test_zero_prediction_is_finite():
    counts, mu, target, ratio = tensors(np.array([[1, 0]]), np.zeros((1, 2)), np.array([[1, 0]]), np.array([0.1]))
    found = posterior_of(counts, mu, prior([1.0, 1.0], 0.5, 1.0))
    for value in (found, heldout_deviance(counts, mu, target, ratio), marginal_deviance(counts, mu, torch.ones(len(counts)))):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("seed", range(3))
def test_gene_thetas_tell_genes_apart(seed):
    theta = np.repeat([0.3, 2.0, 30.0], 20)
    counts, _, mu = drawn(400, theta, np.full(60, 5.0), seed)
    marginal = marginal_deviance(*tensors(counts, mu, np.ones(len(counts))))
    # Every size in one abundance bin: only the genes' own counts can tell them apart.
    sizes = gene_thetas(marginal, torch.full((60,), 1 / 60), n_bins=1).log().numpy().reshape(3, 20)
    middle = np.median(sizes, axis=1)
    # The spread that is assumed widens the distances.
    assert middle[1] - middle[0] == pytest.approx(np.log(2 / 0.3), abs=1.0)
    assert middle[2] - middle[1] == pytest.approx(np.log(15), abs=1.2)
    assert sizes.std(axis=1).max() < 0.9


def test_rare_genes_take_the_size_of_their_bin():
    rare, common = 40, 40
    theta = np.repeat([0.5, 50.0], [rare, common])
    counts, _, mu = drawn(500, theta, np.repeat([0.02, 8.0], [rare, common]))
    marginal = marginal_deviance(*tensors(counts, mu, np.ones(len(counts))))
    share = torch.from_numpy(np.repeat([0.02, 8.0], [rare, common]).astype(np.float32))
    alone = GRID[marginal.argmin(0)].log().numpy()
    sizes = gene_thetas(marginal, share, n_bins=2).log().numpy()
    # Alone, a gene with ten molecules may have any size; with its bin all are alike.
    assert sizes[:rare].std() < 0.5 * alone[:rare].std()
    assert sizes[:rare].max() < sizes[rare:].min()


@pytest.mark.parametrize("number", [150, 20_000], ids=["some", "all"])
def test_a_sample_weighs_as_much_as_all_entries(example, number):
    counts, target, mu = (np.tile(part, (1, 50)) for part in example)
    near = 1e-4 if number >= counts.shape[1] else 0.02
    ratio = np.random.default_rng(1).uniform(0.05, 0.2, size=len(counts))
    sample = Sample.draw(*tensors(counts, mu, target, ratio, np.ones(len(counts))), number)
    value = mu * 0.7 + counts * 0.2
    everything = (value * ratio[:, None]).sum(), (target * np.log(value)).sum()
    found = sample.mu * 0.7 + sample.counts * 0.2
    assert float(sample.rate @ found) == pytest.approx(everything[0], rel=near)
    assert float(sample.hits @ found.log()) == pytest.approx(everything[1], rel=near)
    assert float(sample.hits.sum()) == pytest.approx(target.sum(), rel=1e-4)


def parts(counts, mu, target, pieces: int):
    ratio, weight = np.full(len(counts), 1 / 9), np.ones(len(counts))
    return [tensors(*arrays) for arrays in zip(*(np.array_split(a, pieces) for a in (counts, mu, target, ratio, weight)), strict=True)]


def fitted(counts, target, mu, pieces: int = 3) -> Prior:
    mean = mu.mean(0)
    return estimate(parts(counts, mu, target, pieces), len(counts), *tensors(mean / mean.sum(), mean))


@pytest.mark.parametrize(("slope", "spread"), [(0.0, 0.0), (1.2, 0.0), (0.0, 1.5)])
def test_estimate_finds_what_was_planted(slope, spread):
    rng = np.random.default_rng(0)
    theta, mean = rng.lognormal(0.5, 0.7, 150), rng.lognormal(0.5, 1, 150)
    found = fitted(*(a for a in drawn(900, theta, mean, 1, slope, spread)))
    assert found.slope == pytest.approx(slope, abs=0.3)
    assert (found.spread > 0.9) if spread else (found.spread < 0.7)
    error = found.theta.log().numpy() - np.log(theta)
    assert abs(np.median(error)) < 0.6
    assert np.corrcoef(found.theta.log(), np.log(theta))[0, 1] > 0.8


def test_estimated_prior_predicts_new_molecules_better_than_one_size():
    rng = np.random.default_rng(0)
    theta, mean = rng.lognormal(0.5, 0.7, 150), rng.lognormal(-1, 1, 150)
    counts, target, mu = drawn(900, theta, mean, 1, 0.7, 1.5)
    found = fitted(counts[:600], target[:600], mu[:600])
    x, prediction, new = tensors(counts[600:], mu[600:], target[600:])

    def lost(given: Prior) -> float:
        rate = posterior_of(x, prediction, given) / 9
        return float((rate - new * rate.log()).sum())

    truth = Prior(*tensors(theta, mean), 0.7, 1.5)
    best_single = min(lost(prior(np.full(150, t))) for t in GRID.tolist())
    assert lost(found) < best_single
    assert lost(found) - lost(truth) < 0.2 * (best_single - lost(truth)) + 1.0


def test_heldout_molecules_correct_sizes_of_a_model_that_knows_the_counts():
    """Predictions that were drawn towards the counts leave nothing to vary, by the counts alone."""
    theta = np.full(60, 2.0)
    counts, target, mu = drawn(800, theta, np.full(60, 3.0))
    knowing = mu + 0.5 * (counts - mu).clip(-0.9 * mu)
    marginal = gene_thetas(marginal_deviance(*tensors(counts, knowing, np.ones(len(counts)))), torch.full((60,), 1 / 60))
    honest = fitted(counts, target, mu)
    leaking = fitted(counts, target, knowing)
    assert float(marginal.median()) > 3 * float(honest.theta.median())
    x = torch.from_numpy(counts.astype(np.float32))
    rates = posterior_of(x, *tensors(knowing), leaking) / 9
    naive = posterior_of(x, *tensors(knowing), Prior(marginal, marginal * 0 + 3)) / 9
    new = torch.from_numpy(target.astype(np.float32))
    assert float((rates - new * rates.log()).sum()) <= float((naive - new * naive.log()).sum())


def test_nothing_held_out_leaves_the_prior_of_the_prior():
    counts, _, mu = drawn(30, np.ones(5), np.ones(5))
    found = fitted(counts, np.zeros_like(counts), mu)
    assert torch.isfinite(found.theta).all()
    assert np.isfinite([found.slope, found.spread]).all()


def test_large_counts_cost_no_more_than_small_ones():
    """A table up to the largest count would take 8 TB here."""
    counts, mu = tensors(np.array([[1e12, 3.0, 0.0], [2.0, 9e15, 1.0]]), np.array([[1e12, 2.0, 0.1], [1.0, 8e15, 1.0]]))
    assert torch.isfinite(marginal_deviance(counts, mu, torch.ones(len(counts)))).all()
    assert torch.isfinite(heldout_deviance(counts, mu, counts, torch.tensor([0.1, 0.1]))).all()


def test_a_cell_of_weight_two_is_two_cells(example):
    counts, target, mu = example
    ratio, weight = np.full(len(counts), 0.1), np.where(np.arange(len(counts)) % 3, 1.0, 2.0)
    twice = np.repeat(np.arange(len(counts)), weight.astype(int))
    found, expected = (
        marginal_deviance(*tensors(counts[rows], mu[rows], w)) for rows, w in ((slice(None), weight), (twice, np.ones(len(twice))))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    found, expected = (
        Sample.draw(*tensors(counts[rows], mu[rows], target[rows], ratio[rows], w), 2000)
        for rows, w in ((slice(None), weight), (twice, np.ones(len(twice))))
    )
    for name in ("rate", "hits"):
        assert float(getattr(found, name).sum()) == pytest.approx(float(getattr(expected, name).sum()), rel=1e-4)
