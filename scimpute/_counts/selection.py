"""The choice of complexity: by held-out molecules, at a cost that does not grow with the data."""

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
from ..models.began import Candidates, Generator
from .batches import CellBatches
from .context import Context
from .engine import Engine, log_shares
from .molecules import MoleculeSplit
from .partition import Partition
from .settings import STEPS, WIDTH, Complexity, Settings, default_complexity
from .split import CountSplit, SplitInContext

CONTEXTS = (5, 15, 40)
PENALTIES = (30.0, 300.0, 3000.0)
MIN_GAIN = 1e-3
"""Relative gain in the score that is worth more than twice the work."""
CANDIDATE_BLOCKS = 2


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
    """Fill in what the settings leave to the data; what was tried is returned for the record.

    Some methods have fixed choices (:meth:`.Engine.fixed`). For the others :func:`_search` decides.
    """
    steps_per_epoch = n_batches(len(split.learnt_from), settings.cells_per_batch)
    why, plain = engine.fixed(split, steps_per_epoch) or ("", default_complexity(steps_per_epoch))
    requested = {name: getattr(settings, name) for name in asdict(plain)}
    complexity = replace(plain, **{name: value for name, value in requested.items() if value is not None})
    complexity = replace(complexity, n_context=min(complexity.n_context, context.n_values - 1))
    if why or None not in requested.values():
        return complexity, {"why": why if None in requested.values() else "all given by the caller"}
    assert isinstance(split, MoleculeSplit), "hidden entries have a fixed complexity"
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
    """Choose by held-out molecules of two blocks of genes.

    A random block of genes is a fair sample of all, and the blocks of a generator are independent networks. So every
    candidate is trained on the same two blocks, all of them as one batched network. First context and penalty are chosen together,
    then the length of the training. The score is the one a user gets: the deviance of the held-out molecules under the posterior mean
    (with one dispersion for all genes), or without ``posterior`` under the rate. One-standard-error rule: among the candidates within one
    standard error of the best, take the fewest context scores, then the best penalty.
    """
    # Chosen for the counts alone: what they support does not depend on side information.
    split = replace(split, side=None)
    width = settings.width or WIDTH
    block_size = settings.block_size or len(split.genes)
    n_genes = min(block_size, math.ceil(len(split.genes) / CANDIDATE_BLOCKS))
    block = rng.permutation(split.genes)[: CANDIDATE_BLOCKS * n_genes]
    partition = Partition.draw(block, split.counts.shape[1], block_size, rng)
    lengths = STEPS if settings.max_epochs is None else (min(settings.max_epochs * steps_per_epoch, max(STEPS)),)
    # The same thinned minibatches for every candidate: prepared once, and the comparison is paired.
    batches = SplitInContext(split, context).train_batches(partition)
    rows = itertools.chain.from_iterable(shuffled(split.learnt_from, settings.cells_per_batch, rng) for _ in itertools.count())
    minibatches = [batches.thinned(next(rows), rng) for _ in range(min(lengths))]
    task = _Task(split, batches, minibatches, block, width, settings.learning_rate, posterior, rng)

    contexts = sorted({min(c, context.n_values - 1) for c in (CONTEXTS if settings.n_context is None else (settings.n_context,))})
    penalties = PENALTIES if settings.penalty is None else (settings.penalty,)
    pairs = [(c, p) for c in contexts for p in penalties]
    tried, scores = task.trial(pairs, lengths[0])
    on_trial()
    place = _one_standard_error(pairs, scores)
    best = tried[place]
    for steps in lengths[1:]:
        (longer,), _ = task.trial([pairs[place]], steps)
        on_trial()
        tried.append(longer)
        if longer["heldout"] < best["heldout"] * (1 - MIN_GAIN):
            best = longer
    epochs = settings.max_epochs or math.ceil(best["steps"] / steps_per_epoch)
    candidates = pd.DataFrame(tried).assign(taken=[candidate is best for candidate in tried])
    why = "the fewest scores within a standard error of the lowest held-out deviance"
    return Complexity(pairs[place][0], width, pairs[place][1], epochs), {"why": why, "candidates": candidates}


@dataclass(frozen=True)
class _Task:
    """What all candidates are trained and scored on."""

    split: MoleculeSplit
    batches: CellBatches
    minibatches: list[Batch]
    genes: np.ndarray
    width: int
    learning_rate: float
    posterior: bool
    rng: np.random.Generator

    def trial(self, pairs: Sequence[tuple[int, float]], steps: int) -> tuple[list[dict[str, float]], np.ndarray]:
        """A row of the record for every ``(n_context, penalty)``, and its deviance in each validation cell."""
        scores = _score_candidates(self, pairs, steps)
        heldout = [self.split.per_molecule(value, self.genes, weighted=True) for value in scores.sum(1)]
        rows = [
            {"n_context": c, "penalty": p, "width": self.width, "steps": steps, "heldout": value}
            for (c, p), value in zip(pairs, heldout, strict=True)
        ]
        return rows, scores


def _one_standard_error(pairs: Sequence[tuple[int, float]], scores: np.ndarray) -> int:
    """Place of the pair that is taken (see :func:`_search`); ``scores`` has a row for each pair and a column for each cell."""
    total, behind = scores.sum(1), scores - scores[scores.sum(1).argmin()]
    error = math.sqrt(behind.shape[1]) * behind.std(axis=1)
    fewest = min(c for (c, _), near in zip(pairs, behind.sum(1) <= error, strict=True) if near)
    return min((i for i, (c, _) in enumerate(pairs) if c == fewest), key=lambda i: total[i])


def _score_candidates(task: _Task, pairs: Sequence[tuple[int, float]], steps: int) -> np.ndarray:
    """Train every ``(n_context, penalty)`` on the same blocks; held-out deviance of each in each validation cell."""
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
    turns = math.ceil(steps / len(task.minibatches))
    fit(module, lambda: task.minibatches, n_batches=len(task.minibatches), max_epochs=turns, learning_rate=task.learning_rate)
    parts = []
    with torch.no_grad():
        for cells in np.array_split(split.validation, math.ceil(len(split.validation) / 256)):
            rates = module.log_rate(batches.against(cells, split.heldout, split.size_heldout)).clamp(max=0).exp()
            size = torch.from_numpy(split.size_train[cells].astype(np.float32)).to(split.device)[:, None]
            seen, target = split.dense(split.train, cells, partition.genes), split.dense(split.heldout, cells, partition.genes)
            ratio = split.heldout_ratio(cells)
            means = [partition.to_genes(rate) * size for rate in rates]
            if task.posterior:
                parts.append(torch.stack([dispersion.heldout_deviance(seen, mean, target, ratio) for mean in means]))
            else:
                parts.append(torch.stack([dispersion.deviance(mean * ratio[:, None], target)[None] for mean in means]))
    # (candidates, dispersions, cells), by the weights of the cells: each candidate with the dispersion that suits it.
    scores = torch.cat(parts, dim=2).double().cpu().numpy() * split.weights_of(split.validation)
    return scores[np.arange(len(pairs)), scores.sum(2).argmin(1)]
