from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .. import _check, _random
from .._anndata import keys
from .._anndata.read import read_finite, read_with_gaps, source_name
from .._anndata.write import check_target, write
from .._keywords import helpful
from .._sparse import chunks

if TYPE_CHECKING:
    from anndata import AnnData

_OF = ("nonzero", "all")


@helpful
def hide(
    adata: AnnData,
    frac: float | tuple[float, float] = 0.5,
    *,
    of: str = "nonzero",
    layer: str | None = None,
    key_added: str = "hidden",
    random_state: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Hide entries at random, to score a method on its predictions of them.

    Let a method impute ``layers[key_added]`` and score it with :func:`scimpute.metrics.recovery`. Any finite values may be hidden, not
    only counts. For counts, :func:`scimpute.pp.thin` is the fairer test. Entries hidden here were not zero, so a method gains by making
    all values larger.

    Parameters
    ----------
    adata
        Object with real numbers, ``n_obs`` x ``n_vars``.
    frac
        Probability that an entry is hidden, between 0 and 1. With a pair ``(low, high)`` each cell draws its own probability, uniform
        between the two, for example for a curve of the score against the observed fraction.
    of
        Which entries may be hidden. ``"nonzero"``: non-zero entries, and a hidden entry becomes zero (counts, where zero stands for
        missing). ``"all"``: all entries except NaN, and a hidden entry becomes NaN (bulk expression, where zero is a value). Earlier NaN
        entries stay NaN and do not count as hidden.
    layer
        Layer with the values; ``X`` if None.
    key_added
        Name of the result.
    random_state
        Seed, generator, or None for a fresh one.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy with ``copy=True``. The function writes

    ``adata.layers[key_added]``
        The visible values: CSR float32 with ``of="nonzero"``, dense float32 with NaN at the gaps with ``of="all"``.
    ``adata.layers[f"{key_added}_mask"]``
        True for hidden entries: CSR or dense, like the other layer.
    ``adata.uns[key_added]``
        The parameters.

    Raises
    ------
    KeyError
        The layer does not exist.
    TypeError, ValueError
        ``frac`` is not inside (0, 1), and not an ordered pair of such numbers; the matrix has infinite values, NaN with
        ``of="nonzero"``, or no entry to hide.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_bulk()
    >>> scimpute.pp.hide(adata, (0.1, 0.9), of="all")
    >>> scimpute.metrics.recovery(adata, [], groupby="tissue")  # doctest: +SKIP
    """
    check_target(adata, "hide", key_added, layer=layer, copy=copy, suffixes=("", "_mask"))
    low, high = _bounds(frac)
    _check.option("of", of, _OF)
    rng = _random.generator(random_state)
    part = _of_nonzero if of == "nonzero" else _of_all
    visible, mask = part(adata, layer, low, high, rng)
    params = {
        "frac": low if low == high else [low, high],
        "of": of,
        "layer": keys.layer_in_params(layer),
        "random_state": _random.describe(random_state),
    }
    layers = {key_added: visible, keys.mask(key_added): mask}
    return write(adata, key_added, "hide", {"layers": layers}, {key_added: {"params": params}}, copy=copy)


def _bounds(frac: float | tuple[float, float]) -> tuple[float, float]:
    """The lowest and the highest fraction; equal if ``frac`` is one number."""
    if not isinstance(frac, tuple | list | np.ndarray) or np.ndim(frac) != 1:
        frac = _check.number("frac", frac, 0, 1, open_low=True, open_high=True)
        return frac, frac
    if len(frac) != 2:
        raise ValueError(f"frac must be a number in (0, 1) or a pair (low, high) of such, got {len(frac)} values")
    low, high = (_check.number(f"frac[{i}]", value, 0, 1, open_low=True, open_high=True) for i, value in enumerate(frac))
    if low > high:
        raise ValueError(f"frac must be a pair (low, high) in this order, got ({low:g}, {high:g})")
    return low, high


def _fractions(n_obs: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    return np.full(n_obs, low) if low == high else rng.uniform(low, high, n_obs)


def _of_nonzero(
    adata: AnnData, layer: str | None, low: float, high: float, rng: np.random.Generator
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    values = read_finite(adata, layer)
    if not values.nnz:
        raise ValueError(f"{source_name(adata, layer)} has no non-zero entry to hide; if zero is a value, pass of='all'")
    fractions = np.repeat(_fractions(adata.n_obs, low, high, rng), np.diff(values.indptr))
    hidden = rng.random(values.nnz) < fractions
    parts = []
    for data in (np.where(hidden, np.float32(0), values.data), hidden):
        part = sp.csr_matrix((data, values.indices.copy(), values.indptr.copy()), shape=values.shape)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]


def _of_all(adata: AnnData, layer: str | None, low: float, high: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    # Four bytes for a value and one for the mask.
    _check.memory(5 * adata.n_obs * adata.n_vars, "take fewer cells or genes, or hide only non-zero entries with of='nonzero'")
    visible = read_with_gaps(adata, layer)
    fractions = _fractions(adata.n_obs, low, high, rng)
    mask = np.empty(visible.shape, dtype=bool)
    n_values = 0
    for rows in chunks(*visible.shape):
        # Gaps draw a number, too, so that the draws do not depend on the size of the chunks.
        selection = rng.random(visible[rows].shape) < fractions[rows, None]
        present = ~np.isnan(visible[rows])
        n_values += int(present.sum())
        mask[rows] = selection & present
        visible[rows][mask[rows]] = np.nan
    if not n_values:
        raise ValueError(f"{source_name(adata, layer)} has no value to hide: all entries are NaN")
    return visible, mask
