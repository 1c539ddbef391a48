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

    The generator of :func:`scimpute.tl.began`, trained by count splitting and followed by the same empirical-Bayes step, without an
    adversary, is told one thing more: the sum of the codes of all modalities, each from its own encoder, with weights that are learnt.

    Parameters
    ----------
    adata
        Object with counts, ``n_obs`` spots x ``n_vars``, and positions in ``obsm["spatial"]``.
    image_key
        Image in ``uns["spatial"][library]["images"]``, such as ``"hires"``, from which a tile around every spot is cut (see
        :func:`scimpute.pp.tiles`) and read by a convolutional network that is trained with the rest.
    modalities
        Any of ``"counts"`` (the spot's own and those of its neighbours), ``"position"`` and ``"image"``; None for counts and position, and
        the image too where ``image_key`` or ``tile_features`` is given. Without ``"counts"`` only the library size is known of a spot.
    library_key
        Column of ``obs`` with the section (slide) of each spot. The network is told which; no neighbours are in two sections.
    tile_features
        Instead of ``image_key``: array in ``obsm`` with features of the image around every spot, as :func:`scimpute.pp.tiles` writes.
    ring_weights
        What each ring of neighbours counts in the spatial contribution. Of each ring with a weight above 0 the network is told the low-rank
        scores of its molecules together. Empty: neighbours are not looked at. The rings are those of :func:`scimpute.pp.spatial_rings`; who
        is next to whom is taken from ``obsp["spatial_connectivities"]`` where it exists; otherwise it is found and not kept.
    spatial_weight
        Weight of the spatial contribution to the loss, which draws a spot to the mean of its neighbours. See *Notes*.
    edge_weight
        ``"image"``: neighbours count by how alike the image is around them, so that smoothing stops at a border of the tissue.
    layer
        Layer with the counts; ``X`` where None, ``adata.raw`` with ``"raw"``.
    rounding
        How decimals become counts, as in :func:`scimpute.tl.began`.
    genes
        Impute these genes only: names, or a boolean column of ``var``. All genes still inform the context.
    likelihood
        ``"poisson"``: molecules are held out and predicted (count splitting), and a zero is an observation like any other.
        ``"squared"``, as in the source of the method :cite:p:`BenShushan`: **every zero is taken for missing**; hidden non-zero
        entries are predicted, in the mean square of their logs. What is put in the place of a zero is *what would typically have been
        counted, given that anything was* (the geometric mean, above 1 on average); the other entries stay as they are, and their standard
        deviations are what they would have. It is for :func:`scimpute.pp.hide` and comparison: of a gene that is not expressed it makes
        one that is.
    key_added
        Name of the result. ``"spatial"`` is the name of the images in ``uns`` and cannot be taken.
    output
        As in :func:`scimpute.tl.began`: ``"counts"``, ``"rate"`` or ``"log1p"``.
    sd, dtype
        As in :func:`scimpute.tl.began`: whether standard deviations are written, and in what the result is stored.
    block_size, n_repeats, batch_size, learning_rate
        As in :func:`scimpute.tl.began`.
    n_context, width, penalty, max_epochs
        As in :func:`scimpute.tl.began`; ``"auto"`` chooses by held-out molecules of the counts. With ``likelihood="squared"`` it
        stands for 15, 16, 600 and 400 minibatches.
    posterior
        Use the spot's own count once more. The posterior mean answers *this spot*, the rate (False) *spots like this one*. ``"auto"``: True
        where counts are a modality and ``likelihood="poisson"``, the only case in which it can be.
    size_key
        Column of ``obs`` with library sizes over all genes, for an object cut to its variable genes.
    random_state
        Seed, generator, or None for a fresh one. Same seed, same result on the same device with the same number of threads.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar. None shows it in a terminal and in a notebook, unless ``scanpy.settings.verbosity`` is 0.
    save
        File for the trained model, which :func:`scimpute.tl.apply` applies to other sections.
        An earlier model is replaced, any other file is refused. Where it cannot be written in the end, a warning says so, and the result
        is in the object all the same.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy with ``copy=True``. Written are

    ``adata.layers[key_added]``, ``adata.layers[f"{key_added}_sd"]``
        Imputed values and, unless ``sd=False``, their standard deviations; of type ``dtype``, dense, ``n_obs`` x ``n_vars``. With
        ``genes`` instead ``adata.obsm[key_added]`` and ``adata.obsm[f"{key_added}_sd"]``, DataFrames.
    ``adata.uns[key_added]``
        ``params``; ``contribution``, a DataFrame with the learnt ``weight`` of the code of every modality, and by how much the deviance of
        held-out molecules rises without it (``contribution``, nats per molecule; with ``likelihood="squared"`` the mean squared error of
        the logs of held-out entries, as then in ``heldout``, which has no posterior); ``history``, ``chosen``, ``heldout``,
        ``inverse_dispersion``, ``inverse_dispersion_slope``, ``inverse_dispersion_spread``, ``stopped``, ``version``, ``seconds`` and
        ``source`` as in :func:`scimpute.tl.began`; ``conditioned_on``, the sections.

    Raises
    ------
    TypeError, KeyError, ValueError
        An argument or the object is not as needed; the message says what exists. Nothing was written.
    MemoryError
        The result would not fit; found before the training.
    RuntimeError
        The training failed. Nothing was written.

    Notes
    -----
    Spatial contribution: :math:`\lambda \sum_o w_o \sum_j s_j (d_{ij} - \mathrm{mean}_{k \in N_o(i)} d_{kj})^2` with :math:`\lambda` the
    ``spatial_weight``, :math:`w_o` the ``ring_weights``, :math:`N_o(i)` the ring and :math:`d` the log rate over the gene's share
    :math:`s_j`. It is estimated from two neighbours drawn per ring, for a quarter of the spots of a minibatch: its cost does not depend on
    the number of neighbours. Where the network is told the neighbours' scores, it has not lowered the held-out error in our tests.

    Fusion of modalities by a weighted sum of codes, and the two rings, after the multimodal network of :cite:t:`BenShushan`; count
    splitting :cite:p:`Batson2019` in the place of its squared error.

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
        raise ValueError("key_added='spatial': uns['spatial'] is the place of the images; choose another key")
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
        raise ValueError("edge_weight is about neighbours, which are not looked at without counts and with spatial_weight=0; leave it out")
    if not any(params["ring_weights"]) and (spatial_weight or edge_weight):
        raise ValueError("spatial_weight and edge_weight are about neighbours, which ring_weights leaves out; give a ring a weight above 0")
