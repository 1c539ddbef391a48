"""Warnings of objects that are not as they seem to be meant."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pytest

import scimpute

QUICK: dict[str, Any] = {"max_epochs": 1, "n_repeats": 1, "n_context": 2, "penalty": 1.0, "width": 4}


def said(adata: ad.AnnData, **changes: Any) -> list[str]:
    """What `tl.began` warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scimpute.tl.began(adata, **QUICK | changes)
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


def toy(**changes: Any) -> ad.AnnData:
    return scimpute.datasets.toy_counts(**changes)


@pytest.mark.parametrize("column", ["total_counts", "n_counts", "nCount_RNA"])
def test_cells_cut_to_some_genes(column):
    adata = toy()
    adata.obs[column] = np.asarray(adata.X.sum(axis=1)).ravel()
    assert said(adata) == []
    cut = adata[:, :8].copy()
    (message,) = said(cut)
    assert f"adata.obs['{column}'] adds up to" in message
    assert message.endswith(f"Pass size_key='{column}'")
    assert said(cut, size_key=column) == []


def test_a_column_of_another_meaning_is_no_hint():
    adata = toy()
    adata.obs["total_counts"] = "many"
    assert said(adata) == []
    adata.obs["total_counts"] = 1e9 * (np.arange(adata.n_obs) == 0)
    assert said(adata) == []


def test_a_part_of_the_molecules_is_not_cut():
    """The library sizes of all molecules would tell what was taken out."""
    adata = toy()
    adata.obs["total_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    scimpute.pp.thin(adata, 0.4)
    scimpute.pp.thin(adata, 0.5, key_added="a")
    scimpute.pp.hide(adata, 0.5)
    for layer in ("thin_train", "a_train", "a_test", "hidden"):
        assert said(adata, layer=layer, key_added="found") == []


def test_raw_of_more_genes():
    adata = toy()
    adata.raw = adata.copy()
    (message,) = said(adata[:, :10].copy(), layer="raw")
    assert message.startswith("adata.raw has 40 genes, but library sizes are sums over the 10 genes of adata")


def test_spots_are_told_as_well():
    adata = toy()
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(adata.n_obs, 2))
    adata.obs["total_counts"] = 1e4
    for call in (scimpute.tl.spatial, scimpute.tl.nmf):
        with pytest.warns(UserWarning, match="Pass size_key='total_counts'"):
            call(adata, max_epochs=1, penalty=1.0)


def barcodes(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in range(n)]


GENES = ["ACTB", "GAPDH", "MALAT1", "B2M", "CD3E", "LYZ"]


@pytest.mark.parametrize(
    ("cells", "genes", "warned"),
    [
        (barcodes(60), [f"Gene{i}" for i in range(40)], False),
        ([f"Gene{i}" for i in range(60)], barcodes(40), True),
        ([f"ENSG{i:011}.2" for i in range(60)], [f"s{i}" for i in range(40)], True),
        ([f"s{i}" for i in range(60)], [f"ENSMUSG{i:011}" for i in range(40)], False),
        ([*GENES, *[f"Rik{i}" for i in range(54)]], [f"sample{i}" for i in range(40)], True),
        ([*map(str.title, GENES), *[f"Rik{i}" for i in range(54)]], [f"sample{i}" for i in range(40)], True),
        (barcodes(60), [*GENES, *[f"Rik{i}" for i in range(34)]], False),
        ([f"TCGA-AB-{i}" for i in range(60)], [f"gene{i}" for i in range(40)], False),
    ],
)
def test_genes_in_rows(cells, genes, warned):
    adata = toy()
    adata.obs_names, adata.var_names = cells, genes
    assert [message.startswith("genes seem to be in rows") for message in said(adata)] == [True] * warned


CONTROLS = [
    "NegControlProbe_00042",
    "NegControlCodeword_0500",
    "BLANK_0001",
    "Blank-10",
    "antisense_PROKR2",
    "NegPrb3",
    "Negative10",
    "SystemControl12",
    "UnassignedCodeword_0001",
    "DeprecatedCodeword_0321",
    "FalseCode12",
    "Intergenic_Region_1234",
]
NO_CONTROLS = ["NEGR1", "BLNK", "BLK", "ANTXR1", "NEG1", "AS3MT", "FALZ", "ERCC-00002", "UNC5B", "BLANKA", "NegR"]


@pytest.mark.parametrize("name", CONTROLS)
def test_control_probes(name):
    adata = toy()
    adata.var_names = [name, *adata.var_names[1:]]
    (message,) = said(adata)
    assert message.startswith(f"1 of the 40 genes are control probes (['{name}'])")
    expression = message.split("Drop them: adata = ")[1]
    kept = eval(expression, {"adata": adata})
    assert list(kept.var_names) == list(adata.var_names[1:])
    assert said(kept) == []


def test_one_warning_for_all_kinds_and_no_gene_among_them():
    adata = toy()
    adata.var_names = [*CONTROLS, *NO_CONTROLS, *adata.var_names[len(CONTROLS) + len(NO_CONTROLS) :]]
    (message,) = said(adata)
    assert message.startswith(f"{len(CONTROLS)} of the 40 genes are control probes")
    assert eval(message.split("Drop them: adata = ")[1], {"adata": adata}).n_vars == 40 - len(CONTROLS)


def test_control_probes_by_type():
    adata = toy()
    adata.var["feature_types"] = np.where(np.arange(40) < 3, "Negative Control Probe", "Gene Expression")
    (message,) = said(adata)
    assert message.startswith("3 of the 40 genes are control probes")
    assert eval(message.split("Drop them: adata = ")[1], {"adata": adata}).n_vars == 37


@pytest.mark.parametrize("method", ["pmi", "gain"])
def test_genes_in_rows_of_bulk_expression(method, tmp_path):
    """As the files of GTEx have them."""
    adata = scimpute.datasets.toy_bulk(30, 20)
    adata.var_names = [f"ENSG{i:011}.1" for i in range(20)]
    adata.X[::3, ::2] = np.nan
    quick: dict[str, Any] = {"n_models": 1, "n_hidden": 4, "max_epochs": 1, "save": tmp_path / "model.safetensors"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(scimpute.tl, method)(adata, **quick)
    turned = ad.AnnData(adata.X.T.copy(), obs=adata.var[[]], var=adata.obs[[]])
    with pytest.warns(UserWarning, match="genes seem to be in rows"):
        getattr(scimpute.tl, method)(turned.copy(), **quick | {"save": None})
    with pytest.warns(UserWarning, match="genes seem to be in rows"), pytest.raises(ValueError, match="none of the 20 genes"):
        scimpute.tl.apply(turned, quick["save"])
