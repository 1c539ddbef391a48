"""The run behind ``tl.began``: data held out, repeats combined, complexity chosen; and the function's own promises."""

from __future__ import annotations

import functools
import warnings
import weakref
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scimpute import tl
from scimpute._counts.began import BeganEngine
from scimpute._counts.context import Context
from scimpute._counts.expected import expected_log1p
from scimpute._counts.fit import Trained, predict_all
from scimpute._counts.molecules import MoleculeSplit
from scimpute._counts.partition import Partition
from scimpute._counts.rates import RateMoments, add_rates, predict
from scimpute._counts.selection import choose
from scimpute._counts.settings import Complexity, Settings, Target
from scimpute._counts.split import HELDOUT, SplitInContext, depth_weights
from scimpute._train import History
from scimpute.models.dispersion import heldout_deviance
from scimpute.models.posterior import mean_and_variance

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"max_epochs": 2, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0, "progress": False}
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


def data_of(adata, *, genes=None, outside=0.0, seed=0) -> MoleculeSplit:
    counts = sp.csr_matrix(adata.X, dtype=np.float32)
    size = np.asarray(counts.sum(1), dtype=np.float64).ravel() + outside
    labels = tuple(adata.obs[name].cat.codes.to_numpy().astype(np.int64) for name in ("batch", "cell_type"))
    genes = np.arange(adata.n_vars) if genes is None else genes
    return MoleculeSplit.prepare(counts, size, labels, genes, CPU, np.random.default_rng(seed))


def test_data_holds_out_molecules_once(adata):
    data = data_of(adata, outside=np.linspace(0, 5000, 60))
    np.testing.assert_array_equal((data.train + data.heldout).toarray(), adata.X.toarray())
    assert data.heldout.sum() == pytest.approx(HELDOUT * adata.X.sum(), rel=0.15)
    np.testing.assert_allclose(data.size_train + data.size_heldout, data.size)
    outside = data.size_heldout - data.heldout.toarray().sum(1)
    np.testing.assert_allclose(outside, HELDOUT * np.linspace(0, 5000, 60), atol=1e-4)
    sums = data.train.toarray().sum(0)
    np.testing.assert_allclose(data.share, np.maximum(sums, 0.5) / data.size_train.sum())
    np.testing.assert_array_equal(data.validation, np.arange(60))
    assert data.levels == (2, 3)


@pytest.mark.parametrize("genes", [np.random.default_rng(0).permutation(40), np.array([9, 3, 30])], ids=["all", "some"])
def test_dense_keeps_the_order_of_the_genes(adata, genes):
    """All genes in another order once came back in their own."""
    data, rows = data_of(adata, genes=genes), np.array([5, 0, 59])
    np.testing.assert_array_equal(data.dense(data.counts, rows, data.genes), adata.X.toarray()[np.ix_(rows, genes)])


def test_per_molecule_does_not_depend_on_the_depth(adata):
    """Deviance per molecule of shares: that of the rates themselves, whatever the exposure."""
    data = data_of(adata)
    y, size = data.heldout.toarray(), data.size_heldout[:, None]
    assert (size > 0).all()
    share = np.full((60, 40), 1 / 40)
    deviance = (share * size - y * np.log(share * size)).sum()
    assert data.per_molecule(deviance, data.genes) == pytest.approx(1 + np.log(40))


class Known:
    """A network that knows nothing but a log rate for each gene, a step more for each level of the first label."""

    def __init__(self, data: MoleculeSplit, partition: Partition, log_rate: np.ndarray, step: float | np.ndarray = 0.0) -> None:
        self.log_rate, self.step = partition.to_blocks(log_rate, -30.0), partition.to_blocks(np.broadcast_to(step, log_rate.shape), 0.0)

    def __call__(self, inputs, labels, features):
        return self.log_rate + self.step * labels[0][None, :, None].float()

    def add_to_log_share(self, by):
        self.log_rate = self.log_rate + by


@pytest.fixture
def combined(adata):
    """Two repeats of known rates, imputed as the mean of both batches, genes out of order."""
    data = data_of(adata, genes=np.random.default_rng(0).permutation(40)[:30])
    source = SplitInContext(data, Context.fit(data.train, data.size_train, 3, seed=0))
    trained = []
    for repeat in range(2):
        partition = Partition.draw(data.genes, 40, 8, np.random.default_rng(repeat))
        trained.append(Trained(partition, Known(data, partition, np.log(data.share) + 0.2 * repeat, step=0.1), History()))
    return data, predict_all(trained, source, Target(0, [0, 1]), own=True, spread=True, on_repeat=lambda: None)


def test_repeats_are_combined(combined):
    data, result = combined
    # What is held out is known of a gene in the end.
    share = np.maximum(np.asarray(data.counts.sum(axis=0)).ravel(), 0.5)[data.genes] / data.size.sum()
    each = [share * np.exp(0.2 * repeat) * (1 + np.exp(0.1)) / 2 for repeat in range(2)]
    np.testing.assert_allclose(result.moments.mean, np.tile(np.mean(each, 0), (60, 1)), rtol=1e-5)
    np.testing.assert_allclose(result.moments.variance(slice(0, 60), 2), np.tile(np.var(each, 0, ddof=1), (60, 1)), rtol=1e-3)
    own = share * (1 + np.exp(0.2)) / 2 * np.exp(0.1 * data.labels[0])[:, None]
    np.testing.assert_allclose(result.own.mean, own, rtol=1e-5)
    assert np.log(result.validation).std(axis=0).max() == pytest.approx(np.std(0.1 * data.labels[0]), rel=1e-3)


def test_heldout_scores_are_poisson_deviances_of_shares(combined):
    data, result = combined
    y, exposure = data.heldout.toarray()[:, data.genes], data.size_heldout[:, None]
    share = data.share[data.genes]
    # Scores are of rates that know the training part only.
    network = result.own.mean * np.exp(-data.level_correction[data.genes])
    mu = network * data.size_train[:, None]
    x = data.train.toarray()[:, data.genes]
    prior, heldout = data.judge(result.validation)
    assert prior.theta.shape == share.shape
    np.testing.assert_allclose(prior.reference, share * np.median(data.size_train), rtol=1e-5)
    given = (torch.from_numpy(values.astype(np.float32)) for values in (x, mu))
    posterior = mean_and_variance(*given, prior, torch.zeros(()))[0].numpy() / data.size_train[:, None]
    for name, rate in {"gene_mean": share, "network": network, "posterior": posterior}.items():
        expected = (rate * exposure - y * np.log(rate + np.zeros_like(y))).sum() / y.sum()
        assert heldout[name] == pytest.approx(expected, rel=1e-4), name


def test_predict_as_another_level(adata):
    data = data_of(adata)
    partition = Partition.draw(data.genes, 40, 16, np.random.default_rng(0))
    batches = SplitInContext(data, Context.fit(data.train, data.size_train, 3, seed=0)).all_batches(partition)
    step = np.linspace(0, 0.5, 40)
    generator, rows = Known(data, partition, np.log(data.share), step), np.array([7, 1, 30, 2])
    # Every gene of the cells is here: the shares of a cell sum to 1.
    zero, one = (data.share * np.exp(step * level) / (data.share * np.exp(step * level)).sum() for level in (0, 1))
    np.testing.assert_allclose(predict(generator, batches, rows), np.where(data.labels[0][rows][:, None] == 1, one, zero), rtol=1e-5)
    found = {}
    for label, level in ((0, 1), (1, 2)):
        moments = RateMoments(60, 40)
        add_rates(generator, batches, Target(label, [level]), moments, None, 0)
        found[label] = moments.mean[rows]
    np.testing.assert_allclose(found[0], np.tile(one, (4, 1)), rtol=1e-5)
    # The other label's level changes nothing here.
    np.testing.assert_allclose(found[1], predict(generator, batches, rows), rtol=1e-6)


# The complexity


def chosen(data: MoleculeSplit, posterior: bool = True, engine: BeganEngine = ENGINE, **changes: Any) -> tuple[Complexity, dict[str, Any]]:
    context = Context.fit(data.train, data.size_train, 5, seed=0)
    return choose(data, engine, replace(SETTINGS, **changes), context, np.random.default_rng(0), posterior=posterior, on_trial=lambda: None)


def test_what_is_given_is_taken(adata):
    complexity, why = chosen(data_of(adata))
    assert complexity == Complexity(5, 16, 100.0, 3)
    assert why == {"why": "all given by the caller"}
    # More scores than there are: what there is.
    assert chosen(data_of(adata), n_context=400)[0].n_context == 5


def test_conv_is_fixed_where_it_is_not_given(adata):
    complexity, why = chosen(data_of(adata), engine=replace(ENGINE, architecture="conv"), width=8, penalty=None)
    assert (complexity.width, complexity.max_epochs, complexity.penalty) == (8, 3, 200.0)
    assert "conv" in why["why"]


def test_what_is_left_open_is_chosen_among_what_was_tried(adata):
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
def test_what_cannot_be_told_from_the_best_is_as_good(adata, monkeypatch, noise, expected):
    """The fewest scores within a standard error of the paired difference, and then the best penalty."""
    behind = {(15, 30.0): 0.0, (5, 300.0): 0.04, (5, 30.0): 0.045}

    def scores(task, pairs, steps):
        spread = np.where(np.arange(400) % 2, 1.0, -1.0)
        return np.stack([1 + behind.get(pair, 9.0) + noise * (pair != (15, 30.0)) * spread for pair in pairs])

    monkeypatch.setattr("scimpute._counts.selection._score_candidates", scores)
    data = data_of(adata)
    context = Context.fit(data.train, data.size_train, 20, seed=0)
    open_ = replace(SETTINGS, penalty=None, n_context=None)
    complexity, _ = choose(data, ENGINE, open_, context, np.random.default_rng(0), posterior=True, on_trial=lambda: None)
    assert (complexity.n_context, complexity.penalty) == expected


def test_candidates_are_scored_by_what_is_asked_for(adata, monkeypatch):
    """Without the posterior, by the rates themselves."""
    data = data_of(adata)
    scored = {posterior: chosen(data, posterior, penalty=None)[1]["candidates"]["heldout"] for posterior in (True, False)}
    assert (scored[True] != scored[False]).all()
    # With a theta beyond all doubt the posterior mean is the rate.
    monkeypatch.setattr(
        "scimpute._counts.selection.dispersion.heldout_deviance", functools.partial(heldout_deviance, thetas=torch.tensor([1e9]))
    )
    np.testing.assert_allclose(chosen(data, penalty=None)[1]["candidates"]["heldout"], scored[False], rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_noise_gets_the_strong_penalty_and_structure_is_learnt(seed):
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


# The function


def test_all_genes_in_another_order(adata):
    """Columns, sizes and scores follow the order asked."""
    names = list(np.random.default_rng(1).permutation(adata.var_names))
    tl.began(adata, key_added="all", **QUICK)
    tl.began(adata, key_added="asked", genes=names, **QUICK)
    frame, layer = adata.obsm["asked"], pd.DataFrame(adata.layers["all"], adata.obs_names, adata.var_names)
    assert list(frame.columns) == list(adata.obsm["asked_sd"].columns) == names
    first, second = adata.uns["all"], adata.uns["asked"]
    assert second["heldout"]["gene_mean"] == pytest.approx(first["heldout"]["gene_mean"], rel=1e-5)
    for score in ("network", "posterior"):
        # Another deal of the genes: close, while columns that are mixed up miss by nats.
        assert second["heldout"][score] == pytest.approx(first["heldout"][score], abs=0.05)
    np.testing.assert_allclose(frame.mean(), adata.to_df().mean()[names], rtol=0.2, atol=0.1)
    for name in names:
        assert np.corrcoef(frame[name], layer[name])[0, 1] > 0.8, name


def test_outputs_are_one_result_on_three_scales(adata):
    size = np.asarray(adata.X.sum(1)).ravel()
    done = {output: tl.began(adata, output=output, copy=True, **QUICK) for output in ("counts", "rate", "log1p")}
    counts = done["counts"].layers["began"]
    np.testing.assert_allclose(done["rate"].layers["began"], counts / size[:, None], rtol=1e-5)
    np.testing.assert_allclose(done["log1p"].layers["began"], expected_log1p(counts, 1e4 / size), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(done["rate"].layers["began_sd"], done["counts"].layers["began_sd"] / size[:, None], rtol=1e-5)


@pytest.fixture(scope="module")
def batched() -> ad.AnnData:
    """120 cells of one kind in two batches; half of the genes are three times as high in the second, and not so the other half."""
    rng = np.random.default_rng(0)
    batch = np.arange(120) % 2
    rate = np.tile(rng.gamma(5, 1, size=30), (120, 1))
    rate[batch == 1, :15] *= 3
    obs = pd.DataFrame({"batch": pd.Categorical(np.where(batch, "second", "first"))}, index=[f"c{i}" for i in range(120)])
    return ad.AnnData(rng.poisson(rate).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(30)]))


def gap(adata: ad.AnnData, values: np.ndarray) -> np.ndarray:
    """Log ratio of the batches' mean shares, of each gene."""
    shares = values / values.sum(1, keepdims=True)
    second = (adata.obs["batch"] == "second").to_numpy()
    return np.log(shares[second].mean(0) / shares[~second].mean(0))


@pytest.mark.parametrize("posterior", [True, False])
def test_target_batch_moves_the_means_to_the_target(batched, posterior):
    quick = QUICK | {"max_epochs": 20, "n_context": 1, "penalty": 1.0, "learning_rate": 5e-3, "posterior": posterior, "copy": True}
    values = {}
    for target in (None, "first", "second", "average"):
        values[target] = tl.began(batched, "batch", target_batch=target, **quick).layers["began"]
    before = np.abs(gap(batched, batched.X)).mean()
    assert np.abs(gap(batched, values[None])).mean() > 0.8 * before
    for target in ("first", "second", "average"):
        assert np.abs(gap(batched, values[target])).mean() < 0.5 * before, target
    # A cell of the target batch is imputed as without a target: same seed, same networks.
    for target in ("first", "second"):
        own = (batched.obs["batch"] == target).to_numpy()
        np.testing.assert_allclose(values[target][own], values[None][own], rtol=1e-3, atol=1e-4)
        assert np.abs(values[target][~own] - values[None][~own]).max() > 1
    if not posterior:
        np.testing.assert_allclose(values["average"], (values["first"] + values["second"]) / 2, rtol=1e-4)


def test_rates_of_many_levels_are_held_one_at_a_time(monkeypatch):
    """The mean over 40 batches takes no more memory than that over 2, and the inputs are made once."""
    given: list[weakref.ref[torch.Tensor]] = []
    held, made = [], []

    def predicted(generator, batches, cells, inputs, label, level):
        held.append(sum(tensor() is not None for tensor in given))
        rate = torch.full((len(cells), 3), float(level))
        given.append(weakref.ref(rate))
        return rate

    class Batches:
        device = torch.device("cpu")

        def chunks(self):
            yield from (slice(0, 4), slice(4, 6))

        def inputs(self, cells):
            made.append(len(cells))

    monkeypatch.setattr("scimpute._counts.rates._rates_of_level", predicted)
    rates = RateMoments(6, 3)
    add_rates(None, Batches(), Target(0, list(range(40))), rates, None, 0)
    np.testing.assert_allclose(rates.mean, 39 / 2)
    assert len(held) == 80
    assert max(held) <= 2
    assert sorted(made) == [2, 4]


def test_size_key_gives_shares_of_the_whole_library(adata):
    """Of an object cut to half of its genes, with the sizes of before."""
    adata.obs["total"] = np.asarray(adata.X.sum(1)).ravel()
    cut = adata[:, ::2].copy()
    share = float(cut.X.sum() / adata.obs["total"].sum())
    quick = QUICK | {"output": "rate", "posterior": False, "copy": True}
    rates = {key: tl.began(cut, size_key=key, **quick) for key in (None, "total")}
    for key, expected in ((None, 1.0), ("total", share)):
        got = rates[key].layers["began"].sum(1)
        assert got.mean() == pytest.approx(expected, rel=0.05)
    assert 0.3 < share < 0.7
    assert rates["total"].uns["began"]["params"]["size_key"] == "total"
    # Counts are at the depth of the whole library times these shares: those of the genes that are left.
    counts = tl.began(cut, size_key="total", **quick | {"output": "counts"}).layers["began"]
    np.testing.assert_allclose(counts, rates["total"].layers["began"] * adata.obs["total"].to_numpy()[:, None], rtol=1e-4)
    assert counts.sum() == pytest.approx(float(cut.X.sum()), rel=0.05)


@pytest.mark.parametrize("options", [{}, {"penalty": "auto", "max_epochs": 3}], ids=["given", "chosen"])
def test_minibatches_without_a_removed_molecule(options):
    """Most cells have none to lose."""
    counts = np.zeros((80, 5), dtype=np.float32)
    counts[:12] = np.random.default_rng(0).poisson(2.0, size=(12, 5))
    adata = ad.AnnData(sp.csr_matrix(counts))
    with pytest.warns(UserWarning, match="68 cells have no molecules"):
        tl.began(adata, **QUICK | {"batch_size": 8} | options)
    assert np.isfinite(adata.layers["began"]).all()


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("options", [{}, {"max_epochs": 2}], ids=["chosen", "two epochs"])
def test_few_cells_among_empty_ones_keep_their_molecules(k, options):
    """More scores than cells: what is told beyond the rank of the data is nothing."""
    rng = np.random.default_rng(0)
    counts = np.vstack([rng.poisson(rng.gamma(1, 1, (k, 30)) * 3.0), np.zeros((30 - k, 30))]).astype(np.float32)
    with warnings.catch_warnings():
        # Of empty cells, and of a network that learns little from one cell.
        warnings.simplefilter("ignore", UserWarning)
        got = tl.began(ad.AnnData(sp.csr_matrix(counts)), n_repeats=2, copy=True, **options).layers["began"]
    np.testing.assert_allclose(got[:k].sum(1), counts[:k].sum(1), rtol=0.2)
    assert got[k:].max(initial=0) < 1e-6


def test_one_huge_count(adata):
    counts = adata.X.toarray()
    counts[0, 0] = 1e12
    got = tl.began(ad.AnnData(sp.csr_matrix(counts)), copy=True, **QUICK | {"penalty": "auto"}).layers["began"]
    assert np.isfinite(got).all()
    assert got[0, 0] == pytest.approx(1e12, rel=0.05)


def test_depths_of_one_technology_weigh_alike():
    rng = np.random.default_rng(0)
    size, labels = rng.lognormal(8, 0.6, 500), (np.arange(500) % 4,)
    assert depth_weights(size, labels) is None
    assert depth_weights(np.zeros(5), ()) is None
    # A few deep cells are no technology.
    assert depth_weights(np.r_[size, 1e7], (np.append(labels[0], 0),)) is None


@pytest.mark.parametrize("n", [250, 20], ids=["half", "a few, by their label"])
def test_shallow_cells_are_not_drowned(n):
    rng = np.random.default_rng(0)
    size = np.r_[rng.lognormal(8, 0.3, n), rng.lognormal(13, 0.3, 500)]
    weight = depth_weights(size, (np.arange(len(size)) < n,))
    assert weight[size < 8000].min() == 1
    counted = size * weight
    assert counted.max() < 5 * np.median(counted[:n])
    # Without an empty cell nothing changes; an empty one counts as one without molecules.
    np.testing.assert_allclose(
        depth_weights(np.r_[size, np.zeros(400)], (np.r_[np.arange(len(size)) < n, np.ones(400, bool)],))[: len(size)], weight
    )


def test_cells_beside_deeper_ones_keep_depth_and_profile():
    """UMI cells beside full-length reads, as near to the truth as if they were imputed alone."""
    rng, n = np.random.default_rng(0), 100
    profiles = rng.gamma(0.4, 1, (3, 60)) + 0.02
    truth = (profiles / profiles.sum(1, keepdims=True))[rng.integers(0, 3, 2 * n)]
    depth = np.r_[rng.lognormal(np.log(2e3), 0.3, n), rng.lognormal(np.log(5e5), 0.3, n)]
    adata = ad.AnnData(rng.poisson(truth * depth[:, None]).astype(np.float32))
    adata.obs["technology"] = np.repeat(["UMI", "full length"], n)
    alone = tl.began(adata[:n].copy(), n_repeats=1, copy=True).layers["began"]
    beside = tl.began(adata, "technology", n_repeats=1, copy=True).layers["began"][:n]
    assert beside.sum() == pytest.approx(adata.X[:n].sum(), rel=0.03)

    def error(values):
        shares = values / values.sum(1, keepdims=True)
        return (truth[:n] * np.log(truth[:n] / shares)).sum(1).mean()

    assert error(beside) < 2 * error(alone)
