"""``likelihood="squared"``: whole entries are hidden, zeros are missing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scimpute
from scimpute._counts.entries import EntrySplit
from scimpute._counts.minibatches import CellBatches, Context
from scimpute._counts.partition import Partition
from scimpute._space.side import SideInformation
from scimpute.models.likelihood import squared_error

QUICK = {"likelihood": "squared", "max_epochs": 2, "n_repeats": 1, "progress": False}
KEY = "spatial_imputed"


@pytest.fixture
def tissue() -> ad.AnnData:
    return scimpute.datasets.toy_visium(8, 8, 30)


@pytest.fixture
def side() -> SideInformation:
    return SideInformation(("counts",), {}, [], (), 0.0)


def test_squared_error_by_hand():
    log_rate = torch.log(torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]]]))
    size, values = torch.tensor([10.0, 20.0]), torch.tensor([3.0, 4.0])
    # Of the first block the second gene of the first spot, of the second block the first gene of the second.
    found = squared_error(log_rate, size, torch.tensor([1, 6]), values)
    assert float(found) == pytest.approx(np.log(0.2 * 10 / 3) ** 2 + np.log(0.7 * 20 / 4) ** 2)


def test_hidden_entries_are_asked_for_and_not_told(side):
    rng = np.random.default_rng(0)
    dense = rng.poisson(2.0, (12, 8)).astype(np.float32)
    dense[3] = 0
    counts, size = sp.csr_matrix(dense), dense.sum(axis=1) + 5
    partition = Partition(np.arange(8), np.array([3, 0, 7, 2, 5, 1, 6, 4]), 2, 4)
    batches = CellBatches(counts, size, (), partition, Context.fit(counts, size, 2, 0), torch.device("cpu"), side)
    rows = np.array([4, 3, 0, 9, 7])
    whole, part = batches.inputs(rows), batches.with_hidden_entries(rows, rng)
    told, asked = partition.to_genes(part.inputs[..., :4]).numpy() > 0, np.zeros((5, 8), dtype=bool)
    flat = torch.zeros(2 * 5 * 4)
    flat[part.place] = part.removed
    asked = partition.to_genes(flat.view(2, 5, 4)).numpy()
    assert 0 < (asked > 0).sum() < counts[rows].nnz
    np.testing.assert_array_equal(told, (dense[rows] > 0) & (asked == 0))
    np.testing.assert_array_equal(asked[asked > 0], dense[rows][asked > 0])
    np.testing.assert_array_equal(part.exposure.numpy(), size[rows])
    # Shown values are those of the whole spot, and its depth is known; the scores are of what is shown, scaled up.
    values = partition.to_genes(whole[..., :4]).numpy()
    np.testing.assert_allclose(partition.to_genes(part.inputs[..., :4]).numpy()[told], values[told])
    np.testing.assert_array_equal(part.inputs[..., -1], whole[..., -1])
    loadings, cp10k = batches.context.loadings.numpy(), np.sqrt(1e4 * dense[rows] / size[rows, None])
    share = told.sum(axis=1) / np.maximum((dense[rows] > 0).sum(axis=1), 1)
    expected = (cp10k * told) @ loadings / np.maximum(share, 0.05)[:, None]
    np.testing.assert_allclose(part.inputs[0, :, 4:-1], expected, rtol=1e-4, atol=1e-5)


def test_what_is_held_out_is_not_learnt_from(side):
    rng = np.random.default_rng(1)
    counts = sp.csr_matrix(rng.poisson(0.8, (200, 40)).astype(np.float32))
    size = np.asarray(counts.sum(axis=1)).ravel()
    data = EntrySplit.prepare(counts, size, (), np.arange(counts.shape[1]), torch.device("cpu"), rng, side)
    assert data.train.multiply(data.heldout).nnz == 0
    assert (data.train + data.heldout != counts).nnz == 0
    assert data.heldout.nnz == pytest.approx(0.05 * counts.nnz, rel=0.2)


def test_size_of_a_gene_and_its_slope_with_the_depth(side):
    """Counts that grow with the root of the depth, in every gene alike."""
    rng = np.random.default_rng(2)
    depth, level = rng.lognormal(0, 0.7, 400), rng.lognormal(3, 1, 12)
    counts = sp.csr_matrix(np.maximum(np.rint(np.sqrt(depth)[:, None] * level * rng.lognormal(0, 0.05, (400, 12))), 1).astype(np.float32))
    size = 1e4 * depth
    data = EntrySplit.prepare(counts, size, (), np.arange(counts.shape[1]), torch.device("cpu"), rng, side)
    assert data.depth_slope == pytest.approx(-0.5, abs=0.02)
    middle = np.median(size)
    expected = level * np.sqrt(middle / 1e4) / middle
    np.testing.assert_allclose(data.share[level > 10], expected[level > 10], rtol=0.05)


@pytest.mark.parametrize("modalities", ["counts", "position", ["counts", "position"]], ids=str)
def test_zeros_are_filled_and_the_rest_stays(tissue, modalities):
    scimpute.tl.spatial(tissue, modalities=modalities, **QUICK)
    found, measured = tissue.layers[KEY], tissue.X.toarray()
    np.testing.assert_array_equal(found[measured > 0], measured[measured > 0])
    expressed = measured.any(axis=0)
    assert (found[:, expressed] > 0).all()
    assert (tissue.layers[KEY + "_sd"][:, expressed] > 0).all()
    # Given that anything was counted it was one at least.
    assert found[:, expressed][measured[:, expressed] == 0].min() > 0.5


def test_recovers_what_was_hidden():
    adata = scimpute.datasets.toy_visium(16, 14, 60, depth=600)
    scimpute.pp.tiles(adata)
    scimpute.pp.hide(adata)
    options = QUICK | {"max_epochs": 60, "n_repeats": 2, "layer": "hidden"}
    scimpute.tl.spatial(adata, tile_features="tiles", key_added="all", **options)
    scimpute.tl.nmf(adata, key_added="factors", likelihood="squared", layer="hidden", progress=False)
    # What is best where only the gene is known: the typical size of its visible non-zero counts.
    visible = adata.layers["hidden"].toarray()
    typical = np.log(np.maximum(visible, 1)).sum(axis=0) / np.maximum((visible > 0).sum(axis=0), 1)
    adata.layers["of_gene"] = np.exp(np.broadcast_to(typical, adata.shape)).astype(np.float32)
    scores = scimpute.metrics.recovery(adata, ["of_gene", "all", "factors"])["rmse_log1p_cp10k"]
    assert scores["all"] < 0.9 * scores["of_gene"]
    assert scores["factors"] < scores["of_gene"]
    record = adata.uns["all"]["heldout"]
    assert set(record) == {"gene_mean", "network"}
    assert record["network"] < record["gene_mean"]
    # One over the size is the variance of the log around its prediction.
    assert np.median(1 / adata.uns["all"]["inverse_dispersion"]) == pytest.approx(record["network"], rel=0.5)


@pytest.mark.parametrize("output", ["rate", "log1p"])
def test_other_scales(tissue, tmp_path, output):
    scimpute.tl.spatial(tissue, key_added="counts", **QUICK)
    scimpute.tl.spatial(tissue, output=output, save=tmp_path / "model", **QUICK)
    rate = tissue.layers["counts"] / np.asarray(tissue.X.sum(axis=1))
    np.testing.assert_allclose(tissue.layers[KEY], rate if output == "rate" else np.log1p(1e4 * rate), rtol=1e-4)
    scimpute.tl.apply(tissue, tmp_path / "model", key_added="again")
    np.testing.assert_allclose(tissue.layers["again"], tissue.layers[KEY], rtol=1e-4)


def test_saved_model(tissue, tmp_path):
    scimpute.tl.spatial(tissue, "hires", save=tmp_path / "model", **QUICK)
    scimpute.tl.apply(tissue, tmp_path / "model", key_added="again")
    for suffix in ("", "_sd"):
        np.testing.assert_allclose(tissue.layers["again" + suffix], tissue.layers[KEY + suffix], rtol=1e-5)


@pytest.mark.parametrize("function", [scimpute.tl.spatial, scimpute.tl.nmf], ids=lambda f: f.__name__)
def test_refused(tissue, refused, function):
    refused(tissue, lambda adata: function(adata, likelihood="gaussian"), ValueError, "likelihood must be one of")
    refused(tissue, lambda adata: function(adata, likelihood="squared", posterior=True), ValueError, "pass posterior=False")


def test_nothing_but_zeros(tissue, refused):
    tissue.X = sp.csr_matrix(tissue.shape, dtype=np.float32)
    refused(tissue, lambda adata: scimpute.tl.spatial(adata, **QUICK), ValueError, "has no non-zero entry")
