"""Bad input and faults while running of ``tl.pmi`` and ``tl.gain``: as ``test_faults.py``, whose rows are not repeated where no code differs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scimpute

QUICK: dict[str, Any] = {"n_models": 1, "n_hidden": 16, "max_epochs": 2, "progress": False, "key_added": "result"}
COVARIATES: dict[str, Any] = {"categorical_covariates": ["tissue", "sex"], "continuous_covariates": "age"}
Edit = Callable[[ad.AnnData], Any]
METHODS = {"pmi": scimpute.tl.pmi, "gain": scimpute.tl.gain}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return partial(METHODS[request.param], **QUICK)


def toy(n_obs: int = 40, n_vars: int = 30) -> ad.AnnData:
    """Expression with a quarter of it NaN, and columns of obs of every kind."""
    adata = scimpute.datasets.toy_bulk(n_obs, n_vars)
    adata.X[np.random.default_rng(1).random(adata.shape) < 0.25] = np.nan
    number = np.arange(n_obs)
    adata.layers["seen"] = ~np.isnan(adata.X)
    adata.layers["shares"] = np.full(adata.shape, 0.5)
    adata.layers["earlier"] = adata.X.copy()
    adata.obsm["X_umap"] = np.zeros((n_obs, 2))
    adata.obs["one"], adata.obs["number_one"] = "a", 3.0
    adata.obs["gaps"] = adata.obs["tissue"].where(number != 4)
    adata.obs["number_gaps"] = adata.obs["age"].where(number != 4)
    adata.obs["number_inf"] = np.where(number == 4, np.inf, number)
    adata.obs["rare"] = pd.Categorical(np.where(number == 4, "single", np.where(number < n_obs // 2, "low", "high")))
    adata.obs["id"] = [f"s{i}" for i in number]
    adata.obs["score"] = number + 0.5
    return adata


def put(row: Any, column: Any, value: float) -> Edit:
    def edit(adata: ad.AnnData) -> None:
        adata.X[row, column] = value

    return edit


def no_gaps(adata: ad.AnnData) -> None:
    adata.X = np.where(np.isnan(adata.X), 5, adata.X)


# 3a. The object and the matrix

NOT_ANNDATA = {
    "1-array": (np.ones((30, 3)), "expected AnnData, got ndarray; wrap it with anndata.AnnData"),
    "1-none": (None, "expected AnnData, got NoneType"),
    "1-path": (Path("file.h5ad"), "expected AnnData, got PosixPath; read the file first"),
}


@pytest.mark.parametrize("row", NOT_ANNDATA)
def test_not_an_anndata(row, method, refused):
    value, message = NOT_ANNDATA[row]
    refused(value, method, TypeError, message)


OBJECTS: dict[str, tuple[Edit | None, dict[str, Any], type[Exception], str]] = {
    "3-no-x": (lambda a: setattr(a, "X", None), {}, ValueError, r"adata.X is empty; pass layer=..., available: \['truth'"),
    "4-layer": (None, {"layer": "earlyer"}, KeyError, r"layer 'earlyer' not found; available: \['truth', .*did you mean 'earlier'"),
    "5-no-samples": (lambda a: a[:0].copy(), {}, ValueError, "0 cells and 30 genes"),
    "5-no-genes": (lambda a: a[:, :0].copy(), {}, ValueError, "40 cells and 0 genes"),
    "6-one-sample": (lambda a: a[:1].copy(), {}, ValueError, r"tl\.\w+ needs at least 10 samples, got 1$"),
    "6-few-samples": (lambda a: a[:9].copy(), {}, ValueError, "needs at least 10 samples, got 9"),
    "15-empty-gene": (
        put(slice(None), 3, np.nan),
        {},
        ValueError,
        r"1 genes have no observed value: \['gene3'\]; remove.*empty_genes='nan'",
    ),
    "15-empty-genes": (
        put(slice(None), slice(3, 12), np.nan),
        {},
        ValueError,
        r"9 genes have no observed value: \['gene3', 'gene4', 'gene5', 'gene6', 'gene7', ... \(9 in all\)\]",
    ),
    "15-empty-by-zero": (put(slice(None), 3, 0), {"missing": "zero"}, ValueError, r"no observed value: \['gene3'\]"),
    "15-empty-by-mask": (
        lambda a: a.layers.__setitem__("none", np.arange(a.n_vars) != 3 * np.ones((a.n_obs, 1))),
        {"mask_layer": "none"},
        ValueError,
        r"no observed value: \['gene3'\]",
    ),
    "15-nothing": (put(slice(None), slice(None), np.nan), {}, ValueError, "all values are missing; there is nothing to learn from"),
    "15-nothing-nan": (put(slice(None), slice(None), np.nan), {"empty_genes": "nan"}, ValueError, "all values are missing"),
    "15-all-left-out": (
        None,
        {"max_missing": 0.01},
        ValueError,
        "max_missing leaves out all genes: the gene with the fewest gaps is missing in ",
    ),
    "15-max-missing": (None, {"max_missing": 1.5}, ValueError, r"max_missing must be in \[0, 1\], got 1.5"),
    "15-max-missing-kind": (None, {"max_missing": "half"}, TypeError, "max_missing must be a number"),
    "16-inf": (put(3, 5, np.inf), {}, ValueError, r"adata.X has 1 infinite values \(first: cell 'sample3', gene 'gene5'\)"),
    "16-minus-inf": (put(3, 5, -np.inf), {}, ValueError, "1 infinite values .*'sample3', gene 'gene5'"),
    "16-layer": (
        lambda a: a.layers.__setitem__("bad", np.where(np.isnan(a.X), np.inf, 1)),
        {"layer": "bad"},
        ValueError,
        r"adata.layers\['bad'\] has \d+ infinite values",
    ),
    "16-beyond-float32": (lambda a: a.layers.__setitem__("b", a.X.astype(float) * 1e300), {"layer": "b"}, ValueError, "infinite"),
    "21-complex": (lambda a: a._layers.__setitem__("c", a.X.astype(complex)), {"layer": "c"}, TypeError, "dtype complex"),
    "21-object": (lambda a: a._layers.__setitem__("c", a.X.astype(object)), {"layer": "c"}, TypeError, "dtype object"),
    "22-masked": (lambda a: a._layers.__setitem__("c", np.ma.masked_invalid(a.X)), {"layer": "c"}, TypeError, "masked array"),
    # mask_layer
    "4-mask": (None, {"mask_layer": "sen"}, KeyError, r"mask_layer: layer 'sen' not found; available: .*did you mean 'seen'"),
    "21-mask": (None, {"mask_layer": "shares"}, ValueError, r"mask_layer='shares' holds other values than True \(observed\) and False"),
    "21-mask-nan": (
        None,
        {"mask_layer": "earlier"},
        ValueError,
        r"mask_layer='earlier' holds other values than True \(observed\) and False",
    ),
    # 3b
    "35-categorical": (
        None,
        {"categorical_covariates": "tisue"},
        KeyError,
        r"categorical_covariates: obs column 'tisue' not found; available: \['tissue', .*did you mean 'tissue'",
    ),
    "35-continuous": (
        None,
        {"continuous_covariates": ["age", "agee"]},
        KeyError,
        "continuous_covariates: obs column 'agee' not found; .*'age'",
    ),
    "36-categorical": (None, {"categorical_covariates": "gaps"}, ValueError, r"categorical_covariates='gaps' is missing in 1 .*'sample4'"),
    "36-continuous": (
        None,
        {"continuous_covariates": "number_gaps"},
        ValueError,
        r"='number_gaps' is missing or not a finite .* 1 .*'sample4'",
    ),
    "36-infinite": (
        None,
        {"continuous_covariates": "number_inf"},
        ValueError,
        r"='number_inf' is missing or not a finite .* 1 .*'sample4'",
    ),
    "36-text": (
        None,
        {"continuous_covariates": "tissue"},
        ValueError,
        r"continuous_covariates='tissue' holds text that is no number in 40 samples: \['tissue\d'.*pass it as categorical_covariates='tissue'",
    ),
    "36-ranges": (
        lambda a: setattr(a, "obs", a.obs.assign(years=pd.cut(a.obs["age"], [0, 50, 60, 99], labels=["20-49", "50-59", "60-99"]))),
        {"continuous_covariates": "years"},
        ValueError,
        r"holds text that is no number in 40 samples: .*'60-99'",
    ),
    "36-a-word": (
        lambda a: setattr(a, "obs", a.obs.assign(years=np.where(a.obs_names == "sample4", "unknown", a.obs["age"].astype(str)))),
        {"continuous_covariates": "years"},
        ValueError,
        r"holds text that is no number in 1 samples: \['unknown'\]",
    ),
    "43-both": (
        None,
        {"categorical_covariates": ["tissue", "sex"], "continuous_covariates": ["age", "sex"]},
        ValueError,
        r"\['sex'\] named in both categorical_covariates and continuous_covariates",
    ),
    "43-twice": (None, {"categorical_covariates": ["sex", "sex"]}, ValueError, r"categorical_covariates names \['sex'\] more than once"),
    "44-number": (
        None,
        {"categorical_covariates": 3},
        TypeError,
        "categorical_covariates must be the name of an obs column or several, got 3",
    ),
    "44-numbers": (None, {"continuous_covariates": ["age", 3]}, TypeError, "continuous_covariates must be the name"),
    "44-none": (None, {"categorical_covariates": None}, TypeError, "categorical_covariates must be the name"),
}


@pytest.mark.parametrize("row", OBJECTS)
def test_bad_object(row, method, edited, refused):
    edit, arguments, error, message = OBJECTS[row]
    refused(edited(toy(), edit), lambda adata: method(adata, **arguments), error, message)


def test_38_continuous_as_categorical(method, refused):
    message = r"categorical_covariates='score' looks continuous \(60 different"
    refused(toy(60), lambda a: method(a, categorical_covariates="score"), ValueError, message)


# 3d. Parameters

PARAMETERS: dict[str, list[tuple[dict[str, Any], type[Exception], str]]] = {
    "62": [
        *(
            ({name: value}, ValueError, f"^{name} must be .*{value}")
            for name in ("n_models", "n_layers", "n_hidden", "max_epochs", "batch_size")
            for value in (0, -1, 2.5, 3.0)
        ),
        *(
            ({name: value}, TypeError, f"^{name} must be")
            for name in ("n_models", "n_layers", "n_hidden", "max_epochs", "batch_size")
            for value in (None, True, [1])
        ),
        ({"batch_size": 1}, ValueError, "^batch_size must be at least 2"),
        *(({"learning_rate": value}, ValueError, r"^learning_rate must be in \(0, inf\]") for value in (0, -1e-3, np.nan, np.inf)),
        *(({"dropout": value}, ValueError, r"^dropout must be in \[0, 1\)") for value in (-0.1, 1, 1.5, np.nan)),
        *(
            ({name: "x"}, ValueError, f"^{name} must be a number or 'auto'")
            for name in ("learning_rate", "dropout", "n_models", "n_hidden")
        ),
        *(({name: None}, TypeError, f"^{name} must be a number") for name in ("learning_rate", "dropout")),
        *(({"mask_rate": value}, ValueError, r"^mask_rate must be in \(0, 1\)") for value in ((0, 0.5), (0.5, 1), (np.nan, 0.5), (-1, 2))),
        *(({"mask_rate": value}, ValueError, "^mask_rate must be a pair") for value in (0.5, (0.5,), (0.1, 0.2, 0.3), None, "half")),
        ({"mask_rate": (0.9, 0.5)}, ValueError, r"^mask_rate must be \(low, high\) with low <= high"),
        ({"mask_rate": ("a", "b")}, TypeError, "^mask_rate must be a number"),
    ],
    "64": [({"epochs": 3}, TypeError, "unexpected keyword argument 'epochs'")],
    "65": [
        *(
            ({name: value}, ValueError, f"^{name} must be one of \\['\\w+', '\\w+'\\]")
            for name in ("missing", "empty_genes", "mode", "variant")
            for value in ("x", None, 1)
        ),
        *(({name: "yes"}, TypeError, f"^{name} must be True or False") for name in ("copy", "progress")),
    ],
    "66": [
        *(({"key_added": value}, ValueError, "^key_added must be a .*string") for value in ("a/b", "/", "", None, 3)),
        ({"layer": "earlier", "key_added": "earlier"}, ValueError, "would overwrite the layer that is read, 'earlier'"),
        ({"mask_layer": "seen", "key_added": "seen"}, ValueError, r"layers\['seen'\] exist"),
        ({"key_added": "truth"}, ValueError, r"layers\['truth'\] exist.* not written by (pmi|gain)"),
        ({"key_added": "X_umap"}, ValueError, r"obsm\['X_umap'\] exist.* not written by"),
        ({"key_added": "toy_bulk"}, ValueError, r"uns\['toy_bulk'\] exist.* not written by"),
    ],
    "67": [
        ({"random_state": -1}, ValueError, "^random_state must not be negative, got -1"),
        *(({"random_state": value}, TypeError, "^random_state must be an int") for value in (True, 1.0, "0")),
    ],
    "68": [({"device": value}, ValueError, f"^device '?{value}'? not available; found: cpu") for value in ("gpu", "cuda:9", "mps", "", 1)],
}
ROWS = [
    pytest.param(arguments, error, message, id=f"{row}-{','.join(f'{k}={v!r:.16}' for k, v in arguments.items())}")
    for row, cases in PARAMETERS.items()
    for arguments, error, message in cases
]


@pytest.mark.parametrize(("arguments", "error", "message"), ROWS)
def test_bad_parameter(arguments, error, message, method, refused):
    refused(toy(), lambda adata: method(adata, **arguments), error, message)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *(({"supervised_weight": value}, ValueError, r"^supervised_weight must be in \[0, ") for value in (-1, np.nan, np.inf)),
        *(({"hint_rate": value}, ValueError, r"^hint_rate must be in \[0, 1\)") for value in (-0.1, 1, np.nan)),
        *(({name: "x"}, TypeError, f"^{name} must be a number") for name in ("supervised_weight", "hint_rate")),
    ],
    ids=str,
)
def test_62_bad_parameter_of_gain(arguments, error, message, refused):
    refused(toy(), lambda adata: scimpute.tl.gain(adata, **QUICK | arguments), error, message)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (".", IsADirectoryError, "save: .* is a directory; give a file name"),
        ("missing/model.safetensors", FileNotFoundError, "save: the directory .*missing' does not exist"),
    ],
)
def test_77_bad_path_is_found_first(tmp_path, method, path, error, message, refused):
    refused(toy(), lambda adata: method(adata, save=tmp_path / path), error, message)
    assert list(tmp_path.iterdir()) == []


def test_76_result_larger_than_the_memory(method, monkeypatch, refused):
    monkeypatch.setattr("scimpute._check._available_memory", lambda: 10_000)
    refused(toy(), method, MemoryError, "this needs about .* GiB of memory, .* available; impute fewer genes")


# What is odd but legal: it works


def mask_of(**changes: Any) -> Edit:
    def edit(adata: ad.AnnData) -> None:
        adata.layers["mask"] = changes["convert"](adata.layers["seen"])
        no_gaps(adata)

    return edit


def subset(n_obs: int, n_vars: int) -> Edit:
    def edit(adata: ad.AnnData) -> None:
        adata._inplace_subset_obs(slice(0, n_obs))
        adata._inplace_subset_var(slice(0, n_vars))

    return edit


def one_value_each(adata: ad.AnnData) -> None:
    """Of every gene one value is known, of every sample one at most."""
    values = np.full(adata.shape, np.nan, "f4")
    values[np.arange(30), np.arange(30)] = np.arange(30)
    adata.X = values


LEGAL: dict[str, tuple[Edit | None, dict[str, Any], str | None]] = {
    "6-fewest-samples": (subset(10, 30), COVARIATES, "1 or 2 cells"),
    "6-fewest-samples-inductive": (subset(10, 30), {"mode": "inductive"}, None),
    **{f"7-{n}-genes": (subset(40, n), {}, "have no observed value") for n in (1, 2)},
    **{f"7-{n}-genes": (subset(40, n), {}, None) for n in (3, 5)},
    **{f"7-{n}-genes-inductive": (subset(40, n), {"mode": "inductive"}, "have no observed value") for n in (1, 2)},
    "7-3-genes-inductive": (subset(40, 3), {"mode": "inductive"}, None),
    "7-one-gene-published": (subset(40, 1), {"variant": "published"}, "have no observed value"),
    "7-more-genes-than-samples": (subset(12, 30), {}, None),
    "8-tail-of-one": (subset(31, 30), {"batch_size": 10}, None),
    "8-tail-of-one-inductive": (subset(39, 30), {"batch_size": 10, "mode": "inductive"}, None),
    "8-batches-of-two": (subset(11, 30), {"batch_size": 2}, None),
    "9-batch-larger": (None, {"batch_size": 1000}, None),
    "9-batch-larger-published": (None, {"batch_size": 1000, "variant": "published", "max_epochs": 1}, None),
    "13-constant-gene": (put(slice(None), 3, 2.5), {}, None),
    "13-all-constant": (put(slice(None), slice(0, 29), 2.5), {}, None),
    "13-large-constant-gene": (put(slice(None), 3, 40.0), {}, None),
    "14-zeros-are-values": (put(slice(0, 5), slice(None), 0), {}, None),
    "15-complete": (no_gaps, {}, r"no value is missing.*the result is the input. Missing is NaN, or False in mask_layer$"),
    "15-complete-inductive": (no_gaps, {"mode": "inductive"}, "no value is missing"),
    "15-complete-published": (no_gaps, {"variant": "published", "max_epochs": 1}, "no value is missing"),
    "15-one-value-each": (one_value_each, {}, "10 samples have no observed value"),
    "15-one-value-each-inductive": (one_value_each, {"mode": "inductive"}, "10 samples have no observed value"),
    "15-two-values-of-a-gene": (put(slice(2, None), 3, np.nan), {}, None),
    "15-empty-sample": (put(4, slice(None), np.nan), COVARIATES, r"1 samples have no observed value \(first: 'sample4'\); they are filled"),
    "15-empty-samples": (put(slice(4, 9), slice(None), np.nan), {}, "5 samples have no observed value"),
    "17-negative": (lambda a: setattr(a, "X", a.X - 6), {}, None),
    "19-counts": (lambda a: setattr(a, "X", np.expm1(a.X)), {}, r"values up to .* do not look like log .*call scanpy.pp.log1p\(adata\)"),
    "21-mask-sparse": (mask_of(convert=sp.csr_matrix), {"mask_layer": "mask"}, None),
    "21-mask-numbers": (mask_of(convert=lambda x: x.astype(np.int8)), {"mask_layer": "mask"}, None),
    "21-mask-floats": (mask_of(convert=lambda x: x.astype(np.float64)), {"mask_layer": "mask"}, None),
    "32-repeated-samples": (lambda a: setattr(a, "obs_names", ["s"] * a.n_obs), COVARIATES, None),
    "37-integers": (lambda a: a.obs.__setitem__("n", np.arange(a.n_obs) % 3), {"categorical_covariates": "n"}, None),
    "37-integers-continuous": (lambda a: a.obs.__setitem__("n", np.arange(a.n_obs) % 3), {"continuous_covariates": "n"}, None),
    "37-truth-values-continuous": (lambda a: a.obs.__setitem__("n", np.arange(a.n_obs) > 5), {"continuous_covariates": "n"}, None),
    "37-tuple": (None, {"categorical_covariates": ("tissue", "sex")}, None),
    "40-constant": (None, {"categorical_covariates": "one", "continuous_covariates": "number_one"}, None),
    "41-single": (None, {"categorical_covariates": "rare"}, r"\['single'\] have 1 or 2 cells"),
    "41-each-its-own": (None, {"categorical_covariates": "id"}, "have 1 or 2 cells"),
    "41-single-inductive": (None, {"categorical_covariates": "rare", "mode": "inductive"}, r"\['single'\] have 1 or 2 cells"),
    "62-edges": (None, {"dropout": 0, "n_layers": 1, "n_hidden": 1, "max_epochs": 1, "mask_rate": [0.01, 0.99]}, None),
    "62-nothing-shown": (None, {"mask_rate": (1e-6, 1e-6)}, None),
    "62-nothing-asked": (None, {"mask_rate": (1 - 1e-9, 1 - 1e-9)}, None),
    "62-nothing-asked-inductive": (None, {"mask_rate": (1 - 1e-9, 1 - 1e-9), "mode": "inductive"}, None),
    "62-numpy-numbers": (None, {"max_epochs": np.int64(2), "dropout": np.float32(0.1), "n_hidden": np.int32(8)}, None),
    "66-unusual-key": (None, {"key_added": "my result (2)"}, None),
    "67-fresh": (None, {"random_state": None}, None),
}


@pytest.mark.parametrize("row", LEGAL)
def test_odd_but_legal(row, method, edited, fingerprint):
    edit, arguments, message = LEGAL[row]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata says that names are not unique
        adata = edited(toy(), edit)
    before = fingerprint(adata)
    key = arguments.get("key_added", "result")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method(adata, **arguments)
    ours = [str(w.message) for w in caught if "not unique" not in str(w.message)]
    if message is None:
        assert ours == []
    else:
        assert all(pd.Series(ours, dtype=object).str.contains(message)), ours
        assert len(ours) >= 1
    values = adata.X
    seen = ~np.isnan(values)
    if "mask_layer" in arguments:
        seen &= adata.layers["seen"]
    for name in (key, f"{key}_sd"):
        assert adata.layers[name].shape == adata.shape
        assert adata.layers[name].dtype == np.float32
        assert np.isfinite(adata.layers[name]).all()
    np.testing.assert_array_equal(adata.layers[key][seen], values[seen])
    assert (adata.layers[f"{key}_sd"][seen] == 0).all()
    assert (adata.layers[f"{key}_sd"][~seen] >= 0).all()
    # Nothing runs away: within the range of what was observed, and as much again.
    low, high = np.nanmin(values), np.nanmax(values)
    assert adata.layers[key].min() >= low - (high - low)
    assert adata.layers[key].max() <= high + (high - low)
    after = fingerprint(adata)
    assert {name: after[name] for name in before} == before


def test_15_empty_gene_stays_missing_on_request(method):
    adata = toy()
    adata.X[:, 3] = np.nan
    method(adata, empty_genes="nan")
    others = np.arange(adata.n_vars) != 3
    for name in ("result", "result_sd"):
        assert np.isnan(adata.layers[name][:, 3]).all()
        assert np.isfinite(adata.layers[name][:, others]).all()
    assert list(adata.uns["result"]["r2"].index) == list(adata.var_names[others])
    without = adata[:, others].copy()
    method(without)
    np.testing.assert_array_equal(adata.layers["result"][:, others], without.layers["result"])


@pytest.mark.parametrize("arguments", [{}, {"mode": "inductive"}], ids=str)
def test_15_empty_sample_is_filled_from_its_covariates(method, arguments):
    adata = scimpute.datasets.toy_bulk(120, 60)
    truth = adata.X.copy()
    adata.X[np.random.default_rng(0).random(adata.shape) < 0.2] = np.nan
    blank = 7
    adata.X[blank] = np.nan
    with pytest.warns(UserWarning, match=r"1 samples have no observed value \(first: 'sample7'\)") as caught:
        method(adata, **COVARIATES | arguments)
    assert len(caught) == 1
    same = (adata.obs["tissue"] == adata.obs["tissue"].iloc[blank]).to_numpy()
    everywhere, tissue = np.nanmean(adata.X, axis=0), np.nanmean(adata.X[same], axis=0)
    filled = adata.layers["result"][blank]
    assert np.corrcoef(filled - everywhere, tissue - everywhere)[0, 1] > 0.8
    assert np.square(filled - tissue).mean() < np.square(filled - everywhere).mean()
    assert np.square(filled - truth[blank]).mean() < np.square(everywhere - truth[blank]).mean()


def test_15_genes_with_too_many_gaps_are_left_alone(method, tmp_path):
    adata, path = toy(), tmp_path / "model.safetensors"
    adata.X[:30, [3, 8]] = np.nan
    adata.X[:, 9] = np.nan
    given = adata.X.copy()
    fewer = adata[:, np.delete(np.arange(30), [3, 8, 9])].copy()
    method(adata, max_missing=0.5, save=path, **COVARIATES)
    method(fewer, **COVARIATES)
    assert adata.uns["result"]["left_out"] == ["gene3", "gene8", "gene9"]
    for suffix in ("", "_sd"):
        np.testing.assert_array_equal(adata[:, fewer.var_names].layers["result" + suffix], fewer.layers["result" + suffix])
    np.testing.assert_array_equal(adata.layers["result"][:, [3, 8, 9]], given[:, [3, 8, 9]])
    sd = adata.layers["result_sd"][:, [3, 8, 9]]
    assert np.array_equal(np.isnan(sd), np.isnan(given[:, [3, 8, 9]]))
    assert not np.nansum(sd)
    assert list(adata.uns["result"]["r2"].index) == list(fewer.var_names)
    scimpute.tl.apply(adata, path, key_added="again")
    np.testing.assert_allclose(adata.obsm["again"], fewer.layers["result"], rtol=1e-4, atol=1e-4)
    adata.write_h5ad(tmp_path / "again.h5ad")
    assert list(ad.read_h5ad(tmp_path / "again.h5ad").uns["result"]["left_out"]) == ["gene3", "gene8", "gene9"]
    method(fewer)
    assert "left_out" not in fewer.uns["result"]


def test_15_complete_data_stays_as_it_is_bit_for_bit(method):
    adata = scimpute.datasets.toy_bulk(40, 30)
    with pytest.warns(UserWarning, match="no value is missing") as caught:
        method(adata, **COVARIATES)
    assert len(caught) == 1
    assert adata.layers["result"].tobytes() == adata.X.tobytes()
    assert not adata.layers["result_sd"].any()


def test_15_zero_is_missing_on_request_only(method):
    adata = toy()
    no_gaps(adata)
    adata.X[2:9, 4] = 0
    with pytest.warns(UserWarning, match="no value is missing.*7 values are 0, and missing='zero' treats them as missing"):
        method(adata)
    assert (adata.layers["result"][2:9, 4] == 0).all()
    method(adata, missing="zero")
    assert (adata.layers["result"][2:9, 4] > 1).all()
    assert (adata.layers["result_sd"][2:9, 4] > 0).all()


def test_15_all_ways_to_say_missing_are_the_same(method):
    adata = toy()
    masked, zero, both = adata.copy(), adata.copy(), adata.copy()
    masked.X = np.where(adata.layers["seen"], adata.X, 7)
    zero.X = sp.csr_matrix(np.where(adata.layers["seen"], adata.X, 0))
    both.layers["seen"][:] = True
    method(adata)
    for other, arguments in ((masked, {"mask_layer": "seen"}), (zero, {"missing": "zero"}), (both, {"mask_layer": "seen"})):
        method(other, **arguments)
        np.testing.assert_array_equal(other.layers["result"], adata.layers["result"])


def test_19_warnings_point_at_the_caller(method):
    adata = toy()
    adata.X *= 100
    adata.X[4] = np.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method(adata, categorical_covariates="rare")
    assert len(caught) == 3
    for warning in caught:
        if "1 or 2 cells" not in str(warning.message):
            assert Path(warning.filename).name == Path(__file__).name


def test_40_constant_covariates_are_left_out(method, caplog):
    first, second = toy(), toy()
    method(first)
    method(second, categorical_covariates="one", continuous_covariates="number_one")
    np.testing.assert_array_equal(first.layers["result"], second.layers["result"])


def test_44_covariates_are_used(method):
    adata = toy()
    method(adata, key_added="without")
    method(adata, **COVARIATES)
    assert not np.array_equal(adata.layers["without"], adata.layers["result"])


# 3e. Faults while running


@pytest.mark.parametrize("arguments", [{}, {"variant": "published"}], ids=str)
def test_72_diverging_training_stops_at_once(method, fingerprint, arguments):
    adata = toy()
    before = fingerprint(adata)
    message = r"training failed: the \w+ loss became \S+ in epoch \d+; try a smaller learning_rate \(now 1e\+30\)"
    with pytest.raises(RuntimeError, match=message):
        method(adata, **{"max_epochs": 10, "learning_rate": 1e30} | arguments)
    assert fingerprint(adata) == before


@pytest.mark.parametrize("network", ["Pmi", "Gain"])
def test_74_interrupted_training(fingerprint, states, monkeypatch, network):
    adata = toy()
    before, state = fingerprint(adata), states()

    def losses(self: Any, batch: Any) -> Any:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(f"scimpute.models.pmi_gain.{network}.losses", losses)
    with pytest.raises(KeyboardInterrupt):
        METHODS[network.lower()](adata, **QUICK)
    assert fingerprint(adata) == before
    assert states() == state


@pytest.mark.parametrize("step", ["_bulk.train.fit", "_bulk.train.apply_network", "_bulk.linear.regress_on_samples"])
def test_75_out_of_memory_of_the_device(method, fingerprint, monkeypatch, step):
    adata = toy()
    before = fingerprint(adata)
    freed = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: freed.append(True))

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"scimpute.{step}", fail)
    with pytest.raises(RuntimeError, match="out of memory.*smaller batch_size"):
        method(adata)
    assert freed
    assert fingerprint(adata) == before


def test_83_progress_is_shown_on_request_only(method, capfd):
    method(toy())
    method(toy(), progress=None)
    assert capfd.readouterr() == ("", "")
    method(toy(), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "done" in err


CONTEXTS: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "no-grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "numpy-errors": lambda: np.errstate(all="raise", under="ignore"),
}


@pytest.mark.parametrize("variant", ["default", "published"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_85_the_caller_context_does_not_matter(method, states, context, variant):
    adata = toy()
    arguments = COVARIATES | {"variant": variant, "max_epochs": 1, "copy": True}
    expected = method(adata, **arguments)
    with CONTEXTS[context]():
        before = states()
        found = method(adata, **arguments)
        assert states() == before
    for name in ("result", "result_sd"):
        np.testing.assert_array_equal(found.layers[name], expected.layers[name])


@pytest.mark.parametrize("variant", ["default", "published"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_85_the_default_dtype_does_not_matter(method, states, default_dtype, dtype, variant):
    adata = toy()
    arguments = COVARIATES | {"variant": variant, "max_epochs": 1, "copy": True}
    expected = method(adata, **arguments)
    default_dtype(dtype)
    before = states()
    found = method(adata, **arguments)
    assert states() == before
    for name in ("result", "result_sd"):
        np.testing.assert_array_equal(found.layers[name], expected.layers[name])
