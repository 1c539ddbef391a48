"""Arrays of other libraries in X and layers, which anndata takes since 0.13: read where numpy can, refused where on a GPU."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import scimpute
from scimpute._anndata.matrix import as_numpy

QUICK: dict[str, Any] = {"max_epochs": 1, "n_repeats": 1, "n_context": 2, "penalty": 1.0, "width": 4}


@pytest.fixture(autouse=True)
def _as_in_anndata_013(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers take such arrays, which the older anndata looks at each time they are read."""
    monkeypatch.setattr("anndata._core.aligned_mapping.coerce_array", lambda value, **_: value, raising=False)


class Foreign:
    """As little as the array API asks for: on some device, of which numpy reads the CPU's."""

    def __init__(self, values: np.ndarray, device: int = 1) -> None:
        self.values, self.device = values, device
        self.shape, self.dtype = values.shape, values.dtype

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: Any) -> Any:
        assert self.device == 1, "the memory of a GPU was read"
        return self.values.__dlpack__(**options)

    def __getitem__(self, rows: Any) -> Foreign:
        return Foreign(self.values[rows], self.device)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        if self.device != 1:
            raise TypeError("implicit conversion is not allowed")
        return self.values


def of(library: str, device: int) -> Foreign:
    kind = type("Array", (Foreign,), {"__module__": f"{library}.core"})
    return kind(np.ones((60, 40), np.float32), device)


MADE = {
    "torch": torch.from_numpy,
    "torch with gradient": lambda values: torch.from_numpy(values).requires_grad_(),
    "torch of whole numbers": lambda values: torch.from_numpy(values.astype(np.int64)),
    "torch transposed": lambda values: torch.from_numpy(np.ascontiguousarray(values.T)).T,
    "array API": Foreign,
}


def inside(adata: ad.AnnData, made: Any, layer: str | None) -> ad.AnnData:
    """With a foreign array, past the checks of the older anndata."""
    if layer is None and hasattr(adata, "_X"):
        adata._X = made
    else:
        adata._layers[layer] = made  # since 0.13 X is the layer None
    return adata


@pytest.mark.parametrize("layer", [None, "other"])
@pytest.mark.parametrize("kind", MADE)
def test_arrays_on_the_cpu_are_read(kind, layer):
    expected = scimpute.datasets.toy_counts()
    made = MADE[kind](expected.X.toarray())
    adata = inside(scimpute.datasets.toy_counts(), made, layer)
    for each in (expected, adata):
        scimpute.tl.began(each, layer=layer if each is adata else None, **QUICK)
    np.testing.assert_array_equal(adata.layers["began"], expected.layers["began"])
    assert (adata._X if layer is None and hasattr(adata, "_X") else adata._layers[layer]) is made
    scimpute.pp.thin(adata, layer=layer)
    scimpute.pp.hide(adata, layer=layer)
    scimpute.metrics.heldout(adata, "rate")


def test_memory_is_shared_and_not_written():
    values = torch.arange(12.0).reshape(3, 4)
    assert np.shares_memory(as_numpy(values, "adata.X"), values.numpy())


def test_other_things_pass_as_they_are():
    for value in (np.ones(3), scimpute.datasets.toy_counts().X, None, "text"):
        assert as_numpy(value, "adata.X") is value


@pytest.mark.parametrize(
    ("library", "device", "call"),
    [
        ("torch", 2, r"adata.X = adata.X.cpu\(\).numpy\(\)"),
        ("torch", 8, r"adata.X.cpu\(\).numpy\(\)"),
        ("cupy", 2, r"adata.X = adata.X.get\(\)"),
        ("cupyx", 2, r"adata.X = adata.X.get\(\)"),
        ("jaxlib", 2, r"adata.X = jax.device_get\(adata.X\)"),
        ("jax", 10, r"jax.device_get\(adata.X\)"),
        ("mine", 2, "a numpy array of it"),
    ],
)
@pytest.mark.parametrize("layer", [None, "other"])
def test_arrays_on_a_gpu_are_refused_with_the_call(library, device, call, layer, monkeypatch):
    adata = inside(scimpute.datasets.toy_counts(), of(library, device), layer)
    monkeypatch.setattr("scimpute.tl._run.run", lambda *_, **__: pytest.fail("training had begun"))
    call = call if layer is None else call.replace("adata.X", r"adata.layers\['other'\]")
    for function in (scimpute.tl.began, scimpute.pp.thin, scimpute.pp.hide, scimpute.tl.pmi):
        with pytest.raises(TypeError, match=rf"is on a GPU \({library}.Array\); bring it to the CPU first, e.g. .*{call}"):
            function(adata, layer=layer)


def test_counts_beside_an_array_on_a_gpu_are_named():
    adata = inside(scimpute.datasets.toy_counts(), of("cupy", 2), "gpu")
    adata.layers["counts"] = adata.X
    adata.X = adata.X * 0.5
    with pytest.raises(ValueError, match="counts are in: layer='counts'"):
        scimpute.tl.began(adata)


@pytest.mark.parametrize("made", [torch.ones(60, 40).to_sparse(), torch.ones(60, 40, dtype=torch.bfloat16)], ids=["sparse", "bfloat16"])
def test_what_numpy_cannot_read_is_said(made):
    adata = inside(scimpute.datasets.toy_counts(), made, "other")
    with pytest.raises(TypeError, match=r"adata.layers\['other'\] is a torch.Tensor that numpy cannot read .*make it a numpy array"):
        scimpute.tl.began(adata, layer="other")
