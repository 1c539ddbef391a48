"""The only code that writes to an AnnData. It checks the target before the work, and writes at the end: all or nothing."""

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
    other_slots: Mapping[str, str] | None = None,
    sd: bool = True,
) -> None:
    """Refuse, before the work, an object or a key that cannot take the result.

    ``other_slots`` has the names that the method also writes to other slots, one for each slot. With ``sd=False`` the method writes no
    standard deviations, and :func:`write` deletes the standard deviations of an earlier result.
    """
    check_writable(adata, copy)
    if layer is not None:
        _check.name_of("layer", layer, "a layer")
    # Gene names are written to tables and to model files.
    _check.storable("adata.var_names", adata.var_names)
    _check_key(adata, key_added, method, layer, suffixes, other_slots or {}, sd)


def check_writable(adata: Any, copy: bool) -> None:
    """Refuse, before the work, anything but an AnnData that can take a result."""
    check_object(adata)
    _check.boolean("copy", copy)
    if adata.isbacked and (copy or adata.is_view):
        what = "copy=True is not possible for a backed object" if copy else "adata is a view of a backed object, which cannot hold a result"
        raise ValueError(f"{what}; read it into memory with adata.to_memory() first")
    # Warn before the work: if warnings are errors, a later warning would lose the result.
    if adata.isbacked:
        _check.warn("adata is backed: the result is in memory only and is lost at close; keep it with adata.write_h5ad(new_file)")
    if adata.is_view and not copy:
        _check.warn(
            "adata is a view of another object: it becomes an object of its own, with the result in it, and the other stays as it is. "
            "Pass a copy to avoid this warning: adata = adata[...].copy()",
            ad.ImplicitModificationWarning,
        )


def check_saveable(adata: ad.AnnData, save: Any) -> None:
    """Refuse, before the work, to save a model that cannot be applied, or to overwrite the file of the object."""
    if save is None:
        return
    if not adata.var_names.is_unique:
        raise ValueError(
            "save: adata.var_names are not unique, and a model knows its genes by name; call adata.var_names_make_unique() first"
        )
    is_backing_file = False
    with contextlib.suppress(TypeError, ValueError):  # a later check refuses anything but a path
        is_backing_file = adata.filename is not None and os.path.realpath(save) == os.path.realpath(adata.filename)
    if is_backing_file:
        raise FileExistsError(f"save: {os.fspath(save)!r} is the file that backs adata; give the model a file of its own")


def _check_key(
    adata: ad.AnnData, key: str, method: str, layer: str | None, suffixes: Sequence[str], other_slots: Mapping[str, str], sd: bool
) -> None:
    """Refuse a key that would overwrite entries of the user or of another method."""
    _check.key_name("key_added", key)
    names = [key + suffix for suffix in suffixes]
    if layer in names:
        raise ValueError(f"key_added={key!r} would overwrite the layer that is read, {layer!r}; choose another key")
    if written_by(adata, key) == method:
        # These methods write values and standard deviations to layers or to obsm. We cannot know which of the two is the user's.
        both = next((n for n in names if n in layer_names(adata) and n in adata.obsm), None)
        if both is not None and keys.sd(key) in names and not other_slots:
            raise ValueError(
                f"key_added={key!r}: layers[{both!r}] and obsm[{both!r}] both exist, and {method} wrote only one of them; choose another "
                "key or delete them"
            )
        # If the earlier result has no standard deviations, an entry with their name is the user's.
        names, other_slots = [] if has_sd(adata, key) else [keys.sd(key)], {}
    names = [n for n in names if sd or n != keys.sd(key)]
    existing = [f"layers[{n!r}]" for n in names if n in layer_names(adata)]
    existing += [f"{slot}[{n!r}]" for slot in ("obsm", "varm") for n in names if n in getattr(adata, slot)]
    existing += [f"{slot}[{n!r}]" for slot, n in other_slots.items() if n in getattr(adata, slot)]
    existing += [f"uns[{key!r}]"] if key in adata.uns and written_by(adata, key) != method else []
    if method in METHODS and key not in adata.uns and {f"layers[{key!r}]", f"obsm[{key!r}]"} & set(existing):
        raise ValueError(
            f"key_added={key!r}: {', '.join(existing)} exist and were not written by {method}, according to uns. "
            f"anndata.concat drops uns, so joined results of separately imputed samples look like this. "
            f"Choose another key, or delete them first: "
            f"{'; '.join(f'del adata.{place}' for place in existing)}"
        )
    if existing:
        raise ValueError(
            f"key_added={key!r}: {', '.join(existing)} exist and were not written by {method}; choose another key or delete them"
        )


def write_column(adata: ad.AnnData, name: str, values: np.ndarray) -> None:
    """Write a column of ``var``; a column with the same name is replaced."""
    _actual(adata).var[name] = values
    logg.info(f"    adata.var[{name!r}] written by scimpute")


def _actual(adata: ad.AnnData) -> ad.AnnData:
    """The object, which is no longer a view. As in scanpy: anndata itself would warn about our line of code."""
    if adata.is_view:
        adata._init_as_actual(adata.copy())
    return adata


def as_tables(adata: ad.AnnData, values: Mapping[str, np.ndarray], genes: Sequence[str] | pd.Index) -> dict[str, pd.DataFrame]:
    """Results for some genes as DataFrames, cells in rows."""
    return {name: pd.DataFrame(value, index=adata.obs_names, columns=genes) for name, value in values.items()}


def earlier_result(adata: ad.AnnData, method: str, key: str, *, in_table: bool) -> dict[str, list[str]] | None:
    """Slot and names of an earlier result that the new result does not overwrite; for a method that also writes vectors to ``obsm``.

    Values are in ``layers``, or in ``obsm`` if only some genes were imputed. Entries of the user at the new place are refused.
    """
    if written_by(adata, key) != method:
        return None
    old_slot, new_slot = ("obsm" if table else "layers" for table in ("genes" in params_of(adata, key), in_table))
    if old_slot == new_slot:
        return None
    existing = [f"{new_slot}[{name!r}]" for name in (key, keys.sd(key)) if name in getattr(adata, new_slot)]
    if existing:
        raise ValueError(
            f"key_added={key!r}: {', '.join(existing)} exist and were not written by {method}; choose another key or delete them"
        )
    return {old_slot: [key, *([keys.sd(key)] if has_sd(adata, key) else [])]}


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

    An earlier result of the same function under the same key is deleted, even if it is in ``obsm`` and the new one in ``layers``.

    Parameters
    ----------
    slots
        Entries of ``layers``, ``obsm``, ``varm`` and ``obsp``, by name.
    uns
        Entries of ``uns``; one of them has the name ``key``.
    earlier
        Further names to delete, by slot.
    save
        Writes the model that belongs to the result. If this fails, the result is still written, and then a warning follows.
    """
    save_error: Exception | None = None
    if save is not None:
        try:
            save()
        except Exception as error:
            save_error = error
    target = adata.copy() if copy else _actual(adata)
    new = {**slots, "uns": {name: {keys.METHOD: method, **entry} for name, entry in uns.items()}}
    _replace(target, new, _outdated(target, key, method, new, earlier or {}))
    # The result is written. A log that is closed or full must not make the call fail.
    with contextlib.suppress(Exception):
        for slot, entries in slots.items():
            for name in entries:
                logg.info(f"    adata.{slot}[{name!r}] written by scimpute {method}")
        logg.info(f"    adata.uns[{key!r}] with parameters and history")
    if save_error is not None:
        _check.tell(
            "the result is in the object, but its model could not be saved: "
            f"{' '.join(str(save_error).split()) or type(save_error).__name__}. "
            "Correct this and train again to save it; the same random_state gives the same model",
            _check.NotSavedWarning,
        )
    return target if copy else None


def _outdated(
    adata: ad.AnnData, key: str, method: str, new: Mapping[str, Mapping[str, Any]], earlier: Mapping[str, Collection[str]]
) -> dict[str, set[str]]:
    """Names of an earlier result that the new result lacks, by slot."""
    outdated = {slot: set(names) for slot, names in earlier.items()}
    if written_by(adata, key) != method:
        return outdated
    layers, tables = new.get("layers", {}), new.get("obsm", {})
    if not (layers and tables):
        # The function writes to layers or to obsm, so its earlier entries in the other slot are not the user's.
        for slot, entries in (("layers", tables), ("obsm", layers)):
            present = getattr(adata, "obsm" if slot == "layers" else "layers")
            outdated[slot] = outdated.get(slot, set()) | {name for name in entries if name not in present}
    if new["uns"][key].get("params", {}).get("sd") is False and has_sd(adata, key):
        # If the method writes values and vectors, `earlier` has the names of the other slot.
        sd_slots = ["layers" if key in layers else "obsm"] if new.get("varm") else ["layers", "obsm"]
        for slot in sd_slots:
            outdated[slot] = outdated.get(slot, set()) | {keys.sd(key)}
    return outdated


def _replace(adata: ad.AnnData, new: Mapping[str, Mapping[str, Any]], outdated: Mapping[str, set[str]]) -> None:
    """Set all new entries and delete the outdated ones. A failure restores the object."""
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
