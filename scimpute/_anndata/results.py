"""What ``uns`` says of a result: which function wrote it, its parameters, the counts it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np

from . import keys


def recorded_rounding(params: Mapping[str, Any]) -> tuple[str | None, np.random.Generator]:
    """How decimals were rounded, and a generator that draws what was drawn then where the seed is known."""
    rounding, state = params.get("rounding"), params.get("random_state")
    seed = int(state) if isinstance(state, int | np.integer) else 0
    return None if rounding is None else str(rounding), np.random.default_rng(seed)


def written_by(adata: ad.AnnData, key: str) -> str | None:
    """The function of ours that wrote ``uns[key]``, if one did."""
    entry = adata.uns.get(key)
    return str(entry.get(keys.METHOD)) if isinstance(entry, Mapping) and keys.METHOD in entry else None


def has_sd(adata: ad.AnnData, key: str) -> bool:
    """Whether the function that wrote ``uns[key]`` wrote standard deviations too, if it is one that can do without."""
    return bool(params_of(adata, key).get("sd", True))


def params_of(adata: ad.AnnData, key: str) -> Mapping[str, Any]:
    """``uns[key]["params"]``; none where others have written something else there."""
    entry = adata.uns.get(key)
    params = entry.get("params") if isinstance(entry, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def fingerprint_of(adata: ad.AnnData, key: str) -> Mapping[str, Any] | None:
    """That of the counts an imputation was made from; None where there is none, or others have written something else there."""
    entry = adata.uns.get(key)
    found = entry.get(keys.SOURCE) if isinstance(entry, Mapping) else None
    return found if isinstance(found, Mapping) and {"molecules", "cells", "genes"} <= found.keys() else None


def missing_sd(adata: ad.AnnData, name: str) -> KeyError | None:
    """A KeyError that says how to get standard deviations where ``name`` would be those of a result without them."""
    for key in adata.uns:
        if name == keys.sd(key) and written_by(adata, key) and not has_sd(adata, key):
            return KeyError(f"{name!r} not found: {key!r} was imputed with sd=False, which writes no standard deviations; pass sd=True")
    return None
