"""What is chosen of width, penalty and number of scores, and why."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from scimpute._counts.began import BeganEngine
from scimpute._counts.complexity import choose
from scimpute._counts.context import Context
from scimpute._counts.molecules import MoleculeSplit
from scimpute._counts.settings import Complexity, Settings
from scimpute.models.dispersion import heldout_deviance

SETTINGS = Settings(
    block_size=64,
    n_repeats=1,
    n_context=5,
    width=16,
    penalty=100.0,
    max_epochs=3,
    batch_size=32,
    learning_rate=2e-3,
)
ENGINE = BeganEngine("dense", 50.0, 1.0, 0.95, 0.1, 1.0)


def chosen(data: MoleculeSplit, posterior: bool = True, engine: BeganEngine = ENGINE, **changes: Any) -> tuple[Complexity, dict[str, Any]]:
    context = Context.fit(data.train, data.size_train, 5, seed=0)
    return choose(data, engine, replace(SETTINGS, **changes), context, np.random.default_rng(0), posterior=posterior, on_trial=lambda: None)


def test_what_is_given_is_taken(adata, data_of):
    complexity, why = chosen(data_of(adata))
    assert complexity == Complexity(5, 16, 100.0, 3)
    assert why == {"why": "all given by the caller"}
    # More scores than there are: what there is.
    assert chosen(data_of(adata), n_context=400)[0].n_context == 5


def test_conv_is_fixed_where_it_is_not_given(adata, data_of):
    complexity, why = chosen(data_of(adata), engine=replace(ENGINE, architecture="conv"), width=8, penalty=None)
    assert (complexity.width, complexity.max_epochs, complexity.penalty) == (8, 3, 200.0)
    assert "conv" in why["why"]


def test_what_is_left_open_is_chosen_among_what_was_tried(adata, data_of):
    told = []
    data = data_of(adata)
    context = Context.fit(data.train, data.size_train, 5, seed=0)
    open_ = replace(SETTINGS, penalty=None, width=None)
    complexity, why = choose(data, ENGINE, open_, context, np.random.default_rng(0), posterior=True, on_trial=lambda: told.append(1))
    tried = why["candidates"]
    assert tried["penalty"].tolist() == [30.0, 300.0, 3000.0]
    assert complexity.penalty == tried.loc[tried["heldout"].idxmin(), "penalty"]
    assert (complexity.n_context, complexity.width, complexity.max_epochs) == (5, 64, 3)
    assert tried.loc[tried["taken"], "penalty"].tolist() == [complexity.penalty]
    assert np.isfinite(tried["heldout"]).all()
    assert len(told) == 1


@pytest.mark.parametrize(("noise", "expected"), [(0.0, (15, 30.0)), (0.5, (15, 30.0)), (1.0, (5, 300.0))])
def test_what_cannot_be_told_from_the_best_is_as_good(adata, monkeypatch, noise, expected, data_of):
    """The fewest scores within a standard error of the paired difference, and then the best penalty."""
    behind = {(15, 30.0): 0.0, (5, 300.0): 0.04, (5, 30.0): 0.045}

    def scores(task, pairs, steps):
        spread = np.where(np.arange(400) % 2, 1.0, -1.0)
        return np.stack([1 + behind.get(pair, 9.0) + noise * (pair != (15, 30.0)) * spread for pair in pairs])

    monkeypatch.setattr("scimpute._counts.complexity._score_candidates", scores)
    data = data_of(adata)
    context = Context.fit(data.train, data.size_train, 20, seed=0)
    open_ = replace(SETTINGS, penalty=None, n_context=None)
    complexity, _ = choose(data, ENGINE, open_, context, np.random.default_rng(0), posterior=True, on_trial=lambda: None)
    assert (complexity.n_context, complexity.penalty) == expected


def test_candidates_are_scored_by_what_is_asked_for(adata, monkeypatch, data_of):
    """Without the posterior, by the rates themselves."""
    data = data_of(adata)
    scored = {posterior: chosen(data, posterior, penalty=None)[1]["candidates"]["heldout"] for posterior in (True, False)}
    assert (scored[True] != scored[False]).all()
    # With a theta beyond all doubt the posterior mean is the rate.
    monkeypatch.setattr(
        "scimpute._counts.complexity.dispersion.heldout_deviance", functools.partial(heldout_deviance, thetas=torch.tensor([1e9]))
    )
    np.testing.assert_allclose(chosen(data, penalty=None)[1]["candidates"]["heldout"], scored[False], rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_noise_gets_the_strong_penalty_and_structure_is_learnt(seed, data_of):
    rng = np.random.default_rng(seed)
    types, level = np.arange(600) % 4, rng.lognormal(0, 1, size=60)
    obs = pd.DataFrame({name: pd.Categorical(["a", "b"] * 300) for name in ("batch", "cell_type")}, index=[f"c{i}" for i in range(600)])

    def trial(strength: float, depth: float) -> tuple[float, float]:
        """Penalty, and how much better than the gene mean, in nats per held-out molecule."""
        rate = depth * level * np.exp(strength * rng.normal(size=(4, 60)))[types]
        data = data_of(ad.AnnData(rng.poisson(rate).astype(np.float32), obs=obs), seed=seed)
        complexity, why = chosen(data, penalty=None, max_epochs=8)
        mean = data.share * data.size_heldout[:, None]
        gene_mean = data.per_molecule((mean - data.heldout.toarray() * np.log(np.maximum(mean, 1e-30))).sum(), data.genes)
        return complexity.penalty, gene_mean - why["candidates"]["heldout"].min()

    penalty, gain = trial(0.0, 0.3)
    assert penalty == 3000.0
    assert abs(gain) < 0.01
    assert trial(1.5, 10.0)[1] > 0.2
