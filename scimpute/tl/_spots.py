"""The body that `tl.spatial` and `tl.nmf` share: read, train, finish, write."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from .. import _check, _device, _progress, _random
from .._anndata import keys
from .._anndata.counts import read_source, warn_of_empty_cells
from .._anndata.hints import warn_of_hints
from .._anndata.memory import check_memory
from .._anndata.obs import check_columns, read_genes, read_size
from .._anndata.results import has_sd, params_of, written_by
from .._anndata.sections import one_section, read_sections, warn_of_spots_off_tissue
from .._anndata.side import read_side
from .._anndata.write import model_file, write
from .._counts.output import check_dtype, finish, narrow
from .._counts.run import run
from .._counts.selection import WIDTH
from .._counts.split import Data, checked_settings
from .._save import save_model
from .._space.side import SPOT
from .._version import __version__
from ..models.multimodal import FactorGenerator

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

MIN_SPOTS = 10


def impute(
    adata: AnnData,
    method: str,
    asked: Mapping[str, Any],
    *,
    layer: str | None,
    genes: str | Sequence[str] | None,
    rounding: str | None,
    likelihood: str,
    key_added: str,
    output: str,
    sd: bool,
    dtype: str,
    posterior: bool | str,
    size_key: str | None,
    random_state: int | np.random.Generator | None,
    device: str,
    progress: bool | None,
    save: str | os.PathLike[str] | None,
    copy: bool,
    **training: Any,
) -> AnnData | None:
    """What follows once the function's own arguments and the keys are checked.

    Parameters
    ----------
    asked
        What is told of a spot (see `_modalities.read_side`), checked.
    training
        Arguments of `_data.checked_settings` that the caller has; the adversary has none.
    """
    start = time.perf_counter()
    _check.option("output", output, ("counts", "rate", "log1p"))
    _check.option("likelihood", likelihood, ("poisson", "squared"))
    entrywise = likelihood == "squared"
    posterior = _posterior(posterior, entrywise, asked["modalities"])
    settings = checked_settings(
        adata.n_obs,
        architecture="dense",
        drop_quantile="auto",
        drop_shape=1.0,
        gamma=0.0,
        adversarial_weight=0.0,
        reconstruction_weight=1.0,
        **training,
    )
    path = model_file(adata, save)
    torch_device = _device.resolve(device)
    rng = _random.generator(random_state)
    shown = _progress.shown(progress)

    factors = SPOT in asked["modalities"]
    counts, source = read_source(adata, layer, rounding, rng)
    if factors and adata.n_vars < 2:
        raise ValueError(f"tl.{method} needs at least 2 genes, got {adata.n_vars}")
    if adata.n_obs < MIN_SPOTS:
        raise ValueError(f"tl.{method} needs at least {MIN_SPOTS} spots, got {adata.n_obs}")
    size = read_size(adata, size_key, counts, rounding)
    chosen = read_genes(adata, genes)
    if chosen is not None:
        check_columns(adata, adata.var_names[chosen])
    columns = np.arange(adata.n_vars) if chosen is None else chosen
    names = list(map(str, adata.var_names[columns]))
    earlier = _earlier(adata, method, key_added, chosen) if factors else None
    alone = factors and not asked["spatial_weight"]
    check_dtype(dtype, output, counts, columns, names)
    # Without neighbours it is the same in which section a spot is.
    sections = one_section(adata) if alone else read_sections(adata, asked["library_key"])
    check_memory(
        adata,
        counts,
        len(columns),
        sd=sd,
        own=False,
        dtype=dtype,
        copy=copy,
        hint="impute fewer genes with genes=",
        workers=_device.workers(torch_device),
        training=settings.n_repeats,
        batch_size=settings.batch_size,
        width=settings.width or WIDTH,
    )
    side, moments = read_side(adata, asked, sections, sections.codes, len(sections.names))
    warn_of_empty_cells(counts, size)
    warn_of_spots_off_tissue(adata, "trained on" if alone else "trained on, and are neighbours of the others")
    warn_of_hints(adata, counts, layer, size_key)

    labels = (sections.codes,) if len(sections.names) > 1 and method == "spatial" else ()
    fill = "zeros" if entrywise else "all"
    what = f"tl.{method}: {adata.n_obs:,} spots x {len(columns):,} genes, {settings.n_repeats} repeats, {torch_device}"
    with _device.session(torch_device), _progress.Progress(what, show=shown) as bar:
        if entrywise:
            data = Data.of_entries(counts, size, labels, columns, torch_device, rng, side)
        else:
            data = Data.prepare(counts, size, labels, columns, torch_device, rng, side)
        complexity, result, record, tensors = run(data, settings, None, rng, bar, posterior=posterior, sd=sd)
        bar.phase("using the spots' own counts", 0.1)
        finish(result, counts, size, columns, settings.n_repeats, posterior=posterior, output=output, fill=fill, entrywise=entrywise)
    stored_as = narrow(result, dtype, names)

    params = {
        **asked,
        "layer": keys.recorded(layer),
        "genes": genes if genes is None or isinstance(genes, str) else names,
        "rounding": rounding,
        "likelihood": likelihood,
        "output": output,
        "sd": sd,
        "dtype": stored_as,
        "posterior": posterior,
        "size_key": size_key,
        "random_state": _random.describe(random_state),
        "device": str(torch_device),
        **{name: getattr(settings, name) for name in ("block_size", "n_repeats", "batch_size", "learning_rate")},
        **vars(complexity),
    }
    conditioned = {"library_key": {"column": asked["library_key"], "levels": sections.names}} if labels else {}
    params = {name: value for name, value in params.items() if value is not None}
    save_as = None
    if path is not None:
        every = list(map(str, adata.var_names))
        metadata = {"method": method, "version": __version__, "genes": every, "imputed": names, "conditioned_on": conditioned}
        tensors |= {name: torch.from_numpy(value) for name, value in moments.items()}
        features = {name: list(shape) for name, shape in side.shapes(complexity.n_context).items()}
        save_as = partial(
            save_model,
            path,
            tensors,
            {**metadata, "params": params, "features": features},
        )
    uns = {
        "params": params,
        **record,
        "conditioned_on": conditioned,
        keys.SOURCE: source,
        "version": __version__,
        "seconds": time.perf_counter() - start,
    }
    values = {key_added: result.rates.mean} | ({keys.sd(key_added): result.rates.squares} if sd else {})
    obsm: dict[str, Any] = {}
    varm: dict[str, Any] = {}
    if factors:
        # By the names of the arguments of `tl.nmf`.
        params["n_factors"] = params.pop("n_context")
        for name in ("modalities", "block_size", "n_repeats", "width"):
            del params[name]
        place = tensors["repeat0.place"].numpy()
        obsm = {keys.spot_factors(key_added): tensors["repeat0.steps"].detach().cpu().numpy() * FactorGenerator.PACE}
        varm = {keys.gene_factors(key_added): tensors["repeat0.of_genes"].detach().cpu().numpy()[place]}
    if chosen is None:
        return write(adata, key_added, method, layers=values, obsm=obsm, varm=varm, uns=uns, earlier=earlier, copy=copy, save=save_as)
    obsm |= {name: pd.DataFrame(value, index=adata.obs_names, columns=names) for name, value in values.items()}
    return write(adata, key_added, method, obsm=obsm, varm=varm, uns=uns, earlier=earlier, copy=copy, save=save_as)


def _earlier(adata: AnnData, method: str, key: str, genes: np.ndarray | None) -> dict[str, list[str]] | None:
    """Where an earlier result lies that the new one is not written over: in layers, or with some genes in obsm, beside the factors."""
    if written_by(adata, key) != method:
        return None
    before, now = ("obsm" if some else "layers" for some in ("genes" in params_of(adata, key), genes is not None))
    if before == now:
        return None
    taken = [f"{now}[{name!r}]" for name in (key, keys.sd(key)) if name in getattr(adata, now)]
    if taken:
        raise ValueError(f"key_added={key!r}: {', '.join(taken)} exist and were not written by {method}; choose another key or delete them")
    return {before: [key, *([keys.sd(key)] if has_sd(adata, key) else [])]}


def _posterior(asked: bool | str, entrywise: bool, modalities: list[str]) -> bool:
    """Whether the spot's own counts are used once more."""
    blind = "counts" not in modalities and SPOT not in modalities
    if isinstance(asked, str) and asked == "auto":
        return not entrywise and not blind
    if _check.boolean("posterior", asked) and blind:
        raise ValueError("posterior=True uses the counts of the spot, which are not among the modalities; pass posterior=False")
    if asked and entrywise:
        raise ValueError("posterior=True is about molecules; with likelihood='squared' an entry is known or missing: pass posterior=False")
    return bool(asked)
