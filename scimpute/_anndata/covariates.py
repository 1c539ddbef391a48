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


@dataclass(frozen=True)
class Covariates:
    """Level names by categorical column, names of the continuous columns, and their values for every sample.

    ``codes`` ``(n, a)`` has -1 for an unknown level, ``numbers`` is ``(n, c)``.
    """

    levels: dict[str, list[str]]
    continuous: list[str]
    codes: np.ndarray
    numbers: np.ndarray

    def describe(self) -> dict[str, Any]:
        return {"categorical": self.levels, "continuous": self.continuous}


def column_names(argument: str, columns: Any) -> list[str]:
    """Names of obs columns: one, or several."""
    if isinstance(columns, str):
        columns = [columns]
    if not isinstance(columns, Sequence) or not all(isinstance(column, str) for column in columns):
        raise TypeError(f"{argument} must be the name of an obs column or several, got {columns!r}")
    for column in columns:
        # Of a model that is applied they become keys.
        _check.key_name(f"{argument}: column", column)
    twice = sorted({column for column in columns if list(columns).count(column) > 1})
    if twice:
        raise ValueError(f"{argument} names {_check.listing(twice)} more than once")
    return list(columns)


def read_covariates(adata: AnnData, categorical: Any, continuous: Any) -> Covariates:
    """Covariates of samples to be trained on; a column with one value only is left out with an info line."""
    found = [column_names("categorical_covariates", categorical), column_names("continuous_covariates", continuous)]
    both = sorted(set(found[0]) & set(found[1]))
    if both:
        raise ValueError(f"{_check.listing(both)} named in both categorical_covariates and continuous_covariates; choose one")
    found_labels = [read_label(adata, column, "categorical_covariates") for column in found[0]]
    labels = [label for label in found_labels if label is not None]
    numbers, kept = [], []
    for column in found[1]:
        values = _numbers(adata, column)
        if np.ptp(values) == 0:
            logg.info(f"continuous_covariates={column!r} is {values[0]:g} in all samples; it is left out")
            continue
        numbers.append(values)
        kept.append(column)
    return _joined({label.column: label.levels for label in labels}, kept, [label.codes for label in labels], numbers, adata.n_obs)


def read_covariates_as_trained(adata: AnnData, known: Mapping[str, Any], unseen: str) -> Covariates:
    """Covariates of new samples, by the names and levels of a trained model.

    A level the model has not seen is refused, or with ``unseen="average"`` taken as unknown.
    """
    codes = []
    for column, levels in known["categorical"].items():
        values = read_column(adata.obs, column, "the model's covariate")
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
                "Pass unseen='average' to take them as unknown"
            )
        codes.append(code.astype(np.int64))
    numbers = [_numbers(adata, column, known=True) for column in known["continuous"]]
    return _joined(dict(known["categorical"]), list(known["continuous"]), codes, numbers, adata.n_obs)


def _numbers(adata: AnnData, column: str, *, known: bool = False) -> np.ndarray:
    """A continuous covariate; with ``known`` it is a trained model's, and cannot become a categorical one."""
    given = read_column(adata.obs, column, "the model's covariate" if known else "continuous_covariates")
    name = f"covariate {column!r}" if known else f"continuous_covariates={column!r}"
    instead = "make numbers of it, as in the training" if known else f"pass it as categorical_covariates={column!r}, or make numbers of it"
    values = as_numbers(given)
    wrong = ~np.isfinite(values)
    text = np.isnan(values) & given.notna().to_numpy()
    if text.any():
        kinds = given[text].astype(str).unique()
        what = "text that is no number" if any(isinstance(value, str) for value in given) else "values that are no numbers"
        raise ValueError(f"{name} holds {what} in {text.sum()} samples: {_check.listing(kinds, 5)}; {instead}")
    if wrong.any():
        first = adata.obs_names[int(np.flatnonzero(wrong)[0])]
        raise ValueError(
            f"{name} is missing or not a finite number in {wrong.sum()} samples (first: {first!r}); "
            "fill it, e.g. with the median, or drop the samples"
        )
    return values


def _joined(
    levels: dict[str, list[str]], continuous: list[str], codes: list[np.ndarray], numbers: list[np.ndarray], n_obs: int
) -> Covariates:
    return Covariates(
        levels,
        continuous,
        np.column_stack(codes) if codes else np.zeros((n_obs, 0), np.int64),
        np.column_stack(numbers) if numbers else np.zeros((n_obs, 0)),
    )
