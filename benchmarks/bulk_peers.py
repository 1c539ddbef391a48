"""Other methods for expression with gaps, and their tuning, for the tables of bulk.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes a reference and a query, both standardised, NaN where missing; the filled query. In place both are the same array."""


def knn(k: int) -> Fill:
    from sklearn.impute import KNNImputer

    return lambda reference, query: KNNImputer(n_neighbors=k, weights="distance", keep_empty_features=True).fit(reference).transform(query)


def soft_svd(strength: float) -> Fill:
    """Iterative soft-thresholded SVD (Mazumder 2010); new samples are projected on the reference's directions."""

    def fill(reference: np.ndarray, query: np.ndarray) -> np.ndarray:
        both = reference if query is reference else np.vstack([reference, query])
        seen, x = ~np.isnan(both), np.nan_to_num(both)
        low = np.zeros_like(x)
        for _ in range(60):
            left, values, right = np.linalg.svd(np.where(seen, x, low), full_matrices=False)
            low = (left * np.maximum(values - strength * values[0], 0)) @ right
        return low[len(both) - len(query) :]

    return fill


def ridge(strength: float) -> Fill:
    """Ridge regression of each sample on the others, on the genes it has; gaps of the reference are filled by soft SVD first."""

    def fill(reference: np.ndarray, query: np.ndarray) -> np.ndarray:
        full = (
            reference if not np.isnan(reference).any() else np.where(np.isnan(reference), soft_svd(0.05)(reference, reference), reference)
        )
        out = np.empty_like(query)
        for i, row in enumerate(query):
            others = np.delete(full, i, axis=0) if query is reference else full
            genes = ~np.isnan(row)
            part = others[:, genes]
            weight = np.linalg.solve(part @ part.T + strength * np.eye(len(part)), part @ row[genes])
            out[i] = weight @ others
        return out

    return fill


def iterative(model: Callable[[], object], n_nearest: int, turns: int) -> Fill:
    """Every gene in turn regressed on its ``n_nearest`` most correlated ones (van Buuren 2011)."""

    def fill(reference: np.ndarray, query: np.ndarray) -> np.ndarray:
        from sklearn.experimental import enable_iterative_imputer  # noqa: F401
        from sklearn.impute import IterativeImputer

        both = reference if query is reference else np.vstack([reference, query])
        imputer = IterativeImputer(model(), n_nearest_features=n_nearest, max_iter=turns, random_state=0, keep_empty_features=True)
        return imputer.fit_transform(both)[len(both) - len(query) :]

    return fill


def iterative_ridge(n_nearest: int) -> Fill:
    from sklearn.linear_model import BayesianRidge

    return iterative(BayesianRidge, n_nearest, 5)


def miss_forest(n_nearest: int) -> Fill:
    """MissForest (Stekhoven 2012) with 20 trees on the most correlated genes and 3 turns: on all genes it takes hours."""
    from sklearn.ensemble import RandomForestRegressor

    return iterative(lambda: RandomForestRegressor(20, max_features="sqrt", random_state=0), n_nearest, 3)


def gain_of_hyperimpute(weight: float) -> Fill:
    """GAIN (Yoon 2018) as hyperimpute has it, for the 1,000 epochs that it takes; ``weight`` is that of the reconstruction."""

    def fill(reference: np.ndarray, query: np.ndarray) -> np.ndarray:
        from hyperimpute.plugins.imputers import Imputers

        both = reference if query is reference else np.vstack([reference, query])
        filled = Imputers().get("gain", loss_alpha=weight).fit_transform(pd.DataFrame(both))
        return np.asarray(filled, dtype=np.float64)[len(both) - len(query) :]

    return fill


def factor_model(codes: np.ndarray) -> Callable[[int], Fill]:
    """The variational PCA inside tl.pmi alone, with covariates; the last column block of the arrays holds them."""
    import torch

    from scimpute.models.sample_regression import FactorModel

    c = codes.shape[1]

    def make(rank: int) -> Fill:
        def fill(reference: np.ndarray, query: np.ndarray) -> np.ndarray:
            def tensors(part: np.ndarray) -> tuple:
                x, covariates = part[:, :-c], part[:, -c:]
                seen = ~np.isnan(x)
                return tuple(map(torch.from_numpy, (np.nan_to_num(x).astype(np.float32), seen, covariates.astype(np.float32))))

            model = FactorModel.fit(*tensors(reference), rank, torch.Generator().manual_seed(0))
            return np.column_stack([model.predict(*tensors(query))[0].numpy(), query[:, -c:]])

        return fill

    return make


PEERS: dict[str, tuple[Callable[..., Fill], tuple]] = {
    "kNN": (knn, (5, 10, 20)),
    "soft SVD": (soft_svd, (0.02, 0.05, 0.1, 0.2)),
    "ridge over samples": (ridge, (100.0, 300.0, 1000.0)),
    "iterative ridge": (iterative_ridge, (20, 100)),
    "missForest": (miss_forest, (100,)),
    "GAIN of hyperimpute": (gain_of_hyperimpute, (10.0,)),  # its default: a fit takes minutes
}
"""The function that makes each of them, and the values it is tuned over."""


def tuned(
    make: Callable[..., Fill], grid: tuple, reference: np.ndarray, query: np.ndarray, rng: np.random.Generator, n_genes: int | None = None
) -> np.ndarray:
    """The best of the grid on hidden values: a tenth of the entries in place; for new samples, half of the entries of a fifth."""
    if len(grid) == 1:
        return make(*grid)(reference, query)
    genes = slice(None, n_genes)
    inner = reference.copy()
    if query is reference:
        inner[:, genes][rng.random(reference[:, genes].shape) < 0.1] = np.nan
        visible, base, truth = inner, inner, reference
    else:
        heldout = rng.random(len(reference)) < 0.2
        base, visible, truth = reference[~heldout], inner[heldout], reference[heldout]
        visible[:, genes][rng.random(visible[:, genes].shape) < 0.5] = np.nan
    scored = np.isnan(visible) & ~np.isnan(truth)
    errors = [np.square(make(value)(base, visible) - truth)[scored].mean() for value in grid]
    return make(grid[int(np.argmin(errors))])(reference, query)
