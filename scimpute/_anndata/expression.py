"""Log expression with gaps, read from an object, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scanpy import logging as logg

from .. import _check
from .read import read_mask, read_with_gaps

if TYPE_CHECKING:
    from anndata import AnnData


_MAX_LOG_EXPRESSION = 50.0
"""Largest value that is plausible for log expression."""


def read_values(adata: AnnData, layer: str | None, mask_layer: str | None, missing: str) -> np.ndarray:
    """Expression with NaN where it is missing: NaN itself, False in ``mask_layer``, or zero where asked for."""
    values = read_with_gaps(adata, layer)
    if missing == "zero":
        values[values == 0] = np.nan
    if mask_layer is not None:
        mask = read_mask(adata, mask_layer)
        values[~mask] = np.nan
    return values


def nonempty_genes(adata: AnnData, values: np.ndarray, left: np.ndarray, empty_genes: str) -> np.ndarray:
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


def warn_if_not_logged(values: np.ndarray) -> None:
    top = float(np.fmax.reduce(values, axis=None))
    if top > _MAX_LOG_EXPRESSION:
        _check.warn(f"values up to {top:g} do not look like log expression, which is expected here; call scanpy.pp.log1p(adata) first")


def warn_of_empty_samples(values: np.ndarray, adata: AnnData) -> None:
    blank = np.flatnonzero(np.isnan(values).all(axis=1))
    if blank.size:
        _check.warn(
            f"{blank.size} samples have no observed value (first: {adata.obs_names[blank[0]]!r}); "
            "they are filled from their covariates alone"
        )


def warn_if_nothing_missing(values: np.ndarray, *, saved: bool, n_others: int = 0) -> None:
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
