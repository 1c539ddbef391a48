"""Records of results in ``uns``: the function that wrote a result, its parameters, the counts it was made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import anndata as ad
import numpy as np

from . import keys


def recorded_rounding(params: Mapping[str, Any]) -> tuple[str | None, np.random.Generator]:
    """How decimals were rounded, and a generator that repeats the rounding if the seed was recorded."""
    rounding, state = params.get("rounding"), params.get("random_state")
    seed = int(state) if isinstance(state, int | np.integer) else 0
    return None if rounding is None else str(rounding), np.random.default_rng(seed)


def written_by(adata: ad.AnnData, key: str) -> str | None:
    """Name of the scimpute function that wrote ``uns[key]``; None if none did."""
    entry = adata.uns.get(key)
    return str(entry.get(keys.METHOD)) if isinstance(entry, Mapping) and keys.METHOD in entry else None


def records(adata: ad.AnnData) -> dict[str, Mapping[str, Any]]:
    """Entries of ``uns`` that are mappings, as those of all our functions are."""
    return {name: entry for name, entry in adata.uns.items() if isinstance(entry, Mapping)}


def all_written_by(adata: ad.AnnData, methods: Collection[str]) -> list[str]:
    """Keys of ``uns`` that one of these functions wrote."""
    return [key for key in records(adata) if written_by(adata, key) in methods]


def has_sd(adata: ad.AnnData, key: str) -> bool:
    """Whether the result that ``uns[key]`` records has standard deviations; False only with ``sd=False``."""
    return bool(params_of(adata, key).get("sd", True))


def params_of(adata: ad.AnnData, key: str) -> Mapping[str, Any]:
    """``uns[key]["params"]``; empty if ``uns[key]`` is not a record of scimpute."""
    entry = adata.uns.get(key)
    params = entry.get("params") if isinstance(entry, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def fingerprint_of(adata: ad.AnnData, key: str) -> Mapping[str, Any] | None:
    """Fingerprint of the counts that an imputation was made from; None if ``uns[key]`` has none."""
    entry = adata.uns.get(key)
    source = entry.get(keys.SOURCE) if isinstance(entry, Mapping) else None
    return source if isinstance(source, Mapping) and {"molecules", "cells", "genes"} <= source.keys() else None


def missing_sd(adata: ad.AnnData, name: str) -> KeyError | None:
    """A KeyError that says how to get the standard deviations ``name``; None unless they belong to a result with ``sd=False``."""
    for key in adata.uns:
        if name == keys.sd(key) and written_by(adata, key) and not has_sd(adata, key):
            return KeyError(f"{name!r} not found: {key!r} was imputed with sd=False, which writes no standard deviations; pass sd=True")
    return None
