"""A peer's best setting, and the posterior step of tl.began for any peer; both from the training molecules alone.

A tenth of the training molecules is held out once more (the inner split). A setting is scored by the Poisson deviance of these;
the dispersions of the posterior step are chosen on them as those of tl.began are. Both are then used with all training molecules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from peers import GRIDS, PEERS, UNSCALED, depth

import scimpute
from scimpute._sparse import chunks
from scimpute.models import dispersion, posterior

FLOORS = (1e-3, 3e-2, 3e-1)
"""Lowest prior means, in units of the gene mean; one of them is chosen on the inner split."""


@dataclass
class Fitted:
    """Predictions of a peer from training counts.

    Attributes
    ----------
    plain, posterior
        Expected counts before and after the posterior step, ``(n, g)``; None if not requested.
    setting
        The setting that was used.
    floor
        The floor of the prior mean in the posterior step.
    """

    plain: np.ndarray
    posterior: np.ndarray | None
    setting: dict[str, Any]
    floor: float | None


def predict(adata: ad.AnnData, method: str, setting: dict[str, Any], seed: int) -> np.ndarray:
    """A peer with a setting; ``rescale`` in it is ours: every row scaled to the depth of its cell."""
    setting = dict(setting)
    rescale = setting.pop("rescale", False)
    # As precise as the peer gives it: rounded to float32, values that are equal would differ, and ranks would see it.
    found = np.asarray(PEERS[method](adata, seed=seed, **setting))
    return to_depth(found, adata) if rescale else found


def to_depth(values: np.ndarray, adata: ad.AnnData) -> np.ndarray:
    total = values.sum(1, keepdims=True)
    return values / np.where(total > 0, total, 1) * depth(adata.X)


def inner_split(adata: ad.AnnData, seed: int) -> tuple[ad.AnnData, sp.csr_matrix]:
    """Object with nine tenths of the molecules in X, and the others; all genes stay."""
    split = ad.AnnData(adata.X.copy())
    scimpute.pp.thin(split, key_added="inner", random_state=1000 + seed)
    return ad.AnnData(split.layers["inner_train"], obs=adata.obs.copy()), split.layers["inner_test"]


def deviance(inner: ad.AnnData, test: sp.csr_matrix, prediction: np.ndarray) -> float:
    """Held-out Poisson deviance, as the tables score it."""
    given = ad.AnnData(inner.X, layers={"inner_train": inner.X, "inner_test": test, "found": prediction.astype(np.float32)})
    return float(scimpute.metrics.heldout(given, "found", key="inner").loc["found", "poisson"])


def tuned(inner: ad.AnnData, test: sp.csr_matrix, method: str, seed: int, limits: dict[str, int]) -> tuple[dict[str, Any], np.ndarray]:
    """The setting of the grid that predicts the inner test part best, and its prediction.

    ``limits``: the highest value of a setting, as of ``max_epochs`` on large data; grid points above it are scaled down with it.
    """
    best, least, kept = {}, np.inf, np.empty(0)
    for point in GRIDS[method]:
        setting = dict(point)
        for name, limit in limits.items():
            setting[name] = setting[name] * limit // max(other[name] for other in GRIDS[method])
        # As many components as an SVD of the data has.
        if method in ("svd", "alra") and setting["k"] != "auto" and setting["k"] >= min(inner.shape):
            continue
        found = predict(inner, method, setting, seed)
        variants = {False: found, True: to_depth(found, inner)} if method in UNSCALED else {None: found}
        for rescale, prediction in variants.items():
            score = deviance(inner, test, prediction)
            if score < least:
                least, kept = score, prediction
                best = setting if rescale is None else {**setting, "rescale": rescale}
    return best, kept


def fit(
    adata: ad.AnnData, method: str, setting: dict[str, Any] | None, seed: int, *, with_posterior: bool, limits: dict[str, int]
) -> Fitted:
    """A peer on all training counts; ``setting`` None looks for its best on the inner split first."""
    inner = test = of_inner = None
    if setting is None or with_posterior:
        inner, test = inner_split(adata, seed)
    if setting is None:
        setting, of_inner = tuned(inner, test, method, seed, limits)
    prediction = predict(adata, method, setting, seed)
    if not with_posterior:
        return Fitted(prediction, None, setting, None)
    of_inner = predict(inner, method, setting, seed) if of_inner is None else of_inner
    floor, rates = choose(inner.X, test, of_inner)
    return Fitted(prediction, apply(adata.X, prediction, floor, rates), setting, floor)


# The posterior step, as scimpute/_counts/molecules.py takes it for tl.began


def prior(counts: sp.csr_matrix, prediction: np.ndarray, floor: float, share: np.ndarray, rows: slice) -> torch.Tensor:
    """The prior mean is a peer's prediction, but where that is (nearly) 0 it is a small part of the gene mean's.

    A rate of exactly 0 would stay 0 whatever was counted, and one such entry would decide the dispersion of a gene.
    """
    least = floor * share * depth(counts[rows])
    return torch.from_numpy(np.maximum(prediction[rows], least).astype(np.float32))


def share_of(counts: sp.csr_matrix) -> np.ndarray:
    """Share of each gene of all molecules, ``(g,)``; for a gene without any, that of half a molecule."""
    return np.maximum(np.asarray(counts.sum(0)).ravel(), 0.5) / counts.sum()


def choose(train: sp.csr_matrix, test: sp.csr_matrix, prediction: np.ndarray) -> tuple[float, posterior.Prior]:
    """Floor of the prior mean, and prior of the rates, that predict the inner test part best."""
    share = share_of(train)
    shares = torch.from_numpy(share.astype(np.float32))
    ratio = (np.asarray(test.sum(1)).ravel() / depth(train).ravel()).astype(np.float32)
    found = []
    for floor in FLOORS:

        def parts(floor: float = floor) -> Iterator[tuple[torch.Tensor, ...]]:
            for rows in chunks(*train.shape, 2_000_000):
                seen, target = (torch.from_numpy(part[rows].toarray()) for part in (train, test))
                yield seen, prior(train, prediction, floor, share, rows), target, torch.from_numpy(ratio[rows]), torch.ones(len(seen))

        rates = dispersion.estimate(parts(), train.shape[0], shares, shares * float(np.median(depth(train))))
        step, lost = posterior.Posterior(rates, train.shape[0], sd=False), 0.0
        for rows, (_, mu, target, scale, _) in zip(chunks(*train.shape, 2_000_000), parts(), strict=True):
            mean = step(mu.clamp(min=posterior.LEAST).log_(), posterior.NonZero.of(train[rows]))[0] * mu * scale[:, None]
            lost += float((mean - target * mean.clamp(min=1e-12).log()).sum(dtype=torch.float64))
        found.append((lost, floor, rates))
    return min(found, key=lambda entry: entry[0])[1:]


def apply(counts: sp.csr_matrix, prediction: np.ndarray, floor: float, rates: posterior.Prior) -> np.ndarray:
    """Posterior mean of every entry, ``(n, g)``."""
    out, share = np.empty(counts.shape, dtype=np.float32), share_of(counts)
    step = posterior.Posterior(rates, counts.shape[0], sd=False)
    for rows in chunks(*counts.shape, 2_000_000):
        mu = prior(counts, prediction, floor, share, rows)
        out[rows] = step(mu.clamp(min=posterior.LEAST).log_(), posterior.NonZero.of(counts[rows]))[0].mul_(mu).numpy()
    return out
