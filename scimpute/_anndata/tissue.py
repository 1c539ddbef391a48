"""Reads images of the tissue and the places of the spots in them, from ``uns["spatial"]`` or from the caller."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _check
from .._space.image import Source, cut, from_array, open_image
from . import keys
from .obs import read_codes, read_label
from .positions import read_coordinates, stored_sections

if TYPE_CHECKING:
    from anndata import AnnData


Picture: TypeAlias = np.ndarray | str | os.PathLike[str]
"""An image that the user passes: an array, or the path of a file."""

MIN_TILE = 8
"""Smallest side, in pixels, of a tile whose size is computed from the diameter of the spots."""

_MAX_SHARE_OUTSIDE = 0.05
"""Largest share of spots that may be outside of their image."""
_ONE = "all"
"""Name of a single section without a name."""


@dataclass(frozen=True)
class Tissue:
    """One image and its spots.

    Attributes
    ----------
    section
        Name of the section.
    source
        The image.
    described
        The key of the image in ``uns``, its path, or "array".
    rows
        Rows of the section's spots in the object, ``(m,)``.
    centres
        Positions of these spots as x, y in pixels of the image, ``(m, 2)``.
    scale
        Pixels of the image for one unit of the coordinates.
    tile_size
        Side of a tile in pixels of the image.
    """

    section: str
    source: Source
    described: str
    rows: np.ndarray
    centres: np.ndarray
    scale: float
    tile_size: int


def read_tissues(
    adata: AnnData,
    image_key: str = "hires",
    library_key: str | None = None,
    tile_size: float | None = None,
    image: Picture | Mapping[str, Picture] | None = None,
    scale: float | Mapping[str, float] | None = None,
    widest: int | None = None,
) -> list[Tissue]:
    """All images that have spots, each with its spots, checked.

    ``widest`` is the side of the largest tile, for sections that are a part of a larger set; None computes it from these sections.
    :func:`scimpute.pp.tiles` describes the other arguments and the errors.
    """
    if image is not None and image_key != "hires":
        raise ValueError(f"image= and image_key={image_key!r} name two images; pass one of them")
    size = None if tile_size is None else _whole_number("tile_size", tile_size)
    coordinates = read_coordinates(adata)[:, :2]
    entries = stored_sections(adata)
    names, codes = _sections(adata, entries, library_key, image)
    images, scales = _by_section(image, names), _by_section(scale, names)
    tissues: list[Tissue] = []
    diameters = []
    for code, section in enumerate(names):
        rows = np.flatnonzero(codes == code)
        if not rows.size:
            continue
        entry = entries.get(section, {})
        if image is None:
            source, described = _stored_image(entry, section, image_key), image_key
        else:
            source, described = _user_image(images[section], section)
        factor = _scale(entry, section, image_key, image is not None, scales)
        _check_inside(coordinates[rows], factor, source.shape, entry, f"image {described!r} of section {section!r}")
        tissues.append(Tissue(section, source, described, rows, coordinates[rows] * factor, factor, size or 0))
        if not size:
            diameters.append(factor * _factor(entry, section, "spot_diameter_fullres", "pass tile_size= in pixels of the image"))
    return tissues if size else [replace(tissue, tile_size=side) for tissue, side in zip(tissues, _sizes(diameters, widest), strict=True)]


def section_image(adata: AnnData, section: str, image_key: str, coordinates: np.ndarray) -> tuple[np.ndarray, float]:
    """The whole image of one section, uint8 ``(h, w, 3)``, and its pixels for one unit of the spots' ``coordinates``."""
    entry = stored_sections(adata)[section]
    source = _stored_image(entry, section, image_key)
    name = f"tissue_{image_key}_scalef"
    factor = _factor(entry, section, name, "pass image_key=None to draw no image")
    described = f"image {image_key!r} of section {section!r}"
    _check_inside(coordinates, factor, source.shape, entry, described, "They are not drawn", f"set its {name!r} to ")
    height, width = source.shape
    return source.region(0, height, 0, width), factor


def cut_tiles(tissues: list[Tissue], n_obs: int, pixels: int | None) -> np.ndarray:
    """The tile around every spot: uint8 ``(n_obs, pixels, pixels, 3)``.

    ``pixels`` is the side of the returned tiles, which are resized to it. None keeps the size of the cut tiles; if sections differ, all
    tiles get the largest size.
    """
    pixels = max(tissue.tile_size for tissue in tissues) if pixels is None else _check.integer("pixels", pixels)
    _check.memory(3 * n_obs * pixels**2, "take smaller tiles or fewer spots")
    tiles = np.empty((n_obs, pixels, pixels, 3), dtype=np.uint8)
    for tissue in tissues:
        tiles[tissue.rows] = cut(tissue.source, tissue.centres, tissue.tile_size, pixels)
    return tiles


def _whole_number(name: str, value: Any) -> int:
    """A positive whole number. A whole float is accepted, because users multiply sizes with scale factors."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return _check.integer(name, value)


def _sections(
    adata: AnnData, stored: Mapping[str, Any], library_key: str | None, image: Picture | Mapping[str, Picture] | None
) -> tuple[list[str], np.ndarray]:
    """Names of the sections, and the index of every spot's section, ``(n,)``."""
    if isinstance(image, Mapping) and not image:
        raise ValueError("image={} has no image")
    if image is None and not stored:
        raise KeyError(f"adata.uns[{keys.SPATIAL!r}] has no section with images; pass image=..., an array or a file")
    names = [str(name) for name in image] if isinstance(image, Mapping) else list(stored)
    source = "image=" if isinstance(image, Mapping) else f"adata.uns[{keys.SPATIAL!r}]"
    if library_key is None:
        all_sections = max((names, list(stored)), key=len)
        if len(all_sections) > 1:
            raise ValueError(
                f"there are {len(all_sections)} sections, {_check.listing(all_sections)}, and nothing says which section a spot is in; "
                f"pass library_key=, the column of obs with the section{_candidates(adata, all_sections)}"
            )
        return names or [_ONE], np.zeros(adata.n_obs, dtype=np.int64)
    if image is not None and not isinstance(image, Mapping):
        label = read_label(adata, library_key, "library_key")
        if label is not None:
            raise ValueError(
                f"image= is one image, library_key={library_key!r} has {len(label.levels)} sections; pass image={{section: image}}"
            )
        return [str(adata.obs[library_key].iloc[0])], np.zeros(adata.n_obs, dtype=np.int64)
    codes = read_codes(adata, library_key, "library_key", names)
    if (codes < 0).any():
        missing = list(dict.fromkeys(adata.obs[library_key].astype(str)[codes < 0]))
        raise KeyError(
            f"library_key={library_key!r}: {(codes < 0).sum()} spots are in sections without an image, {_check.listing(missing)}; "
            f"{source} has {_check.listing(names)}"
        )
    return names, codes


def _candidates(adata: AnnData, names: list[str]) -> str:
    """Columns of obs that hold only names of sections, for a message."""
    sections = set(names)
    columns = [str(column) for column in adata.obs if set(adata.obs[column].astype(str)) <= sections]
    return f", such as {_check.listing(columns)}" if columns else ""


def _by_section(value: Any, names: list[str]) -> dict[str, Any]:
    """A value for each section, from a mapping or from one value for all; empty for None."""
    if value is None:
        return {}
    return {str(name): item for name, item in value.items()} if isinstance(value, Mapping) else dict.fromkeys(names, value)


def _stored_image(entry: Mapping[str, Any], section: str, image_key: str) -> Source:
    images = entry.get("images", {})
    if image_key not in images:
        raise _check.missing(f"image_key: adata.uns[{keys.SPATIAL!r}][{section!r}]['images']:", image_key, images)
    return from_array(images[image_key], f"image {image_key!r} of section {section!r}")


def _user_image(image: Picture, section: str) -> tuple[Source, str]:
    """The image that the user passed, and its path or "array"."""
    if isinstance(image, str | os.PathLike):
        return open_image(image), os.fspath(image)
    return from_array(image, f"image= of section {section!r}"), "array"


def _factor(entry: Mapping[str, Any], section: str, name: str, remedy: str) -> float:
    """A number among the scale factors of a section."""
    factors = entry.get("scalefactors", {})
    slot = f"adata.uns[{keys.SPATIAL!r}][{section!r}]['scalefactors']"
    if name not in factors:
        raise KeyError(f"{slot} has no {name!r}, only {_check.listing(factors)}; {remedy}")
    value = _number(factors[name])
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{slot}[{name!r}] must be a positive number, got {factors[name]!r}; {remedy}")
    return value


def _scale(entry: Mapping[str, Any], section: str, image_key: str, has_image: bool, scales: dict[str, Any]) -> float:
    """Pixels of the image for one unit of the coordinates."""
    if section in scales:
        return _check.number("scale", scales[section], 0, open_low=True)
    if scales:
        raise _check.missing("scale=: section", section, scales)
    if has_image:
        return 1.0
    return _factor(entry, section, f"tissue_{image_key}_scalef", "pass scale=, the pixels of the image for one unit of the coordinates")


def _sizes(diameters: list[float], widest: int | None = None) -> list[int]:
    """Sides of tiles as wide as the spots. Spots that differ by less than a pixel get the same side, so that no tile is resized."""
    largest = max(MIN_TILE, round(max(diameters))) if widest is None else widest
    return [largest if abs(diameter - largest) < 1 else max(MIN_TILE, round(diameter)) for diameter in diameters]


def _share_outside(points: np.ndarray, shape: tuple[int, int]) -> float:
    return float(1 - ((points >= 0) & (points <= shape[::-1])).all(axis=1).mean())


def _check_inside(
    coordinates: np.ndarray,
    scale: float,
    shape: tuple[int, int],
    entry: Mapping[str, Any],
    name: str,
    consequence: str = "They get the tile of the nearest point of the image",
    remedy: str = "pass scale=",
) -> None:
    """Refuse coordinates that do not fit this image, and say what may be wrong. Warn of a few spots outside of it."""
    points = coordinates * scale
    outside = _share_outside(points, shape)
    if not outside:
        return
    (x, y), (height, width) = points.max(axis=0), shape
    problem = (
        f"{round(outside * len(points))} of {len(points)} spots are outside of {name}, which is {width} pixels wide and {height} high: "
        f"with scale={scale:.4g} they lie from {points.min():.6g} to x={x:.6g}, y={y:.6g}"
    )
    if outside > _MAX_SHARE_OUTSIDE:
        raise ValueError(f"{problem}. {_remedy(coordinates, scale, shape, entry, remedy)}")
    _check.warn(f"{problem}. {consequence}")


def _remedy(coordinates: np.ndarray, scale: float, shape: tuple[int, int], entry: Mapping[str, Any], remedy: str) -> str:
    if _share_outside(coordinates[:, ::-1] * scale, shape) <= _MAX_SHARE_OUTSIDE:
        return f"x and y look swapped: adata.obsm[{keys.SPATIAL!r}] must hold x (column), y (row)"
    factors = {name: _number(value) for name, value in entry.get("scalefactors", {}).items() if name.endswith("_scalef")}
    positive = {name: factor for name, factor in factors.items() if factor > 0}
    # Suggest the largest factor that fits: a factor that is too small puts all spots into a corner.
    for name, factor in sorted(positive.items(), key=lambda item: -item[1]):
        if _share_outside(coordinates * factor, shape) <= _MAX_SHARE_OUTSIDE:
            return f"The coordinates look like pixels of the full resolution: {remedy}{factor:.6g} ({name})"
    highest = coordinates.max(axis=0)
    if (highest <= 0).any() or coordinates.min() < 0:
        return f"adata.obsm[{keys.SPATIAL!r}] has negative positions, which are outside of any image"
    fitting = min(shape[1] / highest[0], shape[0] / highest[1])
    return f"The coordinates may be of another resolution: {remedy}..., a factor of about {fitting:.3g} or less"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
