"""The door: with `_annotations` (which reads obs and var) the only file that reads from an AnnData, and the only one that writes to it.

Reading gives plain numpy and scipy data, checked; writing happens last and whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from scanpy import logging as logg

from .. import _check, _memory, _save
from .._sparse import chunks
from . import fingerprint as _fingerprint
from . import keys as _keys
from . import rounding as _whole
from .matrix import check_kind, is_logged, some_rows, taken, to_csr


def check_object(adata: Any) -> None:
    """Refuse what is not an AnnData, saying how to get one."""
    if isinstance(adata, ad.AnnData):
        if adata.n_obs == 0 or adata.n_vars == 0:
            raise ValueError(f"adata has {adata.n_obs} cells and {adata.n_vars} genes; there is nothing to work on")
        return
    name = type(adata).__name__
    hints = {
        "MuData": "pass one modality, e.g. mdata.mod['rna']",
        "SpatialData": "pass its table, e.g. sdata.tables['table']",
        "str": "read the file first, e.g. with anndata.read_h5ad",
        "PosixPath": "read the file first, e.g. with anndata.read_h5ad",
    }
    raise TypeError(f"expected AnnData, got {name}; {hints.get(name, 'wrap it with anndata.AnnData(x)')}")


def check_target(
    adata: Any,
    method: str,
    key_added: str,
    *,
    layer: str | None,
    copy: bool,
    suffixes: Sequence[str] = ("", "_sd"),
    beside: Mapping[str, Sequence[str]] | None = None,
    sd: bool = True,
) -> None:
    """Refuse before the work an object or a key that could not take the result; ``beside`` are names in other slots.

    With ``sd=False`` no standard deviations are written, and those of an earlier result go (see :func:`write`).
    """
    check_writable(adata, copy)
    if layer is not None:
        _check.name_of("layer", layer, "a layer")
    # Names of genes go to tables and files of models.
    _check.storable("adata.var_names", adata.var_names)
    _check_key(adata, key_added, method, layer, suffixes, beside or {}, sd)


def check_writable(adata: Any, copy: bool) -> None:
    """Refuse before the work what is no object or could not take any result."""
    check_object(adata)
    _check.boolean("copy", copy)
    if adata.isbacked and (copy or adata.is_view):
        what = "copy=True is not possible for a backed object" if copy else "adata is a view of a backed object, which cannot hold a result"
        raise ValueError(f"{what}; read it into memory with adata.to_memory() first")
    # Not once the result is there: it would be lost where warnings are errors.
    if adata.isbacked:
        _check.warn("adata is backed: the result is in memory only and is lost at close; keep it with adata.write_h5ad(new_file)")
    if adata.is_view and not copy:
        _check.warn(
            "adata is a view of another object: it becomes an object of its own, with the result in it, and the other stays as it is. "
            "Pass a copy, adata = adata[...].copy(), and this is not said",
            ad.ImplicitModificationWarning,
        )


def layer_names(adata: ad.AnnData) -> list[str]:
    """Layers of the object (anndata 0.13 lists X among them as None)."""
    return [name for name in adata.layers if name is not None]


def _matrix(adata: ad.AnnData, layer: str | None) -> Any:
    if layer is None:
        if adata.X is None:
            raise ValueError(f"adata.X is empty; pass layer=..., available: {_check.listing(places(adata))}")
        return taken(adata.X, "adata.X")
    _check.name_of("layer", layer, "a layer")
    if is_raw(adata, layer):
        return _raw_matrix(adata)
    if layer not in layer_names(adata):
        raise without_sd(adata, layer) or _check.missing("layer", layer, places(adata))
    return taken(adata.layers[layer], f"adata.layers[{layer!r}]")


def places(adata: ad.AnnData) -> list[str]:
    """What ``layer=`` may be: the layers, and "raw" where the object has ``adata.raw``."""
    return [*layer_names(adata), *([_keys.RAW] if is_raw(adata, _keys.RAW) else [])]


def is_raw(adata: ad.AnnData, layer: str | None) -> bool:
    """Whether ``layer="raw"`` stands for ``adata.raw``; a layer that is itself called so comes first."""
    return layer == _keys.RAW and adata.raw is not None and layer not in layer_names(adata)


def _raw_matrix(adata: ad.AnnData) -> Any:
    """``adata.raw`` for the genes of the object."""
    raw = adata.raw
    matrix = taken(raw.X, "adata.raw.X")
    if raw.var_names.equals(adata.var_names):
        return matrix
    take = "impute raw itself: scimpute takes adata.raw.to_adata()"
    if not raw.var_names.is_unique or not adata.var_names.is_unique:
        raise ValueError(f"adata.raw has other genes than adata, and they cannot be matched as names of genes are not unique; {take}")
    found = raw.var_names.get_indexer(adata.var_names)
    if (found < 0).any():
        absent = adata.var_names[found < 0]
        raise ValueError(f"adata.raw lacks {len(absent)} of the {adata.n_vars} genes of adata: {_check.listing(absent, 5)}; {take}")
    if not sp.issparse(matrix) and not isinstance(matrix, np.ndarray) and not hasattr(matrix, "compute"):
        matrix = to_csr(matrix, "adata.raw")  # on disk
    return matrix[:, found]


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
    return _rounded(adata, layer, _values(adata, layer, rounding, can_round=rng is not None), rounding, rng)


def read_source(
    adata: ad.AnnData, layer: str | None, rounding: str | None, rng: np.random.Generator
) -> tuple[sp.csr_matrix, dict[str, Any]]:
    """The same, and the fingerprint by which these counts are found again (of the values before they are rounded)."""
    csr = _values(adata, layer, rounding, can_round=True)
    return _rounded(adata, layer, csr, rounding, rng), _fingerprint.of(csr)


def _values(adata: ad.AnnData, layer: str | None, rounding: str | None, *, can_round: bool) -> sp.csr_matrix:
    """Counts, or with ``rounding`` decimals that may be counts."""
    if rounding is not None:
        _check.option("rounding", rounding, _whole.OPTIONS)
    source = source_name(adata, layer)
    csr = to_csr(_matrix(adata, layer), source)
    problem = _problem(csr, adata)
    if problem is not None:
        raise ValueError(f"{source} {problem}; {_where_counts_are(adata, layer)}")
    whole = _whole.without_errors(csr.data)
    if whole is None:
        problem = _problem_with_decimals(csr, adata, rounding, can_round=can_round)
        if problem is not None:
            raise ValueError(f"{source} {problem}; {_where_counts_are(adata, layer)}")
    elif whole is not csr.data:
        logg.info(f"{source}: values up to {np.abs(whole - csr.data).max():.1g} off whole numbers are taken for rounding errors of these")
        csr = _with_values(csr, whole)
    return csr


def _rounded(
    adata: ad.AnnData, layer: str | None, csr: sp.csr_matrix, rounding: str | None, rng: np.random.Generator | None
) -> sp.csr_matrix:
    if rounding is None or np.array_equal(csr.data, np.rint(csr.data)):
        return csr
    found = _with_values(csr, _whole.rounded(csr.data, rounding, np.random.default_rng(0) if rng is None else rng))
    if not found.nnz:
        raise ValueError(f"{source_name(adata, layer)} has no non-zero entry once it is rounded (rounding={rounding!r})")
    return found


def _with_values(csr: sp.csr_matrix, values: np.ndarray) -> sp.csr_matrix:
    found = sp.csr_matrix((values.astype(np.float32), csr.indices.copy(), csr.indptr.copy()), shape=csr.shape)
    found.eliminate_zeros()
    return found


def _entry(csr: sp.csr_matrix, adata: ad.AnnData, place: int) -> str:
    """How messages call the entry at a place of the data, which may be that of raw with all its genes."""
    row, column = int(np.searchsorted(csr.indptr, place, side="right") - 1), int(csr.indices[place])
    return entry_name(adata if csr.shape[1] == adata.n_vars else adata.raw, row, column)


def _problem(csr: sp.csr_matrix, adata: ad.AnnData) -> str | None:
    """What is wrong with values whether they are whole or not."""
    data = csr.data
    bad = np.flatnonzero(~np.isfinite(data))
    if bad.size:
        return (
            f"has {bad.size} values that are NaN or infinite (first: {_entry(csr, adata, bad[0])}); counts have none. Remove or fill them"
        )
    if data.size == 0:
        return "has no non-zero entry"
    if (data < -_whole.slack(data)).any():
        return f"has negative values (min {data.min():g}): it looks scaled, counts are needed"
    if data.max() > _whole.HIGHEST:
        high = np.flatnonzero(data > _whole.HIGHEST)
        return (
            f"has {high.size} values above 2^53, which are no counts of molecules (first: {_entry(csr, adata, high[0])} is "
            f"{data[high[0]]:g}); correct them"
        )
    return None


def _problem_with_decimals(csr: sp.csr_matrix, adata: ad.AnnData, rounding: str | None, *, can_round: bool) -> str | None:
    """What values are that are not whole, and what to do; None where they can be rounded as is asked for."""
    why = _whole.normalised(csr)
    if rounding is not None and why is None:
        return None
    strays = _whole.strays(csr.data)
    few = strays.size <= max(3, csr.nnz // 200) and 10 * strays.size <= csr.nnz
    some = "; ".join(f"{_entry(csr, adata, place)} is {csr.data[place]:.6g}" for place in strays[: 3 if few else 1])
    found = f"has values that are not whole numbers ({strays.size:,} of {csr.nnz:,}; farthest from one: {some})"
    if why is not None:
        off = ", which rounding does not undo" if rounding is not None else ""
        return f"{found}: it looks normalised or logged ({why}){off}; counts are needed"
    way = "pass rounding='nearest' or 'random'" if can_round else "round them first, e.g. with numpy.rint"
    if few:
        return f"{found}: all others are counts. Correct {'it' if strays.size == 1 else 'them'}, or {way}"
    return (
        f"{found}: if these are counts with decimals (of SoupX, CellBender, STARsolo, alevin or RSEM), {way}; "
        "if they are normalised, counts are needed"
    )


def _holds_counts(adata: ad.AnnData, matrix: Any) -> bool:
    """Whether the first rows of a matrix are counts."""
    try:
        check_kind(matrix, "")
        csr = to_csr(some_rows(matrix, slice(0, 200)), "")
    except (TypeError, ValueError):
        return False
    return _problem(csr, adata) is None and _whole.without_errors(csr.data) is not None


def _where_counts_are(adata: ad.AnnData, tried: str | None) -> str:
    found = []
    for name in [None, *places(adata)]:
        if name == tried or (name is None and adata.X is None):
            continue
        raw = is_raw(adata, name)
        if _holds_counts(adata, _readable(adata, name, raw=raw)):
            found.append("adata.X (layer=None)" if name is None else "adata.raw (layer='raw')" if raw else f"layer={name!r}")
    return f"counts are in: {', '.join(found)}" if found else "no layer of this object holds counts"


def _readable(adata: ad.AnnData, name: str | None, *, raw: bool) -> Any:
    """A matrix that is only looked at, raw with all its genes; None where it cannot be read."""
    try:
        return taken(adata.raw.X, "") if raw else _matrix(adata, name)
    except TypeError:
        return None


def find_counts(adata: ad.AnnData, key: str) -> tuple[str | None, sp.csr_matrix] | None:
    """The counts that an imputation was made from, and the layer that holds them now; None where they are nowhere.

    They are known by their fingerprint. Where nothing can be compared (results of earlier versions, cells and genes both cut) they
    are where they were recorded, as long as counts are there, or else in the only other place with counts.
    """
    params, known = params_of(adata, key), fingerprint_of(adata, key)
    rounding, rng = _recorded_rounding(params)
    recorded = _keys.layer_of(params)
    perhaps: list[tuple[str | None, sp.csr_matrix]] = []
    same_hashes: list[tuple[str | None, sp.csr_matrix]] = []
    for name in dict.fromkeys([recorded, None, *places(adata)]):
        try:
            matrix = _matrix(adata, name)
            whole = _holds_counts(adata, matrix)
            if name == key or not (whole or rounding):
                continue
            csr = _values(adata, name, rounding, can_round=False)
        except (KeyError, TypeError, ValueError):
            continue
        same = None if known is None else _fingerprint.same(csr, known)
        if name == recorded and same is not False:
            return name, _rounded(adata, name, csr, rounding, rng)
        if same:
            same_hashes.append((name, csr))
        # Of decimals only a fingerprint tells whether they are these.
        if same is None and whole and not any(_equal(csr, other) for _, other in perhaps):
            perhaps.append((name, csr))
    if not same_hashes and len(perhaps) != 1:
        return None
    # Of zeros and ones, some cells of a part of the molecules may look like some cells of all.
    name, csr = max(same_hashes, key=lambda match: match[1].data.sum(dtype=np.float64)) if same_hashes else perhaps[0]
    return name, _rounded(adata, name, csr, rounding, rng)


def read_counts_beside(adata: ad.AnnData, keys: Sequence[str], layer: str | None) -> sp.csr_matrix:
    """The counts of a layer; where None those of ``X``, and where it holds none those that the first of ``keys`` was imputed from."""
    ours = [key for key in keys if written_by(adata, key) is not None and fingerprint_of(adata, key)]
    if layer is None and ours and (adata.X is None or not _holds_counts(adata, adata.X)):
        return read_counts_of(adata, ours[0], None)
    return read_counts(adata, layer)


def _recorded_rounding(params: Mapping[str, Any]) -> tuple[str | None, np.random.Generator]:
    """How decimals were rounded, and a generator that draws what was drawn then where the seed is known."""
    rounding, state = params.get("rounding"), params.get("random_state")
    seed = int(state) if isinstance(state, int | np.integer) else 0
    return None if rounding is None else str(rounding), np.random.default_rng(seed)


def _equal(a: sp.csr_matrix, b: sp.csr_matrix) -> bool:
    return a.nnz == b.nnz and np.array_equal(a.indices, b.indices) and np.array_equal(a.data, b.data)


def read_counts_of(adata: ad.AnnData, key: str, layer: str | None) -> sp.csr_matrix:
    """The counts that an imputation of ours was made from; of a layer, where it is given."""
    params = params_of(adata, key)
    recorded = _keys.layer_of(params)
    if layer is not None:
        return read_counts(adata, layer, *_recorded_rounding(params))
    found = find_counts(adata, key)
    if found is None:
        counts = read_counts(adata, recorded, *_recorded_rounding(params))
        _check.warn(
            f"{source_name(adata, recorded)} holds other counts than those that {key!r} was imputed from; pass layer=... where these are"
        )
        return counts
    name, counts = found
    if name != recorded:
        logg.info(
            f"{source_name(adata, recorded)} does not hold the counts any more that {key!r} was imputed from; they are read from "
            f"{source_name(adata, name)}"
        )
    return counts


def read_layer(adata: ad.AnnData, layer: str, *, require_output: str | None = None) -> Any:
    """A layer as it is stored.

    Refused where one of our functions wrote it on another scale than the one required, or where counts have been logged since.
    """
    matrix = _matrix(adata, layer)
    params = params_of(adata, layer) if written_by(adata, layer) else {}
    scale = params.get("output")
    if require_output and scale and scale != require_output:
        raise ValueError(f"layer {layer!r} was written with output={scale!r}; output={require_output!r} is needed here")
    if require_output == "counts" and params.get("fill") == "expressed":
        _check.warn(
            f"layer {layer!r} was written with fill='expressed': its zeros promise no molecule where some are, and the score is too bad. "
            "Score the same imputation with fill='all'"
        )
    check_kind(matrix, f"adata.layers[{layer!r}]")
    if "counts" in (scale, None if scale else require_output) and is_logged(matrix):
        raise ValueError(
            f"layer {layer!r} {'was written as' if scale else 'is to hold'} expected counts, and holds log1p of normalised values; "
            "impute again, and normalise a copy of the layer"
        )
    return _in_memory(matrix)


def read_matrix(adata: ad.AnnData, layer: str | None) -> Any:
    """``X`` or a layer of real numbers as it is stored (read only), any of them NaN or infinite."""
    matrix = _matrix(adata, layer)
    check_kind(matrix, source_name(adata, layer))
    return _in_memory(matrix)


def _in_memory(matrix: Any) -> Any:
    if hasattr(matrix, "to_memory"):  # backed sparse
        matrix = matrix.to_memory()
    # Half precision is for storage: sums over a row overflow in it, and scipy does not know it.
    return matrix.astype(np.float32) if matrix.dtype == np.float16 else matrix


def source_name(adata: ad.AnnData, layer: str | None) -> str:
    """How messages call ``X``, a layer or ``raw``."""
    return "adata.X" if layer is None else "adata.raw" if is_raw(adata, layer) else f"adata.layers[{layer!r}]"


def entry_name(adata: ad.AnnData | ad.Raw, row: int, column: int) -> str:
    """How messages call an entry."""
    return f"cell {adata.obs_names[row]!r}, gene {adata.var_names[column]!r}"


def read_finite(adata: ad.AnnData, layer: str | None) -> sp.csr_matrix:
    """Finite real numbers of ``X`` or a layer as canonical CSR float32 (shares its buffers with the object: read only)."""
    csr = to_csr(_matrix(adata, layer), source_name(adata, layer))
    bad = np.flatnonzero(~np.isfinite(csr.data))
    if bad.size:
        raise ValueError(
            f"{source_name(adata, layer)} has {bad.size} values that are NaN or infinite (first: {_entry(csr, adata, bad[0])}); "
            "finite values are needed here. Remove or fill them"
        )
    return csr


def read_with_gaps(adata: ad.AnnData, layer: str | None) -> np.ndarray:
    """Real numbers of ``X`` or a layer, or NaN where there is none, as a dense float32 array of its own."""
    matrix = read_matrix(adata, layer)
    if sp.issparse(matrix) and not matrix.dtype.isnative:
        matrix = matrix.astype(matrix.dtype.newbyteorder("="))  # scipy slices no other
    dense = np.empty(adata.shape, dtype=np.float32)
    n_bad, first = 0, (0, 0)
    for rows in chunks(*adata.shape):
        part = some_rows(matrix, rows)
        with np.errstate(over="ignore"):
            dense[rows] = part.toarray() if sp.issparse(part) else np.asarray(part)
        bad = np.argwhere(np.isinf(dense[rows]))
        if bad.size and not n_bad:
            first = (rows.start + int(bad[0, 0]), int(bad[0, 1]))
        n_bad += len(bad)
    if n_bad:
        raise ValueError(
            f"{source_name(adata, layer)} has {n_bad} infinite values (first: {entry_name(adata, *first)}); "
            "set them to NaN where they stand for missing values, or remove them"
        )
    return dense


def read_mask(adata: ad.AnnData, layer: str) -> np.ndarray:
    """A layer of True and False (or 1 and 0) as a dense boolean array."""
    _check.name_of("mask_layer", layer, "a layer")
    if layer not in layer_names(adata):
        raise _check.missing("mask_layer: layer", layer, layer_names(adata))
    matrix = _matrix(adata, layer)
    matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix
    dense = np.empty(adata.shape, dtype=bool)
    for rows in chunks(*adata.shape):
        part = some_rows(matrix, rows)
        part = part.toarray() if sp.issparse(part) else np.asarray(part)
        if part.dtype != bool and not np.isin(part, (0, 1)).all():
            raise ValueError(f"mask_layer={layer!r} holds other values than True and False (observed and missing)")
        dense[rows] = part.astype(bool)
    return dense


def read_neighbours(adata: ad.AnnData, key: str = _keys.SPATIAL) -> sp.csr_matrix | None:
    """Who is next to whom in space: ones, none on the diagonal; None where the object has no such graph."""
    if _keys.connectivities(key) not in adata.obsp:
        return None
    name = f"adata.obsp[{_keys.connectivities(key)!r}]"
    graph = to_csr(adata.obsp[_keys.connectivities(key)], name)
    again = "delete it and make it again, e.g. with scimpute.pp.spatial_rings"
    if not np.isfinite(graph.data).all():
        raise ValueError(f"{name} has NaN or infinite values; {again}")
    if graph.nnz and graph.data.min() < 0:
        raise ValueError(f"{name} has negative values (min {graph.data.min():g}), which no graph of neighbours has; {again}")
    rows = np.repeat(np.arange(adata.n_obs), np.diff(graph.indptr))
    other = graph.indices != rows
    return sp.csr_matrix((np.ones(other.sum()), (rows[other], graph.indices[other])), shape=graph.shape)


def model_file(adata: ad.AnnData, save: str | os.PathLike[str] | None) -> Path | None:
    """Where a model is to be saved, if it is; found out before any work is done."""
    if save is None:
        return None
    if not adata.var_names.is_unique:
        raise ValueError(
            "save: adata.var_names are not unique, and a model knows its genes by name; call adata.var_names_make_unique() first"
        )
    backing = False
    with contextlib.suppress(TypeError, ValueError):  # what is no path is refused below
        backing = adata.filename is not None and os.path.realpath(save) == os.path.realpath(adata.filename)
    if backing:
        raise FileExistsError(f"save: {os.fspath(save)!r} is the file that backs adata; give the model a file of its own")
    return _save.model_target(save)


def check_memory(
    adata: ad.AnnData, counts: sp.csr_matrix, k: int, *, sd: bool, own: bool, dtype: str, copy: bool, hint: str, **work: Any
) -> None:
    """Refuse before the work an imputation of ``k`` genes that would not fit, and say what helps.

    ``own``: rates in the cell's own batch are held beside those of another one. ``work`` is passed to :func:`._memory.of_counts`.
    """
    arrays = 1 + sd + own
    needed = _memory.of_counts(adata.n_obs, k, counts.nnz, arrays=arrays, half=dtype == "float16", copied=copied(adata, copy=copy), **work)
    ways = [*(["pass sd=False"] if sd else []), *(["pass copy=False"] if copy else []), hint]
    _check.memory(needed, ", or ".join(ways))


def copied(adata: ad.AnnData, *, copy: bool) -> int:
    """Bytes of the object, where a result goes to a copy: a view becomes an object of its own as soon as it is written to."""
    return _bytes_of(adata) if copy or adata.is_view else 0


def _bytes_of(adata: ad.AnnData) -> int:
    """Of the matrices that a copy has."""
    found = [adata.X, *(adata.layers[name] for name in layer_names(adata)), adata.raw.X if adata.raw is not None else None]
    found += [matrix for slot in ("obsm", "varm", "obsp", "varp") for matrix in getattr(adata, slot).values()]
    arrays = [part for matrix in found for part in (vars(matrix).values() if sp.issparse(matrix) else [matrix])]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def warn_of_empty_cells(counts: sp.csr_matrix, size: np.ndarray) -> None:
    """Say what becomes of cells without a molecule."""
    empty = np.diff(counts.indptr) == 0
    if empty.any():
        known = "from their library sizes alone" if (size[empty] > 0).all() else "as cells of depth 0"
        _check.warn(f"{empty.sum()} cells have no molecules; they are imputed {known}")


IMPUTE = ("began", "spatial", "nmf", "pmi", "gain")


def _check_key(
    adata: ad.AnnData, key: str, method: str, layer: str | None, suffixes: Sequence[str], beside: Mapping[str, Sequence[str]], sd: bool
) -> None:
    """Refuse a key that would overwrite what this function did not write."""
    _check.key_name("key_added", key)
    names = [key + suffix for suffix in suffixes]
    if layer in names:
        raise ValueError(f"key_added={key!r} would overwrite the layer that is read, {layer!r}; choose another key")
    if written_by(adata, key) == method:
        # Those with a standard deviation and nothing beside it write to either; which of the two is the user's cannot be told.
        both = next((n for n in names if n in layer_names(adata) and n in adata.obsm), None)
        if both is not None and _keys.sd(key) in names and not beside:
            raise ValueError(
                f"key_added={key!r}: layers[{both!r}] and obsm[{both!r}] both exist, and only one is of {method}; choose another key or "
                "delete them"
            )
        # What is called like standard deviations beside a result without them is the user's.
        names, beside = [] if has_sd(adata, key) else [_keys.sd(key)], {}
    names = [n for n in names if sd or n != _keys.sd(key)]
    taken = [f"layers[{n!r}]" for n in names if n in layer_names(adata)]
    taken += [f"{slot}[{n!r}]" for slot in ("obsm", "varm") for n in names if n in getattr(adata, slot)]
    taken += [f"{slot}[{n!r}]" for slot in beside for n in beside[slot] if n in getattr(adata, slot)]
    taken += [f"uns[{key!r}]"] if key in adata.uns and written_by(adata, key) != method else []
    if method in IMPUTE and key not in adata.uns and {f"layers[{key!r}]", f"obsm[{key!r}]"} & set(taken):
        raise ValueError(
            f"key_added={key!r}: {', '.join(taken)} exist and were not written by {method} as far as uns says. Results of samples "
            f"that were imputed apart are joined so, as anndata.concat drops uns. Choose another key, or delete them first: "
            f"{'; '.join(f'del adata.{place}' for place in taken)}"
        )
    if taken:
        raise ValueError(f"key_added={key!r}: {', '.join(taken)} exist and were not written by {method}; choose another key or delete them")


def write_column(adata: ad.AnnData, name: str, values: np.ndarray) -> None:
    """Write a column of ``var``; one of this name goes."""
    _actual(adata).var[name] = values
    logg.info(f"    adata.var[{name!r}] written by scimpute")


def _actual(adata: ad.AnnData) -> ad.AnnData:
    """The object, no view any more: as scanpy does it, for anndata would warn of our line."""
    if adata.is_view:
        adata._init_as_actual(adata.copy())
    return adata


def written_by(adata: ad.AnnData, key: str) -> str | None:
    """The function of ours that wrote ``uns[key]``, if one did."""
    entry = adata.uns.get(key)
    return str(entry.get(_keys.METHOD)) if isinstance(entry, Mapping) and _keys.METHOD in entry else None


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
    found = entry.get(_keys.SOURCE) if isinstance(entry, Mapping) else None
    return found if isinstance(found, Mapping) and {"molecules", "cells", "genes"} <= found.keys() else None


def without_sd(adata: ad.AnnData, name: str) -> KeyError | None:
    """A KeyError that says how to get standard deviations where ``name`` would be those of a result without them."""
    for key in adata.uns:
        if name == _keys.sd(key) and written_by(adata, key) and not has_sd(adata, key):
            return KeyError(f"{name!r} not found: {key!r} was imputed with sd=False, which writes no standard deviations; pass sd=True")
    return None


def write(
    adata: ad.AnnData,
    key: str,
    method: str,
    *,
    layers: Mapping[str, Any] | None = None,
    obsm: Mapping[str, Any] | None = None,
    varm: Mapping[str, Any] | None = None,
    obsp: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any],
    more_uns: Mapping[str, Mapping[str, Any]] | None = None,
    earlier: Mapping[str, Collection[str]] | None = None,
    copy: bool = False,
    save: Callable[[], None] | None = None,
) -> ad.AnnData | None:
    """Write a result, all or nothing, and log what was written.

    ``save`` writes the model that belongs to it. That it cannot be written is told once the result is in, which is not lost for it.

    ``uns`` goes to ``uns[key]``, each entry of ``more_uns`` to its own key. An earlier result of the same function under the same key
    goes, also where it was in the other of layers and obsm; of other slots, what ``earlier`` names.
    """
    unsaved: Exception | None = None
    if save is not None:
        try:
            save()
        except Exception as error:
            unsaved = error
    target = adata.copy() if copy else _actual(adata)
    new: dict[str, Mapping[str, Any]] = {"layers": layers or {}, "obsm": obsm or {}, "varm": varm or {}, "obsp": obsp or {}}
    new["uns"] = {name: {_keys.METHOD: method, **entry} for name, entry in {key: uns, **(more_uns or {})}.items()}
    # Of a function that writes both, what is in one of them is not what was in the other.
    arrays = {name for slot in ("layers", "obsm") for name in new[slot] if name not in getattr(target, slot)}
    if (new["layers"] and new["obsm"]) or written_by(target, key) != method:
        arrays = set()
    old = {"layers": arrays, "obsm": arrays, **(earlier or {})}
    if uns.get("params", {}).get("sd") is False and written_by(target, key) == method and has_sd(target, key):
        # The standard deviations of an earlier result do not belong to this one. Where it was of the other kind, `earlier` names them.
        where = ["layers" if key in new["layers"] else "obsm"] if new["varm"] else ["layers", "obsm"]
        old |= {slot: {*old[slot], _keys.sd(key)} for slot in where}
    names = {slot: {*new[slot], *old.get(slot, ())} for slot in new}
    before = {slot: {name: getattr(target, slot)[name] for name in names[slot] if name in getattr(target, slot)} for slot in new}
    try:
        for slot, entries in new.items():
            for name in before[slot].keys() - entries.keys():
                del getattr(target, slot)[name]
            for name, value in entries.items():
                getattr(target, slot)[name] = value
    except BaseException:
        for slot in new:
            for name in names[slot]:
                if name in before[slot]:
                    getattr(target, slot)[name] = before[slot][name]
                elif name in getattr(target, slot):
                    del getattr(target, slot)[name]
        raise
    # The result is in: a log that is closed or full does not make a failure of it.
    with contextlib.suppress(Exception):
        for slot in ("layers", "obsm", "varm", "obsp"):
            for name in new[slot]:
                logg.info(f"    adata.{slot}[{name!r}] written by scimpute {method}")
        logg.info(f"    adata.uns[{key!r}] with parameters and history")
    if unsaved is not None:
        _check.tell(
            f"the result is in the object, but its model could not be saved: {' '.join(str(unsaved).split()) or type(unsaved).__name__}. "
            "Mend this and train again for the model; with the same random_state it is the same",
            _check.NotSavedWarning,
        )
    return target if copy else None
