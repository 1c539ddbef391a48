"""What a count method reads of an object, as plain arrays."""

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
    """Counts and what belongs to them.

    Attributes
    ----------
    counts
        Canonical CSR float32, ``(n, g)``; shares its buffers with the object: read only.
    size
        Library sizes, ``(n,)``.
    genes, imputed
        Names of all genes, and of those that are imputed.
    columns
        Places of the imputed genes, ``(k,)``.
    in_table
        Whether the caller chose genes, so that the result is a table.
    source
        Fingerprint by which the counts are known again.
    """

    counts: sp.csr_matrix
    size: np.ndarray
    genes: list[str]
    imputed: list[str]
    columns: np.ndarray
    in_table: bool
    source: dict[str, Any]


class CountRequest(Protocol):
    """What of a request says which counts are read; the parameters of :func:`scimpute.tl.began` with these names."""

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
    """Counts, library sizes and the genes to impute, all checked; ``unit`` is what the method calls a row, such as "cells"."""
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
    """What a network is conditioned on.

    Attributes
    ----------
    labels
        Each label by its argument.
    sections
        The section of every spot.
    side
        What there is beside the counts of a spot.
    left_out
        The only level of labels that have one level, in a list, by their arguments.
    kept
        Arrays that reading the side information for a saved model needs again.
    """

    labels: dict[str, Categorical]
    sections: Categorical | None = None
    side: SideInformation | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def codes(self) -> tuple[np.ndarray, ...]:
        return tuple(label.codes for label in self.labels.values())

    @property
    def levels(self) -> dict[str, list[str]]:
        return {name: label.levels for name, label in self.labels.items()}

    def record(self) -> dict[str, Any]:
        """``conditioned_on``: column and levels of each label."""
        return {name: {"column": label.column, "levels": label.levels} for name, label in self.labels.items()}


@dataclass(frozen=True)
class CellReader:
    """Reads labels of cells: columns of ``obs`` by their arguments."""

    params: Mapping[str, str | None]
    unit = "cells"
    off_tissue = "trained on"
    """What becomes of spots beside the tissue."""
    smaller = "impute fewer genes with genes=, or train on some cells with save= and impute all in parts with tl.apply"
    """What helps where the result does not fit into memory."""

    def read(self, adata: AnnData) -> Conditions:
        """The labels; a column with one level is none."""
        labels = {name: read_label(adata, column, name) for name, column in self.params.items() if column is not None}
        single = {name: [str(adata.obs[self.params[name]].iloc[0])] for name, label in labels.items() if label is None}
        return Conditions({name: label for name, label in labels.items() if label is not None}, left_out=single)

    def with_side(self, adata: AnnData, conditions: Conditions) -> Conditions:
        """The same: cells have nothing beside their counts."""
        return conditions


@dataclass(frozen=True)
class SpotReader:
    """Reads the section of every spot, and what lies beside its counts.

    Attributes
    ----------
    params
        Parameters of :func:`scimpute.tl.spatial` that say what is read, checked.
    conditioned
        Whether the network is conditioned on the section.
    """

    params: Mapping[str, Any]
    conditioned: bool
    unit = "spots"
    smaller = "impute fewer genes with genes="

    @property
    def _alone(self) -> bool:
        """Whether neighbours do not matter, and so the section neither."""
        return not self.conditioned and not self.params["spatial_weight"]

    @property
    def off_tissue(self) -> str:
        return "trained on" if self._alone else "trained on, and are neighbours of the others"

    def read(self, adata: AnnData) -> Conditions:
        """The section, as a label where there are several and the network is conditioned on it."""
        sections = one_section(adata) if self._alone else read_sections(adata, self.params["library_key"])
        if not self.conditioned or len(sections.levels) < 2:
            return Conditions({}, sections)
        return Conditions({"library_key": sections}, sections)

    def with_side(self, adata: AnnData, conditions: Conditions) -> Conditions:
        """Positions, images and neighbours as well: they may take more memory than the counts."""
        sections = conditions.sections
        assert sections is not None, "spots have a section"
        side, kept = read_side(adata, self.params, sections, sections.codes, len(sections.levels))
        return replace(conditions, side=side, kept=kept)
