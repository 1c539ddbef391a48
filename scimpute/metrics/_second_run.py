"""An imputation made again of the molecules that are not hidden, so that it can be scored on those that are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd

from .. import _check, _device, _progress, _random, pp
from .._anndata import keys as _keys
from .._anndata.copies import with_all_genes
from .._anndata.obs import read_size
from .._anndata.read import matrix_of
from .._sparse import row_sums
from . import _replay, _thinned
from ._replay import Imputation

THIN = "thin"
"""What the object of a second run is thinned under."""


@dataclass(frozen=True)
class SecondRun:
    """Both parts of the molecules, and what was made of the first.

    Attributes
    ----------
    work
        An object with both parts under :data:`THIN`, and in ``layers["imputed"]`` the second run: 0 for genes that were not imputed.
    whole
        Both parts, of the genes with a molecule in the first.
    genes, columns
        Places of the imputed genes in the object ``(g,)``, and of those among them that are in ``whole``, there.
    """

    work: ad.AnnData
    whole: _thinned.Thinned
    genes: np.ndarray
    columns: np.ndarray


def impute_again(imputation: Imputation, frac: float, random_state: int | np.random.Generator, progress: _progress.Progress) -> SecondRun:
    """Hide molecules of what was imputed, as :func:`scimpute.pp.thin` does, and impute the others in the same way."""
    work = imputation.object_of(imputation.counts)
    pp.thin(work, frac, key_added=THIN, random_state=random_state)
    hidden = float(row_sums(matrix_of(work, _keys.test(THIN))).sum())
    if not hidden or not matrix_of(work, _keys.train(THIN)).nnz:
        raise ValueError(
            f"with frac={frac} all or none of the {int(imputation.counts.sum())} molecules would be hidden; nothing can be scored"
        )
    layers = {name: matrix_of(work, name) for name in (_keys.train(THIN), _keys.test(THIN))}
    size_key = imputation.params.get("size_key")
    if size_key is not None:
        # Less what is hidden, of which it would tell. No library is empty.
        size = read_size(work, size_key, imputation.counts, imputation.params.get("rounding"))
        size = size - row_sums(matrix_of(work, _keys.test(THIN)))
        sizes = pd.DataFrame({size_key: np.maximum(size, 1)}, index=work.obs_names)
        work = imputation.object_of(imputation.counts, sizes, without=size_key, layers=layers)
    whole = _thinned.read(work, THIN)
    genes = np.arange(work.n_vars) if imputation.genes is None else imputation.genes
    columns = pd.Index(whole.kept).get_indexer(genes)
    columns = columns[columns >= 0]
    if not whole.only(columns).test.nnz:
        raise ValueError(
            f"frac={frac}: none of the molecules of the imputed genes ({len(genes)}) was hidden, or none was left of them; nothing can be "
            "scored. Impute more genes, or those with more molecules"
        )
    found = imputation.run(work, _keys.train(THIN), progress=progress)
    if isinstance(found, pd.DataFrame):
        # In their places, so that they are scored at the depth of all genes.
        work = with_all_genes(work, found, genes, layers)
    return SecondRun(work, whole, genes, columns)


def second_runs(
    adata: ad.AnnData,
    keys: Sequence[str],
    by: str,
    frac: float,
    random_state: int | np.random.Generator | None,
    device: str,
    progress: bool | None,
) -> list[SecondRun]:
    """Imputations of the same counts, each made again of the same molecules; everything is checked before the first."""
    frac = _check.number("frac", frac, 0, 1, open_low=True, open_high=True)
    show = _progress.show_bar(progress)
    whole = isinstance(random_state, int | np.integer)
    seed = int(random_state) if whole else _random.seed(_random.generator(random_state))  # type: ignore[arg-type]
    where = str(_device.resolve(device))
    found = [_replay.read(adata, key, None, None, seed, where) for key in keys]
    first = found[0].counts
    for key, other in zip(keys, found, strict=True):
        if (other.counts != first).nnz:
            raise ValueError(f"{keys[0]!r} and {key!r} were imputed from different counts; score them one by one")
    for done, imputation in enumerate(found):
        imputation.n_planned, imputation.n_done = len(found), done
    with _progress.Progress(found[0].announced(by), show=show) as bar:
        return [impute_again(imputation, frac, seed, bar) for imputation in found]
