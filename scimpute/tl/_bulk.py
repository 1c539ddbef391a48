"""The shell of `tl.pmi` and `tl.gain`: check, read, train, fill, write."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from .. import _check, _device, _progress, _random
from .._anndata import keys
from .._anndata.covariates import Covariates, read_covariates
from .._anndata.expression import nonempty_genes, read_values, warn_if_not_logged, warn_if_nothing_missing, warn_of_empty_samples
from .._anndata.hints import warn_of_genes_in_rows
from .._anndata.memory import bytes_of_copy
from .._anndata.write import check_saveable, check_target, write
from .._bulk.fitted import Fitted
from .._bulk.settings import BulkSettings, checked_settings
from .._bulk.table import BulkTable
from .._bulk.train import train
from .._save import model_target, save_model
from .._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

MIN_SAMPLES = 10


@dataclass(frozen=True)
class Expression:
    """Expression and covariates of an object.

    Attributes
    ----------
    values
        Expression of all genes, ``(n, g)``, NaN where missing.
    kept
        Places of the filled genes.
    left_out
        True for genes that are missing in too many samples, ``(g,)``.
    """

    values: np.ndarray
    kept: np.ndarray
    left_out: np.ndarray
    covariates: Covariates

    @property
    def table(self) -> BulkTable:
        """The filled genes, with the covariates."""
        levels = tuple(map(len, self.covariates.levels.values()))
        return BulkTable(self.values[:, self.kept], self.covariates.codes, levels, self.covariates.numbers)


def impute(adata: AnnData, method: str, *, save: Any, copy: bool, progress: bool | None, **parameters: Any) -> AnnData | None:
    """Impute bulk expression: all of `tl.pmi` and `tl.gain` but signature and docstring. ``parameters`` are their other arguments."""
    start = time.perf_counter()
    key = parameters["key_added"]
    check_target(adata, method, key, layer=parameters["layer"], copy=copy)
    settings = checked_settings(method, parameters)
    _check.option("missing", parameters["missing"], ("nan", "zero"))
    _check.option("empty_genes", parameters["empty_genes"], ("error", "nan"))
    max_missing = _check.number("max_missing", parameters["max_missing"], 0, 1)
    check_saveable(adata, save)
    path = model_target(save)
    device, rng, show = _device.resolve(parameters["device"]), _random.generator(parameters["random_state"]), _progress.show_bar(progress)
    data = _read(adata, method, parameters, max_missing, copy=copy, saved=path is not None)
    table = data.table
    title = f"tl.{method}: {adata.n_obs:,} samples x {len(data.kept):,} genes, {settings.n_models} networks, {device}"
    with _device.session(device), _progress.Progress(title, show=show) as bar:
        fitted = train(table, settings, device, rng, bar)
        filled, spread = fitted.predict(table, device, np.arange(adata.n_obs) if settings.linear else None)

    params = _recorded(parameters, settings, fitted.record.pop("max_epochs"), str(device))
    genes = list(adata.var_names[data.kept].astype(str))
    uns = {
        "params": params,
        **fitted.record,
        "history": pd.DataFrame(fitted.record["history"]),
        "r2": pd.DataFrame({"r2": fitted.r2}, index=genes),
        "calibration": fitted.calibration,
        "version": __version__,
        "seconds": time.perf_counter() - start,
        **embeddings(fitted, data.covariates),
    }
    if data.left_out.any():
        uns["left_out"] = list(adata.var_names[data.left_out].astype(str))
        logg.info(
            f"{data.left_out.sum()} genes are missing in more than {max_missing:.0%} of the samples and are not filled: "
            f"{_check.listing(uns['left_out'], 5)}"
        )
    if "chosen" in uns:
        uns["chosen"] = {**uns["chosen"], "candidates": pd.DataFrame(uns["chosen"]["candidates"])}
    saver = None if path is None else _saver(path, method, fitted, genes, params, settings, data.covariates)
    slots = {"layers": as_layers(key, filled, spread, data.kept, data.values)}
    return write(adata, key, method, slots, {key: uns}, copy=copy, save=saver)


def _read(adata: AnnData, method: str, parameters: dict[str, Any], max_missing: float, *, copy: bool, saved: bool) -> Expression:
    """Read expression and covariates. All refusals and warnings that need no training come here."""
    if adata.n_obs < MIN_SAMPLES:
        raise ValueError(f"tl.{method} needs at least {MIN_SAMPLES} samples, got {adata.n_obs}")
    needed = 8 * 4 * adata.n_obs * adata.n_vars + bytes_of_copy(adata, copy=copy)
    _check.memory(needed, f"{'pass copy=False, or ' if copy else ''}impute fewer genes, e.g. adata[:, genes].copy()")
    warn_of_genes_in_rows(adata)
    values = read_values(adata, parameters["layer"], parameters["mask_layer"], parameters["missing"])
    covariates = read_covariates(adata, parameters["categorical_covariates"], parameters["continuous_covariates"])
    left_out = np.isnan(values).mean(axis=0) > max_missing
    kept = nonempty_genes(adata, values, left_out, parameters["empty_genes"])
    known = values[:, kept]
    warn_if_not_logged(known)
    warn_of_empty_samples(known, adata)
    warn_if_nothing_missing(known, saved=saved, n_others=adata.n_vars - len(kept))
    return Expression(values, kept, left_out, covariates)


def _recorded(parameters: dict[str, Any], settings: BulkSettings, max_epochs: int, device: str) -> dict[str, Any]:
    """Parameters as ``uns`` records them, with values in place of ``"auto"``."""
    params = {name: value for name, value in parameters.items() if value is not None and name != "key_added"}
    params |= {
        "layer": keys.layer_in_params(parameters["layer"]),
        "random_state": _random.describe(parameters["random_state"]),
        "device": device,
    }
    params |= {name: value for name, value in asdict(settings).items() if name in parameters} | {"max_epochs": max_epochs}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}


def _saver(
    path: Path, method: str, fitted: Fitted, genes: list[str], params: dict[str, Any], settings: BulkSettings, covariates: Covariates
) -> Callable[[], None]:
    """A function that writes the model file."""
    tensors, numbers = fitted.state()
    metadata = {
        "method": method,
        "version": __version__,
        "genes": genes,
        "params": params,
        "settings": asdict(settings),
        "covariates": covariates.describe(),
        "numbers": numbers,
    }
    return partial(save_model, path, tensors, metadata)


def embeddings(fitted: Fitted, covariates: Covariates) -> dict[str, Any]:
    """Entry of ``uns`` with the embeddings of the categorical covariates; empty without any."""
    if not covariates.levels:
        return {}
    return {
        "embeddings": {
            column: pd.DataFrame(where, index=levels, columns=[f"dim{i + 1}" for i in range(where.shape[1])])
            for (column, levels), where in zip(covariates.levels.items(), fitted.embeddings(), strict=True)
        }
    }


def as_layers(key: str, filled: np.ndarray, spread: np.ndarray, kept: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    """The layers. Genes that were left out keep their observed values and NaN."""
    if len(kept) == values.shape[1]:
        return {key: filled, keys.sd(key): spread}
    layers = {key: values.copy(), keys.sd(key): np.where(np.isnan(values), values, 0)}
    layers[key][:, kept], layers[keys.sd(key)][:, kept] = filled, spread
    return layers
