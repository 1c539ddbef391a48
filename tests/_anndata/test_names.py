"""Names, keys and keywords: what no file can hold, what is of another type, and what was meant."""

from __future__ import annotations

import datetime as dt
import decimal
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scimpute
from scimpute import _check
from scimpute._anndata.covariates import _continuous_values

QUICK: dict[str, Any] = {"max_epochs": 1, "n_repeats": 1, "n_context": 2, "penalty": 1.0, "width": 4}


@pytest.fixture
def spots() -> ad.AnnData:
    adata = scimpute.datasets.toy_counts()
    adata.obsm["spatial"] = adata.obsm["X_umap"] = np.random.default_rng(0).uniform(size=(adata.n_obs, 2))
    return adata


IMPUTE: dict[str, Callable[..., Any]] = {name: getattr(scimpute.tl, name) for name in ("began", "spatial", "nmf", "pmi", "gain")}
HALF = "a\ud800"


@pytest.mark.parametrize("key", [".", "..", "a\0b", HALF, "a/b", "", "_index", ".zgroup"])
@pytest.mark.parametrize("name", [*IMPUTE, "thin", "hide", "tiles", "spatial_rings"])
def test_keys_that_files_cannot_hold(spots, name, key, refused):
    call = IMPUTE.get(name) or getattr(scimpute.pp, name)
    refused(spots, lambda adata: call(adata, key_added=key), ValueError, "key_added")


@pytest.mark.parametrize("letter", ["\0", "\ud800"])
@pytest.mark.parametrize("name", IMPUTE)
def test_names_of_genes_that_files_cannot_hold(spots, name, letter, refused):
    spots.var_names = [f"gene{letter}", *spots.var_names[1:]]
    refused(spots, IMPUTE[name], ValueError, r"adata.var_names: \['gene.*cannot be written to a file")


@pytest.mark.parametrize("letter", ["\0", "\ud800"])
def test_levels_that_files_cannot_hold(spots, letter, refused):
    spots.obs["label"] = [f"a{letter}a" if i < 30 else "b" for i in range(spots.n_obs)]
    calls: dict[str, Callable[[Any], Any]] = {
        "batch_key": lambda adata: scimpute.tl.began(adata, "label"),
        "library_key": lambda adata: scimpute.tl.spatial(adata, library_key="label"),
        "categorical_covariates": lambda adata: scimpute.tl.pmi(adata, categorical_covariates="label"),
    }
    for argument, call in calls.items():
        refused(spots, call, ValueError, rf"{argument}='label': level: \['a.*cannot be written to a file")


@pytest.mark.parametrize("gene", [".", "_index", "", ".zattrs", "/HLA"])
def test_genes_that_cannot_be_columns(spots, gene, refused):
    spots.var_names = [gene, *spots.var_names[1:]]
    spots.var["marked"] = np.arange(spots.n_vars) < 2
    for genes in ([gene], "marked"):
        refused(spots, lambda adata, genes=genes: IMPUTE["began"](adata, genes=genes), ValueError, "have a meaning of their own in files")
    refused(spots, lambda adata: IMPUTE["nmf"](adata, genes=[gene]), ValueError, "have a meaning of their own in files")


def test_a_gene_that_is_called_as_the_names_of_the_cells(spots, refused):
    spots.obs_names.name = "gene3"
    refused(spots, lambda adata: IMPUTE["began"](adata, genes=["gene1", "gene3"]), ValueError, "set adata.obs_names.name = None first")


@pytest.mark.filterwarnings("ignore:the generator")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_genes_with_a_slash(spots, refused, tmp_path):
    spots.var_names = ["HLA/B", "HLA", *spots.var_names[2:]]
    with pytest.warns(UserWarning, match=r"\['HLA/B'\] become columns of a table with a '/' .*rename"):
        scimpute.tl.began(spots, genes=["HLA/B", "gene2"], **QUICK)
    for table in spots.obsm["began"], spots.obsm["began_sd"]:
        table.columns = ["HLA_B", "gene2"]
    spots.write_h5ad(tmp_path / "file.h5ad")
    assert list(ad.read_h5ad(tmp_path / "file.h5ad").obsm["began"]) == ["HLA_B", "gene2"]
    refused(
        spots,
        lambda adata: IMPUTE["began"](adata, genes=["HLA/B", "HLA"]),
        ValueError,
        "would lie inside the entry of another gene in files",
    )


def test_genes_of_a_model_that_cannot_be_columns(spots, refused, tmp_path):
    spots.var_names = ["_index", *spots.var_names[1:]]
    path = tmp_path / "model.safetensors"
    scimpute.tl.began(spots, save=path, **QUICK)
    scimpute.tl.apply(spots, path)
    spots.var_names = [*spots.var_names[:-1], "another"]
    with pytest.warns(UserWarning, match="genes of the model are not in"):
        refused(spots, lambda adata: scimpute.tl.apply(adata, path), ValueError, "have a meaning of their own in files")


def test_genes_whose_index_is_called_as_a_column(spots, tmp_path):
    spots.var_names.name = "r2"
    spots.X = np.log1p(spots.X.toarray())
    spots.X[::3, 5] = np.nan
    scimpute.tl.pmi(spots, n_models=1, n_hidden=8, max_epochs=1)
    spots.write_h5ad(tmp_path / "file.h5ad")


@pytest.mark.parametrize(
    ("genes", "error", "message"),
    [
        (np.arange(40) < 3, TypeError, "genes is a mask of True and False; pass names"),
        ([True, False], TypeError, "genes is a mask of True and False; pass names"),
        (np.array("gene1"), TypeError, "genes must be gene names"),
        (np.array([["gene1"]]), TypeError, "genes must be gene names"),
        (b"gene1", TypeError, "genes must be gene names"),
    ],
)
def test_genes_that_are_no_list_of_names(spots, genes, error, message, refused):
    refused(spots, lambda adata: IMPUTE["began"](adata, genes=genes), error, message)


HUGE = 10**30


@pytest.mark.parametrize("name", ["random_state", "block_size", "batch_size", "n_context", "max_epochs"])
def test_whole_numbers_that_files_cannot_hold(spots, name, refused):
    for value in (HUGE, 10**5000, np.uint64(2**63)):
        refused(spots, lambda adata, value=value: IMPUTE["began"](adata, **{name: value}), ValueError, rf"{name} must be at most 2\^63 - 1")
    refused(spots, lambda adata: IMPUTE["began"](adata, **{name: -(10**5000)}), ValueError, f"{name} must .*less than -2")


def test_the_highest_seed_can_be_written(spots, tmp_path):
    scimpute.tl.began(spots, random_state=2**63 - 1, **QUICK)
    spots.write_h5ad(tmp_path / "file.h5ad")
    assert ad.read_h5ad(tmp_path / "file.h5ad").uns["began"]["params"]["random_state"] == 2**63 - 1


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["high", "low", "long"])
def test_numbers_beyond_floats(spots, value, refused):
    refused(spots, lambda adata: IMPUTE["began"](adata, gamma=value), ValueError, r"gamma must be in \[0, 1\], got a whole number of more")


NO_NUMBERS = {
    "dates": pd.to_datetime(["2020-01-01"] * 60),
    "categories of dates": pd.Categorical(pd.to_datetime(["2020-01-01"] * 60)),
    "date objects": np.array([dt.date(2020, 1, 1)] * 60, dtype=object),
    "spans of time": pd.to_timedelta(["1 day"] * 60),
    "complex": np.full(60, 1e6 + 1j),
    "complex objects": np.array([1e6 + 1j] * 60, dtype=object),
    "whole numbers beyond floats": pd.Index([10**400] * 60, dtype=object),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_columns_that_are_no_numbers(spots, kind, refused):
    spots.obs["column"] = pd.Series(NO_NUMBERS[kind], spots.obs_names, dtype=NO_NUMBERS[kind].dtype)
    refused(
        spots,
        lambda adata: IMPUTE["began"](adata, size_key="column"),
        ValueError,
        "size_key='column' is not a positive number in 60",
    )
    message = "continuous_covariates='column' holds values that are no numbers in 60 samples"
    refused(spots, lambda adata: IMPUTE["pmi"](adata, continuous_covariates="column"), ValueError, message)


@pytest.mark.parametrize("kind", ["text", "category", "decimal", "object", "Int64", "float16"])
def test_columns_that_are_numbers(spots, kind):
    numbers = np.arange(1000, 1060)
    made = {
        "text": numbers.astype(str),
        "category": pd.Categorical(numbers),
        "decimal": np.array([decimal.Decimal(int(number)) for number in numbers], dtype=object),
        "object": numbers.astype(object),
    }
    spots.obs["column"] = made[kind] if kind in made else pd.array(numbers, dtype=kind)
    np.testing.assert_array_equal(_continuous_values(spots, "column"), np.float16(numbers) if kind == "float16" else numbers)


def test_columns_of_which_there_are_two(spots, monkeypatch):
    for training in ("tl._run.run", "tl._bulk.train"):
        monkeypatch.setattr(f"scimpute.{training}", lambda *_, **__: pytest.fail("training had begun"))
    spots.obs = pd.concat([spots.obs, spots.obs[["batch"]], pd.DataFrame({"size": 1e4, "age": 1.0}, index=spots.obs_names)], axis=1)
    spots.obs = pd.concat([spots.obs, spots.obs[["size", "age"]]], axis=1)
    spots.var = pd.DataFrame(np.ones((spots.n_vars, 2), dtype=bool), index=spots.var_names, columns=["marked", "marked"])
    calls: dict[str, Callable[[Any], Any]] = {
        "batch_key='batch': obs": lambda adata: scimpute.tl.began(adata, "batch"),
        "celltype_key='batch': obs": lambda adata: scimpute.tl.began(adata, celltype_key="batch"),
        "size_key='size': obs": lambda adata: scimpute.tl.nmf(adata, size_key="size"),
        "genes='marked': var": lambda adata: scimpute.tl.began(adata, genes="marked"),
        "continuous_covariates='age': obs": lambda adata: scimpute.tl.pmi(adata, continuous_covariates="age"),
        "categorical_covariates='batch': obs": lambda adata: scimpute.tl.pmi(adata, categorical_covariates="batch"),
        "labels='batch': obs": lambda adata: scimpute.metrics.cluster_agreement(adata, "rate", labels="batch"),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=f"{message} has 2 columns of this name; rename or drop"):
            call(spots)


NAMES = {
    "tl.began": ("batch_key", "celltype_key", "layer", "size_key"),
    "tl.spatial": ("library_key", "layer", "size_key", "tile_features"),
    "tl.nmf": ("library_key", "layer", "size_key"),
    "tl.pmi": ("layer", "mask_layer"),
    "pp.thin": ("layer",),
    "pp.hide": ("layer",),
    "pp.spatial_rings": ("library_key",),
}


@pytest.mark.parametrize("value", [["batch"], 3, np.array(["batch", "cell_type"]), ("batch",), {"batch"}], ids=repr)
@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name, found in NAMES.items() for argument in found])
def test_names_of_another_type(spots, name, argument, value, refused):
    module, function = name.split(".")
    call = getattr(getattr(scimpute, module), function)
    more = {"spatial_weight": 1.0} if name == "tl.nmf" else {}
    refused(spots, lambda adata: call(adata, **{argument: value}, **more), TypeError, f"{argument} must be")


@pytest.mark.parametrize("value", [["began"], 3, np.array(["a", "b"])], ids=repr)
def test_names_of_another_type_in_figures_and_scores(spots, value):
    scimpute.pp.thin(spots)
    gene = str(spots.var_names[0])
    calls: dict[str, Callable[[], Any]] = {
        "key": lambda: scimpute.pl.imputed(spots, gene, value),
        "basis": lambda: scimpute.pl.imputed(spots, gene, "rate", basis=value),
        "key ": lambda: scimpute.pl.training(spots, value),
        "layers": lambda: scimpute.metrics.heldout(spots, [value]),
    }
    for argument, call in calls.items():
        with pytest.raises(TypeError, match=f"{argument.strip()} must be"):
            call()


@pytest.mark.parametrize("name", ["began", "spatial", "nmf"])
def test_genes_of_a_generator_are_recorded(spots, name):
    quick = {"max_epochs": 1, "penalty": 1.0} if name == "nmf" else QUICK
    IMPUTE[name](spots, genes=(gene for gene in ("gene3", "gene1")), key_added="key", **quick)
    assert list(spots.uns["key"]["params"]["genes"]) == ["gene3", "gene1"]
    assert list(spots.obsm["key"].columns) == ["gene3", "gene1"]


@pytest.mark.parametrize("far", [1e155, 1e300, -1e200])
@pytest.mark.parametrize("call", [scimpute.tl.spatial, scimpute.pp.spatial_rings], ids=["spatial", "rings"])
def test_places_too_far_to_be_measured(spots, call, far, refused):
    spots.obsm["spatial"][4, 1] = far
    refused(spots, call, ValueError, r"obsm\['spatial'\] is beyond 1e\+100 for 1 spots \(first: 'cell4'\)")


@pytest.mark.parametrize("value", [1e19, 1e30, 1e300])
def test_library_sizes_that_are_none(spots, value, refused):
    spots.obs["size"] = 1e4
    spots.obs.loc["cell4", "size"] = value
    refused(
        spots,
        lambda adata: scimpute.tl.began(adata, size_key="size"),
        ValueError,
        r"size_key='size' is above 2\^53.*first: 'cell4'",
    )


def test_a_batch_that_is_called_average(spots):
    spots.obs["batch"] = spots.obs["batch"].astype(str).replace({spots.obs["batch"].iloc[0]: "average"})
    with pytest.raises(ValueError, match="but one batch has this name, too; rename"):
        scimpute.tl.began(spots, "batch", target_batch="average")
    scimpute.tl.began(spots, "batch", **QUICK)


# What was meant


PUBLIC = [
    getattr(getattr(scimpute, module), name)
    for module in ("tl", "pp", "pl", "metrics", "datasets")
    for name in getattr(scimpute, module).__all__
]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__qualname__)
def test_unknown_keywords_are_named_in_every_function(function):
    known = list(inspect.signature(function).parameters)
    if not known:
        return
    with pytest.raises(
        TypeError, match=rf"{function.__name__}\(\) got an unexpected keyword argument '{known[-1]}_'; did you mean '{known[-1]}'"
    ):
        function(**{f"{known[-1]}_": 1})
    with pytest.raises(TypeError, match="unexpected keyword argument 'qqq'; there are: "):
        function(qqq=1)


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("batch", "batch_key"),
        ("seed", "random_state"),
        ("Layer", "layer"),
        ("n_epochs", "max_epochs"),
        ("gene", "genes"),
        ("celltype", "celltype_key"),
    ],
)
def test_keywords_that_were_meant(keyword, meant):
    with pytest.raises(TypeError, match=f"did you mean '{meant}'?"):
        scimpute.tl.began(scimpute.datasets.toy_counts(), **{keyword: "x"})


@pytest.mark.parametrize(
    ("name", "existing", "expected"),
    [
        ("NOTAGENE", ["TAGLN", "CD3E"], None),
        ("cd3e", ["CD3D", "CD3E"], "CD3E"),
        ("GAPD", ["GAPDH", "ACTB"], "GAPDH"),
        ("celltype", ["cell_type", "batch"], "cell_type"),
        ("Batch", ["n_genes", "batch"], "batch"),
        ("batch", ["n_genes", "batch_id"], "batch_id"),
        ("leiden", ["louvain", "total_counts"], None),
        ("counts", ["spliced", "rate"], None),
        ("HLA.A", ["HLA-A", "HLA-B"], "HLA-A"),
        ("MS4A1", ["MS4A7", "LYZ"], "MS4A7"),
        ("XYZ", ["XIST", "LYZ"], None),
        ("", ["a", "b"], None),
    ],
)
def test_only_close_names_are_suggested(name, existing, expected):
    assert _check.closest(name, existing) == expected


def test_a_gene_that_is_not_there(spots):
    spots.var_names = ["TAGLN", *spots.var_names[1:]]
    with pytest.raises(KeyError, match="NOTAGENE") as caught:
        scimpute.tl.began(spots, genes=["NOTAGENE"])
    assert "did you mean" not in str(caught.value)


# A view, and results that were joined


def test_a_view_is_said_once_and_in_the_users_line(spots):
    for call in (lambda adata: scimpute.tl.began(adata, **QUICK), scimpute.pp.thin, scimpute.pp.spatial_rings):
        view = spots[:50]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", DeprecationWarning)  # anndata 0.13 on pandas 3.1
            call(view)
        assert [w.category for w in caught] == [ad.ImplicitModificationWarning]
        assert caught[0].filename == __file__
        assert "adata is a view of another object" in str(caught[0].message)
        assert not view.is_view
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        scimpute.tl.began(spots[:50], copy=True, **QUICK)


def test_a_view_is_refused_before_the_work_where_warnings_are_errors(spots, monkeypatch):
    monkeypatch.setattr("scimpute.tl._run.run", lambda *_, **__: pytest.fail("training had begun"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(ad.ImplicitModificationWarning):
            scimpute.tl.began(spots[:50], **QUICK)


def test_results_that_were_joined_are_explained(spots):
    parts = [spots[:30].copy(), spots[30:].copy()]
    for part in parts:
        scimpute.tl.began(part, **QUICK)
    joined = ad.concat(parts)
    message = r"concat drops uns.*delete them first: del adata.layers\['began'\]; del adata.layers\['began_sd'\]"
    with pytest.raises(ValueError, match=message):
        scimpute.tl.began(joined, **QUICK)
    del joined.layers["began"], joined.layers["began_sd"]
    scimpute.tl.began(joined, **QUICK)
    known = ad.concat(parts, uns_merge="first")
    scimpute.tl.began(known, **QUICK)
    np.testing.assert_array_equal(known.layers["began"], joined.layers["began"])


@pytest.mark.parametrize(
    ("method", "options", "deleted"),
    [
        ("began", {"sd": False}, ["adata.layers['began']"]),
        ("began", {"genes": 3}, ["adata.obsm['began']", "adata.obsm['began_sd']"]),
        ("nmf", {}, ["adata.layers['nmf']", "adata.layers['nmf_sd']", "adata.obsm['X_nmf']"]),
        ("nmf", {"genes": 3, "sd": False}, ["adata.obsm['nmf']", "adata.obsm['X_nmf']"]),
    ],
)
def test_all_of_a_joined_result_is_explained_at_once(spots, method, options, deleted):
    quick = {"began": QUICK, "nmf": {"max_epochs": 1, "penalty": 1.0, "spatial_weight": 0}}[method]
    if "genes" in options:
        options = options | {"genes": list(spots.var_names[: options["genes"]])}
    run, parts = getattr(scimpute.tl, method), [spots[:30].copy(), spots[30:].copy()]
    for part in parts:
        run(part, **quick | options)
    adata = ad.concat(parts)
    with pytest.raises(ValueError, match=r"concat drops uns.*delete them first: ") as caught:
        run(adata, **quick | options)
    lines = str(caught.value).split("first: ")[1]
    assert lines == "; ".join(f"del {place}" for place in deleted)
    exec(lines, {"adata": adata})
    run(adata, **quick | options)
