"""The only code that writes to an AnnData: what may be written is found before the work, and written is last and whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from scanpy import logging as logg

from .. import _check, _save
from . import keys
from .read import check_object, layer_names
from .results import IMPUTE, has_sd, written_by


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
    new["uns"] = {name: {keys.METHOD: method, **entry} for name, entry in {key: uns, **(more_uns or {})}.items()}
    # Of a function that writes both, what is in one of them is not what was in the other.
    arrays = {name for slot in ("layers", "obsm") for name in new[slot] if name not in getattr(target, slot)}
    if (new["layers"] and new["obsm"]) or written_by(target, key) != method:
        arrays = set()
    old = {"layers": arrays, "obsm": arrays, **(earlier or {})}
    if uns.get("params", {}).get("sd") is False and written_by(target, key) == method and has_sd(target, key):
        # The standard deviations of an earlier result do not belong to this one. Where it was of the other kind, `earlier` names them.
        where = ["layers" if key in new["layers"] else "obsm"] if new["varm"] else ["layers", "obsm"]
        old |= {slot: {*old[slot], keys.sd(key)} for slot in where}
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
