"""A saved model holds what is needed to apply it, replaces nothing but another one, and is never all there is to lose."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import scimpute
from scimpute import _check
from scimpute._save import is_model, load_metadata, load_model, save_model


def test_save_model_keeps_tensors_and_metadata(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = torch.arange(6.0).view(2, 3)
    save_model(path, {"a": weights.T, "b": torch.nn.Parameter(torch.ones(2))}, {"genes": ["é", "b"], "params": {"x": 1.5, "y": True}})
    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
        torch.testing.assert_close(file.get_tensor("a"), weights.T)
        torch.testing.assert_close(file.get_tensor("b"), torch.ones(2))
    assert len(metadata["checksum"]) == 64
    assert metadata == {"format": "2", "genes": ["é", "b"], "params": {"x": 1.5, "y": True}, "checksum": metadata["checksum"]}
    tensors, again = load_model(str(path))
    assert again == metadata
    torch.testing.assert_close(tensors, {"a": weights.T.contiguous(), "b": torch.ones(2)})
    with pytest.raises(TypeError):
        save_model(path, {}, {"wrong": object()})
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_are_read_without_the_tensors(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(path, {"a": torch.ones(3)}, {"method": "began", "genes": ["é"]})
    assert load_metadata(str(path)) == load_model(path)[1]
    assert load_metadata(path).items() >= {"format": "2", "method": "began", "genes": ["é"]}.items()
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
    "newer": (lambda path: save_file({"x": torch.ones(2)}, path, metadata={"format": "9"}), ValueError, "format 9, written by"),
}


def test_any_flipped_bit_is_noticed(tmp_path):
    """In the length, the header, the metadata and the tensors: one ValueError."""
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.arange(3.0), "b": torch.tensor([True, False]), "c": torch.tensor(7), "none": torch.zeros(0)}
    save_model(path, tensors, {"method": "began", "genes": ["é", "b"], "params": {"width": 16, "penalty": 1.5}})
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="^model: ") as caught:
                load_model(path)
            assert caught.type is ValueError, (place, bit)
    path.write_bytes(whole)
    torch.testing.assert_close(load_model(path)[0], tensors)


def test_models_of_before_the_checksum_are_read(tmp_path):
    path, text = tmp_path / "model.safetensors", {"format": '"1"', "method": '"began"'}
    save_file({"a": torch.ones(3)}, path, metadata=text)
    tensors, metadata = load_model(path)
    assert metadata == {"format": "1", "method": "began"}
    torch.testing.assert_close(tensors, {"a": torch.ones(3)})
    save_file({"a": torch.ones(3)}, path, metadata={**text, "format": '"2"'})
    with pytest.raises(ValueError, match="does not agree with its checksum"):
        load_model(path)


def refused_model(path, error, message):
    """By whatever reads a model."""
    for read in (load_metadata, load_model, lambda path: scimpute.tl.apply(scimpute.datasets.toy_counts(), path)):
        with pytest.raises(error, match=message) as caught:
            read(path)
        assert caught.type is error


def test_what_is_no_file_to_read(tmp_path, monkeypatch):
    """A pipe would be waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        refused_model(path, ValueError, "^model: '.*' is not a regular file")
    refused_model("model\udcff.safetensors", ValueError, "^model: .* has letters that are no UTF-8")
    refused_model(b"model", TypeError, "model must be the path of a file")
    path = tmp_path / "model.safetensors"
    save_model(path, {"a": torch.ones(3)}, {"method": "began"})
    with monkeypatch.context() as patched:
        patched.setattr("scimpute._save.os.access", lambda *_: False)
        refused_model(path, PermissionError, "^model: '.*' may not be read by you")

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("scimpute._save.safe_open", broken)
    refused_model(path, ValueError, "^model: '.*' cannot be read: .*Input/output error")


@pytest.mark.parametrize("genes", ["[" * 100_000, '{"a":' * 100_000])
def test_metadata_that_are_nested_too_deep(tmp_path, genes):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path, metadata={"format": '"1"', "genes": genes})
    refused_model(path, ValueError, "^model: '.*' has no metadata of scimpute")


@pytest.mark.parametrize("method", [["began"], {}, 3, None, "magic"])
def test_a_method_that_is_none_of_ours(tmp_path, method):
    path = tmp_path / "model.safetensors"
    save_model(path, {"a": torch.ones(3)}, {"method": method})
    with pytest.raises(ValueError, match="is of method .*; this version applies models of"):
        scimpute.tl.apply(scimpute.datasets.toy_counts(), path)


def test_where_no_model_can_be_saved(tmp_path, refused):
    """The format writes to another name than the one given; half a file is taken for none of ours."""
    (tmp_path / "folder\udcff").mkdir()
    for path in (tmp_path / "model\udcff", tmp_path / "folder\udcff" / "model"):
        refused(MAKE["began"](), lambda adata, path=path: run("began", adata, path), ValueError, "save: .* has letters that are no UTF-8")
    scimpute.datasets.toy_counts().write_h5ad(tmp_path / "data.h5ad")
    backed = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
    with pytest.warns(UserWarning, match="the result is in memory only"):
        refused(backed, lambda adata: run("began", adata, "a\0"), ValueError, "save: .* cannot be the name of a file: it has a NUL")
    backed.file.close()


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
    assert tensors["inverse_dispersion"].shape == (5,)
    np.testing.assert_array_equal(tensors["seen"], adata.X.toarray()[:, [30, 2, 17, 9, 5]].any(0))
    np.testing.assert_array_equal(tensors["inverse_dispersion"], adata.uns["began"]["inverse_dispersion"])
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


def with_gaps(adata):
    adata.X[::3, 5] = np.nan
    return adata


QUICK = {
    "began": {"max_epochs": 1, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0},
    "spatial": {"max_epochs": 1, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0, "ring_weights": ()},
    "pmi": {"n_models": 1, "n_hidden": 8, "max_epochs": 1},
    "gain": {"n_models": 1, "n_hidden": 8, "max_epochs": 1},
}
MAKE = {
    "began": scimpute.datasets.toy_counts,
    "spatial": lambda: scimpute.datasets.toy_visium(6, 6, 30),
    "pmi": lambda: with_gaps(scimpute.datasets.toy_bulk(30, 20)),
    "gain": lambda: with_gaps(scimpute.datasets.toy_bulk(30, 20)),
}


def run(method, adata, save, **options):
    key = "spatial_imputed" if method == "spatial" else method
    return key, getattr(scimpute.tl, method)(adata, save=save, **QUICK[method], **options)


FILES = {
    "text": lambda path: path.write_text("three years of work"),
    "empty": lambda path: path.touch(),
    "h5ad": lambda path: scimpute.datasets.toy_counts().write_h5ad(path),
    "pickle": lambda path: torch.save({"x": torch.ones(2)}, path),
    "tensors of others": lambda path: save_file({"x": torch.ones(2)}, path, metadata={"format": "pt"}),
    "json": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "link": lambda path: (path.with_name("theirs").write_text("x"), path.symlink_to("theirs")),
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("method", QUICK)
def test_what_is_no_model_is_left(tmp_path, method, what, refused):
    path = tmp_path / "model.safetensors"
    FILES[what](path)
    assert not is_model(path)
    before = {file: (file.is_symlink(), file.read_bytes()) for file in tmp_path.iterdir()}
    message = "save: '.*' exists and is not a model of scimpute; choose another name or delete it"
    refused(MAKE[method](), lambda adata: run(method, adata, path), FileExistsError, message)
    assert {file: (file.is_symlink(), file.read_bytes()) for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("way", ["itself", "link", "relative"])
def test_the_file_that_backs_the_object_is_left(tmp_path, monkeypatch, way, refused):
    path = tmp_path / "data.h5ad"
    scimpute.datasets.toy_counts().write_h5ad(path)
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    before = path.read_bytes()
    backed = ad.read_h5ad(path, backed="r")
    save = {"itself": path, "link": tmp_path / "link", "relative": "./data.h5ad"}[way]
    with pytest.warns(UserWarning, match="the result is in memory only"):
        refused(backed, lambda adata: run("began", adata, save), FileExistsError, "save: '.*' is the file that backs adata")
    backed.file.close()
    assert path.read_bytes() == before


def test_models_are_replaced_and_links_followed(tmp_path):
    path, link = tmp_path / "model.safetensors", tmp_path / "link"
    link.symlink_to(path)
    for method in ("pmi", "gain"):
        run(method, MAKE[method](), link)
        assert link.is_symlink()
        assert is_model(path)
        assert load_metadata(path)["method"] == method
    # Also one that is damaged, or of a later version.
    path.write_bytes(path.read_bytes()[:-10])
    run("pmi", MAKE["pmi"](), path)
    tensors, metadata = load_model(path)
    save_file(tensors, path, metadata={name: json.dumps(value) for name, value in {**metadata, "format": "99"}.items()})
    run("pmi", MAKE["pmi"](), path)
    assert load_metadata(path)["method"] == "pmi"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "model.safetensors"]


def full(tensors, path, metadata):
    path.write_bytes(b"half")
    raise SafetensorError("IoError(No space left on device)")


def occupied(tensors, path, metadata):
    """Somebody else writes there while the training is on."""
    (path.parent / "model.safetensors").write_text("theirs")
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize(("fault", "message"), [(full, "No space left"), (occupied, "exists and is not a model of scimpute")])
@pytest.mark.parametrize("method", QUICK)
def test_a_model_that_cannot_be_saved_costs_no_result(tmp_path, monkeypatch, method, fault, message, copy):
    expected = MAKE[method]()
    key, _ = run(method, expected, None)
    monkeypatch.setattr("scimpute._save.save_file", fault)
    adata = MAKE[method]()
    with pytest.warns(
        _check.NotSavedWarning, match=f"the result is in the object, but its model could not be saved: .*{message}"
    ) as caught:
        _, done = run(method, adata, tmp_path / "model.safetensors", copy=copy)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal((done if copy else adata).layers[key], expected.layers[key])
    assert (key in adata.layers) is not copy
    left = [file.name for file in tmp_path.iterdir()]
    assert left == ([] if fault is full else ["model.safetensors"])


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_result_is_not_lost_where_warnings_are_errors(tmp_path, monkeypatch):
    """The two warnings that come after the work: of a model that cannot be saved, and of a training that went wrong."""
    monkeypatch.setattr("scimpute._save.save_file", full)
    monkeypatch.setattr("scimpute._counts.began.FLAT", np.inf)
    said: list[str] = []
    monkeypatch.setattr("scanpy.logging.error", said.append)
    done = scimpute.tl.began(MAKE["began"](), save=tmp_path / "model.safetensors", copy=True, **QUICK["began"])
    assert "began" in done.layers
    profile, model = said
    assert "every cell the same profile" in profile
    assert "No space left" in model


def test_a_closed_log_makes_no_failure_of_a_result(monkeypatch):
    def closed(message):
        if "written by" in message:
            raise ValueError("I/O operation on closed file")

    monkeypatch.setattr("scimpute._anndata.write.logg.info", closed)
    adata = MAKE["began"]()
    run("began", adata, None)
    assert "began" in adata.layers
