"""The choice of complexity by held-out molecules. Its cost does not grow with the data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from .._random import seed as draw_seed
from .._train import fit, n_batches, shuffled
from ..models import dispersion
from ..models.batch import Batch
from ..models.began import Candidates
from ..models.dense import Generator
from .context import Context
from .engine import Engine, log_shares
from .minibatches import CellBatches
from .molecules import MoleculeSplit
from .partition import Partition
from .settings import STEPS, WIDTH, Complexity, Settings, default_complexity
from .split import CountSplit, SplitInContext

CONTEXTS = (5, 15, 40)
PENALTIES = (30.0, 300.0, 3000.0)
MIN_GAIN = 1e-3
"""A longer training must improve the score by this relative gain."""
TRIAL_BLOCKS = 2
"""Gene blocks on which every candidate is trained."""


def choose(
    split: CountSplit,
    engine: Engine,
    settings: Settings,
    context: Context,
    rng: np.random.Generator,
    *,
    posterior: bool,
    on_trial: Callable[[], None],
) -> tuple[Complexity, dict[str, Any]]:
    """Choose the complexity, as far as the settings leave it open. Also return a record of the choice.

    Some methods have a fixed complexity (:meth:`.Engine.fixed`). For the others :func:`_search` chooses.
    """
    steps_per_epoch = n_batches(len(split.train_rows), settings.cells_per_batch)
    why, plain = engine.fixed(split, steps_per_epoch) or ("", default_complexity(steps_per_epoch))
    requested = {name: getattr(settings, name) for name in asdict(plain)}
    complexity = replace(plain, **{name: value for name, value in requested.items() if value is not None})
    complexity = replace(complexity, n_context=min(complexity.n_context, context.n_values - 1))
    if why or None not in requested.values():
        return complexity, {"why": why if None in requested.values() else "all given by the caller"}
    assert isinstance(split, MoleculeSplit), "EntrySplit.fixed gives a complexity"
    return _search(split, settings, context, steps_per_epoch, rng, posterior=posterior, on_trial=on_trial)


def _search(
    split: MoleculeSplit,
    settings: Settings,
    context: Context,
    steps_per_epoch: int,
    rng: np.random.Generator,
    *,
    posterior: bool,
    on_trial: Callable[[], None],
) -> tuple[Complexity, dict[str, Any]]:
    """Choose by the held-out molecules of two random blocks of genes.

    The blocks of a generator are independent networks. So all candidates train on the same two blocks, as one batched network. Context
    and penalty are chosen first, together; then the length of the training. The score is the deviance of the held-out molecules. With
    ``posterior`` it is that of the posterior mean (with one dispersion for all genes), otherwise that of the rate. One-standard-error
    rule: among the candidates within one standard error of the best, take the fewest context scores, then the best penalty.
    """
    # The counts alone choose; neighbours and features do not change which complexity the counts support.
    split = replace(split, side=None)
    width = settings.width or WIDTH
    block_size = settings.block_size or len(split.genes)
    n_genes = min(block_size, math.ceil(len(split.genes) / TRIAL_BLOCKS))
    block = rng.permutation(split.genes)[: TRIAL_BLOCKS * n_genes]
    partition = Partition.draw(block, split.counts.shape[1], block_size, rng)
    lengths = STEPS if settings.max_epochs is None else (min(settings.max_epochs * steps_per_epoch, max(STEPS)),)
    # All candidates train on the same thinned minibatches, so the comparison is paired.
    batches = SplitInContext(split, context).train_batches(partition)
    rows = itertools.chain.from_iterable(shuffled(split.train_rows, settings.cells_per_batch, rng) for _ in itertools.count())
    minibatches = [batches.thinned(next(rows), rng) for _ in range(min(lengths))]
    task = _Trials(split, batches, minibatches, block, width, settings.learning_rate, posterior, rng)

    contexts = sorted({min(c, context.n_values - 1) for c in (CONTEXTS if settings.n_context is None else (settings.n_context,))})
    penalties = PENALTIES if settings.penalty is None else (settings.penalty,)
    pairs = [(c, p) for c in contexts for p in penalties]
    trials, scores = task.trial(pairs, lengths[0])
    on_trial()
    chosen = _one_standard_error(pairs, scores)
    best = trials[chosen]
    for steps in lengths[1:]:
        (longer,), _ = task.trial([pairs[chosen]], steps)
        on_trial()
        trials.append(longer)
        if longer["heldout"] < best["heldout"] * (1 - MIN_GAIN):
            best = longer
    epochs = settings.max_epochs or math.ceil(best["steps"] / steps_per_epoch)
    candidates = pd.DataFrame(trials).assign(taken=[trial is best for trial in trials])
    why = "the fewest scores within a standard error of the lowest held-out deviance"
    return Complexity(pairs[chosen][0], width, pairs[chosen][1], epochs), {"why": why, "candidates": candidates}


@dataclass(frozen=True)
class _Trials:
    """The data and settings that all candidates share."""

    split: MoleculeSplit
    batches: CellBatches
    minibatches: list[Batch]
    genes: np.ndarray
    width: int
    learning_rate: float
    posterior: bool
    rng: np.random.Generator

    def trial(self, pairs: Sequence[tuple[int, float]], steps: int) -> tuple[list[dict[str, float]], np.ndarray]:
        """Train every ``(n_context, penalty)``. Return a row of the record for each, and its deviance in each validation cell."""
        scores = _score_candidates(self, pairs, steps)
        heldout = [self.split.per_molecule(value, self.genes, weighted=True) for value in scores.sum(1)]
        rows = [
            {"n_context": c, "penalty": p, "width": self.width, "steps": steps, "heldout": value}
            for (c, p), value in zip(pairs, heldout, strict=True)
        ]
        return rows, scores


def _one_standard_error(pairs: Sequence[tuple[int, float]], scores: np.ndarray) -> int:
    """Position of the chosen pair (see :func:`_search`). ``scores`` has a row for each pair and a column for each cell."""
    total, excess = scores.sum(1), scores - scores[scores.sum(1).argmin()]
    error = math.sqrt(excess.shape[1]) * excess.std(axis=1)
    fewest = min(c for (c, _), near in zip(pairs, excess.sum(1) <= error, strict=True) if near)
    return min((i for i, (c, _) in enumerate(pairs) if c == fewest), key=lambda i: total[i])


def _score_candidates(task: _Trials, pairs: Sequence[tuple[int, float]], steps: int) -> np.ndarray:
    """Train every ``(n_context, penalty)`` on the same blocks. Return the held-out deviance of each in each validation cell."""
    split, batches = task.split, task.batches
    partition, n_values = batches.partition, batches.context.n_values
    mask = torch.ones(len(pairs), n_values, dtype=torch.float32)
    for row, (n_context, _) in zip(mask, pairs, strict=True):
        row[n_context : n_values - 1] = 0
    log_share = log_shares(split, partition).repeat(len(pairs), 1, 1)
    start = torch.Generator().manual_seed(draw_seed(task.rng))
    blocks = len(pairs) * partition.blocks
    generator = Generator(blocks, partition.genes_per_block, n_values, split.levels, log_share, start, width=task.width)
    penalties = torch.tensor([split.prior_precision(penalty) for _, penalty in pairs], dtype=torch.float32)
    module = Candidates(generator, mask, penalties, split.likelihood).to(split.device)
    epochs = math.ceil(steps / len(task.minibatches))
    fit(module, lambda: task.minibatches, n_batches=len(task.minibatches), max_epochs=epochs, learning_rate=task.learning_rate)
    scores_of_cells = []
    with torch.no_grad():
        for cells in np.array_split(split.validation, math.ceil(len(split.validation) / 256)):
            rates = module.log_rate(batches.against(cells, split.heldout, split.size_heldout)).clamp(max=0).exp()
            size = torch.from_numpy(split.size_train[cells].astype(np.float32)).to(split.device)[:, None]
            counts, target = split.dense(split.train, cells, partition.genes), split.dense(split.heldout, cells, partition.genes)
            ratio = split.heldout_ratio(cells)
            means = [partition.to_genes(rate) * size for rate in rates]
            if task.posterior:
                scores_of_cells.append(torch.stack([dispersion.heldout_deviance(counts, mean, target, ratio) for mean in means]))
            else:
                scores_of_cells.append(torch.stack([dispersion.deviance(mean * ratio[:, None], target)[None] for mean in means]))
    # (candidates, dispersions, cells), weighted by cell. Each candidate gets its best dispersion.
    scores = torch.cat(scores_of_cells, dim=2).double().cpu().numpy() * split.weights_of(split.validation)
    return scores[np.arange(len(pairs)), scores.sum(2).argmin(1)]
