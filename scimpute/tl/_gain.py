from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .._keywords import helpful
from ._bulk import impute

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData


@helpful
def gain(
    adata: AnnData,
    *,
    categorical_covariates: str | Sequence[str] = (),
    continuous_covariates: str | Sequence[str] = (),
    layer: str | None = None,
    mask_layer: str | None = None,
    missing: Literal["nan", "zero"] = "nan",
    empty_genes: Literal["error", "nan"] = "error",
    max_missing: float = 1.0,
    mode: Literal["inplace", "inductive"] = "inplace",
    variant: Literal["default", "published"] = "default",
    mask_rate: tuple[float, float] | Literal["auto"] = "auto",
    supervised_weight: float = 1.0,
    hint_rate: float = 0.5,
    n_models: int | Literal["auto"] = "auto",
    n_layers: int | Literal["auto"] = "auto",
    n_hidden: int | Literal["auto"] = "auto",
    dropout: float | Literal["auto"] = "auto",
    max_epochs: int | Literal["auto"] = "auto",
    batch_size: int = 32,
    learning_rate: float | Literal["auto"] = "auto",
    key_added: str = "gain",
    random_state: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Fill missing bulk expression by a generative adversarial imputation network with covariates.

    As :func:`scimpute.tl.pmi`, with an adversary: a discriminator that is told a part of the mask (``hint_rate``) guesses which of the
    other entries were filled in, and the generator learns to deceive it (GAIN, Yoon et al. 2018; GAIN-GTEx, Viñas et al. 2021).

    Parameters
    ----------
    adata
        Samples in rows, log expression (not counts), missing values NaN; dense, CSR, CSC or backed.
    categorical_covariates, continuous_covariates
        Columns of ``obs`` (one name or several): tissue, cohort, sex; age. Each categorical one gets an embedding, and samples that
        share its level are believed to be alike. No sample may lack one.
    layer
        Layer with log expression; ``X`` where None.
    mask_layer
        Layer that is True where a value was observed.
    missing
        ``"nan"``: missing is NaN, and False in ``mask_layer``; zeros are values. ``"zero"``: zeros are missing, too.
    empty_genes
        What to do with a gene that no sample has: ``"error"``, or ``"nan"`` to leave it missing.
    max_missing
        Genes that are missing in a larger share of the samples are left alone: nothing is learnt from them, and their gaps stay NaN.
    mode
        ``"inplace"``: fill this object; choices are made on a tenth of its observed entries. ``"inductive"``: train a model for
        other samples (with ``save`` and :func:`scimpute.tl.apply`); choices are made on a fifth of the samples, shown in part.
        The object is filled in either case.
    variant
        ``"default"``, or ``"published"``: the network alone with the architecture and schedule of the source, for comparison.
    n_models
        Networks in the ensemble; ``"auto"``: 2, published 1.
    n_layers, n_hidden, dropout, learning_rate, max_epochs
        The network and its training. ``"auto"``: 2 layers of 256, 0.2, 0.001, 600 minibatches; or as published, with up to
        1,000 epochs of 100 minibatches and early stopping.
    mask_rate
        Range of the fraction of its observed entries that the network is shown of a sample while it trains; ``"auto"``: 0.3 to
        0.9. The published variant hides none; with ``mode="inductive"`` it is validated at these (0.5 to 0.9).
    supervised_weight
        Weight of the squared error beside the adversary (lambda).
    hint_rate
        Fraction of the mask the discriminator is told, 0 to below 1.
    batch_size
        Samples per minibatch.
    key_added
        Name of the result.
    random_state
        Seed, generator, or None for a fresh one. Same seed, same result on the same device with the same number of threads.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar. None shows it in a terminal and in a notebook, unless ``scanpy.settings.verbosity`` is 0.
    save
        File for the trained model: safetensors with JSON metadata. **The default variant keeps the filled reference expression in
        it**, as its neighbours are looked for there; the published one keeps weights only.
        An earlier model is replaced, any other file is refused. Where it cannot be written in the end, a warning says so, and the result
        is in the object all the same.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy with ``copy=True``. Written are

    ``adata.layers[key_added]``
        Expression on the scale of the input, float32, dense, ``n_obs`` x ``n_vars``. Observed values are bit-identical (as float32).
        Where none of them is negative, none is filled in.
    ``adata.layers[f"{key_added}_sd"]``
        Standard deviation of every filled value, 0 where observed; scaled so that 90% of hidden entries lie within 1.645 of it.
    ``adata.uns[key_added]``
        ``params``; ``r2`` per gene on hidden entries (a DataFrame: which genes to trust); ``history`` per model and epoch; ``chosen``;
        ``network_share``, the mean weight of the networks beside the linear part; ``calibration``; ``stopped``; ``version``; ``seconds``.
        With categorical covariates, ``embeddings``: for each of them a DataFrame, levels x dimensions, in which levels of like
        expression are near each other. They are principal coordinates of the effects that the linear part has learnt, in standard
        deviations of the genes (root mean square); in the published variant the embedding of the network. With ``max_missing``,
        ``left_out``: the names of the genes that were left alone.

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
    GAIN :cite:p:`Yoon2018`, with covariates :cite:p:`Vinas2021`: the discriminator's loss is the cross-entropy of the mask where no
    hint was given; the generator's the same with the answers turned round, plus ``supervised_weight`` times the squared error. In the
    published variant that error is over the values the generator was shown, in the default over values it was not.

    The default variant joins the network to a linear part, because at the size of most cohorts linear methods win. Values are
    standardised per gene on observed training entries.

    * *Factor model*: variational PCA with covariates :cite:p:`Ilin2010` fills the reference once.
    * *Regression on samples*: a sample is the weighted sum of its 300 nearest other samples that fits its observed genes best. The weights
      have normal priors, wider for samples that share its covariates. ``uns["gain"]["chosen"]`` holds the penalty (``ridge``) and the prior
      variance without a shared covariate (``min_weight``).
    * *Residual correlation*: the residuals of the observed genes predict those of their few correlated genes.
    * *Network*: gets, for each gene, the weight that helps on hidden entries (``network_share``: 0 is none).

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_bulk()
    >>> scimpute.pp.hide(adata, of="all")
    >>> scimpute.tl.gain(adata, layer="hidden", categorical_covariates=["tissue", "sex"], continuous_covariates="age")  # doctest: +SKIP
    >>> scimpute.metrics.recovery(adata, "gain")  # doctest: +SKIP
    """
    return impute(
        adata,
        "gain",
        save=save,
        copy=copy,
        progress=progress,
        categorical_covariates=categorical_covariates,
        continuous_covariates=continuous_covariates,
        layer=layer,
        mask_layer=mask_layer,
        missing=missing,
        empty_genes=empty_genes,
        max_missing=max_missing,
        mode=mode,
        variant=variant,
        mask_rate=mask_rate,
        supervised_weight=supervised_weight,
        hint_rate=hint_rate,
        n_models=n_models,
        n_layers=n_layers,
        n_hidden=n_hidden,
        dropout=dropout,
        max_epochs=max_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        key_added=key_added,
        random_state=random_state,
        device=device,
    )
