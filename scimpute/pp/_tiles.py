from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import _check, _device
from .._anndata.tissue import Tissue, read_tissues
from .._anndata.write import check_target, write
from .._keywords import helpful
from .._space.image import cut

if TYPE_CHECKING:
    from anndata import AnnData

_FIELDS = (1, 2, 4)
"""Widths of the fields around a spot, in tiles."""
_MAX_PIXELS = 64
"""Width of a field in pixels above which the field is reduced to this width."""
_STATISTICS = (
    *(f"{colour}_{statistic}" for statistic in ("mean", "sd") for colour in ("red", "green", "blue")),
    *(f"{stain}_{statistic}" for statistic in ("mean", "sd") for stain in ("haematoxylin", "eosin")),
    "gradient_fine",
    "gradient_coarse",
)

_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density of the 256 values of a channel."""
# Densities of red, green and blue for one unit of haematoxylin, of eosin and of the rest (Ruifrok and Johnston 2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_UNMIX = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)).T[:2].astype(np.float32)


@helpful
def tiles(
    adata: AnnData,
    *,
    image_key: str = "hires",
    library_key: str | None = None,
    tile_size: float | None = None,
    encoder: torch.nn.Module | None = None,
    key_added: str = "tiles",
    image: np.ndarray | str | os.PathLike[str] | Mapping[str, np.ndarray | str | os.PathLike[str]] | None = None,
    scale: float | Mapping[str, float] | None = None,
    batch_size: int = 64,
    device: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Compute features of the tissue image around each spot.

    A square tile is cut around each spot, mirrored at the border of the image. Without an encoder a tile has 36 features: colour, the two
    stains of an H&E section, and texture, each over the tile and over fields 2 and 4 times as wide.

    Parameters
    ----------
    adata
        Object with positions in ``obsm["spatial"]``: x (column), y (row), in pixels of the full resolution. A third column is ignored.
    image_key
        Name of the image in ``uns["spatial"][section]["images"]``. A position times ``scalefactors[f"tissue_{image_key}_scalef"]`` is
        a pixel of this image.
    library_key
        Column of ``obs`` with the section of each spot, by its name in ``uns["spatial"]``; not needed for one section.
    tile_size
        Width of a tile in pixels of the image. None takes the diameter of the spots in the image, and at least 8.
    encoder
        Module that turns images ``(b, 3, tile_size, tile_size)`` with values from 0 to 1 into features ``(b, d)``. The images have the
        precision of its weights, else float32. It runs in evaluation mode without gradients, on ``device``; afterwards its mode and
        device are restored. A module for another size or for standardised channels must contain these steps, e.g.
        ``Sequential(Upsample(224), model)``. None computes the features above.
    key_added
        Name of the result.
    image
        Image to use instead of the one in ``uns``: an array (grey, RGB or RGBA; uint8, uint16, or float from 0 to 1 or 0 to 255), the
        path of a PNG, JPEG, TIFF or whole-slide file, or a mapping of section to these. If ``scale`` is None, its pixels are pixels of
        the full resolution. TIFF needs ``pip install "scimpute[image]"``, whole slides need ``pip install "scimpute[wsi]"``. Whole slides
        are read region by region, and with ``scimpute[wsi]`` also tiled TIFF.
    scale
        Pixels of the image for one unit of the positions, or a mapping of section to it, instead of the factor in ``uns``.
    batch_size
        Number of tiles in a batch.
    device
        Where the encoder runs: ``"auto"`` (a CUDA device if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy with ``copy=True``. The function writes

    ``adata.obsm[key_added]``
        Features, float32 ``n_obs`` x ``d``. Without an encoder, each of the fields ``1x``, ``2x``, ``4x`` has the mean and standard
        deviation of red, green and blue (0 to 1) and of haematoxylin and eosin (optical density, by colour deconvolution
        :cite:p:`Ruifrok2001`). It also has the root mean square of the difference in brightness between neighbouring pixels and between
        neighbouring blocks of 2 x 2 pixels. Fields wider than 64 pixels are reduced to 64 first.
    ``adata.uns[key_added]``
        The parameters; without an encoder, ``features`` with their names, such as ``1x_red_mean``.

    Raises
    ------
    KeyError
        Positions, a section, an image or a scale factor do not exist, or a section has no image; the message lists the choices.
    ValueError
        More than 5 of 100 spots lie outside the image; there are several sections and no ``library_key``; ``tile_size`` is not a
        positive whole number; an image has another shape, or a file cannot be read; the encoder returns another shape, or
        NaN; arguments contradict each other.
    TypeError, FileNotFoundError, ImportError
        An image or the encoder has the wrong type; a file does not exist; a package to read it is missing.

    Notes
    -----
    Plot the positions on the image, for example with ``scanpy.pl.spatial``, to see whether they belong together. Positions with swapped
    x and y may all lie inside the image.

    Examples
    --------
    >>> import scimpute
    >>> scimpute.pp.tiles(adata, library_key="section")  # doctest: +SKIP
    """
    check_target(adata, "tiles", key_added, layer=None, copy=copy, suffixes=("",))
    batch_size = _check.integer("batch_size", batch_size)
    where = _encoder_device(encoder, device)
    tissues = read_tissues(adata, image_key, library_key, tile_size, image, scale)
    features = _by_batches(tissues, batch_size, _describe) if encoder is None else _encode(encoder, tissues, batch_size, where)
    params: dict[str, Any] = {
        "image": [tissue.described for tissue in tissues],
        "sections": [tissue.section for tissue in tissues],
        "tile_size": [tissue.tile_size for tissue in tissues],
        "scale": [tissue.scale for tissue in tissues],
        "encoder": "statistics" if encoder is None else type(encoder).__name__,
    }
    if library_key is not None:
        params["library_key"] = library_key
    names = {"features": [f"{field}x_{name}" for field in _FIELDS for name in _STATISTICS]} if encoder is None else {}
    return write(adata, key_added, "tiles", {"obsm": {key_added: features}}, {key_added: {"params": params, **names}}, copy=copy)


def _encoder_device(encoder: Any, device: str) -> torch.device:
    where = _device.resolve(device)
    if encoder is None:
        if device not in ("auto", "cpu"):
            raise ValueError(f"device={device!r} is the device of an encoder, but encoder is None; pass an encoder or leave device out")
    elif not isinstance(encoder, torch.nn.Module):
        raise TypeError(f"encoder must be a torch.nn.Module or None, got {encoder!r} of type {type(encoder).__name__}")
    return where


def _by_batches(tissues: list[Tissue], batch_size: int, describe: Callable[[Tissue, np.ndarray], np.ndarray]) -> np.ndarray:
    """Features of all spots in the order of the object, computed batch by batch."""
    rows, features = [], []
    for tissue in tissues:
        for start in range(0, len(tissue.rows), batch_size):
            batch = slice(start, start + batch_size)
            rows.append(tissue.rows[batch])
            features.append(describe(tissue, tissue.centres[batch]))
    widths = sorted({part.shape[1] for part in features})
    if len(widths) > 1:
        raise ValueError(f"the encoder returned different numbers of features for different batches: {widths}")
    joined = np.concatenate(features)
    table = np.empty_like(joined)
    table[np.concatenate(rows)] = joined
    return table


def _describe(tissue: Tissue, centres: np.ndarray) -> np.ndarray:
    sizes = [field * tissue.tile_size for field in _FIELDS]
    return np.column_stack([_statistics(cut(tissue.source, centres, size, min(size, _MAX_PIXELS))) for size in sizes])


def _statistics(tiles: np.ndarray) -> np.ndarray:
    """Colour, stains and texture of tiles ``(b, p, p, 3)``: ``(b, 12)``."""
    b, pixels = tiles.shape[:2]
    channels = np.ascontiguousarray(tiles.reshape(b, -1, 3).transpose(0, 2, 1))  # sums along the last axis are fast
    colour = channels.astype(np.float32) / 255
    stains = _UNMIX @ _DENSITY[channels]
    grey = colour.mean(axis=1).reshape(b, pixels, pixels)
    moments = [statistic(axis=2) for values in (colour, stains) for statistic in (values.mean, values.std)]
    return np.column_stack([*moments, _gradient(grey), _gradient(_halved(grey))])


def _gradient(grey: np.ndarray) -> np.ndarray:
    """Root mean square of the difference between neighbouring pixels; 0 for a single pixel."""
    if grey.shape[1] < 2:
        return np.zeros(len(grey), dtype=np.float32)
    down, right = np.diff(grey, axis=1), np.diff(grey, axis=2)
    return np.sqrt(np.square(down).mean(axis=(1, 2)) + np.square(right).mean(axis=(1, 2)))


def _halved(grey: np.ndarray) -> np.ndarray:
    """Means of blocks of 2 x 2 pixels. The last row or column of an odd number is left out."""
    even = grey[:, : grey.shape[1] // 2 * 2, : grey.shape[2] // 2 * 2]
    return (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]) / 4


def _encode(encoder: torch.nn.Module, tissues: list[Tissue], batch_size: int, device: torch.device) -> np.ndarray:
    pixels = max(tissue.tile_size for tissue in tissues)
    precisions = {weight.dtype for weight in encoder.parameters() if weight.is_floating_point()}
    dtype = precisions.pop() if len(precisions) == 1 else torch.float32

    def encode(tissue: Tissue, centres: np.ndarray) -> np.ndarray:
        tiles = torch.from_numpy(cut(tissue.source, centres, tissue.tile_size, pixels))
        images = tiles.to(device).permute(0, 3, 1, 2).contiguous().to(dtype) / 255  # contiguous because a module may call .view
        return _checked(encoder(images), images)

    # A module may make tensors while it runs. They have to be where its weights are.
    with _device.session(device), device, torch.no_grad(), _borrowed(encoder, device):
        return _by_batches(tissues, batch_size, encode)


def _checked(code: Any, images: torch.Tensor) -> np.ndarray:
    """The output of the encoder as float32 ``(b, d)``."""
    if not isinstance(code, torch.Tensor):
        raise TypeError(f"the encoder returned {type(code).__name__}; a tensor (b, d) is needed: wrap it in a module that returns one")
    b = len(images)
    if code.ndim != 2 or len(code) != b or not code.shape[1] or code.is_complex():
        raise ValueError(
            f"the encoder returned {code.dtype} of shape {tuple(code.shape)} for images of shape {tuple(images.shape)}; "
            f"real numbers ({b}, d) are needed, as with torch.nn.Flatten at its end"
        )
    values = code.float().cpu().numpy()
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(
            f"the encoder returned {wrong} values that are NaN or infinite in a batch of shape {values.shape}; "
            "check its weights, and whether it takes images with values from 0 to 1"
        )
    return values


@contextlib.contextmanager
def _borrowed(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """The module in evaluation mode on the device. Its modes and device are restored afterwards."""
    homes = {tensor.device for tensor in chain(module.parameters(), module.buffers())}
    if len(homes) > 1:
        raise ValueError(f"the encoder is spread over {', '.join(sorted(map(str, homes)))}; move it to one device")
    modes = [(each, each.training) for each in module.modules()]
    try:
        module.eval().to(device)
        yield
    finally:
        for home in homes:
            module.to(home)
        for each, training in modes:
            each.training = training
