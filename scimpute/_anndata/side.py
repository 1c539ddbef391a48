"""Reads the modalities of `tl.spatial`, for training and for a saved model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._space.features import colour_features, column_moments, edge_scale, extents, neighbour_weights, position_features, standardise
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
"""Side of the tiles that the network reads, whatever the size of the spots in the image."""


def chosen_modalities(
    modalities: Sequence[str] | None, image_key: str | None, tile_features: str | None, edge_weight: str | None
) -> tuple[str, ...]:
    """The modalities in the order in which the network reads them, checked."""
    for name, value, place in (
        ("image_key", image_key, "an image in uns['spatial']"),
        ("tile_features", tile_features, "an array in obsm"),
    ):
        if value is not None:
            _check.name_of(name, value, place)
    if image_key is not None and tile_features is not None:
        raise ValueError(f"image_key={image_key!r} and tile_features={tile_features!r} are two sources of the image; pass one of them")
    if edge_weight is not None:
        _check.option("edge_weight", edge_weight, ("image",))
    has_image = image_key is not None or tile_features is not None
    if modalities is None:
        return MODALITIES if has_image else MODALITIES[:2]
    if not isinstance(modalities, Iterable):
        raise TypeError(f"modalities must be a name or several, got {modalities!r}")
    names = [modalities] if isinstance(modalities, str) else list(modalities)
    for name in names:
        _check.option("modalities", name, MODALITIES)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"modalities must name some of {_check.listing(MODALITIES)}, each once; got {names}")
    if ("image" in names or edge_weight) and not has_image:
        raise ValueError(
            "the modalities or edge_weight need an image: pass image_key, or tile_features with the key that scimpute.pp.tiles wrote"
        )
    if has_image and "image" not in names and edge_weight is None:
        source = f"image_key={image_key!r}" if image_key is not None else f"tile_features={tile_features!r}"
        raise ValueError(f"{source} was passed, but 'image' is not among the modalities {names}; add it or leave out the image")
    return tuple(name for name in MODALITIES if name in names)


def checked_ring_weights(ring_weights: Sequence[float]) -> tuple[float, ...]:
    """The weight of each ring, checked."""
    if isinstance(ring_weights, str) or not hasattr(ring_weights, "__iter__"):
        raise TypeError(f"ring_weights must be a sequence of numbers, one for each ring, got {ring_weights!r}")
    return tuple(_check.number("ring_weights", weight, 0) for weight in ring_weights)


def read_side(
    adata: AnnData,
    params: Mapping[str, Any],
    sections: Categorical,
    training_codes: np.ndarray,
    n_training: int,
    saved: Mapping[str, np.ndarray] | None = None,
) -> tuple[SideInformation, dict[str, np.ndarray]]:
    """All inputs of the network except the spot's own counts, and the arrays that a saved model needs to read them again.

    Parameters
    ----------
    params
        Parameters of :func:`scimpute.tl.spatial` that say what is read.
    sections
        Section of every spot of the object. Neighbours and positions are taken within a section.
    training_codes
        Code of every spot's section among the training sections, ``(n,)``; -1 for any other section.
    n_training
        Number of training sections.
    saved
        Arrays of a saved model; None in training.
    """
    modalities = tuple(params["modalities"])
    features: dict[str, np.ndarray] = {}
    model_arrays: dict[str, np.ndarray] = {}
    if SPOT in modalities:
        features[SPOT] = np.arange(adata.n_obs)
    if "position" in modalities:
        features["position"], model_arrays["extents"] = _read_positions(adata, sections, training_codes, n_training, saved)
    image, tile_features, image_arrays = _read_image(adata, params, saved)
    if "image" in modalities and image is not None:
        features["image"] = image
    weights, spatial_weight = params["ring_weights"], params["spatial_weight"]
    # The network reads the counts of neighbours, or the loss compares their rates.
    ring_numbers = [number for number, weight in enumerate(weights) if weight > 0] if "counts" in modalities or spatial_weight else []
    graphs = read_rings(adata, max(ring_numbers) + 1, sections) if ring_numbers else []
    if params.get("edge_weight") and tile_features is not None:
        scales = [edge_scale(graphs[number], tile_features) for number in ring_numbers] if saved is None else saved["edge_scales"].tolist()
        model_arrays["edge_scales"] = np.array(scales, dtype=np.float64)
        rings = [neighbour_weights(graphs[number], tile_features, scale) for number, scale in zip(ring_numbers, scales, strict=True)]
    else:
        rings = [neighbour_weights(graphs[number], None) for number in ring_numbers]
    side = SideInformation(modalities, features, rings, tuple(weights[number] for number in ring_numbers), spatial_weight)
    return side, model_arrays | image_arrays


def read_side_as_trained(
    adata: AnnData, params: Mapping[str, Any], training_codes: np.ndarray | None, n_training: int, saved: Mapping[str, np.ndarray]
) -> SideInformation:
    """The network's inputs for a saved model.

    ``training_codes`` are the codes of its ``n_training`` sections, or None if it was trained on a single section.
    """
    # A model of a single section does not use the column.
    if training_codes is None and params.get("library_key") not in adata.obs:
        params = {**params, "library_key": None}
    sections = read_sections(adata, params.get("library_key"))
    codes = np.zeros(adata.n_obs, dtype=np.int64) if training_codes is None else training_codes
    side, _ = read_side(adata, params, sections, codes, n_training, saved)
    return side


def _read_positions(
    adata: AnnData, sections: Categorical, training_codes: np.ndarray, n_training: int, saved: Mapping[str, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Features of the positions, and the extent of every section."""
    coordinates = read_coordinates(adata)
    if coordinates.shape[1] == 2:
        check_array_places(adata, sections.codes)
    check_coordinates(adata, sections.codes, coordinates)
    own_extents = extents(coordinates, sections.codes)
    spot_extents = own_extents[sections.codes]
    if saved is not None and saved["extents"].shape[2] != coordinates.shape[1]:
        raise ValueError(
            f"adata.obsm['spatial'] has {coordinates.shape[1]} columns, the model was trained with {saved['extents'].shape[2]}"
        )
    if saved is not None and n_training > 1:
        spot_extents = _known_extents(coordinates, spot_extents, training_codes, saved["extents"])
    return position_features(coordinates, spot_extents, training_codes, n_training), own_extents


def _known_extents(
    coordinates: np.ndarray, own_extents: np.ndarray, training_codes: np.ndarray, training_extents: np.ndarray
) -> np.ndarray:
    """The section's extent for every spot. A section of the training keeps its training extent, as some of its spots may be missing now."""
    extent = own_extents.copy()
    for section in np.unique(training_codes[training_codes >= 0]):
        rows, (low, high) = training_codes == section, training_extents[section]
        slack = 0.01 * (high - low).max()
        # Spots beyond the training extent belong to another slide of this name, or are in other pixels.
        if ((coordinates[rows] >= low - slack) & (coordinates[rows] <= high + slack)).all():
            extent[rows] = low, high
        else:
            _check.warn(
                "a section has the name of a training section, but some of its spots lie beyond the extent of that section: "
                "positions are scaled to the section's own extent"
            )
    return extent


def _read_image(
    adata: AnnData, params: Mapping[str, Any], saved: Mapping[str, np.ndarray] | None
) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, np.ndarray]]:
    """The tile of every spot for the network, the features that compare two tiles, and the arrays that a saved model needs."""
    tile_features, image_key = params.get("tile_features"), params.get("image_key")
    if tile_features is not None:
        values = read_features(adata, tile_features)
        feature_moments = column_moments(values) if saved is None else saved["tile_moments"]
        if feature_moments.shape[1] != values.shape[1]:
            raise ValueError(
                f"adata.obsm[{tile_features!r}] has {values.shape[1]} features, the model was trained on {feature_moments.shape[1]}; "
                "make them in the same way"
            )
        scaled = standardise(values, feature_moments)
        return scaled, scaled, {"tile_moments": feature_moments}
    if image_key is None:
        return None, None, {}
    widest = None if saved is None else int(saved["tile_size"])
    tissues = read_tissues(adata, image_key, params.get("library_key"), widest=widest)
    model_arrays = {"tile_size": np.array(widest or max(tissue.tile_size for tissue in tissues))}
    tiles = cut_tiles(tissues, adata.n_obs, TILE_PIXELS)
    tile_colours = None
    if params.get("edge_weight"):
        colours = colour_features(tiles)
        model_arrays["colour_moments"] = column_moments(colours) if saved is None else saved["colour_moments"]
        tile_colours = standardise(colours, model_arrays["colour_moments"])
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)), tile_colours, model_arrays
