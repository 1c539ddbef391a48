"""Splits, weights and spread of the bulk methods, and what a fitted one keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import scimpute
from scimpute._bulk import linear as _linear
from scimpute._bulk import train as _bulk
from scimpute._bulk.fitted import Fitted
from scimpute._bulk.settings import BulkSettings
from scimpute._bulk.table import BulkTable, Standardiser
from scimpute._bulk.train import train
from scimpute._progress import Progress

CPU = torch.device("cpu")
SETTINGS = BulkSettings(
    method="pmi",
    mode="inplace",
    linear=True,
    n_models=1,
    n_layers=1,
    n_hidden=16,
    dropout=0.0,
    mask_rate=(0.3, 0.6),
    max_epochs=2,
    batch_size=32,
    learning_rate=1e-3,
    weight_decay=1.0,
    one_cycle=True,
    supervised_weight=1.0,
    hint_rate=0.5,
)


def make_table(n: int = 50, g: int = 30, missing: float = 0.3, seed: int = 0) -> BulkTable:
    adata = scimpute.datasets.toy_bulk(n, g, random_state=seed)
    values = np.where(np.random.default_rng(seed + 100).random(adata.shape) < missing, np.nan, adata.X).astype(np.float32)
    codes = np.asarray(adata.obs["tissue"].cat.codes, dtype=np.int64)[:, None]
    return BulkTable(values, codes, (4,), adata.obs[["age"]].to_numpy())


# The scale


def test_scale_is_of_observed_entries_and_back():
    table = make_table()
    table.values[:, 3] = 2.5
    scale = Standardiser.of(table)
    samples = scale.samples(table, CPU)
    seen = samples.observed.numpy()
    assert np.array_equal(seen, ~np.isnan(table.values))
    assert (samples.values.numpy()[~seen] == 0).all()
    np.testing.assert_allclose((samples.values.numpy() * scale.sd + scale.mean)[seen], table.values[seen], rtol=1e-5)
    np.testing.assert_allclose(scale.mean, np.nanmean(table.values, axis=0), rtol=1e-5)
    assert scale.sd[3] == 1
    assert (samples.values[:, 3] == 0).all()
    torch.testing.assert_close(samples.numbers.mean(0), torch.zeros(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lowest", [0.0, -1.0])
def test_nothing_negative_is_filled_in_where_nothing_is(lowest, tmp_path):
    adata = scimpute.datasets.toy_bulk(80, 40)
    adata.X = np.maximum(adata.X - 5, lowest)
    scimpute.pp.hide(adata, 0.5, of="all")
    path = tmp_path / "model.safetensors"
    scimpute.tl.pmi(adata, layer="hidden", n_models=1, n_hidden=16, max_epochs=2, save=path)
    scimpute.tl.apply(adata, path, layer="hidden", key_added="again")
    for key in ("pmi", "again"):
        smallest = adata.layers[key][adata.layers["hidden_mask"]].min()
        assert smallest == 0 if lowest == 0 else smallest < 0


def test_design_by_hand():
    table = replace(make_table(4, 12), codes=np.array([[2], [0], [-1], [3]]))
    samples = Standardiser.of(table).samples(table, CPU)
    found = _linear.design(samples, (4,))
    expected = torch.tensor([[1, 0, 0, 1, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 1.0]])
    assert torch.equal(found[:, :5], expected)
    assert torch.equal(found[:, 5:], samples.numbers)


# The split


@pytest.mark.parametrize("mode", ["inplace", "inductive"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_asked_is_never_shown(mode, seed):
    table = make_table(seed=seed)
    samples = Standardiser.of(table).samples(table, CPU)
    known, query, truth, wanted, own = _bulk._split(samples, replace(SETTINGS, mode=mode), np.random.default_rng(seed))
    assert wanted.any()
    assert not (query.observed & wanted).any()
    assert (query.values[wanted] == 0).all()
    assert torch.equal(query.values, truth * query.observed)
    # The rows of the samples that are asked, in the whole.
    rows = torch.stack([(samples.numbers == number).all(1).nonzero()[0, 0] for number in query.numbers])
    assert samples.observed[rows][wanted].all()
    assert torch.equal(truth, samples.values[rows])
    if mode == "inplace":
        assert torch.equal(own, torch.arange(50))
        assert known is query
        assert abs(float(wanted.sum() / samples.observed.sum()) - _bulk.VALIDATION) < 0.04
    else:
        assert own is None
        assert len(rows) == 10
        assert len(known.values) == 40
        assert not set(query.numbers.flatten().tolist()) & set(known.numbers.flatten().tolist())
        shown = query.observed.sum(1) / samples.observed[rows].sum(1)
        assert shown.min() > 0.05
        assert shown.max() < 0.85


@pytest.mark.parametrize("method", ["pmi", "gain"])
@pytest.mark.parametrize("mode", ["inplace", "inductive"])
def test_choices_do_not_see_the_answers(monkeypatch, method, mode):
    """Other values at the entries that are asked for change no prediction of them, nor the weights of the network."""
    settings = replace(SETTINGS, method=method, mode=mode)
    table = make_table()
    found: list[dict[str, Any]] = []
    split, shares = _bulk._split, _bulk._network_weights

    def run(change: float) -> None:
        def changed(*args: Any) -> Any:
            known, query, truth, wanted, own = split(*args)
            return known, query, torch.where(wanted, truth + change, truth), wanted, own

        def watched(base: torch.Tensor, guess: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append({"guess": guess, "base": base})
            return shares(base, guess, *args, **kwargs)

        # Which min_weight and ridge are best is what the answers are for.
        monkeypatch.setattr(_linear, "MIN_WEIGHTS", (1.0,))
        monkeypatch.setattr(_linear, "RIDGES", (1.0,) * 2)
        monkeypatch.setattr(_bulk, "_split", changed)
        monkeypatch.setattr(_bulk, "_network_weights", watched)
        train(table, settings, CPU, np.random.default_rng(0), Progress("", show=False))

    run(0.0)
    run(10.0)
    for name in ("guess", "base"):
        assert torch.equal(found[0][name], found[1][name])


# Weights and spread


def draws(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_weight_of_a_network_that_knows_and_of_one_that_does_not():
    truth = draws(100, 20, seed=1)
    wanted = torch.rand(100, 20, generator=torch.Generator().manual_seed(2)) < 0.5
    base = torch.zeros_like(truth)
    for guess, low, high in ((truth, 0.99, 1.0), (draws(100, 20, seed=3), 0, 0.1), (-truth, 0, 0)):
        share, r2, noise = _bulk._network_weights(base, guess, truth, wanted, linear=True)
        assert low <= share.min()
        assert share.max() <= high
        assert r2.max() <= 1
        assert (noise > 0).all() or torch.equal(guess, truth)
    share, r2, noise = _bulk._network_weights(base, truth / 2, truth, wanted, linear=False)
    assert (share == 1).all(), "the network alone"
    torch.testing.assert_close(r2, torch.full((20,), 0.75))
    torch.testing.assert_close(noise.mean(), torch.tensor(0.5), atol=0.05, rtol=0)


def test_genes_with_their_own_weight():
    """Of half of the genes the network knows everything, of the others nothing."""
    truth = draws(400, 20, seed=1)
    guess = torch.cat([truth[:, :10], draws(400, 10, seed=2)], dim=1)
    share, _, _ = _bulk._network_weights(torch.zeros_like(truth), guess, truth, torch.ones_like(truth, dtype=torch.bool), linear=True)
    assert share[:10].min() > share[10:].max() + 0.1


def test_weights_of_nothing_are_finite():
    truth = draws(10, 4, seed=1)
    for wanted in (torch.zeros(10, 4, dtype=torch.bool), torch.arange(40).view(10, 4) == 5):
        for guess in (truth, torch.zeros_like(truth)):
            for linear in (True, False):
                share, r2, noise = _bulk._network_weights(torch.zeros_like(truth), guess, truth, wanted, linear=linear)
                assert torch.isfinite(share).all()
                assert torch.isfinite(noise).all()
                assert torch.isnan(r2).all(), "one entry says nothing of a gene"


@pytest.mark.parametrize("method", ["pmi", "gain"])
@pytest.mark.parametrize("arguments", [{}, {"mode": "inductive"}, {"variant": "published", "max_epochs": 3, "n_hidden": 128}], ids=str)
def test_spread_covers_hidden_entries(method, arguments):
    adata = scimpute.datasets.toy_bulk(150, 120, random_state=1)
    scimpute.pp.hide(adata, 0.4, of="all")
    settings = {"n_models": 1, "n_hidden": 32, "max_epochs": 5, "categorical_covariates": "tissue"}
    getattr(scimpute.tl, method)(adata, layer="hidden", key_added="result", **settings | arguments)
    asked = adata.layers["hidden_mask"]
    error = np.abs(adata.layers["result"] - adata.X)[asked]
    assert 0.8 < (error < 1.645 * adata.layers["result_sd"][asked]).mean() < 0.97
    entry = adata.uns["result"]
    assert entry["calibration"] > 0
    assert 0 <= entry.get("network_share", 0) <= 1
    # What it says of a gene is near what hidden entries show.
    said, seen = entry["r2"]["r2"], scimpute.metrics.recovery(adata, "result", by="gene")["result"]
    assert abs(said.mean() - seen.mean()) < 0.15


# A fitted method


@pytest.mark.parametrize("method", ["pmi", "gain"])
@pytest.mark.parametrize("linear", [True, False])
def test_saved_and_loaded_it_is_the_same(method, linear):
    settings = replace(SETTINGS, method=method, linear=linear, n_models=2)
    table = make_table()
    fitted = train(table, settings, CPU, np.random.default_rng(0), Progress("", show=False))
    again = Fitted.load(*fitted.state(), settings, CPU)
    assert (again.linear is None) == (not linear)
    for own in (None, np.arange(50)) if linear else (None,):
        for one, two in zip(fitted.predict(table, CPU, own), again.predict(table, CPU, own), strict=True):
            np.testing.assert_array_equal(one, two)
    assert (fitted.share >= 0).all()
    assert (fitted.share <= 1).all()


def test_more_samples_than_are_worked_on_at_a_time():
    table = make_table(600, 12)
    fitted = train(table, SETTINGS, CPU, np.random.default_rng(0), Progress("", show=False))
    own = np.arange(600)
    whole, spread = fitted.predict(table, CPU, own)
    for rows in (slice(0, 3), slice(510, 515), slice(599, 600)):
        part = BulkTable(table.values[rows], table.codes[rows], table.levels, table.numbers[rows])
        found, sd = fitted.predict(part, CPU, own[rows])
        np.testing.assert_allclose(found, whole[rows], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(sd, spread[rows], rtol=1e-4, atol=1e-4)


def test_a_level_that_is_unknown_is_no_level():
    """Only its observed genes tell of such a sample."""
    table = make_table()
    fitted = train(table, SETTINGS, CPU, np.random.default_rng(0), Progress("", show=False))
    unknown = replace(table, codes=np.full_like(table.codes, -1))
    found, sd = fitted.predict(unknown, CPU)
    assert np.isfinite(found).all()
    assert np.isfinite(sd).all()


def test_covariate_weights_are_of_what_explains():
    table = make_table(120, 30)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 4, 120)
    both = replace(table, codes=np.column_stack([table.codes[:, 0], noise]), levels=(4, 4))
    found = _linear._covariate_weights(Standardiser.of(both).samples(both, CPU), both.levels)
    assert found[0] > 0.95
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
    alone = replace(table, codes=noise[:, None])
    assert not _linear._covariate_weights(Standardiser.of(alone).samples(alone, CPU), alone.levels).any()


@pytest.mark.parametrize(("method", "variant"), [("pmi", "default"), ("gain", "default"), ("gain", "published")])
def test_what_the_data_have_decided_is_recorded(method, variant):
    adata = scimpute.datasets.toy_bulk(40, 20)
    scimpute.pp.hide(adata, of="all")
    given = {"max_epochs": 1} if variant == "published" else {}
    getattr(scimpute.tl, method)(adata, layer="hidden", n_models=1, n_layers=1, n_hidden=4, variant=variant, **given)
    params = adata.uns[method]["params"]
    assert "auto" not in params.values()
    assert params["max_epochs"] == adata.uns[method]["history"].groupby("model").size().iloc[0]


def test_complete_genes_beside_genes_that_are_left_alone():
    adata = scimpute.datasets.toy_bulk(30, 20)
    adata.X[0, :2] = np.nan
    message = "no value is missing in the 18 genes that are filled, and 2 genes are left as they are: there is nothing to fill"
    with pytest.warns(UserWarning, match=message):
        scimpute.tl.pmi(adata, max_missing=0, n_models=1, n_hidden=4, max_epochs=1)
