"""Embeddings of categorical covariates that ``tl.pmi`` and ``tl.gain`` have learnt."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scimpute
from scimpute._save import load_model


def related(seed: int) -> ad.AnnData:
    """Eight tissues of which two each share most of their effect, a quarter of the values missing; and a sex that says little."""
    adata = scimpute.datasets.toy_bulk(160, 100, n_tissues=8, random_state=seed)
    rng = np.random.default_rng(seed + 100)
    adata.X += rng.normal(0, 1.5, (4, adata.n_vars)).astype(np.float32)[adata.obs["tissue"].cat.codes // 2]
    adata.X[rng.random(adata.shape) < 0.25] = np.nan
    return adata


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["pmi", "gain"])
def test_related_tissues_are_near_each_other(method, seed, tmp_path):
    adata = related(seed)
    getattr(scimpute.tl, method)(adata, categorical_covariates=["sex", "tissue"], n_models=1, n_hidden=8, max_epochs=1)
    found = adata.uns[method]["embeddings"]
    assert list(found) == ["sex", "tissue"]
    assert found["sex"].shape == (2, 2)
    assert found["tissue"].shape == (8, 3)
    assert set(found["tissue"].index) == {f"tissue{i}" for i in range(8)}
    where = found["tissue"].loc[[f"tissue{i}" for i in range(8)]].to_numpy()
    apart = np.linalg.norm(where[:, None] - where, axis=2)
    kin = np.kron(np.eye(4), np.ones((2, 2))).astype(bool)
    others = ~kin
    assert apart[kin & ~np.eye(8, dtype=bool)].mean() < 0.6 * apart[others].mean()
    nearest = np.where(np.eye(8, dtype=bool), np.inf, apart).argmin(axis=1)
    assert (nearest == np.arange(8) ^ 1).sum() >= 6
    # Sexes differ in a fiftieth of the genes.
    assert np.ptp(found["sex"].to_numpy()[:, 0]) < 0.5 * apart[others].mean()
    adata.write_h5ad(tmp_path / "again.h5ad")
    again = ad.read_h5ad(tmp_path / "again.h5ad").uns[method]["embeddings"]
    for column, table in found.items():
        pd.testing.assert_frame_equal(again[column], table, check_names=False)


@pytest.mark.parametrize("method", ["pmi", "gain"])
def test_embeddings_of_networks_alone_are_theirs(method, tmp_path):
    adata, path = related(0), tmp_path / "model.safetensors"
    arguments = {"variant": "published", "n_models": 2, "n_hidden": 8, "max_epochs": 1, "categorical_covariates": ["sex", "tissue"]}
    getattr(scimpute.tl, method)(adata, **arguments, save=path)
    tensors, metadata = load_model(path)
    name = {"pmi": "network", "gain": "generator"}[method]
    for place, column in enumerate(["sex", "tissue"]):
        found = adata.uns[method]["embeddings"][column]
        expected = [tensors[f"network{i}.{name}.covariates.tables.{place}"].numpy() for i in range(2)]
        np.testing.assert_array_equal(found, np.hstack(expected))
        assert list(found.index) == metadata["covariates"]["categorical"][column]


def test_no_covariates_no_embeddings():
    adata = related(0)
    scimpute.tl.pmi(adata, n_models=1, n_hidden=8, max_epochs=1, continuous_covariates="age")
    assert "embeddings" not in adata.uns["pmi"]
