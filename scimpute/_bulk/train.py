"""The training of `tl.pmi` and `tl.gain`: the linear part, the networks, their weights, and the calibration of the spread."""

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
from .linear import Linear
from .settings import BulkSettings
from .table import BulkTable, Standardiser, hide, rows_of, uniform

VALIDATION = 0.1
"""With ``mode="inplace"``: fraction of the observed entries that is hidden to weigh the networks and calibrate the spread."""
STEPS = 600
"""Optimiser steps of the default schedule."""
MAX_VALIDATION = 256
"""Most validation samples for the error after each epoch."""
PUBLISHED_STEPS = 100
"""Minibatches per epoch in the published schedule."""
COVERAGE, NORMAL_QUANTILE = 0.9, 1.6448536
"""The calibrated central interval of this coverage ends at this many standard deviations."""


def _split(samples: Samples, settings: BulkSettings, rng: np.random.Generator) -> tuple[Samples, Samples, Tensor, Tensor, Tensor | None]:
    """Split the samples for validation.

    ``mode="inplace"`` hides a tenth of the entries, so that the gaps are about as dense as in use. ``mode="inductive"`` holds out a fifth
    of the samples. A random fraction of the entries of each of them, within ``mask_rate``, stays visible.

    Returns
    -------
    The training samples, the validation samples as the model reads them, their true values, a mask of the hidden entries, and the rows
    of the validation samples among the training samples (None if they are not among them).
    """
    n = len(samples.values)
    draw = uniform(samples.values, rng)
    if settings.mode == "inplace":
        mask = samples.observed & (draw < VALIDATION)
        visible = hide(samples, mask)
        return visible, visible, samples.values, mask, torch.arange(n, device=mask.device)
    order = torch.from_numpy(rng.permutation(n)).to(draw.device)
    heldout, rest = order[: n // 5], order[n // 5 :]
    query = rows_of(samples, heldout)
    low, high = settings.mask_rate
    visible_share = low + (high - low) * torch.from_numpy(rng.random((len(heldout), 1), dtype=np.float32)).to(draw.device)
    mask = query.observed & (draw[heldout] > visible_share)
    return rows_of(samples, rest), hide(query, mask), query.values, mask, None


def train(table: BulkTable, settings: BulkSettings, device: torch.device, rng: np.random.Generator, progress: Progress) -> Fitted:
    """Fit the linear part and the networks, weigh them per gene on hidden entries, and calibrate the standard deviations."""
    standardiser = Standardiser.of(table)
    samples = standardiser.samples(table, device)
    train_samples, query, truth, targets, own = _split(samples, settings, rng)
    per_epoch = n_batches(len(train_samples.values), settings.batch_size) if settings.one_cycle else PUBLISHED_STEPS
    epochs = settings.max_epochs or max(10, min(100, math.ceil(STEPS / per_epoch)))
    record: dict[str, Any] = {"history": [], "stopped": [], "max_epochs": epochs}
    networks: list[nn.Module] = []
    progress.phase("neighbours and correlated genes", 0.2)
    with torch.no_grad():
        if settings.linear:
            trial = Linear.fit(train_samples, table.levels, rng)
            candidates = trial.choose(query, own, truth, targets)
            trial.refit_reference(train_samples, rng)
            base, sd = trial.predict(query, own)
            choice = {"min_weight": trial.min_weight, "ridge": trial.ridge, "rank": trial.factors.rank}
            record["chosen"] = {**choice, "candidates": candidates}
        else:
            base, sd = torch.zeros_like(truth), torch.ones_like(truth)
    progress.phase(f"training {settings.n_models} networks", 0.6, settings.n_models * epochs)
    streams = [np.random.default_rng(_random.seed(rng)) for _ in range(settings.n_models)]

    def fit_member(stream: np.random.Generator, alive: Callable[[], None]) -> tuple[Pmi | Gain, History]:
        module = build(settings, len(standardiser.mean), table.levels, table.numbers.shape[1], device, stream)
        history = _fit_network(module, train_samples, query, truth, targets, settings, per_epoch, epochs, stream, progress.step, alive)
        return module, history

    for member, (module, history) in enumerate(_device.side_by_side(fit_member, streams, device)):
        record["history"] += [{"model": member, "epoch": i, **values} for i, values in enumerate(history.epochs)]
        record["stopped"].append(history.stopped)
        networks.append(module)
    progress.phase("weighing the networks", 0.2)
    with torch.no_grad():
        by_networks = torch.stack([apply_network(network, query) for network in networks]).mean(0)
        share, r2, noise = _network_weights(base, by_networks, truth, targets, linear=settings.linear)
        mean = base + share * (by_networks - base)
        ratio = (mean - truth).abs() / (sd if settings.linear else noise)
        calibration = float(np.quantile(ratio[targets].cpu().numpy(), COVERAGE)) / NORMAL_QUANTILE if targets.any() else 1.0
        linear = None
        if settings.linear:
            linear = Linear.fit(samples, table.levels, rng)
            linear.min_weight, linear.ridge = trial.min_weight, trial.ridge
            linear.refit_reference(samples, rng)
            record["network_share"] = float(share.mean())
    return Fitted(standardiser, table.levels, linear, networks, share, noise, calibration, r2.cpu().numpy(), record)


def _fit_network(
    module: Pmi | Gain,
    train_samples: Samples,
    query: Samples,
    truth: Tensor,
    targets: Tensor,
    settings: BulkSettings,
    per_epoch: int,
    epochs: int,
    rng: np.random.Generator,
    on_epoch: Callable[[], None],
    alive: Callable[[], None],
) -> History:
    """Train one network. Each epoch ends with the error on the hidden entries of at most ``MAX_VALIDATION`` validation samples."""
    n, device = len(train_samples.values), train_samples.values.device
    validation_rows = torch.arange(min(MAX_VALIDATION, len(truth)), device=device)
    validation = rows_of(query, validation_rows)

    def evaluate() -> dict[str, float]:
        with torch.no_grad():
            error = (apply_network(module, validation) - truth[validation_rows])[targets[validation_rows]].square().mean()
        module.train()
        return {"heldout": float(error)}

    passes = itertools.chain.from_iterable(shuffled(np.arange(n), settings.batch_size, rng) for _ in itertools.count())

    def epoch() -> Iterator[Samples]:
        for rows in itertools.islice(passes, per_epoch):
            alive()
            yield rows_of(train_samples, torch.from_numpy(rows).to(device))

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


def _network_weights(base: Tensor, by_networks: Tensor, truth: Tensor, targets: Tensor, *, linear: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of the networks for each gene, R2 of the combined prediction, and its residual standard deviation, ``(g,)`` each.

    The weight is the least squares solution, shrunk towards the weight that fits all genes together.
    """
    weight = targets.to(truth)
    number = weight.sum(0)
    step, residual = (by_networks - base) * weight, (truth - base) * weight
    cross, power = (step * residual).sum(0), step.square().sum(0)
    share = torch.ones_like(cross)
    if linear:
        common = (cross.sum() / power.sum().clamp(min=1e-12)).clamp(0, 1)
        shrinkage = 4 * power.mean()
        share = ((cross + shrinkage * common) / (power + shrinkage).clamp(min=1e-12)).clamp(0, 1)
    error = residual.square().sum(0) - 2 * share * cross + share.square() * power
    r2 = 1 - error / (truth * weight).square().sum(0).clamp(min=1e-12)
    pooled = error.sum() / number.sum().clamp(min=1)
    return share, torch.where(number > 1, r2, torch.nan), ((error + 10 * pooled) / (number + 10)).sqrt()
