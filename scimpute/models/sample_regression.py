r"""The linear part of the bulk methods: a factor model, regression on samples, residual correlations between genes.

Shapes: n reference samples, g genes, k factors and covariates together, q samples to predict. All values are standardised per
gene. A missing value is 0 in ``values`` and False in ``observed``.

1. *Variational PCA* fills the reference: :math:`x_{ij} \sim N(w_j^\top f_i, \sigma_j^2)`. The vector :math:`f_i` holds latent factors
   and the covariates of the sample. Every column of W has a normal prior with its own variance (Ilin & Raiko 2010).
2. *Regression on samples*: a sample is a weighted sum of its nearest reference samples. Its observed genes find them. The weights
   have normal priors, wider for samples that share its covariates. The sum is the conditional mean of a Gaussian. The covariance
   between genes comes from similar samples.
3. *Residual correlation*: small sets of genes vary together in ways that no common factor sees. So the residuals of the observed
   genes predict the residuals of their few correlated genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 300
SIGNIFICANCE = 3.0
"""Standard errors by which a residual correlation is shrunk towards zero."""


@dataclass
class FactorModel:
    """A fitted variational PCA.

    Attributes
    ----------
    weights
        Mean of W, ``(g, k)``; the last columns belong to the covariates.
    second
        ``E[w_j w_j^T]``, ``(g, k, k)``.
    noise
        Variance of each gene around the model, ``(g,)``.
    rank
        Number of latent factors.
    """

    weights: Tensor
    second: Tensor
    noise: Tensor
    rank: int

    @classmethod
    def fit(
        cls, values: Tensor, observed: Tensor, covariates: Tensor, rank: int, generator: torch.Generator, *, iterations: int = 30
    ) -> FactorModel:
        """Coordinate ascent on the variational bound. Every iteration ends by whitening the latent factors.

        ``covariates`` of shape ``(n, c)`` has a column of ones. An iteration costs ``4 n g k^2 + g k^3 / 3`` operations.
        """
        n, g = values.shape
        mask = observed.to(values)
        rank = max(1, min(rank, n - 1, g - 1))
        k = rank + covariates.shape[1]
        start = torch.randn(g, rank, generator=generator, dtype=torch.float32).to(values.device)
        # Subspace iteration: the leading factors of the data with missing values at their mean.
        for _ in range(3):
            start = torch.linalg.qr(values.T @ (values @ start)).Q
        latent = values @ start
        latent = latent / latent.square().mean(0).sqrt().clamp(min=1e-6)
        spread = values.new_zeros(n, rank, rank)
        one = torch.eye(rank, dtype=values.dtype, device=values.device)
        noise = values.new_full((g,), 0.5)
        prior = values.new_ones(k)
        number = mask.sum(0)
        power = values.square().sum(0)
        model = cls(values.new_zeros(g, k), values.new_zeros(g, k, k), noise, rank)
        for iteration in range(iterations):
            factors = torch.cat([latent, covariates], dim=1)
            outer = factors[:, :, None] * factors[:, None, :]
            outer[:, :rank, :rank] += spread
            moments = (mask.T @ outer.view(n, -1)).view(g, k, k)
            cross = values.T @ factors
            lower = torch.linalg.cholesky(moments / noise[:, None, None] + torch.diag(1 / prior))
            weights = torch.cholesky_solve((cross / noise[:, None])[:, :, None], lower)[:, :, 0]
            second = torch.cholesky_inverse(lower)
            prior = (weights.square().sum(0) + second.diagonal(dim1=1, dim2=2).sum(0) + 1e-3) / g
            second += weights[:, :, None] * weights[:, None, :]
            error = power - 2 * (weights * cross).sum(1) + (moments * second).sum((1, 2))
            noise = ((error + 1) / (number + 2)).clamp(min=1e-3)
            model = cls(weights, second, noise, rank)
            latent, spread = model.latent(values, observed, covariates)
            if iteration < iterations - 1:
                # The factors exclude what covariates explain, so a sample without genes gets the effects of its covariates.
                # The ridge of 5 keeps a level with few samples from absorbing the factors of these samples.
                gram = covariates.T @ covariates + 5 * torch.eye(covariates.shape[1], dtype=torch.float32, device=values.device)
                latent = latent - covariates @ torch.linalg.solve(gram, covariates.T @ latent)
                root = torch.linalg.cholesky((latent.T @ latent + spread.sum(0)) / n)
                inverse = torch.linalg.solve_triangular(root, one, upper=False)
                latent, spread = latent @ inverse.T, inverse @ spread @ inverse.T
        return model

    def latent(self, values: Tensor, observed: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean ``(q, r)`` and covariance ``(q, r, r)`` of the latent factors of some samples."""
        r, g = self.rank, len(self.noise)
        precision = observed.to(values) @ (self.second / self.noise[:, None, None]).reshape(g, -1)
        precision = precision.view(len(values), *self.second.shape[1:])
        pull = (values / self.noise) @ self.weights[:, :r] - torch.einsum("nrc,nc->nr", precision[:, :r, r:], covariates)
        lower = torch.linalg.cholesky(precision[:, :r, :r] + torch.eye(r, dtype=values.dtype, device=values.device))
        return torch.cholesky_solve(pull[:, :, None], lower)[:, :, 0], torch.cholesky_inverse(lower)

    def predict(self, values: Tensor, observed: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every entry, ``(q, g)`` each."""
        latent, spread = self.latent(values, observed, covariates)
        factors = torch.cat([latent, covariates], dim=1)
        outer = factors[:, :, None] * factors[:, None, :]
        outer[:, : self.rank, : self.rank] += spread
        mean = factors @ self.weights.T
        variance = outer.view(len(values), -1) @ self.second.reshape(len(self.noise), -1).T - mean.square()
        return mean, variance.clamp(min=0) + self.noise


def similarity(codes: Tensor, reference_codes: Tensor, covariate_weights: Tensor, min_weight: float) -> Tensor:
    """Prior variance of the weight of each reference sample, ``(q, n)``.

    It is 1 if all covariates agree and ``min_weight`` if none does. ``codes`` holds the level codes of the categorical covariates,
    ``(q, c)``. ``covariate_weights``, ``(c,)``, sums to 1 or is all zero; then every variance is 1.
    """
    if not float(covariate_weights.sum()):
        return covariate_weights.new_ones(len(codes), len(reference_codes))
    same = (codes[:, None, :] == reference_codes[None, :, :]).to(covariate_weights) @ covariate_weights
    return min_weight + (1 - min_weight) * same


def regress_on_samples(
    reference: Tensor,
    precision: Tensor,
    values: Tensor,
    observed: Tensor,
    prior: Tensor,
    ridge: float,
) -> Tensor:
    r"""Every sample as a weighted sum of reference samples, ``(q, g)``.

    With :math:`A` the reference on the observed genes (samples in rows), :math:`D` the precisions of the genes and :math:`T` the
    prior variances, the weights are :math:`w = T A D^{1/2} y`, :math:`(D^{1/2} A^\top T A D^{1/2} + \alpha I) y = D^{1/2} x_o`,
    solved as a system of the size of the samples. :math:`\alpha` is ``ridge`` times the number of neighbours. Each sample uses its
    nearest ``NEIGHBOURS`` reference samples only.

    Parameters
    ----------
    reference
        Filled reference, ``(n, g)``.
    precision
        Weight of each gene, mean 1, ``(g,)``.
    prior
        Prior variance of each reference sample's weight, ``(q, n)``; 0 excludes it, as for the sample itself.
    """
    out = torch.empty_like(values)
    root = precision.sqrt()
    scaled = reference * root
    n = len(reference)
    for first in range(0, len(values), 256):
        rows = slice(first, first + 256)
        weight_variance = prior[rows]
        target = values[rows] * root
        if n > NEIGHBOURS:
            distance = observed[rows].to(values) @ scaled.square().T - 2 * (target @ scaled.T)
            near = distance.masked_fill(weight_variance == 0, torch.inf).topk(NEIGHBOURS, largest=False, sorted=False).indices
        for i in range(len(target)):
            genes = observed[first + i].nonzero()[:, 0]
            chosen = near[i] if n > NEIGHBOURS else slice(None)
            scale = weight_variance[i, chosen].sqrt()
            part = scaled[chosen].index_select(1, genes) * scale[:, None]
            gram = part @ part.T
            gram.diagonal().add_(ridge * len(part))
            weight = torch.cholesky_solve((part @ target[i, genes])[:, None], torch.linalg.cholesky(gram))[:, 0]
            out[first + i] = (weight * scale) @ reference[chosen]
    return out


def residual_correlation(residual: Tensor, observed: Tensor) -> Tensor:
    """Correlation between genes of the residuals, soft-thresholded by ``SIGNIFICANCE`` standard errors: sparse ``(g, g)``.

    ``residual`` of shape ``(n, g)`` has variance 1 for each gene, and is zero where not observed.
    """
    mask = observed.to(residual)
    g = residual.shape[1]
    rows, columns, values = [], [], []
    for first in range(0, g, 1024):
        part = slice(first, min(first + 1024, g))
        number = (mask[:, part].T @ mask).clamp(min=1)
        correlation = (residual[:, part].T @ residual) / number
        shrunk = correlation.sign() * (correlation.abs() - SIGNIFICANCE / number.sqrt()).clamp(min=0)
        shrunk[torch.arange(shrunk.shape[0]), torch.arange(part.start, part.stop)] = 0
        row, column = shrunk.nonzero(as_tuple=True)
        rows.append(row + first)
        columns.append(column)
        values.append(shrunk[row, column])
    index = torch.stack([torch.cat(rows), torch.cat(columns)])
    return torch.sparse_coo_tensor(index, torch.cat(values), (g, g), check_invariants=False).coalesce()


def predict_residuals(correlation: Tensor, residual: Tensor, observed: Tensor, *, steps: int = 20) -> Tensor:
    r"""Residuals of the other genes, predicted from those of the observed genes, ``(q, g)``.

    :math:`S_{ho} (S_{oo} + 2 I)^{-1} r_o` by conjugate gradients for all samples at once. The 2 is the variance of a residual, 1,
    plus 1 for the error of its estimate.
    """
    mask = observed.to(residual)

    def apply(x: Tensor) -> Tensor:
        return torch.sparse.mm(correlation, x.T).T

    target = residual * mask
    x, rest = torch.zeros_like(target), target.clone()
    direction, power = rest.clone(), rest.square().sum(1)
    for _ in range(steps):
        image = mask * apply(direction) + 2 * direction
        curvature = (direction * image).sum(1)
        # Thresholding may leave a matrix that is not positive definite. Then the sample keeps its current solution.
        step = torch.where(curvature > 1e-9 * power, power / curvature.clamp(min=1e-30), torch.zeros(()).to(power))
        x += step[:, None] * direction
        rest -= step[:, None] * image
        before, power = power, rest.square().sum(1)
        direction = rest + (power / before.clamp(min=1e-30))[:, None] * direction
    return apply(x) * (1 - mask)
