"""Genes of a saved model and of an object, matched by name: what is said where names do not fit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scanpy import logging as logg

from .. import _check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}")
_VERSION = r"\.\d+$"


def rename_hint(adata: AnnData, genes: Sequence[str]) -> str:
    """How the names of ``adata`` would have to be changed to match more genes of a model; empty where nothing is noticed.

    Looked at are other columns of ``var``, version suffixes (``ENSG00000141510.18``), upper and lower case, and Ensembl ids beside symbols.
    """
    model, own = pd.Index(genes), pd.Index(adata.var_names.astype(str))
    matching = int(model.isin(own).sum())
    columns = {str(name): int(model.isin(values.astype(str)).sum()) for name, values in adata.var.items() if not _is_number(values)}
    best = max(columns, key=lambda name: columns[name], default="")
    if best and columns[best] > matching:
        return f"; var[{best!r}] has {columns[best]} of them: adata.var_names = adata.var[{best!r}].astype(str)"
    without = int(_bare(model).isin(_bare(own)).sum())
    if without > matching:
        return (
            f"; without version suffixes such as {_example(model, own)!r} {without} of them match: "
            rf"adata.var_names = adata.var_names.str.replace(r'{_VERSION}', '', regex=True), and the same in the training"
        )
    cased = int(model.str.upper().isin(own.str.upper()).sum())
    if cased > matching:
        return (
            f"; {cased} of them match where upper and lower case are the same: rename the genes of adata as in the training, "
            "if they are of the same species"
        )
    kinds = ["Ensembl ids" if _mostly_ensembl(names) else "symbols" for names in (model, own)]
    if kinds[0] != kinds[1]:
        return f"; the genes of the model are {kinds[0]}, those of adata {kinds[1]}: rename the genes of adata"
    return ""


def _is_number(values: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(values.dtype))


def _bare(names: pd.Index) -> pd.Index:
    return names.str.replace(_VERSION, "", regex=True)


def _example(*names: pd.Index) -> str:
    return next(name for some in names for name in some if re.search(_VERSION, name))


def _mostly_ensembl(names: pd.Index) -> bool:
    return 2 * sum(_ENSEMBL.match(name) is not None for name in names) > len(names)


def matched(adata: AnnData, genes: Sequence[str]) -> tuple[int, int, str]:
    """Genes of the model that ``adata`` has, genes of ``adata`` that the model does not know, and the first of the latter."""
    known = adata.var_names.astype(str).isin(genes)
    return int(known.sum()), int((~known).sum()), _check.listing(adata.var_names[~known], 5)


def match_genes(adata: AnnData, genes: list[str]) -> np.ndarray:
    """For every gene of a model its column in the object, -1 where there is none; warned of, refused where most are missing."""
    places = adata.var_names.astype(str).get_indexer(genes)
    absent = [gene for gene, place in zip(genes, places, strict=True) if place < 0]
    hint = rename_hint(adata, genes) if absent else ""
    if 2 * len(absent) > len(genes):
        raise ValueError(
            f"{len(absent)} of the {len(genes)} genes of the model are not in adata.var_names: {_check.listing(absent, 5)}; adata has "
            f"{_check.listing(adata.var_names, 5)}. Name the genes as in the training, which more than half of the model's genes need{hint}"
        )
    if absent:
        _check.warn(
            f"{len(absent)} of the {len(genes)} genes of the model are not in adata.var_names: {_check.listing(absent, 5)}; "
            f"the model is told that they have no molecules{_unknown(adata, genes)}{hint}"
        )
    return places


def _unknown(adata: AnnData, genes: list[str]) -> str:
    """What is said of genes that the model does not know."""
    _, unknown, first = matched(adata, genes)
    return f"; {unknown} of the {adata.n_vars} genes of adata are not in the model and are not imputed: {first}" if unknown else ""


ENOUGH = 5
"""Genes that a model and its query have in common at least: of fewer next to nothing can be said."""


def check_genes_to_fill(adata: AnnData, genes: list[str], few: int) -> None:
    """Refuse where next to no gene is known; say so where there are unknown ones on both sides.

    By fewer than ``few`` genes no similar samples are found.
    """
    found, unknown, first = matched(adata, genes)
    lacking = len(genes) - found
    if found < min(ENOUGH, len(genes)):
        raise ValueError(
            f"{found or 'none'} of the {len(genes)} genes of the model is in adata.var_names: the model has {_check.listing(genes, 5)}, "
            f"adata {_check.listing(adata.var_names, 5)}; {min(ENOUGH, len(genes))} are needed at least{rename_hint(adata, genes)}"
        )
    too_few = found < min(few, len(genes) // 2)
    if lacking and (unknown or too_few):
        ignored = f"; {unknown} of the {adata.n_vars} genes of adata are not in the model and are not looked at: {first}" if unknown else ""
        poor = f"; by fewer than {few} genes no similar samples can be found, and little is recovered" if too_few else ""
        _check.warn(
            f"{lacking} of the {len(genes)} genes of the model are not in adata.var_names and are filled from the other "
            f"{found}{poor}{ignored}{rename_hint(adata, genes)}"
        )
    elif lacking or unknown:
        logg.info(f"{lacking} of the {len(genes)} genes of the model are filled, {unknown} genes of adata are not looked at")
