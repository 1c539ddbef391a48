"""An imputation of counts that was recorded in ``uns``, done again in the same way on other counts of the same cells."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .. import _check, _progress
from .._anndata.copies import RESULT, Surroundings, counts_and_obs, read_surroundings, result_of
from .._anndata.obs import read_genes
from .._anndata.read import layer_names, names_in, read_layer
from .._anndata.results import all_written_by, params_of, records, written_by
from .._anndata.source import read_counts_of
from .._anndata.tables import table_genes
from .._methods import METHODS, OF_COUNTS

if TYPE_CHECKING:
    from anndata import AnnData

RUNS = 0.9
"""Share that the imputations have of all the work."""
# What a replay decides by itself.
_OWN = ("adata", "layer", "key_added", "output", "sd", "dtype", "target_batch", "random_state", "device", "progress", "save", "copy")
# Arguments that tl.began and tl.spatial choose where they are left to the data, and the column of the candidates that tells.
_CHOSEN = {"n_context": "n_context", "width": "width", "penalty": "penalty", "max_epochs": "steps"}
_COLUMNS = ("batch_key", "celltype_key", "library_key", "size_key")


@dataclass
class Imputation:
    """What was run, and what it needs to run again.

    Attributes
    ----------
    method, params, entry
        Name of the function, ``uns[key]["params"]`` with plain values, and the whole of ``uns[key]``.
    arguments
        Those of the replay.
    counts
        What was imputed, ``(n, g)``; shares its buffers with the object of the user.
    genes
        Places of the genes that were imputed; None for all.
    columns
        Role and name of each column of ``obs`` that it was told, but for the library sizes.
    surroundings
        Names of the genes as the user has them, and what it reads of ``obs``, ``obsm``, ``obsp`` and ``uns``.
    n_planned, n_done
        How often it is to be run, and was.
    """

    method: str
    params: dict[str, Any]
    entry: Mapping[str, Any]
    arguments: dict[str, Any]
    counts: sp.csr_matrix
    genes: np.ndarray | None
    columns: dict[str, str]
    surroundings: Surroundings
    n_planned: int = 1
    n_done: int = field(default=0)

    @property
    def names(self) -> pd.Index:
        """Names of the genes as the user has them."""
        return self.surroundings.var_names

    @property
    def applied(self) -> bool:
        """Whether it is of a saved model."""
        return bool(self.params.get("applied"))

    @property
    def squared(self) -> bool:
        """Whether entries, and not molecules, were held out in its training."""
        return self.params.get("likelihood") == "squared"

    @property
    def name(self) -> str:
        """Function that is run."""
        return "tl.apply" if self.applied else f"tl.{self.method}"

    def announced(self, by: str) -> str:
        """What a user is told first: how often it will be run."""
        times = "1 imputation" if self.n_planned == 1 else f"{self.n_planned} imputations"
        return f"{by}: {times} ({self.name}) of {self.counts.shape[0]:,} cells x {self.counts.shape[1]:,} genes, of copies"

    @property
    def takes_label(self) -> bool:
        """Whether any column of ``obs`` can be given as a cell type."""
        return METHODS[self.method].takes_label and not self.applied

    def object_of(
        self,
        counts: sp.csr_matrix,
        more_obs: pd.DataFrame | None = None,
        without: str | None = None,
        layers: Mapping[str, Any] | None = None,
    ) -> AnnData:
        """An object with these counts in ``X`` and all that the imputation reads, but for one column of ``obs``."""
        return self.surroundings.around(counts, more_obs, without, layers)

    def run(self, given: AnnData, layer: str | None = None, *, progress: _progress.Progress, **changes: Any) -> np.ndarray | pd.DataFrame:
        """Expected counts; of some genes only a table."""
        from .. import tl

        self.n_done += 1
        progress.phase(f"imputation {self.n_done} of {self.n_planned}", RUNS / self.n_planned)
        function = tl.apply if self.applied else getattr(tl, self.method)
        # Standard deviations are not looked at.
        stored: dict[str, Any] = {"sd": False, "dtype": "float32"}
        with progress.one_step():
            function(given, **self.arguments | stored | changes, layer=layer, key_added=RESULT)
        return result_of(given)

    def run_on_null(self, given: AnnData, label: str | None = None, *, progress: _progress.Progress) -> np.ndarray | pd.DataFrame:
        """As :func:`scimpute.metrics.false_signal` wants it. Library sizes are sums: those of dealt counts are other ones."""
        size_key = self.params.get("size_key")
        counts, obs = counts_and_obs(given)
        work = self.object_of(counts, obs, without=size_key)
        changes: dict[str, Any] = {"size_key": None} if size_key is not None and not self.applied else {}
        return self.run(work, progress=progress, **changes | ({} if label is None else {"celltype_key": label}))


def find(adata: AnnData) -> list[str]:
    """Keys of the imputations of counts that the object holds."""
    present = {*layer_names(adata), *names_in(adata, "obsm")}
    return [key for key in all_written_by(adata, OF_COUNTS) if key in present]


def read(
    adata: AnnData,
    key: str,
    layer: str | None,
    model: str | os.PathLike[str] | None,
    seed: int,
    device: str,
    progress: bool = False,
) -> Imputation:
    """The imputation under a key, everything checked that it needs to be run again.

    ``progress``: each run draws a bar of its own, where it is no step of another one.

    Raises
    ------
    TypeError, KeyError, ValueError, FileNotFoundError
        There is none, it is not of counts, or what it was told is not in the object any more.
    """
    method = _method(adata, key)
    entry = records(adata)[key]
    params = {str(name): _plain(value) for name, value in params_of(adata, key).items()}
    counts = read_counts_of(adata, key, layer)
    conditioned = entry.get("conditioned_on", {})
    columns = {str(name): str(label["column"]) for name, label in conditioned.items()}
    needed = {**{name: params[name] for name in _COLUMNS if name in params}, **columns}
    for name, column in needed.items():
        if column not in names_in(adata, "obs") and not (params.get("applied") and name == "library_key"):
            raise _check.missing(f"uns[{key!r}]['params'][{name!r}]: obs column", column, names_in(adata, "obs"))
    if params.get("applied"):
        arguments = _of_model(params, model) | {"device": device, "progress": progress}
    elif model is not None:
        raise ValueError(f"model: {key!r} was trained on this object, not applied from a file; leave model out")
    else:
        arguments = _of_training(method, params, entry) | {"device": device, "progress": progress}
        arguments["random_state"] = params["random_state"] if isinstance(params.get("random_state"), int) else seed
    genes = None
    if key in layer_names(adata):
        read_layer(adata, key)  # refused here, and not after all has been run
    else:
        genes = table_genes(adata, key)
    if genes is not None and not params.get("applied"):
        arguments["genes"] = genes
    return Imputation(
        method,
        params,
        entry,
        arguments,
        counts,
        read_genes(adata, genes),
        columns,
        read_surroundings(adata, set(needed.values()), params.get("tile_features")),
    )


def _method(adata: AnnData, key: str) -> str:
    found = find(adata)
    if not isinstance(key, str):
        raise TypeError(
            f"key must be the name of an imputation, got {key!r} of type {type(key).__name__}; there are {_check.listing(found)}"
        )
    method = written_by(adata, key)
    if method in OF_COUNTS and key in found:
        return method
    if method in OF_COUNTS:
        raise KeyError(f"uns[{key!r}] is there, but neither layers[{key!r}] nor obsm[{key!r}] is; impute again")
    if method in METHODS:
        raise ValueError(
            f"key={key!r} was written by tl.{method}, which fills missing expression; a report is about counts. Score it with "
            "scimpute.pp.hide and scimpute.metrics.recovery"
        )
    if key in layer_names(adata):
        raise ValueError(
            f"key={key!r}: uns[{key!r}] does not say how this layer was imputed, so that it cannot be imputed again; it is not of "
            f"scimpute.tl. Imputations of counts: {_check.listing(found)}. Score other layers with scimpute.pp.thin and "
            "scimpute.metrics.heldout"
        )
    raise _check.missing("key: imputation", key, found)


def _plain(value: Any) -> Any:
    """As it was before h5ad made arrays of it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _of_training(method: str, params: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they were given: what was left to the data is left to the data again, so that no held-out molecule has a say in it."""
    from .. import tl

    taken = [name for name in inspect.signature(getattr(tl, method)).parameters if name not in _OWN]
    arguments = {name: params[name] for name in taken if name in params}
    candidates = entry.get("chosen", {}).get("candidates")
    if isinstance(candidates, pd.DataFrame):
        varied = [name for name, column in _CHOSEN.items() if len(set(candidates[column])) > 1]
        arguments |= dict.fromkeys(varied, "auto")
    # A molecule is of the cell's own batch; and molecules can be scored on their own scale only, not where a zero promises none.
    return arguments | {"output": "counts"} | ({"fill": "all"} if params.get("fill") == "expressed" else {})


def _of_model(params: Mapping[str, Any], model: str | os.PathLike[str] | None) -> dict[str, Any]:
    from .._save import load_metadata

    path = params["model"] if model is None else model
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"model: {os.fspath(path)!r}, which was applied, does not exist; pass model=... where it is now to metrics.report"
        )
    trained = load_metadata(path).get("params", {})
    for name, needed in (("output", "counts"), ("target_batch", None), *([("fill", "all")] if trained.get("fill") == "expressed" else [])):
        if trained.get(name) != needed:
            raise ValueError(
                f"model: {os.fspath(path)!r} was trained with {name}={trained.get(name)!r}, and what it writes cannot be scored on "
                f"held-out molecules; train a model with {name}={needed!r}"
            )
    return {"model": path, "unseen": params["unseen"]}
