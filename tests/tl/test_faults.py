"""Bad input and faults while running: what is raised, what the message says, and that the object is as it was.

The number that a row's id starts with is its row in the fault table of the project. Rows 77, 78 and 80 (disks, threads, forks) are
of every method: test_contract.py.
"""

from __future__ import annotations

import builtins
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scimpute
from scimpute import _check
from scimpute._anndata.matrix import to_csr

Call = Callable[[Any], Any]
QUICK: dict[str, Any] = {
    "max_epochs": 2,
    "n_repeats": 2,
    "n_context": 5,
    "width": 16,
    "penalty": 100.0,
    "block_size": 16,
    "progress": False,
}


def began(**changes: Any) -> Call:
    return lambda adata: scimpute.tl.began(adata, **QUICK | changes)


def thin(**changes: Any) -> Call:
    return lambda adata: scimpute.pp.thin(adata, **changes)


def heldout(layers: Any = "rate", **changes: Any) -> Call:
    return lambda adata: scimpute.metrics.heldout(adata, layers, **changes)


EVERY: dict[str, Call] = {"began": began(), "thin": thin(key_added="again"), "heldout": heldout()}


def toy() -> ad.AnnData:
    """Counts in X and ``layers["counts"]``, thinned."""
    adata = scimpute.datasets.toy_counts()
    adata.layers["counts"] = adata.X.copy()
    adata.var["marked"] = np.arange(adata.n_vars) < 5
    adata.var["score"] = 0.5
    adata.obs["score"] = np.linspace(0, 1, adata.n_obs)
    adata.obs["gaps"] = adata.obs["batch"].where(np.arange(adata.n_obs) != 4)
    adata.obs["size"] = 1000.0
    adata.obs["size_gaps"] = adata.obs["size"].where(np.arange(adata.n_obs) != 4)
    adata.obs["size_small"] = 1.0
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2))
    scimpute.pp.thin(adata)
    return adata


# 3a. The object and the matrix


class MuData:
    """Stands for the class of this name."""


class SpatialData:
    """Stands for the class of this name."""


NOT_ANNDATA = {
    "1-array": (lambda: np.ones((3, 3)), "expected AnnData, got ndarray; wrap it with anndata.AnnData"),
    "1-frame": (lambda: pd.DataFrame({"a": [1.0]}), "expected AnnData, got DataFrame; wrap it"),
    "1-sparse": (lambda: sp.csr_matrix(np.eye(3)), "expected AnnData, got csr_matrix; wrap it"),
    "1-text": (lambda: "file.h5ad", "expected AnnData, got str; read the file first"),
    "1-path": (lambda: Path("file.h5ad"), "expected AnnData, got PosixPath; read the file first"),
    "1-none": (lambda: None, "expected AnnData, got NoneType"),
    "2-mudata": (MuData, r"expected AnnData, got MuData; pass one modality, e.g. mdata.mod\['rna'\]"),
    "2-spatialdata": (SpatialData, r"expected AnnData, got SpatialData; pass its table, e.g. sdata.tables\['table'\]"),
}


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("row", NOT_ANNDATA)
def test_not_an_anndata(row, function, refused):
    make, message = NOT_ANNDATA[row]
    refused(make(), EVERY[function], TypeError, message)


def with_entry(value: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Dense counts with ``value`` at cell 3, gene 5."""

    def change(dense: np.ndarray) -> np.ndarray:
        dense = dense.astype(np.result_type(dense, np.asarray(value)))
        dense[3, 5] = value
        return dense

    return change


COUNTS_ARE = r".*; counts are in: .*layer='counts'"
MATRICES: dict[str, tuple[Callable[[np.ndarray], Any], type[Exception], str]] = {
    "12-zero": (np.zeros_like, ValueError, "has no non-zero entry" + COUNTS_ARE),
    "14-nan": (with_entry(np.nan), ValueError, "has 1 values? .*NaN.*first: cell 'cell3', gene 'gene5'"),
    "16-inf": (with_entry(np.inf), ValueError, "infinite .*first: cell 'cell3', gene 'gene5'"),
    "16-minus-inf": (with_entry(-np.inf), ValueError, "infinite .*first: cell 'cell3', gene 'gene5'"),
    "16-beyond-float32": (with_entry(1e300), ValueError, "infinite .*first: cell 'cell3', gene 'gene5'"),
    "17-negative": (with_entry(-2.25), ValueError, r"negative values \(min -2.25\).*scaled" + COUNTS_ARE),
    "18-log": (np.log1p, ValueError, "not whole numbers .*normalised" + COUNTS_ARE),
    "18-float": (with_entry(0.5), ValueError, "not whole numbers" + COUNTS_ARE),
    "21-complex": (lambda dense: dense.astype(complex), TypeError, "dtype complex.*expected real numbers"),
    "21-object": (lambda dense: dense.astype(object), TypeError, "dtype object, expected real numbers"),
    "21-text": (lambda dense: dense.astype("U3"), TypeError, "dtype <U3, expected real numbers"),
    "22-masked": (lambda dense: np.ma.masked_less(dense, 1), TypeError, "masked array.*fill"),
}
CONVERTED = {"sparse": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}
READ = {"began": began(layer="other"), "thin": thin(layer="other", key_added="again"), "heldout": heldout(key="other")}


@pytest.mark.parametrize("function", READ)
@pytest.mark.parametrize("row", MATRICES)
def test_matrix_that_holds_no_counts(row, function, refused):
    change, error, message = MATRICES[row]
    adata = toy()
    name = "other_train" if function == "heldout" else "other"
    adata.layers["other_test"] = adata.layers["thin_test"]
    adata._layers[name] = change(adata.X.toarray())  # anndata itself refuses some of them by now
    refused(adata, READ[function], error, f"layers\\['other(_train)?'\\].*{message}")


@pytest.mark.parametrize("kind", CONVERTED)
@pytest.mark.parametrize("row", ["12-zero", "14-nan", "16-inf", "17-negative", "18-float"])
def test_x_that_holds_no_counts(row, kind, refused):
    change, error, message = MATRICES[row]
    adata = toy()
    adata.X = CONVERTED[kind](change(adata.X.toarray()))
    refused(adata, began(), error, f"adata.X .*{message}")


def test_26_unknown_chunk_sizes():
    """AnnData refuses such an array by now; should one come through, the message says what to do."""
    dense = pytest.importorskip("dask.array").from_array(np.ones((60, 40)), chunks=(20, 40))
    with pytest.raises(ValueError, match=r"^adata.X is a dask array whose chunk sizes are unknown; call .compute_chunk_sizes\(\)"):
        to_csr(dense[dense[:, 0] > 0], "adata.X")


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix, sp.csr_array], ids=["dense", "csr_matrix", "csr_array"])
def test_26_dask_layers_are_scored(convert):
    dask = pytest.importorskip("dask.array")
    adata = toy()
    expected = heldout()(adata)
    for name in ("rate", "thin_train", "thin_test"):
        values = adata.layers[name]
        whole = convert(values.toarray() if sp.issparse(values) else values)
        adata.layers[name] = dask.from_array(whole, chunks=(23, 40), asarray=False)
    pd.testing.assert_frame_equal(heldout()(adata), expected)


def test_where_counts_are_when_nowhere(refused):
    adata = toy()
    for name in [name for name in adata.layers if name is not None]:
        del adata.layers[name]
    adata.X = adata.X * 0.5
    refused(adata, began(), ValueError, "no layer of this object holds counts")


def _backed(tmp_path: Path) -> ad.AnnData:
    toy().write_h5ad(tmp_path / "backed.h5ad")
    return ad.read_h5ad(tmp_path / "backed.h5ad", backed="r")


def _repeated_names(adata: ad.AnnData) -> None:
    adata.var_names = ["gene0", *adata.var_names[:-1]]


OBJECTS: dict[str, tuple[Call | None, Call, type[Exception], str]] = {
    "3-no-x": (
        lambda a: setattr(a, "X", None),
        began(),
        ValueError,
        r"adata.X is empty; pass layer=..., available: \['rate', 'counts'",
    ),
    "3-no-x-thin": (
        lambda a: setattr(a, "X", None),
        thin(key_added="again"),
        ValueError,
        r"adata.X is empty; pass layer=..., available",
    ),
    "4-layer": (None, began(layer="count"), KeyError, r"layer 'count' not found; available: \['rate', 'counts', .*did you mean 'counts'"),
    "4-layer-thin": (None, thin(layer="nope", key_added="again"), KeyError, r"layer 'nope' not found; available: \['rate', 'counts', "),
    "4-layer-heldout": (None, heldout(["rate", "nope"]), KeyError, r"layer 'nope' not found; available: \['rate', 'counts', "),
    "4-layer-heldout-key": (
        None,
        heldout(key="slim"),
        KeyError,
        r"layer 'slim_train' not found; call scimpute.pp.thin\(adata, key_added='slim'\)",
    ),
    "4-no-none-key": (lambda a: ad.AnnData(np.ones((20, 3), "f4")), began(layer="a"), KeyError, r"available: \[\]"),
    **{f"5-no-cells-{name}": (lambda a: a[:0].copy(), call, ValueError, "0 cells") for name, call in EVERY.items()},
    **{f"5-no-genes-{name}": (lambda a: a[:, :0].copy(), call, ValueError, "0 genes") for name, call in EVERY.items()},
    "6-one-cell": (lambda a: a[:1].copy(), began(), ValueError, "needs at least 10 cells, got 1"),
    "14-nan-in-result": (lambda a: a.layers["rate"].__setitem__((2, 1), np.nan), heldout(), ValueError, "layer 'rate' has NaN"),
    "16-inf-in-result": (
        lambda a: a.layers["rate"].__setitem__((2, 1), np.inf),
        heldout(),
        ValueError,
        "layer 'rate' has NaN, infinite",
    ),
    "17-negative-result": (
        lambda a: a.layers["rate"].__setitem__((2, 1), -1),
        heldout(),
        ValueError,
        "layer 'rate' has .*negative",
    ),
    "31-repeated-names": (_repeated_names, began(genes=["gene1"]), ValueError, "not unique; call adata.var_names_make_unique"),
    "33-unknown": (
        None,
        began(genes=["gene1", "CD3D", "CD3E"]),
        KeyError,
        r"2 of 3 genes not found in adata.var_names: \['CD3D', 'CD3E'\]",
    ),
    "33-many": (None, began(genes=[f"x{i}" for i in range(9)]), KeyError, r"\['x0', 'x1', 'x2', 'x3', 'x4', ... \(9 in all\)\]"),
    "33-case": (None, began(genes=["GENE7"]), KeyError, "did you mean 'gene7'"),
    "33-close": (None, began(genes=["gen17"]), KeyError, "did you mean 'gene17'"),
    "33-empty": (None, began(genes=[]), ValueError, "genes is empty"),
    "33-repeated": (None, began(genes=["gene1", "gene2", "gene1"]), ValueError, r"more than once: \['gene1'\]"),
    "33-no-column": (
        None,
        began(genes="mark"),
        KeyError,
        r"genes: var column 'mark' not found; available: \['marked', 'score'\]; did you mean 'marked'",
    ),
    "33-not-boolean": (None, began(genes="score"), ValueError, "'score'.* dtype float64, a boolean one is needed"),
    "33-none-marked": (
        lambda a: a.var.__setitem__("none", np.zeros(a.n_vars, bool)),
        began(genes="none"),
        ValueError,
        "selects no gene",
    ),
    "33-number": (None, began(genes=3), TypeError, "genes"),
    # 3b
    "35-batch": (
        None,
        began(batch_key="batches"),
        KeyError,
        r"batch_key: obs column 'batches' not found; available: \['batch', 'cell_type', .*mean 'batch'",
    ),
    "35-type": (None, began(celltype_key="louvain"), KeyError, r"celltype_key: obs column 'louvain' not found; available: \['batch', "),
    "36-batch": (None, began(batch_key="gaps"), ValueError, r"batch_key='gaps' is missing in 1 cells? \(first: 'cell4'\)"),
    "36-type": (None, began(celltype_key="gaps"), ValueError, r"celltype_key='gaps' is missing in 1 cells? \(first: 'cell4'\)"),
    "38-continuous": (None, began(batch_key="score"), ValueError, r"batch_key='score' looks continuous \(60 different numbers\)"),
    "43-same": (
        None,
        began(batch_key="batch", celltype_key="batch"),
        ValueError,
        "batch_key and celltype_key are the same column, 'batch'",
    ),
    "44-size-column": (
        None,
        began(size_key="sizes"),
        KeyError,
        r"size_key: obs column 'sizes' not found; .*did you mean 'size'",
    ),
    "44-size-missing": (
        None,
        began(size_key="size_gaps"),
        ValueError,
        r"size_key='size_gaps' is not a positive number in 1 cells? \(first: 'cell4'\)",
    ),
    "44-size-text": (None, began(size_key="batch"), ValueError, r"size_key='batch' is not a positive number in 60 cells"),
    "44-size-small": (
        None,
        began(size_key="size_small"),
        ValueError,
        r"size_key='size_small' is below the cell's own number of molecules in 60 cells",
    ),
}


@pytest.mark.filterwarnings("ignore:ChainedAssignmentError:FutureWarning")
@pytest.mark.parametrize("row", OBJECTS)
def test_bad_object(row, edited, refused):
    edit, call, error, message = OBJECTS[row]
    refused(edited(toy(), edit), call, error, message)


# 3d. Parameters

PARAMETERS: dict[str, list[tuple[dict[str, Any], type[Exception], str]]] = {
    "62": [
        *(
            ({name: value}, ValueError, f"^{name} must .*{value}")
            for name in ("n_repeats", "n_context", "width", "max_epochs", "block_size", "batch_size")
            for value in (0, -1, 2.5, 3.0)
        ),
        *(
            ({name: value}, TypeError, f"^{name} must be")
            for name in ("n_repeats", "n_context", "max_epochs", "batch_size")
            for value in (None, True, [1])
        ),
        ({"batch_size": 1}, ValueError, "^batch_size must be at least"),
        *(({"learning_rate": value}, ValueError, r"^learning_rate must be in \(0, inf\]") for value in (0, -1e-3, np.nan, np.inf)),
        *(({"penalty": value}, ValueError, r"^penalty must be in \[0, ") for value in (-1, np.nan, np.inf)),
        *(({"gamma": value}, ValueError, r"^gamma must be in \[0, 1\]") for value in (-0.1, 1.5, np.nan)),
        *(({"drop_quantile": value}, ValueError, r"^drop_quantile must be in \[0, 100\]") for value in (-1, 101, np.nan)),
        *(({"drop_shape": value}, ValueError, r"^drop_shape must be in \(0, ") for value in (0, -1, np.nan)),
        *(({f"{name}_weight": -1}, ValueError, f"^{name}_weight must be in") for name in ("adversarial", "reconstruction")),
        *(({name: "x"}, TypeError, f"^{name} must be a number") for name in ("learning_rate", "gamma", "drop_shape", "adversarial_weight")),
        ({"learning_rate": True}, TypeError, "^learning_rate must be a number"),
    ],
    "64": [({"epochs": 3}, TypeError, "unexpected keyword argument 'epochs'")],
    "65": [
        *(({name: "x"}, ValueError, f"^{name} must be one of \\['\\w+', '\\w+'") for name in ("output", "fill", "architecture")),
        *(({name: None}, ValueError, f"^{name} must be one of") for name in ("output", "fill", "architecture")),
        *(
            ({name: "most"}, ValueError, f"^{name} must be .*'auto'")
            for name in ("n_context", "width", "penalty", "max_epochs", "drop_quantile", "batch_size")
        ),
        *(({name: "yes"}, TypeError, f"^{name} must be True or False") for name in ("posterior", "copy")),
        (
            {"batch_key": "batch", "target_batch": "batch9"},
            ValueError,
            r"target_batch must be 'average' or one of \['batch\d', 'batch\d'\], got 'batch9'",
        ),
        ({"architecture": "conv", "block_size": 500}, ValueError, "block_size must be the square of a multiple of 4"),
    ],
    "66": [
        *(({"key_added": value}, ValueError, "^key_added must be a .*string") for value in ("a/b", "/", "", None, 3)),
        ({"layer": "counts", "key_added": "counts"}, ValueError, "would overwrite the layer that is read, 'counts'"),
        ({"key_added": "rate"}, ValueError, r"layers\['rate'\] exist.* not written by began"),
        ({"key_added": "X_umap"}, ValueError, r"obsm\['X_umap'\] exist.* not written by began"),
        ({"key_added": "toy_counts"}, ValueError, r"uns\['toy_counts'\] exist.* not written by began"),
        ({"key_added": "thin"}, ValueError, r"uns\['thin'\] exist.* not written by began"),
    ],
    "67": [
        ({"random_state": -1}, ValueError, "^random_state must not be negative, got -1"),
        *(({"random_state": value}, TypeError, "^random_state must be an int") for value in (True, 1.0, "0", np.random.RandomState(0))),
    ],
    "68": [({"device": value}, ValueError, f"^device '?{value}'? not available; found: cpu") for value in ("gpu", "cuda:9", "mps", "", 1)],
    "69": [
        ({"adversarial_weight": 0, "reconstruction_weight": 0}, ValueError, "adversarial_weight and reconstruction_weight are both 0"),
        ({"target_batch": "batch1", "batch_key": "batch", "fill": "zeros"}, ValueError, "target_batch and fill='zeros' exclude each other"),
        ({"target_batch": "average", "batch_key": "batch", "fill": "expressed"}, ValueError, "target_batch and fill='expressed' exclude"),
        ({"target_batch": "batch1"}, ValueError, "target_batch='batch1' needs batch_key"),
    ],
}
ROWS = [
    pytest.param(arguments, error, message, id=f"{row}-{','.join(f'{k}={v!r:.12}' for k, v in arguments.items())}")
    for row, cases in PARAMETERS.items()
    for arguments, error, message in cases
]


@pytest.mark.parametrize(("arguments", "error", "message"), ROWS)
def test_bad_parameter(arguments, error, message, refused):
    refused(toy(), began(**arguments), error, message)


THIN_ROWS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(({"frac": value}, ValueError, r"^frac must be in \(0, 1\), got") for value in (0, 1, -0.1, 1.1, np.nan, np.inf)),
    *(({"frac": value}, TypeError, "^frac must be a number") for value in (None, "0.9", True)),
    *(({"key_added": value}, ValueError, "^key_added must be a .*string") for value in ("a/b", "", None)),
    ({"layer": "counts", "key_added": "counts"}, ValueError, "would overwrite|exist and were not written by thin"),
    ({"layer": "thin_train"}, ValueError, "would overwrite the layer that is read, 'thin_train'"),
    ({"key_added": "toy_counts"}, ValueError, r"uns\['toy_counts'\] exist"),
    ({"random_state": -1}, ValueError, "^random_state must not be negative"),
    ({"random_state": 1.5}, TypeError, "^random_state must be an int"),
    ({"copy": 1}, TypeError, "^copy must be True or False"),
    ({"fraction": 0.5}, TypeError, "unexpected keyword"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), THIN_ROWS, ids=str)
def test_bad_parameter_of_thin(arguments, error, message, refused):
    refused(toy(), thin(**arguments), error, message)


@pytest.mark.parametrize("name", ["other_train", "other_test"])
def test_thin_does_not_overwrite(name, refused):
    adata = toy()
    adata.layers[name] = adata.X.copy()
    refused(adata, thin(key_added="other"), ValueError, rf"layers\['{name}'\] exist.* not written by thin")


@pytest.mark.parametrize("slot", ["layers", "obsm"])
def test_the_deviation_does_not_overwrite(slot, refused):
    adata = toy()
    getattr(adata, slot)["new_sd"] = adata.X.toarray()
    refused(adata, began(key_added="new"), ValueError, rf"{slot}\['new_sd'\] exist")


def test_layers_that_are_read_are_not_overwritten_by_the_deviation(refused):
    adata = toy()
    adata.layers["new_sd"] = adata.X.copy()
    refused(adata, began(key_added="new", layer="new_sd"), ValueError, "would overwrite the layer that is read")


HELDOUT_ROWS: dict[str, tuple[Call | None, Call, type[Exception], str]] = {
    "64-keyword": (None, heldout(layer="rate"), TypeError, "unexpected keyword"),
    "69-log": (began(output="log1p"), heldout("began"), ValueError, "output='log1p'; output='counts' is needed"),
    "69-rate": (began(output="rate"), heldout("began"), ValueError, "output='rate'; output='counts' is needed"),
    "62-none": (None, heldout(None), TypeError, "layers must be the name"),
    "62-number": (None, heldout(3), TypeError, "layers must be"),
    "33-repeated": (None, heldout(["rate", "rate"]), ValueError, r"layers: \['rate'\] would be more than one row"),
    "66-baseline": (
        lambda a: a.layers.__setitem__("gene_mean", a.X.copy()),
        heldout("gene_mean"),
        ValueError,
        r"layers: \['gene_mean'\]",
    ),
    "12-no-test": (lambda a: a.layers.__setitem__("thin_test", sp.csr_matrix(a.shape)), heldout(), ValueError, "no non-zero entry"),
}


@pytest.mark.parametrize("row", HELDOUT_ROWS)
def test_bad_parameter_of_heldout(row, edited, refused):
    edit, call, error, message = HELDOUT_ROWS[row]
    refused(edited(toy(), edit), call, error, message)


# What is odd but legal: it works


def _empty_cells(adata: ad.AnnData) -> None:
    adata.X = sp.csr_matrix(adata.X.toarray() * (np.arange(adata.n_obs) > 1)[:, None])


def _constant_gene(adata: ad.AnnData) -> None:
    dense = adata.X.toarray()
    dense[:, 3] = 2
    adata.X = dense


def _wide_raw(adata: ad.AnnData) -> None:
    adata.raw = ad.AnnData(np.full((adata.n_obs, 90), 0.5, "f4"), obs=adata.obs)


def _levels(values: Callable[[int], list[Any]]) -> Callable[[ad.AnnData], None]:
    def edit(adata: ad.AnnData) -> None:
        adata.obs["batch"] = pd.Series(values(adata.n_obs), index=adata.obs_names)

    return edit


LEGAL: dict[str, tuple[Call | None, dict[str, Any], str | None]] = {
    "6-fewest-cells": (lambda a: a._inplace_subset_obs(slice(0, 10)), {}, None),
    "7-one-gene": (lambda a: a._inplace_subset_var(slice(0, 1)), {}, "have no molecules|same profile"),
    "7-two-genes": (lambda a: a._inplace_subset_var(slice(2, 4)), {}, "have no molecules|same profile"),
    "7-one-gene-asked": (None, {"genes": ["gene3"]}, None),
    "8-tail-of-one": (lambda a: a._inplace_subset_obs(slice(0, 31)), {"batch_size": 10}, None),
    "8-batches-of-two": (lambda a: a._inplace_subset_obs(slice(0, 11)), {"batch_size": 2}, None),
    "9-batch-larger": (None, {"batch_size": 1000}, None),
    "10-empty-cells": (_empty_cells, {}, "2 cells have no molecules"),
    "11-empty-gene": (lambda a: setattr(a, "X", sp.csr_matrix(a.X.toarray() * (np.arange(a.n_vars) != 3))), {}, None),
    "13-constant-gene": (_constant_gene, {}, None),
    "22-np-matrix": (lambda a: a.layers.__setitem__("m", np.asmatrix(a.X.toarray())), {"layer": "m"}, None),
    "31-repeated-names": (_repeated_names, {}, None),
    "32-repeated-cells": (lambda a: setattr(a, "obs_names", ["cell"] * a.n_obs), {}, None),
    "32-repeated-cells-genes": (lambda a: setattr(a, "obs_names", ["cell"] * a.n_obs), {"genes": ["gene2", "gene5"]}, None),
    "33-one-gene": (None, {"genes": pd.Index(["gene2"])}, None),
    "34-wide-raw": (_wide_raw, {}, None),
    "37-mixed": (_levels(lambda n: ["a", 1] * (n // 2)), {"batch_key": "batch"}, None),
    "38-few-numbers": (_levels(lambda n: [0.5, 1.5] * (n // 2)), {"batch_key": "batch"}, None),
    "40-one-level": (_levels(lambda n: ["a"] * n), {"batch_key": "batch"}, None),
    "40-one-level-target": (_levels(lambda n: ["a"] * n), {"batch_key": "batch", "target_batch": "a"}, None),
    "41-small-batch": (
        _levels(lambda n: ["small"] * 2 + ["large"] * (n - 2)),
        {"batch_key": "batch"},
        r"batch_key='batch': \['small'\] have 1 or 2 cells",
    ),
    "42-confounded": (lambda a: a.obs.insert(0, "kind", a.obs["batch"].astype(str)), {"batch_key": "batch", "celltype_key": "kind"}, None),
    "62-no-adversary": (None, {"adversarial_weight": 0}, None),
    "62-adversary-only": (None, {"reconstruction_weight": 0}, None),
    "62-no-penalty": (None, {"penalty": 0}, None),
    "62-blocks-of-one": (None, {"block_size": 1}, None),
    "62-context-larger": (None, {"n_context": 1000}, None),
    "62-edges": (None, {"gamma": 1, "drop_quantile": 100, "n_repeats": 1, "width": 1, "max_epochs": 1}, None),
    "62-numpy-numbers": (
        None,
        {"max_epochs": np.int64(2), "penalty": np.float32(50), "width": np.int32(8), "gamma": np.float64(0.5)},
        None,
    ),
    "62-conv": (None, {"architecture": "conv", "block_size": 16, "batch_size": 4}, None),
    "62-conv-labels": (None, {"architecture": "conv", "block_size": 64, "batch_key": "batch", "target_batch": "average"}, None),
    "44-size": (None, {"size_key": "size"}, None),
    "66-unusual-key": (None, {"key_added": "my result (2)"}, None),
    "67-numpy-int": (None, {"random_state": np.int64(3)}, None),
    "67-fresh": (None, {"random_state": None}, None),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass is not the recommended:PendingDeprecationWarning")
@pytest.mark.parametrize("row", LEGAL)
def test_odd_but_legal(row, edited, fingerprint):
    edit, arguments, message = LEGAL[row]
    with warnings.catch_warnings():
        # anndata says that names are not unique, and that rows of strings are numbers.
        warnings.simplefilter("ignore")
        adata = edited(toy(), edit)
    before = fingerprint(adata)
    key = arguments.get("key_added", "began")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        began(**arguments)(adata)
    ours = [str(w.message) for w in caught if "not unique" not in str(w.message)]
    if message is None:
        assert ours == []
    else:
        assert all(pd.Series(ours).str.contains(message)), ours
        assert len(ours) == 1 or "|" in message
    for name in (key, f"{key}_sd"):
        values = np.asarray(adata.obsm[name] if "genes" in arguments else adata.layers[name])
        assert values.shape == (adata.n_obs, len(arguments["genes"]) if "genes" in arguments else adata.n_vars)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert values.min() >= 0
    after = fingerprint(adata)
    assert {name: after[name] for name in before} == before


def test_10_empty_cell_and_11_empty_gene_stay_near_nothing(adata):
    adata.X = sp.csr_matrix(adata.X.toarray() * (np.arange(adata.n_obs) > 0)[:, None] * (np.arange(adata.n_vars) != 3))
    with pytest.warns(UserWarning, match="1 cells? ha.* no molecules"):
        began()(adata)
    assert adata.layers["began"][0].max() < 1e-6
    assert adata.layers["began"][:, 3].max() < 0.1


def test_10_empty_cell_with_a_library_size_is_not_said_to_be_at_depth_0(adata):
    adata.X = sp.csr_matrix(adata.X.toarray() * (np.arange(adata.n_obs) > 0)[:, None])
    adata.obs["size"] = 5000.0
    with pytest.warns(UserWarning, match="1 cells have no molecules; they are imputed from their library sizes alone"):
        began(size_key="size")(adata)
    assert adata.layers["began"][0].sum() > 1


@pytest.mark.parametrize("call", [thin(), heldout()], ids=["thin", "heldout"])
def test_6_one_cell_for_what_needs_no_training(call):
    adata = toy()[:1].copy()
    result = call(adata)
    if result is not None:
        assert np.isfinite(result.to_numpy()).all()


def test_20_sums_do_not_overflow():
    """300 genes of 255 molecules in uint8: the depth is 76,500."""
    adata = ad.AnnData(np.full((12, 300), 255, dtype=np.uint8))
    adata.layers["small"] = np.tile([60000.0, 2.0, 1.0, 3.0], (12, 75)).astype(np.float16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the same profile", UserWarning)
        began(output="rate")(adata)
    np.testing.assert_allclose(adata.layers["began"].sum(1), 1, rtol=0.03)
    scimpute.pp.thin(adata, layer="small")
    assert adata.layers["thin_train"].max() > 50_000


def test_28_backed_says_that_the_result_is_in_memory(tmp_path):
    adata = _backed(tmp_path)
    for call in (began(), thin(key_added="again")):
        with pytest.warns(UserWarning, match=r"in memory only.*write_h5ad") as caught:
            call(adata)
        assert len(caught) == 1
        assert Path(caught[0].filename).name == Path(__file__).name, "the warning points at the caller"


def test_28_backed_cannot_be_copied_in_memory(tmp_path, refused):
    adata = _backed(tmp_path)
    for call in (began(copy=True), thin(copy=True, key_added="again")):
        refused(adata, call, ValueError, "copy=True is not possible for a backed object")


def test_28_view_of_a_backed_object(tmp_path, refused):
    adata = _backed(tmp_path)
    for call in (began(), thin(key_added="again")):
        refused(adata[:30], call, ValueError, "view of a backed object.*to_memory")


def test_29_backed_file_gone(tmp_path, monkeypatch):
    adata = _backed(tmp_path)
    adata.file.close()
    (tmp_path / "backed.h5ad").unlink()
    monkeypatch.setattr("scimpute.tl._run.run", lambda *_, **__: pytest.fail("training had begun"))
    for call in (began(), thin(key_added="again")):
        with pytest.warns(UserWarning, match="adata is backed"), pytest.raises((OSError, ValueError)):
            call(adata)
    assert set(adata.uns) == {"toy_counts", "thin"}


def test_30_warning_of_the_view_is_the_only_one(adata):
    view = adata[:40]
    with pytest.warns(ad.ImplicitModificationWarning) as caught:
        scimpute.pp.thin(view)
    assert len(caught) == 1


@pytest.mark.parametrize("arguments", [{"batch_key": "one"}, {"celltype_key": "one"}])
def test_40_one_level_is_left_out(adata, arguments):
    adata.obs["one"] = "a"
    first, second = (scimpute.tl.began(adata, copy=True, **QUICK | changed) for changed in ({}, arguments))
    np.testing.assert_array_equal(first.layers["began"], second.layers["began"])
    assert second.uns["began"]["conditioned_on"] == {}


def test_40_target_batch_must_be_the_one_level(adata, refused):
    adata.obs["one"] = "a"
    refused(adata, began(batch_key="one", target_batch="typo"), ValueError, r"target_batch must be 'average' or one of \['a'\], got 'typo'")


def test_40_target_batch_may_be_the_one_level(adata):
    adata.obs["one"] = "a"
    first, second = (scimpute.tl.began(adata, copy=True, **QUICK | changed) for changed in ({}, {"batch_key": "one", "target_batch": "a"}))
    np.testing.assert_array_equal(first.layers["began"], second.layers["began"])


def test_67_ways_to_give_a_seed(adata):
    def run(seed: Any) -> np.ndarray:
        return scimpute.tl.began(adata, copy=True, **QUICK | {"random_state": seed}).layers["began"]

    np.testing.assert_array_equal(run(7), run(np.int64(7)))
    np.testing.assert_array_equal(run(7), run(np.random.default_rng(7)))
    assert not np.array_equal(run(None), run(None))
    rng = np.random.default_rng(7)
    assert not np.array_equal(run(rng), run(rng)), "a generator goes on from where it is"


def test_70_nothing_optional_is_imported(adata, monkeypatch):
    """A run on a matrix in memory works where the optional packages cannot be imported."""
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("dask", "zarr", "igraph", "leidenalg", "tifffile", "openslide", "torchvision", "squidpy"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    began()(adata)


# 3e. Faults while running


def test_72_diverging_training_stops_at_once(adata, fingerprint, monkeypatch):
    before = fingerprint(adata)
    with pytest.raises(
        RuntimeError, match=r"training failed: the \w+ loss became \S+ in epoch \d+; try a smaller learning_rate \(now 1e\+30\)"
    ):
        began(learning_rate=1e30, max_epochs=20)(adata)
    assert fingerprint(adata) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_72_bad_loss_names_its_network(adata, fingerprint, monkeypatch, value):
    before = fingerprint(adata)
    original = scimpute.models.began.Began.losses

    def losses(self: Any, batch: Any) -> Any:
        for name, loss in original(self, batch):
            yield name, loss * (value if name == "discriminator" else 1)

    monkeypatch.setattr("scimpute.models.began.Began.losses", losses)
    with pytest.raises(RuntimeError, match=f"the discriminator loss became {value} in epoch 1"):
        began()(adata)
    assert fingerprint(adata) == before


def test_73_collapse_is_a_warning_with_the_measure(adata):
    with pytest.warns(UserWarning, match=r"every cell the same profile .*\d\.\de-\d+.* gene mean"):
        began(learning_rate=1e-9)(adata)
    assert "began" in adata.layers


def test_74_worse_than_the_gene_mean_is_said(monkeypatch):
    adata = toy()
    with pytest.warns(UserWarning, match=r"held-out molecules worse than the gene mean \(\d+\.\d+ against \d"):
        began(adversarial_weight=1000.0, learning_rate=0.1, n_repeats=1, max_epochs=10)(adata)
    assert "began" in adata.layers


@pytest.mark.parametrize("step", ["models.began.Began.losses", "_counts.fit.predict", "_counts.output.posterior.Posterior.__call__"])
def test_75_out_of_memory_of_the_device(adata, fingerprint, monkeypatch, step):
    before = fingerprint(adata)
    freed = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: freed.append(True))

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"scimpute.{step}", fail)
    with pytest.raises(RuntimeError, match="out of memory.*smaller batch_size") as caught:
        began()(adata)
    assert isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)
    assert freed
    assert fingerprint(adata) == before


def test_76_result_larger_than_the_memory(monkeypatch, refused):
    monkeypatch.setattr("scimpute._memory.LOADED", 0)
    monkeypatch.setattr("scimpute._check._available_memory", lambda: 120_000)
    began(genes=["gene1"])(toy())
    message = r"this needs about .* GiB of memory, .* available; pass sd=False, or impute fewer genes with genes="
    refused(toy(), began(), MemoryError, message)


def test_76_memory_of_this_machine_is_found():
    assert _check._available_memory() > 2**20
    _check.memory(1, "")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (".", IsADirectoryError, "save: .* is a directory; give a file name"),
        ("missing/model.safetensors", FileNotFoundError, "save: the directory .*missing' does not exist"),
        pytest.param(
            *("/proc/model.safetensors", PermissionError, "save: nothing can be written in '/proc'"),
            marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="no directory in which not even root can write"),
        ),
    ],
)
def test_77_bad_path_is_found_first(tmp_path, path, error, message, refused):
    refused(toy(), began(save=tmp_path / path), error, message)
    assert list(tmp_path.iterdir()) == []


def test_83_without_output_channels(adata, monkeypatch):
    class Closed:
        def write(self, _: str) -> int:
            raise ValueError("I/O operation on closed file")

        flush = isatty = fileno = property(lambda self: self.write)

    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "stderr", Closed())
    began()(adata)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    began()(adata)


def test_83_progress_is_shown_on_request_only(adata, capfd):
    began()(adata)
    began(progress=None)(adata)
    assert capfd.readouterr() == ("", "")
    began(progress=True)(adata)
    out, err = capfd.readouterr()
    assert out == ""
    assert "training 2 repeats" in err


CONTEXTS: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "no-grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic-numpy-errors": lambda: np.errstate(all="raise", under="ignore"),
}
AUTO = {"n_context": "auto", "penalty": "auto", "width": "auto"}


@pytest.mark.parametrize("arguments", [{}, AUTO, {"output": "log1p"}], ids=["given", "auto", "log1p"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_85_the_caller_context_does_not_matter(adata, states, context, arguments):
    expected = scimpute.tl.began(adata, copy=True, **QUICK | arguments)
    with CONTEXTS[context]():
        before = states()
        found = scimpute.tl.began(adata, copy=True, **QUICK | arguments)
        assert states() == before
    for name in ("began", "began_sd"):
        np.testing.assert_array_equal(found.layers[name], expected.layers[name])


@pytest.mark.parametrize("arguments", [{}, AUTO, {"batch_key": "batch", "target_batch": "average"}, {"posterior": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_85_the_default_dtype_does_not_matter(adata, states, default_dtype, dtype, arguments):
    expected = scimpute.tl.began(adata, copy=True, **QUICK | arguments)
    default_dtype(dtype)
    before = states()
    found = scimpute.tl.began(adata, copy=True, **QUICK | arguments)
    assert states() == before
    for name in ("began", "began_sd"):
        np.testing.assert_array_equal(found.layers[name], expected.layers[name])
    pd.testing.assert_frame_equal(found.uns["began"]["history"], expected.uns["began"]["history"])
