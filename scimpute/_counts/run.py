"""What `tl.began` does between reading and writing: choose the complexity, fit each repeat, combine them.

Knows numpy, scipy and torch, not AnnData.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import _device, _random
from .._progress import Progress
from .._space.side import SPOT
from .._sparse import chunks
from .._train import History, fit, n_batches, shuffled
from ..models.began import EMPTY, Batch, Began, Discriminator, Generator
from ..models.conv import ConvDiscriminator, ConvGenerator
from ..models.multimodal import LOST, FactorGenerator, Modal, ModalGenerator, asked
from .batches import Context
from .partition import Partition
from .rates import Combiner, Result
from .selection import CONTEXTS, STEPS, choose
from .split import Complexity, Data, Settings, prior_precision


def build(
    data: Data, settings: Settings, complexity: Complexity, context: Context, partition: Partition, rng: np.random.Generator
) -> Began | Modal:
    """Generator and discriminator of one repeat."""
    start = torch.Generator().manual_seed(_random.seed(rng))
    shape = (partition.blocks, partition.genes_per_block)
    log_share = partition.deal(np.log(data.share), EMPTY)
    if data.side is not None:
        told = data.side.shapes(context.loadings.shape[1])
        modal: ModalGenerator | FactorGenerator
        if SPOT in told:
            scores = data.of_training(partition, context).scores().cpu()
            scores = scores - scores.mean(dim=0)
            # The vectors of the spots start where the scores are, which have variance 1: so has their prior.
            prior = {"spot_penalty": prior_precision(1.0, data), "depth_slope": data.depth_slope}
            modal = FactorGenerator(partition.genes_per_block, scores, log_share, start, **prior)
        else:
            drawn = torch.Generator(data.device).manual_seed(_random.seed(rng))
            sizes = (*shape, context.n_values, data.levels, told)
            modal = ModalGenerator(*sizes, log_share, start, drawn, width=complexity.width, depth_slope=data.depth_slope)
        penalty, share = prior_precision(complexity.penalty, data), data.weights(partition)
        return Modal(modal, penalty=penalty, spatial_weight=data.side.spatial_weight, share=share, likelihood=data.likelihood).to(
            data.device
        )
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
        rng=torch.Generator(data.device).manual_seed(_random.seed(rng)),
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
    alive: Callable[[], None],
) -> tuple[Began | Modal, History]:
    """Train one repeat; what it loses of the held-out molecules or entries (per one of them) is looked at after each epoch.

    ``alive`` is called before each minibatch (see :func:`._device.side_by_side`).
    """
    module = build(data, settings, complexity, context, partition, rng)
    batches = data.of_training(partition, context)
    rows = data.learnt_from
    # In the order of the object neighbouring cells may be of a kind.
    some = data.validation[:: math.ceil(len(data.validation) / 128)]
    glance = batches.against(some, data.heldout, data.size_heldout)

    def epoch() -> Iterator[Batch]:
        draw = batches.thinned if data.likelihood == "poisson" else batches.masked
        for part in shuffled(rows, settings.batch_size, rng):
            alive()
            yield draw(part, rng)

    def evaluate() -> dict[str, float]:
        module.eval()
        with torch.no_grad():
            lost = _lost(data, module.generator(glance.inputs, glance.labels), glance)
        module.train()
        return {"heldout": lost / max(float(asked(data.likelihood, glance)), 1.0)}

    history = fit(
        module,
        epoch,
        n_batches=n_batches(len(rows), settings.batch_size),
        max_epochs=complexity.max_epochs,
        learning_rate=settings.learning_rate,
        evaluate=evaluate,
        watch=_watched(data, settings),
        on_epoch=on_epoch,
    )
    module.eval()
    return module, history


def _fit_repeats(
    data: Data, settings: Settings, complexity: Complexity, context: Context, rng: np.random.Generator, progress: Progress
) -> list[tuple[Partition, Began | Modal, History]]:
    """Train all repeats, side by side. Each draws from a generator of its own, so that none depends on when the others run."""
    progress.phase(f"training {settings.n_repeats} repeats", 0.45, settings.n_repeats * complexity.max_epochs)
    streams = [np.random.default_rng(_random.seed(rng)) for _ in range(settings.n_repeats)]
    if data.side is not None:
        data.told(context)

    def one(stream: np.random.Generator, alive: Callable[[], None]) -> tuple[Partition, Began | Modal, History]:
        square = settings.architecture == "conv"
        # The vector of a spot is found from all genes, whichever are asked for.
        dealt = np.arange(data.counts.shape[1]) if data.side is not None and SPOT in data.side.modalities else data.genes
        partition = Partition.draw(dealt, data.counts.shape[1], settings.block_size, stream, square=square)
        return partition, *fit_repeat(data, settings, complexity, context, partition, stream, progress.step, alive)

    return _device.side_by_side(one, streams, data.device)


def _watched(data: Data, settings: Settings) -> tuple[str, ...]:
    """By what the training is stopped early.

    Not where entries are hidden, which are learnt by heart early and forgotten again as the steps become small, nor of a
    factorisation, which begins slowly from nothing.
    """
    if data.likelihood == "squared" or (data.side is not None and SPOT in data.side.modalities):
        return ()
    return ("heldout", "M") if settings.adversarial_weight else ("heldout",)


def _lost(data: Data, log_rate: torch.Tensor, batch: Batch) -> float:
    return float(LOST[data.likelihood](log_rate, batch.exposure, batch.place, batch.removed))


def contributions(generator: ModalGenerator, data: Data, context: Context, partition: Partition) -> pd.DataFrame:
    """Of every modality the weight of its code, and how much more is lost of a held-out molecule (or entry) without it."""
    batches = data.of_training(partition, context)
    lost, number = dict.fromkeys((None, *generator.names), 0.0), 0.0
    with torch.no_grad():
        for rows in chunks(len(data.validation), partition.blocks * partition.genes_per_block):
            batch = batches.against(data.validation[rows], data.heldout, data.size_heldout)
            number += float(asked(data.likelihood, batch))
            for name in lost:
                with generator.without(name):
                    lost[name] += _lost(data, generator(batch.inputs, batch.labels), batch)
    rise = [(lost[name] - lost[None]) / max(number, 1.0) for name in generator.names]
    return pd.DataFrame({"weight": generator.weights.tolist(), "contribution": rise}, index=list(generator.names))


def run(
    data: Data,
    settings: Settings,
    target: tuple[int, list[int]] | None,
    rng: np.random.Generator,
    progress: Progress,
    *,
    posterior: bool,
    sd: bool = True,
) -> tuple[Complexity, Result, dict[str, Any], dict[str, torch.Tensor]]:
    """Choose the complexity, fit and combine the repeats; for the posterior mean, or for the rate as it is; with the spread for ``sd``."""
    record: dict[str, Any] = {}
    progress.phase("choosing the complexity", 0.25, len(STEPS))
    n_scores = settings.n_context or max(CONTEXTS)
    context = Context.fit(data.train, data.size_train, n_scores, _random.seed(rng))
    complexity, record["chosen"] = choose(data, settings, context, rng, posterior=posterior, on_trial=progress.step)
    context = context.truncated(complexity.n_context)
    repeats = _fit_repeats(data, settings, complexity, context, rng, progress)
    progress.phase("predicting", 0.1, settings.n_repeats)
    tensors = {"loadings": context.loadings, "median_size": torch.tensor(context.median_size)}
    combiner, history, stopped = Combiner(data, target, keep_own=posterior, spread=sd), [], []
    parts: list[pd.DataFrame] = []
    for repeat, (partition, module, trained) in enumerate(repeats):
        if isinstance(module.generator, ModalGenerator):
            parts.append(contributions(module.generator, data, context, partition))
        combiner.add(module, context, partition)
        history += [{"repeat": repeat, "epoch": epoch, **values} for epoch, values in enumerate(trained.epochs)]
        stopped.append(trained.stopped)
        tensors |= {f"repeat{repeat}.{name}": value for name, value in module.generator.state_dict().items()}
        tensors[f"repeat{repeat}.place"] = torch.from_numpy(partition.place)
        progress.step()
    progress.phase("sizes of the genes", 0.1)
    result = combiner.finish()
    prior = result.prior
    varying = {"size_slope": prior.slope, "size_spread": prior.spread}
    tensors |= {"sizes": prior.sizes, "reference": prior.reference, "varying": torch.tensor(list(varying.values()), dtype=torch.float32)}
    tensors |= {"seen": result.seen, "share": torch.from_numpy(data.share)}
    if parts:
        record["contribution"] = sum(parts[1:], parts[0]) / len(parts)
    record |= {"history": pd.DataFrame(history), "stopped": stopped, "heldout": result.heldout, "sizes": prior.sizes.numpy(), **varying}
    return complexity, result, record, tensors
