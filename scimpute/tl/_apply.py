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

    The model is a file that a function of ``scimpute.tl`` wrote with ``save=...``. Genes and levels are matched by name. Every cell is
    imputed on its own, so a subset of the cells gets the same values. Spots need their neighbours, and positions are scaled to the extent
    of a new section, so apply such a model to whole sections. On its training cells a model gives the result of the training. Output, fill,
    posterior, target batch and columns of ``obs`` are those of the training.

    Parameters
    ----------
    adata
        Object with counts, ``n_obs`` x ``n_vars``; genes in any order. Models of ``tl.pmi`` and ``tl.gain`` need expression as in the
        training. Genes that are not in the model are not imputed. Genes of the model that ``adata`` lacks are missing values for
        ``tl.pmi`` and ``tl.gain``, which fill them: a gene panel becomes a transcriptome. For ``tl.began`` and ``tl.spatial`` they are zero
        counts, with a warning; more than half of the genes must be there. ``tl.spatial`` needs positions and images as in the training. A
        new section is a new level (``unseen="average"``).
    model
        File of the model (safetensors; pickles are refused).
    layer
        Layer with the counts. None reads ``X``, ``"raw"`` reads ``adata.raw``.
    rounding
        How decimals become counts, as in :func:`scimpute.tl.began`. None does as in the training. ``"random"`` uses the seed of
        the training. Not for models of ``tl.pmi`` and ``tl.gain``.
    key_added
        Name of the result. None takes the name of the method, such as ``"began"``.
    unseen
        Cells with a new level of batch, cell type or another categorical covariate raise an error (``"error"``), or get the mean over all
        levels (``"average"``): of the rates, or for ``tl.pmi`` and ``tl.gain`` of the embeddings. A missing value (NaN) is a new level for
        ``tl.pmi`` and ``tl.gain``, and an error for the others.
    sd, dtype
        Write standard deviations, and the type of the stored result (see :func:`scimpute.tl.began`). None does as in the training. Not for
        models of ``tl.pmi`` and ``tl.gain``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar. None shows it in terminals and notebooks, unless ``scanpy.settings.verbosity`` is 0.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or with ``copy=True`` the copy. It writes what the method writes (see :func:`scimpute.tl.began`), and replaces an earlier result
    under the same key:

    ``adata.layers[key_added]``, ``adata.layers[f"{key_added}_sd"]``
        Imputed values and their standard deviations, ``n_obs`` x ``n_vars``. If the model was trained with ``genes`` or lacks genes of
        ``adata``, they are DataFrames in ``adata.obsm`` instead, with the imputed genes that ``adata`` has, in the order of the model.
        ``tl.pmi`` and ``tl.gain`` write layers if ``adata`` and the model have the same genes, else DataFrames with all genes of the
        model.
    ``adata.uns[key_added]``
        ``params`` of the training, with ``applied`` (True), the path of the ``model``, the ``layer``, ``unseen`` and ``device``, and
        without a ``size_key`` or ``mask_layer`` that the object lacks; ``conditioned_on``, or for ``tl.pmi`` and ``tl.gain`` the
        ``covariates`` of the model and the ``embeddings`` of the categorical ones; ``version``; ``seconds``.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file does not exist or cannot be read.
    TypeError, KeyError, ValueError
        The file is no complete model, or it does not fit the object; the message says what would. Nothing was written.
    MemoryError
        The result would not fit into memory. This is checked first.

    Notes
    -----
    Library sizes come from the column ``size_key`` of the training. If the training had none, they are sums over the genes of the model. If
    ``adata`` lacks the column, they are sums over all genes of ``adata``, with a warning.

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
    show = _progress.show_bar(progress)
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
    _check_values(result["slots"], model, signed=not method.of_counts)
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
    """Whether standard deviations are written, and the stored type: by the arguments, or as in the training."""
    if not method.of_counts:
        if sd is not None or dtype is not None:
            raise ValueError(f"sd and dtype are for models of counts; this is a model of tl.{method.name}: leave them out")
        return True, "float32"
    trained = metadata.get("params")
    trained = trained if isinstance(trained, Mapping) else {}  # a file that is no model is refused later
    sd = _check.boolean("sd", trained.get("sd", True) if sd is None else sd)
    return sd, _check.option("dtype", trained.get("dtype", "float32") if dtype is None else dtype, DTYPES)


def _check_values(slots: Mapping[str, Mapping[str, Any]], model: str | os.PathLike[str], *, signed: bool) -> None:
    """Refuse values that only a damaged model gives."""
    for name, values in [entry for entries in slots.values() for entry in entries.items()]:
        array = np.asarray(values)
        # With a NaN, min and max are NaN.
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
