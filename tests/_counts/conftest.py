"""What the tests of a run on plain arrays share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scimpute._counts.molecules import MoleculeSplit


@pytest.fixture
def data_of() -> Callable[..., MoleculeSplit]:
    """``data_of(adata, genes=None, outside=0.0, seed=0)``: its counts split, with its batches and cell types as labels."""

    def split(adata: Any, *, genes: Any = None, outside: Any = 0.0, seed: int = 0) -> MoleculeSplit:
        counts = sp.csr_matrix(adata.X, dtype=np.float32)
        size = np.asarray(counts.sum(1), dtype=np.float64).ravel() + outside
        labels = tuple(adata.obs[name].cat.codes.to_numpy().astype(np.int64) for name in ("batch", "cell_type"))
        genes = np.arange(adata.n_vars) if genes is None else genes
        return MoleculeSplit.prepare(counts, size, labels, genes, torch.device("cpu"), np.random.default_rng(seed))

    return split
