"""A run of a count method on plain arrays: split, fit, impute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from .._progress import Progress
from .._space.side import SideInformation
from .engine import Engine
from .entries import EntrySplit
from .expressed import thresholds
from .fit import Fit, fit_split
from .molecules import MoleculeSplit
from .output import Imputed, Output, finish, narrow
from .settings import Settings
from .split import CountSplit
from .target_batch import Target

SPLITS: dict[str, type[CountSplit]] = {split.likelihood.name: split for split in (MoleculeSplit, EntrySplit)}
"""The split for each name of a likelihood."""


@dataclass(frozen=True)
class Task:
    """The input of a run, as plain arrays.

    Attributes
    ----------
    counts, size
        Canonical CSR ``(n, g)`` and library sizes ``(n,)``.
    labels
        Level codes ``(n,)`` of each label.
    genes, names
        Places and names of the k imputed genes.
    side
        Neighbours and features of the spots; None for cells.
    target
        Batches for which every cell is imputed; None for its own batch.
    likelihood
        A key of :data:`SPLITS`.
    output
        Scale, fill and type of the result.
    """

    counts: sp.csr_matrix
    size: np.ndarray
    labels: tuple[np.ndarray, ...]
    genes: np.ndarray
    names: Sequence[str]
    side: SideInformation | None
    target: Target | None
    likelihood: str
    output: Output
    device: torch.device


@dataclass
class Run:
    """The result of a run: the settings with their defaults filled in, the split of the counts, the fit, and the imputed values."""

    settings: Settings
    split: CountSplit
    fit: Fit
    imputed: Imputed


def run(task: Task, engine: Engine, settings: Settings, rng: np.random.Generator, progress: Progress) -> Run:
    """Split the counts, fit, and turn rates into imputed values."""
    settings = settings.for_cells(len(task.size))
    prepare = SPLITS[task.likelihood].prepare
    split = prepare(task.counts, task.size, task.labels, task.genes, task.device, rng, task.side)
    fitted = fit_split(split, engine, settings, task.target, rng, progress, posterior=task.output.posterior, sd=task.output.sd)
    if task.output.fill == "expressed":
        fitted.expressed_above = thresholds(fitted.rates.moments.mean, task.counts, task.size, task.genes)
    progress.phase("using the counts once more", 0.1)
    zeros_missing = split.likelihood.zeros_missing
    imputed = finish(
        fitted.rates, task.counts, task.size, task.genes, task.output, expressed_above=fitted.expressed_above, zeros_missing=zeros_missing
    )
    narrow(imputed, task.output.dtype, task.names)
    engine.warn_of_a_failed_fit(fitted.variation, fitted.heldout)
    return Run(settings, split, fitted, imputed)
