"""Genes of a saved model and of an object, matched by name: what is said where names do not fit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from .. import _check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}")
_VERSION = r"\.\d+$"


def misnamed(adata: AnnData, genes: Sequence[str]) -> str:
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
