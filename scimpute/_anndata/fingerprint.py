"""A fingerprint of a matrix of counts, by which it is known again in another place, reordered or cut (numpy and scipy only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._sparse import CACHED


def fingerprint(counts: sp.csr_matrix) -> dict[str, Any]:
    """Number of molecules, and a hash for every cell and every gene.

    A hash is of the values alone: of which cell or gene they are, and in which order, does not matter.
    """
    mixed = sp.csr_matrix((_mixed(counts.data), counts.indices, counts.indptr), shape=counts.shape)
    return {
        "molecules": float(counts.data.sum(dtype=np.float64)),
        "cells": mixed @ np.ones(counts.shape[1], np.uint64),
        "genes": mixed.T @ np.ones(counts.shape[0], np.uint64),
    }


def is_same(counts: sp.csr_matrix, known: Mapping[str, Any]) -> bool | None:
    """Whether these are the counts of a fingerprint, or some of the cells or of the genes; None where both were cut: nobody can tell."""
    cells, genes = np.asarray(known["cells"]), np.asarray(known["genes"])
    all_cells, all_genes = counts.shape[0] == len(cells), counts.shape[1] == len(genes)
    if not (all_cells or all_genes):
        return None
    if all_cells and all_genes and counts.data.sum(dtype=np.float64) != float(known["molecules"]):
        return False
    found = fingerprint(counts)
    return (not all_genes or _among(found["cells"], cells)) and (not all_cells or _among(found["genes"], genes))


def _among(some: np.ndarray, every: np.ndarray) -> bool:
    """Whether all are there, each as often: of zeros and ones a hash says no more than how many ones there are."""
    (values, n), (known, n_known) = (np.unique(hashes, return_counts=True) for hashes in (some, every))
    place = np.searchsorted(known, values).clip(max=len(known) - 1)
    return bool(((known[place] == values) & (n <= n_known[place])).all())


def _mixed(values: np.ndarray) -> np.ndarray:
    """A number of 64 bits for every value (splitmix64), 0 for none of them; sums of these wrap around."""
    found = np.empty(len(values), np.uint64)
    for start in range(0, len(values), CACHED):
        part = slice(start, start + CACHED)
        bits = values[part].astype(np.float32).view(np.uint32).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        found[part] = bits ^ (bits >> np.uint64(31))
    return found
