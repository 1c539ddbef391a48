"""The shell of all count methods: check, read, train, finish, write."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import _check, _device, _progress, _random
from .._anndata import keys
from .._anndata.counts import warn_of_empty_cells
from .._anndata.hints import warn_of_hints
from .._anndata.inputs import CellReader, Conditions, Inputs, SpotReader, read_inputs
from .._anndata.memory import check_memory
from .._anndata.sections import warn_of_spots_off_tissue
from .._anndata.write import as_tables, check_saveable, check_target, earlier_result, write
from .._counts.engine import Engine
from .._counts.output import DTYPES, FILLS, OUTPUTS, Output, check_dtype
from .._counts.run import SPLITS, Run, Task, run
from .._counts.saved_model import pack
from .._counts.settings import WIDTH, Settings
from .._counts.target_batch import Target, target_of
from .._methods import METHODS
from .._save import model_target, save_model
from .._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData


@dataclass(frozen=True)
class Request:
    """Parameters of a public function with these names, checked as far as that is possible without the counts."""

    method: str
    layer: str | None
    rounding: str | None
    size_key: str | None
    genes: str | Sequence[str] | None
    key_added: str
    output: str
    fill: str
    sd: bool
    dtype: str
    posterior: bool
    random_state: int | np.random.Generator | None
    device: str
    progress: bool | None
    save: Any
    copy: bool
    likelihood: str = "poisson"
    target_batch: str | None = None

    @classmethod
    def checked(cls, method: str, **parameters: Any) -> Request:
        """Refuse options that do not exist."""
        flags = {name: _check.boolean(name, parameters[name]) for name in ("sd", "posterior", "copy")}
        request = cls(method, **parameters | flags)
        _check.key_name("key_added", request.key_added)
        _check.option("output", request.output, OUTPUTS)
        _check.option("fill", request.fill, FILLS)
        _check.option("dtype", request.dtype, DTYPES)
        _check.option("likelihood", request.likelihood, list(SPLITS))
        return request

    @property
    def factors(self) -> dict[str, str]:
        """Names in ``obsm`` and ``varm`` for the vectors of spots and genes; empty for a method without them."""
        if not METHODS[self.method].factors:
            return {}
        return {"obsm": keys.spot_factors(self.key_added), "varm": keys.gene_factors(self.key_added)}

    def recorded(self) -> dict[str, Any]:
        """Parameters as they go to ``uns``."""
        fields = ("rounding", "output", "fill", "sd", "posterior", "size_key", "likelihood", "target_batch")
        return {name: getattr(self, name) for name in fields} | {
            "layer": keys.layer_in_params(self.layer),
            "random_state": _random.describe(self.random_state),
        }


def fill_of(likelihood: str) -> str:
    """``fill`` of a likelihood: with ``"squared"`` zeros are missing, and only they are filled."""
    return "zeros" if likelihood == "squared" else "all"


def checked_posterior(posterior: bool | str, likelihood: str, *, counts_are_read: bool = True) -> bool:
    """Whether the posterior step is taken; ``"auto"`` takes it wherever it is possible."""
    if isinstance(posterior, str) and posterior == "auto":
        return likelihood != "squared" and counts_are_read
    if _check.boolean("posterior", posterior) and not counts_are_read:
        raise ValueError("posterior=True needs the counts of the spot, and counts are not among the modalities; pass posterior=False")
    if posterior and likelihood == "squared":
        raise ValueError("posterior=True is not possible with likelihood='squared', which has no model of molecules; pass posterior=False")
    return bool(posterior)


def impute(
    function: Callable[..., Any], adata: AnnData, request: Request, engine: Engine, settings: Settings, reader: CellReader | SpotReader
) -> AnnData | None:
    """Impute counts: all that the public functions have in common.

    Parameters
    ----------
    function
        The public function. ``uns`` records its parameters.
    """
    start = time.perf_counter()
    device, rng, show = _device.resolve(request.device), _random.generator(request.random_state), _progress.show_bar(request.progress)
    path, inputs, conditions, target = _read(adata, request, settings, reader, device, rng)
    output = Output(request.posterior, request.output, request.fill, request.sd, request.dtype)
    arrays = (inputs.counts, inputs.size, conditions.codes, inputs.columns)
    task = Task(*arrays, inputs.imputed, conditions.side, target, request.likelihood, output, device)
    title = f"tl.{request.method}: {adata.n_obs:,} {reader.unit} x {len(inputs.imputed):,} genes, {settings.n_repeats} repeats, {device}"
    with _device.session(device), _progress.Progress(title, show=show) as bar:
        done = run(task, engine, settings, rng, bar)

    genes = request.genes if request.genes is None or isinstance(request.genes, str) else inputs.imputed
    params = {**reader.params, **request.recorded(), "genes": genes, "dtype": done.imputed.dtype, "device": str(device)}
    params |= asdict(done.settings) | asdict(done.fit.complexity) | engine.params(done.split, done.fit.complexity)
    params = {name: params[name] for name in signature(function).parameters if params.get(name) is not None}
    uns = {
        "params": params,
        **done.fit.record(),
        "conditioned_on": conditions.record(),
        keys.SOURCE: inputs.source,
        "version": __version__,
        "seconds": time.perf_counter() - start,
    }
    save = None if path is None else _saver(path, request.method, inputs, conditions, done, params)
    return _write(adata, request, inputs, done, engine, uns, save)


def _read(
    adata: AnnData,
    request: Request,
    settings: Settings,
    reader: CellReader | SpotReader,
    device: torch.device,
    rng: np.random.Generator,
) -> tuple[Path | None, Inputs, Conditions, Target | None]:
    """Path of the model, counts, conditions and target batch. All refusals and warnings that need no training come here."""
    check_target(
        adata, request.method, request.key_added, layer=request.layer, copy=request.copy, other_slots=request.factors, sd=request.sd
    )
    check_saveable(adata, request.save)
    path = model_target(request.save)
    inputs = read_inputs(adata, request, rng, unit=reader.unit, min_genes=2 if request.factors else 1)
    if request.factors:
        earlier_result(adata, request.method, request.key_added, in_table=inputs.in_table)
    check_dtype(request.dtype, request.output, inputs.counts, inputs.columns, inputs.imputed)
    conditions = reader.read(adata)
    # With a single batch, target_batch may name only this one.
    target_of(request.target_batch, conditions.single_levels)
    target = target_of(request.target_batch, conditions.levels)
    check_memory(
        adata,
        inputs.counts,
        len(inputs.columns),
        sd=request.sd,
        own=target is not None and request.posterior,
        dtype=request.dtype,
        copy=request.copy,
        hint=reader.memory_remedy,
        workers=_device.workers(device),
        training=settings.n_repeats,
        batch_size=settings.for_cells(adata.n_obs).cells_per_batch,
        width=settings.width or WIDTH,
    )
    conditions = reader.with_side(adata, conditions)
    warn_of_empty_cells(inputs.counts, inputs.size)
    warn_of_spots_off_tissue(adata, reader.use_off_tissue)
    warn_of_hints(adata, inputs.size, request.layer, request.size_key)
    return path, inputs, conditions, target


def _saver(path: Path, method: str, inputs: Inputs, conditions: Conditions, done: Run, params: dict[str, Any]) -> Callable[[], None]:
    """A function that writes the model file."""
    metadata = {
        "method": method,
        "version": __version__,
        "genes": inputs.genes,
        "imputed": inputs.imputed,
        "conditioned_on": conditions.record(),
        "params": params,
    }
    if conditions.side is not None:
        shapes = conditions.side.shapes(done.fit.complexity.n_context)
        metadata["features"] = {name: list(shape) for name, shape in shapes.items()}
    return partial(save_model, path, pack(done.fit, done.split, conditions.model_arrays), metadata)


def _write(
    adata: AnnData, request: Request, inputs: Inputs, done: Run, engine: Engine, uns: dict[str, Any], save: Callable[[], None] | None
) -> AnnData | None:
    """Write values and standard deviations as layers, or as tables for chosen genes; and the vectors of spots and genes."""
    key, imputed = request.key_added, done.imputed
    values = {key: imputed.values} | ({} if imputed.sd is None else {keys.sd(key): imputed.sd})
    slots: dict[str, dict[str, Any]] = {"obsm": as_tables(adata, values, inputs.imputed)} if inputs.in_table else {"layers": {**values}}
    earlier = None
    if request.factors:
        of_spots, of_genes = engine.factors(done.fit.repeats[0].generator, done.fit.repeats[0].partition)
        slots["obsm"] = {request.factors["obsm"]: of_spots, **slots.get("obsm", {})}
        slots["varm"] = {request.factors["varm"]: of_genes}
        earlier = earlier_result(adata, request.method, key, in_table=inputs.in_table)
    return write(adata, key, request.method, slots, {key: uns}, earlier=earlier, copy=request.copy, save=save)
