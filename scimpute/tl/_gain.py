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

    As :func:`scimpute.tl.pmi`, with a discriminator. It reads a part of the mask (``hint_rate``) and guesses which of the other entries are
    filled. The generator learns to mislead it (GAIN, Yoon et al. 2018; GAIN-GTEx, Viñas et al. 2021).

    Parameters
    ----------
    adata
        Samples in rows; log expression, not counts; missing values are NaN. Dense, CSR, CSC or backed.
    categorical_covariates, continuous_covariates
        One or more columns of ``obs``, such as tissue, cohort and sex; age. Each categorical covariate gets an embedding. Samples with the
        same level are expected to be similar. No value may be missing.
    layer
        Layer with log expression. None reads ``X``.
    mask_layer
        Layer that is True for observed values.
    missing
        ``"nan"``: NaN is missing, and so is False in ``mask_layer``; zeros are values. ``"zero"``: zeros are missing, too.
    empty_genes
        A gene without any observed value raises an error (``"error"``) or stays NaN (``"nan"``).
    max_missing
        Genes that are missing in a larger share of the samples are ignored; their gaps stay NaN.
    mode
        ``"inplace"`` fills this object; a tenth of its observed entries is used for choices. ``"inductive"`` trains a model for other
        samples (with ``save`` and :func:`scimpute.tl.apply`); a fifth of the samples is used for choices, with hidden entries. Both fill
        the object.
    variant
        ``"default"``, or for comparison ``"published"``: only the network, with the published architecture and schedule.
    n_models
        Networks in the ensemble. ``"auto"`` is 2, for ``"published"`` 1.
    n_layers, n_hidden, dropout, learning_rate, max_epochs
        The network and its training. ``"auto"`` is 2 layers of 256, 0.2, 0.001 and 600 minibatches. For ``"published"`` it is as published,
        with up to 1,000 epochs of 100 minibatches and early stopping.
    mask_rate
        In training the network reads a random fraction of the observed entries of a sample. This is the range of that fraction. ``"auto"``
        is 0.3 to 0.9. ``"published"`` reads all; with ``mode="inductive"`` it is validated with 0.5 to 0.9.
    supervised_weight
        Weight of the squared error relative to the adversarial loss (lambda).
    hint_rate
        Fraction of the mask that the discriminator reads, from 0 to below 1.
    batch_size
        Samples per minibatch.
    key_added
        Name of the result.
    random_state
        Seed or generator; None draws a new seed. The same seed gives the same result on the same device with as many threads.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar. None shows it in terminals and notebooks, unless ``scanpy.settings.verbosity`` is 0.
    save
        File for the trained model, safetensors with JSON metadata. **The default variant stores the filled expression of the training
        samples in it**, since it searches neighbours among them. The published one stores weights only. An earlier model is replaced; any
        other existing file is refused. If the model cannot be written, a warning says so; the result is in the object all the same.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or with ``copy=True`` the copy. It writes

    ``adata.layers[key_added]``
        Expression on the scale of the input, float32, dense, ``n_obs`` x ``n_vars``. Observed values are unchanged (as float32). If no
        observed value is negative, no filled one is.
    ``adata.layers[f"{key_added}_sd"]``
        Standard deviation of every filled value, 0 for observed ones. It is calibrated: 90% of hidden entries lie within 1.645 standard
        deviations.
    ``adata.uns[key_added]``
        ``params``; ``r2`` of every gene on hidden entries, a DataFrame that says which genes to trust; ``history`` per model and epoch;
        ``chosen``; ``network_share``, the mean weight of the networks relative to the linear part; ``calibration``; ``stopped``;
        ``version``; ``seconds``. With categorical covariates also ``embeddings``: a DataFrame for each, levels x dimensions. Levels with
        similar expression are near each other. They are principal coordinates of the effects in the linear part, in standard deviations
        of the genes (root mean square); in the published variant they are the embedding of the network. With ``max_missing`` also
        ``left_out``: the names of the ignored genes.

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
    GAIN :cite:p:`Yoon2018`, with covariates :cite:p:`Vinas2021`: the loss of the discriminator is the cross-entropy of the mask
    at entries without a hint. The loss of the generator is the same with flipped labels, plus ``supervised_weight`` times the squared
    error. That error is over the values that the generator read (published) or over the hidden ones (default).

    The default variant combines the network with a linear part, since linear methods win for most cohort sizes. Values are
    standardised per gene on observed training entries.

    * *Factor model*: variational PCA with covariates :cite:p:`Ilin2010` fills the reference once.
    * *Regression on samples*: a sample is a weighted sum of its 300 nearest other samples, fitted to its observed genes. The weights have
      normal priors, wider for samples with the same covariates. ``uns["gain"]["chosen"]`` holds the penalty (``ridge``) and the prior
      variance without a shared covariate (``min_weight``).
    * *Residual correlation*: the residuals of observed genes predict those of a few correlated genes.
    * *Network*: its weight for each gene is the best one on hidden entries (``network_share``).

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
