"""Reading of the input in all supported formats. scanpy and anndata are imported only when a file is read."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

READABLE = "h5ad, zarr, 10x h5, a 10x folder with matrix.mtx, or csv or tsv with a row for each cell"
_MATRIX = ("matrix.mtx", "matrix.mtx.gz")
_10X = ("matrix.mtx", "barcodes.tsv", "features.tsv", "genes.tsv")
_TABLES = (".csv", ".tsv", ".txt", ".tab")
_CONVERSIONS = {
    ".h5mu": "; write a modality as h5ad: mudata.read_h5mu(file)['rna'].write_h5ad(new_file)",
    ".loom": "; write it as h5ad: anndata.io.read_loom(file).write_h5ad(new_file)",
}


def read(path: str) -> AnnData:
    """The object in a file or folder. All problems become one clear error."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"IN: {path!r} does not exist")
    try:
        reader = _reader_for(path)
        adata = None if reader is None else reader(path)
    except Exception as error:
        if isinstance(error, IndexError) and path.removesuffix(".gz").endswith(_TABLES):
            raise ValueError(f"IN: {path!r} has no row of numbers under a row of names") from error
        kind = " as h5ad" if path.endswith(".h5ad") else ""
        raise ValueError(f"IN: {path!r} cannot be read{kind}: {error}") from error
    if adata is None:
        conversion = _CONVERSIONS.get(Path(path).suffix, "")
        raise ValueError(f"IN: {path!r} is not an h5ad file, and has no other supported format ({READABLE}){conversion}")
    return adata


def _reader_for(path: str) -> Callable[[str], AnnData] | None:
    """The function that reads a file or folder, chosen by its content; None if no function reads it."""
    import anndata
    import h5py
    import scanpy

    if os.path.isdir(path):
        names = os.listdir(path)
        if _is_10x(path):
            return _with_unique_names(scanpy.read_10x_mtx, prefix=_prefix(names))
        return anndata.io.read_zarr if {".zgroup", ".zattrs", "zarr.json"} & set(names) else None
    if not os.path.isfile(path):
        return None
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            # 10x files have a group "matrix"; earlier versions have a group for each genome.
            is_10x = "X" not in file and "obs" not in file and any("barcodes" in group for group in file.values() if hasattr(group, "keys"))
            is_h5ad = {"obs", "var"} <= file.keys() and "mod" not in file
        return _with_unique_names(scanpy.read_10x_h5) if is_10x else anndata.read_h5ad if is_h5ad else None
    name = path.removesuffix(".gz")
    if name.endswith(".csv"):
        return anndata.io.read_csv
    if name.endswith(_TABLES):
        return functools.partial(anndata.io.read_csv, delimiter="\t")
    return None


def _is_10x(path: str) -> bool:
    return os.path.isdir(path) and any(name.endswith(_MATRIX) for name in os.listdir(path))


def _prefix(names: list[str]) -> str | None:
    """The prefix that GEO puts before the three file names of a 10x folder."""
    name = next(name for name in names if name.endswith(_MATRIX))
    return name.split("matrix.mtx")[0] or None


def _with_unique_names(read: Callable[..., AnnData], **options: Any) -> Callable[[str], AnnData]:
    """Make gene names unique, because 10x gives some genes the same name. Their ids are in ``var["gene_ids"]``."""

    def reader(path: str) -> AnnData:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Variable names are not unique")
            adata = read(path, **options)
        adata.var_names_make_unique()
        return adata

    return reader


@contextlib.contextmanager
def as_private_as(path: str) -> Iterator[None]:
    """Within this context nobody can read a new file who cannot read the input."""
    forbidden = 0
    for status in map(os.stat, _parts(path)):
        forbidden |= ~stat.S_IMODE(status.st_mode) & 0o066
        if hasattr(os, "getegid") and status.st_gid != os.getegid():
            # A new file belongs to another group. This group gets the permissions of all others.
            forbidden |= (forbidden & 0o006) << 3
    before = os.umask(0o077)
    os.umask(before | forbidden)
    try:
        yield
    finally:
        os.umask(before)


def _parts(path: str) -> Iterator[str]:
    """The input file, or the input folder and its files that are read."""
    yield path
    if _is_10x(path):
        yield from (os.path.join(path, name) for name in os.listdir(path) if name.removesuffix(".gz").endswith(_10X))
    elif os.path.isdir(path):
        yield from (os.path.join(folder, name) for folder, folders, files in os.walk(path) for name in [*folders, *files])
