from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from ... import _check, _device, _files, _progress, _random
from ..._anndata import keys
from ..._anndata.copies import for_display
from ..._anndata.read import check_object
from ..._keywords import helpful
from .. import _replay
from . import figures, numbers, page, sections, verdict

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

_NOT_A_REPORT = "was not written by scimpute.metrics.report"
_ON_EMBEDDING = 3
"""Number of genes drawn on an embedding."""


@helpful
def report(
    adata: AnnData,
    key: str,
    *,
    layer: str | None = None,
    groupby: str | None = None,
    basis: str | None = None,
    frac: float = 0.9,
    n_splits: int = 5,
    n_labelled: int = 1,
    model: str | os.PathLike[str] | None = None,
    random_state: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress: bool | None = None,
    save: str | os.PathLike[str] = "report.html",
) -> dict[str, Any]:
    """Judge an imputation of your own data, on one HTML page that needs no other file and no network.

    The page begins with a verdict and its reasons. The next sections are: the run and its parameters; scores on hidden molecules; genes to
    believe; the null test; training curves; markers before and after; and when not to use the imputation. The scores have four baselines:
    the counts, the gene mean, the gene mean combined with the cell's own count, and kNN. Each section says how to read it and what a bad
    sign is.

    Parameters
    ----------
    adata
        Object with counts and their imputation by :func:`scimpute.tl.began`, :func:`scimpute.tl.spatial`, :func:`scimpute.tl.nmf`, or a
        model of these applied by :func:`scimpute.tl.apply`. It is not changed.
    key
        ``key_added`` of the imputation.
    layer
        Layer with the imputed counts, if you moved them since. None uses the recorded layer.
    groupby
        Column of ``obs`` with the groups for the markers. None uses the ``celltype_key`` of the imputation, or else k-means clusters of
        the raw counts.
    basis
        Embedding in ``obsm`` for plots of markers, with or without the leading ``X_``. None uses the positions of spots, or else a UMAP
        of the raw counts. Do not pass an embedding of imputed values.
    frac
        Fraction of the molecules that the imputation sees for the held-out scores.
    n_splits
        Number of random halves in :func:`scimpute.metrics.false_signal`. 0 omits this test.
    n_labelled
        Number of these halves that are also imputed with the half as a label; 0 omits this. Only ``tl.began`` takes a label.
    model
        File of the applied model, if you moved it since.
    random_state
        Seed of the hidden molecules, the halves, clusters and embedding; generator, or None for a fresh one. The imputation keeps its
        recorded seed.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show one progress bar for all imputations. None shows it in a terminal and in a notebook, unless
        ``scanpy.settings.verbosity`` is 0. The bar starts with the number of imputations.
    save
        File to write, in an existing folder. An earlier report is replaced; any other file is an error.

    Returns
    -------
    The numbers of the page:

    ``"verdict"``, ``"reasons"``
        A sentence; a DataFrame with ``kind`` (``"good"``, ``"care"``, ``"bad"``, or ``"note"``, which does not count) and ``reason``.
        One bad reason makes the sentence *Do not use this imputation*.
    ``"heldout"``
        DataFrame of :func:`scimpute.metrics.heldout` with rows ``"raw"``, ``"gene_mean"``, ``"own_count"`` (the gene mean combined with
        the cell's own count, without any other gene), ``"knn"`` and ``"imputed"``. The column ``lead`` is the lead of the imputation over
        a row, in nats per hidden molecule, and ``lead_se`` its standard error over cells. If only some genes were imputed, the scores
        cover these genes at the depth of all, without ``mse_log_renormalized``.
    ``"gene_trust"``
        DataFrame of :func:`scimpute.metrics.gene_trust`.
    ``"false_signal"``
        DataFrame of :func:`scimpute.metrics.false_signal`; None without this test.
    ``"markers"``
        DataFrame with ``group``, ``gene``, mean log1p(CP10k) in the group and in the other cells (``before_in``, ``before_out``,
        ``after_in``, ``after_out``), and ``trust``.

    Raises
    ------
    KeyError
        There is no such imputation, or the object has lost a column or table that the imputation used.
    ValueError
        The key is not an imputation of counts, or the counts are gone; an argument is out of its range.
    FileExistsError
        ``save`` exists and is not a report.
    FileNotFoundError, IsADirectoryError, PermissionError
        The folder or the applied model does not exist; ``save`` is a folder, or cannot be written.

    Notes
    -----
    The imputation runs once for the held-out scores. With ``n_splits`` above 0 it runs twice more for the null test, and with a label
    another ``n_labelled + 1`` times: **by default five times for tl.began and three times for others**, or once with ``n_splits=0``.
    Each run has the recorded parameters. Parameters that were "auto" are "auto" again, so that hidden molecules cannot influence them.
    ``target_batch`` is left out, because the molecules of a cell belong to its own batch. The scores use expected counts whatever
    ``output`` was, and ``fill="all"`` instead of ``"expressed"``. Hidden molecules are subtracted from the library sizes of a
    ``size_key``. In the null test, library sizes are sums.

    kNN is the sum of the counts of the 15 nearest cells (scikit-learn), scaled to the depth of the cell. The distance uses 30 principal
    components of log1p(CP10k) of the molecules that are not hidden.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.tl.began(adata)  # doctest: +SKIP
    >>> results = scimpute.metrics.report(adata, "began", save="report.html")  # doctest: +SKIP
    >>> print(results["verdict"])  # doctest: +SKIP
    """
    check_object(adata)
    path = _files.target("save", save, ours=_is_report, refusal=_NOT_A_REPORT)
    frac = _check.number("frac", frac, 0, 1, open_low=True, open_high=True)
    n_splits, n_labelled = _check.integer("n_splits", n_splits, 0), _check.integer("n_labelled", n_labelled, 0)
    show = _progress.show_bar(progress)
    rng = _random.generator(random_state)
    state = int(random_state) if isinstance(random_state, int | np.integer) else rng
    # Other libraries take seeds of at most 32 bits.
    seed = state if isinstance(state, int) and state < 2**32 else _random.seed(rng)
    imputation = _replay.read(adata, key, layer, model, seed, str(_device.resolve(device)))
    label = imputation.takes_label and n_labelled > 0
    testable = n_splits > 0 and numbers.untestable(imputation) is None
    imputation.n_planned = 1 + testable * (2 + label * (1 + min(n_labelled, n_splits)))
    with _progress.Progress(imputation.announced("metrics.report"), show=show) as bar:
        # Cheap steps that may fail come first.
        bar.phase("groups and embedding of the counts", (1 - _replay.RUNS) / 2)
        codes, names, column = numbers.groups(adata, imputation, groupby, seed)
        coordinates = numbers.embedding(adata, imputation, basis, seed)

        scores, trust = numbers.heldout(imputation, frac, state, seed, bar)
        null, why = numbers.null(imputation, n_splits, n_labelled, state, bar)
        sentence, reasons = verdict.verdict(scores, trust, null, imputation.columns, posterior=imputation.params.get("posterior", True))
        bar.phase("markers and page", (1 - _replay.RUNS) / 2)
        groups = numbers.markers(imputation, codes, names)
        markers, pictures = _before_and_after(adata, key, imputation, (codes, names, groups), trust, coordinates)

        arguments = list(inspect.signature(_function(imputation.method)).parameters)
        html = page.page(
            f"Report on the imputation {key!r}",
            sentence,
            reasons,
            {
                "What was run": sections.what_was_run(imputation, key, arguments),
                "Hidden molecules: is it better than simpler guesses?": sections.heldout(scores, frac, imputation),
                "Which genes to believe": sections.trust(trust),
                "The null test: what does it find where there is nothing?": sections.null(null, why, n_splits),
                "Training": sections.training(imputation),
                "Markers before and after": sections.markers(
                    markers, column, column is not None and column in imputation.columns.values(), pictures
                ),
                "When not to use it": sections.when_not(),
            },
        )
        # Minutes have passed since the first check of the path, so the file is checked again.
        _files.replace_file(path, lambda temporary: temporary.write_text(html, encoding="utf-8"), ours=_is_report, refusal=_NOT_A_REPORT)
    logg.info(f"report: {sentence} The page is {str(path)!r}")
    return {"verdict": sentence, "reasons": reasons, "heldout": scores, "gene_trust": trust, "false_signal": null, "markers": markers}


def _function(method: str) -> Any:
    from ... import tl

    return getattr(tl, method)


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1000)
    return start.startswith(b"<!DOCTYPE html>") and page.MARKER.encode() in start


def _before_and_after(
    adata: AnnData,
    key: str,
    imputation: _replay.Imputation,
    grouped: tuple[np.ndarray, list[str], dict[str, list[int]]],
    trust: pd.DataFrame,
    coordinates: tuple[np.ndarray, str, str],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of markers, and their figures. ``grouped`` has codes and names of the groups and their markers."""
    from ...pl import _read

    (codes, names, groups), (points, basis, where) = grouped, coordinates
    places = list(dict.fromkeys(place for genes_of_group in groups.values() for place in genes_of_group))
    columns = ["group", "gene", "before_in", "before_out", "after_in", "after_out", "trust"]
    if not places:
        return pd.DataFrame(columns=columns), {}
    params = {name: value for name, value in imputation.params.items() if name != "layer"}
    record = {keys.METHOD: imputation.method, "params": params}
    display = for_display(adata, key, imputation.counts, imputation.surroundings, imputation.genes, record, (basis, points))
    genes = list(display.var_names[places])
    before, after = _read.before_and_after(display, genes, key, None)
    trust_of = dict(zip(range(adata.n_vars) if imputation.genes is None else imputation.genes, trust["trust"], strict=True))
    rows: list[list[Any]] = []
    for group, genes_of_group in groups.items():
        inside = codes == names.index(group)
        for place in genes_of_group:
            values = (when[hit, places.index(place)].mean() for when in (before, after) for hit in (inside, (codes >= 0) & ~inside))
            rows.append([group, str(imputation.names[place]), *values, trust_of[place]])
    tables = [figures.means(values, codes, names, groups).set_axis(genes, axis=1) for values in (before, after)]
    best = list(dict.fromkeys(display.var_names[genes_of_group[0]] for genes_of_group in groups.values()))[:_ON_EMBEDDING]
    pictures: dict[str, Any] = {
        "heatmap": figures.heatmap(*tables),
        "embedding": figures.embedding(display, best, key, basis),
        "genes": ", ".join(best),
        "where": where,
    }
    return pd.DataFrame(rows, columns=columns), pictures
