from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .. import _check, _random
from .._anndata import keys
from .._anndata.counts import read_counts
from .._anndata.write import check_target, write
from .._keywords import helpful
from .._sparse import split_molecules

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData


@helpful
def thin(
    adata: AnnData,
    frac: float = 0.9,
    *,
    layer: str | None = None,
    rounding: Literal["nearest", "random"] | None = None,
    key_added: str = "thin",
    random_state: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Split the molecules of each entry at random into a training and a test part.

    Each molecule goes to the training part with probability ``frac``. Given the rates, the two parts are independent Poisson counts.
    So :func:`scimpute.metrics.heldout` can score a method on the test part if the method sees only the training part. This is molecular
    cross-validation :cite:p:`Batson2019`.

    Parameters
    ----------
    adata
        Object with counts, ``n_obs`` x ``n_vars``.
    frac
        Expected fraction of molecules in the training part, between 0 and 1.
    layer
        Layer with the counts; ``X`` if None, ``adata.raw`` with ``"raw"``.
    rounding
        How decimals become counts, as in :func:`scimpute.tl.began`.
    key_added
        Name of the result.
    random_state
        Seed, generator, or None for a fresh one.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy with ``copy=True``. The function writes

    ``adata.layers[f"{key_added}_train"]``, ``adata.layers[f"{key_added}_test"]``
        The two parts, CSR float32; their sum is the input.
    ``adata.uns[key_added]``
        The parameters.

    Raises
    ------
    KeyError
        The layer does not exist.
    ValueError
        The matrix does not hold counts; ``frac`` is not inside (0, 1).

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.pp.thin(adata)
    >>> scimpute.tl.began(adata, layer="thin_train")  # doctest: +SKIP
    >>> scimpute.metrics.heldout(adata, ["began"])  # doctest: +SKIP
    """
    check_target(adata, "thin", key_added, layer=layer, copy=copy, suffixes=("", "_train", "_test"))
    frac = _check.number("frac", frac, 0, 1, open_low=True, open_high=True)
    rng = _random.generator(random_state)
    kept, removed = split_molecules(read_counts(adata, layer, rounding, rng), frac, rng)
    params: dict[str, Any] = {"frac": frac, "layer": keys.layer_in_params(layer), "random_state": _random.describe(random_state)}
    params |= {} if rounding is None else {"rounding": rounding}
    layers = {keys.train(key_added): kept, keys.test(key_added): removed}
    return write(adata, key_added, "thin", {"layers": layers}, {key_added: {"params": params}}, copy=copy)
