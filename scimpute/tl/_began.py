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

    The genes are split at random into blocks. Each block has a small generator and a small discriminator. This is repeated ``n_repeats``
    times with new blocks, and the imputations are averaged. A generator reads its block of a *thinned* cell and the cell's low-rank
    context. It learns to predict the removed molecules (count splitting). A Drop operator imitates dropout in its output, and a
    boundary-equilibrium discriminator compares the result with real cells. The predicted rate is the prior mean of an entry. The posterior
    step then combines it with the cell's own count (empirical Bayes); held-out molecules decide how much each of the two weighs. *Notes*
    has the equations.

    *Parameters* say where the counts, library sizes and batches are, and what is written. *Other Parameters* say how the network is built
    and trained; ``"auto"`` chooses for your data.

    **Test the counts, not the result.** :func:`scanpy.tl.rank_genes_groups` on the imputed layer calls nearly every gene a marker, genes of
    a few molecules first.

    Parameters
    ----------
    adata
        Object with counts, ``n_obs`` x ``n_vars``; dense, CSR, CSC, dask or backed.
    batch_key
        Column of ``obs`` with the batch (technology, donor). The generator is conditioned on it.
    celltype_key
        Column of ``obs`` with the cell type. The generator is conditioned on it.

        **Do not test this label, or** ``batch_key``, **on the result.** The generator can learn a mean for each level. With a *random* half
        of 240 cells of one type as the label, 46 of 753 genes differed "significantly" between the halves.
        ``adata.uns[key_added]["conditioned_on"]`` records the labels.
    layer
        Layer with the counts. None reads ``X``, ``"raw"`` reads ``adata.raw``.
    rounding
        How decimals become counts (from SoupX, CellBender, STARsolo EM, alevin or RSEM). ``"nearest"`` rounds. ``"random"`` draws one of
        the two neighbouring whole numbers, with the value as the mean. None refuses decimals. Small rounding errors are always corrected.
        Normalised values are always refused.
    size_key
        Column of ``obs`` with library sizes over all genes, for an object with a subset of the genes.
    genes
        Impute only these genes: names, or a boolean column of ``var``. The context still uses all genes.
    key_added
        Name of the result.
    output
        ``"counts"``: expected molecules at the cell's own depth. ``"rate"``: expected molecules divided by the library size; over all genes
        of a cell they sum to about 1 (exactly with ``posterior=False``). ``"log1p"``: expected value of the result of
        ``sc.pp.normalize_total(target_sum=1e4)`` and ``sc.pp.log1p``. It is not the log of a mean, which would be biased.
    fill
        ``"all"`` writes the imputed value everywhere. ``"zeros"`` keeps the observed value of every non-zero entry (scIGANs).
        ``"expressed"`` leaves 0 in cells that do not express the gene: cells without a molecule and with a low predicted rate (*Notes*).
        Use it to plot a marker or to rank cells by it; cells without the gene are then equal. Even these cells have some molecules, so
        use ``"all"`` to score or to add up expected counts.
    sd
        Write standard deviations as well. False halves memory and file size; the imputed values are the same.
    dtype
        Type of the stored result. ``"float16"`` halves memory and file size and keeps three digits of values above 1e-4. It cannot hold
        ``output="rate"`` or numbers above 65504: such counts are refused; if only an imputed value is so high, the result stays float32,
        with a warning. Convert it before computing, also with scanpy: ``adata.layers[key_added].astype("float32")``.
    target_batch
        Impute every cell as if it came from this level of ``batch_key``; ``"average"`` takes the mean over the levels.
        Batch effects in the context stay. In ``tutorials/04_batches`` a medium effect was halved (share of variance 0.28 to 0.15), and a
        strong one hardly changed (0.66 to 0.61).
    posterior
        Combine the predicted rate with the cell's own count. The posterior mean (True) is about *this cell*, the rate (False) about *cells
        like this one*.
    random_state
        Seed or generator; None draws a new seed. The same seed gives the same result on the same device with as many threads.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar. None shows it in terminals and notebooks, unless ``scanpy.settings.verbosity`` is 0.
    save
        File for the trained model, for :func:`scimpute.tl.apply` on other cells. The format is safetensors, with genes, levels, parameters
        and version as JSON metadata. An earlier model is replaced; any other existing file is refused. If the model cannot be written, a
        warning says so; the result is in the object all the same.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or with ``copy=True`` the copy. It writes

    ``adata.layers[key_added]``
        Imputed values, dense, ``n_obs`` x ``n_vars``, of type ``dtype``; 0 for genes without a molecule. With ``genes`` they are a
        DataFrame in ``adata.obsm[key_added]`` instead.
    ``adata.layers[f"{key_added}_sd"]`` (or ``obsm``), unless ``sd=False``
        Standard deviation of every imputed value on the same scale. It combines the posterior of the entry (the prior with
        ``posterior=False``) with the spread over the repeats; ``"log1p"`` uses the delta method. Observed entries (``fill="zeros"``) and
        entries set to 0 (``fill="expressed"``) have one, too.
    ``adata.uns[key_added]``
        ``params``; ``history`` per repeat and epoch (``reconstruction`` in nats per removed molecule, ``loss_real`` L(x), ``loss_fake``
        L(Drop(G(x))), ``k``, ``M``, ``heldout`` in nats per held-out molecule); ``chosen``, the automatic choices with all candidates and
        their scores; ``conditioned_on``; ``heldout``, scores of gene mean, network and posterior; ``inverse_dispersion`` of every imputed
        gene, ``inverse_dispersion_slope`` and ``inverse_dispersion_spread`` (see *Notes*); ``stopped``; ``version``; ``seconds``;
        ``source``, a fingerprint of the counts: the number of ``molecules`` and a hash of each of the ``cells`` and ``genes``. With
        ``fill="expressed"`` also ``expressed_above``: the rate from which a cell expresses the gene, for every imputed gene; 0 if there is
        no such threshold.

    Other Parameters
    ----------------
    architecture
        ``"dense"``, or ``"conv"`` for the convolutional network of scIGANs.
    block_size
        Genes per block. For ``"conv"`` it is the square of a multiple of 4.
    n_repeats
        Number of random partitions of the genes.
    n_context, width, penalty, max_epochs
        Number of low-rank scores that every block reads, width of the hidden layers (maps for ``"conv"``), prior precision of the output
        weights, and length of the training. ``"auto"`` chooses them by held-out molecules, but for the width, which is 64. The
        convolutional network has fixed values.
    drop_quantile, drop_shape
        Percentile q (0 to 100) at which Drop keeps half of the entries, and steepness s around it. ``"auto"`` takes the percentage of
        zeros in the counts.
    gamma
        Diversity ratio of BEGAN, 0 to 1: the discriminator balances ``L(Drop(G(x)))`` at gamma times ``L(x)``.
    adversarial_weight, reconstruction_weight
        Weights of the two losses of the generator. One of them may be 0.
    batch_size
        Cells per minibatch. ``"auto"`` takes an eighth of the cells, but 32 to 128.
    learning_rate
        Peak learning rate of the one-cycle schedule.

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
    With :math:`x'` = log1p(CP10k) and :math:`G'` that of the imputed cell:

    * Drop: an entry is kept with probability :math:`\sigma(s (G' - \mathrm{percentile}(G', q)))`.
    * BEGAN :cite:p:`Berthelot2017`, eqs. 2 to 5: :math:`L(v) = \mathrm{mean}|v - D(v)|`, :math:`L_D = L(x') - k_t L(\mathrm{Drop}(G'))`,
      :math:`k_{t+1} = \mathrm{clip}(k_t + 0.001 (\gamma L(x') - L(\mathrm{Drop}(G'))), 0, 1)`,
      :math:`M = L(x') + |\gamma L(x') - L(\mathrm{Drop}(G'))|`; training stops early when neither M nor the held-out deviance improves.
    * Count splitting :cite:p:`Batson2019`: :math:`\sum_j t_i r_{ij} - \sum_j T_{ij} \log r_{ij}` with T the removed molecules and t
      their total.
    * Empirical Bayes: :math:`E[\lambda | x, \theta] = (x + \theta_{ij}) / (1 + \theta_{ij} / \mu_{ij})`, :math:`\mu_{ij} = r_{ij} l_i`,
      averaged over :math:`\log\theta_{ij} = \log\theta_j + \beta\log(\mu_{ij} / \bar\mu_j) + \tau z`, :math:`z` standard normal.
    * ``fill="expressed"`` splits the log rates of a gene in two. It takes the lower of two thresholds: the largest variance between the
      groups :cite:p:`Otsu1979`, and the best fit of two normals :cite:p:`Kittler1986`. The lower group gets zeros only if
      :math:`m_1 / d_1 > 5 (m_0 + 2) / d_0` and :math:`\bar r_1 > 2 \bar r_0`, with molecules m, depth d and mean rate of the cells in
      the upper (1) and the lower (0) group. ALRA :cite:p:`Linderman2022` had the idea to keep zeros.

    The method extends scIGANs :cite:p:`Xu2020`. The penalty keeps a gene with few molecules near its mean. Its posterior then depends on
    the mean and the cell's own count alone.

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
        raise ValueError(f"target_batch and fill={fill!r} exclude each other: observed counts belong to the cell's own batch")
    if target_batch is not None and batch_key is None:
        raise ValueError(f"target_batch={target_batch!r} needs batch_key")
