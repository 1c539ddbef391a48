"""Reads the inputs of a count method from an object, as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .._space.side import SideInformation
from .counts import read_source
from .obs import Categorical, check_columns, read_genes, read_label, read_size
from .sections import one_section, read_sections
from .side import read_side

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

MIN_CELLS = 10


@dataclass(frozen=True)
class Inputs:
    """Counts, library sizes and genes.

    Attributes
    ----------
    counts
        Canonical CSR float32, ``(n, g)``. They share their buffers with the object, so nobody may change them.
    size
        Library sizes, ``(n,)``.
    genes, imputed
        Names of all genes, and of the imputed genes.
    columns
        Indices of the imputed genes in ``genes``, ``(k,)``.
    in_table
        Whether the caller chose genes, so that the result is a table.
    source
        Fingerprint of the counts, which recognises them later.
    """

    counts: sp.csr_matrix
    size: np.ndarray
    genes: list[str]
    imputed: list[str]
    columns: np.ndarray
    in_table: bool
    source: dict[str, Any]


class CountRequest(Protocol):
    """The parameters of :func:`scimpute.tl.began` that say which counts to read."""

    @property
    def method(self) -> str: ...
    @property
    def layer(self) -> str | None: ...
    @property
    def rounding(self) -> str | None: ...
    @property
    def size_key(self) -> str | None: ...
    @property
    def genes(self) -> Any: ...


def read_inputs(adata: AnnData, request: CountRequest, rng: np.random.Generator, *, unit: str, min_genes: int) -> Inputs:
    """Counts, library sizes and the genes to impute, all checked. ``unit`` is the method's word for a row, such as "cells"."""
    counts, source = read_source(adata, request.layer, request.rounding, rng)
    if adata.n_vars < min_genes:
        raise ValueError(f"tl.{request.method} needs at least {min_genes} genes, got {adata.n_vars}")
    if adata.n_obs < MIN_CELLS:
        raise ValueError(f"tl.{request.method} needs at least {MIN_CELLS} {unit}, got {adata.n_obs}")
    size = read_size(adata, request.size_key, counts, request.rounding)
    chosen = read_genes(adata, request.genes)
    if chosen is not None:
        check_columns(adata, adata.var_names[chosen])
    columns = np.arange(adata.n_vars) if chosen is None else chosen
    names = list(map(str, adata.var_names))
    return Inputs(counts, size, names, [names[i] for i in columns], columns, chosen is not None, source)


@dataclass(frozen=True)
class Conditions:
    """Labels and side information that the network is conditioned on.

    Attributes
    ----------
    labels
        Labels by the name of their argument.
    sections
        The section of every spot.
    side
        Positions, neighbours and images of the spots.
    single_levels
        For labels with a single level: a list with this level, by the name of the argument. The network ignores these labels.
    model_arrays
        Arrays that a saved model needs to read the side information again.
    """

    labels: dict[str, Categorical]
    sections: Categorical | None = None
    side: SideInformation | None = None
    single_levels: dict[str, list[str]] = field(default_factory=dict)
    model_arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def codes(self) -> tuple[np.ndarray, ...]:
        return tuple(label.codes for label in self.labels.values())

    @property
    def levels(self) -> dict[str, list[str]]:
        return {name: label.levels for name, label in self.labels.items()}

    def record(self) -> dict[str, Any]:
        """The entry ``conditioned_on`` of ``uns``: column and levels of each label."""
        return {name: {"column": label.column, "levels": label.levels} for name, label in self.labels.items()}


@dataclass(frozen=True)
class CellReader:
    """Reads labels of cells from columns of ``obs``; ``params`` has the column of each argument."""

    params: Mapping[str, str | None]
    unit = "cells"
    use_off_tissue = "trained on"
    """How the method uses spots that are not on the tissue; for a warning."""
    memory_remedy = "impute fewer genes with genes=, or train on some cells with save= and impute all in parts with tl.apply"
    """What the user can do if the result does not fit into memory."""

    def read(self, adata: AnnData) -> Conditions:
        """The labels. A column with a single level is no label."""
        labels = {name: read_label(adata, column, name) for name, column in self.params.items() if column is not None}
        single_levels = {name: [str(adata.obs[self.params[name]].iloc[0])] for name, label in labels.items() if label is None}
        return Conditions({name: label for name, label in labels.items() if label is not None}, single_levels=single_levels)

    def with_side(self, adata: AnnData, conditions: Conditions) -> Conditions:
        """Unchanged conditions: cells have no side information."""
        return conditions


@dataclass(frozen=True)
class SpotReader:
    """Reads the section of every spot, and its position, neighbours and image.

    Attributes
    ----------
    params
        Checked parameters of :func:`scimpute.tl.spatial` that say what to read.
    conditioned
        Whether the network is conditioned on the section.
    """

    params: Mapping[str, Any]
    conditioned: bool
    unit = "spots"
    memory_remedy = "impute fewer genes with genes="

    @property
    def _ignores_neighbours(self) -> bool:
        """Whether the method uses neither neighbours nor sections."""
        return not self.conditioned and not self.params["spatial_weight"]

    @property
    def use_off_tissue(self) -> str:
        return "trained on" if self._ignores_neighbours else "trained on, and are neighbours of the others"

    def read(self, adata: AnnData) -> Conditions:
        """The sections. They are a label if there are several and the network is conditioned on them."""
        sections = one_section(adata) if self._ignores_neighbours else read_sections(adata, self.params["library_key"])
        if not self.conditioned or len(sections.levels) < 2:
            return Conditions({}, sections)
        return Conditions({"library_key": sections}, sections)

    def with_side(self, adata: AnnData, conditions: Conditions) -> Conditions:
        """Conditions with positions, neighbours and images. These are read apart, because they may take more memory than the counts."""
        sections = conditions.sections
        assert sections is not None, "spots have a section"
        side, model_arrays = read_side(adata, self.params, sections, sections.codes, len(sections.levels))
        return replace(conditions, side=side, model_arrays=model_arrays)
