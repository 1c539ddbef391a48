"""Which modalities `tl.spatial` is asked for, and how each is read, in training and when a saved model is applied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._space.features import colours, edge_scale, extents, moments, positions, standardised, weighted
from .._space.side import SPOT, SideInformation
from .obs import Categorical
from .positions import read_coordinates, read_features
from .sections import check_array_places, check_coordinates, read_sections
from .space import read_rings
from .tissue import cut_tiles, read_tissues

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData


MODALITIES = ("counts", "position", "image")
TILE_PIXELS = 32
"""Side of the tiles that the network is shown, whatever the size of the spots in the image."""


def chosen_modalities(
    asked: Sequence[str] | None, image_key: str | None, tile_features: str | None, edge_weight: str | None
) -> tuple[str, ...]:
    """Which modalities, in the order in which the network is told them."""
    for name, value, what in (("image_key", image_key, "an image in uns['spatial']"), ("tile_features", tile_features, "an array in obsm")):
        if value is not None:
            _check.name_of(name, value, what)
    if image_key is not None and tile_features is not None:
        raise ValueError(f"image_key={image_key!r} and tile_features={tile_features!r} are two sources of the image; pass one of them")
    if edge_weight is not None:
        _check.option("edge_weight", edge_weight, ("image",))
    pictured = image_key is not None or tile_features is not None
    if asked is None:
        return MODALITIES if pictured else MODALITIES[:2]
    if not isinstance(asked, Iterable):
        raise TypeError(f"modalities must be a name or several, got {asked!r}")
    names = [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        _check.option("modalities", name, MODALITIES)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"modalities must name some of {_check.listing(MODALITIES)}, each once; got {names}")
    if ("image" in names or edge_weight) and not pictured:
        raise ValueError("the image is asked for, but there is none: pass image_key, or tile_features with what scimpute.pp.tiles wrote")
    if pictured and "image" not in names and edge_weight is None:
        given = f"image_key={image_key!r}" if image_key is not None else f"tile_features={tile_features!r}"
        raise ValueError(f"{given} is given, but 'image' is not among the modalities {names}; add it or leave out the image")
    return tuple(name for name in MODALITIES if name in names)


def checked_ring_weights(asked: Sequence[float]) -> tuple[float, ...]:
    """The weight of each ring, checked."""
    if isinstance(asked, str) or not hasattr(asked, "__iter__"):
        raise TypeError(f"ring_weights must be a sequence of numbers, one for each ring, got {asked!r}")
    return tuple(_check.number("ring_weights", weight, 0) for weight in asked)


def read_side(
    adata: AnnData,
    params: Mapping[str, Any],
    sections: Categorical,
    known: np.ndarray,
    n_known: int,
    saved: Mapping[str, np.ndarray] | None = None,
) -> tuple[SideInformation, dict[str, np.ndarray]]:
    """Everything a network is given of a spot beside its counts, and what of it a saved model needs.

    Parameters
    ----------
    params
        Those of :func:`scimpute.tl.spatial` that say what is read.
    sections
        Of the object: neighbours and positions are within one.
    known, n_known
        Codes of the sections of the training, -1 for another one.
    saved
        Arrays of a saved model; None in the training.
    """
    modalities = tuple(params["modalities"])
    features: dict[str, np.ndarray] = {}
    kept: dict[str, np.ndarray] = {}
    if SPOT in modalities:
        features[SPOT] = np.arange(adata.n_obs)
    if "position" in modalities:
        features["position"], kept["extents"] = _read_positions(adata, sections, known, n_known, saved)
    image, likeness, of_image = _read_image(adata, params, saved)
    if "image" in modalities and image is not None:
        features["image"] = image
    weights, spatial_weight = params["ring_weights"], params["spatial_weight"]
    # The network reads the counts of neighbours, or the loss compares their rates.
    used = [number for number, weight in enumerate(weights) if weight > 0] if "counts" in modalities or spatial_weight else []
    graphs = read_rings(adata, max(used) + 1, sections) if used else []
    if params.get("edge_weight") and likeness is not None:
        scales = [edge_scale(graphs[number], likeness) for number in used] if saved is None else saved["edge_scales"].tolist()
        kept["edge_scales"] = np.array(scales, dtype=np.float64)
        rings = [weighted(graphs[number], likeness, scale) for number, scale in zip(used, scales, strict=True)]
    else:
        rings = [weighted(graphs[number], None) for number in used]
    side = SideInformation(modalities, features, rings, tuple(weights[number] for number in used), spatial_weight)
    return side, kept | of_image


def read_side_as_trained(
    adata: AnnData, params: Mapping[str, Any], known: np.ndarray | None, n_known: int, saved: Mapping[str, np.ndarray]
) -> SideInformation:
    """The same for a saved model; ``known`` are codes of its ``n_known`` sections, None where its training had one."""
    # Then the column was of no use.
    if known is None and params.get("library_key") not in adata.obs:
        params = {**params, "library_key": None}
    sections = read_sections(adata, params.get("library_key"))
    codes = np.zeros(adata.n_obs, dtype=np.int64) if known is None else known
    side, _ = read_side(adata, params, sections, codes, n_known, saved)
    return side


def _read_positions(
    adata: AnnData, sections: Categorical, known: np.ndarray, n_known: int, saved: Mapping[str, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Features of the positions, and the extent of every section."""
    coordinates = read_coordinates(adata)
    if coordinates.shape[1] == 2:
        check_array_places(adata, sections.codes)
    check_coordinates(adata, sections.codes, coordinates)
    own = extents(coordinates, sections.codes)
    of_spots = own[sections.codes]
    if saved is not None and saved["extents"].shape[2] != coordinates.shape[1]:
        raise ValueError(
            f"adata.obsm['spatial'] has {coordinates.shape[1]} columns, the model was trained with {saved['extents'].shape[2]}"
        )
    if saved is not None and n_known > 1:
        of_spots = _known_extents(coordinates, of_spots, known, saved["extents"])
    return positions(coordinates, of_spots, known, n_known), own


def _known_extents(coordinates: np.ndarray, own: np.ndarray, known: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The extent of the training for a section that is known by its name: here some of its spots may be missing."""
    extent = own.copy()
    for section in np.unique(known[known >= 0]):
        rows, (low, high) = known == section, trained[section]
        slack = 0.01 * (high - low).max()
        # Another slide of the same name, or other pixels.
        if ((coordinates[rows] >= low - slack) & (coordinates[rows] <= high + slack)).all():
            extent[rows] = low, high
        else:
            _check.warn(
                "a section is named as one of the training is, and has spots where that has none: positions are taken by its own extent"
            )
    return extent


def _read_image(
    adata: AnnData, params: Mapping[str, Any], saved: Mapping[str, np.ndarray] | None
) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, np.ndarray]]:
    """The image around every spot as the network reads it, the features by which two tiles are compared, what a saved model needs."""
    tile_features, image_key = params.get("tile_features"), params.get("image_key")
    if tile_features is not None:
        values = read_features(adata, tile_features)
        of_all = moments(values) if saved is None else saved["tile_moments"]
        if of_all.shape[1] != values.shape[1]:
            raise ValueError(
                f"adata.obsm[{tile_features!r}] has {values.shape[1]} features, the model was trained on {of_all.shape[1]}; "
                "make them in the same way"
            )
        scaled = standardised(values, of_all)
        return scaled, scaled, {"tile_moments": of_all}
    if image_key is None:
        return None, None, {}
    widest = None if saved is None else int(saved["tile_size"])
    tissues = read_tissues(adata, image_key, params.get("library_key"), widest=widest)
    kept = {"tile_size": np.array(widest or max(tissue.tile_size for tissue in tissues))}
    tiles = cut_tiles(tissues, adata.n_obs, TILE_PIXELS)
    likeness = None
    if params.get("edge_weight"):
        described = colours(tiles)
        kept["colour_moments"] = moments(described) if saved is None else saved["colour_moments"]
        likeness = standardised(described, kept["colour_moments"])
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)), likeness, kept
