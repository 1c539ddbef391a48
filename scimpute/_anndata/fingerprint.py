"""Fingerprint of a count matrix. It recognises these counts in another layer, reordered or subset (numpy and scipy only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._sparse import CACHED_ENTRIES


def fingerprint(counts: sp.csr_matrix) -> dict[str, Any]:
    """Number of molecules, and a hash for every cell and every gene.

    Hashes depend on the values only, not on names or on the order of cells and genes.
    """
    hashes = sp.csr_matrix((_hash_values(counts.data), counts.indices, counts.indptr), shape=counts.shape)
    return {
        "molecules": float(counts.data.sum(dtype=np.float64)),
        "cells": hashes @ np.ones(counts.shape[1], np.uint64),
        "genes": hashes.T @ np.ones(counts.shape[0], np.uint64),
    }


def is_same(counts: sp.csr_matrix, stored: Mapping[str, Any]) -> bool | None:
    """Whether the stored fingerprint is from these counts, or from a superset of their cells or of their genes.

    None if both cells and genes were subset: then the hashes cannot be compared.
    """
    cells, genes = np.asarray(stored["cells"]), np.asarray(stored["genes"])
    all_cells, all_genes = counts.shape[0] == len(cells), counts.shape[1] == len(genes)
    if not (all_cells or all_genes):
        return None
    if all_cells and all_genes and counts.data.sum(dtype=np.float64) != float(stored["molecules"]):
        return False
    hashes = fingerprint(counts)
    return (not all_genes or _contains(cells, hashes["cells"])) and (not all_cells or _contains(genes, hashes["genes"]))


def _contains(hashes: np.ndarray, part: np.ndarray) -> bool:
    """Whether ``hashes`` has every hash of ``part`` at least as often. Cells that hold only zeros and ones often share a hash."""
    (all_values, n_all), (values, n) = (np.unique(array, return_counts=True) for array in (hashes, part))
    place = np.searchsorted(all_values, values).clip(max=len(all_values) - 1)
    return bool(((all_values[place] == values) & (n <= n_all[place])).all())


def _hash_values(values: np.ndarray) -> np.ndarray:
    """A 64-bit number for every value (splitmix64). Sums of these numbers wrap around. Entries that are not stored count as 0."""
    hashes = np.empty(len(values), np.uint64)
    for start in range(0, len(values), CACHED_ENTRIES):
        part = slice(start, start + CACHED_ENTRIES)
        bits = values[part].astype(np.float32).view(np.uint32).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        hashes[part] = bits ^ (bits >> np.uint64(31))
    return hashes
