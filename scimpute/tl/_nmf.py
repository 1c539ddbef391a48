from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .. import _check
from .._anndata.inputs import SpotReader
from .._anndata.side import checked_ring_weights
from .._counts.settings import checked_settings
from .._counts.spatial import FactorEngine
from .._keywords import helpful
from .._space.side import SPOT
from ..models.factor import FactorGenerator
from ._run import Request, checked_posterior, fill_of, impute

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData


@helpful
def nmf(
    adata: AnnData,
    *,
    library_key: str | None = None,
    ring_weights: Sequence[float] = (1.0, 0.5),
    spatial_weight: float = 0.03,
    n_factors: int = 20,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    rounding: Literal["nearest", "random"] | None = None,
    likelihood: Literal["poisson", "squared"] = "poisson",
    key_added: str = "nmf",
    output: Literal["counts", "rate", "log1p"] = "counts",
    sd: bool = True,
    dtype: Literal["float32", "float16"] = "float32",
    penalty: float | Literal["auto"] = "auto",
    posterior: bool | Literal["auto"] = "auto",
    max_epochs: int | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    learning_rate: float = 2e-3,
    size_key: str | None = None,
    random_state: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Impute spatial counts by neural matrix factorisation with a neighbour loss.

    Every spot and every gene has a vector. The log rate of a gene in a spot is the product of both vectors plus the output of a small
    network that reads the pair. The neighbour loss makes neighbouring spots similar. A model of :func:`scimpute.tl.spatial` can be applied
    to other sections; this one cannot. Compare clusters before you use them: the vector of a shallow spot contains its noise, so clusters
    of the result can be worse than those of the counts even if held-out molecules are predicted well.

    Parameters
    ----------
    adata
        Object with counts, ``n_obs`` spots x ``n_vars``, and positions in ``obsm["spatial"]``.
    library_key
        Column of ``obs`` with the section (slide) of each spot. Neighbours are within a section.
    ring_weights
        Weight of each ring of neighbours in the neighbour loss; the rings are those of :func:`scimpute.tl.spatial`.
    spatial_weight
        Weight of the neighbour loss. 0 is the plain factorisation. It needs no positions and half the time, and has predicted held-out
        molecules as well in our tests.
    n_factors
        Length of the vectors, less than the number of spots and of genes.
    layer
        Layer with the counts. None reads ``X``, ``"raw"`` reads ``adata.raw``.
    rounding
        How decimals become counts, as in :func:`scimpute.tl.began`.
    genes
        Impute only these genes: names, or a boolean column of ``var``. All genes still get a vector.
    likelihood
        As in :func:`scimpute.tl.spatial`: ``"poisson"`` (held-out molecules) or ``"squared"`` (**every zero is missing**).
    key_added
        Name of the result.
    output
        As in :func:`scimpute.tl.began`: ``"counts"``, ``"rate"`` or ``"log1p"``.
    sd, dtype
        As in :func:`scimpute.tl.began`: write standard deviations, and the type of the stored result.
    penalty
        Weight of the squared gene vectors, relative to the log-likelihood of all molecules (or the squared errors of all entries). Spot
        vectors have weight 1. ``"auto"`` is 100, or 200 with ``likelihood="squared"``.
    posterior
        Combine the predicted rate with the spot's own count, as in :func:`scimpute.tl.began`. ``"auto"`` is True with
        ``likelihood="poisson"``.
    max_epochs
        Length of the training. ``"auto"`` is 400 minibatches, but at least 20 epochs.
    batch_size, learning_rate
        As in :func:`scimpute.tl.began`.
    size_key
        Column of ``obs`` with library sizes over all genes, for an object with a subset of the genes.
    random_state
        Seed or generator; None draws a new seed. The same seed gives the same result on the same device with as many threads.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar. None shows it in terminals and notebooks, unless ``scanpy.settings.verbosity`` is 0.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or with ``copy=True`` the copy. It writes

    ``adata.layers[key_added]``, ``adata.layers[f"{key_added}_sd"]``
        Imputed values and, unless ``sd=False``, their standard deviations; dense, ``n_obs`` x ``n_vars``, of type ``dtype``. With
        ``genes`` they are DataFrames in ``adata.obsm`` instead.
    ``adata.obsm[f"X_{key_added}"]``, ``adata.varm[key_added.upper()]``
        Vectors of the spots, ``n_obs`` x ``n_factors``, and of the genes, ``n_vars`` x ``n_factors``; float32.
    ``adata.uns[key_added]``
        ``params``, ``history``, ``chosen``, ``heldout``, ``inverse_dispersion``, ``inverse_dispersion_slope``,
        ``inverse_dispersion_spread``, ``stopped``, ``conditioned_on`` (empty), ``version``, ``seconds`` and ``source`` as in
        :func:`scimpute.tl.spatial`.

    Raises
    ------
    TypeError, KeyError, ValueError
        An argument or the object does not fit; the message says what would. Nothing was written.
    MemoryError
        The result would not fit into memory. This is checked before the training.
    RuntimeError
        The training failed. Nothing was written.

    Notes
    -----
    :math:`d_{ij} = u_i \cdot v_j + w \cdot \mathrm{gelu}(A u_i + B v_j + c)` is the log rate over the gene's share :math:`s_j`, with 8
    hidden units. The loss is that of :func:`scimpute.tl.spatial`: Poisson deviance of removed molecules :cite:p:`Batson2019`
    (or squared error of the logs of hidden entries), a prior of the vectors, and the neighbour loss
    :math:`\lambda \sum_o w_o \sum_j s_j (d_{ij} - \mathrm{mean}_{k \in N_o(i)} d_{kj})^2`. The vectors of the
    spots start from their low-rank scores. A new spot has no vector, so there is no ``save``.

    The method follows neural matrix factorisation :cite:p:`He2017` and the two rings of :cite:t:`STImputation`. The loss there used the
    mean of the first spot's neighbours for all spots, and counted a spot among its own neighbours.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_visium()
    >>> scimpute.tl.nmf(adata, max_epochs=2)
    >>> adata.obsm["X_nmf"].shape[1], adata.varm["NMF"].shape[1]
    (20, 20)
    """
    weight = _check.number("spatial_weight", spatial_weight, 0)
    weights = checked_ring_weights(ring_weights)
    if weight and not any(weights):
        raise ValueError(
            "spatial_weight needs neighbours, and ring_weights has none; pass spatial_weight=0 or give a ring a weight above 0"
        )
    params: dict[str, Any] = {
        "modalities": [SPOT],
        "library_key": library_key,
        "ring_weights": list(weights),
        "spatial_weight": weight,
    }
    request = Request.checked(
        "nmf",
        layer=layer,
        rounding=rounding,
        size_key=size_key,
        genes=genes,
        key_added=key_added,
        output=output,
        fill=fill_of(likelihood),
        sd=sd,
        dtype=dtype,
        posterior=checked_posterior(posterior, likelihood),
        likelihood=likelihood,
        random_state=random_state,
        device=device,
        progress=progress,
        save=None,
        copy=copy,
    )
    settings = checked_settings(
        block_size=None,  # a spot has one vector, for all genes
        n_repeats=1,
        n_context=_check.integer("n_factors", n_factors),
        width=FactorGenerator.PAIR_UNITS,
        penalty=penalty,
        max_epochs=max_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    return impute(nmf, adata, request, FactorEngine(), settings, SpotReader(params, conditioned=False))
