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

_NO_report = "was not written by scimpute.metrics.report"
_ON_EMBEDDING = 3
"""Genes that are shown on an embedding."""


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

    The page begins with a verdict and its reasons. Then: what was run; scores on molecules that are hidden for this purpose, beside the
    counts, the gene mean (as it is, and drawn to the cell's own count) and kNN; which genes to believe; what is found where there is
    nothing; training curves; markers before and after; and when not to use the imputation. Each part says how it is read and what would be
    a bad sign.

    Parameters
    ----------
    adata
        Object with counts and their imputation by :func:`scimpute.tl.began`, :func:`scimpute.tl.spatial`, :func:`scimpute.tl.nmf`, or a
        model of these applied by :func:`scimpute.tl.apply`. It is not changed.
    key
        ``key_added`` of the imputation.
    layer
        Layer with the counts that were imputed, where they have been moved since; the place that was recorded where None.
    groupby
        Column of ``obs`` with the groups whose markers are shown; where None the ``celltype_key`` of the imputation, or else k-means
        clusters of the raw counts.
    basis
        Embedding in ``obsm`` to show markers on, with or without the leading ``X_``; where None the positions of spots, or else a UMAP of
        the raw counts. Give none that was made of imputed values.
    frac
        Fraction of the molecules that the imputation is given for the held-out scores.
    n_splits
        Number of random halves in :func:`scimpute.metrics.false_signal`. 0 leaves this test out.
    n_labelled
        Number of these halves that are also given to the imputation as a label; 0 leaves it out. Only ``tl.began`` takes a label.
    model
        File of the model that was applied, where it has been moved since.
    random_state
        Seed of the hidden molecules, the halves, clusters and embedding; generator, or None for a fresh one. The imputation has the seed
        that was recorded of it.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    progress
        Show a progress bar, of all imputations together. None shows it in a terminal and in a notebook, unless
        ``scanpy.settings.verbosity`` is 0. How many imputations there will be is said first.
    save
        File to write, in a folder that exists. An earlier report is replaced; any other file is refused.

    Returns
    -------
    The numbers of the page:

    ``"verdict"``, ``"reasons"``
        A sentence; a DataFrame with ``kind`` (``"good"``, ``"care"``, ``"bad"``, or ``"note"``, which does not count) and ``reason``.
        One that is bad makes it *Do not use this imputation*.
    ``"heldout"``
        DataFrame of :func:`scimpute.metrics.heldout`, rows ``"raw"``, ``"gene_mean"``, ``"own_count"`` (the gene mean drawn to the cell's
        own count, which knows of no other gene), ``"knn"`` and ``"imputed"``, with ``lead``, the nats per hidden molecule by which the
        imputation is ahead of a row, and ``lead_se``, its standard error over cells. With ``genes=`` of these genes, at the depth of all,
        and without ``mse_log_renormalized``.
    ``"gene_trust"``
        DataFrame of :func:`scimpute.metrics.gene_trust`.
    ``"false_signal"``
        DataFrame of :func:`scimpute.metrics.false_signal`; None where it was left out.
    ``"markers"``
        DataFrame with ``group``, ``gene``, mean log1p(CP10k) in the group and in the other cells (``before_in``, ``before_out``,
        ``after_in``, ``after_out``), and ``trust``.

    Raises
    ------
    KeyError
        There is no such imputation, or what it was told is not in the object any more.
    ValueError
        The key is of something else than counts, or no counts are where they were; an argument is out of its range.
    FileExistsError
        There is a file under this name which is no report.
    FileNotFoundError, IsADirectoryError, PermissionError
        The folder, or the model that was applied, does not exist; ``save`` is a folder, or cannot be written.

    Notes
    -----
    The imputation is run once for the held-out scores and, where ``n_splits`` is not 0, twice for the null test, and ``n_labelled + 1``
    times more with a label: **by default five times for tl.began and three times for others**, or once with ``n_splits=0``. Every run
    has the parameters that were recorded; what was left to the data is left to them again, so that hidden molecules have no say.
    ``target_batch`` is left out, as the molecules of a cell are of its own batch, and expected counts are scored whatever
    ``output`` was, with ``fill="all"`` in the place of ``"expressed"``. Where there was a ``size_key``, hidden molecules are taken off
    these library sizes, and in the null test library sizes are sums.

    kNN is the sum of the counts of the 15 nearest cells (scikit-learn) in 30 principal components of log1p(CP10k) of what is
    not hidden, at the depth of the cell.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_counts()
    >>> scimpute.tl.began(adata)  # doctest: +SKIP
    >>> found = scimpute.metrics.report(adata, "began", save="report.html")  # doctest: +SKIP
    >>> print(found["verdict"])  # doctest: +SKIP
    """
    check_object(adata)
    path = _files.target("save", save, ours=_is_report, refusal=_NO_report)
    frac = _check.number("frac", frac, 0, 1, open_low=True, open_high=True)
    n_splits, n_labelled = _check.integer("n_splits", n_splits, 0), _check.integer("n_labelled", n_labelled, 0)
    show = _progress.show_bar(progress)
    rng = _random.generator(random_state)
    state = int(random_state) if isinstance(random_state, int | np.integer) else rng
    # Other libraries take no longer seed.
    seed = state if isinstance(state, int) and state < 2**32 else _random.seed(rng)
    imputation = _replay.read(adata, key, layer, model, seed, str(_device.resolve(device)))
    label = imputation.takes_label and n_labelled > 0
    testable = n_splits > 0 and numbers.untestable(imputation) is None
    imputation.n_planned = 1 + testable * (2 + label * (1 + min(n_labelled, n_splits)))
    with _progress.Progress(imputation.announced("metrics.report"), show=show) as bar:
        # What is cheap and may be refused comes first.
        bar.phase("groups and embedding of the counts", (1 - _replay.RUNS) / 2)
        codes, names, column = numbers.groups(adata, imputation, groupby, seed)
        drawn_on = numbers.embedding(adata, imputation, basis, seed)

        scores, trust = numbers.heldout(imputation, frac, state, seed, bar)
        null, why = numbers.null(imputation, n_splits, n_labelled, state, bar)
        sentence, reasons = verdict.verdict(scores, trust, null, imputation.columns, posterior=imputation.params.get("posterior", True))
        bar.phase("markers and page", (1 - _replay.RUNS) / 2)
        groups = numbers.markers(imputation, codes, names)
        markers, shown = _before_and_after(adata, key, imputation, (codes, names, groups), trust, drawn_on)

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
                    markers, column, column is not None and column in imputation.columns.values(), shown
                ),
                "When not to use it": sections.when_not(),
            },
        )
        # Minutes have passed since it was looked at what is there.
        _files.replace_file(path, lambda temporary: temporary.write_text(html, encoding="utf-8"), ours=_is_report, refusal=_NO_report)
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
    drawn_on: tuple[np.ndarray, str, str],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of markers, and their figures."""
    from ...pl import _read

    (codes, names, groups), (points, basis, where) = grouped, drawn_on
    places = list(dict.fromkeys(place for found in groups.values() for place in found))
    columns = ["group", "gene", "before_in", "before_out", "after_in", "after_out", "trust"]
    if not places:
        return pd.DataFrame(columns=columns), {}
    params = {name: value for name, value in imputation.params.items() if name != "layer"}
    record = {keys.METHOD: imputation.method, "params": params}
    shown = for_display(adata, key, imputation.counts, imputation.surroundings, imputation.genes, record, (basis, points))
    genes = list(shown.var_names[places])
    before, after = _read.before_and_after(shown, genes, key, None)
    believed = dict(zip(range(adata.n_vars) if imputation.genes is None else imputation.genes, trust["trust"], strict=True))
    rows: list[list[Any]] = []
    for group, found in groups.items():
        inside = codes == names.index(group)
        for place in found:
            values = (when[hit, places.index(place)].mean() for when in (before, after) for hit in (inside, (codes >= 0) & ~inside))
            rows.append([group, str(imputation.names[place]), *values, believed[place]])
    tables = [figures.means(values, codes, names, groups).set_axis(genes, axis=1) for values in (before, after)]
    some = list(dict.fromkeys(shown.var_names[found[0]] for found in groups.values()))[:_ON_EMBEDDING]
    drawn: dict[str, Any] = {
        "heatmap": figures.heatmap(*tables),
        "embedding": figures.embedding(shown, some, key, basis),
        "genes": ", ".join(some),
        "where": where,
    }
    return pd.DataFrame(rows, columns=columns), drawn
