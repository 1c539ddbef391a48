"""Second runs: hide some molecules, repeat the imputation on the others, and score it on the hidden ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd

from .. import _check, _device, _progress, _random, pp
from .._anndata import keys
from .._anndata.copies import with_all_genes
from .._anndata.obs import read_size
from .._anndata.read import matrix_of
from .._sparse import row_sums
from . import _replay, _thinned
from ._replay import Imputation

THIN = "thin"
"""``key_added`` of `pp.thin` in the object of a second run."""


@dataclass(frozen=True)
class SecondRun:
    """Kept and hidden molecules, and the imputation of the kept ones.

    Attributes
    ----------
    work
        An object with both parts under :data:`THIN`. ``layers["imputed"]`` has the second run, 0 for genes that were not imputed.
    whole
        Both parts, of the genes with a kept molecule.
    genes, columns
        Places of the imputed genes in the object, ``(g,)``, and in ``whole`` if they have a kept molecule.
    """

    work: ad.AnnData
    whole: _thinned.Thinned
    genes: np.ndarray
    columns: np.ndarray


def impute_again(imputation: Imputation, frac: float, random_state: int | np.random.Generator, progress: _progress.Progress) -> SecondRun:
    """Hide molecules of the imputed counts with :func:`scimpute.pp.thin`, and impute the others in the same way."""
    work = imputation.object_of(imputation.counts)
    pp.thin(work, frac, key_added=THIN, random_state=random_state)
    hidden = float(row_sums(matrix_of(work, keys.test(THIN))).sum())
    if not hidden or not matrix_of(work, keys.train(THIN)).nnz:
        raise ValueError(
            f"with frac={frac} all or none of the {int(imputation.counts.sum())} molecules would be hidden; nothing can be scored"
        )
    layers = {name: matrix_of(work, name) for name in (keys.train(THIN), keys.test(THIN))}
    size_key = imputation.params.get("size_key")
    if size_key is not None:
        # Library sizes would leak the number of hidden molecules, so it is subtracted. No library is empty.
        size = read_size(work, size_key, imputation.counts, imputation.params.get("rounding"))
        size = size - row_sums(matrix_of(work, keys.test(THIN)))
        sizes = pd.DataFrame({size_key: np.maximum(size, 1)}, index=work.obs_names)
        work = imputation.object_of(imputation.counts, sizes, without=size_key, layers=layers)
    whole = _thinned.read(work, THIN)
    genes = np.arange(work.n_vars) if imputation.genes is None else imputation.genes
    columns = pd.Index(whole.kept).get_indexer(genes)
    columns = columns[columns >= 0]
    if not whole.only(columns).test.nnz:
        raise ValueError(
            f"frac={frac}: the {len(genes)} imputed genes have no hidden molecule, or no other; nothing can be scored. Impute more genes, "
            "or genes with more molecules"
        )
    values = imputation.run(work, keys.train(THIN), progress=progress)
    if isinstance(values, pd.DataFrame):
        # Some genes are put at their places among all, to be scored at the depth of all genes.
        work = with_all_genes(work, values, genes, layers)
    return SecondRun(work, whole, genes, columns)


def second_runs(
    adata: ad.AnnData,
    names: Sequence[str],
    by: str,
    frac: float,
    random_state: int | np.random.Generator | None,
    device: str,
    progress: bool | None,
) -> list[SecondRun]:
    """Repeat imputations of the same counts, each on the same molecules. Everything is checked before the first run.

    ``names`` are keys of imputations; ``by`` is the public function that asks for the runs.
    """
    frac = _check.number("frac", frac, 0, 1, open_low=True, open_high=True)
    show = _progress.show_bar(progress)
    is_seed = isinstance(random_state, int | np.integer)
    seed = int(random_state) if is_seed else _random.seed(_random.generator(random_state))  # type: ignore[arg-type]
    where = str(_device.resolve(device))
    imputations = [_replay.read(adata, name, None, None, seed, where) for name in names]
    first = imputations[0].counts
    for name, other in zip(names, imputations, strict=True):
        if (other.counts != first).nnz:
            raise ValueError(f"{names[0]!r} and {name!r} were imputed from different counts; score them one by one")
    for done, imputation in enumerate(imputations):
        imputation.n_planned, imputation.n_done = len(imputations), done
    with _progress.Progress(imputations[0].announced(by), show=show) as bar:
        return [impute_again(imputation, frac, seed, bar) for imputation in imputations]
