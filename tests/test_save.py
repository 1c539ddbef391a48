"""Files are written whole or not at all; a saved model holds what is needed to apply it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import scimpute
from scimpute._save import load_metadata, load_model, replace_file, save_model


def test_replace_file_replaces(tmp_path):
    path = tmp_path / "result.txt"
    for text in ("first", "second"):
        replace_file(path, lambda temporary, text=text: temporary.write_text(text))
        assert path.read_text() == text
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("earlier", [True, False])
def test_failure_leaves_the_old_file_and_no_temporary(tmp_path, error, earlier):
    path = tmp_path / "result.txt"
    if earlier:
        path.write_text("old")
    seen = []

    def write(temporary):
        seen.append(temporary)
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        replace_file(path, write)
    assert seen[0].parent == tmp_path
    assert seen[0].suffix == ".txt"
    assert list(tmp_path.iterdir()) == ([path] if earlier else [])
    if earlier:
        assert path.read_text() == "old"


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "result.txt", lambda temporary: temporary.write_text("x"))
        assert (tmp_path / "result.txt").stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_save_model_keeps_tensors_and_metadata(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = torch.arange(6.0).view(2, 3)
    save_model(path, {"a": weights.T, "b": torch.nn.Parameter(torch.ones(2))}, {"genes": ["é", "b"], "params": {"x": 1.5, "y": True}})
    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
        torch.testing.assert_close(file.get_tensor("a"), weights.T)
        torch.testing.assert_close(file.get_tensor("b"), torch.ones(2))
    assert metadata == {"format": "1", "genes": ["é", "b"], "params": {"x": 1.5, "y": True}}
    tensors, again = load_model(str(path))
    assert again == metadata
    torch.testing.assert_close(tensors, {"a": weights.T.contiguous(), "b": torch.ones(2)})
    with pytest.raises(TypeError):
        save_model(path, {}, {"wrong": object()})
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_are_read_without_the_tensors(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(path, {"a": torch.ones(3)}, {"method": "began", "genes": ["é"]})
    assert load_metadata(str(path)) == load_model(path)[1] == {"format": "1", "method": "began", "genes": ["é"]}
    with safe_open(path, "pt") as file:
        header = file.metadata()
    # A file that has metadata and nothing else to ask for.
    monkeypatch.setattr("scimpute._save.safe_open", lambda *_: contextlib.nullcontext(SimpleNamespace(metadata=lambda: header)))
    assert load_metadata(path)["method"] == "began"
    with pytest.raises(AttributeError):
        load_model(path)


NO_MODEL = {
    "missing": (lambda path: path.unlink(), FileNotFoundError, "does not exist"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), IsADirectoryError, "is a directory"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), ValueError, "is cut short or damaged"),
    "text": (lambda path: path.write_text("gene,cell"), ValueError, "is not a safetensors file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1])), ValueError, "is a pickle"),
    "of others": (lambda path: save_file({"x": torch.ones(2)}, path), ValueError, "has no metadata of scimpute"),
    "newer": (lambda path: save_file({"x": torch.ones(2)}, path, metadata={"format": "2"}), ValueError, "format 2, written by"),
}


@pytest.mark.parametrize("case", NO_MODEL)
def test_metadata_are_refused_as_the_whole_is(tmp_path, case):
    """The messages themselves: test_apply.py."""
    path = tmp_path / "model.safetensors"
    save_model(path, {"a": torch.ones(3)}, {"method": "began"})
    damage, error, message = NO_MODEL[case]
    damage(path)
    said = []
    for read in (load_metadata, load_model):
        with pytest.raises(error, match=message) as caught:
            read(path)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_saved_began(adata, tmp_path):
    path = tmp_path / "model.safetensors"
    genes = [f"gene{j}" for j in (30, 2, 17, 9, 5)]
    quick = {"max_epochs": 2, "n_repeats": 2, "n_context": 5, "width": 16, "penalty": 100.0, "block_size": 3, "progress": False}
    scimpute.tl.began(adata, "batch", "cell_type", genes=genes, save=str(path), **quick)
    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata["method"] == "began"
    assert metadata["version"] == scimpute.__version__
    assert metadata["genes"] == list(adata.var_names)
    assert metadata["imputed"] == genes
    labels = metadata["conditioned_on"]
    assert {name: label["column"] for name, label in labels.items()} == {"batch_key": "batch", "celltype_key": "cell_type"}
    assert sorted(labels["batch_key"]["levels"]) == ["batch0", "batch1"]
    assert sorted(labels["celltype_key"]["levels"]) == ["type0", "type1", "type2"]
    for name, label in adata.uns["began"]["conditioned_on"].items():
        assert list(label["levels"]) == labels[name]["levels"]
    params = adata.uns["began"]["params"]
    assert metadata["params"] == params
    assert {name: params[name] for name in ("max_epochs", "n_repeats", "n_context", "width", "penalty")}.items() <= quick.items()
    assert tensors["loadings"].shape == (40, 5)
    assert tensors["sizes"].shape == (5,)
    np.testing.assert_array_equal(tensors["seen"], adata.X.toarray()[:, [30, 2, 17, 9, 5]].any(0))
    np.testing.assert_array_equal(tensors["sizes"], adata.uns["began"]["sizes"])
    for repeat in range(2):
        place = tensors[f"repeat{repeat}.place"]
        assert sorted(place[place >= 0]) == list(range(5))
        assert [f"gene{j}" for j in np.flatnonzero(place >= 0)] == sorted(genes, key=list(adata.var_names).index)
        assert tensors[f"repeat{repeat}.output.bias"].shape == (2, 1, 3)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("method", ["began", "spatial", "pmi"])
def test_a_model_needs_names_that_are_unique(method, tmp_path, refused):
    """By such names no gene would be found again."""
    make = {"began": scimpute.datasets.toy_counts, "spatial": scimpute.datasets.toy_visium, "pmi": scimpute.datasets.toy_bulk}
    adata = make[method]()
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]
    call = getattr(scimpute.tl, method)
    message = r"save: adata.var_names are not unique, .* adata.var_names_make_unique\(\)"
    refused(adata, lambda a: call(a, save=tmp_path / "model.safetensors"), ValueError, message)


def test_numpy_booleans_are_saved(adata, tmp_path):
    quick = {"max_epochs": 1, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0, "progress": False}
    scimpute.tl.began(adata, posterior=np.bool_(False), save=tmp_path / "model.safetensors", **quick)
    assert load_metadata(tmp_path / "model.safetensors")["params"]["posterior"] is False
    assert adata.uns["began"]["params"]["posterior"] is False
