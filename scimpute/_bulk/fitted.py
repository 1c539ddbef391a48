"""A fitted model of `tl.pmi` or `tl.gain`. It fills samples; a model file stores it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _check, _random, _save
from ..models.pmi_gain import Gain, Network, Pmi, Samples
from .linear import Linear
from .settings import BulkSettings
from .table import BulkTable, Standardiser, rows_of


@dataclass
class Fitted:
    """A fitted model: it has everything that filling samples needs.

    Attributes
    ----------
    standardiser
        Mean and standard deviation of each gene.
    levels
        Number of levels of each categorical covariate.
    linear
        The linear part; None in the published variant.
    networks
        Members of the ensemble. Their mean prediction is used.
    share
        Weight of the networks beside the linear part, ``(g,)``, between 0 and 1.
    noise
        Standard deviation of the residuals of each gene, ``(g,)``; the published variant uses it.
    calibration
        Factor on the standard deviations.
    r2
        R2 of each gene on hidden entries, ``(g,)``; empty in a loaded model.
    record
        Entries of ``uns`` that describe the training; empty in a loaded model.
    """

    standardiser: Standardiser
    levels: tuple[int, ...]
    linear: Linear | None
    networks: list[nn.Module]
    share: Tensor
    noise: Tensor
    calibration: float
    r2: np.ndarray
    record: dict[str, Any]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers to save."""
        moments = vars(self.standardiser)
        tensors = {f"standardiser.{name}": torch.from_numpy(np.ascontiguousarray(value)) for name, value in moments.items()}
        tensors |= {"share": self.share, "noise": self.noise}
        for i, network in enumerate(self.networks):
            tensors |= {f"network{i}.{name}": value for name, value in network.state_dict().items()}
        numbers: dict[str, Any] = {"calibration": self.calibration, "levels": list(self.levels)}
        if self.linear is not None:
            linear, numbers["linear"] = self.linear.state()
            tensors |= {f"linear.{name}": value for name, value in linear.items()}
        return tensors, numbers

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], device: torch.device) -> Fitted:
        """Read a saved model. If its parts do not fit together, a ValueError says so."""
        with _save.reading(metadata.get("method")):
            genes, covariates, numbers = _save.require_names("genes", metadata["genes"]), metadata["covariates"], metadata["numbers"]
            _check.option("missing", metadata["params"]["missing"], ("nan", "zero"))
            stored = metadata["settings"]
            settings = BulkSettings(**{**stored, "mask_rate": tuple(stored["mask_rate"])})
            levels = tuple(len(_save.require_names(f"levels of {name}", names)) for name, names in covariates["categorical"].items())
            if tuple(numbers["levels"]) != levels:
                raise RuntimeError("the levels differ from those of the covariates")
            _check_saved(tensors, numbers, settings, len(genes), levels, len(_save.require_names("covariates", covariates["continuous"])))
            return cls.load(tensors, numbers, settings, device)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], settings: BulkSettings, device: torch.device) -> Fitted:
        """The reverse of :meth:`state`."""
        names = ("mean", "sd", "number_mean", "number_sd", "lowest")
        standardiser = Standardiser(**{name: tensors[f"standardiser.{name}"].numpy() for name in names})
        levels = tuple(numbers["levels"])
        networks: list[nn.Module] = []
        for i in range(settings.n_models):
            module = build(settings, len(standardiser.mean), levels, len(standardiser.number_mean), device, np.random.default_rng(0))
            prefix = f"network{i}."
            module.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})
            networks.append(module)
        linear = None
        if "linear" in numbers:
            parts = {name.removeprefix("linear."): value.to(device) for name, value in tensors.items() if name.startswith("linear.")}
            linear = Linear.load(parts, numbers["linear"], levels)
        share, noise = tensors["share"].to(device), tensors["noise"].to(device)
        return cls(standardiser, levels, linear, networks, share, noise, float(numbers["calibration"]), np.empty(0), {})

    def embeddings(self) -> list[np.ndarray]:
        """Coordinates of the levels of each categorical covariate, ``(levels, int(sqrt(levels)) + 1)``.

        With a linear part: the first principal coordinates of the effects of the levels on the standardised genes. A distance between
        two levels is a root mean square over genes. The embeddings of the networks are not used, since they stay near their random
        start. Without a linear part: the embeddings of the networks.
        """
        if self.linear is None:
            names = ["network" if isinstance(network, Pmi) else "generator" for network in self.networks]
            tables: list[list[Tensor]] = [
                [network.get_parameter(f"{name}.covariates.tables.{column}") for name, network in zip(names, self.networks, strict=True)]
                for column in range(len(self.levels))
            ]
            return [torch.cat(parts, dim=1).detach().cpu().numpy() for parts in tables]
        factors, coordinates = self.linear.factors, []
        # The columns of the levels follow the latent factors and the column of ones (see `linear.design`).
        first = factors.rank + 1
        for n in self.levels:
            effects = factors.weights[:, first : first + n].T.double().cpu().numpy()
            left, values, _ = np.linalg.svd(effects - effects.mean(axis=0), full_matrices=False)
            values[values < 1e-9 * values.max()] = 0
            scores = (left * values / math.sqrt(effects.shape[1]))[:, : math.isqrt(n) + 1]
            # The sign of a principal coordinate is arbitrary. The largest entry becomes positive.
            largest = np.take_along_axis(scores, np.abs(scores).argmax(axis=0)[None], axis=0)
            coordinates.append((scores * np.where(largest < 0, -1, 1)).astype(np.float32))
            first += n
        return coordinates

    def predict(self, table: BulkTable, device: torch.device, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Expected value and standard deviation of every entry on the input's scale.

        Observed entries keep their value and have standard deviation 0. If the samples are the training samples, ``own`` holds the row of
        each sample in the reference, ``(n,)``.
        """
        samples = self.standardiser.samples(table, device)
        rows = None if own is None else torch.from_numpy(own).to(device)
        with torch.no_grad():
            members = [apply_network(network, samples) for network in self.networks]
            mean, sd = self._combine(samples, members, rows)
        observed, scale = samples.observed.cpu().numpy(), self.standardiser
        filled = np.maximum(mean.cpu().numpy() * scale.sd + scale.mean, scale.lowest)
        spread = sd.cpu().numpy() * scale.sd * self.calibration
        values = np.where(observed, table.values, filled).astype(np.float32)
        return values, np.where(observed, 0, spread).astype(np.float32)

    def _combine(self, samples: Samples, members: list[Tensor], own: Tensor | None) -> tuple[Tensor, Tensor]:
        network = torch.stack(members).mean(0)
        if self.linear is None:
            between = torch.stack(members).var(0) if len(members) > 1 else torch.zeros_like(network)
            return network, (self.noise.square() + between).sqrt()
        mean, sd = self.linear.predict(samples, own)
        return mean + self.share * (network - mean), sd


def _check_saved(
    tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], settings: BulkSettings, g: int, levels: tuple[int, ...], n_numbers: int
) -> None:
    """Check shapes, types and signs of a saved model. Loading the networks checks the rest."""
    require = partial(_save.require, tensors)
    for name in ("n_models", "n_layers", "n_hidden"):
        _save.require_size(name, getattr(settings, name), tensors)
    for name in tensors:
        if name.startswith("network") and not torch.isfinite(tensors[name]).all():
            raise RuntimeError(f"{name} has values that are NaN or infinite")
        if name.endswith("running_var"):
            require(name, None, low=0)
    require("standardiser.mean", g)
    require("standardiser.sd", g, above=0)
    require("standardiser.number_mean", n_numbers)
    require("standardiser.number_sd", n_numbers, above=0)
    if tensors["standardiser.lowest"].tolist() not in ([0.0], [-math.inf]):
        raise RuntimeError("standardiser.lowest is neither 0 nor minus infinity")
    require("share", g, low=0, high=1)
    require("noise", g, low=0)
    _check.number("calibration", numbers["calibration"], 0)
    if ("linear" in numbers) is not settings.linear:
        raise RuntimeError("the linear part and the settings do not agree")
    if not settings.linear:
        return
    linear = numbers["linear"]
    rank = _save.require_size("rank", linear["rank"], tensors)
    _check.number("min_weight", linear["min_weight"], 0)
    _check.number("ridge", linear["ridge"], 0, open_low=True)
    k = rank + 1 + sum(levels) + n_numbers
    require("linear.factors.weights", g, k)
    require("linear.factors.second", g, k, k)
    n = len(require("linear.reference", None, g))
    require("linear.observed", n, g, dtype="bool")
    require("linear.codes", n, len(levels), dtype="int", low=-1)
    require("linear.covariate_weights", len(levels), low=0)
    for name in ("factors.noise", "precision", "residual_sd"):
        require(f"linear.{name}", g, above=0)
    pairs = require("linear.residual_correlation.indices", 2, None, dtype="int", low=0, high=g - 1).shape[1]
    require("linear.residual_correlation.values", pairs)


def apply_network(network: nn.Module, samples: Samples) -> Tensor:
    """Prediction of one network for every entry, ``(n, g)``."""
    network.eval()
    chunks = torch.arange(len(samples.values), device=samples.values.device).split(512)
    return torch.cat([network(rows_of(samples, rows)) for rows in chunks])


def build(
    settings: BulkSettings, genes: int, levels: tuple[int, ...], n_numbers: int, device: torch.device, rng: np.random.Generator
) -> Pmi | Gain:
    """One untrained member of the ensemble."""
    start = torch.Generator().manual_seed(_random.seed(rng))
    noise = torch.Generator(device).manual_seed(_random.seed(rng))
    shape = (genes, levels, n_numbers, start)
    layers = {"n_layers": settings.n_layers, "n_hidden": settings.n_hidden, "dropout": settings.dropout, "rng": noise}
    network = Network(*shape, **layers, rescale=settings.linear, zero=settings.linear)  # type: ignore[arg-type]
    if settings.method == "pmi":
        return Pmi(network, settings.mask_rate, noise).to(device)
    discriminator = Network(*shape, **layers, rescale=False, zero=False)  # type: ignore[arg-type]
    gain = Gain(
        network,
        discriminator,
        supervised_weight=settings.supervised_weight,
        hint_rate=settings.hint_rate,
        mask_rate=settings.mask_rate if settings.linear else None,
        rng=noise,
    )
    return gain.to(device)
