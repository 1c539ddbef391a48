"""A saved model of `tl.began` or `tl.spatial` on other cells: its generators rebuilt, their rates, the posterior step.

Knows numpy, scipy and torch, not AnnData.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from .. import _check, _save
from .._progress import Progress
from .._space.side import SideInformation
from ..models.began import Generator
from ..models.conv import ConvGenerator
from ..models.multimodal import ModalGenerator
from ..models.posterior import Prior
from .batches import CellBatches, Context
from .output import finish
from .partition import Partition, RunningMoments
from .rates import Rates, add_rates
from .split import target_of


class AnyLevel(nn.Module):
    """A generator that takes cells of a level it does not know, code -1: their rate is the mean over all levels of that label.

    Parameters
    ----------
    generator
        Gives log rates ``(P, b, m)`` from ``(P, b, m + c)`` and one ``(b,)`` of codes a label, then what is told of modalities.
    levels
        Number of levels of each label.
    """

    def __init__(self, generator: nn.Module, levels: Sequence[int]) -> None:
        super().__init__()
        self.generator, self.levels = generator, levels

    def forward(self, inputs: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """Log share of every gene, ``(P, b, m)``."""
        for label, codes in enumerate(labels[: len(self.levels)]):
            unknown = codes < 0
            if not unknown.any():
                continue
            total: Tensor | None = None
            for level in range(self.levels[label]):
                told = [other[unknown] for other in labels]
                told[label] = torch.full_like(told[label], level)
                # A rate is capped at 1 wherever it is used, so also before the mean.
                part = self(inputs[:, unknown], told).clamp(max=0)
                total = part if total is None else torch.logaddexp(total, part)
            assert total is not None, "a label has levels"
            mean = total - float(np.log(self.levels[label]))
            whole = mean.new_empty(mean.shape[0], len(codes), mean.shape[2])
            whole[:, unknown] = mean
            if not unknown.all():
                whole[:, ~unknown] = self(inputs[:, ~unknown], [other[~unknown] for other in labels])
            return whole
        return self.generator(inputs, labels)


@dataclass
class Repeat:
    """The generator of one repeat with the deal of the genes it was trained on."""

    generator: nn.Module
    place: np.ndarray
    blocks: int
    genes_per_block: int


@dataclass(frozen=True)
class Model:
    """What a file of `tl.began` holds.

    Attributes
    ----------
    genes, imputed
        Names of the genes that inform the context, and of those that are imputed.
    params
        Parameters of the training; the ones of the output hold for the application too.
    labels
        For each label its argument (``"batch_key"``), column of obs and levels.
    features
        Shape of what is told of each modality (`tl.spatial`), else None.
    """

    genes: list[str]
    imputed: list[str]
    params: dict[str, Any]
    labels: dict[str, tuple[str, list[str]]]
    tensors: Mapping[str, Tensor]
    features: dict[str, tuple[int, ...]] | None = None

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Model:
        """Raises ValueError where something is missing or does not fit together."""
        with _save.reading(metadata.get("method")):
            names = metadata["conditioned_on"].items()
            labels = {name: (str(label["column"]), _save.texts(f"levels of {name}", label["levels"])) for name, label in names}
            features = {name: tuple(shape) for name, shape in metadata["features"].items()} if "features" in metadata else None
            fill = "zeros" if metadata["params"].get("likelihood") == "squared" else "all"
            params = {"fill": fill, "architecture": "dense", **metadata["params"]}
            genes, imputed = (_save.texts(name, metadata[name]) for name in ("genes", "imputed"))
            model = cls(genes, imputed, params, labels, tensors, features)
            model.check()
        return model

    def check(self) -> None:
        """Build every repeat once, so that a file that does not fit together is found before the work."""
        self._check_params()
        self._check_tensors()
        if not set(self.imputed) <= set(self.genes):
            raise RuntimeError("a gene is imputed that is not among the genes")
        imputed = self.positions(self.imputed)
        for number in range(_save.whole("n_repeats", self.params["n_repeats"], self.tensors)):
            repeat = self.repeat(number)
            dealt = repeat.place[imputed] if repeat.place.shape == (len(self.genes),) else np.array([-1])
            if dealt.min() < 0 or dealt.max() >= repeat.blocks * repeat.genes_per_block or len(np.unique(dealt)) < len(dealt):
                raise RuntimeError(f"repeat{number}.place does not deal the imputed genes to the blocks")

    def _check_params(self) -> None:
        for name in ("output", "fill", "posterior", "n_repeats", "width", "architecture"):
            if name not in self.params:
                raise KeyError(f"no params[{name!r}]")
        _check.option("output", self.params["output"], ("counts", "rate", "log1p"))
        _check.option("fill", self.params["fill"], ("all", "zeros", "expressed"))
        _check.option("architecture", self.params["architecture"], ("dense", "conv"))
        _check.boolean("posterior", self.params["posterior"])
        _save.whole("width", self.params["width"], self.tensors)
        _ = self.target  # a level that is named
        if self.features is None:
            return
        if list(self.features) != list(self.params["modalities"]):
            raise RuntimeError("features are not those of the modalities")
        for shape in self.features.values():
            for length in shape:
                if length:
                    _save.whole("the shape of a modality", length, self.tensors)
        _check.number("spatial_weight", self.params["spatial_weight"], 0)
        for weight in self.params["ring_weights"]:
            _check.number("ring_weights", weight, 0)

    def _check_tensors(self) -> None:
        for name in ("sizes", "reference", "seen", "loadings", *(["expressed_above"] if self.params["fill"] == "expressed" else [])):
            length = len(self.genes if name == "loadings" else self.imputed)
            if len(self.tensors[name]) != length:
                raise RuntimeError(f"{name} is of {len(self.tensors[name])} genes, {length} are named")
        bad = [name for name, tensor in self.tensors.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise RuntimeError(f"{bad[0]} has values that are NaN or infinite")
        require = partial(_save.require, self.tensors)
        require("sizes", None, above=0)
        require("reference", None, low=0)
        require("seen", None, dtype="bool")
        require("loadings", None, None)
        require("median_size", above=0)
        if require("varying", 2)[1] < 0:
            raise RuntimeError("varying has a spread below 0")
        if self.params["fill"] == "expressed":
            require("expressed_above", None)
        # Tiles are taken as they are, features of tiles as those of the training were.
        told = self.features or {}
        if "position" in told:
            require("extents", self.levels[0] if self.labels else None, 2, None)
        if self.params.get("tile_features"):
            require("tile_moments", 2, None)
        elif self.params.get("image_key"):
            require("tile_size", dtype="int", low=1)
        if self.params.get("edge_weight"):
            require("edge_scales", None, above=0)
            if self.params.get("image_key"):
                require("colour_moments", 2, 6)

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of levels of each label."""
        return tuple(len(names) for _, names in self.labels.values())

    @property
    def target(self) -> tuple[int, list[int]] | None:
        """Position of the batch label and the levels to impute as."""
        return target_of(self.params.get("target_batch"), {name: levels for name, (_, levels) in self.labels.items()})

    def positions(self, names: Sequence[str]) -> np.ndarray:
        """Places of some names among the model's genes."""
        place = {name: i for i, name in enumerate(self.genes)}
        return np.array([place[name] for name in names], dtype=np.int64)

    def prior(self) -> Prior:
        slope, spread = self.tensors["varying"].tolist()
        return Prior(self.tensors["sizes"], self.tensors["reference"], slope, spread)

    def context(self) -> Context:
        return Context(self.tensors["loadings"].numpy(), float(self.tensors["median_size"]))

    def repeat(self, number: int) -> Repeat:
        """The generator of one repeat, in evaluation mode."""
        prefix = f"repeat{number}."
        state = {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        place = _save.require(state, "place", None, dtype="int").numpy()
        del state["place"]
        conv = self.params["architecture"] == "conv"
        # The bias of the last layer has a value for every place of every block.
        name = "bias" if conv else "output.bias" if self.features is None else "inner.output.bias"
        bias = state[name]
        blocks, _, size = bias.shape
        start = torch.Generator().manual_seed(0)
        shape, width = (blocks, size, self.tensors["loadings"].shape[1] + 1, self.levels), self.params["width"]
        generator: nn.Module
        if self.features is not None:
            generator = ModalGenerator(*shape, self.features, bias, start, start, width=width)
        else:
            generator = (ConvGenerator if conv else Generator)(*shape, bias, start, width=width)
        generator.load_state_dict(state)
        return Repeat(generator.requires_grad_(False).eval(), place, blocks, size)


def aligned(counts: sp.csr_matrix, places: np.ndarray) -> sp.csr_matrix:
    """Columns of a matrix in the model's order; an empty one for a gene the matrix does not have, place -1."""
    if len(places) == counts.shape[1] and np.array_equal(places, np.arange(len(places))):
        return counts
    wider = sp.csr_matrix((counts.data, counts.indices, counts.indptr), shape=(counts.shape[0], counts.shape[1] + 1))
    found = wider[:, np.where(places < 0, counts.shape[1], places)]
    found.sort_indices()
    return found


def impute(
    model: Model,
    counts: sp.csr_matrix,
    size: np.ndarray,
    labels: tuple[np.ndarray, ...],
    names: Sequence[str],
    device: torch.device,
    side: SideInformation | None,
    *,
    measured: np.ndarray,
    covered: float,
    sd: bool,
    progress: bool,
) -> Rates:
    """Values and standard deviations of some genes in all cells, where the rates and their spread were (see `_output.finish`).

    Parameters
    ----------
    counts, size
        Counts in the model's order of the genes, and library sizes.
    labels
        Level codes of each of the model's labels, -1 for a level it does not know.
    names
        Genes of the result, some of ``model.imputed``.
    side
        What a model of `tl.spatial` is told beside the counts.
    measured, covered
        Whether the object has each of the model's genes, and the share of all molecules these have.
    sd
        Whether standard deviations are wanted.
    """
    columns, n_repeats, target = model.positions(names), model.params["n_repeats"], model.target
    rates = RunningMoments(len(size), len(names), spread=sd)
    own = RunningMoments(len(size), len(names), spread=False) if target is not None and model.params["posterior"] else None
    context, entrywise = model.context(), model.params.get("likelihood") == "squared"
    told = None if side is None else side.features_with(counts, size, context.loadings.numpy())
    with Progress(f"tl.apply: {len(size):,} cells x {len(names):,} genes, {device}", show=progress) as bar:
        bar.phase("predicting", 0.6, n_repeats)
        for number in range(n_repeats):
            repeat = model.repeat(number)
            partition = Partition(columns, repeat.place, repeat.blocks, repeat.genes_per_block)
            batches = CellBatches(counts, size, labels, partition, context, device, side, told, None if entrywise else measured, covered)
            add_rates(_Applied(AnyLevel(repeat.generator, model.levels).to(device)), batches, target, rates, own, number)
            bar.step()
        place = {name: i for i, name in enumerate(model.imputed)}
        chosen = torch.tensor([place[name] for name in names])
        result = Rates(rates, own, model.prior()[chosen], model.tensors["seen"][chosen])
        options = {name: model.params[name] for name in ("posterior", "output", "fill")}
        if options["fill"] == "expressed":
            options["expressed_above"] = model.tensors["expressed_above"][chosen].numpy()
        bar.phase("using the cells' own counts", 0.4)
        finish(result, counts, size, columns, n_repeats, **options, entrywise=entrywise)
    return result


@dataclass
class _Applied:
    """What `_rates.predict` asks for a rate."""

    generator: nn.Module
