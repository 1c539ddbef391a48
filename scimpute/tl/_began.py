from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .. import _check
from .._anndata.inputs import CellReader
from .._counts.began import BeganEngine
from .._counts.settings import checked_settings
from .._keywords import helpful
from ._run import Request, impute

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData


@helpful
def began(
    adata: AnnData,
    batch_key: str | None = None,
    celltype_key: str | None = None,
    *,
    layer: str | None = None,
    size_key: str | None = None,
    rounding: Literal["nearest", "random"] | None = None,
    genes: str | Sequence[str] | None = None,
    key_added: str = "began",
    output: Literal["counts", "rate", "log1p"] = "counts",
    fill: Literal["all", "zeros", "expressed"] = "all",
    sd: bool = True,
    dtype: Literal["float32", "float16"] = "float32",
    target_batch: str | None = None,
    posterior: bool = True,
    architecture: Literal["dense", "conv"] = "dense",
    block_size: int = 576,
    n_repeats: int = 3,
    n_context: int | Literal["auto"] = "auto",
    width: int | Literal["auto"] = "auto",
    penalty: float | Literal["auto"] = "auto",
    drop_quantile: float | Literal["auto"] = "auto",
    drop_shape: float = 1.0,
    gamma: float = 0.95,
    adversarial_weight: float = 0.1,
    reconstruction_weight: float = 1.0,
    max_epochs: int | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    learning_rate: float = 2e-3,
    random_state: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Impute counts with a BEGAN whose generator reads real cells.

    Genes are dealt at random into blocks, each with a small generator and discriminator of its own; the deal is redrawn
    ``n_repeats`` times and the imputations are averaged. A generator reads its block of a *thinned* cell and the cell's low-rank context,
    predicts the removed molecules (count splitting), and is judged, after a Drop operator has imitated dropout, by a
    boundary-equilibrium discriminator. The rate it gives is the prior mean of the entry, and the cell's own count is used
    once more (empirical Bayes), trusted as far as held-out molecules bear it out. See *Notes* for the equations.

    Under *Parameters* is what a call may need: where the counts, the library sizes and the batches are, and what is to be written. Under
    *Other Parameters* is how the network is built and trained. ``"auto"`` chooses for your data; few ever need to touch the rest.

    **Test the counts, not the result.** :func:`scanpy.tl.rank_genes_groups` on the imputed layer calls nearly every gene a marker, genes of
    a few molecules first.

    Parameters
    ----------
    adata
        Object with counts, ``n_obs`` x ``n_vars``; dense, CSR, CSC, dask or backed.
    batch_key
        Column of ``obs`` with the batch (technology, donor) the generator is conditioned on.
    celltype_key
        Column of ``obs`` with the cell type the generator is conditioned on.

        **A label given here or as** ``batch_key`` **must not be tested on the result.** The generator may give each level its own mean: a
        *random* half of 240 cells of one type given as a label made 46 of 753 genes differ "significantly" between the halves.
        The labels used are recorded in ``adata.uns[key_added]["conditioned_on"]``.
    layer
        Layer with the counts; ``X`` where None, ``adata.raw`` with ``"raw"``.
    rounding
        How decimals become counts (of SoupX, CellBender, STARsolo EM, alevin or RSEM): ``"nearest"``, or ``"random"``, one of the two
        whole numbers around a value, drawn so that the mean is the value. With None decimals are refused. Mere rounding errors, as of
        logs that were taken back, are put right in any case; normalised values are refused in any case.
    size_key
        Column of ``obs`` with library sizes over all genes, for an object cut to its variable genes.
    genes
        Impute these genes only: names, or a boolean column of ``var``. All genes still inform the context.
    key_added
        Name of the result.
    output
        ``"counts"``: expected molecules at the cell's own depth. ``"rate"``: their share of the library size; the shares of a cell sum
        to about 1 over all genes, with ``posterior=False`` exactly. ``"log1p"``: the
        expected value of what ``sc.pp.normalize_total(target_sum=1e4)`` and ``sc.pp.log1p`` would give, without the bias of a mean's log.
    fill
        ``"all"`` writes the imputed value everywhere, ``"zeros"`` only where the count is zero and the observed value elsewhere (scIGANs).
        ``"expressed"`` leaves 0 in cells that do not express the gene, where these can be told: the count is zero, and so low a rate is
        predicted as in cells with less than a fifth of the molecules of the others (see *Notes*). To rank cells by a marker and to plot
        it: cells without the gene are equal, not ordered by noise. Some molecules are in such cells, too: what scores or adds up
        expected counts needs ``"all"``.
    sd
        Write the standard deviations too. False halves the memory and the file; the imputed values are the same.
    dtype
        In what the result is stored. ``"float16"`` halves the memory and the file, and keeps three digits of values above 1e-4. Numbers
        above 65504 and those of ``output="rate"`` do not fit: counts that large are refused, and where only an imputed value is, the result
        stays float32, with a warning. It is for storage: compute with ``adata.layers[key_added].astype("float32")``, also in scanpy.
    target_batch
        Impute every cell as if it were of this level of ``batch_key``, or with ``"average"`` as the mean over the levels.
        What the context says of the batch stays: in ``tutorials/04_batches`` a medium effect was halved (share of variance .28 to .15), a
        strong one hardly moved (.66 to .61).
    posterior
        Use the cell's own count once more. The posterior mean answers *this cell*; the rate (False) answers *cells like this one*.
    random_state
        Seed, generator, or None for a fresh one. Same seed, same result on the same device with the same number of threads.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar. None shows it in a terminal and in a notebook, unless ``scanpy.settings.verbosity`` is 0.
    save
        File for the trained model, which :func:`scimpute.tl.apply` applies to other cells: safetensors, with genes, levels, parameters and
        version as JSON metadata.
        An earlier model is replaced, any other file is refused. Where it cannot be written in the end, a warning says so, and the result
        is in the object all the same.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy with ``copy=True``. Written are

    ``adata.layers[key_added]``
        The imputed values, of type ``dtype``, dense, ``n_obs`` x ``n_vars``; 0 in genes without a molecule. With ``genes`` instead
        ``adata.obsm[key_added]``, a DataFrame.
    ``adata.layers[f"{key_added}_sd"]`` (or ``obsm``), unless ``sd=False``
        Standard deviation of every imputed value on the same scale: posterior of the entry (prior, where ``posterior=False``) and the
        spread over the repeats together; by the delta method for ``"log1p"``. With ``fill="zeros"`` the
        observed entries keep theirs, with ``fill="expressed"`` those that are 0.
    ``adata.uns[key_added]``
        ``params``; ``history`` per repeat and epoch (``reconstruction`` in nats per removed molecule, ``loss_real`` L(x), ``loss_fake``
        L(Drop(G(x))), ``k``, ``M``, ``heldout`` in nats per held-out molecule); ``chosen`` automatically, with the
        candidates and their scores; ``conditioned_on``; ``heldout`` scores of gene mean, network and posterior; ``inverse_dispersion`` of
        every imputed gene, ``inverse_dispersion_slope`` and ``inverse_dispersion_spread`` (see *Notes*); ``stopped``; ``version``;
        ``seconds``; ``source``, by which the counts are known again when they have been moved: number of ``molecules``, a hash of each of
        the ``cells`` and ``genes``. With
        ``fill="expressed"`` ``expressed_above``: for every imputed gene the rate from which a cell expresses it, 0 where that cannot be
        said.

    Other Parameters
    ----------------
    architecture
        ``"dense"``, or ``"conv"`` for the image-shaped network of the source.
    block_size
        Genes per block; for ``"conv"`` the square of a multiple of 4.
    n_repeats
        Number of random partitions of the genes.
    n_context, width, penalty, max_epochs
        Number of low-rank scores told to every block, width of the hidden layers (maps for ``"conv"``), prior precision of
        the output weights, and length of the training. ``"auto"`` chooses by held-out molecules (dense only; the
        convolutional network has fixed choices), the width excepted, which is 64.
    drop_quantile, drop_shape
        Percentile q (0 to 100) at which Drop keeps half of the entries, and sharpness s around it. ``"auto"`` takes the percentage of zeros
        in the counts.
    gamma
        Diversity ratio of BEGAN, 0 to 1: the discriminator balances ``L(Drop(G(x)))`` at gamma times ``L(x)``.
    adversarial_weight, reconstruction_weight
        Weights of the two losses of the generator. 0 leaves one out, not both.
    batch_size
        Cells per minibatch; ``"auto"`` takes an eighth of the cells, 32 to 128.
    learning_rate
        Peak learning rate of the one-cycle schedule.

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
    With :math:`x'` = log1p(CP10k) and :math:`G'` that of the imputed cell:

    * Drop: an entry is kept with probability :math:`\sigma(s (G' - \mathrm{percentile}(G', q)))`.
    * BEGAN :cite:p:`Berthelot2017`, eqs. 2 to 5: :math:`L(v) = \mathrm{mean}|v - D(v)|`, :math:`L_D = L(x') - k_t L(\mathrm{Drop}(G'))`,
      :math:`k_{t+1} = \mathrm{clip}(k_t + 0.001 (\gamma L(x') - L(\mathrm{Drop}(G'))), 0, 1)`,
      :math:`M = L(x') + |\gamma L(x') - L(\mathrm{Drop}(G'))|`; training stops early when neither M nor the held-out deviance improves.
    * Count splitting :cite:p:`Batson2019`: :math:`\sum_j t_i r_{ij} - \sum_j T_{ij} \log r_{ij}` with T the removed molecules and t
      their total.
    * Empirical Bayes: :math:`E[\lambda | x, \theta] = (x + \theta_{ij}) / (1 + \theta_{ij} / \mu_{ij})`, :math:`\mu_{ij} = r_{ij} l_i`,
      in the mean over :math:`\log\theta_{ij} = \log\theta_j + \beta\log(\mu_{ij} / \bar\mu_j) + \tau z`, :math:`z` standard normal.
    * ``fill="expressed"`` parts the log rates of a gene at the lower of two cuts, where the variance between the parts is largest
      :cite:p:`Otsu1979` and where two normals fit them best :cite:p:`Kittler1986`, and leaves the gene as it is unless
      :math:`m_1 / d_1 > 5 (m_0 + 2) / d_0` and :math:`\bar r_1 > 2 \bar r_0`, with molecules m, depth d and mean rate of the cells in
      the upper (1) and the lower (0) part. That zeros should be kept is a thought of ALRA :cite:p:`Linderman2022`.

    After scIGANs :cite:p:`Xu2020`, with the changes above. The penalty holds a gene with few molecules at its mean, so that its
    posterior falls back to the mean and the cell's own count.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.tl.began(adata, batch_key="batch", max_epochs=2)
    >>> adata.layers["began"].shape
    (60, 40)
    """
    request = Request.checked(
        "began",
        layer=layer,
        rounding=rounding,
        size_key=size_key,
        genes=genes,
        key_added=key_added,
        output=output,
        fill=fill,
        sd=sd,
        dtype=dtype,
        posterior=posterior,
        target_batch=target_batch,
        random_state=random_state,
        device=device,
        progress=progress,
        save=save,
        copy=copy,
    )
    _check_labels(batch_key, celltype_key, target_batch, fill)
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
    engine = BeganEngine.checked(
        settings.block_size,
        architecture=architecture,
        drop_quantile=drop_quantile,
        drop_shape=drop_shape,
        gamma=gamma,
        adversarial_weight=adversarial_weight,
        reconstruction_weight=reconstruction_weight,
    )
    labels = CellReader({"batch_key": batch_key, "celltype_key": celltype_key})
    return impute(began, adata, request, engine, settings, labels)


def _check_labels(batch_key: str | None, celltype_key: str | None, target_batch: str | None, fill: str) -> None:
    for name, value in (("batch_key", batch_key), ("celltype_key", celltype_key)):
        if value is not None:
            _check.name_of(name, value, "a column of obs")
    if batch_key is not None and batch_key == celltype_key:
        raise ValueError(f"batch_key and celltype_key are the same column, {batch_key!r}; give it once")
    if target_batch is not None and fill != "all":
        raise ValueError(f"target_batch and fill={fill!r} exclude each other: observed counts are of the cell's own batch")
    if target_batch is not None and batch_key is None:
        raise ValueError(f"target_batch={target_batch!r} needs batch_key")
