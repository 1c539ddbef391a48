from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax

from .. import _check, _random
from .._keywords import helpful


@helpful
def toy_counts(
    n_obs: int = 60,
    n_vars: int = 40,
    *,
    n_types: int = 3,
    n_batches: int = 2,
    rank: int = 3,
    depth: float = 200.0,
    dropout: float = 0.3,
    batch_effect: float = 0.4,
    random_state: int | np.random.Generator | None = 0,
) -> ad.AnnData:
    r"""Counts with a known truth: low-rank cell states, cell types, batches, and dropout.

    Cells lie around the centres of their types in a space of ``rank`` dimensions. The log expression of every gene is linear in this
    space. Each batch multiplies each gene by its own factor. With the depth :math:`l_i` of a cell (log-normal), gene level :math:`a_j`,
    batch effect :math:`b`, scores :math:`z` and loadings :math:`w`, counts are Poisson with mean

    .. math:: \lambda_{ij} = l_i \; \mathrm{softmax}_j(a_j + b_{\mathrm{batch}(i) j} + z_i^\top w_j)

    An entry is then lost with probability :math:`\sigma(c - \log \lambda_{ij})`. Entries with low expression are lost more often.

    Parameters
    ----------
    n_obs, n_vars
        Number of cells and of genes.
    n_types, n_batches
        Number of cell types and of batches. Their sizes are as even as possible, and they are independent of each other.
    rank
        Dimensions of the cell states.
    depth
        Mean number of molecules of a cell before dropout.
    dropout
        Expected fraction of lost entries, in [0, 1). It determines :math:`c`.
    batch_effect
        Standard deviation of :math:`b` over the genes.
    random_state
        Seed or generator; None draws a new seed.

    Returns
    -------
    An object of ``n_obs`` x ``n_vars``, with

    ``X``
        Counts after dropout, CSR float32.
    ``layers["rate"]``
        :math:`\lambda`, the expected counts before dropout at the cell's own depth, dense float32.
    ``obs["batch"]``, ``obs["cell_type"]``
        Categorical: ``"batch0"``, ... and ``"type0"``, .... Every level has cells.
    ``varm["batch_effect"]``
        :math:`b`, a DataFrame with a column for each batch, float32.
    ``uns["toy_counts"]``
        The parameters.

    Raises
    ------
    TypeError, ValueError
        An argument is out of its range, or there are fewer cells than types or batches.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts(n_obs=100)
    >>> adata.shape
    (100, 40)
    """
    sizes = {"n_obs": n_obs, "n_vars": n_vars, "n_types": n_types, "n_batches": n_batches, "rank": rank}
    sizes = {name: _check.integer(name, value) for name, value in sizes.items()}
    n_obs, n_vars, n_types, n_batches, rank = sizes.values()
    depth = _check.number("depth", depth, 0, open_low=True)
    dropout = _check.number("dropout", dropout, 0, 1, open_high=True)
    batch_effect = _check.number("batch_effect", batch_effect, 0)
    for name in ("n_types", "n_batches"):
        if sizes[name] > n_obs:
            raise ValueError(f"{name}={sizes[name]} is more than the number of cells, n_obs={n_obs}")
    rng = _random.generator(random_state)

    cell_type, batch = (rng.permutation(np.arange(n_obs) % n) for n in (n_types, n_batches))
    scores = 1.5 * rng.normal(size=(n_types, rank))[cell_type] + 0.5 * rng.normal(size=(n_obs, rank))
    loadings = rng.normal(size=(rank, n_vars)) / np.sqrt(rank)
    effect = batch_effect * rng.normal(size=(n_batches, n_vars))
    log_share = rng.normal(size=n_vars) + effect[batch] + scores @ loadings
    # The mean of exp(normal) with this mean and standard deviation is 1.
    cell_depth = depth * np.exp(rng.normal(-0.045, 0.3, size=(n_obs, 1)))
    rate = cell_depth * softmax(log_share, axis=1)
    counts = rng.poisson(rate)
    counts[rng.random(rate.shape) < _loss(np.log(rate), dropout)] = 0

    batches, genes = _named("batch", batch, n_batches), [f"gene{j}" for j in range(n_vars)]
    params = {**sizes, "depth": depth, "dropout": dropout, "batch_effect": batch_effect, "random_state": _random.describe(random_state)}
    return ad.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame({"batch": batches, "cell_type": _named("type", cell_type, n_types)}, index=[f"cell{i}" for i in range(n_obs)]),
        var=pd.DataFrame(index=genes),
        varm={"batch_effect": pd.DataFrame(effect.T.astype(np.float32), index=genes, columns=list(batches.categories))},
        layers={"rate": rate.astype(np.float32)},
        uns={"toy_counts": params},
    )


def _named(name: str, codes: np.ndarray, n_levels: int) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, [f"{name}{level}" for level in range(n_levels)])


def _loss(log_rate: np.ndarray, dropout: float) -> np.ndarray:
    """Probability of losing each entry. It is logistic in the log rate, and its mean is ``dropout``."""
    if dropout == 0:
        return np.zeros_like(log_rate)
    # At the low midpoint the probability of every entry is below dropout; at the high midpoint it is above.
    low, high = logit(dropout) + log_rate.min() - 1, logit(dropout) + log_rate.max() + 1
    middle = brentq(lambda c: expit(c - log_rate).mean() - dropout, low, high)
    return expit(middle - log_rate)
