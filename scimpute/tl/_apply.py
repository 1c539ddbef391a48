from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from .. import _check, _device, _progress
from .._anndata import keys
from .._anndata.counts import read_source, warn_of_empty_cells
from .._anndata.genes import matched, misnamed
from .._anndata.memory import check_memory
from .._anndata.obs import check_columns, read_codes, read_size
from .._anndata.read import check_object
from .._anndata.sections import read_sections, warn_of_spots_off_tissue
from .._anndata.side import read_side
from .._anndata.write import check_target, write
from .._counts import saved as _applied
from .._counts.output import check_dtype, narrow
from .._keywords import helpful
from .._save import load_model
from .._version import __version__
from . import _bulk as _masked

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData


@helpful
def apply(
    adata: AnnData,
    model: str | os.PathLike[str],
    *,
    layer: str | None = None,
    rounding: Literal["nearest", "random"] | None = None,
    key_added: str | None = None,
    unseen: Literal["error", "average"] = "error",
    sd: bool | None = None,
    dtype: Literal["float32", "float16"] | None = None,
    device: str = "auto",
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Impute other cells or samples with a saved model, without training.

    The model is a file that a function of ``scimpute.tl`` wrote with ``save=...``. Genes and levels of labels are matched by name,
    every cell is imputed by itself (a part of the cells gets what all of them would get; spots need their neighbours, and positions in a
    section that was not in the training are scaled to its extent as it is given: apply such a model to whole sections), and applied to
    the cells it was trained on, a model gives what the training gave. Output, fill, posterior, target batch and
    the columns of ``obs`` are those of the training.

    Parameters
    ----------
    adata
        Object with counts (for models of ``tl.pmi`` and ``tl.gain`` with expression as in the training), ``n_obs`` x ``n_vars``;
        genes in any order. Genes that the model does not know are not imputed. Genes that ``adata`` lacks are missing values to
        ``tl.pmi`` and ``tl.gain``, and are filled: a gene panel becomes a transcriptome. A model of ``tl.began`` or ``tl.spatial`` is told
        zero counts of them, with a warning, and needs more than half of its genes. ``tl.spatial`` needs positions and images as in the
        training; a new section is of a level that it does not know (``unseen="average"``).
    model
        File of the model: safetensors, never a pickle.
    layer
        Layer with the counts; ``X`` where None, ``adata.raw`` with ``"raw"``.
    rounding
        How decimals become counts, as in :func:`scimpute.tl.began`; as in the training where None. ``"random"`` draws by the seed of the
        training. Not for models of ``tl.pmi`` and ``tl.gain``.
    key_added
        Name of the result; where None that of the method that made the model, such as ``"began"``.
    unseen
        What to do with cells whose batch, cell type or other categorical covariate the model does not know: ``"error"``, or ``"average"``
        for the mean of its rates over all levels of that label (``tl.pmi``, ``tl.gain``: of its embeddings). A value that is missing (NaN)
        is unknown to models of ``tl.pmi`` and ``tl.gain``; others ask for a level in its place.
    sd, dtype
        Whether standard deviations are written, and in what the result is stored (see :func:`scimpute.tl.began`); None for what the
        training had. Models of ``tl.pmi`` and ``tl.gain`` have no such choice.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar. None shows it in a terminal and in a notebook, unless ``scanpy.settings.verbosity`` is 0.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy with ``copy=True``. Written is what the method writes (see :func:`scimpute.tl.began`), an earlier result of it under
    the same key is replaced:

    ``adata.layers[key_added]``, ``adata.layers[f"{key_added}_sd"]``
        Imputed values and their standard deviations, ``n_obs`` x ``n_vars``. Where the model was trained with ``genes`` or
        does not know all genes of ``adata``, instead ``adata.obsm[key_added]`` and ``adata.obsm[f"{key_added}_sd"]``, DataFrames with
        the imputed genes that ``adata`` has, in the model's order. For ``tl.pmi`` and ``tl.gain`` it is a layer where ``adata`` and
        the model have the same genes, else DataFrames with all genes of the model.
    ``adata.uns[key_added]``
        ``params`` of the training with ``applied`` (True), the path of the ``model``, the ``layer`` read, ``unseen`` and ``device``,
        and without ``size_key`` or ``mask_layer`` where the object has none; ``conditioned_on``, or of ``tl.pmi`` and ``tl.gain`` the
        ``covariates`` of the model and the ``embeddings`` of the categorical ones; ``version``; ``seconds``.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        There is no such file, or it may not be read.
    TypeError, KeyError, ValueError
        The file is not a whole model, or it does not fit the object; the message says what does. Nothing was written.
    MemoryError
        The result would not fit; found before the work.

    Notes
    -----
    Library sizes are those of the column ``size_key`` of the training, where ``adata`` has it. Without, they are sums over the genes of the
    model; where the model was trained with ``size_key``, over all genes of ``adata``, with a warning.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> reference, query = adata[:40].copy(), adata[40:].copy()
    >>> scimpute.tl.began(reference, max_epochs=2, save="model.safetensors")  # doctest: +SKIP
    >>> scimpute.tl.apply(query, "model.safetensors")  # doctest: +SKIP
    """
    start = time.perf_counter()
    check_object(adata)
    _check.option("unseen", unseen, ("error", "average"))
    shown = _progress.shown(progress)
    tensors, metadata = load_model(model)
    method = metadata.get("method")
    if not isinstance(method, str) or method not in _METHODS:
        raise ValueError(f"model: {str(model)!r} is of method {method!r}; this version applies models of {_check.listing(_METHODS)}")
    key = default_key(method) if key_added is None else key_added
    with_sd, stored_as = _stored(method, metadata, sd, dtype)
    check_target(adata, method, key, layer=layer, copy=copy, suffixes=_METHODS[method].suffixes, sd=with_sd)
    if not adata.var_names.is_unique:
        raise ValueError("genes are matched by name but adata.var_names are not unique; call adata.var_names_make_unique() first")
    options = Options(layer, rounding, key, unseen, with_sd, stored_as, _device.resolve(device), shown, copy)
    with _device.session(options.device):
        try:
            result = _METHODS[method].function(adata, tensors, metadata, options)
        except torch.linalg.LinAlgError as error:
            raise _damaged(model, "no result") from error
    _look_at(result, model, signed=_METHODS[method].signed)
    ran = {"applied": True, "model": os.fspath(model), "layer": keys.recorded(layer), "unseen": unseen, "device": str(options.device)}
    params = {**result.pop("params", metadata["params"]), **ran}
    uns = {"params": params, **result.pop("uns", {}), "version": __version__, "seconds": time.perf_counter() - start}
    return write(adata, key, method, **result, uns=uns, copy=copy)


def _stored(method: str, metadata: Mapping[str, Any], sd: bool | None, dtype: str | None) -> tuple[bool, str]:
    """Whether standard deviations are written, and in what the result is stored: as asked, else as in the training."""
    if not _METHODS[method].chooses:
        if sd is not None or dtype is not None:
            raise ValueError(f"sd and dtype are for models of counts, and this one is of tl.{method}; leave them out")
        return True, "float32"
    trained = metadata.get("params")
    trained = trained if isinstance(trained, Mapping) else {}  # what is no model is refused later
    sd = _check.boolean("sd", trained.get("sd", True) if sd is None else sd)
    return sd, _check.option("dtype", trained.get("dtype", "float32") if dtype is None else dtype, ("float32", "float16"))


def _look_at(result: Mapping[str, Any], model: str | os.PathLike[str], *, signed: bool) -> None:
    """Refuse values that no whole model gives."""
    for name, values in [*result.get("layers", {}).items(), *result.get("obsm", {}).items()]:
        array = np.asarray(values)
        # A NaN is the least and the largest.
        low, high = array.min(), array.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise _damaged(model, f"values of {name!r} that are NaN or infinite")
        if low < 0 and not (signed and not name.endswith("_sd")):
            raise _damaged(model, f"negative values of {name!r}")


def _damaged(model: str | os.PathLike[str], what: str) -> ValueError:
    return ValueError(
        f"model: {os.fspath(model)!r} gives {what}: it is damaged, or was made for data of another kind; nothing was written. "
        "Copy it again, or save the model again with save=..."
    )


@dataclass(frozen=True)
class Options:
    """How a model is to be applied, checked."""

    layer: str | None
    rounding: str | None
    key: str
    unseen: str
    sd: bool
    dtype: str
    device: torch.device
    progress: bool
    copy: bool


@dataclass(frozen=True)
class Method:
    """How models of one method are applied.

    Attributes
    ----------
    function
        Takes the object, the tensors and the metadata of the file and the options. Returns the ``layers`` or ``obsm`` to be written;
        ``uns``, what is to be recorded beside the parameters; ``params`` where they are not those of the metadata.
    suffixes
        Endings of the layers it writes.
    key
        Name of its result where it is not its own.
    chooses
        Whether ``sd`` and ``dtype`` are its arguments.
    signed
        Whether what it writes may be below 0.
    """

    function: Callable[[Any, Mapping[str, Any], Mapping[str, Any], Options], dict[str, Any]]
    suffixes: tuple[str, ...] = ("", "_sd")
    key: str | None = None
    chooses: bool = False
    signed: bool = False


def _counts(adata: AnnData, tensors: Mapping[str, Any], metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    model = _applied.Model.read(tensors, metadata)
    places = match_genes(adata, model.genes)
    names = adata.var_names.astype(str)
    whole = "genes" not in model.params and names.isin(model.imputed).all()
    found = list(names if whole else pd.Index(model.imputed)[pd.Index(model.imputed).isin(names)])
    if not found:
        raise ValueError(f"none of the genes that the model imputes is in adata.var_names: {_check.listing(model.imputed, 5)}")
    if not whole:
        check_columns(adata, found)
    labels = _codes(adata, model, options.unseen)
    rounding = model.params.get("rounding") if options.rounding is None else options.rounding
    state = model.params.get("random_state")
    rng = np.random.default_rng(state if isinstance(state, int) else 0)
    raw, source = read_source(adata, options.layer, rounding, rng)
    counts = _applied.aligned(raw, places)
    size, size_key = _size(adata, model.params.get("size_key"), raw, counts, rounding)
    warn_of_empty_cells(counts, size)
    _warn_of_genes(model, counts, found)
    check_memory(
        adata,
        counts,
        len(found),
        sd=options.sd,
        own=model.target is not None and model.params["posterior"],
        dtype=options.dtype,
        copy=options.copy,
        hint="apply it to fewer cells at a time",
        workers=_device.workers(options.device),
    )
    check_dtype(options.dtype, model.params["output"], counts, model.positions(found), found)
    side = None
    if model.features is not None:
        warn_of_spots_off_tissue(adata, "imputed, and are neighbours of the others")
        library_key = model.params.get("library_key")
        # Where the training had one section only, the column was of no use.
        params = model.params if labels or library_key in adata.obs else {**model.params, "library_key": None}
        sections = read_sections(adata, params.get("library_key"))
        known = labels[0] if labels else np.zeros(adata.n_obs, dtype=np.int64)
        n_known = model.levels[0] if labels else 1
        side, _ = read_side(adata, params, sections, known, n_known, {name: tensor.numpy() for name, tensor in tensors.items()})
    measured = places >= 0
    # Without a column of library sizes these are the sums of these genes.
    covered = 1.0 if model.params.get("size_key") is None else float(model.tensors["share"].numpy()[measured].sum())
    result = _applied.impute(
        model,
        counts,
        size,
        labels,
        found,
        options.device,
        side,
        measured=measured,
        covered=covered,
        sd=options.sd,
        progress=options.progress,
    )
    dtype = narrow(result, options.dtype, found)

    params = {name: value for name, value in metadata["params"].items() if name != "size_key" or size_key}
    params |= {"sd": options.sd, "dtype": dtype} | ({"rounding": rounding} if rounding is not None else {})
    values = {options.key: result.rates.mean} | ({keys.sd(options.key): result.rates.squares} if options.sd else {})
    written: dict[str, Any] = {"params": params, "uns": {"conditioned_on": metadata["conditioned_on"], keys.SOURCE: source}}
    if whole:
        return written | {"layers": values}
    return written | {"obsm": {name: pd.DataFrame(value, index=adata.obs_names, columns=found) for name, value in values.items()}}


def match_genes(adata: AnnData, genes: list[str]) -> np.ndarray:
    """For every gene of a model its column in the object, -1 where there is none; warned of, refused where most are missing."""
    places = adata.var_names.astype(str).get_indexer(genes)
    absent = [gene for gene, place in zip(genes, places, strict=True) if place < 0]
    hint = misnamed(adata, genes) if absent else ""
    if 2 * len(absent) > len(genes):
        raise ValueError(
            f"{len(absent)} of the {len(genes)} genes of the model are not in adata.var_names: {_check.listing(absent, 5)}; adata has "
            f"{_check.listing(adata.var_names, 5)}. Name the genes as in the training, which more than half of the model's genes need{hint}"
        )
    if absent:
        _check.warn(
            f"{len(absent)} of the {len(genes)} genes of the model are not in adata.var_names: {_check.listing(absent, 5)}; "
            f"the model is told that they have no molecules{_unknown(adata, genes)}{hint}"
        )
    return places


def _unknown(adata: AnnData, genes: list[str]) -> str:
    """What is said of genes that the model does not know."""
    _, unknown, first = matched(adata, genes)
    return f"; {unknown} of the {adata.n_vars} genes of adata are not in the model and are not imputed: {first}" if unknown else ""


def _codes(adata: AnnData, model: _applied.Model, unseen: str) -> tuple[np.ndarray, ...]:
    """Level codes of the model's labels, -1 for a level it does not know."""
    columns = [column for column, _ in model.labels.values()]
    lacking = [column for column in columns if column not in adata.obs]
    if lacking:
        raise KeyError(
            f"the model is conditioned on the obs columns {_check.listing(columns)}, adata.obs lacks {_check.listing(lacking)}; "
            f"available: {_check.listing(adata.obs.columns)}"
        )
    found = []
    for argument, (column, levels) in model.labels.items():
        codes = read_codes(adata, column, argument, levels)
        unknown = codes < 0
        if unknown.any() and unseen == "error":
            names = adata.obs[column][unknown].astype(str).unique()
            raise ValueError(
                f"{argument}={column!r}: {unknown.sum()} cells have levels that the model does not know: {_check.listing(names, 5)}; "
                f"known: {_check.listing(levels)}. Rename them, or pass unseen='average'"
            )
        found.append(codes)
    return tuple(found)


def _size(
    adata: AnnData, size_key: str | None, raw: sp.csr_matrix, counts: sp.csr_matrix, rounding: str | None
) -> tuple[np.ndarray, str | None]:
    """Library sizes, and the column they are from."""
    if size_key is None:
        # Rates are shares of the molecules of the genes that were trained on.
        return read_size(adata, None, counts), None
    if size_key in adata.obs:
        return read_size(adata, size_key, raw, rounding), size_key
    _check.warn(
        f"the model was trained with size_key={size_key!r}, which adata.obs does not have; sums over the {adata.n_vars} genes of adata are "
        "taken as library sizes, which are too small where adata was cut to some of its genes"
    )
    return read_size(adata, None, raw), None


def _warn_of_genes(model: _applied.Model, counts: sp.csr_matrix, names: list[str]) -> None:
    """Say so where a gene has molecules here but had none where the model was trained."""
    never = dict(zip(model.imputed, ~model.tensors["seen"].numpy(), strict=True))
    present = counts.getnnz(axis=0)[model.positions(names)] > 0
    new = [name for name, here in zip(names, present, strict=True) if here and never[name]]
    if new:
        _check.warn(f"{len(new)} genes have molecules here and had none in the training: {_check.listing(new, 5)}; they are imputed as 0")


_METHODS = {
    "began": Method(_counts, chooses=True),
    "gain": Method(_masked.apply_saved, signed=True),
    "pmi": Method(_masked.apply_saved, signed=True),
    "spatial": Method(_counts, key="spatial_imputed", chooses=True),
}


def default_key(method: str) -> str:
    """Name of the result of a method where none is asked for."""
    return _METHODS[method].key or method
