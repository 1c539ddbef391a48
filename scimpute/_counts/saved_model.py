"""The model file of `tl.began` or `tl.spatial`: `pack` collects its tensors, and `Model` reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _check, _save
from ..models.likelihood import LIKELIHOODS, Likelihood
from ..models.posterior import Prior
from . import began, spatial
from .context import Context
from .fit import Fit, Repeat
from .output import FILLS, OUTPUTS
from .partition import Partition
from .split import CountSplit
from .target_batch import Target, target_of


def pack(fit: Fit, split: CountSplit, side: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors of a file, as :class:`Model` reads them. ``side`` holds the arrays that a later reading of positions and images needs."""
    prior = fit.rates.prior
    tensors = {
        "loadings": fit.context.loadings,
        "median_size": torch.tensor(fit.context.median_size, dtype=torch.float32, device="cpu"),
        "inverse_dispersion": prior.theta,
        "reference": prior.reference,
        "slope_and_spread": torch.tensor([prior.slope, prior.spread], dtype=torch.float32, device="cpu"),
        "seen": fit.rates.seen,
        "share": torch.from_numpy(split.share),
    }
    for number, repeat in enumerate(fit.repeats):
        tensors |= {f"repeat{number}.{name}": value for name, value in repeat.generator.state_dict().items()}
        tensors[f"repeat{number}.place"] = torch.from_numpy(repeat.partition.place)
    if fit.expressed_above is not None:
        tensors["expressed_above"] = torch.from_numpy(fit.expressed_above)
    return tensors | {name: torch.from_numpy(value) for name, value in side.items()}


@dataclass(frozen=True)
class Model:
    """The content of a model file.

    Attributes
    ----------
    genes, imputed
        Names of all genes that the networks read, and of the imputed ones.
    params
        Parameters of the training. Those of the output hold for the application, too.
    labels
        Column of obs and levels of each label, by its argument, such as ``"batch_key"``.
    features
        Shape of the features of one spot in each modality (`tl.spatial`); else None.
    """

    genes: list[str]
    imputed: list[str]
    params: dict[str, Any]
    labels: dict[str, tuple[str, list[str]]]
    tensors: Mapping[str, Tensor]
    features: dict[str, tuple[int, ...]] | None = None

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Model:
        """Read a model. A ValueError says which part is missing or does not fit the others."""
        with _save.reading(metadata.get("method")):
            names = metadata["conditioned_on"].items()
            labels = {name: (str(label["column"]), _save.require_names(f"levels of {name}", label["levels"])) for name, label in names}
            features = {name: tuple(shape) for name, shape in metadata["features"].items()} if "features" in metadata else None
            # tl.spatial has no such arguments.
            likelihood = LIKELIHOODS.get(metadata["params"].get("likelihood", "poisson"))
            fill = "zeros" if likelihood is not None and likelihood.zeros_missing else "all"
            params = {"fill": fill, "architecture": "dense", **metadata["params"]}
            genes, imputed = (_save.require_names(name, metadata[name]) for name in ("genes", "imputed"))
            model = cls(genes, imputed, params, labels, tensors, features)
            model.check()
        return model

    def check(self) -> None:
        """Check all parts, and build every repeat once, so that a damaged file is refused before the work."""
        self._check_params()
        self._check_tensors()
        if not set(self.imputed) <= set(self.genes):
            raise RuntimeError("an imputed gene is missing from the genes")
        imputed = self.positions(self.imputed)
        for number in range(_save.require_size("n_repeats", self.params["n_repeats"], self.tensors)):
            partition = self.repeat(number, imputed).partition
            places = partition.place[imputed] if partition.place.shape == (len(self.genes),) else np.array([-1])
            n_places = partition.blocks * partition.genes_per_block
            if places.min() < 0 or places.max() >= n_places or len(np.unique(places)) < len(places):
                raise RuntimeError(f"repeat{number}.place does not give each imputed gene its own place")

    def _check_params(self) -> None:
        for name in ("output", "fill", "posterior", "n_repeats", "width", "architecture"):
            if name not in self.params:
                raise KeyError(f"no params[{name!r}]")
        _check.option("output", self.params["output"], OUTPUTS)
        _check.option("fill", self.params["fill"], FILLS)
        _check.option("architecture", self.params["architecture"], began.ARCHITECTURES)
        _check.option("likelihood", self.params.get("likelihood", "poisson"), LIKELIHOODS)
        _check.boolean("posterior", self.params["posterior"])
        _save.require_size("width", self.params["width"], self.tensors)
        _ = self.target  # refuses an unknown level
        if self.features is None:
            return
        if list(self.features) != list(self.params["modalities"]):
            raise RuntimeError("features are not those of the modalities")
        for shape in self.features.values():
            for length in shape:
                if length:
                    _save.require_size("the shape of a modality", length, self.tensors)
        _check.number("spatial_weight", self.params["spatial_weight"], 0)
        for weight in self.params["ring_weights"]:
            _check.number("ring_weights", weight, 0)

    def _check_tensors(self) -> None:
        for name in (
            "inverse_dispersion",
            "reference",
            "seen",
            "loadings",
            *(["expressed_above"] if self.params["fill"] == "expressed" else []),
        ):
            length = len(self.genes if name == "loadings" else self.imputed)
            if len(self.tensors[name]) != length:
                raise RuntimeError(f"{name} has {len(self.tensors[name])} genes instead of {length}")
        bad = [name for name, tensor in self.tensors.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise RuntimeError(f"{bad[0]} has values that are NaN or infinite")
        require = partial(_save.require, self.tensors)
        require("inverse_dispersion", None, above=0)
        require("reference", None, low=0)
        require("seen", None, dtype="bool")
        require("loadings", None, None)
        require("median_size", above=0)
        if require("slope_and_spread", 2)[1] < 0:
            raise RuntimeError("slope_and_spread has a spread below 0")
        if self.params["fill"] == "expressed":
            require("expressed_above", None)
        # Positions and features of tiles are scaled as in the training.
        if "position" in (self.features or {}):
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
    def likelihood(self) -> Likelihood:
        """Likelihood of the training; `tl.began` always uses the first."""
        return LIKELIHOODS[self.params.get("likelihood", "poisson")]

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of levels of each label."""
        return tuple(len(names) for _, names in self.labels.values())

    @property
    def target(self) -> Target | None:
        """The target batches of the training."""
        return target_of(self.params.get("target_batch"), {name: levels for name, (_, levels) in self.labels.items()})

    def positions(self, names: Sequence[str]) -> np.ndarray:
        """Places of some genes among the genes of the model."""
        place = {name: i for i, name in enumerate(self.genes)}
        return np.array([place[name] for name in names], dtype=np.int64)

    def prior(self) -> Prior:
        slope, spread = self.tensors["slope_and_spread"].tolist()
        return Prior(self.tensors["inverse_dispersion"], self.tensors["reference"], slope, spread)

    def context(self) -> Context:
        return Context(self.tensors["loadings"], float(self.tensors["median_size"]))

    def repeat(self, number: int, genes: np.ndarray) -> Repeat:
        """The generator of one repeat, in evaluation mode, with a partition of these genes."""
        prefix = f"repeat{number}."
        state = {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        place = _save.require(state, "place", None, dtype="int").numpy()
        del state["place"]
        n_values, width = self.tensors["loadings"].shape[1] + 1, self.params["width"]
        if self.features is None:
            generator, (blocks, _, size) = began.empty_generator(state, self.params["architecture"], n_values, self.levels, width)
        else:
            generator, (blocks, _, size) = spatial.empty_generator(state, self.features, n_values, self.levels, width)
        generator.load_state_dict(state)
        return Repeat(Partition(genes, place, blocks, size), generator.requires_grad_(False).eval())
