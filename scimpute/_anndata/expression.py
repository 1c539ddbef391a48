"""Log expression of bulk samples with missing values, read from an object; warnings about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scanpy import logging as logg

from .. import _check
from .read import read_mask, read_with_gaps

if TYPE_CHECKING:
    from anndata import AnnData


_MAX_LOG_EXPRESSION = 50.0
"""Largest plausible value of log expression."""


def read_values(adata: AnnData, layer: str | None, mask_layer: str | None, missing: str) -> np.ndarray:
    """Expression, NaN where it is missing: NaN in the layer, False in ``mask_layer``, or 0 with ``missing="zero"``."""
    values = read_with_gaps(adata, layer)
    if missing == "zero":
        values[values == 0] = np.nan
    if mask_layer is not None:
        mask = read_mask(adata, mask_layer)
        values[~mask] = np.nan
    return values


def nonempty_genes(adata: AnnData, values: np.ndarray, left_out: np.ndarray, empty_genes: str) -> np.ndarray:
    """Indices of the genes to fill: genes with a value that are not ``left_out`` by ``max_missing``."""
    empty = np.isnan(values).all(axis=0)
    if empty.all():
        raise ValueError("all values are missing; there is nothing to learn from")
    if (empty | left_out).all():
        least = np.isnan(values).mean(axis=0).min()
        raise ValueError(f"max_missing leaves out all genes: the gene with the fewest gaps is missing in {least:.1%} of the samples")
    refused = np.flatnonzero(empty & ~left_out)
    if refused.size and empty_genes == "error":
        raise ValueError(
            f"{refused.size} genes have no observed value: {_check.listing(adata.var_names[refused], 5)}; remove them, or pass "
            "empty_genes='nan' to leave them missing. To fill genes a panel lacks, train on a reference that has them and use tl.apply"
        )
    return np.flatnonzero(~(empty | left_out))


def warn_if_not_logged(values: np.ndarray) -> None:
    highest = float(np.fmax.reduce(values, axis=None))
    if highest > _MAX_LOG_EXPRESSION:
        _check.warn(f"values up to {highest:g} do not look like log expression, which is expected here; call scanpy.pp.log1p(adata) first")


def warn_of_empty_samples(values: np.ndarray, adata: AnnData) -> None:
    empty = np.flatnonzero(np.isnan(values).all(axis=1))
    if empty.size:
        _check.warn(
            f"{empty.size} samples have no observed value (first: {adata.obs_names[empty[0]]!r}); "
            "they are filled from their covariates alone"
        )


def warn_if_nothing_missing(values: np.ndarray, *, saved: bool, n_others: int = 0) -> None:
    """Warn if no value is missing; only log it if the model is saved, which may be for other samples.

    ``n_others`` genes are not filled.
    """
    if np.isnan(values).any():
        return
    zeros = int((values == 0).sum())
    hint = f"; {zeros} values are 0, and missing='zero' treats them as missing" if zeros else ""
    genes = f" in the {values.shape[1]} genes that are filled, and {n_others} genes are left as they are" if n_others else ""
    message = (
        f"no value is missing{genes}: there is nothing to fill, and the result is the input. Missing is NaN, or False in mask_layer{hint}"
    )
    if saved:
        logg.info(message)
    else:
        _check.warn(message)
