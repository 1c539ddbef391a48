"""Covariates of bulk samples, read from ``obs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from .. import _check

if TYPE_CHECKING:
    from anndata import AnnData

from .obs import as_numbers, read_column, read_label

_OF_MODEL = "the model's covariate"


@dataclass(frozen=True)
class Covariates:
    """Categorical and continuous covariates of ``n`` samples.

    Attributes
    ----------
    levels
        Names of the levels of each categorical column.
    continuous
        Names of the continuous columns.
    codes
        Level of every sample, ``(n, a)``; -1 for an unknown level.
    numbers
        Values of the continuous columns, ``(n, c)``.
    """

    levels: dict[str, list[str]]
    continuous: list[str]
    codes: np.ndarray
    numbers: np.ndarray

    def describe(self) -> dict[str, Any]:
        return {"categorical": self.levels, "continuous": self.continuous}


def column_names(argument: str, columns: Any) -> list[str]:
    """Names of obs columns as a list, checked; ``columns`` is one name or several."""
    if isinstance(columns, str):
        columns = [columns]
    if not isinstance(columns, Sequence) or not all(isinstance(column, str) for column in columns):
        raise TypeError(f"{argument} must be the name of an obs column or several, got {columns!r}")
    for column in columns:
        # They become keys in the file of a model.
        _check.key_name(f"{argument}: column", column)
    repeated = sorted({column for column in columns if list(columns).count(column) > 1})
    if repeated:
        raise ValueError(f"{argument} names {_check.listing(repeated)} more than once")
    return list(columns)


def read_covariates(adata: AnnData, categorical: Any, continuous: Any) -> Covariates:
    """Covariates of the samples of a training. Columns with one value only are left out, and the log says so."""
    categorical, continuous = column_names("categorical_covariates", categorical), column_names("continuous_covariates", continuous)
    both = sorted(set(categorical) & set(continuous))
    if both:
        raise ValueError(f"{_check.listing(both)} named in both categorical_covariates and continuous_covariates; choose one")
    labels = [label for column in categorical if (label := read_label(adata, column, "categorical_covariates")) is not None]
    numbers = {column: _continuous_values(adata, column) for column in continuous}
    for column, values in list(numbers.items()):
        if np.ptp(values) == 0:
            logg.info(f"continuous_covariates={column!r} is {values[0]:g} in all samples; it is left out")
            del numbers[column]
    levels = {label.column: label.levels for label in labels}
    return _combine(levels, list(numbers), [label.codes for label in labels], list(numbers.values()), adata.n_obs)


def read_covariates_as_trained(adata: AnnData, trained: Mapping[str, Any], unseen: str) -> Covariates:
    """Covariates of new samples, with the columns and levels of a trained model.

    Levels that the training did not have are refused; with ``unseen="average"`` they are unknown, code -1.
    """
    codes = []
    for column, levels in trained["categorical"].items():
        values = read_column(adata.obs, column, _OF_MODEL)
        if values.isna().any() and unseen == "error":
            first = adata.obs_names[int(np.flatnonzero(values.isna().to_numpy())[0])]
            raise ValueError(
                f"covariate {column!r} is missing in {values.isna().sum()} samples (first: {first!r}); fill it, or pass unseen='average'"
            )
        code = pd.Index(levels).get_indexer(np.asarray(values.astype(str), dtype=object))
        if unseen == "error" and (code < 0).any():
            new = sorted(set(values.astype(str)[code < 0]))
            raise ValueError(
                f"covariate {column!r} has levels the model was not trained on: {_check.listing(new)}; known: {_check.listing(levels)}. "
                "Pass unseen='average' to impute these samples with the level unknown"
            )
        codes.append(code.astype(np.int64))
    numbers = [_continuous_values(adata, column, trained=True) for column in trained["continuous"]]
    return _combine(dict(trained["categorical"]), list(trained["continuous"]), codes, numbers, adata.n_obs)


def _continuous_values(adata: AnnData, column: str, *, trained: bool = False) -> np.ndarray:
    """A continuous covariate. ``trained``: a model has it as continuous, so errors do not suggest a categorical one."""
    stored = read_column(adata.obs, column, _OF_MODEL if trained else "continuous_covariates")
    values = as_numbers(stored)
    name = f"covariate {column!r}" if trained else f"continuous_covariates={column!r}"
    text = np.isnan(values) & stored.notna().to_numpy()
    if text.any():
        kind = "text that is no number" if any(isinstance(value, str) for value in stored) else "values that are no numbers"
        remedy = "convert it to numbers, as in the training"
        if not trained:
            remedy = f"pass it as categorical_covariates={column!r}, or convert it to numbers"
        examples = _check.listing(stored[text].astype(str).unique(), 5)
        raise ValueError(f"{name} holds {kind} in {text.sum()} samples: {examples}; {remedy}")
    wrong = ~np.isfinite(values)
    if wrong.any():
        first = adata.obs_names[int(np.flatnonzero(wrong)[0])]
        raise ValueError(
            f"{name} is missing or not a finite number in {wrong.sum()} samples (first: {first!r}); "
            "fill it, e.g. with the median, or drop the samples"
        )
    return values


def _combine(
    levels: dict[str, list[str]], continuous: list[str], codes: list[np.ndarray], numbers: list[np.ndarray], n_obs: int
) -> Covariates:
    return Covariates(
        levels,
        continuous,
        np.column_stack(codes) if codes else np.zeros((n_obs, 0), np.int64),
        np.column_stack(numbers) if numbers else np.zeros((n_obs, 0)),
    )
