"""Arrays and files as sources of pixels, and the tiles cut from them."""

from __future__ import annotations

import math
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scimpute._space import image as _image
from scimpute._space.image import cut, from_array, open_image


def noise(height: int = 30, width: int = 40, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def whole(source: _image.Source) -> np.ndarray:
    height, width = source.shape
    return source.region(0, height, 0, width)


# Arrays

RGB = noise()
GREY = RGB[:, :, 0]
GREY_RGB = np.repeat(GREY[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (GREY, GREY_RGB),
        (GREY[:, :, None], GREY_RGB),
        (np.dstack([RGB, GREY]), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(">u2") * 257, RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB.astype(np.float32), RGB),
        (RGB.astype(np.float16), RGB),
        (GREY.astype(">f8"), GREY_RGB),
        (RGB[::-1, ::2], RGB[::-1, ::2]),
        (np.array([[-0.004, 0.5, 1.004]]), np.repeat(np.array([[[0], [128], [255]]]), 3, axis=2)),
        (Image.fromarray(RGB), RGB),
    ],
    ids=[
        "rgb",
        "grey",
        "one channel",
        "alpha",
        "uint16",
        "big-endian",
        "float",
        "float32",
        "to 255",
        "half",
        "grey to 255",
        "strided",
        "overshoot",
        "pillow",
    ],
)
def test_every_kind_of_array(array, expected):
    found = whole(from_array(array))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_dark_image_stays_dark(dtype):
    assert whole(from_array(np.full((4, 5), 1, dtype))).max() <= 1


def test_floats_are_from_0_to_1_where_none_is_above_1():
    np.testing.assert_array_equal(whole(from_array(np.array([[0.0, 1.0]])))[:, :, 0], [[0, 255]])
    np.testing.assert_array_equal(whole(from_array(np.array([[0.0, 1.0, 2.0]])))[:, :, 0], [[0, 1, 2]])


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (
            np.moveaxis(RGB, -1, 0),
            ValueError,
            r"the image has the shape \(3, 30, 40\), which looks channel-first; .*numpy.moveaxis\(image, 0, -1\)",
        ),
        (np.zeros((4, 30, 40), np.uint8), ValueError, "channel-first"),
        (np.zeros((1, 30, 40), np.float32), ValueError, "channel-first"),
        (np.zeros((30, 40, 2), np.uint8), ValueError, r"the shape \(30, 40, 2\); .*1, 3 or 4"),
        (np.zeros((2, 30, 40, 3), np.uint8), ValueError, "the shape"),
        (np.zeros(30, np.uint8), ValueError, "the shape"),
        (np.zeros((0, 40, 3), np.uint8), ValueError, "empty"),
        (RGB.astype(np.int64), TypeError, "dtype int64; uint8, uint16 or float"),
        (RGB > 3, TypeError, "dtype bool"),
        (RGB.astype(complex), TypeError, "dtype complex"),
        (np.array([[0.5, np.nan]]), ValueError, "numbers from nan to nan"),
        (np.array([[0.5, np.inf]]), ValueError, "to inf"),
        (np.array([[-0.5, 0.5]]), ValueError, "numbers from -0.5 to 0.5"),
        (np.array([[-3.0, 200.0]]), ValueError, "0 to 255 is needed"),
        (np.array([[0.0, 300.0]]), ValueError, "0 to 255 is needed"),
    ],
)
def test_errors_of_arrays(array, error, message):
    with pytest.raises(error, match=message):
        whole(from_array(array))


def test_an_image_is_not_converted_whole():
    image = np.linspace(0, 1, 1500 * 1000 * 3, dtype=np.float32).reshape(1500, 1000, 3)
    tracemalloc.start()
    tiles = cut(from_array(image), np.array([[500.0, 700.0], [3.0, 1499.0]]), 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tiles.shape == (2, 20, 20, 3)
    assert peak < image.nbytes / 50


# Tiles


def slow_tile(image: np.ndarray, x: float, y: float, size: int) -> np.ndarray:
    """By padding the whole image."""
    height, width = image.shape[:2]
    margin = 2 * size + 2
    for axis, length in enumerate((height, width)):
        around = [(margin, margin) if each == axis else (0, 0) for each in range(3)]
        image = np.pad(image, around, mode="reflect" if size <= length else "edge")
    x0 = math.floor((2 * min(max(x, 0), width - 1e-6) - size + 1) / 2) + margin
    y0 = math.floor((2 * min(max(y, 0), height - 1e-6) - size + 1) / 2) + margin
    return image[y0 : y0 + size, x0 : x0 + size]


@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    size=st.integers(1, 40),
    centres=st.lists(st.tuples(st.integers(-240, 360), st.integers(-240, 360)), min_size=1, max_size=5),
)
def test_tiles_are_those_of_a_slow_crop(shape, size, centres):
    image = noise(*shape)
    found = cut(from_array(image), np.array(centres) / 4, size)
    assert found.shape == (len(centres), size, size, 3)
    assert found.dtype == np.uint8
    for tile, (x, y) in zip(found, centres):
        np.testing.assert_array_equal(tile, slow_tile(image, x / 4, y / 4, size))


def test_x_is_the_column_and_y_the_row():
    rows, columns = np.mgrid[:30, :40].astype(np.uint8)
    image = np.dstack([columns, rows, np.zeros_like(rows)])
    np.testing.assert_array_equal(cut(from_array(image), np.array([[31.0, 7.9]]), 1)[0, 0, 0], [31, 7, 0])
    tile = cut(from_array(image), np.array([[20, 10]]), 4)[0]
    np.testing.assert_array_equal(tile[:, 0, 1], [8, 9, 10, 11])
    np.testing.assert_array_equal(tile[0, :, 0], [18, 19, 20, 21])
    np.testing.assert_array_equal(cut(from_array(image), np.array([[20.5, 10.5]]), 3)[0, 0, :, 0], [19, 20, 21])


def test_border_by_hand():
    image = np.arange(6, dtype=np.uint8)[None, :].repeat(6, axis=0)
    source = from_array(image)
    np.testing.assert_array_equal(cut(source, np.array([[0, 3]]), 4)[0, 0, :, 0], [2, 1, 0, 1])
    np.testing.assert_array_equal(cut(source, np.array([[6, 3]]), 4)[0, 0, :, 0], [4, 5, 4, 3])
    np.testing.assert_array_equal(cut(source, np.array([[3, 3]]), 10)[0, 0, :, 0], [0, 0, 0, 1, 2, 3, 4, 5, 5, 5])
    np.testing.assert_array_equal(cut(source, np.array([[-50, 3]]), 4), cut(source, np.array([[0, 3]]), 4))
    np.testing.assert_array_equal(cut(source, np.array([[6, 3], [50, 3]]), 1)[:, 0, 0, 0], [5, 5])


@given(size=st.integers(1, 12), pixels=st.integers(1, 12))
def test_pixels_of_another_size_are_means_of_their_area(size, pixels):
    image = noise(20, 20)
    full = cut(from_array(image), np.array([[10.0, 9.0]]), size)[0]
    # Pixels so small that both grids fall on them.
    fine = full.astype(float).repeat(pixels, axis=0).repeat(pixels, axis=1)
    expected = fine.reshape(pixels, size, pixels, size, 3).mean(axis=(1, 3))
    found = cut(from_array(image), np.array([[10.0, 9.0]]), size, pixels)
    assert found.shape == (1, pixels, pixels, 3)
    assert np.abs(found[0] - expected).max() <= 0.501


def test_no_centres():
    assert cut(from_array(RGB), np.zeros((0, 2)), 5).shape == (0, 5, 5, 3)


# Pictures


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("1", "png"), ("RGB", "bmp"), ("L", "tga")],
)
def test_pictures(tmp_path, mode, ending):
    picture = Image.fromarray(RGB).convert(mode)
    picture.save(tmp_path / f"picture.{ending}")
    found = open_image(tmp_path / f"picture.{ending}")
    assert found.shape == (30, 40)
    np.testing.assert_array_equal(whole(found), np.asarray(picture.convert("RGB")))


def test_png_of_16_bits(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.PNG")
    np.testing.assert_array_equal(whole(open_image(tmp_path / "deep.PNG")), GREY_RGB)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(tmp_path, mode):
    smooth = np.dstack([np.linspace(50, 200, 40)[None, :].repeat(30, axis=0)] * 3).astype(np.uint8)
    Image.fromarray(smooth).convert(mode).save(tmp_path / "picture.jpg", quality=95)
    found = whole(open_image(str(tmp_path / "picture.jpg")))
    assert np.abs(found.astype(int) - smooth).max() < 8


def test_errors_of_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="'.*none.png' does not exist"):
        open_image(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        open_image(tmp_path)


def test_not_an_image(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png' cannot be read by Pillow: it is not an image"):
        open_image(tmp_path / "text.png")


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_truncated_picture(tmp_path, ending):
    Image.fromarray(noise(200, 200)).save(tmp_path / f"whole.{ending}")
    content = (tmp_path / f"whole.{ending}").read_bytes()
    (tmp_path / f"half.{ending}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"half.{ending}' cannot be read by Pillow: it is damaged"):
        open_image(tmp_path / f"half.{ending}")


def test_picture_over_the_limit_of_pillow(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r'large.png.*1200 pixels.*tiled TIFF.*pip install "scimpute\[wsi\]"'):
        open_image(tmp_path / "large.png")


@pytest.mark.parametrize("name", ["picture.png", "picture.tif"])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, name):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Permission denied")

    (tmp_path / name).write_bytes(b"secret")
    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setitem(sys.modules, "openslide", None)
    monkeypatch.setitem(sys.modules, "tifffile", SimpleNamespace(TiffFile=refuse))
    with pytest.raises(PermissionError):
        open_image(tmp_path / name)


# TIFF


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


@pytest.fixture
def no_openslide(monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)


TIFFS = {
    "plain": (RGB, {"photometric": "rgb"}),
    "compressed": (RGB, {"photometric": "rgb", "compression": "zlib"}),
    "tiled": (RGB, {"photometric": "rgb", "tile": (32, 32)}),
    "tiled and compressed": (RGB, {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}),
    "planar": (np.moveaxis(RGB, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
    "alpha": (np.dstack([RGB, np.full_like(GREY, 255)]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "16 bits": (RGB.astype(np.uint16) * 257, {"photometric": "rgb"}),
    "big-endian": (RGB.astype(">u2") * 257, {"photometric": "rgb", "byteorder": ">"}),
    "floats": ((RGB / 255).astype(np.float32), {"photometric": "rgb"}),
    "ome": (RGB, {"photometric": "rgb", "ome": True}),
}


@pytest.mark.parametrize("kind", TIFFS)
@pytest.mark.parametrize("reader", ["tifffile", "any"])
def test_tiff(tmp_path, tifffile, monkeypatch, kind, reader):
    if reader == "tifffile":
        monkeypatch.setitem(sys.modules, "openslide", None)
    array, options = TIFFS[kind]
    tifffile.imwrite(tmp_path / "image.tif", array, **options)
    found = open_image(tmp_path / "image.tif")
    assert found.shape == (30, 40)
    np.testing.assert_array_equal(whole(found), RGB)
    np.testing.assert_array_equal(found.region(3, 20, 7, 9), RGB[3:20, 7:9])


def test_grey_tiff(tmp_path, tifffile):
    tifffile.imwrite(tmp_path / "grey.TIFF", GREY, photometric="minisblack")
    np.testing.assert_array_equal(whole(open_image(tmp_path / "grey.TIFF")), GREY_RGB)


def test_plain_tiff_is_mapped_not_read(tmp_path, tifffile, monkeypatch):
    tifffile.imwrite(tmp_path / "large.tif", noise(500, 500), photometric="rgb")
    tifffile.imwrite(tmp_path / "packed.tif", noise(500, 500), photometric="rgb", compression="zlib")
    monkeypatch.setattr("scimpute._check._available_memory", lambda: 1000)
    np.testing.assert_array_equal(open_image(tmp_path / "large.tif").region(9, 12, 400, 490), noise(500, 500)[9:12, 400:490])
    with pytest.raises(MemoryError, match=r"tiled TIFF.*scimpute\[wsi\]"):
        open_image(tmp_path / "packed.tif")


@pytest.mark.parametrize("tile", [None, (32, 32)], ids=["plain", "tiled"])
def test_a_stack_is_refused(tmp_path, tifffile, tile):
    """openslide would show the first plane and not say so."""
    tifffile.imwrite(tmp_path / "stack.tif", np.moveaxis(RGB, -1, 0), photometric="minisblack", tile=tile)
    with pytest.raises(ValueError, match=r"stack.tif has the shape \(3, 30, 40\), which looks channel-first"):
        open_image(tmp_path / "stack.tif")


def test_inverted_tiff_is_refused(tmp_path, tifffile):
    tifffile.imwrite(tmp_path / "negative.tif", GREY, photometric="miniswhite")
    with pytest.raises(ValueError, match="negative.tif' cannot be read by tifffile: its colours are stored as MINISWHITE"):
        open_image(tmp_path / "negative.tif")


@pytest.mark.parametrize("kind", ["plain", "compressed", "tiled", "tiled and compressed"])
@pytest.mark.parametrize("share", [0.001, 0.6])
def test_truncated_tiff(tmp_path, tifffile, no_openslide, kind, share):
    array, options = TIFFS[kind]
    tifffile.imwrite(tmp_path / "whole.tif", array, **options)
    content = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "part.tif").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="part.tif' cannot be read by tifffile"):
        open_image(tmp_path / "part.tif")


@pytest.mark.parametrize(
    ("name", "extra"), [("a.tif", "image"), ("a.tiff", "image"), ("a.svs", "wsi"), ("a.ndpi", "wsi"), ("a.mrxs", "wsi")]
)
def test_missing_packages_are_named(tmp_path, monkeypatch, name, extra):
    for package in ("tifffile", "openslide"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ImportError, match=rf'{name}.*pip install "scimpute\[{extra}\]"'):
        open_image(tmp_path / name)


# Whole slides


@pytest.fixture
def pyramid(tmp_path, tifffile) -> Path:
    """A tiled TIFF of two levels."""
    image = noise(300, 400)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(image, photometric="rgb", tile=(64, 64), compression="zlib")
        file.write(image[::2, ::2], photometric="rgb", tile=(64, 64), compression="zlib", subfiletype=1)
    return tmp_path / "slide.tif"


def test_slide_is_read_tile_by_tile(pyramid, monkeypatch):
    openslide = pytest.importorskip("openslide")
    read, original = [], openslide.OpenSlide.read_region
    monkeypatch.setattr(openslide.OpenSlide, "read_region", lambda *given: (read.append(given[1:]), original(*given))[1])
    source = open_image(pyramid)
    assert source.shape == (300, 400)
    centres = np.array([[350.0, 100.0], [2.0, 298.0], [400.0, 0.0]])
    np.testing.assert_array_equal(cut(source, centres, 30), cut(from_array(noise(300, 400)), centres, 30))
    assert [level for _, level, _ in read] == [0, 0, 0]
    assert max(max(size) for _, _, size in read) <= 30
    np.testing.assert_array_equal(cut(source, centres, 500, 20), cut(from_array(noise(300, 400)), centres, 500, 20))


def test_without_openslide_tifffile_reads_a_pyramid(pyramid, no_openslide):
    np.testing.assert_array_equal(whole(open_image(pyramid)), noise(300, 400))


def test_damaged_slide(pyramid, tifffile):
    pytest.importorskip("openslide")
    with tifffile.TiffFile(pyramid) as file:
        start = file.pages[0].dataoffsets[0]
    content = pyramid.read_bytes()
    pyramid.write_bytes(content[:start] + b"\0" * 500 + content[start + 500 :])
    with pytest.raises(ValueError, match="slide.tif' cannot be read by openslide"):
        open_image(pyramid).region(0, 60, 0, 60)


def test_not_a_slide(tmp_path):
    pytest.importorskip("openslide")
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(ValueError, match="text.svs' cannot be read by openslide"):
        open_image(tmp_path / "text.svs")


def test_what_was_not_scanned_is_white(tmp_path, monkeypatch):
    picture = np.dstack([RGB, np.full_like(GREY, 255)])
    picture[:10] = 0

    class OpenSlide:
        dimensions = (40, 30)

        def __init__(self, path: Path) -> None:
            assert path.name == "slide.mrxs"

        def read_region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
            (x, y), (width, height) = corner, size
            return Image.fromarray(picture[y : y + height, x : x + width])

    monkeypatch.setitem(sys.modules, "openslide", SimpleNamespace(OpenSlide=OpenSlide, OpenSlideError=RuntimeError))
    (tmp_path / "slide.mrxs").write_bytes(b"")
    found = whole(open_image(tmp_path / "slide.mrxs"))
    assert (found[:10] == 255).all()
    np.testing.assert_array_equal(found[10:], RGB[10:])
