"""Every kind of matrix an object may hold, read as counts and as expression with gaps: the same numbers, and nothing is changed.

What a method does with them is the same for all kinds; ``test_contract.py`` runs one kind of each family through the methods.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scimpute._anndata.counts import read_counts
from scimpute._anndata.read import read_with_gaps
from scimpute._sparse import chunks


def non_canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The same values with every entry in two parts, an explicit zero in every row, and columns in falling order."""
    rows = []
    for row in matrix:
        zero = np.setdiff1d(np.arange(matrix.shape[1]), row.indices)[:1]
        columns = np.concatenate([row.indices[::-1], row.indices, zero])
        values = np.concatenate([row.data[::-1] - 1, np.ones_like(row.data), np.zeros(len(zero))])
        rows.append((columns, values))
    starts = np.cumsum([0, *(len(columns) for columns, _ in rows)])
    values, columns = (np.concatenate([row[i] for row in rows]) for i in (1, 0))
    found = sp.csr_matrix((values.astype(np.float32), columns, starts), shape=matrix.shape)
    assert not found.has_sorted_indices
    return found


def long_indices(matrix: sp.csr_matrix) -> sp.csr_matrix:
    found = matrix.copy()
    found.indices, found.indptr = found.indices.astype(np.int64), found.indptr.astype(np.int64)
    return found


def frozen(matrix: sp.csr_matrix) -> sp.csr_matrix:
    found = matrix.copy()
    for part in (found.data, found.indices, found.indptr):
        part.flags.writeable = False
    return found


def memmap(dense: np.ndarray, path: Path) -> np.ndarray:
    np.save(path / "counts.npy", dense)
    return np.load(path / "counts.npy", mmap_mode="r")


def dask_of(matrix: Any, rows: int) -> Any:
    return pytest.importorskip("dask.array").from_array(matrix, chunks=(rows, matrix.shape[1]), asarray=False)


SPARSE = {
    "csr": lambda x: x.copy(),
    "csr_array": sp.csr_array,
    "csc": sp.csc_matrix,
    "csc_array": sp.csc_array,
    "non-canonical": non_canonical,
    "int64-indices": long_indices,
    "read-only": frozen,
    "big-endian-csr": lambda x: sp.csr_matrix((x.data.astype(">f4"), x.indices, x.indptr), shape=x.shape),
    "big-endian-csc": lambda x: sp.csc_matrix((x.tocsc().data.astype(">f8"), x.tocsc().indices, x.tocsc().indptr), shape=x.shape),
    "csr-float64": lambda x: x.astype(np.float64),
    "dask-csr": lambda x: dask_of(x, 17),
    "dask-csr-array": lambda x: dask_of(sp.csr_array(x), 17),
}
DENSE = {
    "dense": lambda x, _: x,
    "dense-float64": lambda x, _: x.astype("float64"),
    "dense-float16": lambda x, _: x.astype("float16"),
    "fortran": lambda x, _: np.asfortranarray(x),
    "negative-strides": lambda x, _: x[::-1, ::-1].copy()[::-1, ::-1],
    "big-endian": lambda x, _: x.astype(">f4"),
    "memmap": memmap,
    "dask": lambda x, _: dask_of(x, 13),
}
WHOLE = {
    "csr-int64": lambda x: x.astype(np.int64),
    "csc-uint8": lambda x: x.tocsc().astype(np.uint8),
    **{f"dense-{name}": lambda x, name=name: x.toarray().astype(name) for name in ("int64", "int32", "uint8", "uint16", ">i8")},
}
BOOLEAN = {"csr-bool": lambda x: x > 0, "dense-bool": lambda x: x.toarray() > 0}
KINDS: dict[str, Callable[[sp.csr_matrix, Path], Any]] = {
    **{kind: lambda x, _, convert=convert: convert(x) for kind, convert in (SPARSE | WHOLE | BOOLEAN).items()},
    **{kind: lambda x, path, convert=convert: convert(x.toarray(), path) for kind, convert in DENSE.items()},
}
BACKED: dict[str, Callable[[sp.csr_matrix], Any]] = {
    "csr": lambda x: x,
    "csc": sp.csc_matrix,
    "dense": lambda x: x.toarray(),
    "dense-int": lambda x: x.toarray().astype("int32"),
}


@pytest.fixture(params=[None, 7], ids=["whole", "seven rows at a time"])
def _chunks(request: pytest.FixtureRequest, replace_everywhere: Callable[[Any, Any], None]) -> None:
    """Dense matrices and those on disk are read some rows at a time."""
    if request.param is not None:

        def some(n_rows: int, *_: int) -> Any:
            yield from (slice(start, min(start + request.param, n_rows)) for start in range(0, n_rows, request.param))

        replace_everywhere(chunks, some)


@pytest.fixture
def counts(adata: ad.AnnData) -> sp.csr_matrix:
    return adata.X.copy()


@pytest.fixture
def expression(adata: ad.AnnData) -> sp.csr_matrix:
    """Log counts of which three in ten are NaN, in steps that half precision holds."""
    values = np.rint(np.log1p(adata.X.toarray()) * 64) / 64
    values[np.random.default_rng(2).random(adata.shape) < 0.3] = np.nan
    return sp.csr_matrix(values.astype(np.float32))


def inside(adata: ad.AnnData, matrix: Any, layer: str | None) -> None:
    if layer is None:
        adata.X = matrix
    else:
        adata.layers[layer] = matrix


def assert_canonical(found: sp.csr_matrix, expected: sp.csr_matrix) -> None:
    assert type(found) is sp.csr_matrix
    assert found.data.dtype == np.float32
    assert found.data.dtype.isnative
    assert sp.csr_matrix((found.data, found.indices, found.indptr), shape=found.shape).has_canonical_format
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("layer", [None, "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_counts(adata, counts, fingerprint, tmp_path, kind, layer):
    inside(adata, KINDS[kind](counts, tmp_path), layer)
    before = fingerprint(adata)
    assert_canonical(read_counts(adata, layer), (counts > 0).astype(np.float32) if kind in BOOLEAN else counts)
    assert fingerprint(adata) == before


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("layer", [None, "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_expression_with_gaps(adata, expression, fingerprint, tmp_path, kind, layer):
    if kind in WHOLE | BOOLEAN:
        expression.data[:] = np.nan_to_num(np.rint(expression.data))
    inside(adata, KINDS[kind](expression, tmp_path), layer)
    before = fingerprint(adata)
    values = read_with_gaps(adata, layer)
    assert type(values) is np.ndarray
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, (expression > 0).toarray() if kind in BOOLEAN else expression.toarray())
    values[:] = 7  # an array of its own, which the caller fills
    assert fingerprint(adata) == before


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("kind", BACKED)
def test_on_disk(adata, counts, expression, fingerprint, tmp_path, kind):
    for name, matrix in (("counts", counts), ("expression", expression)):
        if kind == "dense-int":
            matrix.data[:] = np.nan_to_num(np.rint(matrix.data))
            matrix.eliminate_zeros()
        file = tmp_path / f"{name}.h5ad"
        adata.X = BACKED[kind](matrix)
        adata.write_h5ad(file)
        stored = file.read_bytes()
        on_disk = ad.read_h5ad(file, backed="r")
        before = fingerprint(on_disk)
        if name == "counts":
            assert_canonical(read_counts(on_disk, None), matrix)
        np.testing.assert_array_equal(read_with_gaps(on_disk, None), matrix.toarray())
        assert on_disk.isbacked
        assert fingerprint(on_disk) == before
        on_disk.file.close()
        assert file.read_bytes() == stored
