"""The training loop of all networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn


class Trainable(Protocol):
    """A model that the loop can train. It yields its losses in the order of their steps, and groups its parameters by loss."""

    metrics: dict[str, Tensor | float]

    def losses(self, batch) -> Iterator[tuple[str, Tensor]]: ...
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]: ...


@dataclass
class History:
    """The record of each epoch, and the reason why the training stopped."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    stopped: str = "all epochs done"


class _Patience:
    """Early stopping: the training ends if no watched measure improves for some epochs."""

    def __init__(self, epochs: int, watched: tuple[str, ...]) -> None:
        self.epochs, self.watched = epochs, watched
        self.best: dict[str, float] = {}
        self.since = 0

    def exhausted(self, record: Mapping[str, float]) -> bool:
        better = False
        for name in self.watched:
            if name in record and record[name] < self.best.get(name, math.inf) - 1e-5 * abs(record[name]):
                self.best[name] = record[name]
                better = True
        self.since = 0 if better else self.since + 1
        return self.since >= self.epochs


def fit(
    module: Trainable,
    batches: Callable[[], Iterable],
    *,
    n_batches: int,
    max_epochs: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    one_cycle: bool = True,
    evaluate: Callable[[], dict[str, float]] | None = None,
    watch: tuple[str, ...] = (),
    patience: int = 5,
    on_epoch: Callable[[], None] | None = None,
) -> History:
    """Train until all epochs are done or no watched measure improves.

    With ``one_cycle`` the learning rate rises over the first tenth of the steps and falls to zero along a cosine. Otherwise it is constant.

    Parameters
    ----------
    module
        Yields its losses. The optimiser of a loss makes its step before the module computes the next loss.
    batches
        Returns the ``n_batches`` minibatches of an epoch. It is called once per epoch.
    weight_decay
        Decoupled decay of all parameters (AdamW).
    evaluate
        Returns values for the record. It is called after each epoch.
    watch
        Names in the record. At least one of them must improve within ``patience`` epochs.

    Raises
    ------
    RuntimeError
        A loss was not finite.
    """
    groups = module.parameter_groups()
    optimizers = {
        name: torch.optim.AdamW(parameters, lr=learning_rate, eps=1e-10, weight_decay=weight_decay, fused=True)
        for name, parameters in groups.items()
    }
    total = max(2, n_batches * max_epochs)
    # With ten steps, a tenth is a rise of zero length, and OneCycleLR would divide by zero.
    rise = 0.1 if total != 10 else 0.2
    cycle = torch.optim.lr_scheduler.OneCycleLR
    plans = [cycle(o, learning_rate, total_steps=total, pct_start=rise) for o in optimizers.values()] if one_cycle else []
    history, stopping = History(), _Patience(patience, watch)
    for epoch in range(max_epochs):
        sums: dict[str, Tensor | float] = {}
        totals: dict[str, Tensor | float] = {}
        times: dict[str, int] = {}
        for batch in batches():
            for name, loss in module.losses(batch):
                totals[name] = totals.get(name, 0.0) + loss.detach()
                optimizers[name].zero_grad(set_to_none=True)
                loss.backward()
                optimizers[name].step()
            for name, value in module.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
                times[name] = times.get(name, 0) + 1
            for plan in plans:
                plan.step()
        # Once an epoch: a check of each step would make the device wait for this process.
        for name, total_loss in totals.items():
            if not math.isfinite(total_loss):
                raise RuntimeError(
                    f"training failed: the {name} loss became {float(total_loss)} in epoch {epoch + 1}; "
                    f"try a smaller learning_rate (now {learning_rate:g}). Nothing was written."
                )
        record = {name: float(value) / times[name] for name, value in sums.items()}
        if evaluate is not None:
            record |= evaluate()
        history.epochs.append(record)
        if on_epoch is not None:
            on_epoch()
        if watch and stopping.exhausted(record):
            history.stopped = f"no improvement of {' or '.join(watch)} in {patience} epochs"
            break
    return history


def shuffled(rows: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Minibatches with every row once. Their sizes are nearly equal and close to ``batch_size``, so there is no tail of one row."""
    yield from np.array_split(rng.permutation(rows), n_batches(len(rows), batch_size))


def n_batches(n_rows: int, batch_size: int) -> int:
    """Number of minibatches that :func:`shuffled` yields."""
    return max(1, min(math.ceil(n_rows / batch_size), n_rows // 2))
