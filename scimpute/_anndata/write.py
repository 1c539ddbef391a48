"""The only code that writes to an AnnData: what may be written is found before the work, and written is last and whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scanpy import logging as logg

from .. import _check
from .._methods import METHODS
from . import keys
from .read import check_object, layer_names
from .results import has_sd, params_of, written_by


def check_target(
    adata: Any,
    method: str,
    key_added: str,
    *,
    layer: str | None,
    copy: bool,
    suffixes: Sequence[str] = ("", "_sd"),
    beside: Mapping[str, str] | None = None,
    sd: bool = True,
) -> None:
    """Refuse before the work an object or a key that could not take the result; ``beside`` has a name in each of other slots.

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


def check_saveable(adata: ad.AnnData, save: Any) -> None:
    """Refuse before the work to save a model that could not be applied, or in the place of the object."""
    if save is None:
        return
    if not adata.var_names.is_unique:
        raise ValueError(
            "save: adata.var_names are not unique, and a model knows its genes by name; call adata.var_names_make_unique() first"
        )
    backing = False
    with contextlib.suppress(TypeError, ValueError):  # what is no path is refused below
        backing = adata.filename is not None and os.path.realpath(save) == os.path.realpath(adata.filename)
    if backing:
        raise FileExistsError(f"save: {os.fspath(save)!r} is the file that backs adata; give the model a file of its own")


def _check_key(
    adata: ad.AnnData, key: str, method: str, layer: str | None, suffixes: Sequence[str], beside: Mapping[str, str], sd: bool
) -> None:
    """Refuse a key that would overwrite what this function did not write."""
    _check.key_name("key_added", key)
    names = [key + suffix for suffix in suffixes]
    if layer in names:
        raise ValueError(f"key_added={key!r} would overwrite the layer that is read, {layer!r}; choose another key")
    if written_by(adata, key) == method:
        # Those with a standard deviation and nothing beside it write to either; which of the two is the user's cannot be told.
        both = next((n for n in names if n in layer_names(adata) and n in adata.obsm), None)
        if both is not None and keys.sd(key) in names and not beside:
            raise ValueError(
                f"key_added={key!r}: layers[{both!r}] and obsm[{both!r}] both exist, and only one is of {method}; choose another key or "
                "delete them"
            )
        # What is called like standard deviations beside a result without them is the user's.
        names, beside = [] if has_sd(adata, key) else [keys.sd(key)], {}
    names = [n for n in names if sd or n != keys.sd(key)]
    taken = [f"layers[{n!r}]" for n in names if n in layer_names(adata)]
    taken += [f"{slot}[{n!r}]" for slot in ("obsm", "varm") for n in names if n in getattr(adata, slot)]
    taken += [f"{slot}[{n!r}]" for slot, n in beside.items() if n in getattr(adata, slot)]
    taken += [f"uns[{key!r}]"] if key in adata.uns and written_by(adata, key) != method else []
    if method in METHODS and key not in adata.uns and {f"layers[{key!r}]", f"obsm[{key!r}]"} & set(taken):
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


def as_tables(adata: ad.AnnData, values: Mapping[str, np.ndarray], genes: Sequence[str] | pd.Index) -> dict[str, pd.DataFrame]:
    """Results for some genes as DataFrames, cells in rows."""
    return {name: pd.DataFrame(value, index=adata.obs_names, columns=genes) for name, value in values.items()}


def earlier_result(adata: ad.AnnData, method: str, key: str, *, in_table: bool) -> dict[str, list[str]] | None:
    """Where an earlier result lies that the new one does not overwrite, of a method that writes vectors to ``obsm`` as well.

    Values lie in layers, or with some genes in ``obsm``. Refused where the user has something in the place of the new ones.
    """
    if written_by(adata, key) != method:
        return None
    before, now = ("obsm" if table else "layers" for table in ("genes" in params_of(adata, key), in_table))
    if before == now:
        return None
    taken = [f"{now}[{name!r}]" for name in (key, keys.sd(key)) if name in getattr(adata, now)]
    if taken:
        raise ValueError(f"key_added={key!r}: {', '.join(taken)} exist and were not written by {method}; choose another key or delete them")
    return {before: [key, *([keys.sd(key)] if has_sd(adata, key) else [])]}


def write(
    adata: ad.AnnData,
    key: str,
    method: str,
    slots: Mapping[str, Mapping[str, Any]],
    uns: Mapping[str, Mapping[str, Any]],
    *,
    earlier: Mapping[str, Collection[str]] | None = None,
    copy: bool = False,
    save: Callable[[], None] | None = None,
) -> ad.AnnData | None:
    """Write a result, all or nothing, and log what was written.

    An earlier result of the same function under the same key goes, also where it was in the other of layers and obsm.

    Parameters
    ----------
    slots
        What goes to ``layers``, ``obsm``, ``varm`` and ``obsp``, by name.
    uns
        What goes to ``uns``; an entry is called ``key``.
    earlier
        Names in any slot that go as well.
    save
        Writes the model that belongs to the result. If that fails, a warning says so once the result is in, which is not lost for it.
    """
    unsaved: Exception | None = None
    if save is not None:
        try:
            save()
        except Exception as error:
            unsaved = error
    target = adata.copy() if copy else _actual(adata)
    new = {**slots, "uns": {name: {keys.METHOD: method, **entry} for name, entry in uns.items()}}
    _replace(target, new, _outdated(target, key, method, new, earlier or {}))
    # The result is in: a log that is closed or full does not make a failure of it.
    with contextlib.suppress(Exception):
        for slot, entries in slots.items():
            for name in entries:
                logg.info(f"    adata.{slot}[{name!r}] written by scimpute {method}")
        logg.info(f"    adata.uns[{key!r}] with parameters and history")
    if unsaved is not None:
        _check.tell(
            f"the result is in the object, but its model could not be saved: {' '.join(str(unsaved).split()) or type(unsaved).__name__}. "
            "Mend this and train again for the model; with the same random_state it is the same",
            _check.NotSavedWarning,
        )
    return target if copy else None


def _outdated(
    adata: ad.AnnData, key: str, method: str, new: Mapping[str, Mapping[str, Any]], earlier: Mapping[str, Collection[str]]
) -> dict[str, set[str]]:
    """Names of an earlier result by slot, which do not belong to the new one."""
    outdated = {slot: set(names) for slot, names in earlier.items()}
    if written_by(adata, key) != method:
        return outdated
    layers, tables = new.get("layers", {}), new.get("obsm", {})
    if not (layers and tables):
        # A function that writes to either: what it had in the other one is not the user's.
        for slot, entries in (("layers", tables), ("obsm", layers)):
            present = getattr(adata, "obsm" if slot == "layers" else "layers")
            outdated[slot] = outdated.get(slot, set()) | {name for name in entries if name not in present}
    if new["uns"][key].get("params", {}).get("sd") is False and has_sd(adata, key):
        # Where values and vectors are written, `earlier` names those of the other slot.
        where = ["layers" if key in layers else "obsm"] if new.get("varm") else ["layers", "obsm"]
        for slot in where:
            outdated[slot] = outdated.get(slot, set()) | {keys.sd(key)}
    return outdated


def _replace(adata: ad.AnnData, new: Mapping[str, Mapping[str, Any]], outdated: Mapping[str, set[str]]) -> None:
    """Set all new entries and delete the outdated ones; at any failure everything is as it was before."""
    names = {slot: {*new.get(slot, {}), *outdated.get(slot, set())} for slot in (*new, *outdated)}
    before = {slot: {name: getattr(adata, slot)[name] for name in names[slot] if name in getattr(adata, slot)} for slot in names}
    try:
        for slot in names:
            for name in before[slot].keys() - new.get(slot, {}).keys():
                del getattr(adata, slot)[name]
            for name, value in new.get(slot, {}).items():
                getattr(adata, slot)[name] = value
    except BaseException:
        for slot in names:
            for name in names[slot]:
                if name in before[slot]:
                    getattr(adata, slot)[name] = before[slot][name]
                elif name in getattr(adata, slot):
                    del getattr(adata, slot)[name]
        raise
