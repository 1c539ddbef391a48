"""What `tl.pmi` and `tl.gain` have fitted: how it is saved, loaded and used."""

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
from .linear import Linear, Scale, Table, rows_of
from .settings import BulkSettings


@dataclass
class Fitted:
    """All that is needed to fill samples: saved and loaded by `_save`."""

    scale: Scale
    levels: tuple[int, ...]
    linear: Linear | None
    networks: list[nn.Module]
    share: Tensor
    noise: Tensor
    calibration: float
    r2: np.ndarray
    record: dict[str, Any]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers to be saved."""
        tensors = {f"scale.{name}": torch.from_numpy(np.ascontiguousarray(value)) for name, value in vars(self.scale).items()}
        tensors |= {"share": self.share, "noise": self.noise}
        for i, network in enumerate(self.networks):
            tensors |= {f"network{i}.{name}": value for name, value in network.state_dict().items()}
        numbers: dict[str, Any] = {"calibration": self.calibration, "levels": list(self.levels)}
        if self.linear is not None:
            more, numbers["linear"] = self.linear.state()
            tensors |= {f"linear.{name}": value for name, value in more.items()}
        return tensors, numbers

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], device: torch.device) -> Fitted:
        """A saved model, of which all parts fit together; ValueError where they do not."""
        with _save.reading(metadata.get("method")):
            genes, known, numbers = _save.texts("genes", metadata["genes"]), metadata["covariates"], metadata["numbers"]
            _check.option("missing", metadata["params"]["missing"], ("nan", "zero"))
            stored = metadata["settings"]
            settings = BulkSettings(**{**stored, "mask_rate": tuple(stored["mask_rate"])})
            levels = tuple(len(_save.texts(f"levels of {name}", names)) for name, names in known["categorical"].items())
            if tuple(numbers["levels"]) != levels:
                raise RuntimeError("there are other levels than those of the covariates")
            _check_saved(tensors, numbers, settings, len(genes), levels, len(_save.texts("covariates", known["continuous"])))
            return cls.load(tensors, numbers, settings, device)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], settings: BulkSettings, device: torch.device) -> Fitted:
        """The reverse of :meth:`state`."""
        scale = Scale(**{name: tensors[f"scale.{name}"].numpy() for name in ("mean", "sd", "number_mean", "number_sd", "lowest")})
        levels = tuple(numbers["levels"])
        networks: list[nn.Module] = []
        for i in range(settings.n_models):
            module = build(settings, len(scale.mean), levels, len(scale.number_mean), device, np.random.default_rng(0))
            prefix = f"network{i}."
            module.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})
            networks.append(module)
        linear = None
        if "linear" in numbers:
            parts = {name.removeprefix("linear."): value.to(device) for name, value in tensors.items() if name.startswith("linear.")}
            linear = Linear.load(parts, numbers["linear"], levels)
        share, noise = tensors["share"].to(device), tensors["noise"].to(device)
        return cls(scale, levels, linear, networks, share, noise, float(numbers["calibration"]), np.empty(0), {})

    def embeddings(self) -> list[np.ndarray]:
        """Where the levels of each categorical covariate lie, ``(levels, int(sqrt(levels)) + 1)``.

        With a linear part the first principal coordinates of their effects on the standardised genes: a distance is a root mean square
        over genes. The tables of the networks beside it hardly leave their random start. Those of networks alone are given as they are.
        """
        if self.linear is None:
            names = ["network" if isinstance(network, Pmi) else "generator" for network in self.networks]
            tables: list[list[Tensor]] = [
                [network.get_parameter(f"{name}.covariates.tables.{column}") for name, network in zip(names, self.networks, strict=True)]
                for column in range(len(self.levels))
            ]
            return [torch.cat(parts, dim=1).detach().cpu().numpy() for parts in tables]
        factors, found = self.linear.factors, []
        # After the latent factors and the column of ones (see `_linear.design`).
        first = factors.rank + 1
        for n in self.levels:
            effects = factors.weights[:, first : first + n].T.double().cpu().numpy()
            left, values, _ = np.linalg.svd(effects - effects.mean(axis=0), full_matrices=False)
            values[values < 1e-9 * values.max()] = 0
            coordinates = (left * values / math.sqrt(effects.shape[1]))[:, : math.isqrt(n) + 1]
            largest = np.take_along_axis(coordinates, np.abs(coordinates).argmax(axis=0)[None], axis=0)
            found.append((coordinates * np.where(largest < 0, -1, 1)).astype(np.float32))
            first += n
        return found

    def predict(self, table: Table, device: torch.device, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Expected value and standard deviation of every entry on the input's scale; observed entries as they are, with 0."""
        samples = self.scale.samples(table, device)
        rows = None if own is None else torch.from_numpy(own).to(device)
        with torch.no_grad():
            members = [apply_network(network, samples) for network in self.networks]
            mean, sd = self._join(samples, members, rows)
        seen = samples.observed.cpu().numpy()
        filled = np.maximum(mean.cpu().numpy() * self.scale.sd + self.scale.mean, self.scale.lowest)
        spread = sd.cpu().numpy() * self.scale.sd * self.calibration
        values = np.where(seen, table.values, filled).astype(np.float32)
        return values, np.where(seen, 0, spread).astype(np.float32)

    def _join(self, samples: Samples, members: list[Tensor], own: Tensor | None) -> tuple[Tensor, Tensor]:
        network = torch.stack(members).mean(0)
        if self.linear is None:
            between = torch.stack(members).var(0) if len(members) > 1 else torch.zeros_like(network)
            return network, (self.noise.square() + between).sqrt()
        mean, sd = self.linear.predict(samples, own)
        return mean + self.share * (network - mean), sd


def _check_saved(
    tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], settings: BulkSettings, g: int, levels: tuple[int, ...], n_numbers: int
) -> None:
    """Shapes, types and signs of a saved model; whether the networks have all of theirs, loading them will tell."""
    require = partial(_save.require, tensors)
    for name in ("n_models", "n_layers", "n_hidden"):
        _save.whole(name, getattr(settings, name), tensors)
    for name in tensors:
        if name.startswith("network") and not torch.isfinite(tensors[name]).all():
            raise RuntimeError(f"{name} has values that are NaN or infinite")
        if name.endswith("running_var"):
            require(name, None, low=0)
    require("scale.mean", g)
    require("scale.sd", g, above=0)
    require("scale.number_mean", n_numbers)
    require("scale.number_sd", n_numbers, above=0)
    if tensors["scale.lowest"].tolist() not in ([0.0], [-math.inf]):
        raise RuntimeError("scale.lowest is neither 0 nor minus infinity")
    require("share", g, low=0, high=1)
    require("noise", g, low=0)
    _check.number("calibration", numbers["calibration"], 0)
    if ("linear" in numbers) is not settings.linear:
        raise RuntimeError("the linear part and the settings do not agree")
    if not settings.linear:
        return
    linear = numbers["linear"]
    rank = _save.whole("rank", linear["rank"], tensors)
    _check.number("floor", linear["floor"], 0)
    _check.number("strength", linear["strength"], 0, open_low=True)
    k = rank + 1 + sum(levels) + n_numbers
    require("linear.factors.weights", g, k)
    require("linear.factors.second", g, k, k)
    n = len(require("linear.reference", None, g))
    require("linear.observed", n, g, dtype="bool")
    require("linear.codes", n, len(levels), dtype="int", low=-1)
    require("linear.importance", len(levels), low=0)
    for name in ("factors.noise", "precision", "residual_sd"):
        require(f"linear.{name}", g, above=0)
    pairs = require("linear.partners.indices", 2, None, dtype="int", low=0, high=g - 1).shape[1]
    require("linear.partners.values", pairs)


def apply_network(network: nn.Module, samples: Samples) -> Tensor:
    network.eval()
    parts = torch.arange(len(samples.values), device=samples.values.device).split(512)
    return torch.cat([network(rows_of(samples, rows)) for rows in parts])


def build(
    settings: BulkSettings, genes: int, levels: tuple[int, ...], n_numbers: int, device: torch.device, rng: np.random.Generator
) -> Pmi | Gain:
    """One untrained member."""
    start = torch.Generator().manual_seed(_random.seed(rng))
    noise = torch.Generator(device).manual_seed(_random.seed(rng))
    shape = (genes, levels, n_numbers, start)
    sizes = {"n_layers": settings.n_layers, "n_hidden": settings.n_hidden, "dropout": settings.dropout, "rng": noise}
    network = Network(*shape, **sizes, rescale=settings.linear, zero=settings.linear)  # type: ignore[arg-type]
    if settings.method == "pmi":
        return Pmi(network, settings.mask_rate, noise).to(device)
    judge = Network(*shape, **sizes, rescale=False, zero=False)  # type: ignore[arg-type]
    gain = Gain(
        network,
        judge,
        supervised_weight=settings.supervised_weight,
        hint_rate=settings.hint_rate,
        mask_rate=settings.mask_rate if settings.linear else None,
        rng=noise,
    )
    return gain.to(device)
