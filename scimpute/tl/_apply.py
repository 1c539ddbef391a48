from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .. import _check, _device, _progress
from .._anndata import keys
from .._anndata.read import check_object
from .._anndata.write import check_target, write
from .._counts.output import DTYPES
from .._keywords import helpful
from .._methods import METHODS, Method
from .._save import load_model
from .._version import __version__
from ._apply_bulk import apply_bulk
from ._apply_counts import apply_counts
from ._options import Options

if TYPE_CHECKING:
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
    show = _progress.shown(progress)
    tensors, metadata = load_model(model)
    method = METHODS.get(str(metadata.get("method")))
    if method is None or not method.saves:
        known = [name for name, other in METHODS.items() if other.saves]
        raise ValueError(
            f"model: {str(model)!r} is of method {metadata.get('method')!r}; this version applies models of {_check.listing(known)}"
        )
    key = method.key if key_added is None else key_added
    with_sd, stored_as = _stored(method, metadata, sd, dtype)
    check_target(adata, method.name, key, layer=layer, copy=copy, sd=with_sd)
    if not adata.var_names.is_unique:
        raise ValueError("genes are matched by name but adata.var_names are not unique; call adata.var_names_make_unique() first")
    options = Options(layer, rounding, key, unseen, with_sd, stored_as, _device.resolve(device), show, copy)
    with _device.session(options.device):
        try:
            result = (apply_counts if method.of_counts else apply_bulk)(adata, tensors, metadata, options)
        except torch.linalg.LinAlgError as error:
            raise _damaged(model, "no result") from error
    _look_at(result["slots"], model, signed=not method.of_counts)
    ran = {
        "applied": True,
        "model": os.fspath(model),
        "layer": keys.layer_in_params(layer),
        "unseen": unseen,
        "device": str(options.device),
    }
    uns = {"params": {**result["params"], **ran}, **result["uns"], "version": __version__, "seconds": time.perf_counter() - start}
    return write(adata, key, method.name, result["slots"], {key: uns}, copy=copy)


def _stored(method: Method, metadata: Mapping[str, Any], sd: bool | None, dtype: str | None) -> tuple[bool, str]:
    """Whether standard deviations are written, and in what the result is stored: as asked, else as in the training."""
    if not method.of_counts:
        if sd is not None or dtype is not None:
            raise ValueError(f"sd and dtype are for models of counts, and this one is of tl.{method.name}; leave them out")
        return True, "float32"
    trained = metadata.get("params")
    trained = trained if isinstance(trained, Mapping) else {}  # what is no model is refused later
    sd = _check.boolean("sd", trained.get("sd", True) if sd is None else sd)
    return sd, _check.option("dtype", trained.get("dtype", "float32") if dtype is None else dtype, DTYPES)


def _look_at(slots: Mapping[str, Mapping[str, Any]], model: str | os.PathLike[str], *, signed: bool) -> None:
    """Refuse values that no whole model gives."""
    for name, values in [entry for entries in slots.values() for entry in entries.items()]:
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
