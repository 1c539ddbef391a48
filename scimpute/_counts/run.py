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
from .settings import Settings, Target
from .split import CountSplit

SPLITS: dict[str, type[CountSplit]] = {split.likelihood.name: split for split in (MoleculeSplit, EntrySplit)}
"""By the name of the likelihood."""


@dataclass(frozen=True)
class Task:
    """What a run works on, as plain arrays.

    Attributes
    ----------
    counts, size
        Canonical CSR ``(n, g)`` and library sizes ``(n,)``.
    labels
        Level codes ``(n,)`` of each label.
    genes, names
        Places and names of the k genes that are imputed.
    side
        What there is beside the counts of a spot.
    target
        Batches that every cell is imputed as.
    likelihood
        Name of what is hidden: see :data:`SPLITS`.
    output
        What is wanted.
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
    """What was done: with which settings, the split of the counts, what was fitted, and the imputed values."""

    settings: Settings
    split: CountSplit
    fit: Fit
    imputed: Imputed


def run(task: Task, engine: Engine, settings: Settings, rng: np.random.Generator, progress: Progress) -> Run:
    """Split the counts, fit, and turn rates into imputed values."""
    settings = settings.for_cells(len(task.size))
    prepare = SPLITS[task.likelihood].prepare
    split = prepare(task.counts, task.size, task.labels, task.genes, task.device, rng, task.side)
    found = fit_split(split, engine, settings, task.target, rng, progress, posterior=task.output.posterior, sd=task.output.sd)
    if task.output.fill == "expressed":
        found.expressed_above = thresholds(found.rates.moments.mean, task.counts, task.size, task.genes)
    progress.phase("using the counts once more", 0.1)
    zeros_missing = split.likelihood.zeros_missing
    imputed = finish(
        found.rates, task.counts, task.size, task.genes, task.output, expressed_above=found.expressed_above, zeros_missing=zeros_missing
    )
    narrow(imputed, task.output.dtype, task.names)
    engine.warn_of_a_failed_fit(found.variation, found.heldout)
    return Run(settings, split, found, imputed)
