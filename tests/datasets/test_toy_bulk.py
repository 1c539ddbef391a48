import numpy as np
import pytest
from anndata import read_h5ad

from scimpute import datasets


def test_is_whole_and_seeded(tmp_path):
    adata = datasets.toy_bulk()
    assert adata.shape == (200, 300)
    for matrix in (adata.X, adata.layers["truth"]):
        assert isinstance(matrix, np.ndarray)
        assert matrix.dtype == np.float32
        assert np.isfinite(matrix).all()
    assert list(adata.obs) == ["tissue", "sex", "age"]
    assert dict(adata.obs["tissue"].value_counts()) == {f"tissue{i}": 50 for i in range(4)}
    assert dict(adata.obs["sex"].value_counts()) == {"female": 100, "male": 100}
    assert adata.obs["age"].between(20, 80).all()
    assert adata.obs["age"].dtype == np.float64
    entry = adata.uns["toy_bulk"]
    assert len(entry["sex_genes"]) == 6
    assert len(entry["age_genes"]) == 30
    assert {*entry["sex_genes"], *entry["age_genes"]} <= set(adata.var_names)
    assert not set(entry["sex_genes"]) & set(entry["age_genes"])
    same, other = datasets.toy_bulk(random_state=np.random.default_rng(0)), datasets.toy_bulk(random_state=1)
    assert np.array_equal(adata.X, same.X)
    assert not np.array_equal(adata.X, other.X)
    adata.write_h5ad(tmp_path / "toy.h5ad")
    read = read_h5ad(tmp_path / "toy.h5ad")
    assert read.uns["toy_bulk"]["noise"] == 0.5
    assert list(read.uns["toy_bulk"]["age_genes"]) == entry["age_genes"]


def test_has_the_planted_structure():
    adata = datasets.toy_bulk(2000, 100, n_tissues=3, rank=2, noise=0.3)
    truth, tissue = adata.layers["truth"].astype(float), adata.obs["tissue"].cat.codes.to_numpy()
    sex_genes, age_genes = (adata.var_names.isin(adata.uns["toy_bulk"][name]) for name in ("sex_genes", "age_genes"))
    male, age = (adata.obs["sex"] == "male").to_numpy(), (adata.obs["age"].to_numpy() - 50) / 30
    # Noise of each gene's own level.
    noise = (adata.X - truth).std(axis=0)
    np.testing.assert_allclose(noise, adata.var["noise"], rtol=0.1)
    assert noise.max() > 2 * noise.min()
    assert abs(noise.mean() - 0.3) < 0.05
    # A regression on tissue, sex and age finds the effects where they were planted.
    design = np.column_stack([np.eye(3)[tissue], male, age])
    coefficients = np.linalg.lstsq(design, truth, rcond=None)[0]
    sex_effect, age_effect = np.where(sex_genes, 2, 0), np.where(age_genes, 1.5, 0)
    np.testing.assert_allclose(np.abs(coefficients[3]), sex_effect, atol=0.3)
    np.testing.assert_allclose(np.abs(coefficients[4]), age_effect, atol=0.3)
    assert coefficients[:3].std(axis=0).mean() > 0.5
    # What remains is of the rank of the factors.
    values = np.linalg.svd(truth - design @ coefficients, compute_uv=False)
    assert values[1] > 1e4 * values[2]
    assert abs((truth - design @ coefficients).var(axis=0).mean() - 1) < 0.3


def test_without_noise_and_at_the_smallest_size(tmp_path):
    adata = datasets.toy_bulk(noise=0)
    assert np.array_equal(adata.X, adata.layers["truth"])
    adata = datasets.toy_bulk(1, 1, n_tissues=1, rank=1)
    adata.write_h5ad(tmp_path / "toy.h5ad")
    assert read_h5ad(tmp_path / "toy.h5ad").shape == (1, 1)
    assert len(adata.uns["toy_bulk"]["sex_genes"]) == 1
    assert len(adata.uns["toy_bulk"]["age_genes"]) == 0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"n_obs": 0}, ValueError, "n_obs"),
        ({"n_vars": 2.5}, ValueError, "n_vars"),
        ({"n_tissues": 201}, ValueError, "n_tissues=201 is more than the number of samples, n_obs=200"),
        ({"rank": "3"}, TypeError, "rank"),
        ({"noise": -0.1}, ValueError, "noise"),
        ({"random_state": -1}, ValueError, "random_state"),
    ],
)
def test_refuses(wrong, error, message):
    with pytest.raises(error, match=message):
        datasets.toy_bulk(**wrong)
