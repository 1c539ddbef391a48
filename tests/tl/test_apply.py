"""A saved model on other cells gives what the training gave on its own, and refuses what does not fit."""

from __future__ import annotations

import json
import os
import pickle
import struct
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
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import scimpute
from scimpute import _sparse, datasets, tl
from scimpute._counts.apply import AnyLevel, aligned
from scimpute._save import checksum, load_model, save_model

QUICK: dict[str, Any] = {
    "max_epochs": 3,
    "n_repeats": 2,
    "n_context": 5,
    "width": 16,
    "penalty": 100.0,
    "block_size": 16,
    "progress": False,
}
LABELS = {"batch_key": "batch", "celltype_key": "cell_type"}
VARIANTS: list[dict[str, Any]] = [
    {},
    LABELS,
    {"n_repeats": 1},
    {"batch_key": "batch", "target_batch": "average"},
    LABELS | {"target_batch": "batch1", "posterior": False},
    LABELS | {"architecture": "conv"},
    {"output": "log1p"},
    {"output": "rate", "fill": "zeros"},
    {"output": "log1p", "fill": "expressed"},
    {"genes": ["gene30", "gene3", "gene17"], "fill": "expressed"},
    {"size_key": "size"},
    {"genes": ["gene30", "gene3", "gene17"]},
    {"genes": "marked", "batch_key": "batch", "target_batch": "average"},
]


@pytest.fixture
def adata(adata: ad.AnnData) -> ad.AnnData:
    adata.obs["size"] = adata.obs["depth"] + np.linspace(1, 500, 60)
    return adata


@pytest.fixture
def train(adata, tmp_path) -> Callable[..., Path]:
    """Train on the fixture, result under "began", and give the file of the model."""

    def run(**arguments: Any) -> Path:
        path = tmp_path / "model.safetensors"
        tl.began(adata, save=path, **QUICK | arguments)
        return path

    return run


def tables(adata: ad.AnnData, key: str) -> dict[str, pd.DataFrame]:
    """Values and standard deviations, wherever they are."""
    found = {}
    for name in (key, f"{key}_sd"):
        value = adata.obsm[name] if name in adata.obsm else pd.DataFrame(adata.layers[name], adata.obs_names, adata.var_names)
        found[name.removeprefix(key)] = value
    return found


def assert_same(found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame]) -> None:
    """Of the cells and genes that were found."""
    for name, table in found.items():
        wanted = expected[name].loc[table.index, table.columns].to_numpy()
        np.testing.assert_allclose(table.to_numpy(), wanted, rtol=1e-4, atol=1e-6 * wanted.max(), err_msg=name)


def test_what_is_stored_is_as_in_the_training_or_as_asked(adata, train):
    path = train(sd=False, dtype="float16")
    expected = adata.layers["began"]
    query = without_results(adata)
    tl.apply(query, path)
    assert "began_sd" not in query.layers
    assert query.layers["began"].dtype == np.float16
    np.testing.assert_allclose(query.layers["began"], expected, rtol=2e-3)
    tl.apply(query, path, sd=True, dtype="float32")
    assert query.layers["began"].dtype == query.layers["began_sd"].dtype == np.float32
    params = query.uns["began"]["params"]
    assert (params["sd"], params["dtype"]) == (True, "float32")
    tl.apply(query, path, sd=False)
    assert "began_sd" not in query.layers
    with pytest.raises(ValueError, match="dtype must be one of"):
        tl.apply(query, path, dtype="half")


def without_results(adata: ad.AnnData) -> ad.AnnData:
    adata = adata.copy()
    for slot in (adata.layers, adata.obsm, adata.uns):
        for name in ("began", "began_sd"):
            if name in slot:
                del slot[name]
    return adata


def quietly(adata: ad.AnnData, *arguments: Any, **options: Any) -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tl.apply(adata, *arguments, copy=True, **options)


# The same as in training


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_the_cells_of_the_training(adata, train, arguments):
    path = train(**arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tl.apply(adata, path, key_added="again")
    assert ("again" in adata.obsm) == ("began" in adata.obsm)
    assert_same(tables(adata, "again"), tables(adata, "began"))
    for name, table in tables(adata, "again").items():
        assert list(table.columns) == list(tables(adata, "began")[name].columns)
        assert (table.dtypes == np.float32).all()


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_some_cells_and_genes_in_any_order(adata, train, arguments):
    path, rng = train(**arguments), np.random.default_rng(0)
    part = without_results(adata)[rng.permutation(60)[:7], rng.permutation(40)].copy()
    tl.apply(part, path)
    found = tables(part, "began")
    assert len(found[""]) == 7
    assert_same(found, tables(adata, "began"))
    if "genes" not in arguments:
        assert part.layers["began"].shape == part.shape


@pytest.mark.parametrize("arguments", [{}, LABELS], ids=str)
def test_one_cell(adata, train, arguments):
    path = train(**arguments)
    one = without_results(adata)[[17]].copy()
    tl.apply(one, path)
    assert_same(tables(one, "began"), tables(adata, "began"))


def test_other_matrices_and_layers(adata, train):
    path, other = train(), without_results(adata)
    other.layers["dense"] = other.X.toarray().astype(np.int64)
    other.X = sp.csc_matrix(other.X.shape, dtype=np.float32)
    tl.apply(other, path, layer="dense")
    assert_same(tables(other, "began"), tables(adata, "began"))
    assert other.uns["began"]["params"]["layer"] == "dense"


def test_result_does_not_depend_on_the_chunks(adata, train, replace_everywhere):
    path = train(**LABELS, target_batch="average")
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace("type1", "other")
    expected = tables(tl.apply(adata, path, unseen="average", copy=True), "began")
    replace_everywhere(_sparse.chunks, lambda n, *_: (slice(i, min(i + 7, n)) for i in range(0, n, 7)))
    assert_same(tables(tl.apply(adata, path, unseen="average", copy=True), "began"), expected)


def test_unseen_cells_are_imputed_better_than_they_are(tmp_path):
    """Cells that no network has seen: the rate that was planted is nearer than the counts are."""
    adata = datasets.toy_counts(300, 60, depth=100, dropout=0.0)
    tl.began(adata[:200].copy(), save=tmp_path / "m", **QUICK | {"max_epochs": 40, "block_size": 64})
    query = adata[200:].copy()
    tl.apply(query, tmp_path / "m")
    truth = np.sqrt(query.layers["rate"])
    assert np.abs(np.sqrt(query.layers["began"]) - truth).mean() < 0.7 * np.abs(np.sqrt(query.X.toarray()) - truth).mean()


# What is written


def test_what_is_written(adata, train, fingerprint):
    path = train(**LABELS)
    trained = adata.uns["began"]
    before = fingerprint(adata)
    assert tl.apply(adata, str(path), key_added="again", unseen="average") is None
    after = fingerprint(adata)
    assert set(after) - set(before) == {"layers/again", "layers/again_sd", "uns/again"}
    assert {name: after[name] for name in before} == before
    uns = adata.uns["again"]
    assert uns["method"] == "began"
    assert uns["params"] == trained["params"] | {"applied": True, "model": str(path), "layer": "X", "unseen": "average", "device": "cpu"}
    assert uns["conditioned_on"] == trained["conditioned_on"]
    assert uns["version"] == scimpute.__version__
    assert uns["seconds"] > 0


def test_copy(adata, train, fingerprint):
    path = train()
    before = fingerprint(adata)
    done = tl.apply(adata, path, key_added="again", copy=True)
    assert fingerprint(adata) == before
    assert_same(tables(done, "again"), tables(adata, "began"))


def test_an_earlier_result_is_replaced(adata, train):
    path = train(genes="marked")
    assert "began" in adata.obsm
    tl.began(adata, save=path, **QUICK)
    expected = tables(adata, "began")
    tl.apply(adata, path)
    assert "began" not in adata.obsm
    assert adata.uns["began"]["params"]["applied"]
    assert_same(tables(adata, "began"), expected)
    tl.began(adata, **QUICK)
    assert "applied" not in adata.uns["began"]["params"]


@pytest.mark.parametrize("arguments", [LABELS | {"target_batch": "batch0"}, {"genes": "marked"}], ids=str)
def test_result_survives_a_file(adata, train, tmp_path, arguments):
    path = train(**arguments)
    tl.apply(adata, path)
    adata.write_h5ad(tmp_path / "result.h5ad")
    again = ad.read_h5ad(tmp_path / "result.h5ad")
    for name, table in tables(adata, "began").items():
        np.testing.assert_array_equal(tables(again, "began")[name], table)
    found = again.uns["began"]
    assert found["params"].keys() == adata.uns["began"]["params"].keys()
    assert found["params"]["applied"]
    assert found["params"]["model"] == str(path)
    for name, label in adata.uns["began"]["conditioned_on"].items():
        assert list(found["conditioned_on"][name]["levels"]) == label["levels"]


def test_figures_and_scores_take_the_result(adata, train):
    path = train(size_key="size")
    del adata.obs["size"]
    scimpute.pp.thin(adata)
    with pytest.warns(UserWarning, match="size_key='size'"):
        tl.apply(adata, path, layer="thin_train")
    assert len(scimpute.pl.imputed(adata, ["gene1"], basis="pca", show=False)) == 2
    assert np.isfinite(scimpute.metrics.heldout(adata, "began").loc["began", "poisson"])
    with pytest.raises(KeyError, match="training history"):
        scimpute.pl.training(adata)


# Genes


def test_genes_the_model_does_not_know(adata, train):
    """They change nothing, and the rest goes to a table."""
    path = train()
    more = without_results(adata)
    del more.raw
    names = [f"new{i}" for i in range(5)]
    extra = ad.AnnData(sp.csr_matrix(np.full((60, 5), 7, np.float32)), obs=more.obs, var=pd.DataFrame(index=names))
    more = ad.concat([extra, more], axis=1, merge="first")
    tl.apply(more, path)
    assert "began" not in more.layers
    table = more.obsm["began"]
    assert list(table.columns) == list(adata.var_names)
    assert list(table.index) == list(adata.obs_names)
    assert_same(tables(more, "began"), tables(adata, "began"))


def test_absent_genes_are_told_as_zero(adata, train):
    path = train(posterior=False, output="rate")
    zero = without_results(adata)
    zero.X = sp.csr_matrix(zero.X.toarray() * (np.arange(40) >= 6))
    expected = tables(tl.apply(zero, path, copy=True), "began")
    few = without_results(adata)[:, 6:].copy()
    with pytest.warns(UserWarning, match="6 of the 40 genes") as caught:
        tl.apply(few, path)
    assert len(caught) == 1
    assert "6 of the 40 genes of the model are not in adata.var_names: ['gene0', 'gene1'," in str(caught[0].message)
    assert "(6 in all)" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert few.layers["began"].shape == (60, 34)
    # But no molecule is theirs: the shares of the others sum to 1.
    rates = expected[""].iloc[:, 6:]
    np.testing.assert_allclose(few.layers["began"], rates.div(rates.sum(axis=1), axis=0), rtol=2e-3)


def test_half_of_the_genes_is_enough_and_less_is_not(adata, train):
    path, adata = train(), without_results(adata)
    assert np.isfinite(quietly(adata[:, :20].copy(), path).layers["began"]).all()
    with pytest.raises(ValueError, match=r"21 of the 40 genes .* not in adata.var_names: \['gene19'"):
        tl.apply(adata[:, :19].copy(), path)


def test_other_names_of_the_genes_are_noticed(adata, train):
    path, query = train(), without_results(adata)
    query.var["symbol"] = query.var_names
    query.var_names = [f"ENSG{i:011d}" for i in range(40)]
    with pytest.raises(ValueError, match=r"40 of the 40 genes .*; var\['symbol'\] has 40 of them: adata.var_names = adata.var\['symbol'\]"):
        tl.apply(query, path)
    query.var_names = [f"{gene}.3" if place < 10 else gene for place, gene in enumerate(query.var.pop("symbol"))]
    with pytest.warns(
        UserWarning, match="10 of the 40 genes of adata are not in the model and are not imputed: .*without version suff"
    ) as caught:
        tl.apply(query, path)
    assert len(caught) == 1


def test_imputed_genes_that_are_absent_are_left_out(adata, train):
    path = train(genes=["gene30", "gene3", "gene17"])
    part = without_results(adata)[:, [i for i in range(40) if i != 3]].copy()
    assert list(quietly(part, path).obsm["began"].columns) == ["gene30", "gene17"]
    part = part[:, ~part.var_names.isin(["gene30", "gene17"])].copy()
    with pytest.raises(ValueError, match=r"none of the genes that the model imputes .*'gene30'"):
        quietly(part, path)


def test_a_gene_without_a_molecule_in_training(adata, tmp_path):
    first = adata.copy()
    first.X = sp.csr_matrix(first.X.toarray() * (np.arange(40) != 5))
    tl.began(first, save=tmp_path / "m", **QUICK)
    tl.apply(first, tmp_path / "m", key_added="again")
    assert not first.layers["again"][:, 5].any()
    with pytest.warns(UserWarning, match=r"1 genes have molecules here and had none .* \['gene5'\]; they are imputed as 0"):
        tl.apply(adata, tmp_path / "m")
    assert not adata.layers["began"][:, 5].any()
    # The other way round: a gene without a molecule here, of which the training saw some, is not zero.
    tl.began(adata, save=tmp_path / "m", **QUICK)
    tl.apply(first, tmp_path / "m")
    assert (first.layers["began"][:, 5] > 0).all()


def test_aligned():
    counts = sp.random(9, 6, 0.5, format="csr", random_state=0, dtype=np.float32)
    assert aligned(counts, np.arange(6)) is counts
    places = np.array([3, -1, 0, 5, -1])
    found = aligned(counts, places)
    expected = np.where(places < 0, 0, counts.toarray()[:, places])
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.has_canonical_format


# Sizes


def test_sizes_are_of_the_column_or_of_the_genes_of_the_model(adata, train):
    path = train(size_key="size", output="rate", posterior=False)
    adata.obs["size"] *= 2
    twice = tl.apply(adata, path, copy=True)
    assert twice.uns["began"]["params"]["size_key"] == "size"
    del adata.obs["size"]
    with pytest.warns(
        UserWarning, match=r"size_key='size', which adata.obs does not have; library sizes are sums over the 40 genes"
    ) as caught:
        sums = tl.apply(adata, path, copy=True)
    assert caught[0].filename == __file__
    assert "size_key" not in sums.uns["began"]["params"]
    adata.obs["size"] = np.asarray(adata.X.sum(1)).ravel()
    assert_same(tables(sums, "began"), tables(tl.apply(adata, path, copy=True), "began"))


def test_empty_cells_are_said(adata, train):
    path = train()
    adata.X = sp.csr_matrix(adata.X.toarray() * (np.arange(60) != 3)[:, None])
    with pytest.warns(UserWarning, match="1 cells have no molecules") as caught:
        tl.apply(adata, path)
    assert caught[0].filename == __file__
    assert np.isfinite(adata.layers["began"]).all()


# Labels


def test_levels_are_matched_by_name(adata, train):
    path = train(**LABELS)
    expected = tables(adata, "began")
    adata.obs["batch"] = adata.obs["batch"].cat.add_categories(["none"]).cat.reorder_categories(["none", "batch1", "batch0"])
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    part = without_results(adata)[adata.obs["batch"] == "batch1"][::-1].copy()
    tl.apply(part, path)
    assert_same(tables(part, "began"), expected)


@pytest.mark.parametrize("architecture", ["dense", "conv"])
def test_unseen_levels_are_averaged(adata, train, architecture):
    """Of a label, of the other, of both: the mean rate over what the cells could be."""
    path = train(**LABELS, architecture=architecture, posterior=False, output="rate")
    levels = {"batch": ["batch0", "batch1"], "cell_type": ["type0", "type1", "type2"]}
    as_if = {}
    for batch in levels["batch"]:
        for kind in levels["cell_type"]:
            other = adata.copy()
            other.obs["batch"], other.obs["cell_type"] = batch, kind
            as_if[batch, kind] = tl.apply(other, path, copy=True).layers["began"]
    query = adata.copy()
    for name in levels:
        query.obs[name] = query.obs[name].astype(str)
    query.obs.loc[query.obs_names[:20], "batch"] = "new"
    query.obs.loc[query.obs_names[10:30], "cell_type"] = "other"
    tl.apply(query, path, unseen="average")
    for i, (batch, kind) in enumerate(zip(query.obs["batch"], query.obs["cell_type"], strict=True)):
        batches = levels["batch"] if batch == "new" else [batch]
        kinds = levels["cell_type"] if kind == "other" else [kind]
        expected = np.mean([as_if[b, k][i] for b in batches for k in kinds], axis=0)
        np.testing.assert_allclose(query.layers["began"][i], expected, rtol=1e-4)


def test_any_level_of_known_cells_is_the_generator_itself():
    calls = []

    class Known(torch.nn.Module):
        def forward(self, inputs, labels, features):
            calls.append(labels)
            return inputs * 0 - 1 - labels[0][None, :, None]

    module = AnyLevel(Known(), (3,))
    inputs = torch.zeros(2, 4, 5)
    np.testing.assert_allclose(module(inputs, [torch.tensor([0, 1, 2, 0])])[0, :, 0], [-1, -2, -3, -1])
    assert len(calls) == 1
    found = module(inputs, [torch.tensor([-1, 1, 2, -1])])
    mean = np.log(np.exp([-1, -2, -3]).mean())
    np.testing.assert_allclose(found[1, :, 3], [mean, -2, -3, mean], rtol=1e-6)


@pytest.mark.parametrize("target", ["average", "batch1"])
def test_a_new_batch_is_imputed_as_the_target(adata, train, target):
    """The rate is of the target batch whatever the cell's own batch, which enters by its own count only."""
    path = train(batch_key="batch", target_batch=target, posterior=False)
    expected = tables(adata, "began")
    adata.obs["batch"] = "new"
    tl.apply(adata, path, unseen="average")
    assert_same(tables(adata, "began"), expected)
    path = train(batch_key="cell_type", target_batch="type1")
    adata.obs["cell_type"] = "new"
    tl.apply(adata, path, unseen="average")
    assert np.isfinite(adata.layers["began"]).all()


def test_a_label_of_one_level_is_not_asked_for(adata, tmp_path):
    adata.obs["same"] = "x"
    tl.began(adata, "same", target_batch="average", save=tmp_path / "m", **QUICK)
    del adata.obs["same"]
    expected = tables(adata, "began")
    tl.apply(adata, tmp_path / "m")
    assert_same(tables(adata, "began"), expected)


# What is refused


def with_obs(column: str, change: Callable[[pd.Series], Any]) -> Callable[[ad.AnnData], None]:
    def edit(adata: ad.AnnData) -> None:
        adata.obs[column] = change(adata.obs[column].astype(object))

    return edit


def first_cell(value: Any) -> Callable[[pd.Series], pd.Series]:
    return lambda column: column.where(np.arange(len(column)) > 0, value)


def nothing(adata: ad.AnnData) -> None:
    pass


REFUSED: dict[str, tuple[Callable[[ad.AnnData], Any], dict[str, Any], type[Exception], str]] = {
    "key": (nothing, {"key_added": "a/b"}, ValueError, "key_added must be a non-empty string without '/'"),
    "key type": (nothing, {"key_added": 3}, ValueError, "key_added must be a string"),
    "key is the layer": (nothing, {"key_added": "rate", "layer": "rate"}, ValueError, "would overwrite the layer that is read"),
    "key of another": (nothing, {"key_added": "rate"}, ValueError, "were not written by began"),
    "copy": (nothing, {"copy": 1}, TypeError, "copy must be True or False"),
    "progress": (nothing, {"progress": "yes"}, TypeError, "progress must be True or False"),
    "unseen": (nothing, {"unseen": "mean"}, ValueError, r"unseen must be one of \['error', 'average'\], got 'mean'"),
    "device": (nothing, {"device": "gpu"}, ValueError, "device 'gpu' not available"),
    "layer": (nothing, {"layer": "cuonts"}, KeyError, "layer 'cuonts' not found"),
    "not counts": (lambda a: setattr(a, "X", a.X * 0.5), {}, ValueError, "not whole numbers"),
    "negative": (lambda a: setattr(a, "X", a.X * -1), {}, ValueError, "negative"),
    "no label": (
        lambda a: a.obs.__delitem__("batch"),
        {},
        KeyError,
        r"conditioned on .*\['batch', 'cell_type'\].* lacks \['batch'\].*avail",
    ),
    "no labels": (lambda a: setattr(a, "obs", a.obs[["size"]]), {}, KeyError, r"lacks \['batch', 'cell_type'\]; available: \['size'\]"),
    "missing label": (with_obs("batch", first_cell(None)), {}, ValueError, "batch_key='batch' is missing in 1 cells .first: 'cell0'"),
    "missing label, average": (with_obs("batch", first_cell(np.nan)), {"unseen": "average"}, ValueError, "is missing in 1 cells"),
    "unseen level": (
        with_obs("cell_type", first_cell("typo")),
        {},
        ValueError,
        r"celltype_key='cell_type': 1 cells .* not know: \['typo'\]; known: \['type\d', 'type\d', 'type\d'\]. Rename .* unseen='average'",
    ),
    "size": (with_obs("size", first_cell(-1)), {}, ValueError, "size_key='size' is not a positive number in 1 cells"),
    "same genes": (lambda a: setattr(a, "var_names", ["x"] * 40), {}, ValueError, r"call adata.var_names_make_unique\(\)"),
    "other genes": (
        lambda a: setattr(a, "var_names", [f"ENSG{i}" for i in range(40)]),
        {},
        ValueError,
        r"40 of the 40 genes .*\['gene0', .*\(40 in all\)\]; adata has \['ENSG0'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_objects_that_do_not_fit(adata, train, fingerprint, states, case):
    edit, arguments, error, message = REFUSED[case]
    path = train(**LABELS, size_key="size")
    edit(adata)
    before, state = fingerprint(adata), states()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=message) as caught:
            tl.apply(adata, path, **arguments)
    assert "\n" not in str(caught.value)
    assert fingerprint(adata) == before
    assert states() == state


def test_what_is_not_an_anndata(train):
    with pytest.raises(TypeError, match="expected AnnData, got DataFrame"):
        tl.apply(pd.DataFrame(), train())


@pytest.mark.parametrize(
    "step", ["_counts.rates._rates", "_counts.apply.finish", "_counts.apply.CellBatches.inputs", "tl._apply_counts.as_tables"]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_failure_of_a_step_changes_nothing(adata, train, monkeypatch, fingerprint, states, step, error):
    path = train(genes="marked")
    before, state = fingerprint(adata), states()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error("stop")

    with monkeypatch.context() as patch:
        patch.setattr(f"scimpute.{step}", fail)
        with pytest.raises(error, match="stop"):
            tl.apply(adata, path)
    assert fingerprint(adata) == before
    assert states() == state


def test_result_larger_than_the_memory(adata, train, monkeypatch):
    path = train()
    monkeypatch.setattr("scimpute._check._available_memory", lambda: 10_000)
    with pytest.raises(MemoryError, match="fewer cells at a time"):
        tl.apply(adata, path)


# Files that are no models


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def edited(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Callable[[Path], None]:
    """The model with other tensors or metadata."""

    def edit(path: Path) -> None:
        tensors, metadata = load_model(path)
        change(tensors, metadata)
        save_model(path, tensors, metadata)

    return edit


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def with_text(**changes: str | None) -> Callable[[Path], None]:
    """The model with some metadata as they are in the file."""

    def edit(path: Path) -> None:
        tensors, metadata = load_model(path)
        text = {name: json.dumps(value) for name, value in metadata.items()} | changes
        kept = {name: value for name, value in text.items() if value is not None}
        save_file(tensors, path, metadata={**kept, "checksum": json.dumps(checksum(tensors, kept))})

    return edit


DAMAGED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "missing": (lambda p: p.unlink(), FileNotFoundError, "does not exist"),
    "directory": (lambda p: (p.unlink(), p.mkdir()), IsADirectoryError, "is a directory"),
    "empty": (lambda p: p.write_bytes(b""), ValueError, "is empty"),
    "start only": (lambda p: p.write_bytes(p.read_bytes()[:100]), ValueError, "is cut short or damaged"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), ValueError, "is cut short or damaged"),
    "one byte less": (lambda p: p.write_bytes(p.read_bytes()[:-1]), ValueError, "is cut short or damaged"),
    "one byte more": (lambda p: p.write_bytes(p.read_bytes() + b"x"), ValueError, "is cut short or damaged"),
    "header": (lambda p: p.write_bytes(struct.pack("<Q", 5) + b"{oops"), ValueError, "is cut short or damaged"),
    "text": (lambda p: p.write_text("gene,cell\n1,2"), ValueError, "is not a safetensors file"),
    "one letter": (lambda p: p.write_text("x"), ValueError, "is not a safetensors file"),
    "h5ad": (lambda p: datasets.toy_counts().write_h5ad(p), ValueError, "is not a safetensors file"),
    "pickle": (pickled, ValueError, "is a pickle .*never loaded"),
    "torch": (lambda p: torch.save({"x": Bomb()}, p), ValueError, "is a pickle .*never loaded"),
    "no metadata": (lambda p: save_file({"x": torch.ones(2)}, p), ValueError, "has no metadata of scimpute"),
    "of others": (lambda p: save_file({"x": torch.ones(2)}, p, metadata={"format": "pt"}), ValueError, "has no metadata of scimpute"),
    "broken json": (with_text(params="{"), ValueError, "has no metadata of scimpute"),
    "newer": (with_text(format='"9"', version='"9.1"'), ValueError, "format 9, written by scimpute 9.1; .* Install a newer"),
    "no method": (with_text(method=None), ValueError, r"method None; this version applies models of \['began'"),
    "other method": (with_text(method='"magic"'), ValueError, r"method 'magic'; this version applies models of \['began'"),
    "no genes": (with_text(genes=None), ValueError, r"whole model of tl.began \('genes'\)"),
    "no labels": (with_text(conditioned_on=None), ValueError, "whole model of tl.began"),
    "labels of another kind": (with_text(conditioned_on="[1]"), ValueError, "whole model of tl.began"),
    "no parameter": (edited(lambda t, m: m["params"].pop("width")), ValueError, "no params.'width'"),
    "fewer genes": (edited(lambda t, m: m["genes"].pop()), ValueError, "loadings has 40 genes instead of 39"),
    "fewer imputed": (edited(lambda t, m: m["imputed"].pop()), ValueError, "inverse_dispersion has 40 genes instead of 39"),
    "other imputed": (edited(lambda t, m: m["imputed"].__setitem__(0, "x")), ValueError, "missing from the genes"),
    "fewer levels": (edited(lambda t, m: m["conditioned_on"]["batch_key"]["levels"].pop()), ValueError, "size mismatch"),
    "no dispersion": (edited(lambda t, m: t.pop("inverse_dispersion")), ValueError, "whole model of tl.began .'inverse_dispersion'"),
    "no thresholds": (edited(lambda t, m: m["params"].__setitem__("fill", "expressed")), ValueError, "tl.began .'expressed_above'"),
    "no weight": (edited(lambda t, m: t.pop("repeat1.first.linear.weight")), ValueError, "Missing key"),
    "no repeat": (edited(lambda t, m: m["params"].__setitem__("n_repeats", 3)), ValueError, "whole model of tl.began .'place'"),
    "NaN": (edited(lambda t, m: t["repeat0.output.weight"].fill_(np.nan)), ValueError, "repeat0.output.weight has values that are NaN"),
    "short deal": (edited(lambda t, m: t.__setitem__("repeat0.place", torch.arange(3))), ValueError, "repeat0.place does not give each"),
    "another weight": (
        lambda p: save_file({**load_file(p), "inverse_dispersion": torch.ones(40)}, p, metadata=header(p)),
        ValueError,
        "its checksum",
    ),
    "no sign": (
        edited(lambda t, m: t["inverse_dispersion"].neg_()),
        ValueError,
        "inverse_dispersion has values that are NaN, infinite or out of range",
    ),
    "negative reference": (edited(lambda t, m: t["reference"].neg_()), ValueError, "reference has values"),
    "no depth": (edited(lambda t, m: t["median_size"].zero_()), ValueError, "median_size has values"),
    "other type": (edited(lambda t, m: t.__setitem__("seen", t["seen"].float())), ValueError, "seen has values of type torch.float32"),
    "other shape": (
        edited(lambda t, m: t.__setitem__("inverse_dispersion", t["inverse_dispersion"][:, None])),
        ValueError,
        "inverse_dispersion has shape .40, 1.",
    ),
    "negative spread": (edited(lambda t, m: t["slope_and_spread"][1].neg_()), ValueError, "slope_and_spread has a spread below 0"),
    "far out": (
        edited(lambda t, m: t["loadings"].fill_(1e30)),
        ValueError,
        "gives values of 'began' that are NaN or infinite: it is damaged",
    ),
    "all equal": (edited(lambda t, m: t["repeat0.place"].fill_(1)), ValueError, "repeat0.place does not give each"),
    "negative width": (edited(lambda t, m: m["params"].__setitem__("width", -1)), ValueError, "width is -1"),
    "huge width": (edited(lambda t, m: m["params"].__setitem__("width", 10**30)), ValueError, "width is 10"),
    "wide": (edited(lambda t, m: m["params"].__setitem__("width", 10**6)), ValueError, "width is 1000000"),
    "no repeats": (edited(lambda t, m: m["params"].__setitem__("n_repeats", 0)), ValueError, "n_repeats is 0"),
    "other output": (edited(lambda t, m: m["params"].__setitem__("output", "x")), ValueError, "output must be one of"),
    "no batch": (edited(lambda t, m: m["params"].__setitem__("target_batch", "x")), ValueError, "whole model of tl.began .target_batch"),
    "a gene twice": (edited(lambda t, m: m["genes"].__setitem__(0, m["genes"][1])), ValueError, "genes has a name twice"),
    "genes of numbers": (edited(lambda t, m: m.__setitem__("genes", list(range(40)))), ValueError, "genes are no list of names"),
    "wrong deal": (edited(lambda t, m: t["repeat1.place"].fill_(1000)), ValueError, "repeat1.place does not give each"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_files_that_are_no_models(adata, train, fingerprint, monkeypatch, tmp_path, case):
    damage, error, message = DAMAGED[case]
    path = train(**LABELS)
    before = fingerprint(adata)
    damage(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as caught:
        tl.apply(adata, path)
    assert "\n" not in str(caught.value)
    assert fingerprint(adata) == before
    assert not os.path.exists("unpickled")


@pytest.mark.parametrize("path", [3, None, ["m"]])
def test_paths_that_are_none(adata, path):
    with pytest.raises(TypeError, match="model must be the path of a file"):
        tl.apply(adata, path)
