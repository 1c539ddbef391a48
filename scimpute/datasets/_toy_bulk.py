from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from .. import _check, _random
from .._keywords import helpful

_SEXES = ("female", "male")


@helpful
def toy_bulk(
    n_obs: int = 200,
    n_vars: int = 300,
    *,
    n_tissues: int = 4,
    rank: int = 8,
    noise: float = 0.5,
    random_state: int | np.random.Generator | None = 0,
) -> ad.AnnData:
    r"""Bulk expression with a known truth: tissues, sex, age, factors that genes share, and noise.

    The value of sample :math:`i` and gene :math:`j`, on a scale like :math:`\log_2(\mathrm{TPM} + 1)`, is

    .. math:: x_{ij} = a_j + t_{\mathrm{tissue}(i) j} + z_i^\top w_j + b_j\, [\mathrm{male}_i] + c_j\, (\mathrm{age}_i - 50) / 30
                       + \sigma_j \varepsilon_{ij}

    The gene level is :math:`a_j \sim N(6, 1)`, and the tissue effect is :math:`t \sim N(0, 1)`. The product of scores :math:`z` and
    loadings :math:`w` has variance 1. The sex effect is :math:`b_j = \pm 2` in a fiftieth of the genes, and the age effect is
    :math:`c_j = \pm 1.5` in a tenth of them. No gene has both effects. :math:`\varepsilon` is normal.

    Parameters
    ----------
    n_obs, n_vars
        Number of samples and of genes.
    n_tissues
        Number of tissues. Their sizes are as even as possible.
    rank
        Number of factors that the genes share.
    noise
        Mean noise level. The noise levels :math:`\sigma_j` of the genes are uniform between 0.5 and 1.5 times this value.
    random_state
        Seed or generator; None draws a new seed.

    Returns
    -------
    An object of ``n_obs`` x ``n_vars``, with

    ``X``
        Expression with noise, dense float32, without missing values.
    ``layers["truth"]``
        Expression without noise, dense float32.
    ``obs["tissue"]``, ``obs["sex"]``, ``obs["age"]``
        ``"tissue0"``, ...; ``"female"`` or ``"male"``; years from 20 to 80. The columns are independent of each other.
    ``var["noise"]``
        :math:`\sigma_j`.
    ``uns["toy_bulk"]``
        The parameters, and the names of the genes with an effect of sex (``"sex_genes"``) and of age (``"age_genes"``).

    Raises
    ------
    TypeError, ValueError
        An argument is out of its range, or there are fewer samples than tissues.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_bulk(n_obs=100)
    >>> adata.shape
    (100, 300)
    """
    sizes = {"n_obs": n_obs, "n_vars": n_vars, "n_tissues": n_tissues, "rank": rank}
    sizes = {name: _check.integer(name, value) for name, value in sizes.items()}
    n_obs, n_vars, n_tissues, rank = sizes.values()
    noise = _check.number("noise", noise, 0)
    if n_tissues > n_obs:
        raise ValueError(f"n_tissues={n_tissues} is more than the number of samples, n_obs={n_obs}")
    rng = _random.generator(random_state)

    tissue, sex = (rng.permutation(np.arange(n_obs) % n) for n in (n_tissues, len(_SEXES)))
    age = rng.uniform(20, 80, n_obs)
    scores, loadings = rng.normal(size=(n_obs, rank)), rng.normal(size=(rank, n_vars)) / np.sqrt(rank)
    truth = rng.normal(6, 1, n_vars) + rng.normal(size=(n_tissues, n_vars))[tissue] + scores @ loadings

    order = rng.permutation(n_vars)
    n_sex, n_age = -(-n_vars // 50), n_vars // 10
    sex_genes, age_genes = np.sort(order[:n_sex]), np.sort(order[n_sex : n_sex + n_age])
    truth[:, sex_genes] += sex[:, None] * rng.choice([-2.0, 2.0], n_sex)
    truth[:, age_genes] += (age[:, None] - 50) / 30 * rng.choice([-1.5, 1.5], n_age)
    level = noise * rng.uniform(0.5, 1.5, n_vars)
    expression = truth + level * rng.normal(size=truth.shape)

    genes = [f"gene{j}" for j in range(n_vars)]
    planted = {"sex_genes": [genes[j] for j in sex_genes], "age_genes": [genes[j] for j in age_genes]}
    return ad.AnnData(
        expression.astype(np.float32),
        obs=pd.DataFrame(
            {
                "tissue": pd.Categorical.from_codes(tissue, [f"tissue{level}" for level in range(n_tissues)]),
                "sex": pd.Categorical.from_codes(sex, list(_SEXES)),
                "age": age,
            },
            index=[f"sample{i}" for i in range(n_obs)],
        ),
        var=pd.DataFrame({"noise": level}, index=genes),
        layers={"truth": truth.astype(np.float32)},
        uns={"toy_bulk": {**sizes, "noise": noise, "random_state": _random.describe(random_state), **planted}},
    )
