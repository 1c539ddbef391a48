"""What `tl.began` does between reading and writing: choose the complexity, fit each repeat, combine them.

Knows numpy, scipy and torch, not AnnData.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from ._batches import CellBatches, Context, n_batches, shuffled
from ._blocks import Partition, RunningMoments
from ._counts import chunks, column_sums, columns, row_sums, split
from ._random import seed as draw_seed
from ._train import History, fit
from .models import posterior
from .models.began import EMPTY, Batch, Began, Candidates, Discriminator, Generator, poisson_deviance
from .models.conv import ConvDiscriminator, ConvGenerator

HELDOUT = 0.05
"""Fraction of the molecules that no repeat is trained on: they choose the complexity and correct the sizes."""
REMOVED = 0.3
"""Mean fraction of the molecules the generator has to predict while it trains (see ``_batches.THINNING``)."""
CONTEXTS = (5, 15, 40)
PENALTIES = (30.0, 300.0)
WIDTHS = (64, 16)
STEPS = (160, 400)
"""Lengths of the training in minibatches."""
WORTH = 1e-3
CANDIDATE_BLOCKS = 2
VALIDATION_CELLS = 2048


@dataclass(frozen=True)
class Settings:
    """How a run is to be done; None where the data decide."""

    architecture: str
    block_size: int
    n_repeats: int
    n_context: int | None
    width: int | None
    penalty: float | None
    max_epochs: int | None
    batch_size: int
    learning_rate: float
    drop_quantile: float
    drop_shape: float
    gamma: float
    adversarial_weight: float
    reconstruction_weight: float


@dataclass(frozen=True)
class Complexity:
    """What the settings or the data have decided."""

    n_context: int
    width: int
    penalty: float
    max_epochs: int


@dataclass
class Data:
    """Counts of a run, split once: ``train`` is learnt from, ``heldout`` is for choices, ``counts`` is what is imputed."""

    counts: sp.csr_matrix
    size: np.ndarray
    labels: tuple[np.ndarray, ...]
    levels: tuple[int, ...]
    genes: np.ndarray
    train: sp.csr_matrix
    heldout: sp.csr_matrix
    size_train: np.ndarray
    size_heldout: np.ndarray
    share: np.ndarray
    validation: np.ndarray
    device: torch.device

    @classmethod
    def prepare(
        cls,
        counts: sp.csr_matrix,
        size: np.ndarray,
        labels: tuple[np.ndarray, ...],
        genes: np.ndarray,
        device: torch.device,
        rng: np.random.Generator,
    ) -> Data:
        """Hold out molecules, find each gene's share of all molecules, draw the cells whose held-out molecules are looked at."""
        train, heldout = split(counts, 1 - HELDOUT, rng)
        outside = size - row_sums(counts)
        size_train = row_sums(train) + (1 - HELDOUT) * outside
        size_heldout = row_sums(heldout) + HELDOUT * outside
        # Half a molecule for a gene that has none keeps its log finite and its rate next to nothing.
        share = np.maximum(column_sums(train), 0.5) / max(size_train.sum(), 1.0)
        validation = np.sort(rng.permutation(counts.shape[0])[:VALIDATION_CELLS])
        levels = tuple(int(codes.max()) + 1 for codes in labels)
        return cls(counts, size, labels, levels, genes, train, heldout, size_train, size_heldout, share, validation, device)

    def of_training(self, partition: Partition, context: Context) -> CellBatches:
        return CellBatches(self.train, self.size_train, self.labels, partition, context, self.device)

    def whole(self, partition: Partition, context: Context) -> CellBatches:
        return CellBatches(self.counts, self.size, self.labels, partition, context, self.device)

    def heldout_ratio(self, rows: np.ndarray) -> torch.Tensor:
        ratio = self.size_heldout[rows] / np.maximum(self.size_train[rows], 1)
        return torch.from_numpy(ratio.astype(np.float32)).to(self.device)

    def per_molecule(self, deviance: float, genes: np.ndarray) -> float:
        """A deviance of the validation cells' held-out counts in nats per molecule, of shares instead of counts: comparable over depths."""
        molecules = row_sums(columns(self.heldout[self.validation], genes))
        exposure = np.maximum(self.size_heldout[self.validation], 1e-6)
        return float((deviance + molecules @ np.log(exposure)) / max(molecules.sum(), 1.0))

    def dense(self, matrix: sp.csr_matrix, rows: np.ndarray, genes: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(columns(matrix[rows], genes).toarray()).to(self.device)


def prior_precision(penalty: float, data: Data) -> float:
    """The weight of the squared output weights in a loss that is per removed molecule of one cell."""
    return penalty / (data.train.shape[0] * max(REMOVED * float(data.size_train.mean()), 1e-6))


def choose(
    data: Data, settings: Settings, context: Context, rng: np.random.Generator, *, on_trial: Callable[[], None]
) -> tuple[Complexity, dict[str, Any]]:
    """Fill in what the settings leave to the data, by held-out molecules of two blocks of genes.

    A random block of genes is a fair sample of all, and the blocks of a generator do not know of each other; so every
    candidate is trained on the same two blocks, all of them as one batched network. First context and penalty are chosen together,
    then width and length of the training. The score is the one a user gets: the deviance of the held-out molecules
    under the posterior mean (with one size for all genes). The cost does not grow with the data.
    """
    per_epoch = n_batches(data.train.shape[0], settings.batch_size)
    conv = settings.architecture == "conv"
    # Trying one candidate of the convolutional network would cost minutes.
    plain = Complexity(30, 32, 200.0, math.ceil(STEPS[0] / per_epoch))
    asked = {name: getattr(settings, name) for name in vars(plain)}
    given = replace(plain, **{name: value for name, value in asked.items() if value is not None})
    given = replace(given, n_context=min(given.n_context, context.n_values - 1))
    if conv or None not in asked.values():
        return given, {"why": "fixed for architecture='conv'" if conv and None in asked.values() else "all given by the caller"}
    block = rng.permutation(data.genes)[: CANDIDATE_BLOCKS * min(settings.block_size, math.ceil(len(data.genes) / CANDIDATE_BLOCKS))]
    partition = Partition.draw(block, data.counts.shape[1], settings.block_size, rng)
    lengths = STEPS if settings.max_epochs is None else (min(settings.max_epochs * per_epoch, max(STEPS)),)
    # The same thinned minibatches for every candidate: prepared once, and the comparison is paired.
    batches = data.of_training(partition, context)
    rows = itertools.chain.from_iterable(shuffled(np.arange(data.train.shape[0]), settings.batch_size, rng) for _ in itertools.count())
    minibatches = [batches.thinned(next(rows), rng) for _ in range(min(lengths))]
    tried: list[dict[str, float]] = []

    def trial(pairs: Sequence[tuple[int, float]], width: int, steps: int) -> dict[str, float]:
        scores = _score_candidates(data, settings, context, partition, minibatches, pairs, width, steps, rng)
        same = {"width": width, "steps": steps}
        results = [{"n_context": c, "penalty": p, **same, "heldout": score} for (c, p), score in zip(pairs, scores, strict=True)]
        tried.extend(results)
        on_trial()
        return min(results, key=lambda result: result["heldout"])

    contexts = sorted({min(c, context.n_values - 1) for c in (CONTEXTS if settings.n_context is None else (settings.n_context,))})
    penalties = PENALTIES if settings.penalty is None else (settings.penalty,)
    widths = WIDTHS if settings.width is None else (settings.width,)
    best = trial([(c, p) for c in contexts for p in penalties], widths[0], lengths[0])
    pair = [(int(best["n_context"]), best["penalty"])]
    for width in widths[1:]:
        best = min(best, trial(pair, width, lengths[0]), key=lambda result: result["heldout"])
    for steps in lengths[1:]:
        longer = trial(pair, int(best["width"]), steps)
        # More than twice the work has to be worth it.
        if longer["heldout"] < best["heldout"] * (1 - WORTH):
            best = longer
    epochs = settings.max_epochs or math.ceil(best["steps"] / per_epoch)
    complexity = Complexity(pair[0][0], int(best["width"]), best["penalty"], epochs)
    return complexity, {"why": "lowest held-out deviance on random blocks of genes", "candidates": pd.DataFrame(tried)}


def _score_candidates(
    data: Data,
    settings: Settings,
    context: Context,
    partition: Partition,
    minibatches: list[Batch],
    pairs: Sequence[tuple[int, float]],
    width: int,
    steps: int,
    rng: np.random.Generator,
) -> list[float]:
    """Train every ``(n_context, penalty)`` on the same blocks; held-out deviance of each, in nats per held-out molecule."""
    n_values, blocks, genes = context.n_values, partition.blocks, partition.genes_per_block
    mask = torch.ones(len(pairs), n_values, dtype=torch.float32)
    for row, (n_context, _) in zip(mask, pairs, strict=True):
        row[n_context : n_values - 1] = 0
    log_share = partition.deal(np.log(data.share), EMPTY).repeat(len(pairs), 1, 1)
    start = torch.Generator().manual_seed(draw_seed(rng))
    generator = Generator(len(pairs) * blocks, genes, n_values, data.levels, log_share, start, width=width)
    module = Candidates(generator, mask, torch.tensor([prior_precision(p, data) for _, p in pairs], dtype=torch.float32)).to(data.device)
    turns = math.ceil(steps / len(minibatches))
    fit(module, lambda: minibatches, n_batches=len(minibatches), max_epochs=turns, learning_rate=settings.learning_rate)
    total: torch.Tensor | float = 0.0
    batches = data.of_training(partition, context)
    order = torch.from_numpy(partition.place[partition.genes]).to(data.device)
    with torch.no_grad():
        for part in np.array_split(data.validation, math.ceil(len(data.validation) / 256)):
            rates = module.log_rate(batches.against(part, data.heldout, data.size_heldout)).clamp(max=0).exp()
            rates = rates.transpose(1, 2).reshape(len(pairs), len(part), -1).index_select(2, order)
            size = torch.from_numpy(data.size_train[part].astype(np.float32)).to(data.device)[:, None]
            seen, target = data.dense(data.train, part, partition.genes), data.dense(data.heldout, part, partition.genes)
            ratio = data.heldout_ratio(part)
            sizes = posterior.GRID[::3]
            total = total + torch.stack([posterior.heldout_deviance(seen, rate * size, target, ratio, sizes).sum(1) for rate in rates])
    return [data.per_molecule(float(value), partition.genes) for value in total.amin(dim=1)]  # type: ignore[union-attr]


def build(
    data: Data, settings: Settings, complexity: Complexity, context: Context, partition: Partition, rng: np.random.Generator
) -> Began:
    """Generator and discriminator of one repeat."""
    start = torch.Generator().manual_seed(draw_seed(rng))
    shape = (partition.blocks, partition.genes_per_block)
    log_share = partition.deal(np.log(data.share), EMPTY)
    conv = settings.architecture == "conv"
    make = ConvGenerator if conv else Generator
    generator = make(*shape, context.n_values, data.levels, log_share, start, width=complexity.width)
    discriminator = None
    if settings.adversarial_weight:
        discriminator = (ConvDiscriminator if conv else Discriminator)(*shape, data.levels, start)
    module = Began(
        generator,
        discriminator,
        penalty=prior_precision(complexity.penalty, data),
        adversarial_weight=settings.adversarial_weight,
        reconstruction_weight=settings.reconstruction_weight,
        gamma=settings.gamma,
        drop_quantile=settings.drop_quantile,
        drop_shape=settings.drop_shape,
        rng=torch.Generator(data.device).manual_seed(draw_seed(rng)),
    )
    return module.to(data.device)


def fit_repeat(
    data: Data,
    settings: Settings,
    complexity: Complexity,
    context: Context,
    partition: Partition,
    rng: np.random.Generator,
    on_epoch: Callable[[], None],
) -> tuple[Began, History]:
    """Train one repeat; its held-out deviance (nats per held-out molecule) is looked at after each epoch."""
    module = build(data, settings, complexity, context, partition, rng)
    batches = data.of_training(partition, context)
    rows = np.arange(data.train.shape[0])
    glance = batches.against(data.validation[:128], data.heldout, data.size_heldout)

    def epoch():
        return (batches.thinned(part, rng) for part in shuffled(rows, settings.batch_size, rng))

    def evaluate() -> dict[str, float]:
        module.eval()
        with torch.no_grad():
            deviance = poisson_deviance(module.generator(glance.inputs, glance.labels), glance.exposure, glance.place, glance.removed)
        module.train()
        return {"heldout": float(deviance) / max(float(glance.removed.sum()), 1.0)}

    history = fit(
        module,
        epoch,
        n_batches=n_batches(data.train.shape[0], settings.batch_size),
        max_epochs=complexity.max_epochs,
        learning_rate=settings.learning_rate,
        evaluate=evaluate,
        watch=("heldout", "M") if settings.adversarial_weight else ("heldout",),
        on_epoch=on_epoch,
    )
    module.eval()
    return module, history


def predict(module: Began, batches: CellBatches, rows: np.ndarray, label: int | None = None, level: int | None = None) -> torch.Tensor:
    """Rates ``(b, k)`` of some cells, as if they had another level of one of their labels where one is given."""
    codes = list(batches.codes(rows))
    if label is not None and level is not None:
        codes[label] = torch.full_like(codes[label], level)
    with torch.no_grad():
        return batches.partition.gather(module.generator(batches.inputs(rows), codes).clamp_(max=0).exp_())


@dataclass
class Result:
    """Rates over repeats and the sizes of the genes.

    Attributes
    ----------
    rates
        Mean and spread over repeats of the rate each cell is imputed at, ``(n, k)``.
    own
        Mean rate in the cell's own batch where ``rates`` is of another one, else None.
    sizes
        Size of every imputed gene, ``(k,)``.
    heldout
        Deviance of the held-out molecules, in nats per molecule: gene mean, network, posterior.
    variation
        Largest standard deviation over cells of any gene's log rate: zero where every cell got the same.
    """

    rates: RunningMoments
    own: RunningMoments | None
    sizes: torch.Tensor
    heldout: dict[str, float]
    variation: float


class Combiner:
    """Takes in the repeats one after the other."""

    def __init__(self, data: Data, target: tuple[int, Sequence[int]] | None, *, keep_own: bool) -> None:
        self.data, self.target = data, target
        n, k = data.counts.shape[0], len(data.genes)
        self.rates = RunningMoments(n, k)
        self.own = RunningMoments(n, k, spread=False) if target is not None and keep_own else None
        self.validation = RunningMoments(len(data.validation), k, spread=False)
        self.repeats = 0

    def add(self, module: Began, context: Context, partition: Partition) -> None:
        """Predict all cells from all their molecules, and the validation cells from their training part."""
        whole, training = self.data.whole(partition, context), self.data.of_training(partition, context)
        for rows in chunks(self.data.counts.shape[0], partition.blocks * partition.genes_per_block):
            cells = np.arange(rows.start, rows.stop)
            if self.target is None:
                rate = predict(module, whole, cells)
            else:
                label, levels = self.target
                rate = torch.stack([predict(module, whole, cells, label, level) for level in levels]).mean(0)
                if self.own is not None:
                    self.own.add(rows, predict(module, whole, cells).cpu(), self.repeats)
            self.rates.add(rows, rate.cpu(), self.repeats)
        for rows in chunks(len(self.data.validation), partition.blocks * partition.genes_per_block):
            self.validation.add(rows, predict(module, training, self.data.validation[rows]).cpu(), self.repeats)
        self.repeats += 1

    def finish(self) -> Result:
        """Sizes of the genes, and what the held-out molecules say of gene mean, network and posterior."""
        data, genes = self.data, self.data.genes
        marginal: torch.Tensor | float = 0.0
        heldout: torch.Tensor | float = 0.0
        share = torch.from_numpy(data.share[genes].astype(np.float32)).to(data.device)
        for rows in chunks(len(data.validation), len(genes), 2_000_000):
            seen, mu, target, ratio = self._validation(rows)
            marginal = marginal + posterior.marginal_deviance(seen, mu)
            heldout = heldout + posterior.heldout_deviance(seen, mu, target, ratio)
        sizes = posterior.choose_sizes(marginal, heldout, share)  # type: ignore[arg-type]
        sums = {"gene_mean": 0.0, "network": 0.0, "posterior": 0.0}
        for rows in chunks(len(data.validation), len(genes), 2_000_000):
            seen, mu, target, ratio = self._validation(rows)
            depth = torch.from_numpy(data.size_train[data.validation[rows]].astype(np.float32)).to(data.device)[:, None]
            mean, _ = posterior.mean_and_variance(seen, mu, sizes, mu.new_zeros(()))
            for name, value in (("gene_mean", share * depth), ("network", mu), ("posterior", mean)):
                rate = value * ratio[:, None]
                sums[name] += float((rate - target * rate.clamp(min=1e-12).log()).sum(dtype=torch.float64))
        log_rates = np.log(np.maximum(self.validation.mean, 1e-12))
        variation = float(log_rates.std(axis=0).max()) if len(log_rates) else 0.0
        return Result(self.rates, self.own, sizes.cpu(), {k: data.per_molecule(v, genes) for k, v in sums.items()}, variation)

    def _validation(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        data = self.data
        cells = data.validation[rows]
        depth = torch.from_numpy(data.size_train[cells].astype(np.float32))[:, None]
        mu = (torch.from_numpy(self.validation.mean[rows]) * depth).to(data.device)
        return data.dense(data.train, cells, data.genes), mu, data.dense(data.heldout, cells, data.genes), data.heldout_ratio(cells)
