"""Reads and draws one section of tissue: its image, and its spots in pixels of the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import EllipseCollection
from scipy.spatial import cKDTree

from .. import _check
from .._anndata.obs import read_names
from .._anndata.positions import read_coordinates, stored_sections
from .._anndata.sections import check_overlapping_sections
from .._anndata.tissue import section_image

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

# Margin around the outermost spots, in distances between spots.
_MARGIN = 1.5
# Width of the tissue in a panel, and the space above it for a title, in inches.
_WIDTH, _TITLE = 2.8, 0.45


@dataclass(frozen=True)
class Section:
    """One section to draw.

    ``spots`` has the rows of its spots in the object. ``xy`` ``(m, 2)`` and ``diameter`` are in pixels of the image, or without an
    image in the unit of ``obsm["spatial"]``. ``limits`` has the left, right, top and bottom edge of the drawn area.
    """

    spots: np.ndarray
    xy: np.ndarray
    diameter: float
    image: np.ndarray | None
    limits: tuple[float, float, float, float]

    @property
    def panel(self) -> tuple[float, float]:
        """Width and height in inches of a panel of this shape, with a title of one line."""
        left, right, top, bottom = self.limits
        return _WIDTH + 0.1, min(max(_WIDTH * (bottom - top) / (right - left), 1.2), 8) + _TITLE


def read(adata: AnnData, image_key: str | None, library_key: str | None, library_id: str | None, spot_size: float | None) -> Section:
    """The section that ``library_id`` names, or the only section."""
    if spot_size is not None:
        _check.number("spot_size", spot_size, 0, open_low=True)
    entries = stored_sections(adata)
    if library_key is None and len(entries) < 2:
        check_overlapping_sections(adata)
    library_id, spots = _spots(adata, entries, library_key, library_id)
    entry = _entry(entries, library_id, image_key)
    xy = read_coordinates(adata)[spots, :2]
    image, scale = None, 1.0
    if image_key is not None and entry.get("images"):
        assert library_id is not None, "an entry has a name"
        image, scale = section_image(adata, library_id, image_key, xy)
    factors = entry.get("scalefactors", {})
    spacing = _spot_distance(xy)
    diameter = factors.get("spot_diameter_fullres", spacing) if spot_size is None else spot_size
    xy, diameter, margin = xy * scale, float(diameter) * scale, _MARGIN * max(spacing, float(diameter)) * scale
    low, high = xy.min(axis=0) - margin, xy.max(axis=0) + margin
    if image is not None:
        low, high = np.maximum(low, 0), np.minimum(high, image.shape[1::-1])
    return Section(spots, xy, diameter, image, (float(low[0]), float(high[0]), float(low[1]), float(high[1])))


def _spots(adata: AnnData, entries: Mapping[str, Any], library_key: str | None, library_id: str | None) -> tuple[str | None, np.ndarray]:
    """The name of the section, or None without a name, and the rows of its spots."""
    if library_key is None:
        if len(entries) > 1:
            raise ValueError(
                f"uns['spatial'] has several sections, {_check.listing(entries)}; pass library_key=, the obs column with the section "
                "of each spot, and library_id="
            )
        if library_id is not None and library_id not in entries:
            raise _check.missing("library_id: section", library_id, list(entries))
        return next(iter(entries), None), np.arange(adata.n_obs)
    names = read_names(adata, library_key, "library_key")
    sections = sorted(set(names))
    if library_id is None:
        if len(sections) > 1:
            raise ValueError(f"library_key={library_key!r} has several sections; choose one with library_id=: {_check.listing(sections)}")
        library_id = sections[0]
    if library_id not in sections:
        raise _check.missing(f"library_id: section in obs[{library_key!r}]", library_id, sections)
    return library_id, np.flatnonzero(names == library_id)


def _entry(entries: Mapping[str, Any], library_id: str | None, image_key: str | None) -> Mapping[str, Any]:
    """The section's entry in ``uns["spatial"]``; empty without images."""
    if library_id is not None and library_id in entries:
        return entries[library_id]
    if entries and image_key is not None:
        raise KeyError(
            f"uns['spatial'] has no section {library_id!r}; available: {_check.listing(entries)}. Pass image_key=None to draw no image"
        )
    return {}


def _spot_distance(xy: np.ndarray) -> float:
    """Median distance of a spot to the nearest other spot."""
    different = np.unique(xy, axis=0)
    if len(different) < 2:
        return 1.0
    return float(np.median(cKDTree(different).query(different, k=2)[0][:, 1]))


def draw(axis: Axes, section: Section, image_alpha: float, **spots: Any) -> EllipseCollection:
    """Draw the image, and a disc of the true size for every spot. The y axis points down, as in images."""
    if section.image is not None:
        axis.imshow(section.image, alpha=image_alpha, interpolation="bilinear")
    size = np.full(len(section.xy), section.diameter)
    discs = EllipseCollection(
        size,
        size,
        np.zeros(len(size)),
        units="xy",
        offsets=section.xy,
        offset_transform=axis.transData,
        linewidths=0,
        rasterized=True,
        **spots,
    )
    axis.add_collection(discs)
    left, right, top, bottom = section.limits
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return discs
