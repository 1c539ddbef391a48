"""The complexity that suits the data: chosen by held-out molecules, at a cost that does not grow with the data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from .._random import seed as draw_seed
from .._space.side import SPOT
from .._train import fit, n_batches, shuffled
from ..models import dispersion as sizes
from ..models.began import EMPTY, Batch, Candidates, Generator
from ..models.multimodal import FactorGenerator
from .batches import CellBatches, Context
from .partition import Partition
from .split import Complexity, Data, Settings, prior_precision

CONTEXTS = (5, 15, 40)
PENALTIES = (30.0, 300.0, 3000.0)
WIDTH = 64
STEPS = (160, 400)
"""Lengths of the training in minibatches."""
WORTH = 1e-3
CANDIDATE_BLOCKS = 2


def choose(
    data: Data, settings: Settings, context: Context, rng: np.random.Generator, *, posterior: bool, on_trial: Callable[[], None]
) -> tuple[Complexity, dict[str, Any]]:
    """Fill in what the settings leave to the data, by held-out molecules of two blocks of genes.

    A random block of genes is a fair sample of all, and the blocks of a generator do not know of each other; so every
    candidate is trained on the same two blocks, all of them as one batched network. First context and penalty are chosen together,
    then the length of the training. The score is the one a user gets: the deviance of the held-out molecules under the posterior mean
    (with one size for all genes), or without ``posterior`` under the rate. What cannot be told from the best by it, within a standard
    error, is as good, and of these the fewest context scores are taken, with the penalty that suits them best. The cost does not grow
    with the data.
    """
    per_epoch = n_batches(len(data.learnt_from), settings.batch_size)
    why, plain = _unsearched(data, settings, per_epoch)
    asked = {name: getattr(settings, name) for name in vars(plain)}
    given = replace(plain, **{name: value for name, value in asked.items() if value is not None})
    given = replace(given, n_context=min(given.n_context, context.n_values - 1))
    if why or None not in asked.values():
        return given, {"why": why if None in asked.values() else "all given by the caller"}
    # Chosen for the counts alone: what they bear does not depend on what else is told.
    data = replace(data, side=None, _told={})
    block = rng.permutation(data.genes)[: CANDIDATE_BLOCKS * min(settings.block_size, math.ceil(len(data.genes) / CANDIDATE_BLOCKS))]
    partition = Partition.draw(block, data.counts.shape[1], settings.block_size, rng)
    lengths = STEPS if settings.max_epochs is None else (min(settings.max_epochs * per_epoch, max(STEPS)),)
    # The same thinned minibatches for every candidate: prepared once, and the comparison is paired.
    batches = data.of_training(partition, context)
    rows = itertools.chain.from_iterable(shuffled(data.learnt_from, settings.batch_size, rng) for _ in itertools.count())
    minibatches = [batches.thinned(next(rows), rng) for _ in range(min(lengths))]

    width = settings.width or WIDTH

    def trial(pairs: Sequence[tuple[int, float]], steps: int) -> tuple[list[dict[str, float]], np.ndarray]:
        scores = _score_candidates(data, settings, batches, minibatches, pairs, width, steps, rng, posterior=posterior)
        heldout = [data.per_molecule(value, block, weighted=True) for value in scores.sum(1)]
        results = [
            {"n_context": c, "penalty": p, "width": width, "steps": steps, "heldout": value}
            for (c, p), value in zip(pairs, heldout, strict=True)
        ]
        on_trial()
        return results, scores

    contexts = sorted({min(c, context.n_values - 1) for c in (CONTEXTS if settings.n_context is None else (settings.n_context,))})
    penalties = PENALTIES if settings.penalty is None else (settings.penalty,)
    pairs = [(c, p) for c in contexts for p in penalties]
    tried, scores = trial(pairs, lengths[0])
    total, behind = scores.sum(1), scores - scores[scores.sum(1).argmin()]
    error = math.sqrt(behind.shape[1]) * behind.std(axis=1)
    fewest = min(c for (c, _), near in zip(pairs, behind.sum(1) <= error, strict=True) if near)
    place = min((i for i, (c, _) in enumerate(pairs) if c == fewest), key=lambda i: total[i])
    best = tried[place]
    for steps in lengths[1:]:
        (longer,), _ = trial([pairs[place]], steps)
        tried.append(longer)
        # More than twice the work has to be worth it.
        if longer["heldout"] < best["heldout"] * (1 - WORTH):
            best = longer
    epochs = settings.max_epochs or math.ceil(best["steps"] / per_epoch)
    complexity = Complexity(pairs[place][0], width, pairs[place][1], epochs)
    candidates = pd.DataFrame(tried).assign(taken=[candidate is best for candidate in tried])
    return complexity, {"why": "the fewest scores within a standard error of the lowest held-out deviance", "candidates": candidates}


def _unsearched(data: Data, settings: Settings, per_epoch: int) -> tuple[str, Complexity]:
    """Why nothing is searched for, and what is taken where nothing else is asked for."""
    plain = Complexity(30, 32, 200.0, math.ceil(STEPS[0] / per_epoch))
    entrywise = data.likelihood == "squared"
    if data.side is not None and SPOT in data.side.modalities:
        # A spot is seen once an epoch, however many there are.
        return "fixed for a factorisation", Complexity(
            20, FactorGenerator.PAIRS, 200.0 if entrywise else 100.0, max(20, math.ceil(STEPS[1] / per_epoch))
        )
    if settings.architecture == "conv":
        # Trying one candidate of the convolutional network would cost minutes.
        return "fixed for architecture='conv'", plain
    if entrywise:
        return "fixed for likelihood='squared'", Complexity(15, 16, 600.0, math.ceil(STEPS[1] / per_epoch))
    if data.side is not None and "counts" not in data.side.modalities:
        return "fixed where counts are not among the modalities", plain
    return "", plain


def _score_candidates(
    data: Data,
    settings: Settings,
    batches: CellBatches,
    minibatches: list[Batch],
    pairs: Sequence[tuple[int, float]],
    width: int,
    steps: int,
    rng: np.random.Generator,
    *,
    posterior: bool,
) -> np.ndarray:
    """Train every ``(n_context, penalty)`` on the same blocks; held-out deviance of each in each validation cell."""
    partition, n_values = batches.partition, batches.context.n_values
    blocks, genes = partition.blocks, partition.genes_per_block
    mask = torch.ones(len(pairs), n_values, dtype=torch.float32)
    for row, (n_context, _) in zip(mask, pairs, strict=True):
        row[n_context : n_values - 1] = 0
    log_share = partition.deal(np.log(data.share), EMPTY).repeat(len(pairs), 1, 1)
    start = torch.Generator().manual_seed(draw_seed(rng))
    generator = Generator(len(pairs) * blocks, genes, n_values, data.levels, log_share, start, width=width)
    module = Candidates(generator, mask, torch.tensor([prior_precision(p, data) for _, p in pairs], dtype=torch.float32)).to(data.device)
    turns = math.ceil(steps / len(minibatches))
    fit(module, lambda: minibatches, n_batches=len(minibatches), max_epochs=turns, learning_rate=settings.learning_rate)
    parts = []
    with torch.no_grad():
        for part in np.array_split(data.validation, math.ceil(len(data.validation) / 256)):
            rates = module.log_rate(batches.against(part, data.heldout, data.size_heldout)).clamp(max=0).exp()
            size = torch.from_numpy(data.size_train[part].astype(np.float32)).to(data.device)[:, None]
            seen, target = data.dense(data.train, part, partition.genes), data.dense(data.heldout, part, partition.genes)
            ratio = data.heldout_ratio(part)
            means = [partition.gather(rate) * size for rate in rates]
            if posterior:
                parts.append(torch.stack([sizes.heldout_deviance(seen, mean, target, ratio) for mean in means]))
            else:
                parts.append(torch.stack([sizes.deviance(mean * ratio[:, None], target)[None] for mean in means]))
    # (candidates, sizes, cells), by what the cells count: each candidate with the size that suits it.
    scores = torch.cat(parts, dim=2).double().cpu().numpy() * data.weights_of(data.validation)
    return scores[np.arange(len(pairs)), scores.sum(2).argmin(1)]
