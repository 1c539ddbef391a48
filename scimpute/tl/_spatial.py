from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .. import _check
from .._anndata import keys
from .._anndata.inputs import SpotReader
from .._anndata.side import checked_ring_weights, chosen_modalities
from .._counts.settings import checked_settings
from .._counts.spatial import SpatialEngine
from .._keywords import helpful
from ._run import Request, checked_posterior, fill_of, impute

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy as np
    from anndata import AnnData


@helpful
def spatial(
    adata: AnnData,
    image_key: str | None = None,
    *,
    modalities: Sequence[str] | None = None,
    library_key: str | None = None,
    tile_features: str | None = None,
    ring_weights: Sequence[float] = (1.0, 0.5),
    spatial_weight: float = 0.0,
    edge_weight: Literal["image"] | None = None,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    rounding: Literal["nearest", "random"] | None = None,
    likelihood: Literal["poisson", "squared"] = "poisson",
    key_added: str = "spatial_imputed",
    output: Literal["counts", "rate", "log1p"] = "counts",
    sd: bool = True,
    dtype: Literal["float32", "float16"] = "float32",
    block_size: int = 576,
    n_repeats: int = 3,
    n_context: int | Literal["auto"] = "auto",
    width: int | Literal["auto"] = "auto",
    penalty: float | Literal["auto"] = "auto",
    posterior: bool | Literal["auto"] = "auto",
    max_epochs: int | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    learning_rate: float = 2e-3,
    size_key: str | None = None,
    random_state: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Impute spatial counts from the spot, its neighbours, its position and the image around it.

    The generator is that of :func:`scimpute.tl.began`, with the same training by count splitting and the same posterior step, but without
    a discriminator. It reads one more input: the weighted sum of the codes of all modalities. Each modality has its own encoder, and the
    weights are learned.

    Parameters
    ----------
    adata
        Object with counts, ``n_obs`` spots x ``n_vars``, and positions in ``obsm["spatial"]``.
    image_key
        Image in ``uns["spatial"][library]["images"]``, such as ``"hires"``. A convolutional network reads the tile around every spot (see
        :func:`scimpute.pp.tiles`). It is trained with the rest.
    modalities
        Any of ``"counts"`` (of the spot and its neighbours), ``"position"`` and ``"image"``. None takes counts and position, and the image
        if there is an ``image_key`` or ``tile_features``. Without ``"counts"`` the network reads only the library size of a spot.
    library_key
        Column of ``obs`` with the section (slide) of each spot. The network is conditioned on it. Neighbours are within a section.
    tile_features
        Array in ``obsm`` with features of the image around every spot, as :func:`scimpute.pp.tiles` writes; instead of ``image_key``.
    ring_weights
        Weight of each ring of neighbours in the neighbour loss. The network also reads the low-rank scores of the summed molecules of every
        ring with a weight above 0. Empty: no neighbours. The rings are those of :func:`scimpute.pp.spatial_rings`. The graph is
        ``obsp["spatial_connectivities"]`` if it exists; otherwise it is computed and not stored.
    spatial_weight
        Weight of the neighbour loss, which pulls a spot to the mean of its neighbours. See *Notes*.
    edge_weight
        ``"image"``: neighbours count by the similarity of their image tiles, so that smoothing stops at borders in the tissue.
    layer
        Layer with the counts. None reads ``X``, ``"raw"`` reads ``adata.raw``.
    rounding
        How decimals become counts, as in :func:`scimpute.tl.began`.
    genes
        Impute only these genes: names, or a boolean column of ``var``. The context still uses all genes.
    likelihood
        ``"poisson"``: the network predicts held-out molecules (count splitting). A zero is an observation like any other. ``"squared"``, as
        in the publication :cite:p:`BenShushan`: **every zero is missing**. The network predicts hidden non-zero entries, by the mean square
        of their logs. A zero becomes the *typical count, given that there is one* (the geometric mean, above 1 on average). Non-zero
        entries stay as they are, and still get a standard deviation. Use it with :func:`scimpute.pp.hide` and for comparison only: it turns
        a gene without expression into an expressed one.
    key_added
        Name of the result. It cannot be ``"spatial"``, the name of the images in ``uns``.
    output
        As in :func:`scimpute.tl.began`: ``"counts"``, ``"rate"`` or ``"log1p"``.
    sd, dtype
        As in :func:`scimpute.tl.began`: write standard deviations, and the type of the stored result.
    block_size, n_repeats, batch_size, learning_rate
        As in :func:`scimpute.tl.began`.
    n_context, width, penalty, max_epochs
        As in :func:`scimpute.tl.began`; ``"auto"`` chooses by held-out molecules. With ``likelihood="squared"`` it is 15, 16, 600 and 400
        minibatches.
    posterior
        Combine the predicted rate with the spot's own count. The posterior mean (True) is about *this spot*, the rate (False) about *spots
        like this one*. ``"auto"`` is True if counts are a modality and ``likelihood="poisson"``; in other cases True is refused.
    size_key
        Column of ``obs`` with library sizes over all genes, for an object with a subset of the genes.
    random_state
        Seed or generator; None draws a new seed. The same seed gives the same result on the same device with as many threads.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar. None shows it in terminals and notebooks, unless ``scanpy.settings.verbosity`` is 0.
    save
        File for the trained model, for :func:`scimpute.tl.apply` on other sections. An earlier model is replaced; any other existing file
        is refused. If the model cannot be written, a warning says so; the result is in the object all the same.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or with ``copy=True`` the copy. It writes

    ``adata.layers[key_added]``, ``adata.layers[f"{key_added}_sd"]``
        Imputed values and, unless ``sd=False``, their standard deviations; dense, ``n_obs`` x ``n_vars``, of type ``dtype``. With
        ``genes`` they are DataFrames in ``adata.obsm`` instead.
    ``adata.uns[key_added]``
        ``contribution``: a DataFrame with the learned ``weight`` of every modality, and its ``contribution``, the rise of the held-out
        deviance without it in nats per molecule (with ``likelihood="squared"`` of the mean squared error of the logs of held-out entries;
        ``heldout`` is on this scale, too, and has no posterior). ``conditioned_on``: the sections. As in :func:`scimpute.tl.began`:
        ``params``, ``history``, ``chosen``, ``heldout``, ``inverse_dispersion``, ``inverse_dispersion_slope``,
        ``inverse_dispersion_spread``, ``stopped``, ``version``, ``seconds`` and ``source``.

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
    Neighbour loss: :math:`\lambda \sum_o w_o \sum_j s_j (d_{ij} - \mathrm{mean}_{k \in N_o(i)} d_{kj})^2` with :math:`\lambda` the
    ``spatial_weight``, :math:`w_o` the ``ring_weights``, :math:`N_o(i)` the ring and :math:`d` the log rate over the gene's share
    :math:`s_j`. It is estimated from two random neighbours per ring, for a quarter of the spots of a minibatch. So its cost does not depend
    on the number of neighbours. If the network reads the neighbours' scores, this loss has not lowered the held-out error in our tests.

    The weighted sum of codes and the two rings follow the multimodal network of :cite:t:`BenShushan`. Count splitting
    :cite:p:`Batson2019` replaces its squared error.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_visium()
    >>> scimpute.tl.spatial(adata, "hires", max_epochs=2, n_repeats=1)
    >>> list(adata.uns["spatial_imputed"]["contribution"].index)
    ['counts', 'position', 'image']
    """
    _check.key_name("key_added", key_added)
    if key_added == keys.SPATIAL:
        raise ValueError("key_added='spatial': uns['spatial'] holds the images; choose another key")
    params: dict[str, Any] = {
        "image_key": image_key,
        "modalities": list(chosen_modalities(modalities, image_key, tile_features, edge_weight)),
        "library_key": library_key,
        "tile_features": tile_features,
        "ring_weights": list(checked_ring_weights(ring_weights)),
        "spatial_weight": _check.number("spatial_weight", spatial_weight, 0),
        "edge_weight": edge_weight,
    }
    request = Request.checked(
        "spatial",
        layer=layer,
        rounding=rounding,
        size_key=size_key,
        genes=genes,
        key_added=key_added,
        output=output,
        fill=fill_of(likelihood),
        sd=sd,
        dtype=dtype,
        posterior=checked_posterior(posterior, likelihood, counts_are_read="counts" in params["modalities"]),
        likelihood=likelihood,
        random_state=random_state,
        device=device,
        progress=progress,
        save=save,
        copy=copy,
    )
    _check_neighbours(params)
    settings = checked_settings(
        block_size=block_size,
        n_repeats=n_repeats,
        n_context=n_context,
        width=width,
        penalty=penalty,
        max_epochs=max_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    return impute(spatial, adata, request, SpatialEngine(), settings, SpotReader(params, conditioned=True))


def _check_neighbours(params: Mapping[str, Any]) -> None:
    edge_weight, spatial_weight = params["edge_weight"], params["spatial_weight"]
    if edge_weight and "counts" not in params["modalities"] and not spatial_weight:
        raise ValueError("edge_weight needs neighbours, and modalities without counts and spatial_weight=0 use none; leave it out")
    if not any(params["ring_weights"]) and (spatial_weight or edge_weight):
        raise ValueError("spatial_weight and edge_weight need neighbours, and ring_weights has none; give a ring a weight above 0")
