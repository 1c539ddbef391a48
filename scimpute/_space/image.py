"""Images. Any array or file becomes a source of 8-bit RGB pixels, and tiles are cut from a source.

A source is read region by region. Therefore a slide of any size never has to fit into memory.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from .. import _check

_SLIDES = {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu"}
"""Endings of whole-slide files that only openslide can read."""
_TIFF = {".tif", ".tiff"}
_SLACK = 0.01
"""Values may lie outside the scale by this share of it, because interpolation overshoots."""


class Source(Protocol):
    """An image of ``shape`` (height, width)."""

    shape: tuple[int, int]

    def region(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Rows ``y0`` to ``y1`` and columns ``x0`` to ``x1`` as uint8 ``(y1 - y0, x1 - x0, 3)``. All must lie inside the image."""
        ...


class _Array:
    """An image in memory, or mapped to memory. A region is converted when it is read."""

    def __init__(self, array: np.ndarray, name: str) -> None:
        self._array = _three_axes(array, name)
        self._top = _full_scale(self._array, name)
        self.shape = (int(array.shape[0]), int(array.shape[1]))

    def region(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        part = self._array[y0:y1, x0:x1]
        if part.dtype != np.uint8:
            part = np.rint(np.clip(part * np.float32(255 / self._top), 0, 255)).astype(np.uint8)
        return np.repeat(part, 3, axis=2) if part.shape[2] == 1 else np.asarray(part)


def _three_axes(array: np.ndarray, name: str) -> np.ndarray:
    """A view ``(height, width, 1 or 3)``. A grey image gets a third axis; alpha is dropped."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"{name} has the shape {array.shape}, which looks channel-first; transpose it to (height, width, channels) "
            "with numpy.moveaxis(image, 0, -1)"
        )
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(f"{name} has the shape {array.shape}; (height, width), or (height, width, channels) with 1, 3 or 4 is needed")
    if 0 in array.shape:
        raise ValueError(f"{name} has the shape {array.shape}: it is empty")
    return array[:, :, :3]


def _full_scale(array: np.ndarray, name: str) -> float:
    """The value of white.

    For integers the dtype decides, so that a dark image stays dark. Floats are on the scale 0 to 1 if none is above 1, otherwise on the
    scale 0 to 255.
    """
    if array.dtype == np.uint8:
        return 255.0
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return 65535.0
    if array.dtype.kind != "f":
        raise TypeError(f"{name} is of dtype {array.dtype}; uint8, uint16 or float (0 to 1, or 0 to 255) is needed")
    low, high = float(array.min()), float(array.max())  # both are NaN if any value is NaN
    top = 1.0 if high <= 1 + _SLACK else 255.0
    if not (low >= -_SLACK * top and high <= (1 + _SLACK) * top):
        raise ValueError(f"{name} is of dtype {array.dtype} with numbers from {low:g} to {high:g}; 0 to 1 or 0 to 255 is needed")
    return top


def from_array(array: Any, name: str = "the image") -> Source:
    """An array as a source.

    Parameters
    ----------
    array
        Grey ``(height, width)`` or ``(height, width, 1)``, RGB, or RGBA; alpha is dropped. uint8 and uint16 are scaled by their dtype.
        Floats are on the scale 0 to 1 if none is above 1, otherwise on the scale 0 to 255.
    name
        Name of the image in messages.

    Raises
    ------
    TypeError, ValueError
        The dtype or the shape is not supported, such as channels on the first axis; floats are NaN or outside 0 to 255.
    """
    return _Array(np.asarray(array), name)


def open_image(path: str | os.PathLike[str]) -> Source:
    """A file as a source. The ending of its name decides how it is read.

    Pillow decodes PNG, JPEG and its other formats whole. openslide reads whole-slide files and tiled TIFF region by region. tifffile reads
    other TIFF: it maps uncompressed files to memory and decodes compressed files whole.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        The file does not exist.
    ImportError
        The package for this format is not installed.
    ValueError
        The file is damaged, is not an image, or is too large to be decoded whole.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"image: {str(path)!r} is a directory; give an image file")
    if not path.exists():
        raise FileNotFoundError(f"image: {str(path)!r} does not exist")
    suffix = path.suffix.lower()
    if suffix in _SLIDES or (suffix in _TIFF and _openslide_reads(path)):
        return _Slide(path)
    return _read_tiff(path) if suffix in _TIFF else _read_picture(path)


def _optional(module: str, extra: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'reading {path.name!r} needs {module}: pip install "scimpute[{extra}]"') from error


def _unreadable(path: Path, reader: str, why: Any) -> ValueError:
    return ValueError(f"image: {str(path)!r} cannot be read by {reader}: {why}")


def _read_picture(path: Path) -> Source:
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits; older versions of Pillow open them as 32
                return from_array(np.asarray(image).astype(np.uint16), path.name)
            return from_array(np.asarray(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")), path.name)
    except Image.DecompressionBombError as error:
        raise _unreadable(
            path,
            "Pillow",
            f'{error}. Save it as a tiled TIFF, which is read region by region with pip install "scimpute[wsi]"',
        ) from error
    except UnidentifiedImageError as error:
        raise _unreadable(path, "Pillow", "it is not an image of a known format") from error
    except PermissionError:
        raise
    except (OSError, SyntaxError) as error:  # Pillow raises these for a damaged file
        raise _unreadable(path, "Pillow", f"it is damaged ({error})") from error


def _read_tiff(path: Path) -> Source:
    tifffile = _optional("tifffile", "image", path)
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            colours, mapped = series.keyframe.photometric.name, series.dataoffset is not None
            if not mapped:
                _check.memory(series.nbytes, 'save it as a tiled TIFF and pip install "scimpute[wsi]" to read it region by region')
            array = tifffile.memmap(path, mode="r") if mapped else series.asarray()
            if series.axes == "SYX":  # one plane after the other
                array = np.moveaxis(array, 0, -1)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise any error: struct.error, zlib.error, IndexError
        raise _unreadable(path, "tifffile", error) from error
    if colours not in ("MINISBLACK", "RGB", "YCBCR"):
        raise _unreadable(path, "tifffile", f"its colours are stored as {colours}; save it as RGB")
    return from_array(array, path.name)


def _openslide_reads(path: Path) -> bool:
    """Whether openslide is installed and can read the file. Of plain TIFF it reads only tiled files."""
    try:
        openslide = importlib.import_module("openslide")
    except ImportError:
        return False
    return openslide.OpenSlide.detect_format(path) is not None and not _is_stack(path)


def _is_stack(path: Path) -> bool:
    """Whether the file has several planes (channels, depths). openslide would read only the first one, without a warning.

    Only tifffile reports the planes. If it is not installed or cannot read the file, the answer is False.
    """
    try:
        with importlib.import_module("tifffile").TiffFile(path) as file:
            return not set(file.series[0].axes) <= set("YXS")
    except Exception:
        return False


class _Slide:
    """A whole-slide file at its full resolution."""

    def __init__(self, path: Path) -> None:
        openslide = _optional("openslide", "wsi", path)
        self._path, self._error = path, openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise _unreadable(path, "openslide", error) from error
        width, height = self._slide.dimensions
        self.shape = (height, width)

    def region(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        try:
            pixels = self._slide.read_region((x0, y0), 0, (x1 - x0, y1 - y0))
        except self._error as error:
            raise _unreadable(self._path, "openslide", error) from error
        # Areas that were not scanned are transparent black. They become white, like the glass around the tissue.
        white = Image.new("RGB", pixels.size, (255, 255, 255))
        white.paste(pixels, mask=pixels.getchannel("A"))
        return np.asarray(white)


def cut(source: Source, centres: np.ndarray, size: int, pixels: int | None = None) -> np.ndarray:
    """Square tiles around points of an image.

    Column ``c`` of the image covers ``c <= x < c + 1``. A tile of one pixel is therefore the pixel that contains the point. Beyond the
    border the image is mirrored. A tile that is larger than the image repeats the border instead. A point outside the image gets the tile
    of the nearest point inside.

    Parameters
    ----------
    source
        The image.
    centres
        Points ``(n, 2)``: x, y (column, row) in pixels of this image.
    size
        Side of a tile in pixels of this image.
    pixels
        Side of the returned tiles; None keeps ``size``. Each new pixel is the mean of the area that it covers.

    Returns
    -------
    uint8 ``(n, pixels, pixels, 3)``. Beside this array, one tile at a time is in memory.
    """
    pixels = size if pixels is None else pixels
    height, width = source.shape
    # The middle of a tile is a pixel if the side is odd, and a line between pixels if the side is even.
    odd = size % 2
    middles = np.floor(np.asarray(centres, dtype=np.float64) + (1 - odd) / 2)
    starts = np.clip(middles, 0, (width - odd, height - odd)).astype(np.int64) - size // 2
    weights = _area_weights(size, pixels)
    tiles = np.empty((len(starts), pixels, pixels, 3), dtype=np.uint8)
    for tile, (x, y) in zip(tiles, starts.tolist(), strict=True):
        window = _window(source, y, x, size)
        tile[...] = window if pixels == size else _resized(window, weights)
    return tiles


def _window(source: Source, y: int, x: int, size: int) -> np.ndarray:
    height, width = source.shape
    if 0 <= y <= height - size and 0 <= x <= width - size:
        return source.region(y, y + size, x, x + size)
    rows, columns = _mirrored(y, size, height), _mirrored(x, size, width)
    y0, x0 = rows.min(), columns.min()
    region = source.region(int(y0), int(rows.max()) + 1, int(x0), int(columns.max()) + 1)
    return region[np.ix_(rows - y0, columns - x0)]


def _mirrored(start: int, size: int, length: int) -> np.ndarray:
    """Indices into an axis of the image for ``size`` indices from ``start`` on. Indices outside the image are mirrored."""
    places, last = np.arange(start, start + size), length - 1
    if size <= length:
        places = last - np.abs(last - np.abs(places))
    return np.clip(places, 0, last)


def _area_weights(size: int, pixels: int) -> np.ndarray:
    """Weight of each old pixel in each new pixel along one side, ``(pixels, size)``."""
    edges, old = np.linspace(0, size, pixels + 1), np.arange(size)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return (np.maximum(overlap, 0) * (pixels / size)).astype(np.float32)


def _resized(tile: np.ndarray, weights: np.ndarray) -> np.ndarray:
    pixels, size = weights.shape
    rows = (weights @ tile.reshape(size, size * 3).astype(np.float32)).reshape(pixels, size, 3)
    return np.rint(weights @ rows).astype(np.uint8)
