"""What a run records of the counts it was given, and how the rest of the package finds them again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

import scimpute
from scimpute._anndata.fingerprint import fingerprint, is_same
from scimpute._anndata.results import has_sd
from scimpute._anndata.source import find_counts
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
    again = _replay.read(named_x, "began", None, None, 0, "cpu")
    assert (again.counts != (named_x.X if layer is None else named_x.layers[layer])).nnz == 0


def test_a_record_of_an_older_version_means_x(named_x):
    scimpute.tl.began(named_x, **QUICK)
    named_x.uns["began"] = {name: value for name, value in named_x.uns["began"].items() if name != "source"}
    assert named_x.uns["began"]["params"]["layer"] == "X"
    again = _replay.read(named_x, "began", None, None, 0, "cpu")
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
    again = _replay.read(named_x, "began", None, None, 0, "cpu")
    assert (again.counts != named_x.layers["X"]).nnz == 0


@pytest.mark.parametrize("call", [scimpute.tl.nmf, scimpute.tl.spatial])
def test_spots_record_what_they_read(named_x, call):
    named_x.obsm["spatial"] = np.random.default_rng(0).uniform(size=(named_x.n_obs, 2))
    quick: dict[str, Any] = {"max_epochs": 1, "penalty": 1.0}
    call(named_x, layer="X", key_added="key", **quick | ({"n_factors": 2} if call is scimpute.tl.nmf else {"n_context": 2, "width": 4}))
    again = _replay.read(named_x, "key", None, None, 0, "cpu")
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


# Counts that are not where they were


def normalise(adata: ad.AnnData) -> ad.AnnData:
    """As scanpy's users do: a copy of the counts, and X in place."""
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata


def to_raw(adata: ad.AnnData) -> ad.AnnData:
    """As older tutorials do."""
    adata.raw = adata.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata


def shuffled(adata: ad.AnnData) -> ad.AnnData:
    return normalise(adata)[::-1, np.random.default_rng(0).permutation(adata.n_vars)].copy()


def renamed(adata: ad.AnnData) -> ad.AnnData:
    normalise(adata).var_names = [f"ENSG{i:011}" for i in range(adata.n_vars)]
    adata.obs_names = [f"{name}-1" for name in adata.obs_names]
    return adata


def among_others(adata: ad.AnnData) -> ad.AnnData:
    """Other layers have counts as well."""
    adata.layers["ambient"] = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, adata.shape).astype(np.float32))
    return normalise(adata)


MOVED: dict[str, Callable[[ad.AnnData], ad.AnnData]] = {
    "layer": normalise,
    "raw": to_raw,
    "shuffled": shuffled,
    "renamed": renamed,
    "among others": among_others,
    "fewer cells": lambda adata: among_others(adata)[:40].copy(),
    "fewer genes": lambda adata: among_others(adata)[:, :30].copy(),
    "a view": lambda adata: among_others(adata)[:, :30],
    "fewer of both": lambda adata: normalise(adata)[:40, :30].copy(),
    "raw of more genes": lambda adata: to_raw(adata)[:, 5:30].copy(),
}


@pytest.fixture
def imputed() -> Any:
    """An imputed object, and its counts in a layer that no function looks at: of the type of decimals."""
    adata = scimpute.datasets.toy_counts()
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2))
    scimpute.tl.began(adata, **QUICK)
    adata.obsm["truth"] = adata.X.toarray()
    adata.varm["place"] = np.arange(adata.n_vars)[:, None]
    return adata


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "from a file"])
@pytest.mark.parametrize("how", MOVED)
def test_counts_are_found_where_they_are(imputed, how, stored, tmp_path):
    adata = MOVED[how](imputed)
    if stored:
        adata.write_h5ad(tmp_path / "file.h5ad")
        adata = ad.read_h5ad(tmp_path / "file.h5ad")
    again = _replay.read(adata, "began", None, None, 0, "cpu")
    np.testing.assert_array_equal(again.counts.toarray(), adata.obsm["truth"][:, adata.varm["place"][:, 0]])


@pytest.mark.parametrize("n_left", [1300, 5])
def test_parts_of_zeros_and_ones_are_not_taken_for_the_whole(n_left):
    """The hash of a cell of zeros and ones says only how many ones there are: many cells of the parts have that of a cell of the whole."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData((rng.random((1500, 60)) < rng.beta(2, 6, (1500, 1))).astype(np.float32))
    scimpute.pp.thin(adata)
    adata.layers["counts"] = adata.X.copy()
    adata.uns["began"] = {"method": "began", "params": {"layer": "X"}, "source": fingerprint(sp.csr_matrix(adata.X))}
    some = rng.permutation(1500)
    adata = adata[some[adata.X[some].any(axis=1)][:n_left]].copy()
    sc.pp.normalize_total(adata)
    assert scimpute._anndata.source.find_counts(adata, "began")[0] == "counts"


def test_values_that_changed_places_are_other_counts():
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(2, (50, 20)).astype(np.float32))
    known, rng = fingerprint(counts), np.random.default_rng(1)
    shuffled = sp.csr_matrix(rng.permuted(counts.toarray(), axis=1))
    assert not is_same(shuffled, known)
    assert not is_same(sp.csr_matrix(rng.permuted(counts.toarray(), axis=0)), known)
    assert is_same(counts[rng.permutation(50)][:, rng.permutation(20)], known)
    assert is_same(counts[[3, 1]], known)
    assert not is_same(counts[[3, 3]], known)
    assert is_same(counts[:, :4], known)
    assert is_same(counts[:4, :4], known) is None


def test_where_they_are_read_is_said_once(imputed, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(scimpute._anndata.source.logg, "info", lambda text, **_: said.append(text) if "read from" in text else None)
    scimpute.pl.imputed(normalise(imputed), imputed.var_names[0], show=False)
    assert said == ["adata.X no longer holds the counts that 'began' was imputed from; they are read from adata.layers['counts']"]


@pytest.mark.parametrize("how", ["layer", "raw", "fewer genes", "fewer cells", "fewer of both"])
def test_figures_and_scores_go_on(imputed, how):
    before = scimpute.pl._read.before_and_after(imputed, list(imputed.var_names[10:12]), "began", None)[0]
    adata = MOVED[how](imputed)
    assert len(scimpute.pl.imputed(adata, list(adata.var_names[10:12]), show=False)) == 4
    if adata.n_vars == imputed.n_vars:
        after = scimpute.pl._read.before_and_after(adata, list(adata.var_names[10:12]), "began", None)[0]
        np.testing.assert_array_equal(after, before[: adata.n_obs])
    scimpute.metrics.cluster_agreement(adata, "began", labels="cell_type", n_clusters=2)


def test_a_report_goes_on(imputed, tmp_path):
    found = scimpute.metrics.report(normalise(imputed), "began", n_splits=0, save=tmp_path / "page.html")
    assert "verdict" in found


def test_a_result_of_an_earlier_version_takes_the_only_counts(imputed):
    normalise(imputed)
    imputed.uns["began"] = {name: value for name, value in imputed.uns["began"].items() if name != "source"}
    again = _replay.read(imputed, "began", None, None, 0, "cpu")
    np.testing.assert_array_equal(again.counts.toarray(), imputed.obsm["truth"])
    imputed.layers["other"] = sp.csr_matrix(imputed.layers["counts"].toarray() + 1)
    with pytest.raises(ValueError, match="adata.X has values that are not whole.*layer='counts', layer='other'"):
        _replay.read(imputed, "began", None, None, 0, "cpu")


def test_other_counts_are_said_to_be_others(imputed):
    imputed.X = sp.csr_matrix(imputed.X.toarray() + 1)
    with pytest.warns(UserWarning, match="adata.X holds other counts than those that 'began' was imputed from"):
        _replay.read(imputed, "began", None, None, 0, "cpu")


def test_counts_that_are_gone_are_asked_for(imputed):
    sc.pp.normalize_total(imputed)
    with pytest.raises(ValueError, match="not whole numbers.*no layer of this object holds counts"):
        _replay.read(imputed, "began", None, None, 0, "cpu")


def test_no_leak_where_the_training_part_was_imputed_from_x(recwarn):
    adata = scimpute.datasets.toy_counts()
    scimpute.pp.thin(adata)
    adata.X = adata.layers["thin_train"].copy()
    scimpute.tl.began(adata, **QUICK)
    sc.pp.normalize_total(adata)
    recwarn.clear()
    scimpute.metrics.heldout(adata, "began")
    scimpute.metrics.gene_trust(adata, "began")
    assert not [str(w.message) for w in recwarn if "has seen" in str(w.message)]


def test_a_leak_is_seen_where_counts_were_moved(imputed):
    normalise(imputed)
    scimpute.pp.thin(imputed, layer="counts")
    with pytest.warns(UserWarning, match="has seen the held-out molecules"):
        scimpute.metrics.heldout(imputed, "began")


# adata.raw


@pytest.fixture
def cellxgene() -> ad.AnnData:
    """Counts in raw, normalised values in X."""
    adata = to_raw(scimpute.datasets.toy_counts())
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(adata.n_obs, 2))
    return adata


def test_counts_in_raw_are_named(cellxgene):
    with pytest.raises(ValueError, match=r"adata.X has .*counts are in: adata.raw \(layer='raw'\)"):
        scimpute.tl.began(cellxgene)
    with pytest.raises(KeyError, match=r"available: \['rate', 'raw'\]"):
        scimpute.tl.began(cellxgene, layer="rat_")


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**60])
def test_raw_of_more_genes_with_a_value_that_is_no_count(cellxgene, value):
    raw = cellxgene.raw.to_adata()
    raw.X = raw.X.toarray()
    raw.X[5, -1] = value
    cellxgene.raw = raw
    adata = cellxgene[:, :10].copy()
    with pytest.raises(ValueError, match="adata.X has .*no layer of this object holds counts"):
        scimpute.tl.began(adata)
    with pytest.raises(ValueError, match=r"adata.raw has 1 values .*\(first: cell 'cell5', gene 'gene39'"):
        scimpute.tl.began(cellxgene, layer="raw")


@pytest.mark.parametrize("params", [None, [1, 2], "text", {"layer": "X"}])
@pytest.mark.parametrize("source", [None, {}, {"cells": [1]}, "text"])
def test_what_others_wrote_under_our_name(params, source):
    """Nothing is known of the counts: they are where they would be looked for."""
    adata = scimpute.datasets.toy_counts()
    scimpute.tl.began(adata, **QUICK)
    adata.uns["began"] = {"method": "began", "params": params, "source": source}
    layer, counts = find_counts(adata, "began")
    assert layer is None
    assert (counts != adata.X).nnz == 0
    assert has_sd(adata, "began")
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2))
    scimpute.pl.imputed(adata, ["gene1"], show=False)
    scimpute.metrics.cluster_agreement(adata, "began", "cell_type")
    scimpute.pp.thin(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scimpute.metrics.heldout(adata, "began")
    scimpute.tl.began(adata, **QUICK)
    assert adata.uns["began"]["params"]["layer"] == "X"


@pytest.mark.parametrize("cut", [False, True], ids=["all genes", "some genes"])
@pytest.mark.parametrize("backed", [False, True], ids=["in memory", "backed"])
def test_raw_is_a_layer(cellxgene, cut, backed, tmp_path):
    adata = cellxgene[:, ::-2].copy() if cut else cellxgene
    expected = ad.AnnData(adata.raw.to_adata()[:, adata.var_names].X.copy(), obs=adata.obs, var=adata.var)
    scimpute.tl.began(expected, **QUICK)
    if backed:
        adata.write_h5ad(tmp_path / "file.h5ad")
        adata = ad.read_h5ad(tmp_path / "file.h5ad", backed="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scimpute.tl.began(adata, layer="raw", **QUICK)
    np.testing.assert_array_equal(adata.layers["began"], expected.layers["began"])
    assert adata.uns["began"]["params"]["layer"] == "raw"
    again = _replay.read(adata, "began", None, None, 0, "cpu")
    assert (again.counts != expected.X).nnz == 0


def test_raw_is_read_by_everything_that_reads_counts(cellxgene, tmp_path):
    scimpute.tl.nmf(cellxgene, layer="raw", n_factors=2, max_epochs=1, penalty=1.0)
    scimpute.tl.began(cellxgene, layer="raw", save=tmp_path / "model.safetensors", **QUICK)
    scimpute.tl.apply(cellxgene, tmp_path / "model.safetensors", layer="raw", key_added="again")
    np.testing.assert_allclose(cellxgene.layers["again"], cellxgene.layers["began"], rtol=1e-5, atol=1e-6)
    scimpute.pp.thin(cellxgene, layer="raw")
    assert ((cellxgene.layers["thin_train"] + cellxgene.layers["thin_test"]) != cellxgene.raw.X).nnz == 0
    scimpute.metrics.cluster_agreement(cellxgene, "began", labels="cell_type", layer="raw", n_clusters=2)


def test_a_layer_called_raw_comes_first(cellxgene):
    cellxgene.layers["raw"] = sp.csr_matrix(cellxgene.raw.X.toarray() + 1)
    scimpute.pp.thin(cellxgene, layer="raw")
    assert cellxgene.layers["thin_train"].sum() + cellxgene.layers["thin_test"].sum() == cellxgene.layers["raw"].sum()


def test_raw_that_lacks_genes_is_refused(cellxgene):
    cellxgene.raw = cellxgene.raw.to_adata()[:, 3:]
    with pytest.raises(ValueError, match=r"adata.raw lacks 3 of the 40 genes of adata: \['gene0', 'gene1', 'gene2'\].*to_adata"):
        scimpute.tl.began(cellxgene, layer="raw")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = cellxgene[:, [5, 5, 6]].copy()
    with pytest.raises(ValueError, match="gene names that are not unique.*to_adata"):
        scimpute.tl.began(twice, layer="raw")


def test_without_raw_it_is_a_layer_that_is_not_there():
    with pytest.raises(KeyError, match="layer 'raw' not found"):
        scimpute.tl.began(scimpute.datasets.toy_counts(), layer="raw")
