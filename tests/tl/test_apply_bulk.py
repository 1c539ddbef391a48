"""Saved models of ``tl.pmi`` and ``tl.gain`` on other samples."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scimpute
from scimpute import datasets, tl
from scimpute._save import load_model, save_model

QUICK = {"n_models": 1, "n_hidden": 16, "max_epochs": 2}
COVARIATES = {"categorical_covariates": ["tissue", "sex"], "continuous_covariates": "age"}
VARIANTS = [
    {},
    {"mode": "inductive"},
    {"variant": "published", "mode": "inductive", "max_epochs": 1},
]


@pytest.fixture(params=["pmi", "gain"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cohort() -> ad.AnnData:
    adata = scimpute.datasets.toy_bulk(90, 60)
    scimpute.pp.hide(adata, 0.3, of="all")
    return adata


@pytest.fixture
def train(method: str, tmp_path: Path) -> Callable[..., Path]:
    """Trains on the visible values and gives the file of the model."""

    def run(adata: ad.AnnData, **changes: Any) -> Path:
        path = tmp_path / "model.safetensors"
        getattr(tl, method)(adata, layer="hidden", key_added="trained", save=path, **QUICK | COVARIATES | changes)
        return path

    return run


def result(adata: ad.AnnData, path: Path, **options: Any) -> Any:
    done = tl.apply(adata, path, key_added="again", copy=True, **{"layer": "hidden"} | options)
    return done.layers["again"] if "again" in done.layers else done.obsm["again"]


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_the_samples_of_the_training(cohort, train, arguments):
    path = train(cohort, **arguments)
    tl.apply(cohort, path, layer="hidden", key_added="again")
    for suffix in ("", "_sd"):
        np.testing.assert_allclose(cohort.layers["again" + suffix], cohort.layers["trained" + suffix], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", [{"sd": False}, {"dtype": "float16"}])
def test_what_is_stored_is_no_choice_here(cohort, train, refused, choice):
    path = train(cohort)
    refused(cohort, lambda adata: tl.apply(adata, path, layer="hidden", key_added="again", **choice), ValueError, "models of counts")


@pytest.mark.parametrize("mode", ["inplace", "inductive"])
def test_a_sample_of_the_training_does_not_know_its_own_answers(method, mode, tmp_path):
    """Values that the training saw and that are hidden now are in the reference: the sample itself must not be its neighbour."""
    adata = scimpute.datasets.toy_bulk(120, 200)
    path = tmp_path / "model.safetensors"
    reference, others = adata[:80].copy(), adata[80:].copy()
    getattr(tl, method)(reference, mode=mode, save=path, **QUICK)
    scores = []
    for query in (reference, others):
        scimpute.pp.hide(query, 0.4, of="all")
        tl.apply(query, path, layer="hidden", key_added="again")
        scores.append(scimpute.metrics.recovery(query, "again").loc["again", "r2_pooled"])
    assert scores[0] < scores[1] + 0.05


@pytest.mark.parametrize("twice", [False, True])
def test_nor_where_other_values_were_missing_in_the_training(method, twice, tmp_path):
    adata = scimpute.datasets.toy_bulk(120, 150)
    path = tmp_path / "model.safetensors"
    reference, others = adata[:80].copy(), adata[80:].copy()
    if twice:  # copies of the samples are no help either
        reference = ad.concat([reference, reference], index_unique="-")
    scimpute.pp.hide(reference, 0.3, of="all")
    getattr(tl, method)(reference, layer="hidden", save=path, **QUICK)
    scores = []
    for query in (reference[:80].copy(), others):
        query.X = (query.X * np.float32(1 + 1.2e-7)).astype(np.float32)  # a file of another precision
        scimpute.pp.hide(query, 0.4, of="all", key_added="now", random_state=1)
        tl.apply(query, path, layer="now", key_added="again")
        scores.append(scimpute.metrics.recovery(query, "again", key="now").loc["again", "r2_pooled"])
    assert scores[0] < scores[1] + 0.05


def test_samples_that_are_alike_in_genes_that_say_nothing_stay_neighbours(method, tmp_path, monkeypatch):
    """Of a panel that hardly any sample expresses, most samples look the same."""
    adata = scimpute.datasets.toy_bulk(100, 60)
    adata.X[:, :30] = np.random.default_rng(0).random((100, 30)) < 0.02
    path = tmp_path / "model.safetensors"
    getattr(tl, method)(adata[:80].copy(), save=path, **QUICK, categorical_covariates="tissue")
    query = adata[80:, :30].copy()
    found = result(query, path, layer=None)
    monkeypatch.setattr("scimpute._bulk.linear.Linear._same", lambda self, *_: torch.zeros(0, dtype=torch.long))
    quiet = (query.X == 0).all(axis=1)
    assert quiet.sum() > 5
    pd.testing.assert_frame_equal(found[quiet], result(query, path, layer=None)[quiet])


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_each_sample_is_filled_by_itself(cohort, train, arguments):
    """Neither the other samples of the query nor their number say anything: statistics are the reference's."""
    path = train(cohort[:60].copy(), **arguments)
    query = cohort[60:].copy()
    whole = result(query, path)
    for rows in ([3], [5, 3, 11]):
        np.testing.assert_allclose(result(query[rows].copy(), path), whole[rows], rtol=1e-4, atol=1e-4)


def test_new_samples_are_filled_better_than_by_the_mean(cohort, train):
    query = cohort[60:].copy()
    path = train(cohort[:60].copy(), mode="inductive")
    tl.apply(query, path, layer="hidden", key_added="again")
    table = scimpute.metrics.recovery(query, "again", groupby="tissue")
    assert table.loc["again", "r2_pooled"] > table.loc["group_mean", "r2_pooled"] + 0.1
    seen = ~query.layers["hidden_mask"]
    np.testing.assert_array_equal(query.layers["again"][seen], query.X[seen])


def test_genes_are_matched_by_name(cohort, train):
    path, query = train(cohort[:60].copy()), cohort[60:].copy()
    order = np.random.default_rng(3).permutation(query.n_vars)
    found = result(query[:, order].copy(), path)
    np.testing.assert_allclose(found, result(query, path)[:, order], rtol=1e-4, atol=1e-4)


def test_a_panel_becomes_a_transcriptome(cohort, train):
    path, query = train(cohort[:60].copy()), cohort[60:].copy()
    panel = query[:, 10:40].copy()
    found = result(panel, path)
    assert isinstance(found, pd.DataFrame)
    assert list(found.columns) == list(cohort.var_names)
    assert list(found.index) == list(panel.obs_names)
    as_missing = query.copy()
    as_missing.layers["hidden"][:, :10] = np.nan
    as_missing.layers["hidden"][:, 40:] = np.nan
    np.testing.assert_allclose(found, result(as_missing, path), rtol=1e-4, atol=1e-4)


def test_genes_the_model_does_not_know_change_nothing(cohort, train):
    path, query = train(cohort[:60, :50].copy()), cohort[60:].copy()
    found = result(query, path)
    assert list(found.columns) == list(cohort.var_names[:50])
    np.testing.assert_allclose(found, result(query[:, :50].copy(), path), rtol=1e-4, atol=1e-4)


def test_unseen_levels_are_refused_by_name_or_unknown(cohort, train, fingerprint):
    path, query = train(cohort[:60].copy()), cohort[60:].copy()
    query.obs["tissue"] = query.obs["tissue"].astype(str)
    query.obs.iloc[4, query.obs.columns.get_loc("tissue")] = "moon"
    before = fingerprint(query)
    with pytest.raises(ValueError, match=r"levels the model was not trained on: \['moon'\]; known: .*'tissue0'"):
        tl.apply(query, path, layer="hidden")
    assert fingerprint(query) == before
    found = result(query, path, unseen="average")
    known = np.delete(np.arange(30), 4)
    np.testing.assert_allclose(found[known], result(cohort[60:].copy(), path)[known], rtol=1e-4, atol=1e-4)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("column", ["tissue", "age"])
def test_covariates_that_are_absent_are_named(cohort, train, fingerprint, column):
    path, query = train(cohort[:60].copy()), cohort[60:].copy()
    del query.obs[column]
    before = fingerprint(query)
    with pytest.raises(KeyError, match=column):
        tl.apply(query, path, layer="hidden")
    assert fingerprint(query) == before


def test_other_genes_are_refused(cohort, train):
    path, query = train(cohort[:60].copy()), cohort[60:].copy()
    query.var_names = [f"other{i}" for i in range(query.n_vars)]
    with pytest.raises(ValueError, match="none of the 60 genes of the model is in adata.var_names"):
        tl.apply(query, path, layer="hidden")


def renamed(start: int, name: Callable[[str], str]) -> Callable[[ad.AnnData], ad.AnnData]:
    """The query with the genes from this one on called otherwise."""

    def edit(adata: ad.AnnData) -> ad.AnnData:
        adata.var_names = [name(gene) if place >= start else gene for place, gene in enumerate(adata.var_names)]
        return adata

    return edit


def other_column(adata: ad.AnnData) -> ad.AnnData:
    adata.var["symbol"] = adata.var_names
    return renamed(4, "id{}".format)(adata)


FEW_GENES = {
    "ensembl": (renamed(4, lambda gene: f"ENSG{int(gene[4:]):011d}"), "; the genes of the model are symbols, those of adata Ensembl ids"),
    "version": (renamed(4, "{}.12".format), r"; without version suffixes such as 'gene\d+.12' 60 of them match: adata.var_names ="),
    "case": (renamed(1, str.title), "; 60 of them match if upper and lower case are the same"),
    "another column": (other_column, r"; var\['symbol'\] has 60 of them: adata.var_names = adata.var\['symbol'\]"),
    "a panel of four": (lambda adata: adata[:, :4].copy(), "$"),
}


@pytest.mark.parametrize("row", FEW_GENES)
def test_a_handful_of_genes_is_refused(cohort, train, row, fingerprint):
    edit, hint = FEW_GENES[row]
    path, query = train(cohort[:60].copy()), edit(cohort[60:].copy())
    before = fingerprint(query)
    with pytest.raises(ValueError, match=rf"[14] of the 60 genes of the model is in adata.var_names: .*at least 5 are needed{hint}"):
        tl.apply(query, path, layer="hidden")
    assert fingerprint(query) == before


def test_genes_unknown_on_both_sides_are_said(cohort, train):
    path, query = train(cohort[:60].copy()), renamed(40, "{}.1".format)(cohort[60:].copy())
    with pytest.warns(
        UserWarning, match="20 of the 60 genes of the model are not in .* filled from the other 40; 20 of the 60 genes of"
    ) as caught:
        tl.apply(query, path, layer="hidden")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "without version suffixes such as 'gene40.1' 60 of them match" in str(caught[0].message)
    with pytest.warns(
        UserWarning, match="45 of the 60 genes .* from the other 15; with fewer than 20 genes no similar samples can be found"
    ):
        tl.apply(cohort[60:, :15].copy(), path, layer="hidden")


SCALES = {
    "natural": (lambda x: x * np.log(2), r"the highest values are 0\.[67]\d* times .*, as with natural logs here and log2 in the training"),
    "log10": (lambda x: x * np.log10(2), r"the highest values are 0\.[23]\d* times .*, as with log10 here and log2 in the training"),
    "counts": (lambda x: np.exp2(x) - 1, r"the highest values are [\d.e+]+ times those of the same genes in the training;"),
    "scaled": (lambda x: x - 6, r"negative values here \(min -.*\) and were none in the training: these values look scaled"),
    "the same": (lambda x: x * 1.1, None),
}


@pytest.mark.parametrize("row", SCALES)
def test_a_query_on_another_scale_is_said(cohort, train, row):
    change, message = SCALES[row]
    cohort.layers["hidden"] = np.maximum(cohort.layers["hidden"], 0)
    path, query = train(cohort[:60].copy()), cohort[60:].copy()
    query.layers["hidden"] = change(query.layers["hidden"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tl.apply(query, path, layer="hidden")
    assert [bool(re.search(message or "", str(each.message))) for each in caught] == [True] * (message is not None)
    assert all(each.filename == __file__ for each in caught)


def test_another_tissue_on_the_same_scale_is_no_other_scale(method, tmp_path):
    """Chosen for their variance over cohorts, genes may have other means in one of them by more than log2 and natural logs differ."""
    adata, path = scimpute.datasets.toy_bulk(90, 250), tmp_path / "model.safetensors"
    adata.X = np.maximum(adata.X - 4, 0)
    other = adata[60:].copy()
    shift = np.random.default_rng(0).random(250) < 0.5
    other.X = np.where(shift, other.X * 0.2, other.X)
    getattr(tl, method)(adata[:60].copy(), save=path, **QUICK)
    assert np.nanmean(other.X) < 0.75 * adata.X[:60].mean()
    other.X[:, 0] = np.nan
    tl.apply(other, path)
    other.X *= np.log(2)
    with pytest.warns(UserWarning, match="natural logs here and log2 in the training"):
        tl.apply(other, path, key_added="again")


def test_centred_genes_have_a_scale_too(cohort, train):
    cohort.layers["hidden"] = cohort.layers["hidden"] - np.nanmean(cohort.layers["hidden"], axis=0)
    path, query = train(cohort[:60].copy()), cohort[60:].copy()
    tl.apply(query, path, layer="hidden")
    query.layers["hidden"] = query.layers["hidden"] + 6
    with pytest.warns(UserWarning, match="half of the genes are more than . standard deviations of the training from their mean there"):
        tl.apply(query, path, layer="hidden")


@pytest.mark.parametrize("n_known", [0, 1])
def test_samples_known_by_covariates_alone(cohort, train, n_known):
    """Of no value, or of one, nobody can say on which scale it is."""
    path, query = train(cohort[:60].copy(), categorical_covariates="tissue"), cohort[60:64].copy()
    query.layers["hidden"] = np.full(query.shape, np.nan, np.float32)
    query.layers["hidden"][0, :n_known] = 2 * np.nanmax(cohort.layers["hidden"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tl.apply(query, path, layer="hidden", key_added="found")
    assert ["from their covariates alone" in str(each.message) for each in caught] == [True]
    assert np.isfinite(query.layers["found"]).all()


def test_a_complete_query_is_said(cohort, train, method):
    path, query = train(cohort[:60].copy()), cohort[60:].copy()
    with pytest.warns(UserWarning, match="no value is missing") as caught:
        tl.apply(query, path)
    assert len(caught) == 1
    assert query.layers[method].tobytes() == query.X.tobytes()


def test_what_is_written(cohort, train, method, fingerprint):
    path, query = train(cohort[:60].copy()), cohort[60:].copy()
    before = fingerprint(query)
    assert tl.apply(query, path, layer="hidden") is None
    after = fingerprint(query)
    assert set(after) - set(before) == {f"layers/{method}", f"layers/{method}_sd", f"uns/{method}"}
    assert {name: after[name] for name in before} == before
    params = query.uns[method]["params"]
    assert params["applied"]
    assert params["model"] == str(path)
    assert params["categorical_covariates"] == ["tissue", "sex"]


def test_a_mask_that_is_not_there_is_said(cohort, train, method):
    cohort.layers["observed"] = ~np.isnan(cohort.layers["hidden"])
    path = train(cohort, mask_layer="observed", mode="inductive")
    expected = result(cohort, path)
    del cohort.layers["observed"]
    with pytest.warns(UserWarning, match=r"mask_layer='observed', which adata.layers lacks; only NaN is missing") as caught:
        done = tl.apply(cohort, path, layer="hidden", copy=True)
    assert caught[0].filename == __file__
    assert "mask_layer" not in done.uns[method]["params"]
    np.testing.assert_array_equal(done.layers[method], expected)


def linear(edit):
    return lambda tensors, metadata: edit(metadata["numbers"]["linear"])


DAMAGED = {
    "no genes": lambda t, m: m.pop("genes"),
    "a gene twice": lambda t, m: m["genes"].__setitem__(0, m["genes"][1]),
    "fewer genes": lambda t, m: m["genes"].pop(),
    "no settings": lambda t, m: m.pop("settings"),
    "no numbers": lambda t, m: m.pop("numbers"),
    "no covariates": lambda t, m: m.pop("covariates"),
    "no params": lambda t, m: m["params"].pop("missing"),
    "fewer levels": lambda t, m: m["covariates"]["categorical"]["tissue"].pop(),
    "other levels": lambda t, m: m["numbers"].__setitem__("levels", [1]),
    "negative width": lambda t, m: m["settings"].__setitem__("n_hidden", -1),
    "width in words": lambda t, m: m["settings"].__setitem__("n_hidden", "x"),
    "huge width": lambda t, m: m["settings"].__setitem__("n_hidden", 10**30),
    "wide": lambda t, m: m["settings"].__setitem__("n_hidden", 10**7),
    "no layers": lambda t, m: m["settings"].__setitem__("n_layers", 0),
    "more layers": lambda t, m: m["settings"].__setitem__("n_layers", 4),
    "no models": lambda t, m: m["settings"].__setitem__("n_models", 0),
    "more models": lambda t, m: m["settings"].__setitem__("n_models", 2),
    "another setting": lambda t, m: m["settings"].__setitem__("colour", 2),
    "no scale": lambda t, m: t["standardiser.sd"].zero_(),
    "negative scale": lambda t, m: t["standardiser.sd"].neg_(),
    "infinite mean": lambda t, m: t["standardiser.mean"].fill_(np.inf),
    "lowest": lambda t, m: t["standardiser.lowest"].fill_(np.nan),
    "share": lambda t, m: t["share"].fill_(2),
    "noise": lambda t, m: t["noise"].fill_(-1),
    "calibration": lambda t, m: m["numbers"].__setitem__("calibration", -1.0),
    "NaN": lambda t, m: next(t[name] for name in t if name.endswith("layers.0.weight")).fill_(np.nan),
    "variance": lambda t, m: next(t[name] for name in t if name.endswith("running_var")).fill_(-1),
    "rank": linear(lambda numbers: numbers.__setitem__("rank", 10**9)),
    "min_weight": linear(lambda numbers: numbers.__setitem__("min_weight", -1)),
    "no linear part": lambda t, m: m["numbers"].pop("linear"),
    "residual correlation": lambda t, m: t.__setitem__(
        "linear.residual_correlation.indices", torch.full_like(t["linear.residual_correlation.indices"], 1000)
    ),
    "reference": lambda t, m: t.__setitem__("linear.reference", t["linear.reference"][:, 1:].contiguous()),
    "codes": lambda t, m: t.__setitem__("linear.codes", t["linear.codes"].float()),
    "weights far out": lambda t, m: [t[name].fill_(3e38) for name in t if name.endswith("layers.2.weight")],
}


@pytest.mark.parametrize("method", ["pmi", "gain"])
def test_damaged_models_are_refused(tmp_path, method, fingerprint):
    """One ValueError, whatever is wrong; also where the checksum is that of the damaged content."""
    path = tmp_path / "model.safetensors"
    adata = datasets.toy_bulk(30, 20)
    adata.X[::3, 5] = np.nan
    getattr(tl, method)(adata.copy(), n_models=1, n_hidden=4, max_epochs=1, categorical_covariates="tissue", save=path)
    whole, before = path.read_bytes(), fingerprint(adata)
    names = list(load_model(path)[0])
    cases = {f"without {name}": lambda t, m, name=name: t.pop(name) for name in names if not name.endswith("num_batches_tracked")}
    for case, damage in (DAMAGED | cases).items():
        path.write_bytes(whole)
        tensors, metadata = load_model(path)
        damage(tensors, metadata)
        save_model(path, tensors, metadata)
        with pytest.raises(ValueError, match=rf"whole model of tl.{method} \(|it is damaged") as caught:
            tl.apply(adata, path)
        assert caught.type is ValueError, case
    for place in np.random.default_rng(0).integers(len(whole), size=40):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="model: "):
            tl.apply(adata, path)
    assert fingerprint(adata) == before
    path.write_bytes(whole)
    tl.apply(adata, path)


def test_what_is_said_of_covariates_when_a_model_is_applied(cohort, train, method):
    cohort.obs["age"] = np.linspace(20, 80, len(cohort))
    trained, query = cohort[:60].copy(), cohort[60:].copy()
    path = train(trained, categorical_covariates="tissue", continuous_covariates="age")
    tl.apply(query, path, layer="hidden", key_added="found")
    pd.testing.assert_frame_equal(query.uns["found"]["embeddings"]["tissue"], trained.uns["trained"]["embeddings"]["tissue"], rtol=1e-4)
    query.obs["age"] = "old"
    with pytest.raises(ValueError, match="^covariate 'age' holds text that is no number in .* convert it to numbers, as in the training$"):
        tl.apply(query, path, layer="hidden", key_added="found")
