"""The body that `tl.pmi` and `tl.gain` share: check, read, train, fill, write."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg
from scipy.stats import norm

from .. import _check, _device, _progress, _random
from .._anndata import keys
from .._anndata.genes import matched, misnamed
from .._anndata.hints import warn_of_genes_in_rows
from .._anndata.memory import copied
from .._anndata.obs import Covariates, check_columns, read_covariates, read_known_covariates
from .._anndata.read import read_mask, read_with_gaps
from .._anndata.write import check_target, model_file, write
from .._bulk.linear import FEW, Scale, Table
from .._bulk.run import BulkSettings, Fitted, train
from .._save import save_model
from .._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from ._apply import Options

MIN_SAMPLES = 10
ENOUGH = 5
"""Genes that a model and its query have in common at least: of fewer next to nothing can be said."""
_LOGGED = 50.0
"""Largest value that is plausible for log expression."""
_TIMES = 1.25
"""Factor between the values of two cohorts from which they are on other scales: that of natural logs and log2 is 1.44."""
_HIGHEST, _MANY = 0.99, 200
"""Quantile of the values that is compared, and genes from which it can be trusted alone."""
_FAR = 3.0
"""Standard deviations from the mean at which half of the genes of a cohort are not by chance."""
_TELLS = 50
"""Observed values by which another scale is told from chance, at least."""
_LOGS = {"natural logs": 1.0, "log2": float(np.log(2)), "log10": float(np.log(10))}
"""What a natural log is divided by."""
_CLOSE = 0.1

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
    check_target(adata, method, key, layer=asked["layer"], copy=copy)
    settings = _settings(method, asked)
    _check.option("missing", asked["missing"], ("nan", "zero"))
    _check.option("empty_genes", asked["empty_genes"], ("error", "nan"))
    max_missing = _check.number("max_missing", asked["max_missing"], 0, 1)
    path = model_file(adata, save)
    device = _device.resolve(asked["device"])
    rng = _random.generator(asked["random_state"])
    shown = _progress.shown(progress)

    if adata.n_obs < MIN_SAMPLES:
        raise ValueError(f"tl.{method} needs at least {MIN_SAMPLES} samples, got {adata.n_obs}")
    needed = 8 * 4 * adata.n_obs * adata.n_vars + copied(adata, copy=copy)
    _check.memory(needed, f"{'pass copy=False, or ' if copy else ''}impute fewer genes, e.g. adata[:, genes].copy()")
    warn_of_genes_in_rows(adata)
    values = read_values(adata, asked["layer"], asked["mask_layer"], asked["missing"])
    covariates = read_covariates(adata, asked["categorical_covariates"], asked["continuous_covariates"])
    left = np.isnan(values).mean(axis=0) > max_missing
    kept = _nonempty_genes(adata, values, left, asked["empty_genes"])
    known = values[:, kept]
    _warn_of_level(known)
    _warn_of_blanks(known, adata)
    _warn_of_complete(known, saved=path is not None, n_others=adata.n_vars - len(kept))
    table = Table(known, covariates.codes, tuple(map(len, covariates.levels.values())), covariates.numbers)

    what = f"tl.{method}: {adata.n_obs:,} samples x {len(kept):,} genes, {settings.n_models} networks, {device}"
    with _device.session(device), _progress.Progress(what, show=shown) as bar:
        fitted = train(table, settings, device, rng, bar)
        own = np.arange(adata.n_obs) if settings.linear else None
        filled, spread = fitted.predict(table, device, own)

    params = {name: value for name, value in asked.items() if value is not None and name not in ("key_added", "random_state", "device")}
    params |= {name: list(value) for name, value in params.items() if isinstance(value, tuple)}
    params |= {"layer": keys.recorded(asked["layer"]), "random_state": _random.describe(asked["random_state"]), "device": str(device)}
    used = {name: value for name, value in asdict(settings).items() if name in asked} | {"max_epochs": fitted.record.pop("max_epochs")}
    params |= {name: list(value) if isinstance(value, tuple) else value for name, value in used.items()}
    genes = adata.var_names[kept].astype(str)
    layers = spread_out(key, filled, spread, kept, values)
    save_as = None
    if path is not None:
        tensors, numbers = fitted.state()
        metadata = {"method": method, "version": __version__, "genes": list(genes), "params": params, "settings": asdict(settings)}
        save_as = partial(save_model, path, tensors, {**metadata, "covariates": covariates.describe(), "numbers": numbers})
    uns = {
        "params": params,
        **fitted.record,
        "history": pd.DataFrame(fitted.record["history"]),
        "r2": pd.DataFrame({"r2": fitted.r2}, index=list(genes)),
        "calibration": fitted.calibration,
        "version": __version__,
        "seconds": time.perf_counter() - start,
    }
    uns |= _embeddings(fitted, covariates)
    if left.any():
        uns["left_out"] = list(adata.var_names[left].astype(str))
        logg.info(
            f"{left.sum()} genes are missing in more than {max_missing:.0%} of the samples and are left as they are: "
            f"{_check.listing(uns['left_out'], 5)}"
        )
    if "chosen" in uns:
        uns["chosen"] = {**uns["chosen"], "candidates": pd.DataFrame(uns["chosen"]["candidates"])}
    return write(adata, key, method, layers=layers, uns=uns, copy=copy, save=save_as)


def _embeddings(fitted: Fitted, covariates: Covariates) -> dict[str, Any]:
    """What ``uns`` has of the levels of categorical covariates, where there are any."""
    if not covariates.levels:
        return {}
    return {
        "embeddings": {
            column: pd.DataFrame(where, index=levels, columns=[f"dim{i + 1}" for i in range(where.shape[1])])
            for (column, levels), where in zip(covariates.levels.items(), fitted.embeddings(), strict=True)
        }
    }


def spread_out(key: str, filled: np.ndarray, spread: np.ndarray, kept: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    """The layers; genes that were left out have what was observed of them, and NaN elsewhere."""
    if len(kept) == values.shape[1]:
        return {key: filled, keys.sd(key): spread}
    layers = {key: values.copy(), keys.sd(key): np.where(np.isnan(values), values, 0)}
    layers[key][:, kept], layers[keys.sd(key)][:, kept] = filled, spread
    return layers


def read_values(adata: AnnData, layer: str | None, mask_layer: str | None, missing: str) -> np.ndarray:
    """Expression with NaN where it is missing: NaN itself, False in ``mask_layer``, or zero where asked for."""
    values = read_with_gaps(adata, layer)
    if missing == "zero":
        values[values == 0] = np.nan
    if mask_layer is not None:
        mask = read_mask(adata, mask_layer)
        values[~mask] = np.nan
    return values


def _nonempty_genes(adata: AnnData, values: np.ndarray, left: np.ndarray, empty_genes: str) -> np.ndarray:
    """Places of the genes that are filled: not those that are left out, nor those without a value."""
    nothing = np.isnan(values).all(axis=0)
    if nothing.all():
        raise ValueError("all values are missing; there is nothing to learn from")
    if (nothing | left).all():
        least = np.isnan(values).mean(axis=0).min()
        raise ValueError(f"max_missing leaves out all genes: the gene with the fewest gaps is missing in {least:.1%} of the samples")
    empty = np.flatnonzero(nothing & ~left)
    if empty.size and empty_genes == "error":
        raise ValueError(
            f"{empty.size} genes have no observed value: {_check.listing(adata.var_names[empty], 5)}; remove them, or pass "
            "empty_genes='nan' to leave them missing. To fill genes a panel lacks, train on a reference that has them and use tl.apply"
        )
    return np.flatnonzero(~(nothing | left))


def _warn_of_level(values: np.ndarray) -> None:
    top = float(np.fmax.reduce(values, axis=None))
    if top > _LOGGED:
        _check.warn(f"values up to {top:g} do not look like log expression, which is expected here; call scanpy.pp.log1p(adata) first")


def _warn_of_blanks(values: np.ndarray, adata: AnnData) -> None:
    blank = np.flatnonzero(np.isnan(values).all(axis=1))
    if blank.size:
        _check.warn(
            f"{blank.size} samples have no observed value (first: {adata.obs_names[blank[0]]!r}); "
            "they are filled from their covariates alone"
        )


def _warn_of_complete(values: np.ndarray, *, saved: bool, n_others: int = 0) -> None:
    """Say so where nothing is missing; a model for other samples may be trained on that. ``n_others`` genes are left as they are."""
    if np.isnan(values).any():
        return
    zeros = int((values == 0).sum())
    ways = f"; {zeros} values are 0, which missing='zero' takes for missing" if zeros else ""
    which = f" in the {values.shape[1]} genes that are filled, and {n_others} genes are left as they are" if n_others else ""
    message = (
        f"no value is missing{which}: there is nothing to fill, and the result is the input. Missing is NaN, or False in mask_layer{ways}"
    )
    if saved:
        logg.info(message)
    else:
        _check.warn(message)


def _other_scale(values: np.ndarray, scale: Scale) -> str | None:
    """What seems wrong where the values of a query are on another scale than those of the training."""
    lowest = float(np.fmin.reduce(values, axis=None))
    if lowest < 0 <= scale.lowest[0]:
        return f"there are negative values here (min {lowest:g}) and were none in the training: these values look scaled or centred"
    if np.isfinite(values).sum() < _TELLS:
        return None
    some = ~np.isnan(values).all(axis=0)
    mean, known, spread = np.nanmean(values[:, some], axis=0, dtype=np.float64), scale.mean[some], scale.sd[some]
    if np.sqrt(np.square(known).mean()) < spread.mean():
        # Centred genes: a factor could not be told from chance.
        away = float(np.median(np.abs(mean - known) / spread))
        if away > _FAR:
            return f"half of the genes are more than {away:.0f} standard deviations of the training from their mean there"
        return None
    # The highest values are alike in cohorts of other tissues, whose genes are not, however they were chosen. Of few genes both must agree.
    drawn = known[:, None] + spread[:, None] * norm.ppf((np.arange(50) + 0.5) / 50)
    times = float(np.nanquantile(values[:, some], _HIGHEST) / np.quantile(drawn, _HIGHEST))
    means = float(mean @ known / (known @ known)) if len(known) < _MANY else times
    if min(times, means) < _TIMES and max(times, means) > 1 / _TIMES:
        return None
    logs = [(here, there) for here in _LOGS for there in _LOGS if abs(np.log(times * _LOGS[here] / _LOGS[there])) < _CLOSE]
    guess = f", as with {logs[0][0]} here and {logs[0][1]} in the training" if logs else ""
    return f"the highest values are {times:.3g} times those of the same genes in the training{guess}"


def _settings(method: str, asked: dict[str, Any]) -> BulkSettings:
    """Check every number of the training; "auto" becomes the variant's own value."""
    mode = _check.option("mode", asked["mode"], ("inplace", "inductive"))
    variant = _check.option("variant", asked["variant"], ("default", "published"))
    published = variant == "published"
    layers, hidden, dropout, rate = _PUBLISHED[method, mode] if published else (2, 256, 0.2, 1e-3)

    def whole(name: str, auto: Any, low: int = 1) -> Any:
        return auto if _check.auto(name, asked[name]) else _check.integer(name, asked[name], low)

    def real(name: str, auto: float, **bounds: Any) -> float:
        return auto if _check.auto(name, asked[name]) else _check.number(name, asked[name], **bounds)

    return BulkSettings(
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


def _check_genes(adata: AnnData, genes: list[str]) -> None:
    """Refuse where next to no gene is known; say so where there are unknown ones on both sides, or too few to find neighbours by."""
    found, unknown, first = matched(adata, genes)
    lacking = len(genes) - found
    if found < min(ENOUGH, len(genes)):
        raise ValueError(
            f"{found or 'none'} of the {len(genes)} genes of the model is in adata.var_names: the model has {_check.listing(genes, 5)}, "
            f"adata {_check.listing(adata.var_names, 5)}; {min(ENOUGH, len(genes))} are needed at least{misnamed(adata, genes)}"
        )
    few = found < min(FEW, len(genes) // 2)
    if lacking and (unknown or few):
        ignored = f"; {unknown} of the {adata.n_vars} genes of adata are not in the model and are not looked at: {first}" if unknown else ""
        poor = f"; by fewer than {FEW} genes no similar samples can be found, and little is recovered" if few else ""
        _check.warn(
            f"{lacking} of the {len(genes)} genes of the model are not in adata.var_names and are filled from the other "
            f"{found}{poor}{ignored}{misnamed(adata, genes)}"
        )
    elif lacking or unknown:
        logg.info(f"{lacking} of the {len(genes)} genes of the model are filled, {unknown} genes of adata are not looked at")


def apply_saved(adata: AnnData, tensors: Mapping[str, Any], metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """What `tl.apply` does with a model of `tl.pmi` or `tl.gain`: genes of the query's that the model knows say what the others are."""
    fitted = Fitted.read(tensors, metadata, options.device)
    genes = pd.Index(metadata["genes"])
    places = adata.var_names.astype(str).get_indexer(genes)
    found = places >= 0
    warn_of_genes_in_rows(adata)
    _check_genes(adata, metadata["genes"])
    if options.rounding is not None:
        raise ValueError(
            f"rounding={options.rounding!r} is for counts, and a model of tl.{metadata['method']} takes expression; leave it out"
        )
    params = dict(metadata["params"])
    if not (found.all() and len(genes) == adata.n_vars):
        check_columns(adata, genes)
    _check.memory(8 * 4 * adata.n_obs * len(genes) + copied(adata, copy=options.copy), "apply it to fewer samples at a time")
    own_mask = params.get("mask_layer")
    if own_mask is not None and own_mask not in adata.layers:
        _check.warn(f"the model was trained with mask_layer={own_mask!r}, which adata.layers does not have; only NaN is missing here")
        own_mask = None
        del params["mask_layer"]
    read = read_values(adata, options.layer, own_mask, params["missing"])
    values = np.full((adata.n_obs, len(genes)), np.nan, dtype=np.float32)
    values[:, found] = read[:, places[found]]
    _warn_of_blanks(values, adata)
    _warn_of_complete(values, saved=False)
    covariates = read_known_covariates(adata, metadata["covariates"], options.unseen)
    levels = tuple(map(len, covariates.levels.values()))
    other = _other_scale(values, fitted.scale)
    if other is not None:
        _check.warn(f"{other}; if the scale is another one, bring the values to that of the training first")
    else:
        _warn_of_level(values)
    filled, spread = fitted.predict(Table(values, covariates.codes, levels, covariates.numbers), options.device)
    results = {options.key: filled, keys.sd(options.key): spread}
    written: dict[str, Any] = {"params": params, "uns": {"covariates": metadata["covariates"], **_embeddings(fitted, covariates)}}
    if found.all() and len(genes) == adata.n_vars:
        order = genes.get_indexer(adata.var_names.astype(str))
        return written | {"layers": {name: part[:, order] for name, part in results.items()}}
    return written | {"obsm": {name: pd.DataFrame(part, index=adata.obs_names, columns=genes) for name, part in results.items()}}
