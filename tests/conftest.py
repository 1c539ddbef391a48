"""What every test runs in, and the objects and helpers that several tests share.

Helpers are fixtures that return a function: with ``--import-mode=importlib`` a test module imports no other.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Read when OpenMP is loaded, so before any of the imports below: on a machine whose cores are taken (by another worker of
# this very suite) two threads that wait for each other are many times slower than one. numba has a number of its own, which
# its first parallel function (in sc.pp.normalize_total) gives to the OpenMP that torch uses too; a forked child then hangs.
os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
if "numba" in sys.modules:  # a plugin of pytest, which scanpy 1.12 brings along, has loaded it already
    sys.modules["numba"].config.reload_config()

import anndata as ad
import hypothesis
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from matplotlib import pyplot as plt

from scimpute import _bulk, _counts, _device, datasets

mpl.use("Agg")
torch.set_num_threads(1)
# No database: tests write nothing outside tmp_path. No deadline: the machine is shared.
hypothesis.settings.register_profile("scimpute", database=None, deadline=None, max_examples=50)
hypothesis.settings.load_profile("scimpute")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the package downloads; a connection to another machine fails the test."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1", "localhost"):
            return connect(self, address)
        raise RuntimeError(f"a test tried to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    """A test starts without the figures of the tests before it."""
    yield
    plt.close("all")


@pytest.fixture
def adata() -> ad.AnnData:
    """60 cells x 40 genes of rank 3, 2 batches, 3 types, CSR counts; with something in every slot."""
    adata = datasets.toy_counts()
    rng = np.random.default_rng(1)
    adata.raw = adata.copy()
    adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.var["marked"] = np.arange(adata.n_vars) % 4 == 0
    adata.obsm["X_pca"] = rng.normal(size=(adata.n_obs, 3))
    adata.obsp["distances"] = sp.random(adata.n_obs, adata.n_obs, 0.1, format="csr", random_state=0)
    adata.uns["palette"] = {"colours": np.array(["red", "blue"]), "nested": {"value": 1.5}}
    return adata


def _digest(value: Any) -> str:
    """Hash of the bytes, types and shapes of a value."""
    if hasattr(value, "to_memory"):  # backed sparse
        value = value.to_memory()
    if hasattr(value, "compute"):
        value = value.compute()
    if sp.issparse(value):
        # Format, index types and the order of the entries count too; that AnnData makes it a class of its own in a view does not.
        parts = [value.data, value.indices, value.indptr] if hasattr(value, "indptr") else [value.tocoo().data]
        return _joined(value.format, isinstance(value, sp.sparray), value.shape, *map(_digest, parts))
    if isinstance(value, pd.DataFrame):
        columns = [_digest(value[name]) for name in value.columns]
        return _joined("frame", _digest(value.index), list(value.columns), *columns)
    if isinstance(value, pd.Series | pd.Index):
        if isinstance(value.dtype, pd.CategoricalDtype):
            values = pd.Categorical(value)
            return _joined("categorical", _digest(values.categories), values.ordered, _digest(values.codes))
        return _joined(value.dtype, _digest(np.asarray(value, dtype=object)))
    if isinstance(value, Mapping):
        return _joined("mapping", *(_joined(name, _digest(value[name])) for name in sorted(value)))
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value[...] if value.shape else value)
        content = repr(array.tolist()) if array.dtype == object else hashlib.sha256(array.tobytes()).hexdigest()
        return _joined(array.dtype.str, array.shape, content)
    return _joined(type(value).__name__, repr(value))


def _joined(*parts: Any) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def _fingerprint(adata: Any) -> dict[str, str]:
    if not isinstance(adata, ad.AnnData):
        return {"value": _digest(adata)}
    found = {"X": _digest(adata.X), "obs": _digest(adata.obs), "var": _digest(adata.var)}
    for slot in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
        entries = getattr(adata, slot)
        # anndata 0.13 lists X among the layers, as None.
        found |= {f"{slot}/{name}": _digest(entries[name]) for name in list(entries) if name is not None}
    if adata.raw is not None:
        found |= {"raw/X": _digest(adata.raw.X), "raw/var": _digest(adata.raw.var)}
    return found


@pytest.fixture
def fingerprint() -> Callable[[Any], dict[str, str]]:
    """A function that hashes every part of an object, by its name: ``{"X": ..., "layers/rate": ..., "uns/palette": ...}``."""
    return _fingerprint


@pytest.fixture
def edited() -> Callable[..., Any]:
    """``edited(adata, edit)``: what ``edit(adata)`` returned, or else the object it has changed; for tables of faults, None is no edit."""

    def change(adata: ad.AnnData, edit: Callable[[ad.AnnData], Any] | None) -> Any:
        other = None if edit is None else edit(adata)
        return adata if other is None else other

    return change


@pytest.fixture
def replace_everywhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Any], None]:
    """``replace_everywhere(function, other)``: in every module of the package that has imported the function, by whatever name."""

    def replace(function: Any, other: Any) -> None:
        places = [
            (module, name)
            for module in [module for name, module in sys.modules.items() if name.split(".")[0] == "scimpute"]
            for name, value in vars(module).items()
            if value is function
        ]
        assert places, f"no module of the package has {function}"
        for module, name in places:
            monkeypatch.setattr(module, name, other)

    return replace


@pytest.fixture
def refused(fingerprint: Callable[[Any], dict[str, str]], replace_everywhere: Callable[[Any, Any], None]) -> Callable[..., None]:
    """``refused(adata, call, error, message)``: the call raises this, before any training, and leaves the object as it was."""

    def check(adata: Any, call: Callable[[Any], Any], error: type[Exception], message: str) -> None:
        for training in (_counts.run.run, _bulk.train.train):
            replace_everywhere(training, lambda *_, **__: pytest.fail("training had begun"))
        before = fingerprint(adata)
        with pytest.raises(error, match=message) as caught:
            call(adata)
        assert caught.type is error
        assert fingerprint(adata) == before

    return check


@pytest.fixture
def states() -> Callable[[], tuple[Any, ...]]:
    """A function that gives all global state a run might change: generators, gradients, threads, runs not ended, dtype."""

    def look() -> tuple[Any, ...]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
        numbers = torch.get_rng_state().numpy().tobytes()
        return (
            random.getstate(),
            name,
            keys.tobytes(),
            *rest,
            numbers,
            *modes,
            torch.get_num_threads(),
            _device._threads.runs,
            torch.get_default_dtype(),
            np.geterr(),
        )

    return look


@pytest.fixture
def greedy_scanpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """scanpy whose every function leaves torch with two threads more, as numba does at its first parallel function."""

    def greedy(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*positional: Any, **arguments: Any) -> Any:
            try:
                return function(*positional, **arguments)
            finally:
                torch.set_num_threads(torch.get_num_threads() + 2)

        return call

    for module in (sc.pp, sc.tl, sc.metrics):
        for name in ("highly_variable_genes", "pca", "neighbors", "leiden", "umap", "rank_genes_groups", "morans_i"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, greedy(getattr(module, name)))


@pytest.fixture
def other_scanpy(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which scanpy has other defaults, as its presets may set them, and other names for what it writes."""
    others: dict[str, dict[str, Any]] = {
        "pp.highly_variable_genes": {"flavor": "cell_ranger"},
        "pp.pca": {"svd_solver": "randomized", "zero_center": False},
        "pp.neighbors": {"method": "gauss", "metric": "cosine"},
        "tl.leiden": {"flavor": "leidenalg", "n_iterations": -1, "key_added": "groups"},
        "tl.umap": {"min_dist": 0.1, "key_added": "umap", "init_pos": "random"},
        "tl.rank_genes_groups": {"method": "wilcoxon", "key_added": "markers", "mask_var": "highly_variable"},
    }

    def change() -> None:
        for name, options in others.items():
            module, _, function = name.partition(".")
            original = getattr(getattr(sc, module), function)
            monkeypatch.setattr(f"scanpy.{name}", lambda *a, _f=original, _o=options, **given: _f(*a, **_o | given))

    return change


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """``torch.set_default_dtype``, undone after the test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)
