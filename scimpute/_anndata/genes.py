"""Genes of a saved model and genes of an object, matched by name; errors and warnings about names that do not match."""

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
MIN_SHARED_GENES = 5
"""Fewest genes that a bulk model and its query must share: next to nothing can be predicted from fewer."""


def rename_hint(adata: AnnData, genes: Sequence[str]) -> str:
    """How to rename the genes of ``adata`` so that more of them match a model; empty if no way is seen.

    Checked are other columns of ``var``, version suffixes (``ENSG00000141510.18``), case, and Ensembl ids beside symbols.
    """
    model, own = pd.Index(genes), pd.Index(adata.var_names.astype(str))
    matching = int(model.isin(own).sum())
    columns = {str(name): int(model.isin(values.astype(str)).sum()) for name, values in adata.var.items() if not _is_number(values)}
    best = max(columns, key=lambda name: columns[name], default="")
    if best and columns[best] > matching:
        return f"; var[{best!r}] has {columns[best]} of them: adata.var_names = adata.var[{best!r}].astype(str)"
    without_version = int(_without_version(model).isin(_without_version(own)).sum())
    if without_version > matching:
        return (
            f"; without version suffixes such as {_versioned(model, own)!r} {without_version} of them match: "
            rf"adata.var_names = adata.var_names.str.replace(r'{_VERSION}', '', regex=True), and the same in the training"
        )
    without_case = int(model.str.upper().isin(own.str.upper()).sum())
    if without_case > matching:
        return (
            f"; {without_case} of them match if upper and lower case are the same: rename the genes of adata as in the training, "
            "if they are of the same species"
        )
    kinds = ["Ensembl ids" if _mostly_ensembl(names) else "symbols" for names in (model, own)]
    if kinds[0] != kinds[1]:
        return f"; the genes of the model are {kinds[0]}, those of adata {kinds[1]}: rename the genes of adata"
    return ""


def _is_number(values: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(values.dtype))


def _without_version(names: pd.Index) -> pd.Index:
    return names.str.replace(_VERSION, "", regex=True)


def _versioned(model: pd.Index, own: pd.Index) -> str:
    """The first name with a version suffix."""
    return next(name for name in [*model, *own] if re.search(_VERSION, name))


def _mostly_ensembl(names: pd.Index) -> bool:
    return 2 * sum(_ENSEMBL.match(name) is not None for name in names) > len(names)


def count_matches(adata: AnnData, genes: Sequence[str]) -> tuple[int, int, str]:
    """How many genes of ``adata`` the model has, how many it does not have, and the first of the latter as text."""
    in_model = adata.var_names.astype(str).isin(genes)
    return int(in_model.sum()), int((~in_model).sum()), _check.listing(adata.var_names[~in_model], 5)


def match_genes(adata: AnnData, genes: list[str]) -> np.ndarray:
    """Column of every gene of the model in the object; -1 for a gene that the object lacks.

    Warns of such genes. Refuses the object if it lacks more than half of the genes.
    """
    columns = adata.var_names.astype(str).get_indexer(genes)
    absent = [gene for gene, column in zip(genes, columns, strict=True) if column < 0]
    hint = rename_hint(adata, genes) if absent else ""
    if 2 * len(absent) > len(genes):
        raise ValueError(
            f"{len(absent)} of the {len(genes)} genes of the model are not in adata.var_names: {_check.listing(absent, 5)}; adata has "
            f"{_check.listing(adata.var_names, 5)}. At least half of the model's genes are needed; name the genes as in the training{hint}"
        )
    if absent:
        _, n_unknown, unknown = count_matches(adata, genes)
        ignored = f"; {n_unknown} of the {adata.n_vars} genes of adata are not in the model and are not imputed: {unknown}"
        _check.warn(
            f"{len(absent)} of the {len(genes)} genes of the model are not in adata.var_names: {_check.listing(absent, 5)}; "
            f"the model reads them as 0 molecules{ignored if n_unknown else ''}{hint}"
        )
    return columns


def check_genes_to_fill(adata: AnnData, genes: list[str], n_for_similarity: int) -> None:
    """Refuse an object with next to no gene of the model; warn if each of them has genes that the other lacks.

    With fewer than ``n_for_similarity`` genes no similar samples are found, and the warning says so.
    """
    n_shared, n_unknown, unknown = count_matches(adata, genes)
    n_absent, needed = len(genes) - n_shared, min(MIN_SHARED_GENES, len(genes))
    if n_shared < needed:
        raise ValueError(
            f"{n_shared or 'none'} of the {len(genes)} genes of the model is in adata.var_names: the model has {_check.listing(genes, 5)}, "
            f"adata {_check.listing(adata.var_names, 5)}; at least {needed} are needed{rename_hint(adata, genes)}"
        )
    too_few = n_shared < min(n_for_similarity, len(genes) // 2)
    if n_absent and (n_unknown or too_few):
        ignored = f"; {n_unknown} of the {adata.n_vars} genes of adata are not in the model and are ignored: {unknown}" if n_unknown else ""
        poor = f"; with fewer than {n_for_similarity} genes no similar samples can be found, and little is recovered" if too_few else ""
        _check.warn(
            f"{n_absent} of the {len(genes)} genes of the model are not in adata.var_names and are filled from the other "
            f"{n_shared}{poor}{ignored}{rename_hint(adata, genes)}"
        )
    elif n_absent or n_unknown:
        logg.info(f"{n_absent} of the {len(genes)} genes of the model are filled, {n_unknown} genes of adata are ignored")
