"""From rates to imputed values and standard deviations: the posterior step, the scale, the fill and the type of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from .. import _check, _device
from .._sparse import CACHED_ENTRIES, TARGET_SUM, chunks, columns
from ..models import posterior
from .expected import expected_log1p
from .rates import Rates

OUTPUTS = ("counts", "rate", "log1p")
FILLS = ("all", "zeros", "expressed")
DTYPES = ("float32", "float16")
LEAST_RATE = 1e-30
"""Smallest rate that others are divided by."""
FLOAT16_MAX = float(np.finfo(np.float16).max)
"""The largest number of float16: 65504."""


@dataclass(frozen=True)
class Output:
    """Scale, fill and type of the result: the parameters of :func:`scimpute.tl.began` with these names."""

    posterior: bool
    output: str
    fill: str
    sd: bool = True
    dtype: str = "float32"


@dataclass
class Imputed:
    """Imputed values and their standard deviations (None with ``sd=False``), ``(n, k)``."""

    values: np.ndarray
    sd: np.ndarray | None

    @property
    def dtype(self) -> str:
        """In what the result is stored."""
        return str(self.values.dtype)


def finish(
    rates: Rates,
    counts: sp.csr_matrix,
    size: np.ndarray,
    genes: np.ndarray,
    output: Output,
    *,
    expressed_above: np.ndarray | None,
    zeros_missing: bool,
) -> Imputed:
    """Compute values and standard deviations in row chunks. The arrays of ``rates`` are reused for the result.

    Parameters
    ----------
    genes
        Places of the k imputed genes among those of ``counts``.
    expressed_above
        With ``fill="expressed"``: a cell without a molecule of a gene and with a rate below this value gets 0, ``(k,)``.
    zeros_missing
        Whether zeros count as missing (see :class:`.Likelihood`). Then the rates are those of non-zero entries.
    """
    moments = rates.moments
    step = None
    if output.posterior:
        repeats = rates.own is None and rates.repeats > 1
        step = posterior.Posterior(rates.prior, len(size), sd=moments.m2 is not None, repeats=repeats)

    def chunk(rows: slice, alive: Callable[[], None]) -> None:
        depth = torch.from_numpy(size[rows].astype(np.float32))[:, None]
        own = posterior.NonZero.of(columns(counts[rows], genes))
        mean, sd = _expected_counts(rates, rows, own, depth, step)
        absent = None
        if expressed_above is not None:
            absent = torch.from_numpy(moments.mean[rows] < expressed_above)
            absent.view(-1)[own.place] = False
        mean, sd = _on_scale(mean, sd, own, depth, output, zeros_missing=zeros_missing)
        if absent is not None:
            # The standard deviation remains that of the expected value.
            mean[absent] = 0
        moments.mean[rows] = mean.numpy()
        if sd is not None and moments.m2 is not None:
            moments.m2[rows] = sd.numpy()

    _device.side_by_side(chunk, chunks(len(size), len(genes), CACHED_ENTRIES), torch.device("cpu"))
    return Imputed(*moments.release())


def _expected_counts(
    rates: Rates, rows: slice, own: posterior.NonZero, depth: torch.Tensor, step: posterior.Posterior | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean and standard deviation of the expected counts of some cells, ``(b, k)``, with or without the posterior step.

    Standard deviations are computed relative to the mean, because the square of a large number is beyond float32.
    """
    mean, relative, together, ratio = torch.from_numpy(rates.moments.mean[rows]) * depth, None, None, None
    predicted = mean if rates.own is None else torch.from_numpy(rates.own.mean[rows]) * depth
    log_mu = predicted.clamp(min=posterior.LEAST).log_()
    if rates.moments.m2 is not None and rates.repeats > 1:
        rate = torch.from_numpy(rates.moments.mean[rows]).clamp(min=LEAST_RATE)
        relative = rates.moments.variance(rows, rates.repeats).sqrt_().div_(rate)
    if step is None:
        sd = None if rates.moments.m2 is None else rates.prior.relative_sd(log_mu)
        together = relative
    elif rates.own is None:
        ratio, sd = step(log_mu, own, relative)
    else:
        # The own count gives the ratio of the cell to the prediction in its own batch. The target batch gets the same ratio.
        ratio, sd = step(log_mu, own)
        together = None if relative is None else relative * ratio
    if sd is not None:
        sd = (sd if together is None else sd.hypot_(together)).mul_(mean)
    if ratio is not None:
        mean *= ratio
    # A gene without any molecule is imputed as 0.
    if not rates.seen.all():
        for values in (mean, sd):
            if values is not None:
                values[:, ~rates.seen] = 0
    return mean, sd


def _on_scale(
    mean: torch.Tensor, sd: torch.Tensor | None, own: posterior.NonZero, depth: torch.Tensor, output: Output, *, zeros_missing: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Expected counts on the scale of the output. With ``fill="zeros"`` observed entries keep their value."""
    if output.fill == "zeros":
        mean.view(-1)[own.place] = own.values
    depth = depth.clamp(min=1)
    if output.output == "rate":
        return mean.div_(depth), None if sd is None else sd.div_(depth)
    if output.output == "counts":
        return mean, sd
    scale = TARGET_SUM / depth
    if sd is not None:
        sd = sd.mul_(scale).div_(mean * scale + 1)
    # If zeros are missing, the expected count excludes zeros, and the mean of the log is not needed.
    logged = (mean * scale).log1p_() if zeros_missing else torch.from_numpy(expected_log1p(mean.numpy(), scale[:, 0].numpy()))
    if output.fill == "zeros":
        observed = own.values * scale[own.place // mean.shape[1], 0]
        logged.view(-1)[own.place] = observed.log1p_()
    return logged, sd


def check_dtype(dtype: str, output: str, counts: sp.csr_matrix, genes: np.ndarray, names: Sequence[str]) -> None:
    """Refuse, before the training, values that float16 cannot hold. ``names`` are the names of ``genes``."""
    _check.option("dtype", dtype, DTYPES)
    if dtype == "float32":
        return
    if output == "rate":
        raise ValueError(
            "dtype='float16' cannot hold output='rate': below 6e-8 everything is 0 in it, and most shares of a library are of that size; "
            "pass output='counts', output='log1p' or dtype='float32'"
        )
    if output == "counts":
        highest = counts.max(axis=0).toarray().ravel()[genes]
        gene = int(np.argmax(highest))
        if highest[gene] > FLOAT16_MAX:
            raise ValueError(
                f"dtype='float16' holds nothing above {FLOAT16_MAX:g}, and gene {names[gene]!r} has a count of {highest[gene]:g}; "
                "pass output='log1p', dtype='float32', or leave this gene out"
            )


def narrow(imputed: Imputed, dtype: str, names: Sequence[str]) -> None:
    """Convert values and standard deviations to the type they are stored in, one after the other.

    Where they turn out to be beyond float16 they stay float32, with a warning: a training is not thrown away for it.
    """
    if dtype == "float32":
        return
    for what, whole in (("value", imputed.values), ("standard deviation", imputed.sd)):
        highest = np.zeros(1) if whole is None else whole.max(axis=0)
        if highest.max() > FLOAT16_MAX:
            _check.tell(
                f"dtype='float16' holds nothing above {FLOAT16_MAX:g}, and gene {names[int(highest.argmax())]!r} has a {what} of "
                f"{highest.max():g}: the result is written as float32"
            )
            return
    imputed.values = imputed.values.astype(np.float16)
    if imputed.sd is not None:
        imputed.sd = imputed.sd.astype(np.float16)
