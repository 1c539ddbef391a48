"""Repeat an imputation of counts that ``uns`` records, with the same settings, on other counts of the same cells."""

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
"""Share of the progress bar for the imputations."""
# Arguments that the replay sets itself.
_OWN = ("adata", "layer", "key_added", "output", "sd", "dtype", "target_batch", "random_state", "device", "progress", "save", "copy")
# Arguments that tl.began and tl.spatial choose if they are "auto", and their columns in the table of candidates.
_CHOSEN = {"n_context": "n_context", "width": "width", "penalty": "penalty", "max_epochs": "steps"}
_COLUMNS = ("batch_key", "celltype_key", "library_key", "size_key")


@dataclass
class Imputation:
    """A recorded imputation, with all inputs of a repeat.

    Attributes
    ----------
    method, params, entry
        Name of the function, ``uns[key]["params"]`` with plain values, and the whole of ``uns[key]``.
    arguments
        Arguments of the repeat.
    counts
        The imputed counts, ``(n, g)``. They share their buffers with the object of the user.
    genes
        Places of the imputed genes; None for all.
    columns
        Argument and name of each column of ``obs`` with a label that the imputation used. Library sizes are not among them.
    surroundings
        Gene names of the user's object, and the parts of ``obs``, ``obsm``, ``obsp`` and ``uns`` that the imputation reads.
    n_planned, n_done
        Number of planned runs, and of runs so far.
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
        """Gene names of the user's object."""
        return self.surroundings.var_names

    @property
    def applied(self) -> bool:
        """Whether a saved model was applied."""
        return bool(self.params.get("applied"))

    @property
    def squared(self) -> bool:
        """Whether the training held out entries instead of molecules."""
        return self.params.get("likelihood") == "squared"

    @property
    def name(self) -> str:
        """The function to run."""
        return "tl.apply" if self.applied else f"tl.{self.method}"

    def announced(self, by: str) -> str:
        """First message to the user: how many imputations will run. ``by`` is the public function that runs them."""
        times = "1 imputation" if self.n_planned == 1 else f"{self.n_planned} imputations"
        return f"{by}: {times} ({self.name}) of {self.counts.shape[0]:,} cells x {self.counts.shape[1]:,} genes, of copies"

    @property
    def takes_label(self) -> bool:
        """Whether the method takes a column of ``obs`` as cell type."""
        return METHODS[self.method].takes_label and not self.applied

    def object_of(
        self,
        counts: sp.csr_matrix,
        more_obs: pd.DataFrame | None = None,
        without: str | None = None,
        layers: Mapping[str, Any] | None = None,
    ) -> AnnData:
        """An object with these counts in ``X`` and all inputs of the imputation, except one column of ``obs``."""
        return self.surroundings.around(counts, more_obs, without, layers)

    def run(self, work: AnnData, layer: str | None = None, *, progress: _progress.Progress, **changes: Any) -> np.ndarray | pd.DataFrame:
        """Impute an object. Returns expected counts, as a table if only some genes are imputed."""
        from .. import tl

        self.n_done += 1
        progress.phase(f"imputation {self.n_done} of {self.n_planned}", RUNS / self.n_planned)
        function = tl.apply if self.applied else getattr(tl, self.method)
        # No caller reads standard deviations.
        fixed: dict[str, Any] = {"sd": False, "dtype": "float32"}
        with progress.one_step():
            function(work, **self.arguments | fixed | changes, layer=layer, key_added=RESULT)
        return result_of(work)

    def run_on_null(self, null: AnnData, label: str | None = None, *, progress: _progress.Progress) -> np.ndarray | pd.DataFrame:
        """Impute an object of :func:`scimpute.metrics.false_signal`. Library sizes are sums: permuted counts have other sizes."""
        size_key = self.params.get("size_key")
        counts, obs = counts_and_obs(null)
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
    """The imputation under a key, with all inputs of a repeat checked.

    With ``progress`` each run that is not a step of another bar draws its own.

    Raises
    ------
    TypeError, KeyError, ValueError, FileNotFoundError
        There is no imputation of counts under the key, or the object has lost a column or table that the imputation used.
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
        read_layer(adata, key)  # a bad layer fails here, before any run
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
    imputations = find(adata)
    if not isinstance(key, str):
        raise TypeError(
            f"key must be the name of an imputation, got {key!r} of type {type(key).__name__}; there are {_check.listing(imputations)}"
        )
    method = written_by(adata, key)
    if method in OF_COUNTS and key in imputations:
        return method
    if method in OF_COUNTS:
        raise KeyError(f"uns[{key!r}] exists, but neither layers[{key!r}] nor obsm[{key!r}] does; impute again")
    if method in METHODS:
        raise ValueError(
            f"key={key!r} was written by tl.{method}, which fills missing expression; a report is about counts. Score it with "
            "scimpute.pp.hide and scimpute.metrics.recovery"
        )
    if key in layer_names(adata):
        raise ValueError(
            f"key={key!r}: uns[{key!r}] does not say how this layer was imputed. Only layers of scimpute.tl can be imputed again; here: "
            f"{_check.listing(imputations)}. Score other layers with scimpute.pp.thin and scimpute.metrics.heldout"
        )
    raise _check.missing("key: imputation", key, imputations)


def _plain(value: Any) -> Any:
    """The value as it was before h5ad made an array of it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _of_training(method: str, params: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded arguments. Arguments that were "auto" are "auto" again, so that held-out molecules cannot influence them."""
    from .. import tl

    names = [name for name in inspect.signature(getattr(tl, method)).parameters if name not in _OWN]
    arguments = {name: params[name] for name in names if name in params}
    candidates = entry.get("chosen", {}).get("candidates")
    if isinstance(candidates, pd.DataFrame):
        varied = [name for name, column in _CHOSEN.items() if len(set(candidates[column])) > 1]
        arguments |= dict.fromkeys(varied, "auto")
    # Held-out molecules belong to the cell's own batch. They need predictions on the scale of counts, without the zeros of "expressed".
    return arguments | {"output": "counts"} | ({"fill": "all"} if params.get("fill") == "expressed" else {})


def _of_model(params: Mapping[str, Any], model: str | os.PathLike[str] | None) -> dict[str, Any]:
    from .._save import load_metadata

    path = params["model"] if model is None else model
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"model: {os.fspath(path)!r}, which was applied, does not exist; pass model=... with its new path to metrics.report"
        )
    trained = load_metadata(path).get("params", {})
    for name, value in (("output", "counts"), ("target_batch", None), *([("fill", "all")] if trained.get("fill") == "expressed" else [])):
        if trained.get(name) != value:
            raise ValueError(
                f"model: {os.fspath(path)!r} was trained with {name}={trained.get(name)!r}. Held-out molecules cannot score its output; "
                f"train a model with {name}={value!r}"
            )
    return {"model": path, "unseen": params["unseen"]}
