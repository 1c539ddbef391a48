"""The user's default device and default dtype of torch: no number depends on them, and they are there again afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from safetensors import safe_open

from scimpute import _cli, _device, datasets, metrics, pl, pp, tl

QUICK: dict[str, Any] = {"max_epochs": 2, "n_repeats": 2, "n_context": 5, "penalty": 100.0, "width": 16, "block_size": 16}
BULK: dict[str, Any] = {"n_models": 1, "n_hidden": 16, "max_epochs": 2, "layer": "hidden"}


def bulk() -> ad.AnnData:
    adata = datasets.toy_bulk(40, 30)
    pp.hide(adata, 0.3, of="all")
    return adata


def spots() -> ad.AnnData:
    return datasets.toy_visium(8, 8, 30)


def trained(method: Callable[..., Any], adata: ad.AnnData, folder: Path, **options: Any) -> list[Any]:
    """The object and the content of the model. (A test would not read bfloat16, or a model on another device.)"""
    method(adata, save=folder / "model.safetensors", **options)
    with safe_open(folder / "model.safetensors", "np") as file:
        return [adata, {name: file.get_tensor(name) for name in file.keys()}]  # noqa: SIM118


def applied(method: Callable[..., Any], adata: ad.AnnData, folder: Path, **options: Any) -> ad.AnnData:
    method(adata, save=folder / "model.safetensors", **options)
    tl.apply(adata, folder / "model.safetensors", key_added="applied", layer=options.get("layer"))
    return adata


def imputed(layer: str | None = None) -> ad.AnnData:
    adata = datasets.toy_counts()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    pp.hide(adata)
    pp.thin(adata)
    tl.began(adata, layer=layer, **QUICK)
    return adata


def on_tissue() -> ad.AnnData:
    adata = spots()
    pp.spatial_rings(adata)
    tl.spatial(adata, **QUICK)
    return adata


def with_covariate() -> ad.AnnData:
    adata = bulk()
    tl.pmi(adata, categorical_covariates=["tissue"], **BULK)
    return adata


def pixels(_: Any) -> np.ndarray:
    """The figure that was drawn last."""
    figure = plt.gcf()
    figure.canvas.draw()
    drawn = np.array(figure.canvas.buffer_rgba())
    plt.close("all")
    return drawn


class Encoder(torch.nn.Module):
    """Makes a tensor of its own while it runs."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) + torch.ones(3, dtype=images.dtype)


def by_command(folder: Path) -> ad.AnnData:
    datasets.toy_counts().write_h5ad(folder / "in.h5ad")
    options = [f"--{name.replace('_', '-')}={value:g}" for name, value in QUICK.items()]
    assert _cli.main(["began", str(folder / "in.h5ad"), str(folder / "out.h5ad"), *options]) == 0
    return ad.read_h5ad(folder / "out.h5ad")


CALLS: dict[str, Callable[[Path], Any]] = {
    "tl.began": lambda folder: trained(tl.began, datasets.toy_counts(), folder, **QUICK),
    "tl.began auto": lambda folder: trained(tl.began, datasets.toy_counts(), folder, n_repeats=1, fill="expressed"),
    "tl.began conv": lambda folder: trained(tl.began, datasets.toy_counts(), folder, architecture="conv", **QUICK),
    "tl.began batch": lambda folder: trained(tl.began, datasets.toy_counts(), folder, batch_key="batch", target_batch="average", **QUICK),
    "tl.began log1p": lambda folder: trained(tl.began, datasets.toy_counts(), folder, posterior=False, output="log1p", **QUICK),
    "tl.spatial": lambda folder: trained(tl.spatial, spots(), folder, spatial_weight=0.2, **QUICK),
    "tl.spatial squared": lambda folder: trained(tl.spatial, spots(), folder, likelihood="squared", **QUICK),
    "tl.nmf": lambda _: tl.nmf(spots(), n_factors=5, max_epochs=2, copy=True),
    "tl.pmi": lambda folder: trained(tl.pmi, bulk(), folder, **BULK),
    "tl.pmi inductive": lambda folder: trained(tl.pmi, bulk(), folder, mode="inductive", **BULK),
    "tl.gain": lambda folder: trained(tl.gain, bulk(), folder, **BULK),
    "tl.gain published": lambda folder: trained(tl.gain, bulk(), folder, variant="published", **BULK),
    "tl.apply began": lambda folder: applied(tl.began, datasets.toy_counts(), folder, **QUICK),
    "tl.apply spatial": lambda folder: applied(tl.spatial, spots(), folder, **QUICK),
    "tl.apply pmi": lambda folder: applied(tl.pmi, bulk(), folder, mode="inductive", **BULK),
    "tl.apply gain": lambda folder: applied(tl.gain, bulk(), folder, mode="inductive", **BULK),
    "pp.hide": lambda _: pp.hide(datasets.toy_counts(), copy=True),
    "pp.thin": lambda _: pp.thin(datasets.toy_counts(), copy=True),
    "pp.spatial_rings": lambda _: pp.spatial_rings(spots(), copy=True),
    "pp.tiles": lambda _: [pp.tiles(spots(), copy=True), pp.tiles(spots(), encoder=Encoder(), copy=True)],
    "metrics.agreement": lambda _: metrics.agreement(imputed(), "began", "rate", output="rate"),
    "metrics.cluster_agreement": lambda _: metrics.cluster_agreement(imputed(), "began", "cell_type"),
    "metrics.false_signal": lambda _: metrics.false_signal(datasets.toy_counts(), lambda adata: adata.X, n_splits=1),
    "metrics.gene_trust": lambda _: metrics.gene_trust(imputed(), "began", run=True),
    "metrics.heldout": lambda _: metrics.heldout(imputed("thin_train"), "began"),
    "metrics.recovery": lambda _: metrics.recovery(imputed("hidden"), "began"),
    "metrics.report": lambda folder: metrics.report(imputed(), "began", save=folder / "report.html", n_splits=0, basis="umap"),
    "metrics.spatial_autocorrelation": lambda _: metrics.spatial_autocorrelation(on_tissue(), "spatial_imputed"),
    "pl.clusters": lambda _: pixels(pl.clusters(on_tissue(), "spatial_imputed", "region", show=False)),
    "pl.embeddings": lambda _: pixels(pl.embeddings(with_covariate(), "pmi", show=False)),
    "pl.imputed": lambda _: pixels(pl.imputed(imputed(), "gene1", "began", show=False)),
    "pl.recovery": lambda _: pixels(pl.recovery(imputed("hidden"), "began", show=False)),
    "pl.spatial": lambda _: pixels(pl.spatial(on_tissue(), "gene1", "spatial_imputed", show=False)),
    "pl.training": lambda _: pixels(pl.training(imputed(), "began", show=False)),
    "datasets": lambda _: [datasets.toy_counts(), datasets.toy_visium(), datasets.toy_bulk()],
    "command line": by_command,
}


@pytest.fixture(autouse=True)
def _two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads have a default device of their own."""
    monkeypatch.setattr(_device, "workers", lambda device: 2)


@pytest.fixture
def as_hashes(fingerprint: Callable[[Any], dict[str, str]]) -> Callable[[Any], Any]:
    """A function that hashes a result, apart from the time that it took and the path of its model."""

    def hashes(result: Any) -> Any:
        if isinstance(result, ad.AnnData):
            for entry in result.uns.values():
                if "seconds" in entry:
                    del entry["seconds"]
                    entry["params"].pop("model", None)
            return fingerprint(result)
        if isinstance(result, dict):
            return {name: hashes(value) for name, value in result.items()}
        if isinstance(result, list):
            return [hashes(part) for part in result]
        return fingerprint(result)

    return hashes


@pytest.fixture
def defaults() -> Iterator[Callable[[str, torch.dtype], None]]:
    """A function that sets the default device of this thread and the default dtype. Both are undone after the test."""
    before = torch.get_default_dtype()

    def change(device: str, dtype: torch.dtype) -> None:
        torch.set_default_device(device)
        torch.set_default_dtype(dtype)

    yield change
    torch.set_default_device(None)
    torch.set_default_dtype(before)


def device_of_a_new_tensor() -> str:
    """``"cuda"`` also where there is none."""
    try:
        return torch.empty(0).device.type
    except (AssertionError, RuntimeError):
        return "cuda"


def test_every_public_function_is_called():
    modules = (tl, pp, metrics, pl)
    public = {f"{module.__name__.split('.')[1]}.{name}" for module in modules for name in module.__all__}
    assert {name.split(" ")[0] for name in CALLS} == public | {"datasets", "command"}


@pytest.mark.filterwarnings("ignore:.*was not made from|.*has seen the hidden:UserWarning")
@pytest.mark.parametrize("name", CALLS)
def test_defaults_change_no_number(name, tmp_path, as_hashes, defaults):
    expected = as_hashes(CALLS[name](tmp_path))
    for device, dtype in (("meta", torch.float64), ("cuda", torch.float16)):
        defaults(device, dtype)
        found = as_hashes(CALLS[name](tmp_path))
        assert torch.get_default_dtype() == dtype
        assert device_of_a_new_tensor() == device
        torch.set_default_device(None)
        assert found == expected, f"{device}, {dtype}"


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_defaults_are_restored_after_an_error(device, defaults, monkeypatch):
    defaults(device, torch.float64)

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    for step in ("_counts.fit.fit", "_counts.run.finish"):
        monkeypatch.setattr(f"scimpute.{step}", fail)
        with pytest.raises(ZeroDivisionError):
            tl.began(datasets.toy_counts(), **QUICK)
        monkeypatch.undo()
    with pytest.raises(ValueError, match="rounding"):
        tl.began(datasets.toy_counts(), rounding="up", **QUICK)
    assert torch.get_default_dtype() == torch.float64
    assert device_of_a_new_tensor() == device


def test_a_context_manager_of_the_caller(as_hashes):
    expected = as_hashes(tl.began(datasets.toy_counts(), copy=True, **QUICK))
    for device in ("meta", "cuda"):
        with torch.device(device):
            found = as_hashes(tl.began(datasets.toy_counts(), copy=True, **QUICK))
            assert device_of_a_new_tensor() == device
        assert found == expected


def test_other_threads_keep_their_defaults(as_hashes, defaults):
    """A run in a thread with a default device, beside a thread that makes tensors all the time."""
    expected = as_hashes(tl.began(datasets.toy_counts(), copy=True, **QUICK))
    seen, found, done = set(), [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            tensor = torch.zeros(1)
            seen.add((tensor.dtype, tensor.device.type))

    def run() -> None:
        torch.set_default_device("meta")
        found.append(as_hashes(tl.began(datasets.toy_counts(), copy=True, **QUICK)))
        found.append(device_of_a_new_tensor())

    torch.set_default_dtype(torch.float64)
    watcher, runner = threading.Thread(target=watch), threading.Thread(target=run)
    watcher.start()
    runner.start()
    runner.join(60)
    done.set()
    watcher.join(60)
    assert found == [expected, "meta"]
    assert seen == {(torch.float64, "cpu")}
    assert device_of_a_new_tensor() == "cpu"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_an_encoder_made_under_another_default_dtype(dtype, defaults):
    """Its weights have that precision, and so have its images."""

    def features() -> pd.DataFrame:
        encoder = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 4))
        with torch.no_grad():
            encoder[2].weight.copy_(torch.eye(4, 12))
            encoder[2].bias.zero_()
        return pp.tiles(spots(), encoder=encoder, copy=True).obsm["tiles"]

    expected = features()
    defaults("cpu", dtype)
    found = features()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-3)
