"""The contract that every function of ``scimpute.tl`` keeps, and what holds for the package as a whole.

A new method joins the battery by an entry in ``IMPUTERS``.
"""

from __future__ import annotations

import errno
import inspect
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from matplotlib import pyplot as plt
from safetensors.torch import save_file

import scimpute
from scimpute import _check, _device
from scimpute._save import load_metadata, save_model

PACKAGE = Path(scimpute.__file__).parent


@dataclass(frozen=True)
class Imputer:
    """A method under test.

    Attributes
    ----------
    quick
        Settings of a run of a few hundredths of a second.
    good
        Settings of a run that learns, for about a second.
    suffixes
        Endings of the layers that are written.
    labels
        Arguments that give it the batches and cell types of the fixture.
    variants
        Arguments that lead through other parts of the method.
    options
        More arguments under which nothing but the result may change.
    prepare
        Makes its input of the counts in ``X``.
    beside
        What it writes under ``key_added="result"`` beside layers and uns.
    """

    function: Callable[..., Any]
    quick: dict[str, Any]
    good: dict[str, Any]
    suffixes: tuple[str, ...]
    labels: dict[str, str] = field(default_factory=dict)
    variants: tuple[dict[str, Any], ...] = ()
    options: tuple[dict[str, Any], ...] = ()
    prepare: Callable[[ad.AnnData], Any] = lambda adata: None
    beside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.function.__name__

    def takes(self, *arguments: str) -> bool:
        return set(arguments) <= inspect.signature(self.function).parameters.keys()

    def run(self, adata: ad.AnnData, **changes: Any) -> Any:
        return self.function(adata, **self.quick | {"key_added": "result", "progress": False} | changes)

    def result(self, adata: ad.AnnData, **changes: Any) -> dict[str, np.ndarray]:
        """The layers of a run on a copy."""
        done = self.run(adata, copy=True, **changes)
        return {suffix: done.layers["result" + suffix] for suffix in self.suffixes}

    def promised(self, key: str = "result") -> set[str]:
        return {f"uns/{key}", *(f"layers/{key}{suffix}" for suffix in self.suffixes), *self.beside}


def log_with_gaps(adata: ad.AnnData) -> None:
    """Log counts of which three in ten are NaN, in steps that half precision holds."""
    values = np.rint(np.log1p(adata.X.toarray()) * 64) / 64
    values[np.random.default_rng(2).random(adata.shape) < 0.3] = np.nan
    adata.X = sp.csr_matrix(values.astype(np.float32))


def on_tissue(adata: ad.AnnData) -> None:
    """Spots of a square grid, one row after the other."""
    side = int(np.ceil(np.sqrt(adata.n_obs)))
    adata.obsm["spatial"] = 10.0 * np.column_stack(np.divmod(np.arange(adata.n_obs), side))


IMPUTERS = [
    Imputer(
        scimpute.tl.began,
        quick={"max_epochs": 2, "n_repeats": 2, "n_context": 5, "width": 16, "penalty": 100.0, "block_size": 16},
        good={"max_epochs": 40, "n_repeats": 2, "n_context": 5, "width": 16, "penalty": 30.0},
        suffixes=("", "_sd"),
        labels={"batch_key": "batch", "celltype_key": "cell_type"},
        variants=(
            {"architecture": "conv"},
            {"adversarial_weight": 0},
            {"reconstruction_weight": 0},
            {"target_batch": "average"},
            {"posterior": False},
            {"n_context": "auto", "width": "auto", "penalty": "auto"},
        ),
        options=({"fill": "zeros"}, {"fill": "expressed"}, {"output": "log1p"}),
    ),
    *(
        Imputer(
            function,
            quick={"n_models": 1, "n_hidden": 16, "max_epochs": 2},
            good={"n_models": 1, "n_hidden": 64, "max_epochs": 40},
            suffixes=("", "_sd"),
            labels={"categorical_covariates": ["batch", "cell_type"], "continuous_covariates": "depth"},
            variants=(
                {"mode": "inductive"},
                {"variant": "published", "max_epochs": 1},
                {"variant": "published", "max_epochs": 1, "mode": "inductive"},
                {"n_layers": 1, "mask_rate": (0.5, 0.5), "dropout": 0.0},
                {"n_models": 2},
            ),
            options=({"missing": "zero"}, {"mode": "inductive"}, {"variant": "published", "max_epochs": 1}, {"empty_genes": "nan"}),
            prepare=log_with_gaps,
        )
        for function in (scimpute.tl.pmi, scimpute.tl.gain)
    ),
    Imputer(
        scimpute.tl.spatial,
        quick={"max_epochs": 2, "n_repeats": 2, "n_context": 5, "width": 16, "penalty": 100.0, "block_size": 16},
        good={"max_epochs": 40, "n_repeats": 2, "n_context": 5, "width": 16, "penalty": 30.0},
        suffixes=("", "_sd"),
        labels={"library_key": "batch"},
        variants=(
            {"spatial_weight": 0.5},
            {"ring_weights": ()},
            {"modalities": "counts", "ring_weights": (0.0, 1.0)},
            {"modalities": "position"},
            {"likelihood": "squared"},
            {"n_context": "auto", "width": "auto", "penalty": "auto"},
        ),
        options=({"output": "log1p"}, {"likelihood": "squared"}, {"modalities": ["position"], "spatial_weight": 0.1}),
        prepare=on_tissue,
    ),
    Imputer(
        scimpute.tl.nmf,
        quick={"max_epochs": 2, "n_factors": 5},
        good={"max_epochs": 40, "n_factors": 5, "penalty": 30.0},
        suffixes=("", "_sd"),
        labels={"library_key": "batch"},
        variants=({"spatial_weight": 0.0}, {"likelihood": "squared"}, {"ring_weights": (0.0, 1.0)}),
        options=({"output": "log1p"}, {"likelihood": "squared"}),
        prepare=on_tissue,
        beside=("obsm/X_result", "varm/RESULT"),
    ),
]


# Cells, spots and bulk samples are read in three ways; what comes after is the same for all methods of counts, and of bulk samples.
ONE_OF_EACH_SHELL = [imputer for imputer in IMPUTERS if imputer.name in ("began", "spatial", "pmi")]
# Layers or tables, layers and vectors, layers only.
ONE_FOR_EACH_KIND_OF_RESULT = [imputer for imputer in IMPUTERS if imputer.name in ("began", "nmf", "pmi")]


@pytest.fixture(params=IMPUTERS, ids=lambda imputer: imputer.name)
def imputer(request: pytest.FixtureRequest) -> Imputer:
    return request.param


@pytest.fixture
def adata(adata: ad.AnnData, imputer: Imputer) -> ad.AnnData:
    """The object of ``conftest.py`` with the input of the method in X."""
    imputer.prepare(adata)
    return adata


def taking(*arguments: str) -> pytest.MarkDecorator:
    """The methods that have all of these arguments."""
    return pytest.mark.parametrize("imputer", [imputer for imputer in IMPUTERS if imputer.takes(*arguments)], ids=lambda i: i.name)


def each_with(arguments: Callable[[Imputer], tuple[dict[str, Any], ...]]) -> pytest.MarkDecorator:
    """Every method with each of its arguments."""
    pairs = [pytest.param(imputer, given, id=f"{imputer.name}-{given}") for imputer in IMPUTERS for given in arguments(imputer)]
    return pytest.mark.parametrize(("imputer", "arguments"), pairs)


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray], rtol: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=rtol, atol=rtol * float(np.abs(first[name]).max()), err_msg=name)


def test_every_method_is_in_the_battery():
    # What tl.apply does is decided by the method of the model: test_apply.py.
    assert {imputer.name for imputer in IMPUTERS} == set(scimpute.tl.__all__) - {"apply"}


# 1, 2. What is written, and nothing else


@each_with(lambda imputer: ({}, {"layer": "raw_counts"}, *imputer.options))
def test_only_the_promised_keys_are_new(imputer, adata, fingerprint, arguments):
    adata.layers["raw_counts"] = adata.X.copy()
    before = fingerprint(adata)
    assert imputer.run(adata, **imputer.labels | arguments) is None
    after = fingerprint(adata)
    assert set(after) - set(before) == imputer.promised()
    assert {name: after[name] for name in before} == before


@taking("genes")
def test_some_genes_go_to_obsm(imputer, adata, fingerprint):
    before = fingerprint(adata)
    imputer.run(adata, genes="marked")
    after = fingerprint(adata)
    assert set(after) - set(before) == {name.replace("layers", "obsm") for name in imputer.promised()}
    assert {name: after[name] for name in before} == before
    for suffix in imputer.suffixes:
        table = adata.obsm["result" + suffix]
        assert isinstance(table, pd.DataFrame)
        assert list(table.columns) == list(adata.var_names[adata.var["marked"]])
        assert list(table.index) == list(adata.obs_names)
        assert (table.dtypes == np.float32).all()


def test_view_is_made_actual_and_its_parent_left(imputer, adata, fingerprint):
    before = fingerprint(adata)
    view = adata[5:50, ::2][:, 1:]
    expected = imputer.result(view.copy())
    with pytest.warns(ad.ImplicitModificationWarning) as caught:
        imputer.run(view)
    assert len(caught) == 1
    assert not view.is_view
    assert fingerprint(adata) == before
    assert_same({suffix: view.layers["result" + suffix] for suffix in imputer.suffixes}, expected)


def test_copy_leaves_the_first_untouched(imputer, adata, fingerprint):
    before = fingerprint(adata)
    done = imputer.run(adata, copy=True)
    assert isinstance(done, ad.AnnData)
    assert done is not adata
    assert fingerprint(adata) == before
    imputer.run(adata)
    assert_same({"": adata.layers["result"]}, {"": done.layers["result"]})


def test_copy_of_a_view_leaves_it_a_view(imputer, adata):
    view = adata[:50]
    done = imputer.run(view, copy=True)
    assert view.is_view
    assert not done.is_view


def test_run_again_replaces_the_whole_result(imputer, adata):
    imputer.run(adata, **({"genes": "marked"} if imputer.takes("genes") else {}))
    assert ("result" in adata.obsm) == imputer.takes("genes")
    imputer.run(adata, random_state=1)
    assert "result" not in adata.obsm
    assert "result_sd" not in adata.obsm
    assert adata.uns["result"]["params"]["random_state"] == 1
    assert_same({"": adata.layers["result"]}, {"": imputer.result(adata, random_state=1)[""]})


def test_run_again_leaves_what_others_put_beside_the_result(imputer, adata, fingerprint):
    imputer.run(adata)
    adata.layers["raw_counts"] = adata.raw.X.copy()
    scimpute.pp.thin(adata, layer="raw_counts", key_added="half")
    adata.uns["result_sd"] = {"a note": "of the user"}
    for name in ("half", "half_sd"):
        adata.layers[name], adata.obsm[name] = adata.X.copy(), np.ones((adata.n_obs, 2))
    before = fingerprint(adata)
    imputer.run(adata, random_state=1)
    scimpute.pp.thin(adata, layer="raw_counts", key_added="half", random_state=1)
    after = fingerprint(adata)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed == imputer.promised() | {"layers/half_train", "layers/half_test", "uns/half"}


# 3, 4. Kinds of matrix


def plain(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """CSR that nobody may write to, with long indices: the one kind whose own arrays a method works on."""
    parts = (matrix.data.copy(), matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64))
    same = sp.csr_matrix(parts, shape=matrix.shape)
    same.data, same.indices, same.indptr = parts
    for part in parts:
        part.flags.writeable = False
    return same


KINDS: dict[str, Callable[[sp.csr_matrix], Any]] = {
    "csr": plain,
    "csc": sp.csc_matrix,
    "dense": lambda x: x.toarray(),
    "dask": lambda x: pytest.importorskip("dask.array").from_array(x.toarray(), chunks=(13, x.shape[1])),
}
"""One of each family; all that AnnData may hold are read in ``_anndata/test_matrix.py``."""


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_matrix_give_the_same(imputer, adata, fingerprint, kind):
    """As a layer and as X, in place."""
    expected = imputer.result(adata)
    adata.layers["other"] = matrix = KINDS[kind](adata.X)
    for layer in ("other", None):
        if layer is None:
            adata.X = matrix
        before = fingerprint(adata)
        imputer.run(adata, layer=layer)
        after = fingerprint(adata)
        assert {name: after[name] for name in before if name not in imputer.promised()} == {
            name: before[name] for name in before if name not in imputer.promised()
        }
        assert_same({suffix: adata.layers["result" + suffix] for suffix in imputer.suffixes}, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_backed_gives_the_same_and_stays_on_disk(imputer, adata, fingerprint, tmp_path, kind):
    expected, path = imputer.result(adata), tmp_path / "backed.h5ad"
    adata.X = adata.X if kind == "csr" else adata.X.toarray()
    adata.write_h5ad(path)
    stored = path.read_bytes()
    on_disk = ad.read_h5ad(path, backed="r")
    before = fingerprint(on_disk)
    with pytest.warns(UserWarning, match="in memory only"):
        imputer.run(on_disk)
    assert on_disk.isbacked
    assert_same({suffix: on_disk.layers["result" + suffix] for suffix in imputer.suffixes}, expected, rtol=1e-5)
    after = fingerprint(on_disk)
    assert {name: after[name] for name in before} == before
    on_disk.file.close()
    assert path.read_bytes() == stored


# 5. Seeds


@each_with(lambda imputer: ({}, *imputer.variants))
def test_same_seed_same_result_and_global_state_untouched(imputer, adata, states, arguments):
    arguments = imputer.labels | arguments
    before = states()
    first = imputer.result(adata, **arguments)
    assert states() == before
    second = imputer.result(adata, **arguments)
    other = imputer.result(adata, random_state=1, **arguments)
    assert_same(first, second)
    assert not np.array_equal(first[""], other[""])
    assert_same(first, imputer.result(adata, random_state=np.random.default_rng(0), **arguments))


def test_order_of_calls_does_not_matter(imputer, adata):
    other = scimpute.datasets.toy_counts(50, 30, random_state=3)
    imputer.prepare(other)
    first = [imputer.result(adata), imputer.result(other, random_state=2)]
    second = [imputer.result(other, random_state=2), imputer.result(adata)]
    for one, two in zip(first, reversed(second), strict=True):
        assert_same(one, two)


# 6. The values


@taking("output", "fill")
@pytest.mark.parametrize("output", ["counts", "rate", "log1p"])
@pytest.mark.parametrize("fill", ["all", "zeros", "expressed"])
def test_values_are_finite_float32_and_not_negative(imputer, adata, output, fill):
    for name, values in imputer.result(adata, output=output, fill=fill).items():
        assert isinstance(values, np.ndarray), name
        assert values.dtype == np.float32
        assert values.shape == adata.shape
        assert np.isfinite(values).all()
        assert values.min() >= 0


@each_with(lambda imputer: ({}, *imputer.options) if imputer.takes("mask_layer") else ())
def test_filled_values_are_finite_float32_and_observed_ones_as_they_were(imputer, adata, arguments):
    values = adata.X.toarray()
    seen = ~np.isnan(values) & ((values != 0) | (arguments.get("missing") != "zero"))
    result = imputer.result(adata, **imputer.labels | arguments)
    for name, layer in result.items():
        assert isinstance(layer, np.ndarray), name
        assert layer.dtype == np.float32
        assert layer.shape == adata.shape
        assert np.isfinite(layer).all()
    assert np.array_equal(result[""][seen].view(np.int32), values[seen].view(np.int32))
    assert (result["_sd"][seen] == 0).all()
    assert (result["_sd"][~seen] > 0).all()


@taking("mask_layer")
def test_permuted_genes_and_samples_follow(imputer):
    """The split and the network's first weights go by place, so the result is near, not equal."""
    adata = scimpute.datasets.toy_bulk(80, 40)
    scimpute.pp.hide(adata, 0.3, of="all")
    gaps = adata.layers["hidden_mask"]
    rng = np.random.default_rng(0)
    genes, samples = rng.permutation(adata.n_vars), rng.permutation(adata.n_obs)
    mean = np.nanmean(adata.layers["hidden"], axis=0)

    def run(part: ad.AnnData) -> np.ndarray:
        return imputer.result(part.copy(), layer="hidden", categorical_covariates="tissue")[""]

    expected = (run(adata) - mean)[gaps]
    for permuted, inverse, axis in ((adata[:, genes], np.argsort(genes), 1), (adata[samples], np.argsort(samples), 0)):
        found = (np.take(run(permuted), inverse, axis=axis) - mean)[gaps]
        assert np.corrcoef(found, expected)[0, 1] > 0.97


@taking("output")
def test_permuted_genes_and_cells_follow(imputer):
    """The deal of the genes differs, so the result is near, not equal; each column and row is nearest to its own."""
    adata = scimpute.datasets.toy_counts(80, 40, depth=2000, dropout=0.0)
    imputer.prepare(adata)
    rng = np.random.default_rng(0)
    genes, cells = rng.permutation(adata.n_vars), rng.permutation(adata.n_obs)
    expected = np.log1p(imputer.result(adata)[""])
    for permuted, inverse, axis in ((adata[:, genes], np.argsort(genes), 1), (adata[cells], np.argsort(cells), 0)):
        found = np.log1p(np.take(imputer.result(permuted.copy())[""], inverse, axis=axis))
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
        distance = np.square(found[:, :, None] - expected[:, None, :]).sum(0)
        assert (distance.argmin(0) == np.arange(adata.n_vars)).all()
        distance = np.square(found[:, None, :] - expected[None, :, :]).sum(2)
        assert (distance.argmin(0) == np.arange(adata.n_obs)).all()


# 7. Observed values kept on request


@taking("output", "fill")
def test_observed_values_are_kept_exactly(imputer, adata):
    counts = adata.X.toarray()
    scaled = adata.copy()
    sc.pp.normalize_total(scaled, target_sum=1e4)
    sc.pp.log1p(scaled)
    seen = {"counts": counts, "rate": counts / counts.sum(1, keepdims=True), "log1p": scaled.X.toarray()}
    for output, values in seen.items():
        filled = imputer.result(adata, output=output, fill="zeros")[""]
        rtol = 0 if output == "counts" else 1e-5
        np.testing.assert_allclose(filled[counts > 0], values[counts > 0], rtol=rtol)
        everywhere = imputer.result(adata, output=output)[""]
        np.testing.assert_array_equal(filled[counts == 0], everywhere[counts == 0])


# 8. The size of the parts that cells are worked on in


@pytest.mark.parametrize("step", [1, 7])
@each_with(lambda i: tuple({"batch_key": "batch", "target_batch": t} for t in (None, "average")) if i.takes("target_batch") else ({},))
def test_result_does_not_depend_on_the_chunks(imputer, adata, replace_everywhere, step, arguments):
    dense = adata.copy()
    dense.X = dense.X.toarray()
    expected = imputer.result(dense, **arguments)

    def chunks(n_rows: int, n_columns: int, entries: int = 0) -> Iterator[slice]:
        yield from (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))

    replace_everywhere(scimpute._sparse.chunks, chunks)
    assert_same(imputer.result(dense, **arguments), expected, rtol=1e-5)


# 9. What does not matter


def with_batch(change: Callable[[pd.Series], pd.Series]) -> Callable[[ad.AnnData], None]:
    def apply(adata: ad.AnnData) -> None:
        adata.obs["batch"] = change(adata.obs["batch"])

    return apply


IRRELEVANT: dict[str, Callable[[ad.AnnData], Any]] = {
    "extra obs column": lambda a: a.obs.insert(0, "note", ["x", None] * (a.n_obs // 2)),
    "unused category": with_batch(lambda column: column.cat.add_categories(["a third"])),
    "category order": with_batch(lambda column: column.cat.reorder_categories(["batch1", "batch0"])),
    "other names of the levels": with_batch(lambda column: column.cat.rename_categories(["z", "a"])),
    "text": with_batch(lambda column: column.astype(object)),
    "nullable text": with_batch(lambda column: column.astype("string")),
    "numbers": with_batch(lambda column: column.cat.codes.astype(int)),
    "numbers with a point": with_batch(lambda column: column.cat.codes + 0.5),
    "truth values": with_batch(lambda column: column == "batch1"),
    "nullable truth values": with_batch(lambda column: (column == "batch1").astype("boolean")),
    "categories of numbers": with_batch(lambda column: column.cat.rename_categories([7, 3])),
    "text and numbers": with_batch(lambda column: column.astype(object).replace("batch1", 1)),
    "renamed cells": lambda a: setattr(a, "obs_names", [f"c{i}" for i in range(a.n_obs)]),
    "renamed genes": lambda a: setattr(a, "var_names", [f"g{i}" for i in range(a.n_vars)]),
    "extra layer": lambda a: a.layers.__setitem__("nonsense", np.full(a.shape, np.nan)),
    "no raw": lambda a: setattr(a, "raw", None),
}


WITHOUT_CHANGES: dict[str, dict[str, np.ndarray]] = {}
"""Result of each method on the object as it is."""


@pytest.mark.parametrize("change", IRRELEVANT)
@pytest.mark.parametrize("imputer", ONE_OF_EACH_SHELL, ids=lambda imputer: imputer.name)
def test_irrelevant_changes_do_not_matter(imputer, adata, change):
    if imputer.name not in WITHOUT_CHANGES:
        WITHOUT_CHANGES[imputer.name] = imputer.result(adata, **imputer.labels)
    IRRELEVANT[change](adata)
    assert_same(imputer.result(adata, **imputer.labels), WITHOUT_CHANGES[imputer.name])


@pytest.mark.parametrize("imputer", [i for i in IMPUTERS if i.takes("genes") and not i.beside], ids=lambda i: i.name)
def test_what_the_user_has_put_beside_the_result_stays(imputer, adata):
    imputer.run(adata, genes="marked")
    adata.layers["result"] = adata.X.copy()
    for arguments in ({}, {"genes": "marked"}):
        with pytest.raises(ValueError, match=r"layers\['result'\] and obsm\['result'\] both exist"):
            imputer.run(adata, **arguments)
    assert (adata.layers["result"] != adata.X).nnz == 0


# 10. Files and copies

# anndata 0.12 announces the default of a later version with every zarr it writes.
ZARR = "ignore:Writing zarr v2 data will no longer be the default:UserWarning"


@pytest.mark.filterwarnings(ZARR)
@each_with(
    lambda imputer: (
        ({}, {"genes": ["gene3", "gene1"]}, {"random_state": None, "target_batch": "batch1"})
        if imputer.takes("genes", "target_batch")
        else ({}, {"random_state": None}, *imputer.variants)
    )
)
def test_result_survives_a_file(imputer, adata, tmp_path, arguments):
    pytest.importorskip("zarr")
    imputer.run(adata, **imputer.labels | arguments)
    adata.write_h5ad(tmp_path / "result.h5ad")
    adata.write_zarr(tmp_path / "result.zarr")
    for again in (ad.read_h5ad(tmp_path / "result.h5ad"), ad.io.read_zarr(tmp_path / "result.zarr")):
        for slot in ("layers", "obsm"):
            for suffix in imputer.suffixes:
                if "result" + suffix in getattr(adata, slot):
                    read, written = (np.asarray(getattr(one, slot)["result" + suffix]) for one in (again, adata))
                    np.testing.assert_array_equal(read, written)
        assert_equal_uns(again.uns["result"], adata.uns["result"])


def assert_equal_uns(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_equal_uns(found[name], expected[name])
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True), check_dtype=False)
    elif isinstance(expected, list | np.ndarray):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    else:
        assert found == expected


def test_copies_and_subsets_of_the_result(imputer, adata, fingerprint):
    imputer.run(adata)
    assert fingerprint(adata.copy()) == fingerprint(adata)
    part = adata[10:20, ["gene2", "gene0"]].copy()
    np.testing.assert_array_equal(part.layers["result"], adata.layers["result"][10:20][:, [2, 0]])


@each_with(lambda imputer: ({}, *imputer.options))
def test_params_are_plain_values_and_give_the_result_again(imputer, adata, arguments):
    imputer.run(adata, **imputer.labels | arguments)
    params = dict(adata.uns["result"]["params"])
    for name, value in params.items():
        assert type(value) in (str, int, float, bool) or (type(value) is list and all(type(v) in (str, float) for v in value)), name
    assert adata.uns["result"]["method"] == imputer.name
    assert adata.uns["result"]["version"] == scimpute.__version__
    params["layer"] = None if params["layer"] == "X" else params["layer"]
    again = imputer.function(adata, key_added="again", copy=True, progress=False, **params)
    np.testing.assert_array_equal(again.layers["again"], adata.layers["result"])


# What is stored, and in what


@taking("sd", "dtype")
def test_without_standard_deviations(imputer, adata):
    whole = imputer.result(adata)
    imputer.run(adata)
    imputer.run(adata, sd=False)
    np.testing.assert_array_equal(adata.layers["result"], whole[""])
    assert "result_sd" not in adata.layers, "those of the earlier result do not belong to this one"
    assert not adata.uns["result"]["params"]["sd"]
    with pytest.raises(KeyError, match="'result_sd' not found.*sd=False.*pass sd=True"):
        scimpute.pl.imputed(adata, "gene1", key="result_sd", basis="pca", show=False)
    with pytest.raises(KeyError, match="'result_sd' not found.*sd=False.*pass sd=True"):
        scimpute.tl.nmf(adata, layer="result_sd")
    imputer.run(adata, sd=True)
    np.testing.assert_array_equal(adata.layers["result_sd"], whole["_sd"])


@taking("sd", "genes")
def test_without_standard_deviations_of_some_genes(imputer, adata):
    imputer.run(adata, genes="marked")
    imputer.run(adata, sd=False)
    assert "result_sd" not in adata.obsm
    imputer.run(adata)
    imputer.run(adata, sd=False, genes="marked")
    assert "result_sd" not in adata.layers
    assert {"result", "result_sd"} & set(adata.obsm) == {"result"}


@taking("sd")
def test_what_is_called_like_standard_deviations_is_the_users(imputer, adata, refused):
    adata.layers["result_sd"] = adata.X.copy()
    imputer.run(adata, sd=False)
    imputer.run(adata, sd=False)
    assert sp.issparse(adata.layers["result_sd"])
    refused(adata, imputer.run, ValueError, "layers.'result_sd'. exist and were not written by")


@taking("dtype")
@pytest.mark.parametrize("output", ["counts", "log1p"])
def test_half_precision(imputer, adata, tmp_path, output):
    whole = imputer.result(adata, output=output)
    imputer.run(adata, dtype="float16", output=output)
    assert adata.uns["result"]["params"]["dtype"] == "float16"
    adata.write_h5ad(tmp_path / "half.h5ad")
    for name in ("", "_sd"):
        for found in (adata, ad.read_h5ad(tmp_path / "half.h5ad")):
            assert found.layers["result" + name].dtype == np.float16
            np.testing.assert_array_equal(found.layers["result" + name], whole[name].astype(np.float16))


@taking("dtype", "genes")
def test_half_precision_of_some_genes(imputer, adata, tmp_path):
    imputer.run(adata, dtype="float16", genes="marked")
    adata.write_h5ad(tmp_path / "half.h5ad")
    for found in (adata, ad.read_h5ad(tmp_path / "half.h5ad")):
        assert (found.obsm["result"].dtypes == np.float16).all()
        assert (found.obsm["result_sd"].dtypes == np.float16).all()


@taking("dtype")
def test_scores_and_figures_read_half_precision(imputer, adata):
    """Sums over a row are beyond it."""
    adata.X.data *= 50
    scimpute.pp.thin(adata)
    for key, dtype in (("whole", "float32"), ("half", "float16")):
        imputer.run(adata, layer="thin_train", key_added=key, dtype=dtype)
    scores = scimpute.metrics.heldout(adata, ["whole", "half"])
    np.testing.assert_allclose(scores.loc["half"], scores.loc["whole"], rtol=1e-3)
    shown = [scimpute.pl._read.before_and_after(adata, ["gene1", "gene5"], key, None)[1] for key in ("whole", "half")]
    np.testing.assert_allclose(shown[1], shown[0], rtol=1e-2, atol=1e-3)


@taking("dtype")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": "float64"}, ValueError, "dtype must be one of .'float32', 'float16'."),
        ({"dtype": "float16", "output": "rate"}, ValueError, "float16.*output='rate'"),
        ({"sd": "no"}, TypeError, "sd must be True or False"),
    ],
)
def test_what_cannot_be_stored_is_refused(imputer, adata, refused, change, error, message):
    refused(adata, lambda adata: imputer.run(adata, **change), error, message)


@pytest.mark.filterwarnings("ignore:the generator predicts")
@taking("dtype")
def test_counts_beyond_half_precision(imputer, adata, refused):
    counts = adata.X.tolil()
    counts[3, 7] = 70_000
    adata.X = counts.tocsr().astype(np.float32)
    imputer.run(adata, dtype="float16", output="log1p")
    if imputer.takes("genes"):
        imputer.run(adata, dtype="float16", genes=["gene1"])
    refused(adata, lambda adata: imputer.run(adata, dtype="float16"), ValueError, "above 65504.*'gene7' has a count of 70000")


@taking("dtype")
def test_values_beyond_half_precision_are_kept(imputer, adata, monkeypatch):
    """Only known once the training is done, which is not thrown away for it."""
    whole = imputer.result(adata, output="log1p")
    highest = whole[""].max(axis=0)
    monkeypatch.setattr("scimpute._counts.output.FLOAT16_MAX", float(highest.max()) * 0.999)
    with pytest.warns(UserWarning, match=f"{adata.var_names[highest.argmax()]!r} has a value of .* written as float32"):
        found = imputer.run(adata, dtype="float16", output="log1p", copy=True)
    assert found.uns["result"]["params"]["dtype"] == "float32"
    np.testing.assert_array_equal(found.layers["result"], whole[""])


# 11. The usual next steps


def test_scanpy_goes_on_from_the_result(imputer, adata, fingerprint):
    before = fingerprint(adata)["X"]
    imputer.run(adata, **({"output": "log1p"} if imputer.takes("output") else {}))
    sc.pp.pca(adata, layer="result", n_comps=5)
    sc.pp.neighbors(adata, n_neighbors=10, method="gauss", use_rep="X_pca")
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    assert adata.obs["leiden"].nunique() >= 1
    assert fingerprint(adata)["X"] == before


# 12. It learns


@taking("output")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_better_than_the_gene_mean_and_than_nothing(imputer, seed):
    adata = scimpute.datasets.toy_counts(300, 60, depth=100, dropout=0.0, random_state=seed)
    imputer.prepare(adata)
    scimpute.pp.thin(adata, random_state=seed)
    imputer.run(adata, layer="thin_train", random_state=seed, **imputer.labels | imputer.good)
    scores = scimpute.metrics.heldout(adata, "result")
    for measure in ("poisson", "mse_log"):
        assert scores.loc["result", measure] < scores.loc["gene_mean", measure]
        assert scores.loc["result", measure] < scores.loc["raw", measure]
    # The truth that was planted agrees.
    rate = adata.layers["rate"] * 0.9
    counts = adata.layers["thin_train"].toarray()
    mean = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    error = {name: np.abs(np.sqrt(value) - np.sqrt(rate)).mean() for name, value in (("raw", counts), ("mean", mean))}
    assert np.abs(np.sqrt(adata.layers["result"]) - np.sqrt(rate)).mean() < min(error.values())


@taking("mask_layer")
@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        *(({}, seed) for seed in range(3)),
        ({"mode": "inductive"}, 0),
        ({"variant": "published", "max_epochs": 6, "n_hidden": 256}, 0),
    ],
    ids=str,
)
def test_better_than_the_gene_mean_on_hidden_entries(imputer, seed, arguments):
    adata = scimpute.datasets.toy_bulk(100, 120, random_state=seed)
    scimpute.pp.hide(adata, of="all", random_state=seed)
    covariates = {"categorical_covariates": ["tissue", "sex"], "continuous_covariates": "age"}
    imputer.run(adata, layer="hidden", random_state=seed, **covariates | imputer.good | arguments)
    scores = scimpute.metrics.recovery(adata, "result", groupby="tissue")
    assert scores.loc["result", "r2"] > scores.loc["gene_mean", "r2"] + 0.1
    if "variant" not in arguments:
        assert scores.loc["result", "rmse"] < scores.loc["group_mean", "rmse"]
        assert scores.loc["result", "r2_within"] > 0.1


@taking("output")
def test_complete_data_is_not_made_worse(imputer):
    """Little is to be gained here, and nothing is to be lost."""
    ratios = []
    for seed in range(5):
        adata = scimpute.datasets.toy_counts(120, 40, depth=20_000, dropout=0.0, random_state=seed)
        imputer.prepare(adata)
        result, truth = imputer.result(adata, random_state=seed, **imputer.good)[""], np.sqrt(adata.layers["rate"])
        ratios.append(np.abs(np.sqrt(result) - truth).mean() / np.abs(np.sqrt(adata.X.toarray()) - truth).mean())
    assert max(ratios) <= 1, ratios


@taking("output")
@pytest.mark.parametrize("depth", [2000, 100_000])
def test_cells_that_are_all_alike_stay_what_they_are(imputer, depth):
    """Nothing is to be learnt but the mean. Deep cells that differ by chance alone once came back empty, without a warning."""
    rng = np.random.default_rng(0)
    truth = depth * rng.dirichlet(np.ones(100))
    adata = ad.AnnData(rng.poisson(np.tile(truth, (100, 1))).astype(np.float32))
    imputer.prepare(adata)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the same profile", UserWarning)
        result = imputer.result(adata, **imputer.good)[""]
    np.testing.assert_allclose(result.sum(), adata.X.sum(), rtol=0.05)
    assert np.abs(np.sqrt(result) - np.sqrt(truth)).mean() < np.abs(np.sqrt(adata.X) - np.sqrt(truth)).mean()


# 13. Failures leave the object as it was


class Fault(Exception):
    """An error of a kind that nobody catches."""


def failing(error: BaseException, nth: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """``original``, which raises at its ``nth`` call (from 1)."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise error
        return original(*args, **kwargs)

    return wrapped


def profiled(look: Callable[..., None], work: Callable[[], Any]) -> None:
    """Do the work; ``look`` sees every call of a Python function, also in threads that are started."""
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def is_a_step(frame: Any, event: str) -> bool:
    """Whether a function of the package begins.

    Generators are left out, which begin again when they are thrown away. So is the end of a run, which gives back what the run has
    set: nothing could give it back after it.
    """
    code = frame.f_code
    if code is _device._Threads.end.__code__:
        return False
    return event == "call" and code.co_filename.startswith(f"{PACKAGE}{os.sep}") and not code.co_flags & inspect.CO_GENERATOR


def steps_of(work: Callable[[], Any]) -> list[CodeType]:
    """The functions of the package that the work calls, in their order."""
    calls: list[CodeType] = []
    profiled(lambda frame, event, _: calls.append(frame.f_code) if is_a_step(frame, event) else None, work)
    return calls


def fail_at(place: int, error: BaseException, work: Callable[[], Any]) -> None:
    """Do the work, in which the function of the package that is called at this place raises the error at once."""
    places = itertools.count()

    def look(frame: Any, event: str, _: Any) -> None:
        if is_a_step(frame, event) and next(places) == place:
            raise error

    profiled(look, work)


def first_and_last_in_each_file(calls: list[CodeType]) -> list[int]:
    files = [code.co_filename for code in calls]
    return sorted({files.index(file) for file in files} | {len(files) - 1 - files[::-1].index(file) for file in files})


ERRORS = (Fault, KeyboardInterrupt, MemoryError)


@pytest.mark.parametrize("error", ERRORS)
def test_failure_of_a_step_changes_nothing(imputer, adata, tmp_path, fingerprint, states, error):
    """The first and the last call in every file of the package that takes part fail, every third with each kind of error."""
    adata = adata[::2, ::2].copy()
    arguments = imputer.labels | ({"save": tmp_path / "model.safetensors"} if imputer.takes("save") else {})
    imputer.run(adata, random_state=5)  # an earlier result, which has to stay
    calls = steps_of(lambda: imputer.run(adata.copy(), **arguments))
    for path in tmp_path.iterdir():
        path.unlink()
    before, state = fingerprint(adata), states()
    # From here on only an interrupt ends the run (test_77_disk_full), and a whole model stays.
    saving = calls.index(save_model.__code__) if imputer.takes("save") else len(calls)
    end = len(calls) if error is KeyboardInterrupt else saving
    for place in first_and_last_in_each_file(calls[:end])[ERRORS.index(error) :: len(ERRORS)]:
        stop = error("stop")
        step = f"{calls[place].co_filename}, {calls[place].co_qualname}"
        with pytest.raises(error) as caught:
            fail_at(place, stop, lambda: imputer.run(adata, **arguments))
        assert caught.value is stop, step
        assert fingerprint(adata) == before, step
        assert states() == state, step
        left = [path.name for path in tmp_path.iterdir()]
        assert left == [] or (left == ["model.safetensors"] and place > saving), step
        for path in tmp_path.iterdir():
            path.unlink()


def later_repeats(imputer: Imputer) -> tuple[dict[str, Any], ...]:
    return tuple(given for given in ({"n_repeats": 3, "penalty": "auto"}, {"n_models": 3}) if imputer.takes(next(iter(given))))


@each_with(later_repeats)
def test_failure_in_a_later_repeat_changes_nothing(imputer, adata, replace_everywhere, fingerprint, arguments):
    before = fingerprint(adata)
    replace_everywhere(scimpute._train.fit, failing(KeyboardInterrupt("stop"), 3, scimpute._train.fit))
    with pytest.raises(KeyboardInterrupt):
        imputer.run(adata, **arguments)
    assert fingerprint(adata) == before


class FaultyDict(dict):
    """A dict whose changes can be made to fail."""

    change: Callable[[], None] = staticmethod(lambda: None)

    def __setitem__(self, name: Any, value: Any) -> None:
        self.change()
        super().__setitem__(name, value)

    def __delitem__(self, name: Any) -> None:
        self.change()
        super().__delitem__(name)


@pytest.mark.parametrize("earlier", ["nothing", "layers", "obsm"])
@pytest.mark.parametrize("where", ["object", "view"])
@pytest.mark.parametrize("error", [Fault("stop"), KeyboardInterrupt("stop")], ids=lambda error: type(error).__name__)
@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
@pytest.mark.parametrize("imputer", ONE_FOR_EACH_KIND_OF_RESULT, ids=lambda imputer: imputer.name)
def test_failure_of_any_single_write_changes_nothing(imputer, adata, monkeypatch, fingerprint, earlier, where, error):
    """Layers, obsm and uns are counted together, deletions too; the first, second, ... change fails until none does."""
    if earlier == "obsm" and not imputer.takes("genes"):
        pytest.skip("writes no obsm")
    if earlier != "nothing":
        imputer.run(adata, random_state=5, **({"genes": "marked"} if earlier == "obsm" else {}))
    parent = fingerprint(adata)
    failures = 0
    for nth in range(1, 20):
        target = adata[3:, 1:] if where == "view" else adata
        before = fingerprint(target)
        with monkeypatch.context() as patch:
            change = failing(error, nth, lambda: None)
            slots = {type(getattr(adata[:3] if view else adata, slot)) for slot in ("layers", "obsm") for view in (False, True)}
            for slot in slots:
                for name in ("__setitem__", "__delitem__"):
                    original = getattr(slot, name)

                    # A view's own method calls the actual one: count the outermost only.
                    def counted(self, *arguments, original=original, slot=slot, change=change):
                        if type(self) is slot:
                            change()
                        return original(self, *arguments)

                    patch.setattr(slot, name, counted)
            if where == "object":
                target.uns = FaultyDict(target.uns)
                patch.setattr(FaultyDict, "change", staticmethod(change))
            try:
                imputer.run(target)
                break
            except type(error):
                failures += 1
        assert fingerprint(target) == before
        assert fingerprint(adata) == parent
    assert failures >= len(imputer.suffixes) + (where == "object") + (earlier == "obsm") * len(imputer.suffixes)


# Disks, threads and forks. The numbers are rows of the fault table of the project (see test_faults.py)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An earlier model."""
    path = tmp_path / "model.safetensors"
    save_model(path, {"x": torch.ones(2)}, {"method": "began", "genes": []})
    return path


@pytest.fixture(params=["while it is written", "while it is put in its place"])
def saving_fails(request, monkeypatch, replace_everywhere) -> Callable[[BaseException], None]:
    """A function that lets the first saving of a model fail with this error."""

    def fail(error: BaseException) -> None:
        if request.param == "while it is written":
            replace_everywhere(save_file, failing(error, 1, save_file))
        else:
            monkeypatch.setattr(os, "replace", failing(error, 1, os.replace))

    return fail


@taking("save")
def test_77_disk_full(imputer, adata, target, saving_fails, states):
    """The result is worth more than the model."""
    earlier, state, expected = target.read_bytes(), states(), imputer.result(adata)
    saving_fails(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.warns(_check.NotSavedWarning, match="the result is in the object, .* could not be saved: .*No space left on device"):
        imputer.run(adata, save=target)
    for suffix, values in expected.items():
        np.testing.assert_array_equal(adata.layers["result" + suffix], values)
    assert states() == state
    assert target.read_bytes() == earlier
    assert list(target.parent.iterdir()) == [target]


@taking("save")
def test_an_interrupt_while_the_model_is_saved_changes_nothing(imputer, adata, target, fingerprint, saving_fails):
    earlier, before = target.read_bytes(), fingerprint(adata)
    saving_fails(KeyboardInterrupt("stop"))
    with pytest.raises(KeyboardInterrupt):
        imputer.run(adata, save=target)
    assert fingerprint(adata) == before
    assert target.read_bytes() == earlier
    assert list(target.parent.iterdir()) == [target]


@taking("save")
def test_77_read_only(imputer, adata, target, refused, monkeypatch):
    earlier = target.read_bytes()

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    refused(adata, lambda a: imputer.run(a, save=target), PermissionError, "save: nothing can be written in '.*': Permission denied")
    assert target.read_bytes() == earlier


# Python 3.12 warns of any fork of a process with threads; these children touch none of them.
FORK = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
FORKED = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")


def in_child(work: Callable[[], Any]) -> int:
    """Exit code of a forked process that does ``work``."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        pytest.fail("the child hangs")
    return child.exitcode or 0


@FORK
@FORKED
@taking("save")
def test_78_killed_while_writing(imputer, adata, target, monkeypatch):
    earlier = target.read_bytes()

    def die(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr(scimpute._save, "save_file", die)
        assert in_child(lambda: imputer.run(adata, save=target)) == 9
    assert target.read_bytes() == earlier
    imputer.run(adata, save=target)
    assert load_metadata(target)["method"] == imputer.name
    assert list(target.parent.iterdir()) == [target]


def test_80_threads_give_the_serial_results(imputer, adata):
    serial = [imputer.result(adata, random_state=seed) for seed in range(4)]
    found: dict[int, dict[str, np.ndarray]] = {}
    threads = [threading.Thread(target=lambda s=s: found.update({s: imputer.result(adata, random_state=s)})) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed, expected in enumerate(serial):
        assert_same(found[seed], expected)


@FORK
@FORKED
def test_80_forked_worker_gives_the_serial_result(imputer, adata, tmp_path):
    expected = imputer.result(adata)[""]
    assert in_child(lambda: np.save(tmp_path / "child.npy", imputer.result(adata)[""])) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "child.npy"), expected)


FORK_OF_MANY_THREADS = """
import faulthandler, json, multiprocessing, sys
import anndata, torch, scimpute
name, source, model, settings = sys.argv[1:]
saved = {"save": model} if model else {}
adata = anndata.read_h5ad(source)
torch.set_num_threads(2)
torch.ones(1_000_000).exp()  # now they run

def work():
    faulthandler.dump_traceback_later(30)  # says where it hangs
    getattr(scimpute.tl, name)(adata, **saved, **json.loads(settings))
    if saved:
        scimpute.tl.apply(adata, model, key_added="again")
    sys.exit(0 if ("again" if saved else name) in adata.layers and torch.get_num_threads() == 2 else 3)

child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join(40)
hangs = child.is_alive()
child.kill()
sys.exit(99 if hangs else child.exitcode)
"""


@FORKED
@pytest.mark.parametrize("imputer", ONE_OF_EACH_SHELL, ids=lambda imputer: imputer.name)
def test_80_fork_of_a_process_with_many_threads(imputer, tmp_path):
    """The threads of the parent's OpenMP pool do not exist in the child. Arrays are of a size at which torch would use them."""
    adata = scimpute.datasets.toy_counts(60, 2000)
    imputer.prepare(adata)
    adata.write_h5ad(tmp_path / "in.h5ad")
    model = str(tmp_path / "model.safetensors") if imputer.takes("save") else ""
    arguments = [imputer.name, str(tmp_path / "in.h5ad"), model, json.dumps(imputer.quick)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", FORK_OF_MANY_THREADS, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


THREADS_KEPT = """
import multiprocessing, os, sys, warnings
import torch, scimpute

warnings.simplefilter("ignore")
adata = scimpute.datasets.toy_visium(6, 6, 30)
scimpute.pp.spatial_rings(adata)
scimpute.tl.began(adata, max_epochs=1, n_repeats=1, n_context=2, penalty=1.0, width=4)
calls = {
    "moran": lambda: scimpute.metrics.spatial_autocorrelation(adata, "began"),
    "report": lambda: scimpute.metrics.report(adata, "began", n_splits=0, basis="spatial", save=sys.argv[1]),
    "false_signal": lambda: scimpute.metrics.false_signal(adata, lambda a: a.X),
}

def work(name):
    torch.set_num_threads(1)
    calls[name]()
    sys.exit(torch.get_num_threads() != 1)

wrong = []
for name in calls:
    child = multiprocessing.get_context("fork").Process(target=work, args=(name,))
    child.start()
    child.join(60)
    child.kill()
    if child.exitcode != 0:
        wrong.append((name, child.exitcode))
assert not wrong, wrong
"""


@FORKED
def test_80_scores_and_figures_leave_torch_its_threads(tmp_path):
    """Each in a process in which no parallel function of numba has run before."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"NUMBA_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(PACKAGE.parent), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS_KEPT, str(tmp_path / "report.html")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# The package as a whole

MODULES = ("tl", "pp", "metrics", "pl", "datasets")
PUBLIC = {f"{module}.{name}": getattr(getattr(scimpute, module), name) for module in MODULES for name in getattr(scimpute, module).__all__}


@pytest.mark.parametrize("name", PUBLIC)
def test_signature_conventions(name):
    """After scanpy's test of its own public functions."""
    signature = inspect.signature(PUBLIC[name])
    parameters = list(signature.parameters.values())
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters), "no *args, no **kwargs"
    assert sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters) <= 3
    assert signature.return_annotation is not inspect.Parameter.empty
    assert all(p.annotation is not p.empty for p in parameters)
    if not name.startswith("datasets."):
        assert parameters[0].name == "adata"
        assert parameters[0].annotation == "AnnData"
        assert parameters[0].default is inspect.Parameter.empty
    for p in parameters:
        if p.name in ("copy", "key_added", "layer", "random_state", "show", "save", "progress"):
            assert p.kind is p.KEYWORD_ONLY, p.name
    if "copy" in signature.parameters:
        assert signature.parameters["copy"].default is False
        assert signature.return_annotation == "AnnData | None"
    if "key_added" in signature.parameters:
        default = signature.parameters["key_added"].default
        # With a saved model the name is that of its method.
        assert isinstance(default, str) or (default is None and name == "tl.apply")
    if "random_state" in signature.parameters:
        assert signature.parameters["random_state"].default == 0
        assert signature.parameters["random_state"].annotation == "int | np.random.Generator | None"
    if "layer" in signature.parameters:
        assert signature.parameters["layer"].default is None
    if name.startswith("tl."):
        seed = set() if name == "tl.apply" else {"random_state"}
        assert {"layer", "key_added", "copy", "device", "progress"} | seed <= signature.parameters.keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_name_every_parameter(name):
    function = PUBLIC[name]
    text = inspect.getdoc(function) or ""
    first = text.split("\n")[0]
    assert first.endswith(".")
    assert "\n\nReturns\n-------\n" in text
    # What few need stands under "Other Parameters", after what is returned.
    described = text.split("\nReturns\n")[0] + text.partition("\nOther Parameters\n")[2].partition("\nRaises\n")[0]
    for parameter in inspect.signature(function).parameters:
        assert any(parameter in line.replace(" ", "").split(",") for line in described.split("\n")), parameter


IMPORT = """
import json, random, sys, warnings
import numpy as np, torch
before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype()
filters = list(warnings.filters)
# What the libraries below us say when they are imported is theirs.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import anndata, scanpy
before_us = set(sys.modules)
import scimpute
after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype()
print(json.dumps({"untouched": before == after, "filters": filters == warnings.filters, "torchvision": "torchvision" in sys.modules,
                  "matplotlib": "matplotlib.pyplot" in sys.modules, "tqdm.auto": "tqdm.auto" in set(sys.modules) - before_us, "version": scimpute.__version__}))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict[str, Any]:
    """What ``import scimpute`` did in a fresh process with warnings as errors and a torchvision that cannot be imported."""
    folder = tmp_path_factory.mktemp("fake")
    (folder / "torchvision.py").write_text("raise RuntimeError('torchvision does not work here')")
    path = os.pathsep.join([str(folder), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


def test_import_is_silent(imported):
    assert imported["stderr"] == ""
    assert imported["version"] == scimpute.__version__


def test_import_leaves_what_warns_in_a_notebook(imported):
    """``tqdm.auto`` asks for ipywidgets as soon as it is imported by a notebook."""
    assert not imported["tqdm.auto"]


def test_import_does_not_need_torchvision(imported):
    assert not imported["torchvision"]


def test_import_leaves_global_state(imported):
    assert imported["untouched"]
    assert imported["filters"]


def test_run_is_silent(imputer, adata, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imputer.run(adata, **imputer.labels)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def _nullable_strings_are_written(monkeypatch):
    if not hasattr(ad.settings, "allow_write_nullable_strings"):
        pytest.skip("anndata writes none")
    before = ad.settings.allow_write_nullable_strings
    ad.settings.allow_write_nullable_strings = True
    yield
    ad.settings.allow_write_nullable_strings = before


@pytest.mark.usefixtures("_nullable_strings_are_written")
@pytest.mark.filterwarnings("ignore:.*has seen the hidden:UserWarning")
def test_scores_and_figures_read_columns_of_nullable_strings(tmp_path):
    """As pandas and newer anndata keep text; also names of cells and genes, and after h5ad."""
    adata = scimpute.datasets.toy_visium(8, 8, 30, n_sections=2)
    scimpute.pp.spatial_rings(adata, library_key="section")
    scimpute.pp.hide(adata)
    quick = {"max_epochs": 1, "n_repeats": 1, "n_context": 2, "penalty": 1.0, "width": 4}
    scimpute.tl.began(adata, "section", "region", **quick)
    text = adata.copy()
    for name in ("section", "region"):
        text.obs[name] = text.obs[name].astype("string")
    text.obs_names, text.var_names = text.obs_names.astype("string"), text.var_names.astype("string")
    text.copy().write_h5ad(tmp_path / "text.h5ad")  # makes categories of the columns of what is written
    again = ad.read_h5ad(tmp_path / "text.h5ad")
    assert text.obs["region"].dtype == text.var_names.dtype == "string"
    metrics, pl = scimpute.metrics, scimpute.pl
    genes = list(adata.var_names[:3])

    def numbers(a):
        axes = pl.clusters(a, "began", "region", columns="section", library_key="section", library_id=a.obs["section"].iloc[0], show=False)
        axes += pl.spatial(a, genes[0], "began", library_key="section", library_id=a.obs["section"].iloc[0], show=False)
        axes += pl.recovery(a, "began", groupby="region", genes=genes, show=False)
        axes += pl.imputed(a, genes[0], "began", basis="spatial", show=False)
        titles = [axis.get_title() for axis in axes]
        plt.close("all")
        return [
            metrics.cluster_agreement(a, "began", "region"),
            metrics.spatial_autocorrelation(a, "began", library_key="section", genes=genes),
            metrics.recovery(a, "began", groupby="region"),
            metrics.agreement(a, "began", "rate", output="rate"),
            metrics.false_signal(a, lambda given: given.X, groups="region", n_splits=1),
            metrics.heldout(a, "began", run=True),
            metrics.gene_trust(a, "began", run=True).reset_index(drop=True),
            metrics.report(a, "began", groupby="region", n_splits=0, save=tmp_path / "report.html")["markers"].astype({"group": object}),
            pd.DataFrame({"titles": titles}),
        ]

    expected = numbers(adata)
    for other in (text, again):
        for found, wanted in zip(numbers(other), expected, strict=True):
            pd.testing.assert_frame_equal(found, wanted)
