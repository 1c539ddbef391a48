"""Counts of molecules: read from any layer, checked, and rounded to whole numbers."""

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
from .rounding import MAX_COUNT, ROUNDINGS, find_decimals, nearest_counts, round_counts, sign_of_normalisation, tolerance


def read_counts(adata: ad.AnnData, layer: str | None, rounding: str | None = None, rng: np.random.Generator | None = None) -> sp.csr_matrix:
    """Counts of ``X``, a layer or ``raw`` as canonical CSR float32. The result shares its buffers with the object: read only.

    Parameters
    ----------
    rounding
        How decimals are rounded, ``"nearest"`` or ``"random"``; None refuses decimals. Rounding errors are removed in any case.
    rng
        For ``"random"``; not used if all values are whole. Pass None if the caller has no argument ``rounding``.

    Raises
    ------
    KeyError, TypeError, ValueError
        The layer does not exist; the matrix is of the wrong kind; it holds no counts (the message names the layers that do).
    """
    return round_values(adata, layer, read_values(adata, layer, rounding, can_round=rng is not None), rounding, rng)


def read_source(
    adata: ad.AnnData, layer: str | None, rounding: str | None, rng: np.random.Generator
) -> tuple[sp.csr_matrix, dict[str, Any]]:
    """Counts as :func:`read_counts` reads them, and the fingerprint of the values before they were rounded."""
    csr = read_values(adata, layer, rounding, can_round=True)
    return round_values(adata, layer, csr, rounding, rng), fingerprint(csr)


def read_values(adata: ad.AnnData, layer: str | None, rounding: str | None, *, can_round: bool) -> sp.csr_matrix:
    """Counts; with ``rounding`` also decimals, not yet rounded. ``can_round``: errors may suggest the argument ``rounding``."""
    if rounding is not None:
        _check.option("rounding", rounding, ROUNDINGS)
    source = source_name(adata, layer)
    csr = to_csr(matrix_of(adata, layer), source)
    problem = _problem(csr, adata)
    whole = nearest_counts(csr.data) if problem is None else None
    if problem is None and whole is None:
        problem = _problem_with_decimals(csr, adata, rounding, can_round=can_round)
    if problem is not None:
        raise ValueError(f"{source} {problem}; {_where_counts_are(adata, layer)}")
    if whole is None or whole is csr.data:
        return csr
    logg.info(f"{source}: values are up to {np.abs(whole - csr.data).max():.1g} off whole numbers; these rounding errors are removed")
    return _with_values(csr, whole)


def round_values(
    adata: ad.AnnData, layer: str | None, csr: sp.csr_matrix, rounding: str | None, rng: np.random.Generator | None
) -> sp.csr_matrix:
    """The matrix with decimals rounded, if ``rounding`` is not None; the same matrix if all values are whole."""
    if rounding is None or np.array_equal(csr.data, np.rint(csr.data)):
        return csr
    counts = _with_values(csr, round_counts(csr.data, rounding, np.random.default_rng(0) if rng is None else rng))
    if not counts.nnz:
        raise ValueError(f"{source_name(adata, layer)} has no non-zero entry once it is rounded (rounding={rounding!r})")
    return counts


def _with_values(csr: sp.csr_matrix, values: np.ndarray) -> sp.csr_matrix:
    changed = sp.csr_matrix((values.astype(np.float32), csr.indices.copy(), csr.indptr.copy()), shape=csr.shape)
    changed.eliminate_zeros()
    return changed


def _problem(csr: sp.csr_matrix, adata: ad.AnnData) -> str | None:
    """Why the values cannot be counts, with or without decimals."""
    data = csr.data
    bad = np.flatnonzero(~np.isfinite(data))
    if bad.size:
        return (
            f"has {bad.size} values that are NaN or infinite (first: {csr_entry_name(csr, adata, bad[0])}); "
            "counts have none. Remove or fill them"
        )
    if data.size == 0:
        return "has no non-zero entry"
    if (data < -tolerance(data)).any():
        return f"has negative values (min {data.min():g}): it looks scaled, counts are needed"
    if data.max() > MAX_COUNT:
        high = np.flatnonzero(data > MAX_COUNT)
        return (
            f"has {high.size} values above 2^53, which are no counts of molecules (first: {csr_entry_name(csr, adata, high[0])} is "
            f"{data[high[0]]:g}); correct them"
        )
    return None


def _problem_with_decimals(csr: sp.csr_matrix, adata: ad.AnnData, rounding: str | None, *, can_round: bool) -> str | None:
    """Which values are not whole, what they look like, and what to do; None if ``rounding`` can round them."""
    sign = sign_of_normalisation(csr)
    if rounding is not None and sign is None:
        return None
    decimals = find_decimals(csr.data)
    few = decimals.size <= max(3, csr.nnz // 200) and 10 * decimals.size <= csr.nnz
    examples = "; ".join(f"{csr_entry_name(csr, adata, place)} is {csr.data[place]:.6g}" for place in decimals[: 3 if few else 1])
    problem = f"has values that are not whole numbers ({decimals.size:,} of {csr.nnz:,}; farthest from one: {examples})"
    if sign is not None:
        no_help = ", which rounding does not undo" if rounding is not None else ""
        return f"{problem}: it looks normalised or logged ({sign}){no_help}; counts are needed"
    remedy = "pass rounding='nearest' or 'random'" if can_round else "round them first, e.g. with numpy.rint"
    if few:
        return f"{problem}: all others are counts. Correct {'it' if decimals.size == 1 else 'them'}, or {remedy}"
    return (
        f"{problem}: if these are counts with decimals (of SoupX, CellBender, STARsolo, alevin or RSEM), {remedy}; "
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


def _where_counts_are(adata: ad.AnnData, refused: str | None) -> str:
    """The layers that hold counts, for the message about a layer that does not."""
    layers = []
    for name in [None, *layer_choices(adata)]:
        if name == refused or (name is None and adata.X is None):
            continue
        raw = is_raw(adata, name)
        if holds_counts(adata, _matrix_or_none(adata, name, raw=raw)):
            layers.append("adata.X (layer=None)" if name is None else "adata.raw (layer='raw')" if raw else f"layer={name!r}")
    return f"counts are in: {', '.join(layers)}" if layers else "no layer of this object holds counts"


def _matrix_or_none(adata: ad.AnnData, name: str | None, *, raw: bool) -> Any:
    """A matrix, raw with all its genes; None if it cannot be read."""
    try:
        return as_numpy(adata.raw.X, "") if raw else matrix_of(adata, name)
    except TypeError:
        return None


def warn_of_empty_cells(counts: sp.csr_matrix, size: np.ndarray) -> None:
    """Warn of cells without a molecule, and say how they are imputed."""
    empty = np.diff(counts.indptr) == 0
    if empty.any():
        basis = "from their library sizes alone" if (size[empty] > 0).all() else "as cells of depth 0"
        _check.warn(f"{empty.sum()} cells have no molecules; they are imputed {basis}")
