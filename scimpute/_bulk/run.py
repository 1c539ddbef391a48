"""What `tl.pmi` and `tl.gain` do between reading and writing: the networks beside the linear part, their weights, the spread.

Knows numpy and torch, not AnnData.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _device, _random
from .._progress import Progress
from .._train import History, fit, n_batches, shuffled
from ..models.pmi_gain import Gain, Pmi, Samples
from .fitted import Fitted, apply_network, build
from .linear import Linear, Scale, Table, hidden, rows_of, uniform
from .settings import BulkSettings

VALIDATION = 0.1
"""Fraction of the observed entries hidden to find the weight of the networks and the scale of the spread, in place."""
STEPS = 600
PUBLISHED_STEPS = 100
"""Minibatches an epoch in the published schedule."""
COVERAGE, NORMAL_QUANTILE = 0.9, 1.6448536


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
        guess = torch.stack([apply_network(network, query) for network in networks]).mean(0)
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
            error = (apply_network(module, glance) - truth[look])[wanted[look]].square().mean()
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
