"""Counts of molecules, read from any slot, checked and made whole numbers."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from scanpy import logging as logg

from .. import _check
from .fingerprint import fingerprint
from .matrix import as_numpy, check_kind, rows_in_memory, to_csr
from .read import csr_entry_name, is_raw, layer_choices, matrix_of, source_name
from .rounding import HIGHEST, ROUNDINGS, find_decimals, nearest_counts, normalised, rounded, slack


def read_counts(adata: ad.AnnData, layer: str | None, rounding: str | None = None, rng: np.random.Generator | None = None) -> sp.csr_matrix:
    """Counts of ``X``, a layer or ``raw`` as canonical CSR float32 (shares its buffers with the object: read only).

    Parameters
    ----------
    rounding
        How decimals become whole numbers, ``"nearest"`` or ``"random"``; refused where None. Rounding errors are taken off in any case.
    rng
        For ``"random"``; nothing is drawn where all values are whole. A caller that gives none has no argument ``rounding``.

    Raises
    ------
    KeyError, TypeError, ValueError
        The layer does not exist; the matrix is of the wrong kind; it does not hold counts (the message names the layers that do).
    """
    return round_values(adata, layer, read_values(adata, layer, rounding, can_round=rng is not None), rounding, rng)


def read_source(
    adata: ad.AnnData, layer: str | None, rounding: str | None, rng: np.random.Generator
) -> tuple[sp.csr_matrix, dict[str, Any]]:
    """The same, and the fingerprint by which these counts are found again (of the values before they are rounded)."""
    csr = read_values(adata, layer, rounding, can_round=True)
    return round_values(adata, layer, csr, rounding, rng), fingerprint(csr)


def read_values(adata: ad.AnnData, layer: str | None, rounding: str | None, *, can_round: bool) -> sp.csr_matrix:
    """Counts, or with ``rounding`` decimals that may be counts."""
    if rounding is not None:
        _check.option("rounding", rounding, ROUNDINGS)
    source = source_name(adata, layer)
    csr = to_csr(matrix_of(adata, layer), source)
    problem = _problem(csr, adata)
    if problem is not None:
        raise ValueError(f"{source} {problem}; {_where_counts_are(adata, layer)}")
    whole = nearest_counts(csr.data)
    if whole is None:
        problem = _problem_with_decimals(csr, adata, rounding, can_round=can_round)
        if problem is not None:
            raise ValueError(f"{source} {problem}; {_where_counts_are(adata, layer)}")
    elif whole is not csr.data:
        logg.info(f"{source}: values up to {np.abs(whole - csr.data).max():.1g} off whole numbers are taken for rounding errors of these")
        csr = _with_values(csr, whole)
    return csr


def round_values(
    adata: ad.AnnData, layer: str | None, csr: sp.csr_matrix, rounding: str | None, rng: np.random.Generator | None
) -> sp.csr_matrix:
    if rounding is None or np.array_equal(csr.data, np.rint(csr.data)):
        return csr
    found = _with_values(csr, rounded(csr.data, rounding, np.random.default_rng(0) if rng is None else rng))
    if not found.nnz:
        raise ValueError(f"{source_name(adata, layer)} has no non-zero entry once it is rounded (rounding={rounding!r})")
    return found


def _with_values(csr: sp.csr_matrix, values: np.ndarray) -> sp.csr_matrix:
    found = sp.csr_matrix((values.astype(np.float32), csr.indices.copy(), csr.indptr.copy()), shape=csr.shape)
    found.eliminate_zeros()
    return found


def _problem(csr: sp.csr_matrix, adata: ad.AnnData) -> str | None:
    """What is wrong with values whether they are whole or not."""
    data = csr.data
    bad = np.flatnonzero(~np.isfinite(data))
    if bad.size:
        return (
            f"has {bad.size} values that are NaN or infinite (first: {csr_entry_name(csr, adata, bad[0])}); "
            "counts have none. Remove or fill them"
        )
    if data.size == 0:
        return "has no non-zero entry"
    if (data < -slack(data)).any():
        return f"has negative values (min {data.min():g}): it looks scaled, counts are needed"
    if data.max() > HIGHEST:
        high = np.flatnonzero(data > HIGHEST)
        return (
            f"has {high.size} values above 2^53, which are no counts of molecules (first: {csr_entry_name(csr, adata, high[0])} is "
            f"{data[high[0]]:g}); correct them"
        )
    return None


def _problem_with_decimals(csr: sp.csr_matrix, adata: ad.AnnData, rounding: str | None, *, can_round: bool) -> str | None:
    """What values are that are not whole, and what to do; None where they can be rounded as is asked for."""
    why = normalised(csr)
    if rounding is not None and why is None:
        return None
    decimals = find_decimals(csr.data)
    few = decimals.size <= max(3, csr.nnz // 200) and 10 * decimals.size <= csr.nnz
    some = "; ".join(f"{csr_entry_name(csr, adata, place)} is {csr.data[place]:.6g}" for place in decimals[: 3 if few else 1])
    found = f"has values that are not whole numbers ({decimals.size:,} of {csr.nnz:,}; farthest from one: {some})"
    if why is not None:
        off = ", which rounding does not undo" if rounding is not None else ""
        return f"{found}: it looks normalised or logged ({why}){off}; counts are needed"
    way = "pass rounding='nearest' or 'random'" if can_round else "round them first, e.g. with numpy.rint"
    if few:
        return f"{found}: all others are counts. Correct {'it' if decimals.size == 1 else 'them'}, or {way}"
    return (
        f"{found}: if these are counts with decimals (of SoupX, CellBender, STARsolo, alevin or RSEM), {way}; "
        "if they are normalised, counts are needed"
    )


def holds_counts(adata: ad.AnnData, matrix: Any) -> bool:
    """Whether the first rows of a matrix are counts."""
    try:
        check_kind(matrix, "")
        csr = to_csr(rows_in_memory(matrix, slice(0, 200)), "")
    except (TypeError, ValueError):
        return False
    return _problem(csr, adata) is None and nearest_counts(csr.data) is not None


def _where_counts_are(adata: ad.AnnData, tried: str | None) -> str:
    found = []
    for name in [None, *layer_choices(adata)]:
        if name == tried or (name is None and adata.X is None):
            continue
        raw = is_raw(adata, name)
        if holds_counts(adata, _readable(adata, name, raw=raw)):
            found.append("adata.X (layer=None)" if name is None else "adata.raw (layer='raw')" if raw else f"layer={name!r}")
    return f"counts are in: {', '.join(found)}" if found else "no layer of this object holds counts"


def _readable(adata: ad.AnnData, name: str | None, *, raw: bool) -> Any:
    """A matrix that is only looked at, raw with all its genes; None where it cannot be read."""
    try:
        return as_numpy(adata.raw.X, "") if raw else matrix_of(adata, name)
    except TypeError:
        return None


def warn_of_empty_cells(counts: sp.csr_matrix, size: np.ndarray) -> None:
    """Say what becomes of cells without a molecule."""
    empty = np.diff(counts.indptr) == 0
    if empty.any():
        known = "from their library sizes alone" if (size[empty] > 0).all() else "as cells of depth 0"
        _check.warn(f"{empty.sum()} cells have no molecules; they are imputed {known}")
