"""Apply a saved model of `tl.began` or `tl.spatial` to other cells: predict their rates, then the posterior step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from .._progress import Progress
from .._space.side import SideInformation
from .minibatches import CellBatches
from .output import Imputed, Output, finish
from .rates import RateMoments, Rates, add_rates
from .saved_model import Model


class AnyLevel(nn.Module):
    """A generator that accepts unknown levels, code -1. Such a cell gets the mean rate over all levels of that label.

    Parameters
    ----------
    generator
        It predicts log rates ``(P, b, m)`` from inputs ``(P, b, m + c)``, level codes ``(b,)`` of each label and features ``(b, ...)``.
    levels
        Number of levels of each label.
    """

    def __init__(self, generator: nn.Module, levels: Sequence[int]) -> None:
        super().__init__()
        self.generator, self.levels = generator, levels

    def forward(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor] = ()) -> Tensor:
        """Log share of every gene, ``(P, b, m)``."""
        for label, codes in enumerate(labels):
            unknown = codes < 0
            if not unknown.any():
                continue
            total: Tensor | None = None
            for level in range(self.levels[label]):
                levels = [other[unknown] for other in labels]
                levels[label] = torch.full_like(levels[label], level)
                # Rates are capped at 1 wherever they are used, and so before the mean.
                part = self(inputs[:, unknown], levels, [other[unknown] for other in features]).clamp(max=0)
                total = part if total is None else torch.logaddexp(total, part)
            assert total is not None, "a label has levels"
            mean = total - float(np.log(self.levels[label]))
            whole = mean.new_empty(mean.shape[0], len(codes), mean.shape[2])
            whole[:, unknown] = mean
            if not unknown.all():
                known = ~unknown
                whole[:, known] = self(inputs[:, known], [other[known] for other in labels], [other[known] for other in features])
            return whole
        return self.generator(inputs, labels, features)


def aligned(counts: sp.csr_matrix, places: np.ndarray) -> sp.csr_matrix:
    """Columns of a matrix in the order of the model. A gene that the matrix lacks (place -1) gets an empty column."""
    if len(places) == counts.shape[1] and np.array_equal(places, np.arange(len(places))):
        return counts
    wider = sp.csr_matrix((counts.data, counts.indices, counts.indptr), shape=(counts.shape[0], counts.shape[1] + 1))
    chosen = wider[:, np.where(places < 0, counts.shape[1], places)]
    chosen.sort_indices()
    return chosen


def impute(
    model: Model,
    counts: sp.csr_matrix,
    size: np.ndarray,
    labels: tuple[np.ndarray, ...],
    names: Sequence[str],
    device: torch.device,
    side: SideInformation | None,
    measured: np.ndarray,
    covered: float,
    *,
    sd: bool,
    progress: bool,
) -> Imputed:
    """Values and standard deviations of some genes in all cells.

    Parameters
    ----------
    counts, size
        Counts in the model's order of the genes, and library sizes.
    labels
        Level codes of each of the model's labels, -1 for a level it does not know.
    names
        Genes of the result, a part of ``model.imputed``.
    side
        Neighbours and features of the spots, for a model of `tl.spatial`.
    measured, covered
        True for each gene of the model that the object has, and the share of these genes of all molecules.
    sd
        Whether to compute standard deviations.
    """
    columns, n_repeats, context = model.positions(names), model.params["n_repeats"], model.context()
    moments = RateMoments(len(size), len(names), spread=sd)
    own = RateMoments(len(size), len(names), spread=False) if model.target is not None and model.params["posterior"] else None
    features = [] if side is None else side.features_with(counts, size, context.loadings.numpy())
    with Progress(f"tl.apply: {len(size):,} cells x {len(names):,} genes, {device}", show=progress) as bar:
        bar.phase("predicting", 0.6, n_repeats)
        for number in range(n_repeats):
            repeat = model.repeat(number, columns)
            shares = None if model.likelihood.zeros_missing else measured
            batches = CellBatches(counts, size, labels, repeat.partition, context, device, side, features, shares, covered)
            add_rates(AnyLevel(repeat.generator, model.levels).to(device), batches, model.target, moments, own, number)
            bar.step()
        place = {name: i for i, name in enumerate(model.imputed)}
        chosen = torch.tensor([place[name] for name in names])
        rates = Rates(moments, own, n_repeats, model.prior()[chosen], model.tensors["seen"][chosen])
        above = model.tensors["expressed_above"][chosen].numpy() if model.params["fill"] == "expressed" else None
        params = model.params
        output = Output(params["posterior"], params["output"], params["fill"])
        bar.phase("using the cells' own counts", 0.4)
        return finish(rates, counts, size, columns, output, expressed_above=above, zeros_missing=model.likelihood.zeros_missing)
