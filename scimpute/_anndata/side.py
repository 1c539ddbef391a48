"""Which modalities `tl.spatial` is asked for, and how each is read, in training and when a saved model is applied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import _check
from .._counts import side as _side
from . import space as _spatial
from . import tissue as _tissue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from torch import Tensor

MODALITIES = ("counts", "position", "image")
TILE_PIXELS = 32
"""Side of the tiles that the network is shown, whatever the size of the spots in the image."""


def chosen(asked: Sequence[str] | None, image_key: str | None, tile_features: str | None, edge_weight: str | None) -> tuple[str, ...]:
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


def ring_weights(asked: Sequence[float]) -> tuple[float, ...]:
    """The weight of each ring, checked."""
    if isinstance(asked, str) or not hasattr(asked, "__iter__"):
        raise TypeError(f"ring_weights must be a sequence of numbers, one for each ring, got {asked!r}")
    return tuple(_check.number("ring_weights", weight, 0) for weight in asked)


def _known_extents(coordinates: np.ndarray, own: np.ndarray, known: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Of a section that is known by its name, the extent it had: some of its spots may be missing here."""
    found = own.copy()
    for section in np.unique(known[known >= 0]):
        rows, (low, high) = known == section, trained[section]
        slack = 0.01 * (high - low).max()
        # Another slide of the same name, or other pixels.
        if ((coordinates[rows] >= low - slack) & (coordinates[rows] <= high + slack)).all():
            found[rows] = low, high
        else:
            _check.warn(
                "a section is named as one of the training is, and has spots where that has none: positions are taken by its own extent"
            )
    return found


def read_side(
    adata: AnnData,
    params: Mapping[str, Any],
    sections: _spatial.Sections,
    known: np.ndarray,
    n_known: int,
    saved: Mapping[str, Tensor] | None = None,
) -> tuple[_side.Side, dict[str, Tensor]]:
    """All that is told of a spot beside its counts, and what of it a saved model needs.

    Parameters
    ----------
    params
        Those of `tl.spatial` that say what is told.
    sections
        Of the object: neighbours and positions are within one.
    known, n_known
        Codes of the sections of the training, -1 for another one.
    saved
        What of the training a saved model has; None in the training.
    """
    modalities, tile_features, image_key = tuple(params["modalities"]), params.get("tile_features"), params.get("image_key")
    features: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    likeness = None
    # A model that was saved before side, colours and edges of the training were kept takes those of the object.
    had: Mapping[str, Tensor] = saved or {}
    if _side.SPOT in modalities:
        features[_side.SPOT] = torch.arange(adata.n_obs)
    if "position" in modalities:
        coordinates = _spatial.read_coordinates(adata)
        if coordinates.shape[1] == 2:
            _spatial.check_array(adata, sections.codes)
        _spatial.check_coordinates(adata, sections.codes, coordinates)
        extents = _side.extents(coordinates, sections.codes)
        of_spots = extents[sections.codes]
        if saved is None:
            kept["extents"] = torch.from_numpy(extents)
        elif saved["extents"].shape[2] != coordinates.shape[1]:
            raise ValueError(
                f"adata.obsm['spatial'] has {coordinates.shape[1]} columns, the model was trained with {saved['extents'].shape[2]}"
            )
        elif n_known > 1:
            of_spots = _known_extents(coordinates, of_spots, known, saved["extents"].numpy())
        features["position"] = torch.from_numpy(_side.positions(coordinates, of_spots, known, n_known))
    if tile_features is not None:
        read = _spatial.read_features(adata, tile_features)
        kept["tile_moments"] = torch.from_numpy(_side.moments(read)) if saved is None else saved["tile_moments"]
        if kept["tile_moments"].shape[1] != read.shape[1]:
            raise ValueError(
                f"adata.obsm[{tile_features!r}] has {read.shape[1]} features, the model was trained on {kept['tile_moments'].shape[1]}; "
                "make them in the same way"
            )
        likeness = _side.standardised(read, kept["tile_moments"].numpy())
        image = torch.from_numpy(likeness)
    elif image_key is not None:
        widest = int(had["tile_size"]) if "tile_size" in had else None
        tissues = _tissue.read_tissues(adata, image_key, params.get("library_key"), widest=widest)
        kept["tile_size"] = torch.tensor(widest or max(tissue.tile_size for tissue in tissues))
        tiles = _tissue.cut_tiles(tissues, adata.n_obs, TILE_PIXELS)
        if params.get("edge_weight"):
            colours = _side.colours(tiles)
            kept["colour_moments"] = had["colour_moments"] if "colour_moments" in had else torch.from_numpy(_side.moments(colours))
            likeness = _side.standardised(colours, kept["colour_moments"].numpy())
        image = torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)))
    if "image" in modalities:
        features["image"] = image
    weights, spatial_weight = params["ring_weights"], params["spatial_weight"]
    # Of neighbours the counts are told, or their rates are compared.
    used = [number for number, weight in enumerate(weights) if weight > 0] if "counts" in modalities or spatial_weight else []
    graphs = _spatial.read_rings(adata, max(used) + 1, sections) if used else []
    if params.get("edge_weight") and likeness is not None:
        scales = had["edge_scales"].tolist() if "edge_scales" in had else [_side.edge_scale(graphs[number], likeness) for number in used]
        kept["edge_scales"] = torch.tensor(scales, dtype=torch.float64)
        rings = [_side.weighted(graphs[number], likeness, scale) for number, scale in zip(used, scales, strict=True)]
    else:
        rings = [_side.weighted(graphs[number], None) for number in used]
    return _side.Side(modalities, features, rings, tuple(weights[number] for number in used), spatial_weight), kept
