"""A saved model of `tl.began` or `tl.spatial` applied to an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _check, _device
from .._anndata import keys
from .._anndata.counts import read_source, warn_of_empty_cells
from .._anndata.genes import match_genes
from .._anndata.memory import check_memory
from .._anndata.obs import check_columns, read_labels_as_trained, read_size_as_trained
from .._anndata.sections import warn_of_spots_off_tissue
from .._anndata.side import read_side_as_trained
from .._anndata.write import as_tables
from .._counts.apply import aligned, impute
from .._counts.output import check_dtype, narrow
from .._counts.saved_model import Model

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

    from ._options import Options


def apply_counts(adata: AnnData, tensors: Mapping[str, Any], metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The ``slots`` and ``uns`` entries to write, and ``params``."""
    model = Model.read(tensors, metadata)
    places = match_genes(adata, model.genes)
    names, whole = _imputed_here(adata, model)
    labels = read_labels_as_trained(adata, model.labels, options.unseen)
    rounding = model.params.get("rounding") if options.rounding is None else options.rounding
    raw, source = read_source(adata, options.layer, rounding, _rng(model))
    counts = aligned(raw, places)
    size, size_key = read_size_as_trained(adata, model.params.get("size_key"), raw, counts, rounding)
    warn_of_empty_cells(counts, size)
    _warn_of_genes(model, counts, names)
    check_memory(
        adata,
        counts,
        len(names),
        sd=options.sd,
        own=model.target is not None and model.params["posterior"],
        dtype=options.dtype,
        copy=options.copy,
        hint="apply it to fewer cells at a time",
        workers=_device.workers(options.device),
    )
    check_dtype(options.dtype, model.params["output"], counts, model.positions(names), names)
    side = None
    if model.features is not None:
        warn_of_spots_off_tissue(adata, "imputed, and are neighbours of the others")
        saved = {name: tensor.numpy() for name, tensor in tensors.items()}
        side = read_side_as_trained(adata, model.params, labels[0] if labels else None, (*model.levels, 1)[0], saved)
    measured = places >= 0
    # Without size_key, library sizes are sums over the genes of the model.
    covered = 1.0 if model.params.get("size_key") is None else float(model.tensors["share"].numpy()[measured].sum())
    imputed = impute(model, counts, size, labels, names, options.device, side, measured, covered, sd=options.sd, progress=options.progress)
    narrow(imputed, options.dtype, names)

    params = {name: value for name, value in metadata["params"].items() if name != "size_key" or size_key}
    params |= {"sd": options.sd, "dtype": imputed.dtype} | ({"rounding": rounding} if rounding is not None else {})
    values = {options.key: imputed.values} | ({} if imputed.sd is None else {keys.sd(options.key): imputed.sd})
    slots = {"layers": values} if whole else {"obsm": as_tables(adata, values, names)}
    return {"params": params, "slots": slots, "uns": {"conditioned_on": metadata["conditioned_on"], keys.SOURCE: source}}


def _imputed_here(adata: AnnData, model: Model) -> tuple[list[str], bool]:
    """Genes of the result, and whether they are all genes of the object, so that the result is a layer."""
    names = adata.var_names.astype(str)
    if "genes" not in model.params and names.isin(model.imputed).all():
        return list(names), True
    common = list(pd.Index(model.imputed)[pd.Index(model.imputed).isin(names)])
    if not common:
        raise ValueError(f"none of the genes that the model imputes is in adata.var_names: {_check.listing(model.imputed, 5)}")
    check_columns(adata, common)
    return common, False


def _rng(model: Model) -> np.random.Generator:
    """The generator that rounded decimals in the training."""
    state = model.params.get("random_state")
    return np.random.default_rng(state if isinstance(state, int) else 0)


def _warn_of_genes(model: Model, counts: sp.csr_matrix, names: list[str]) -> None:
    """Warn of genes with molecules that had none in the training."""
    never = dict(zip(model.imputed, ~model.tensors["seen"].numpy(), strict=True))
    present = counts.getnnz(axis=0)[model.positions(names)] > 0
    new = [name for name, here in zip(names, present, strict=True) if here and never[name]]
    if new:
        _check.warn(f"{len(new)} genes have molecules here and had none in the training: {_check.listing(new, 5)}; they are imputed as 0")
