import warnings

import numpy as np
import pytest
import scanpy as sc
from anndata import read_h5ad

from scimpute import datasets


def test_pbmc68k_counts_give_back_what_is_bundled():
    adata = datasets.pbmc68k()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundled = sc.datasets.pbmc68k_reduced()
    assert adata.shape == (700, 765)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert np.array_equal(adata.X.data, np.rint(adata.X.data))
    assert adata.X.data.min() == 1
    size = adata.obs["n_counts"].to_numpy()[:, None]
    np.testing.assert_allclose(np.log1p(adata.X.toarray() / size * 1e4), bundled.raw.X.toarray(), atol=1e-3)
    assert np.all(adata.X.toarray().sum(1, keepdims=True) < size)
    assert adata.raw is None
    assert not adata.layers
    assert list(adata.obs) == ["bulk_labels", "n_counts"]
    assert list(adata.uns) == ["bulk_labels_colors"]
    assert set(adata.obsm) == {"X_pca", "X_umap"}
    assert len(adata.uns["bulk_labels_colors"]) == adata.obs["bulk_labels"].nunique() == 10


def test_pbmc68k_refuses_other_data(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = sc.datasets.pbmc68k_reduced()
    other.obs["n_counts"] *= 1.5
    monkeypatch.setattr(sc.datasets, "pbmc68k_reduced", lambda: other)
    with pytest.raises(RuntimeError, match="cannot be recovered"):
        datasets.pbmc68k()


def test_toy_counts_is_whole_and_seeded(tmp_path):
    adata = datasets.toy_counts()
    assert adata.shape == (60, 40)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert np.array_equal(adata.X.data, np.rint(adata.X.data))
    assert adata.layers["rate"].dtype == np.float32
    assert np.all(adata.layers["rate"] > 0)
    assert set(adata.obs["batch"]) == {"batch0", "batch1"}
    assert set(adata.obs["cell_type"]) == {"type0", "type1", "type2"}
    same, other = datasets.toy_counts(random_state=np.random.default_rng(0)), datasets.toy_counts(random_state=1)
    assert np.array_equal(adata.X.toarray(), same.X.toarray())
    assert not np.array_equal(adata.X.toarray(), other.X.toarray())
    adata.write_h5ad(tmp_path / "toy.h5ad")
    assert read_h5ad(tmp_path / "toy.h5ad").uns["toy_counts"]["depth"] == 200


def test_toy_counts_has_the_planted_structure():
    adata = datasets.toy_counts(600, 50, n_types=2, n_batches=2, rank=2, dropout=0.0, depth=500)
    rate, counts = adata.layers["rate"].astype(float), adata.X.toarray()
    assert abs(rate.sum(1).mean() / 500 - 1) < 0.1
    # Poisson: the mean of (x - rate)^2 / rate is 1.
    assert abs(((counts - rate) ** 2 / rate).mean() - 1) < 0.15
    # Of the log rate remains, without gene levels and the cells' own constants, the rank of the states and one for two batches.
    log_rate = np.log(rate)
    log_rate -= log_rate.mean(1, keepdims=True)
    values = np.linalg.svd(log_rate - log_rate.mean(0), compute_uv=False)
    assert values[2] > 1e-3 * values[0] > values[3]


def test_toy_batch_effect_is_what_batches_differ_by():
    one, other = (datasets.toy_counts(400, 50, depth=500, batch_effect=effect) for effect in (1.0, 0.0))
    effect = one.varm["batch_effect"]
    assert list(effect.columns) == ["batch0", "batch1"]
    assert effect.to_numpy().std() > 0.7
    assert not other.varm["batch_effect"].to_numpy().any()
    # Without it, all cells are as in the object that never had one: the deals of the two are the same.
    share = np.log(one.layers["rate"].astype(float)) - effect[one.obs["batch"]].to_numpy().T
    share -= share.mean(1, keepdims=True)
    expected = np.log(other.layers["rate"].astype(float))
    np.testing.assert_allclose(share, expected - expected.mean(1, keepdims=True), atol=1e-4)


def test_toy_dropout_takes_the_wanted_fraction_and_the_low_entries_first():
    adata = datasets.toy_counts(800, 40, dropout=0.4, depth=4000)
    rate, zero = adata.layers["rate"], adata.X.toarray() == 0
    seen = rate > 10  # zero by chance in one of 20,000
    lost = datasets._toy._loss(np.log(rate), 0.4)
    assert abs(lost.mean() - 0.4) < 1e-3
    assert abs(zero[seen].mean() - lost[seen].mean()) < 0.02
    assert zero[seen & (rate < 30)].mean() > zero[rate > 100].mean() + 0.2


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"n_obs": 0}, ValueError, "n_obs"),
        ({"n_vars": 2.5}, ValueError, "n_vars"),
        ({"n_types": 61}, ValueError, "n_types=61"),
        ({"n_batches": 61}, ValueError, "n_batches=61"),
        ({"rank": "3"}, TypeError, "rank"),
        ({"depth": 0.0}, ValueError, "depth"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"batch_effect": -0.1}, ValueError, "batch_effect"),
        ({"random_state": -1}, ValueError, "random_state"),
    ],
)
def test_toy_counts_refuses(wrong, error, message):
    with pytest.raises(error, match=message):
        datasets.toy_counts(**wrong)
