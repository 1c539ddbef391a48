"""What `tl.pmi` and `tl.gain` do between reading and writing: the networks beside the linear part, their weights, the spread.

Knows numpy and torch, not AnnData.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _check, _device, _random, _save
from .._progress import Progress
from .._train import History, fit, n_batches, shuffled
from ..models.pmi_gain import Gain, Network, Pmi, Samples
from .linear import Linear, Scale, Table, hidden, rows_of, uniform

VALIDATION = 0.1
"""Fraction of the observed entries hidden to find the weight of the networks and the scale of the spread, in place."""
STEPS = 600
PUBLISHED_STEPS = 100
"""Minibatches an epoch in the published schedule."""
COVERAGE, NORMAL_QUANTILE = 0.9, 1.6448536


@dataclass(frozen=True)
class BulkSettings:
    """How a run is to be done. ``linear`` False: the network alone, as published."""

    method: str
    mode: str
    linear: bool
    n_models: int
    n_layers: int
    n_hidden: int
    dropout: float
    mask_rate: tuple[float, float]
    max_epochs: int | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    one_cycle: bool
    supervised_weight: float
    hint_rate: float


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
            members = [_apply(network, samples) for network in self.networks]
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


def _apply(network: nn.Module, samples: Samples) -> Tensor:
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


def _split(samples: Samples, settings: BulkSettings, rng: np.random.Generator) -> tuple[Samples, Samples, Tensor, Tensor, Tensor | None]:
    """What validation is fitted to, what it is asked (as shown, in truth, which entries), and its rows in the former.

    In place a tenth of the entries is hidden: what is missing then is as dense as in use. For new samples a fifth of the samples is
    set aside, and shown at the fractions of ``mask_rate``.
    """
    n = len(samples.values)
    draw = uniform(samples.values, rng)
    if settings.mode == "inplace":
        mask = samples.observed & (draw < VALIDATION)
        shown = hidden(samples, mask)
        return shown, shown, samples.values, mask, torch.arange(n, device=mask.device)
    order = torch.from_numpy(rng.permutation(n)).to(draw.device)
    aside, rest = order[: n // 5], order[n // 5 :]
    query = rows_of(samples, aside)
    low, high = settings.mask_rate
    kept = low + (high - low) * torch.from_numpy(rng.random((len(aside), 1), dtype=np.float32)).to(draw.device)
    mask = query.observed & (draw[aside] > kept)
    return rows_of(samples, rest), hidden(query, mask), query.values, mask, None


def train(table: Table, settings: BulkSettings, device: torch.device, rng: np.random.Generator, progress: Progress) -> Fitted:
    """Fit the linear part and the networks, weigh them per gene on hidden entries, calibrate the spread."""
    scale = Scale.of(table)
    samples = scale.samples(table, device)
    known, query, truth, wanted, own = _split(samples, settings, rng)
    per_epoch = n_batches(len(known.values), settings.batch_size) if settings.one_cycle else PUBLISHED_STEPS
    epochs = settings.max_epochs or max(10, min(100, math.ceil(STEPS / per_epoch)))
    record: dict[str, Any] = {"history": [], "stopped": [], "max_epochs": epochs}
    networks: list[nn.Module] = []
    progress.phase("neighbours and correlated genes", 0.2)
    with torch.no_grad():
        if settings.linear:
            trial = Linear.fit(known, table.levels, rng)
            tried = trial.choose(query, own, truth, wanted)
            trial.finish(known, rng)
            base, sd = trial.predict(query, own)
            record["chosen"] = {"floor": trial.floor, "strength": trial.strength, "rank": trial.factors.rank, "candidates": tried}
        else:
            base, sd = torch.zeros_like(truth), torch.ones_like(truth)
    progress.phase(f"training {settings.n_models} networks", 0.6, settings.n_models * epochs)
    streams = [np.random.default_rng(_random.seed(rng)) for _ in range(settings.n_models)]

    def one(stream: np.random.Generator, alive: Callable[[], None]) -> tuple[Pmi | Gain, History]:
        module = build(settings, len(scale.mean), table.levels, table.numbers.shape[1], device, stream)
        trained = _fit_network(module, known, query, truth, wanted, settings, per_epoch, epochs, stream, progress.step, alive)
        return module, trained

    for member, (module, trained) in enumerate(_device.side_by_side(one, streams, device)):
        record["history"] += [{"model": member, "epoch": i, **values} for i, values in enumerate(trained.epochs)]
        record["stopped"].append(trained.stopped)
        networks.append(module)
    progress.phase("weighing the networks", 0.2)
    with torch.no_grad():
        guess = torch.stack([_apply(network, query) for network in networks]).mean(0)
        share, r2, noise = _shares(base, guess, truth, wanted, linear=settings.linear)
        mean = base + share * (guess - base)
        ratio = (mean - truth).abs() / (sd if settings.linear else noise)
        calibration = float(np.quantile(ratio[wanted].cpu().numpy(), COVERAGE)) / NORMAL_QUANTILE if wanted.any() else 1.0
        linear = None
        if settings.linear:
            linear = Linear.fit(samples, table.levels, rng)
            linear.floor, linear.strength = trial.floor, trial.strength
            linear.finish(samples, rng)
            record["network_share"] = float(share.mean())
    return Fitted(scale, table.levels, linear, networks, share, noise, calibration, r2.cpu().numpy(), record)


def _fit_network(
    module: Pmi | Gain,
    known: Samples,
    query: Samples,
    truth: Tensor,
    wanted: Tensor,
    settings: BulkSettings,
    per_epoch: int,
    epochs: int,
    rng: np.random.Generator,
    on_epoch: Callable[[], None],
    alive: Callable[[], None],
) -> History:
    n, device = len(known.values), known.values.device
    look = torch.arange(min(256, len(truth)), device=device)
    glance = rows_of(query, look)

    def evaluate() -> dict[str, float]:
        with torch.no_grad():
            error = (_apply(module, glance) - truth[look])[wanted[look]].square().mean()
        module.train()
        return {"heldout": float(error)}

    passes = itertools.chain.from_iterable(shuffled(np.arange(n), settings.batch_size, rng) for _ in itertools.count())

    def epoch() -> Iterator[Samples]:
        for rows in itertools.islice(passes, per_epoch):
            alive()
            yield rows_of(known, torch.from_numpy(rows).to(device))

    return fit(
        module,
        epoch,
        n_batches=per_epoch,
        max_epochs=epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        one_cycle=settings.one_cycle,
        evaluate=evaluate,
        watch=() if settings.one_cycle else ("heldout",),
        patience=30,
        on_epoch=on_epoch,
    )


def _shares(base: Tensor, guess: Tensor, truth: Tensor, wanted: Tensor, *, linear: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of the networks for each gene (least squares, held near that of all genes), R2 of the result, its residual sd."""
    weight = wanted.to(truth)
    number = weight.sum(0)
    step, left = (guess - base) * weight, (truth - base) * weight
    cross, power = (step * left).sum(0), step.square().sum(0)
    share = torch.ones_like(cross)
    if linear:
        common = (cross.sum() / power.sum().clamp(min=1e-12)).clamp(0, 1)
        hold = 4 * power.mean()
        share = ((cross + hold * common) / (power + hold).clamp(min=1e-12)).clamp(0, 1)
    error = left.square().sum(0) - 2 * share * cross + share.square() * power
    r2 = 1 - error / (truth * weight).square().sum(0).clamp(min=1e-12)
    pooled = error.sum() / number.sum().clamp(min=1)
    return share, torch.where(number > 1, r2, torch.nan), ((error + 10 * pooled) / (number + 10)).sqrt()
