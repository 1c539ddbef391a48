"""What a run records of the counts it was given, and how the rest of the package finds them again."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scimpute
from scimpute.metrics import _replay

QUICK: dict[str, Any] = {"max_epochs": 1, "n_repeats": 1, "n_context": 2, "penalty": 1.0, "width": 4}


@pytest.fixture
def named_x() -> ad.AnnData:
    """Counts in X, and other counts in a layer that is called "X"."""
    adata = scimpute.datasets.toy_counts()
    adata.layers["X"] = sp.csr_matrix(adata.X.toarray()[::-1] + 1)
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2))
    return adata


# A layer called "X"


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "from a file"])
@pytest.mark.parametrize("layer", [None, "X"])
def test_a_replay_reads_what_was_imputed(named_x, layer, stored, tmp_path):
    scimpute.tl.began(named_x, layer=layer, **QUICK)
    if stored:
        named_x.write_h5ad(tmp_path / "file.h5ad")
        named_x = ad.read_h5ad(tmp_path / "file.h5ad")
    again = _replay.read(named_x, "began", None, None, 0, "cpu", False)
    assert (again.counts != (named_x.X if layer is None else named_x.layers[layer])).nnz == 0


def test_a_record_of_an_older_version_means_x(named_x):
    scimpute.tl.began(named_x, **QUICK)
    named_x.uns["began"] = {name: value for name, value in named_x.uns["began"].items() if name != "source"}
    assert named_x.uns["began"]["params"]["layer"] == "X"
    again = _replay.read(named_x, "began", None, None, 0, "cpu", False)
    assert (again.counts != named_x.X).nnz == 0


def test_a_plot_shows_what_was_imputed(named_x):
    scimpute.tl.began(named_x, layer="X", **QUICK)
    gene = named_x.var_names[3]
    _, shown = scimpute.pl.imputed(named_x, gene, show=False)[0], scimpute.pl._read.before_and_after(named_x, [gene], "began", None)
    counts = named_x.layers["X"].toarray()
    np.testing.assert_allclose(shown[0][:, 0], np.log1p(counts[:, 3] / counts.sum(axis=1) * 1e4), rtol=1e-5)


def test_an_applied_model_records_what_it_read(named_x, tmp_path):
    scimpute.tl.began(named_x, save=tmp_path / "model.safetensors", **QUICK)
    scimpute.tl.apply(named_x, tmp_path / "model.safetensors", layer="X")
    again = _replay.read(named_x, "began", None, None, 0, "cpu", False)
    assert (again.counts != named_x.layers["X"]).nnz == 0


@pytest.mark.parametrize("call", [scimpute.tl.nmf, scimpute.tl.spatial])
def test_spots_record_what_they_read(named_x, call):
    named_x.obsm["spatial"] = np.random.default_rng(0).uniform(size=(named_x.n_obs, 2))
    quick: dict[str, Any] = {"max_epochs": 1, "penalty": 1.0}
    call(named_x, layer="X", key_added="key", **quick | ({"n_factors": 2} if call is scimpute.tl.nmf else {"n_context": 2, "width": 4}))
    again = _replay.read(named_x, "key", None, None, 0, "cpu", False)
    assert (again.counts != named_x.layers["X"]).nnz == 0


def test_hidden_entries_of_a_layer_called_x(named_x):
    scimpute.pp.hide(named_x, layer="X")
    named_x.layers["zero"] = np.zeros(named_x.shape, np.float32)
    table = scimpute.metrics.recovery(named_x, ["zero"])
    assert np.isfinite(table).to_numpy().any()


@pytest.mark.parametrize(("layer", "warned"), [(None, False), ("X", True)])
def test_a_leak_is_told_by_what_was_read(named_x, layer, warned, recwarn):
    """What was imputed is the training part itself, in X, or a layer called X that holds all."""
    scimpute.pp.thin(named_x)
    named_x.layers["X"] = named_x.X
    named_x.X = named_x.layers["thin_train"].copy()
    scimpute.tl.began(named_x, layer=layer, **QUICK)
    recwarn.clear()
    scimpute.metrics.heldout(named_x, "began")
    assert any("has seen the held-out molecules" in str(w.message) for w in recwarn) == warned
