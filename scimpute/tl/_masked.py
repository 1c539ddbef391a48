"""The body that `tl.pmi` and `tl.gain` share: check, read, train, fill, write."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _adata, _annotations, _bulk, _check, _device, _keys, _progress, _random
from .._linear import Table
from .._save import save_model
from .._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from ._apply import Options

MIN_SAMPLES = 10
_LOGGED = 50.0
"""Largest value that is plausible for log expression."""

# n_layers, n_hidden, dropout, learning_rate (Vinas 2021, supplement), by method and mode.
_PUBLISHED = {
    ("pmi", "inplace"): (2, 1366, 0.0, 1e-4),
    ("pmi", "inductive"): (1, 3072, 0.2, 1e-4),
    ("gain", "inplace"): (3, 296, 0.2, 1e-3),
    ("gain", "inductive"): (4, 1902, 0.2, 1e-3),
}


def impute(adata: AnnData, method: str, *, save: Any, copy: bool, progress: bool | None, **asked: Any) -> AnnData | None:
    """Everything but the docstring of `tl.pmi` and `tl.gain`."""
    start = time.perf_counter()
    key = asked["key_added"]
    _adata.check_target(adata, method, key, layer=asked["layer"], copy=copy)
    settings = _settings(method, asked)
    _check.option("missing", asked["missing"], ("nan", "zero"))
    _check.option("empty_genes", asked["empty_genes"], ("error", "nan"))
    path = _adata.model_file(adata, save)
    device = _device.resolve(asked["device"])
    rng = _random.generator(asked["random_state"])
    shown = _progress.shown(progress)

    if adata.n_obs < MIN_SAMPLES:
        raise ValueError(f"tl.{method} needs at least {MIN_SAMPLES} samples, got {adata.n_obs}")
    _check.memory(8 * 4 * adata.n_obs * adata.n_vars, "impute fewer genes, e.g. adata[:, genes].copy()")
    values = read_values(adata, asked["layer"], asked["mask_layer"], asked["missing"])
    covariates = _annotations.read_covariates(adata, asked["categorical_covariates"], asked["continuous_covariates"])
    kept = _nonempty_genes(adata, values, asked["empty_genes"])
    _warn_of_values(values, adata)
    table = Table(values[:, kept], covariates.codes, tuple(map(len, covariates.levels.values())), covariates.numbers)

    what = f"tl.{method}: {adata.n_obs:,} samples x {len(kept):,} genes, {settings.n_models} networks, {device}"
    with _device.session(device), _progress.Progress(what, show=shown) as bar:
        fitted = _bulk.train(table, settings, device, rng, bar)
        own = np.arange(adata.n_obs) if settings.linear else None
        filled, spread = fitted.predict(table, device, own)

    params = {name: value for name, value in asked.items() if value is not None and name not in ("key_added", "random_state", "device")}
    params |= {name: list(value) for name, value in params.items() if isinstance(value, tuple)}
    params |= {"layer": _keys.recorded(asked["layer"]), "random_state": _random.describe(asked["random_state"]), "device": str(device)}
    used = {name: value for name, value in asdict(settings).items() if name in asked} | {"max_epochs": fitted.record.pop("max_epochs")}
    params |= {name: list(value) if isinstance(value, tuple) else value for name, value in used.items()}
    genes = adata.var_names[kept].astype(str)
    layers = spread_out(key, filled, spread, kept, adata.n_vars)
    if path is not None:
        tensors, numbers = fitted.state()
        metadata = {"method": method, "version": __version__, "genes": list(genes), "params": params, "settings": asdict(settings)}
        save_model(path, tensors, {**metadata, "covariates": covariates.describe(), "numbers": numbers})
    uns = {
        "params": params,
        **fitted.record,
        "history": pd.DataFrame(fitted.record["history"]),
        "r2": pd.DataFrame({"r2": fitted.r2}, index=genes),
        "calibration": fitted.calibration,
        "version": __version__,
        "seconds": time.perf_counter() - start,
    }
    if "chosen" in uns:
        uns["chosen"] = {**uns["chosen"], "candidates": pd.DataFrame(uns["chosen"]["candidates"])}
    return _adata.write(adata, key, method, layers=layers, uns=uns, copy=copy)


def spread_out(key: str, filled: np.ndarray, spread: np.ndarray, kept: np.ndarray, n_vars: int) -> dict[str, np.ndarray]:
    """The layers; NaN in genes nothing is known of."""
    layers = {}
    for name, part in ((key, filled), (_keys.sd(key), spread)):
        whole = part
        if len(kept) < n_vars:
            whole = np.full((len(part), n_vars), np.nan, dtype=np.float32)
            whole[:, kept] = part
        layers[name] = whole
    return layers


def read_values(adata: AnnData, layer: str | None, mask_layer: str | None, missing: str) -> np.ndarray:
    """Expression with NaN where it is missing: NaN itself, False in ``mask_layer``, or zero where asked for."""
    values = _adata.read_with_gaps(adata, layer)
    if missing == "zero":
        values[values == 0] = np.nan
    if mask_layer is not None:
        mask = _adata.read_mask(adata, mask_layer)
        values[~mask] = np.nan
    return values


def _nonempty_genes(adata: AnnData, values: np.ndarray, empty_genes: str) -> np.ndarray:
    empty = np.flatnonzero(np.isnan(values).all(axis=0))
    if empty.size == adata.n_vars:
        raise ValueError("all values are missing; there is nothing to learn from")
    if empty.size and empty_genes == "error":
        raise ValueError(
            f"{empty.size} genes have no observed value: {_check.listing(adata.var_names[empty], 5)}; remove them, or pass "
            "empty_genes='nan' to leave them missing. To fill genes a panel lacks, train on a reference that has them and use tl.apply"
        )
    return np.setdiff1d(np.arange(adata.n_vars), empty)


def _warn_of_values(values: np.ndarray, adata: AnnData) -> None:
    top = float(np.nanmax(values))
    if top > _LOGGED:
        _check.warn(f"values up to {top:g} do not look like log expression, which is expected here; call scanpy.pp.log1p(adata) first")
    blank = np.flatnonzero(np.isnan(values).all(axis=1))
    if blank.size:
        _check.warn(
            f"{blank.size} samples have no observed value (first: {adata.obs_names[blank[0]]!r}); "
            "they are filled from their covariates alone"
        )


def _settings(method: str, asked: dict[str, Any]) -> _bulk.BulkSettings:
    """Check every number of the training; "auto" becomes the variant's own value."""
    mode = _check.option("mode", asked["mode"], ("inplace", "inductive"))
    variant = _check.option("variant", asked["variant"], ("default", "published"))
    published = variant == "published"
    layers, hidden, dropout, rate = _PUBLISHED[method, mode] if published else (2, 256, 0.2, 1e-3)

    def whole(name: str, auto: Any, low: int = 1) -> Any:
        return auto if _check.auto(name, asked[name]) else _check.integer(name, asked[name], low)

    def real(name: str, auto: float, **bounds: Any) -> float:
        return auto if _check.auto(name, asked[name]) else _check.number(name, asked[name], **bounds)

    return _bulk.BulkSettings(
        method=method,
        mode=mode,
        linear=not published,
        n_models=whole("n_models", 1 if published else 2),
        n_layers=whole("n_layers", layers),
        n_hidden=whole("n_hidden", hidden),
        dropout=real("dropout", dropout, low=0, high=1, open_high=True),
        mask_rate=_mask_rate(asked["mask_rate"], (0.5, 0.9) if published else (0.3, 0.9)),
        max_epochs=whole("max_epochs", 1000 if published else None),
        batch_size=_check.integer("batch_size", asked["batch_size"], 2),
        learning_rate=real("learning_rate", rate, low=0, open_low=True),
        weight_decay=0.0 if published else 1.0,
        one_cycle=not published,
        supervised_weight=_check.number("supervised_weight", asked.get("supervised_weight", 1.0), 0),
        hint_rate=_check.number("hint_rate", asked.get("hint_rate", 0.5), 0, 1, open_high=True),
    )


def _mask_rate(asked: Any, auto: tuple[float, float]) -> tuple[float, float]:
    if isinstance(asked, str) and asked == "auto":
        return auto
    if not isinstance(asked, tuple | list) or len(asked) != 2:
        raise ValueError(f"mask_rate must be a pair (low, high) of fractions, or 'auto'; got {asked!r}")
    low, high = (_check.number("mask_rate", value, 0, 1, open_low=True, open_high=True) for value in asked)
    if low > high:
        raise ValueError(f"mask_rate must be (low, high) with low <= high, got {asked!r}")
    return low, high


def apply_saved(adata: AnnData, tensors: Mapping[str, Any], metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """What `tl.apply` does with a model of `tl.pmi` or `tl.gain`: genes of the query's that the model knows say what the others are."""
    genes = pd.Index(metadata["genes"])
    places = adata.var_names.astype(str).get_indexer(genes)
    found = places >= 0
    if not found.any():
        raise ValueError(
            f"none of the {len(genes)} genes of the model is in adata.var_names: the model has {_check.listing(genes, 5)}, "
            f"adata {_check.listing(adata.var_names, 5)}"
        )
    params = dict(metadata["params"])
    _check.memory(8 * 4 * adata.n_obs * len(genes), "apply it to fewer samples at a time")
    own_mask = params.get("mask_layer")
    if own_mask is not None and own_mask not in adata.layers:
        _check.warn(f"the model was trained with mask_layer={own_mask!r}, which adata.layers does not have; only NaN is missing here")
        own_mask = None
        del params["mask_layer"]
    read = read_values(adata, options.layer, own_mask, params["missing"])
    values = np.full((adata.n_obs, len(genes)), np.nan, dtype=np.float32)
    values[:, found] = read[:, places[found]]
    _warn_of_values(values, adata)
    covariates = _annotations.read_known_covariates(adata, metadata["covariates"], options.unseen)
    levels = tuple(map(len, covariates.levels.values()))
    stored = metadata["settings"]
    settings = _bulk.BulkSettings(**{**stored, "mask_rate": tuple(stored["mask_rate"])})
    fitted = _bulk.Fitted.load(tensors, metadata["numbers"], settings, options.device)
    filled, spread = fitted.predict(Table(values, covariates.codes, levels, covariates.numbers), options.device)
    results = {options.key: filled, _keys.sd(options.key): spread}
    written: dict[str, Any] = {"params": params, "uns": {"covariates": metadata["covariates"]}}
    if found.all() and len(genes) == adata.n_vars:
        order = genes.get_indexer(adata.var_names.astype(str))
        return written | {"layers": {name: part[:, order] for name, part in results.items()}}
    return written | {"obsm": {name: pd.DataFrame(part, index=adata.obs_names, columns=genes) for name, part in results.items()}}
