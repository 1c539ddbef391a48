"""The training loop: order of the steps, record, early stopping, failures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from scimpute._train import fit


class Line(nn.Module):
    """Least squares; two parts with a loss each, and a record of what happened."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.metrics: dict[str, Any] = {}
        self.seen: list[tuple[float, float]] = []

    def parameter_groups(self):
        return {"one": [self.first], "two": [self.second]}

    def losses(self, batch):
        loss = (self.first - batch).square()
        self.metrics["error"] = loss.detach()
        yield "one", loss
        # The first step has been taken by now.
        self.seen.append((float(self.first.detach()), float(self.second.detach())))
        yield "two", (self.second - self.first.detach()).square()


def run(module, values=(1.0, 1.0), **changes):
    settings = {"n_batches": len(values), "max_epochs": 10, "learning_rate": 0.1}
    return fit(module, lambda: (torch.tensor(v) for v in values), **settings | changes)


def test_it_learns_and_records():
    module = Line()
    history = run(module, max_epochs=100)
    assert abs(float(module.first.detach()) - 1) < 0.05
    assert abs(float(module.second.detach()) - 1) < 0.1
    assert len(history.epochs) == 100
    assert history.stopped == "all epochs done"
    assert history.epochs[-1]["error"] < 0.01 < history.epochs[0]["error"]


def test_each_loss_is_stepped_before_the_next_is_asked_for():
    module = Line()
    run(module, max_epochs=1, values=(1.0,))
    (first, second) = module.seen[0]
    assert first > 0
    assert second == 0


def test_metrics_are_means_over_the_batches():
    module = Line()
    history = run(module, values=(1.0, 3.0), max_epochs=1, learning_rate=1e-9)
    assert abs(history.epochs[0]["error"] - (1 + 9) / 2) < 1e-3


@pytest.mark.parametrize("n_batches", [1, 2, 5])
@pytest.mark.parametrize("max_epochs", [1, 2, 5, 9, 10, 11, 20])
def test_any_number_of_steps(n_batches, max_epochs):
    """Ten in all once divided by zero in the learning-rate plan."""
    assert len(run(Line(), values=(1.0,) * n_batches, max_epochs=max_epochs).epochs) == max_epochs


def test_early_stopping_waits_for_its_patience():
    scores = iter([5.0, 4.0, 3.0, *[3.0] * 20])
    history = run(Line(), max_epochs=20, evaluate=lambda: {"heldout": next(scores)}, watch=("heldout",), patience=4)
    assert len(history.epochs) == 7
    assert history.stopped == "no improvement of heldout in 4 epochs"
    assert [e["heldout"] for e in history.epochs] == [5, 4, 3, 3, 3, 3, 3]


def test_either_measure_keeps_it_going():
    scores = iter({"a": 1.0, "b": -epoch} for epoch in range(30))
    history = run(Line(), max_epochs=15, evaluate=lambda: next(scores), watch=("a", "b"), patience=3)
    assert len(history.epochs) == 15


def test_negative_scores_and_missing_measures_count():
    scores = iter({"a": -1.0 - epoch} if epoch % 3 == 0 else {} for epoch in range(30))
    assert len(run(Line(), max_epochs=12, evaluate=lambda: next(scores), watch=("a",), patience=3).epochs) == 12


def test_without_a_watch_it_does_not_stop():
    assert len(run(Line(), max_epochs=12, evaluate=lambda: {"a": 1.0}).epochs) == 12


def test_epochs_are_told():
    told = []
    run(Line(), max_epochs=4, on_epoch=lambda: told.append(True))
    assert len(told) == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_training_after_its_epoch(value):
    module = Line()
    with pytest.raises(RuntimeError, match=r"the one loss became \S+ in epoch 2; try a smaller learning_rate \(now 0.1\)"):
        fit(module, iter([iter([torch.tensor(1.0)]), iter([torch.tensor(value)])]).__next__, n_batches=1, max_epochs=5, learning_rate=0.1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_other_errors_pass(error):
    def batches():
        yield torch.tensor(1.0)
        raise error

    with pytest.raises(error):
        fit(Line(), batches, n_batches=2, max_epochs=1, learning_rate=0.1)


class Slope(nn.Module):
    """Losses whose gradient is one everywhere: Adam's step is the learning rate. Both depend on both parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros((), dtype=torch.float64)), nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.metrics: dict[str, Any] = {}
        self.path: list[tuple[float, float]] = []

    def parameter_groups(self):
        return {"one": [self.first], "two": [self.second]}

    def losses(self, batch):
        for name in ("one", "two"):
            self.path.append((float(self.first.detach()), float(self.second.detach())))
            yield name, self.first + self.second


def test_each_loss_moves_its_own_parameters_only():
    module = Slope()
    run(module, values=(0.0,) * 5, max_epochs=4)
    path = torch.tensor([*module.path, (float(module.first.detach()), float(module.second.detach()))])
    moved = path.diff(dim=0) != 0
    assert moved[::2].tolist() == [[True, False]] * 20
    assert moved[1::2].tolist() == [[False, True]] * 20


def test_learning_rate_is_one_cycle():
    module = Slope()
    run(module, values=(0.0,) * 10, max_epochs=5, learning_rate=0.1)
    rates = -torch.tensor([first for first, _ in module.path[::2]]).diff()
    # The momentum is cycled too, so a step is the learning rate only about.
    assert float(rates.max()) == pytest.approx(0.1, rel=0.2)
    assert 3 < int(rates.argmax()) < 15
    assert float(rates[0]) < 0.01
    assert (rates[15:].diff() < 0).all()
    assert float(rates[-1]) < 0.001
