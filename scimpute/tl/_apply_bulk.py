"""A saved model of `tl.pmi` or `tl.gain` applied to an object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _check
from .._anndata import keys
from .._anndata.covariates import read_covariates_as_trained
from .._anndata.hints import warn_of_genes_in_rows
from .._anndata.memory import bytes_of_copy
from .._anndata.obs import check_columns
from .._anndata.read import layer_names
from .._anndata.write import as_tables
from .._bulk.fitted import Fitted
from .._bulk.linear import MIN_NEIGHBOUR_GENES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from ._options import Options

from .._anndata.expression import read_values, warn_if_not_logged, warn_if_nothing_missing, warn_of_empty_samples
from .._anndata.genes import check_genes_to_fill
from .._bulk.scales import other_scale
from .._bulk.table import BulkTable
from ._bulk import embeddings


def apply_bulk(adata: AnnData, tensors: Mapping[str, Any], metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The ``slots`` and ``uns`` entries to write, and ``params``. Genes in both fill the other genes of the model."""
    fitted = Fitted.read(tensors, metadata, options.device)
    genes = pd.Index(metadata["genes"])
    places = adata.var_names.astype(str).get_indexer(genes)
    present = places >= 0
    same_genes = bool(present.all()) and len(genes) == adata.n_vars
    warn_of_genes_in_rows(adata)
    check_genes_to_fill(adata, metadata["genes"], MIN_NEIGHBOUR_GENES)
    if options.rounding is not None:
        raise ValueError(
            f"rounding={options.rounding!r} is for counts, but a model of tl.{metadata['method']} reads expression; leave it out"
        )
    params = dict(metadata["params"])
    if not same_genes:
        check_columns(adata, genes)
    _check.memory(8 * 4 * adata.n_obs * len(genes) + bytes_of_copy(adata, copy=options.copy), "apply it to fewer samples at a time")
    own_mask = params.get("mask_layer")
    if own_mask is not None and own_mask not in layer_names(adata):
        _check.warn(f"the model was trained with mask_layer={own_mask!r}, which adata.layers lacks; only NaN is missing here")
        own_mask = None
        del params["mask_layer"]
    own = read_values(adata, options.layer, own_mask, params["missing"])
    known = np.full((adata.n_obs, len(genes)), np.nan, dtype=np.float32)
    known[:, present] = own[:, places[present]]
    warn_of_empty_samples(known, adata)
    warn_if_nothing_missing(known, saved=False)
    covariates = read_covariates_as_trained(adata, metadata["covariates"], options.unseen)
    levels = tuple(map(len, covariates.levels.values()))
    other = other_scale(known, fitted.standardiser)
    if other is not None:
        _check.warn(f"{other}; if the scale differs, bring the values to that of the training first")
    else:
        warn_if_not_logged(known)
    filled, spread = fitted.predict(BulkTable(known, covariates.codes, levels, covariates.numbers), options.device)
    values = {options.key: filled, keys.sd(options.key): spread}
    slots: dict[str, Any] = {"obsm": as_tables(adata, values, genes)}
    if same_genes:
        order = genes.get_indexer(adata.var_names.astype(str))
        slots = {"layers": {name: part[:, order] for name, part in values.items()}}
    return {"params": params, "slots": slots, "uns": {"covariates": metadata["covariates"], **embeddings(fitted, covariates)}}
