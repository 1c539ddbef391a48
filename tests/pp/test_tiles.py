"""Images, scale factors and positions of an object, and what ``pp.tiles`` makes of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from scimpute import pp
from scimpute._anndata.tissue import cut_tiles, read_tissues
from scimpute._space.image import cut

WIDTH, HEIGHT, SCALE, PITCH = 90, 70, 0.25, 36.0
"""Pixels of the hires image, its pixels per pixel of the full resolution, pixels of the latter from spot to spot."""


def picture(seed: int = 0) -> np.ndarray:
    """Smooth in x and y, each in its own way, with noise."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.dstack([columns * 2, rows * 3, np.full_like(rows, 120)])
    return (image + np.random.default_rng(seed).integers(0, 30, image.shape)).astype(np.uint8)


def section(seed: int = 0) -> dict[str, Any]:
    factors = {"tissue_hires_scalef": SCALE, "tissue_lowres_scalef": SCALE / 2, "spot_diameter_fullres": 40.0}
    image = picture(seed)
    return {"images": {"hires": image, "lowres": (image[::2, ::2] / 255).astype(np.float32)}, "scalefactors": factors, "metadata": {}}


@pytest.fixture
def visium() -> ad.AnnData:
    """8 x 6 spots of one section; the first and the last lie near the border."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:6, :8].reshape(2, -1) * PITCH + 20 + rng.uniform(0, 10, (2, 48))
    adata = ad.AnnData(rng.poisson(2, (48, 5)).astype(np.float32))
    adata.obs_names = [f"spot{i}" for i in range(48)]
    adata.obs["patient"] = np.repeat(["A", "B"], 24)
    adata.obsm["spatial"] = np.column_stack([x, y])
    adata.uns["spatial"] = {"V1": section()}
    return adata


def spot_tiles(adata: ad.AnnData, *args: Any, pixels: int | None = None, **kwargs: Any) -> np.ndarray:
    """The tile of every spot."""
    return cut_tiles(read_tissues(adata, *args, **kwargs), adata.n_obs, pixels)


@pytest.fixture
def two(visium) -> ad.AnnData:
    """Spots of two sections in turn."""
    visium.obs["slide"] = pd.Categorical(np.where(np.arange(48) % 2, "V2", "V1"))
    visium.uns["spatial"]["V2"] = section(5)
    return visium


# Which pixels


def test_a_tile_is_what_is_cut_by_hand(visium):
    """x is the column and y the row; the diameter is 40 * 0.25 = 10 pixels."""
    tiles, image = spot_tiles(visium), visium.uns["spatial"]["V1"]["images"]["hires"]
    assert tiles.shape == (48, 10, 10, 3)
    inside = 0
    for tile, (x, y) in zip(tiles, visium.obsm["spatial"] * SCALE):
        column, row = round(x) - 5, round(y) - 5
        if 0 <= column <= WIDTH - 10 and 0 <= row <= HEIGHT - 10:
            np.testing.assert_array_equal(tile, image[row : row + 10, column : column + 10])
            inside += 1
    assert inside > 40


def test_border_tiles_are_mirrored(visium):
    visium.obsm["spatial"][0] = 0
    tile, image = spot_tiles(visium)[0], picture()
    np.testing.assert_array_equal(tile[5:, 5:], image[:5, :5])
    np.testing.assert_array_equal(tile[:5, :5], image[5:0:-1, 5:0:-1])


def test_another_image_of_the_section(visium):
    """The spots are 5 pixels wide in it, and tiles at least 8."""
    tiles = spot_tiles(visium, "lowres")
    assert tiles.shape == (48, 8, 8, 3)
    x, y = np.rint(visium.obsm["spatial"][20] * SCALE / 2).astype(int)
    np.testing.assert_array_equal(tiles[20], picture()[::2, ::2][y - 4 : y + 4, x - 4 : x + 4])


def test_each_section_has_its_own_image(two):
    tiles = spot_tiles(two, library_key="slide")
    for name, start in (("V1", 0), ("V2", 1)):
        alone = two[start::2].copy()
        alone.uns["spatial"] = {name: two.uns["spatial"][name]}
        np.testing.assert_array_equal(tiles[start::2], spot_tiles(alone))
        np.testing.assert_array_equal(tiles[start::2], spot_tiles(two[start::2], library_key="slide"))
    assert (spot_tiles(two[::2], library_key="slide") != spot_tiles(two[1::2], library_key="slide")).any()


def test_flags_beside_the_sections_are_no_sections(visium):
    expected = spot_tiles(visium)
    visium.uns["spatial"]["is_single"] = True
    np.testing.assert_array_equal(spot_tiles(visium), expected)


@pytest.mark.parametrize(("diameter", "sizes"), [(40.0, [10, 10]), (37.0, [10, 10]), (36.0, [10, 9]), (80.0, [20, 20]), (4.0, [10, 8])])
def test_sizes_of_sections(two, diameter, sizes):
    two.uns["spatial"]["V2"]["scalefactors"]["spot_diameter_fullres"] = diameter
    if diameter == 80:
        two.uns["spatial"]["V1"]["scalefactors"]["spot_diameter_fullres"] = np.float32(78)
    found = read_tissues(two, library_key="slide")
    assert [tissue.tile_size for tissue in found] == sizes
    assert spot_tiles(two, library_key="slide").shape == (48, max(sizes), max(sizes), 3)
    pp.tiles(two, library_key="slide")
    assert two.uns["tiles"]["params"]["tile_size"] == sizes


def test_sizes_of_a_part_as_of_the_whole(two):
    """V2 has spots 9.25 pixels wide: alone it would get 9, and beside V1 it gets 10."""
    factors = two.uns["spatial"]["V2"]["scalefactors"]
    factors["spot_diameter_fullres"] = 37.0
    alone = two[1::2].copy()
    (own,), (as_before,) = (read_tissues(alone, library_key="slide", widest=widest) for widest in (None, 10))
    assert (own.tile_size, as_before.tile_size) == (9, 10)
    np.testing.assert_array_equal(cut_tiles([as_before], 24, None), spot_tiles(two, library_key="slide")[1::2])
    factors["spot_diameter_fullres"] = 44.0
    assert [tissue.tile_size for tissue in read_tissues(two, library_key="slide", widest=10)] == [10, 11]


def test_tiles_of_another_number_of_pixels(visium):
    tiles = spot_tiles(visium, tile_size=12.0)
    assert tiles.shape == (48, 12, 12, 3)
    smaller = spot_tiles(visium, tile_size=12, pixels=4)
    means = tiles.reshape(48, 4, 3, 4, 3, 3).mean(axis=(2, 4))
    assert np.abs(smaller - means).max() <= 0.501


def test_a_tile_larger_than_the_image(visium):
    tiles = spot_tiles(visium, tile_size=200)
    assert tiles.shape == (48, 200, 200, 3)
    pp.tiles(visium, tile_size=200)
    assert np.isfinite(visium.obsm["tiles"]).all()


# Images from elsewhere


def test_a_given_image_has_the_full_resolution(visium):
    expected = spot_tiles(visium)
    image = picture()
    np.testing.assert_array_equal(spot_tiles(visium, image=image, scale=SCALE), expected)
    large = image.repeat(4, axis=0).repeat(4, axis=1)
    assert spot_tiles(visium, image=large).shape == (48, 40, 40, 3)
    visium.obsm["spatial"] *= SCALE
    np.testing.assert_array_equal(spot_tiles(visium, image=image, tile_size=10), expected)
    del visium.uns["spatial"]
    np.testing.assert_array_equal(spot_tiles(visium, image=image, tile_size=10), expected)


@pytest.mark.parametrize("kind", ["array", "file", "mapping"])
def test_given_images(two, tmp_path, kind):
    expected = spot_tiles(two, library_key="slide")
    images: dict[str, Any] = {name: two.uns["spatial"][name]["images"]["hires"] for name in ("V2", "V1")}
    if kind == "file":
        for name, image in images.items():
            Image.fromarray(image).save(tmp_path / f"{name}.png")
        images = {"V1": tmp_path / "V1.png", "V2": str(tmp_path / "V2.png")}
    scale = {"V1": SCALE, "V2": SCALE} if kind == "mapping" else SCALE
    np.testing.assert_array_equal(spot_tiles(two, library_key="slide", image=images, scale=scale), expected)
    pp.tiles(two, library_key="slide", image=images, scale=scale)
    assert two.uns["tiles"]["params"]["image"] == (
        [str(tmp_path / "V1.png"), str(tmp_path / "V2.png")] if kind == "file" else ["array"] * 2
    )


def test_a_given_image_for_the_only_section_left(two):
    one = two[::2].copy()
    expected = spot_tiles(one, library_key="slide")
    np.testing.assert_array_equal(spot_tiles(one, library_key="slide", image=picture(), scale=SCALE), expected)
    np.testing.assert_array_equal(spot_tiles(one, library_key="slide", image={"V1": picture()}, scale=SCALE), expected)


def test_scale_instead_of_the_stored_factor(visium):
    expected = spot_tiles(visium)
    del visium.uns["spatial"]["V1"]["scalefactors"]["tissue_hires_scalef"]
    np.testing.assert_array_equal(spot_tiles(visium, scale=SCALE), expected)


def test_a_slide_is_read_tile_by_tile(visium, tmp_path, monkeypatch):
    tifffile, openslide = pytest.importorskip("tifffile"), pytest.importorskip("openslide")
    large = picture().repeat(4, axis=0).repeat(4, axis=1)
    tifffile.imwrite(tmp_path / "slide.tif", large, photometric="rgb", tile=(64, 64), compression="zlib")
    sizes, original = [], openslide.OpenSlide.read_region
    monkeypatch.setattr(openslide.OpenSlide, "read_region", lambda *given: (sizes.append(given[3]), original(*given))[1])
    np.testing.assert_array_equal(spot_tiles(visium, image=tmp_path / "slide.tif"), spot_tiles(visium, image=large))
    assert len(sizes) == 48
    assert np.max(sizes) <= 40


# The default features


def flat(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


def features(adata: ad.AnnData, **arguments: Any) -> pd.DataFrame:
    pp.tiles(adata, **arguments)
    return pd.DataFrame(adata.obsm["tiles"], adata.obs_names, adata.uns["tiles"]["features"])


def test_names(visium):
    found = features(visium)
    assert found.shape == (48, 36)
    assert found.columns.is_unique
    assert list(found.columns[:4]) == ["1x_red_mean", "1x_green_mean", "1x_blue_mean", "1x_red_sd"]
    assert [name[:3] for name in found.columns[::12]] == ["1x_", "2x_", "4x_"]


def test_features_of_one_colour(visium):
    found = features(visium, image=flat((200, 100, 51)), scale=SCALE)
    for field in ("1x", "2x", "4x"):
        means = found[[f"{field}_{colour}_mean" for colour in ("red", "green", "blue")]]
        np.testing.assert_allclose(means, np.tile([200 / 255, 100 / 255, 0.2], (48, 1)), rtol=1e-5)
        rest = found[[name for name in found if name.startswith(field) and ("_sd" in name or "gradient" in name)]]
        assert rest.shape == (48, 7)
        np.testing.assert_allclose(rest, 0, atol=1e-6)


@pytest.mark.parametrize(("stain", "densities"), [("haematoxylin", (0.65, 0.70, 0.29)), ("eosin", (0.07, 0.99, 0.11))])
def test_features_of_one_stain(visium, stain, densities):
    densities = np.array(densities) / np.linalg.norm(densities) * 0.4
    colour = np.rint(256 * 10**-densities - 1).astype(int)
    found = features(visium, image=flat(tuple(colour)), scale=SCALE)
    for other in ("haematoxylin", "eosin"):
        np.testing.assert_allclose(found[f"2x_{other}_mean"], 0.4 if other == stain else 0, atol=0.01)


def test_statistics_by_hand(visium):
    """Of the field of 4 tiles, 40 pixels wide, in the middle of the image."""
    visium.obsm["spatial"][7] = np.array([45, 35]) / SCALE
    found = features(visium).loc["spot7"]
    field = picture()[15:55, 25:65].astype(float)
    np.testing.assert_allclose(found[["4x_red_mean", "4x_green_mean", "4x_blue_mean"]], field.mean((0, 1)) / 255, rtol=1e-5)
    np.testing.assert_allclose(found[["4x_red_sd", "4x_green_sd", "4x_blue_sd"]], field.std((0, 1)) / 255, rtol=1e-4)
    for name, grey in (("fine", field.mean(2)), ("coarse", field.mean(2).reshape(20, 2, 20, 2).mean((1, 3)))):
        expected = np.sqrt((np.diff(grey, axis=0) ** 2).mean() + (np.diff(grey, axis=1) ** 2).mean()) / 255
        assert found[f"4x_gradient_{name}"] == pytest.approx(expected, rel=1e-4)


def test_wide_fields_are_reduced(visium, replace_everywhere):
    seen = []
    replace_everywhere(cut, lambda *given: (seen.append(given[2:]), cut(*given))[1])
    pp.tiles(visium, tile_size=40)
    assert seen == [(40, 40), (80, 64), (160, 64)]


@pytest.mark.parametrize("tile_size", [1, 2, 3, 5])
def test_small_tiles(visium, tile_size):
    assert np.isfinite(features(visium, tile_size=tile_size)).all(axis=None)


def test_batches_order_and_other_spots_do_not_matter(two):
    expected = features(two, library_key="slide")
    pd.testing.assert_frame_equal(features(two, library_key="slide", batch_size=5), expected, rtol=1e-5)
    order = np.random.default_rng(0).permutation(48)[:30]
    pd.testing.assert_frame_equal(features(two[order].copy(), library_key="slide"), expected.iloc[order], rtol=1e-5)


def test_positions_of_any_kind(visium):
    expected = features(visium)
    positions = visium.obsm["spatial"]
    visium.obsm["spatial"] = np.column_stack([positions, np.full(48, np.pi)])
    pd.testing.assert_frame_equal(features(visium), expected)
    visium.obsm["spatial"] = pd.DataFrame(positions, visium.obs_names, ["x", "y"])
    pd.testing.assert_frame_equal(features(visium), expected)


# What is written


def test_only_the_promised_keys_are_new(two, fingerprint, states):
    before, state = fingerprint(two), states()
    assert pp.tiles(two, library_key="slide", key_added="image") is None
    after = fingerprint(two)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"obsm/image", "uns/image"}
    assert states() == state
    assert two.obsm["image"].dtype == np.float32
    assert two.uns["image"]["method"] == "tiles"
    assert two.uns["image"]["params"] == {
        "image": ["hires", "hires"],
        "sections": ["V1", "V2"],
        "tile_size": [10, 10],
        "scale": [SCALE, SCALE],
        "encoder": "statistics",
        "library_key": "slide",
    }


def test_copy_and_view(visium, fingerprint):
    before = fingerprint(visium)
    done = pp.tiles(visium, copy=True)
    assert fingerprint(visium) == before
    view = visium[5:20]
    with pytest.warns(ad.ImplicitModificationWarning):
        pp.tiles(view)
    assert fingerprint(visium) == before
    np.testing.assert_allclose(view.obsm["tiles"], done.obsm["tiles"][5:20], rtol=1e-5)


def test_run_again_replaces(visium):
    pp.tiles(visium)
    pp.tiles(visium, encoder=torch.nn.Flatten(), tile_size=2)
    assert visium.obsm["tiles"].shape == (48, 12)
    assert "features" not in visium.uns["tiles"]
    assert visium.uns["tiles"]["params"]["encoder"] == "Flatten"


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_survives_a_file(two, fingerprint, tmp_path, kind):
    pp.tiles(two, library_key="slide")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's own
        getattr(two, f"write_{kind}")(tmp_path / f"tiles.{kind}")
        read = getattr(ad, f"read_{kind}")(tmp_path / f"tiles.{kind}")
    assert fingerprint(read)["obsm/tiles"] == fingerprint(two)["obsm/tiles"]
    assert list(read.uns["tiles"]["features"]) == two.uns["tiles"]["features"]
    assert list(read.uns["tiles"]["params"]["tile_size"]) == [10, 10]


def test_backed(visium, tmp_path):
    visium.write_h5ad(tmp_path / "backed.h5ad")
    on_disk = ad.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    with pytest.warns(UserWarning, match="in memory only"):
        pp.tiles(on_disk)
    pp.tiles(visium)
    np.testing.assert_array_equal(on_disk.obsm["tiles"], visium.obsm["tiles"])
    on_disk.file.close()


# Encoders


class Encoder(torch.nn.Module):
    """Mean and standard deviation of the channels; keeps what it was called with and under what state."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.drop = torch.nn.Dropout(0.9)
        self.calls: list[tuple[Any, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        state = (self.training, self.norm.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))
        self.calls.append((images.shape, images.dtype, float(images.min()), float(images.max()), *state))
        images = self.drop(self.norm(images))
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


def test_encoder(two):
    encoder = Encoder()
    encoder.norm.eval()  # a part that its owner has frozen
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pp.tiles(two, library_key="slide", encoder=encoder, batch_size=20)
    assert [call[0] for call in encoder.calls] == [(20, 3, 10, 10), (4, 3, 10, 10)] * 2
    for _, dtype, low, high, *state in encoder.calls:
        assert dtype == torch.float32
        assert 0 <= low < high <= 1
        assert high > 0.5
        assert state == [False, False, False, False]
    assert (encoder.training, encoder.norm.training, encoder.drop.training) == (True, False, True)
    assert all((encoder.state_dict()[name] == value).all() for name, value in before.items())
    means = spot_tiles(two, library_key="slide").mean((1, 2)) / 255
    np.testing.assert_allclose(two.obsm["tiles"][:, :3], means, rtol=1e-4)
    assert two.obsm["tiles"].dtype == np.float32
    assert two.uns["tiles"]["params"]["encoder"] == "Encoder"


def test_encoder_whatever_the_caller_has_set(visium, states):
    encoder = Encoder().eval()
    pp.tiles(visium, encoder=encoder, key_added="plain")
    state = states()
    with torch.inference_mode(), torch.autocast("cpu"):
        pp.tiles(visium, encoder=encoder)
    assert states() == state
    np.testing.assert_array_equal(visium.obsm["tiles"], visium.obsm["plain"])
    assert not encoder.training


def test_encoder_sees_tiles_of_one_size(two):
    two.uns["spatial"]["V2"]["scalefactors"]["spot_diameter_fullres"] = 60
    pp.tiles(two, library_key="slide", encoder=torch.nn.Flatten())
    assert two.obsm["tiles"].shape == (48, 3 * 15 * 15)
    assert two.uns["tiles"]["params"]["tile_size"] == [10, 15]
    np.testing.assert_allclose(
        two.obsm["tiles"][1].reshape(3, 15, 15).transpose(1, 2, 0), spot_tiles(two, library_key="slide")[1] / 255, rtol=1e-5
    )


class Moves(Encoder):
    """Notes where it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[str] = []

    def to(self, device: Any) -> Moves:
        self.moves.append(str(device))
        return super().to("cpu")


def test_encoder_is_put_back_also_after_a_failure(visium, monkeypatch, fingerprint):
    encoder = Moves()
    pp.tiles(visium, encoder=encoder)
    assert encoder.moves == ["cpu", "cpu"]
    before = fingerprint(visium)
    for error in (ValueError("broken"), KeyboardInterrupt()):
        monkeypatch.setattr(encoder.drop, "forward", lambda _, error=error: (_ for _ in ()).throw(error))
        encoder.moves = []
        with pytest.raises(type(error)):
            pp.tiles(visium, encoder=encoder)
        assert encoder.moves == ["cpu", "cpu"]
        assert all(module.training for module in encoder.modules())
        assert fingerprint(visium) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_encoder_on_a_device(visium):
    encoder = Encoder()
    pp.tiles(visium, encoder=encoder, device="cpu", key_added="cpu")
    pp.tiles(visium, encoder=encoder, device="cuda")
    assert all(tensor.device.type == "cpu" for tensor in encoder.state_dict().values())
    np.testing.assert_allclose(visium.obsm["tiles"], visium.obsm["cpu"], rtol=1e-4, atol=1e-5)
    encoder.to("cuda")
    pp.tiles(visium, encoder=encoder, device="cpu")
    assert all(tensor.device.type == "cuda" for tensor in encoder.state_dict().values())


class Returns(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: torch.Tensor) -> Any:
        return self.function(images)


def test_half_precision_of_an_encoder(visium):
    pp.tiles(visium, encoder=Returns(lambda images: images.flatten(1).half()))
    assert visium.obsm["tiles"].dtype == np.float32


@pytest.mark.parametrize(
    ("encoder", "error", "message"),
    [
        (torch.nn.Identity(), ValueError, r"shape \(48, 3, 10, 10\) for images of shape \(48, 3, 10, 10\); real numbers \(48, d\)"),
        (Returns(lambda images: images.mean()), ValueError, r"of shape \(\)"),
        (Returns(lambda images: images[:3].flatten(1)), ValueError, r"of shape \(3, 300\)"),
        (Returns(lambda images: images.flatten(1)[:, :0]), ValueError, r"of shape \(48, 0\)"),
        (Returns(lambda images: images.flatten(1) + 1j), ValueError, "complex64 of shape"),
        (Returns(lambda images: images.flatten(1) / 0), ValueError, r"\d+ values that are NaN or infinite in a batch of shape \(48, 300\)"),
        (Returns(lambda images: (images.flatten(1),)), TypeError, r"returned tuple; a tensor \(b, d\)"),
        (lambda images: images, TypeError, "encoder must be a torch.nn.Module or None, got .* of type function"),
    ],
)
def test_61_errors_of_encoders(visium, fingerprint, encoder, error, message):
    before = fingerprint(visium)
    with pytest.raises(error, match=message):
        pp.tiles(visium, encoder=encoder)
    assert fingerprint(visium) == before


def test_61_encoder_with_a_width_for_every_batch(visium):
    with pytest.raises(ValueError, match=r"different numbers of features for different batches: \[18, 30\]"):
        pp.tiles(visium, encoder=Returns(lambda images: images[:, 0, 0, 0, None].repeat(1, len(images))), batch_size=30)


def test_61_encoder_on_two_devices(visium):
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(300, 2), torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="spread over cpu, meta"):
        pp.tiles(visium, encoder=encoder)


# Faults. The numbers are rows of the fault table of the project (see test_faults.py)


def entry(adata: ad.AnnData, name: str = "V1") -> dict[str, Any]:
    return adata.uns["spatial"][name]


def swap(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1] + np.array([0, 60])


def place(value: float) -> Callable[[ad.AnnData], None]:
    return lambda adata: adata.obsm["spatial"].__setitem__((3, 1), value)


def store(slot: str, name: str, value: Any) -> Callable[[ad.AnnData], None]:
    return lambda adata: entry(adata)[slot].__setitem__(name, value)


def drop(slot: str, name: str) -> Callable[[ad.AnnData], None]:
    return lambda adata: entry(adata)[slot].__delitem__(name)


def unchanged(adata: ad.AnnData) -> None:
    return None


BLANK = np.zeros((HEIGHT, WIDTH), np.uint8)

ONE_SECTION = [
    pytest.param(lambda a: a.obsm.__delitem__("spatial"), {}, KeyError, "'spatial' not found", id="45"),
    pytest.param(place(np.nan), {}, ValueError, "NaN or infinite for 1 spots .first: 'spot3'", id="46"),
    pytest.param(lambda a: a.obsm.update(spatial=np.ones((48, 1))), {}, ValueError, r"shape \(48, 1\)", id="47"),
    pytest.param(
        lambda a: a.uns.__delitem__("spatial"), {}, KeyError, r"adata.uns\['spatial'\] has no section.*pass image=", id="53-no-uns"
    ),
    pytest.param(lambda a: a.uns.update(spatial={"is_single": True}), {}, KeyError, "has no section", id="53-flag-only"),
    pytest.param(
        unchanged,
        {"image_key": "hiers"},
        KeyError,
        r"\['V1'\]\['images'\]: 'hiers' not found; available: \['hires', 'lowres'\]; did you mean 'hires'",
        id="53-image_key",
    ),
    pytest.param(lambda a: entry(a).pop("images"), {}, KeyError, r"'hires' not found; available: \[\]", id="53-no-images"),
    pytest.param(unchanged, {"library_key": "slice"}, KeyError, "library_key: obs column 'slice' not found", id="53-library_key"),
    pytest.param(
        unchanged,
        {"library_key": "patient"},
        KeyError,
        r"library_key='patient': 48 spots are in sections without an image, \['A', 'B'\]; adata.uns\['spatial'\] has \['V1'\]",
        id="53-no-such-section",
    ),
    pytest.param(
        drop("scalefactors", "tissue_hires_scalef"),
        {},
        KeyError,
        r"\['V1'\]\['scalefactors'\] has no 'tissue_hires_scalef', only .*pass scale=",
        id="54",
    ),
    pytest.param(lambda a: entry(a).pop("scalefactors"), {"tile_size": 9}, KeyError, "'tissue_hires_scalef'", id="54-none"),
    pytest.param(
        drop("scalefactors", "spot_diameter_fullres"), {}, KeyError, "no 'spot_diameter_fullres', only .*pass tile_size=", id="54-diameter"
    ),
    pytest.param(
        store("scalefactors", "tissue_hires_scalef", 0), {}, ValueError, "must be a positive number, got 0; pass scale=", id="54-zero"
    ),
    pytest.param(store("scalefactors", "tissue_hires_scalef", "no"), {}, ValueError, "must be a positive number, got 'no'", id="54-text"),
    pytest.param(
        store("scalefactors", "spot_diameter_fullres", np.nan), {}, ValueError, "positive number, got nan; pass tile_size=", id="54-nan"
    ),
    pytest.param(
        store("scalefactors", "tissue_hires_scalef", 1.0),
        {},
        ValueError,
        r"4\d of 48 spots are outside of image 'hires' of section 'V1', which is 90 pixels wide and 70 high: with scale=1 they lie from .* to x=2\d\d.*, "
        r"y=2\d\d.*look like pixels of the full resolution: pass scale=0.125 \(tissue_lowres_scalef\)",
        id="55",
    ),
    pytest.param(
        unchanged,
        {"image": picture()},
        ValueError,
        r"image 'array' of section 'V1'.*pass scale=0.25 \(tissue_hires_scalef\)",
        id="55-given",
    ),
    pytest.param(unchanged, {"scale": 2.0}, ValueError, r"with scale=2 .*pass scale=0.25", id="55-scale"),
    pytest.param(
        lambda a: a.obsm.update(spatial=a.obsm["spatial"] * 30),
        {},
        ValueError,
        r"pass scale=\.\.\., a factor of about 0.01\d+ or less",
        id="55-no-factor",
    ),
    pytest.param(lambda a: a.obsm.update(spatial=a.obsm["spatial"] - 1000), {}, ValueError, "has negative positions", id="55-negative"),
    pytest.param(swap, {}, ValueError, "x and y look swapped", id="56"),
    pytest.param(
        store("images", "hires", np.zeros((3, HEIGHT, WIDTH), np.uint8)),
        {},
        ValueError,
        "'hires' of section 'V1'.*channel-first",
        id="58-stored",
    ),
    pytest.param(
        unchanged, {"image": np.zeros((3, 300, 300), np.uint8)}, ValueError, "image= of section 'V1'.*channel-first", id="58-given"
    ),
    pytest.param(unchanged, {"image": "none.png"}, FileNotFoundError, "none.png", id="59-missing"),
    pytest.param(unchanged, {"tile_size": 0}, ValueError, "tile_size must be at least 1, got 0", id="60-zero"),
    pytest.param(unchanged, {"tile_size": -4.0}, ValueError, "tile_size must be at least 1, got -4", id="60-negative"),
    pytest.param(unchanged, {"tile_size": 7.5}, ValueError, "tile_size must be a whole number.*got 7.5", id="60-fraction"),
    pytest.param(unchanged, {"tile_size": float("nan")}, ValueError, "tile_size must be a whole number", id="60-nan"),
    pytest.param(unchanged, {"tile_size": True}, TypeError, "tile_size must be a whole number", id="60-bool"),
    pytest.param(unchanged, {"image": BLANK, "image_key": "lowres"}, ValueError, "image= and image_key='lowres' name two images", id="69"),
    pytest.param(unchanged, {"device": "cuda"}, ValueError, "device", id="69-device"),
    pytest.param(
        unchanged,
        {"image": BLANK, "library_key": "patient"},
        ValueError,
        "image= is one image, library_key='patient' has 2 sections",
        id="69-image",
    ),
    pytest.param(unchanged, {"image": {}}, ValueError, "image=.* has no image", id="no-image"),
    pytest.param(unchanged, {"scale": 0}, ValueError, r"scale must be in \(0, inf", id="scale"),
    pytest.param(unchanged, {"scale": "half"}, TypeError, "scale must be a number", id="scale-text"),
    pytest.param(unchanged, {"scale": {"V2": 1.0}}, KeyError, "scale=: section 'V1' not found", id="scale-section"),
    pytest.param(unchanged, {"batch_size": 0}, ValueError, "batch_size", id="62"),
    pytest.param(unchanged, {"key_added": "ti/les"}, ValueError, "without '/'", id="66"),
    pytest.param(unchanged, {"key_added": "spatial"}, ValueError, "were not written by tiles", id="66-taken"),
    pytest.param(unchanged, {"device": "gpu"}, ValueError, "device 'gpu' not available", id="68"),
    pytest.param(unchanged, {"copy": 1}, TypeError, "copy must be True or False", id="copy"),
]


@pytest.mark.parametrize(("edit", "arguments", "error", "message"), ONE_SECTION)
def test_faults(visium, fingerprint, edit, arguments, error, message):
    edit(visium)
    before = fingerprint(visium)
    with pytest.raises(error, match=message) as caught:
        pp.tiles(visium, **arguments)
    assert caught.type is error
    assert fingerprint(visium) == before


TWO_SECTIONS = [
    pytest.param(unchanged, {}, ValueError, r"2 sections, \['V1', 'V2'\], .* pass library_key=, .*such as \['slide'\]", id="50"),
    pytest.param(unchanged, {"image": BLANK}, ValueError, "pass library_key=", id="50-image"),
    pytest.param(unchanged, {"image": {"V1": BLANK, "V2": BLANK}}, ValueError, "pass library_key=", id="50-images"),
    pytest.param(
        lambda a: a.uns["spatial"].pop("V2"),
        {"library_key": "slide"},
        KeyError,
        r"24 spots are in sections without an image, \['V2'\]",
        id="53",
    ),
    pytest.param(unchanged, {"library_key": "slide", "image": {"V1": BLANK}}, KeyError, r"\['V2'\]; image= has \['V1'\]", id="53-given"),
    pytest.param(
        lambda a: entry(a, "V2")["images"].pop("hires"),
        {"library_key": "slide"},
        KeyError,
        r"\['V2'\]\['images'\]: 'hires' not found",
        id="53-image",
    ),
    pytest.param(lambda a: a.obs.__setitem__("slide", np.nan), {"library_key": "slide"}, ValueError, "missing in 48 cells", id="36"),
    pytest.param(
        lambda a: entry(a, "V2")["images"].update(hires=BLANK[:20]),
        {"library_key": "slide"},
        ValueError,
        "image 'hires' of section 'V2'",
        id="55",
    ),
]


@pytest.mark.parametrize(("edit", "arguments", "error", "message"), TWO_SECTIONS)
def test_faults_of_sections(two, fingerprint, edit, arguments, error, message):
    edit(two)
    before = fingerprint(two)
    with pytest.raises(error, match=message) as caught:
        pp.tiles(two, **arguments)
    assert caught.type is error
    assert fingerprint(two) == before


def test_55_single_spots_outside_are_named(visium):
    visium.obsm["spatial"][4] = [-30, 100]
    expected = visium.copy()
    expected.obsm["spatial"][4] = [0, 100]
    with pytest.warns(UserWarning, match="1 of 48 spots are outside.*tile of the nearest point") as caught:
        pp.tiles(visium)
    assert caught[0].filename == __file__
    pp.tiles(expected)
    np.testing.assert_array_equal(visium.obsm["tiles"], expected.obsm["tiles"])


def test_59_truncated_image(visium, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with pytest.raises(ValueError, match="half.png' cannot be read by Pillow: it is damaged"):
        pp.tiles(visium, image=tmp_path / "half.png")


def test_70_missing_package(visium, tmp_path, monkeypatch):
    for package in ("tifffile", "openslide"):
        monkeypatch.setitem(sys.modules, package, None)
    pp.tiles(visium)
    (tmp_path / "slide.tif").write_bytes(b"anything")
    with pytest.raises(ImportError, match=r"pip install \"scimpute\[image\]\""):
        pp.tiles(visium, image=tmp_path / "slide.tif")


def test_76_tiles_that_do_not_fit_in_memory(visium, monkeypatch):
    monkeypatch.setattr("scimpute._check._available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="smaller tiles"):
        spot_tiles(visium)


def test_1_not_an_object():
    with pytest.raises(TypeError, match="expected AnnData, got ndarray"):
        pp.tiles(np.ones((3, 3)))


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_object(visium, fingerprint, error):
    class Faulty(dict):
        def __setitem__(self, key: str, value: Any) -> None:
            raise error

    pp.tiles(visium)
    visium.uns = Faulty(visium.uns)
    before = fingerprint(visium)
    with pytest.raises(type(error)):
        pp.tiles(visium, tile_size=20)
    assert fingerprint(visium) == before
