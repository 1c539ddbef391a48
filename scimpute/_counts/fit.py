"""The fit: choose the complexity, train each repeat, predict with all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from .. import _device, _random
from .._progress import Progress
from .._sparse import chunks, column_sums, columns
from .._train import History, fit, n_batches, shuffled
from ..models.batch import Batch
from .complexity import CONTEXTS, choose
from .context import Context
from .engine import Engine
from .partition import Partition
from .rates import RateMoments, Rates, add_rates, predict
from .settings import STEPS, Complexity, Settings
from .split import CountSplit, SplitInContext
from .target_batch import Target


@dataclass
class Trained:
    """A generator after the training. Its level of each gene is that of the training part."""

    partition: Partition
    generator: nn.Module
    history: History

    def with_levels_of_all_counts(self, split: CountSplit) -> Repeat:
        """Give the generator the level of each gene in all counts. This changes the generator in place."""
        by = self.partition.to_blocks(split.level_correction, 0.0).to(split.device)
        self.generator.add_to_log_share(by)  # type: ignore[operator]
        return Repeat(self.partition, self.generator)


@dataclass
class Repeat:
    """A generator that predicts cells from all their molecules, and its partition of the genes."""

    partition: Partition
    generator: nn.Module


@dataclass
class Fit:
    """The result of the training.

    Attributes
    ----------
    complexity, chosen
        Complexity of the networks, and the record of its choice.
    context, repeats
        Low-rank scores, and the networks that read them.
    rates
        Their predictions.
    heldout
        Held-out scores (see :meth:`.CountSplit.judge`).
    variation
        Largest standard deviation of a log rate over (at most 256) cells: 0 if all cells got the same profile, infinite for one cell.
    history
        A row for each repeat and epoch.
    stopped
        Why the training of each repeat ended.
    contribution
        Weight and contribution of each modality (`tl.spatial`).
    expressed_above
        With ``fill="expressed"``: threshold on the rate of each imputed gene, ``(k,)``.
    """

    complexity: Complexity
    chosen: dict[str, Any]
    context: Context
    repeats: list[Repeat]
    rates: Rates
    heldout: dict[str, float]
    variation: float
    history: pd.DataFrame
    stopped: list[str]
    contribution: pd.DataFrame | None
    expressed_above: np.ndarray | None = None

    def record(self) -> dict[str, Any]:
        """Entries of ``uns``."""
        prior = self.rates.prior
        optional = {"contribution": self.contribution, "expressed_above": self.expressed_above}
        return {
            "chosen": self.chosen,
            **{name: value for name, value in optional.items() if value is not None},
            "history": self.history,
            "stopped": self.stopped,
            "heldout": self.heldout,
            "inverse_dispersion": prior.theta.numpy(),
            "inverse_dispersion_slope": prior.slope,
            "inverse_dispersion_spread": prior.spread,
        }


def fit_split(
    split: CountSplit,
    engine: Engine,
    settings: Settings,
    target: Target | None,
    rng: np.random.Generator,
    progress: Progress,
    *,
    posterior: bool,
    sd: bool = True,
) -> Fit:
    """Choose the complexity, train the repeats, and predict.

    ``posterior`` says whether the posterior step follows; the complexity is chosen for its score. With ``sd`` the spread over repeats is
    kept.
    """
    progress.phase("choosing the complexity", 0.25, len(STEPS))
    context = Context.fit(split.train, split.size_train, settings.n_context or max(CONTEXTS), _random.seed(rng))
    complexity, chosen = choose(split, engine, settings, context, rng, posterior=posterior, on_trial=progress.step)
    source = SplitInContext(split, context.truncated(complexity.n_context))
    trained = _train_repeats(source, engine, settings, complexity, rng, progress)
    progress.phase("predicting", 0.1, settings.n_repeats)
    contribution = _mean([engine.contributions(each.generator, source, each.partition) for each in trained])
    predicted = predict_all(trained, source, target, own=target is not None and posterior, spread=sd, on_repeat=progress.step)
    progress.phase("dispersion of the genes", 0.1)
    prior, heldout = split.judge(predicted.validation)
    seen = torch.from_numpy(column_sums(columns(split.counts, split.genes)) > 0)
    return Fit(
        complexity=complexity,
        chosen=chosen,
        context=source.context,
        repeats=predicted.repeats,
        rates=Rates(predicted.moments, predicted.own, len(trained), prior.to("cpu"), seen),
        heldout=heldout,
        variation=_variation(predicted.validation),
        history=pd.DataFrame(
            [{"repeat": i, "epoch": j, **values} for i, each in enumerate(trained) for j, values in enumerate(each.history.epochs)]
        ),
        stopped=[each.history.stopped for each in trained],
        contribution=contribution,
    )


@dataclass
class Predicted:
    """Mean predictions over the repeats.

    Attributes
    ----------
    moments, own
        Mean and spread of the rates of all cells in the target batches, and mean rates in their own batch.
    validation
        Mean rates of the validation cells from their training part, ``(v, k)``.
    repeats
        The networks, with the gene levels of all counts.
    """

    moments: RateMoments
    own: RateMoments | None
    validation: np.ndarray
    repeats: list[Repeat]


def predict_all(
    trained: list[Trained], source: SplitInContext, target: Target | None, *, own: bool, spread: bool, on_repeat: Callable[[], None]
) -> Predicted:
    """Predict the validation cells with each trained network. Then set the gene levels of all counts and predict all cells."""
    split = source.split
    n, k = split.counts.shape[0], len(split.genes)
    predicted = Predicted(RateMoments(n, k, spread=spread), RateMoments(n, k, spread=False) if own else None, np.empty((0, k)), [])
    validation = RateMoments(len(split.validation), k, spread=False)
    for number, each in enumerate(trained):
        # A factorisation has all genes in its block. Only the imputed genes are predicted.
        imputed = replace(each.partition, genes=split.genes)
        batches = source.train_batches(imputed)
        for rows in chunks(len(split.validation), imputed.blocks * imputed.genes_per_block):
            validation.add(rows, predict(each.generator, batches, split.validation[rows]).cpu(), number)
        repeat = each.with_levels_of_all_counts(split)
        add_rates(repeat.generator, source.all_batches(imputed), target, predicted.moments, predicted.own, number)
        predicted.repeats.append(repeat)
        on_repeat()
    predicted.validation = validation.mean
    return predicted


def _train_repeats(
    source: SplitInContext, engine: Engine, settings: Settings, complexity: Complexity, rng: np.random.Generator, progress: Progress
) -> list[Trained]:
    """Train all repeats, side by side. Each has its own random generator, so the order of the threads changes nothing."""
    progress.phase(f"training {settings.n_repeats} repeats", 0.45, settings.n_repeats * complexity.max_epochs)
    streams = [np.random.default_rng(_random.seed(rng)) for _ in range(settings.n_repeats)]
    n_vars = source.split.counts.shape[1]
    genes = np.arange(n_vars) if engine.all_genes else source.split.genes
    _ = source.train_features  # computed here once, before the threads read them

    def one(stream: np.random.Generator, alive: Callable[[], None]) -> Trained:
        partition = Partition.draw(genes, n_vars, settings.block_size or n_vars, stream, square=engine.square)
        return train_repeat(source, engine, settings, complexity, partition, stream, progress.step, alive)

    return _device.side_by_side(one, streams, source.split.device)


def train_repeat(
    source: SplitInContext,
    engine: Engine,
    settings: Settings,
    complexity: Complexity,
    partition: Partition,
    rng: np.random.Generator,
    on_epoch: Callable[[], None],
    alive: Callable[[], None],
) -> Trained:
    """Train one repeat. After each epoch measure its loss per held-out molecule (or entry) on 128 cells.

    ``alive`` is called before each minibatch (see :func:`._device.side_by_side`).
    """
    split = source.split
    module = engine.build(source, partition, complexity, rng).to(split.device)
    batches = source.train_batches(partition)
    rows, batch_size = split.train_rows, settings.cells_per_batch
    # At equal distances: cells that are close in the object may be of one type.
    checked = split.validation[:: math.ceil(len(split.validation) / 128)]
    heldout = batches.against(checked, split.heldout, split.size_heldout)

    def epoch() -> Iterator[Batch]:
        for part in shuffled(rows, batch_size, rng):
            alive()
            yield split.hide(batches, part, rng)

    def evaluate() -> dict[str, float]:
        module.eval()
        with torch.no_grad():
            loss = float(split.likelihood.loss(module.generator(heldout.inputs, heldout.labels, heldout.features), heldout))  # type: ignore[operator]
        module.train()
        return {"heldout": loss / max(float(split.likelihood.n_targets(heldout)), 1.0)}

    history = fit(
        module,  # type: ignore[arg-type]
        epoch,
        n_batches=n_batches(len(rows), batch_size),
        max_epochs=complexity.max_epochs,
        learning_rate=settings.learning_rate,
        evaluate=evaluate,
        watch=engine.watch(split),
        on_epoch=on_epoch,
    )
    module.eval()
    return Trained(partition, module.generator, history)  # type: ignore[arg-type]


def _variation(rates: np.ndarray) -> float:
    logs = np.log(np.maximum(rates[:256], 1e-12))
    # The standard deviation of one cell says nothing.
    return float(logs.std(axis=0).max()) if len(logs) > 1 else math.inf


def _mean(tables: list[pd.DataFrame | None]) -> pd.DataFrame | None:
    present = [table for table in tables if table is not None]
    return sum(present[1:], present[0]) / len(present) if present else None
