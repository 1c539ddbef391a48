"""The linear part of the bulk methods against dense algebra and planted structure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scimpute.models import sample_regression


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed))


# Factor model


def planted(seed: int, n: int = 150, g: int = 60, rank: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised values of low rank with two groups and a little noise; 40% not observed; covariates."""
    group = (torch.arange(n) % 2).float()
    values = normal(n, rank, seed=seed) @ normal(rank, g, seed=seed + 1) + 3 * group[:, None] * normal(1, g, seed=seed + 2)
    values = (values - values.mean(0)) / values.std(0) + 0.2 * normal(n, g, seed=seed + 3)
    covariates = torch.stack([torch.ones(n), group - 0.5], dim=1)
    return values, uniform(n, g, seed=seed + 4) < 0.6, covariates


def r2(found: Tensor, truth: Tensor, wanted: Tensor) -> float:
    """Against zero, the mean of every gene."""
    return float(1 - (found - truth)[wanted].square().sum() / truth[wanted].square().sum())


@pytest.mark.parametrize("seed", [0, 100, 200])
def test_factor_model_recovers_hidden_entries(seed):
    values, observed, covariates = planted(seed)
    model = sample_regression.FactorModel.fit(values * observed, observed, covariates, 4, seeded())
    mean, variance = model.predict(values * observed, observed, covariates)
    assert r2(mean, values, ~observed) > 0.8
    # The spread it states is that of its errors.
    ratio = (mean - values)[~observed].square() / variance[~observed]
    assert 0.7 < ratio.mean() < 1.5
    torch.testing.assert_close(model.noise.mean(), torch.tensor(0.04), atol=0.03, rtol=0)


@pytest.mark.parametrize("seed", [0, 100, 200])
def test_spare_factors_do_little_harm(seed):
    values, observed, covariates = planted(seed)
    found = [
        sample_regression.FactorModel.fit(values * observed, observed, covariates, rank, seeded()).predict(
            values * observed, observed, covariates
        )[0]
        for rank in (4, 20)
    ]
    assert r2(found[1], values, ~observed) > r2(found[0], values, ~observed) - 0.05


def test_a_sample_without_genes_is_the_effect_of_its_covariates():
    values, observed, covariates = planted(0)
    model = sample_regression.FactorModel.fit(values * observed, observed, covariates, 4, seeded())
    mean, variance = model.predict(torch.zeros(2, 60), torch.zeros(2, 60, dtype=torch.bool), covariates[:2])
    torch.testing.assert_close(mean, covariates[:2] @ model.weights[:, 4:].T, atol=1e-5, rtol=1e-5)
    groups = torch.stack([values[covariates[:, 1] == covariates[i, 1]].mean(0) for i in range(2)])
    assert torch.corrcoef(torch.stack([mean.flatten(), groups.flatten()]))[0, 1] > 0.97
    full = model.predict(values, torch.ones_like(observed), covariates)[1]
    assert (variance.mean(0) > full.mean(0)).all()


def test_latent_factors_are_the_posterior():
    """With W known exactly: the normal equations of each sample."""
    weights, noise = normal(12, 3, seed=1), uniform(12, seed=2) + 0.5
    second = weights[:, :, None] * weights[:, None, :]
    model = sample_regression.FactorModel(weights, second, noise, 2)
    observed, covariates = uniform(5, 12, seed=3) < 0.7, torch.ones(5, 1)
    values = normal(5, 12, seed=4) * observed
    mean, spread = model.latent(values, observed, covariates)
    for i in range(5):
        w, s = weights[observed[i]], noise[observed[i]]
        covariance = torch.linalg.inv(w[:, :2].T @ (w[:, :2] / s[:, None]) + torch.eye(2))
        torch.testing.assert_close(spread[i], covariance, atol=1e-5, rtol=1e-4)
        left = values[i, observed[i]] - w[:, 2]
        torch.testing.assert_close(mean[i], covariance @ (w[:, :2].T @ (left / s)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 1, 500])
def test_rank_is_cut_to_the_data(rank):
    values, observed, covariates = (part[:12] for part in planted(0))
    model = sample_regression.FactorModel.fit(values[:, :8] * observed[:, :8], observed[:, :8], covariates, rank, seeded())
    assert model.rank == max(1, min(rank, 7))
    assert torch.isfinite(model.predict(values[:, :8], observed[:, :8], covariates)[0]).all()


# Similarity


def test_similarity_by_hand():
    codes, reference = torch.tensor([[0, 1], [2, -1]]), torch.tensor([[0, 1], [0, 0], [2, 1], [1, 0]])
    found = sample_regression.similarity(codes, reference, torch.tensor([0.75, 0.25]), 0.2)
    expected = torch.tensor([[1.0, 0.2 + 0.8 * 0.75, 0.2 + 0.8 * 0.25, 0.2], [0.2, 0.2, 0.2 + 0.8 * 0.75, 0.2]])
    torch.testing.assert_close(found, expected)
    assert (sample_regression.similarity(codes, reference, torch.zeros(2), 0.2) == 1).all()
    assert (sample_regression.similarity(codes[:, :0], reference[:, :0], torch.zeros(0), 0.2) == 1).all()


# Regression on samples


def regression_example(n: int = 20, g: int = 9, q: int = 4) -> dict[str, Tensor]:
    observed = uniform(q, g, seed=3) < 0.6
    return {
        "reference": normal(n, g, seed=1),
        "precision": uniform(g, seed=2) + 0.5,
        "values": normal(q, g, seed=4) * observed,
        "observed": observed,
        "prior": uniform(q, n, seed=5) + 0.1,
    }


def dense_regression(reference: Tensor, precision: Tensor, values: Tensor, observed: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """The formula of the docstring, on the side of the genes, in double precision; far samples get a prior of zero."""
    out = []
    reference, precision, values, prior = (part.double() for part in (reference, precision, values, prior))
    for i in range(len(values)):
        allowed = prior[i]
        genes, root = observed[i], precision[observed[i]].sqrt()
        distance = ((reference[:, genes] - values[i, genes]).square() * root.square()).sum(1)
        distance[allowed == 0] = torch.inf
        near = distance.argsort()[: sample_regression.NEIGHBOURS]
        a, t = reference[near][:, genes] * root, torch.diag(allowed[near])
        y = torch.linalg.solve(a.T @ t @ a + ridge * len(near) * torch.eye(len(root)).double(), root * values[i, genes])
        out.append((t @ a @ y) @ reference[near])
    return torch.stack(out).float()


@pytest.mark.parametrize("ridge", [0.01, 0.5])
def test_regression_is_the_formula(ridge):
    example = regression_example()
    found = sample_regression.regress_on_samples(**example, ridge=ridge)
    torch.testing.assert_close(found, dense_regression(**example, ridge=ridge), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("n", [20, sample_regression.NEIGHBOURS, sample_regression.NEIGHBOURS + 1, sample_regression.NEIGHBOURS + 150])
def test_regression_never_uses_a_row_with_a_prior_of_zero(n):
    example = regression_example(n=n)
    own = torch.tensor([3, 0, 7, 7])
    example["prior"][torch.arange(4), own] = 0
    found = sample_regression.regress_on_samples(**example, ridge=0.1)
    torch.testing.assert_close(found, dense_regression(**example, ridge=0.1), atol=1e-3, rtol=1e-3)
    for i, row in enumerate(own):
        changed = example["reference"].clone()
        changed[row] = 100 * normal(9, seed=9)
        again = sample_regression.regress_on_samples(**example | {"reference": changed}, ridge=0.1)
        torch.testing.assert_close(again[i], found[i], atol=1e-5, rtol=1e-5)


def test_only_the_nearest_samples_count_where_there_are_many():
    example = regression_example(n=sample_regression.NEIGHBOURS + 150)
    found = sample_regression.regress_on_samples(**example, ridge=0.1)
    torch.testing.assert_close(found, dense_regression(**example, ridge=0.1), atol=1e-3, rtol=1e-3)
    far = example["reference"] + 0
    far[5] = 1e3
    without = torch.cat([far[:5], far[6:]])
    fewer = example | {"reference": without, "prior": torch.cat([example["prior"][:, :5], example["prior"][:, 6:]], dim=1)}
    torch.testing.assert_close(
        sample_regression.regress_on_samples(**example | {"reference": far}, ridge=0.1),
        sample_regression.regress_on_samples(**fewer, ridge=0.1),
        atol=1e-4,
        rtol=1e-3,
    )


def test_regression_of_many_samples_is_that_of_each():
    example = regression_example(q=300)
    example["prior"][torch.arange(300), torch.arange(300) % 20] = 0
    whole = sample_regression.regress_on_samples(**example, ridge=0.1)
    for i in (0, 255, 256, 299):
        part = example | {name: example[name][i : i + 1] for name in ("values", "observed", "prior")}
        torch.testing.assert_close(sample_regression.regress_on_samples(**part, ridge=0.1)[0], whole[i])


def test_regression_of_a_sample_without_genes_is_the_mean():
    example = regression_example(q=2)
    example["observed"][0] = False
    example["values"] = example["values"] * example["observed"]
    assert (sample_regression.regress_on_samples(**example, ridge=0.1)[0] == 0).all()


# Residuals of correlated genes


def test_residual_correlation_finds_what_goes_together():
    n, g = 400, 30
    noise = normal(n, g, seed=1)
    noise[:, 1] = 0.8 * noise[:, 0] + 0.6 * noise[:, 1]
    noise[:, 3] = -0.8 * noise[:, 2] + 0.6 * noise[:, 3]
    noise /= noise.std(0)
    observed = uniform(n, g, seed=2) < 0.8
    found = sample_regression.residual_correlation(noise * observed, observed).to_dense()
    torch.testing.assert_close(found, found.T)
    assert (found.diagonal() == 0).all()
    assert 0.4 < found[0, 1] < 0.8
    assert -0.8 < found[2, 3] < -0.4
    assert (found != 0).sum() <= 4 + 0.02 * g * g


@pytest.mark.parametrize("seed", range(3))
def test_residual_correlation_of_noise_is_almost_empty(seed):
    noise = normal(200, 50, seed=seed)
    found = sample_regression.residual_correlation(noise, torch.ones(200, 50, dtype=torch.bool)).to_dense()
    assert (found != 0).float().mean() < 0.01


def test_residual_correlation_by_hand():
    residual = normal(30, 4, seed=1)
    residual[:, 1] = residual[:, 0]
    observed = torch.ones(30, 4, dtype=torch.bool)
    observed[:10, 1] = False
    found = sample_regression.residual_correlation(residual * observed, observed).to_dense()
    raw = (residual[10:, 0] * residual[10:, 1]).mean()
    torch.testing.assert_close(found[0, 1], (raw - 3 / 20**0.5).clamp(min=0))


def test_residual_correlation_does_not_depend_on_its_blocks():
    """More genes than are worked on at a time."""
    residual = normal(12, 1100, seed=1)
    residual[:, 1050] = residual[:, 3]
    residual *= 2  # beyond what a correlation can be, so that the threshold leaves something
    found = sample_regression.residual_correlation(residual, torch.ones(12, 1100, dtype=torch.bool))
    dense = residual.T @ residual / 12
    expected = dense.sign() * (dense.abs() - 3 / 12**0.5).clamp(min=0)
    expected.fill_diagonal_(0)
    torch.testing.assert_close(found.to_dense(), expected, atol=1e-5, rtol=1e-5)


def sparse_correlation(g: int) -> Tensor:
    """Pairs and triples."""
    dense = torch.zeros(g, g)
    for i, j, value in ((0, 1, 0.7), (2, 3, -0.6), (4, 5, 0.5), (5, 6, 0.4), (4, 6, 0.3)):
        dense[i, j] = dense[j, i] = value
    return dense


def test_predicted_residuals_are_the_dense_solve():
    dense = sparse_correlation(10)
    observed = uniform(6, 10, seed=3) < 0.5
    residual = normal(6, 10, seed=4)
    found = sample_regression.predict_residuals(dense.to_sparse_coo().coalesce(), residual * observed, observed)
    for i in range(6):
        o, h = observed[i], ~observed[i]
        # The diagonal is not stored: the 2 holds it.
        expected = dense[h][:, o] @ torch.linalg.solve(dense[o][:, o] + 2 * torch.eye(int(o.sum())), residual[i, o])
        torch.testing.assert_close(found[i, h], expected, atol=1e-4, rtol=1e-4)
        assert (found[i, o] == 0).all()


def test_predicted_residuals_ignore_residuals_that_are_not_observed():
    dense = sparse_correlation(10).to_sparse_coo().coalesce()
    observed = uniform(6, 10, seed=3) < 0.5
    residual = normal(6, 10, seed=4)
    torch.testing.assert_close(
        sample_regression.predict_residuals(dense, residual, observed),
        sample_regression.predict_residuals(dense, residual * observed, observed),
    )


def test_predicted_residuals_of_nothing_are_nothing():
    empty = torch.zeros(10, 10).to_sparse_coo().coalesce()
    for observed in (torch.ones(3, 10, dtype=torch.bool), torch.zeros(3, 10, dtype=torch.bool)):
        for correlation in (empty, sparse_correlation(10).to_sparse_coo().coalesce()):
            assert (sample_regression.predict_residuals(correlation, normal(3, 10) * observed, observed) == 0).all()


def test_predicted_residuals_of_a_matrix_that_is_not_positive_stay_finite():
    dense = torch.full((10, 10), -3.0).fill_diagonal_(0)
    observed = uniform(6, 10, seed=3) < 0.6
    assert torch.isfinite(sample_regression.predict_residuals(dense.to_sparse_coo().coalesce(), normal(6, 10) * observed, observed)).all()
