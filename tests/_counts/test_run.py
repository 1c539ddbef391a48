"""The rates of a run: repeats combined, levels of a label, and what they are worth on molecules held out."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from scimpute._counts.context import Context
from scimpute._counts.fit import Trained, predict_all
from scimpute._counts.molecules import MoleculeSplit
from scimpute._counts.partition import Partition
from scimpute._counts.rates import RateMoments, add_rates, predict
from scimpute._counts.split import SplitInContext
from scimpute._counts.target_batch import Target
from scimpute._train import History
from scimpute.models.posterior import NonZero, Posterior


class Known:
    """A network that knows nothing but a log rate for each gene, a step more for each level of the first label."""

    def __init__(self, data: MoleculeSplit, partition: Partition, log_rate: np.ndarray, step: float | np.ndarray = 0.0) -> None:
        self.log_rate, self.step = partition.to_blocks(log_rate, -30.0), partition.to_blocks(np.broadcast_to(step, log_rate.shape), 0.0)

    def __call__(self, inputs, labels, features):
        return self.log_rate + self.step * labels[0][None, :, None].float()

    def add_to_log_share(self, by):
        self.log_rate = self.log_rate + by


@pytest.fixture
def combined(adata, data_of):
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
    prior, heldout = data.judge(result.validation)
    assert prior.theta.shape == share.shape
    np.testing.assert_allclose(prior.reference, share * np.median(data.size_train), rtol=1e-5)
    ratio, _ = Posterior(prior)(torch.from_numpy(np.log(mu).astype(np.float32)), NonZero.of(data.train[:, data.genes]))
    posterior = ratio.numpy() * network
    for name, rate in {"gene_mean": share, "network": network, "posterior": posterior}.items():
        expected = (rate * exposure - y * np.log(rate + np.zeros_like(y))).sum() / y.sum()
        assert heldout[name] == pytest.approx(expected, rel=1e-4), name


def test_predict_as_another_level(adata, data_of):
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
