from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scimpute import datasets, pp


def tiles(adata: ad.AnnData, section: str, *, swapped: bool = False) -> np.ndarray:
    """Mean and spread of the colours of the spots of a section, ``(n, 6)``."""
    entry = adata.uns["spatial"][section]
    image, scale = entry["images"]["hires"].astype(float), entry["scalefactors"]["tissue_hires_scalef"]
    radius = round(entry["scalefactors"]["spot_diameter_fullres"] * scale / 2)
    xy = np.rint(adata.obsm["spatial"][adata.obs["section"] == section] * scale).astype(int)
    x, y = xy.T[::-1] if swapped else xy.T
    cut = [image[j - radius : j + radius + 1, i - radius : i + radius + 1].reshape(-1, 3) for i, j in zip(x, y, strict=True)]
    return np.array([np.concatenate([tile.mean(axis=0), tile.std(axis=0)]) for tile in cut])


def explained(target: np.ndarray, *features: np.ndarray) -> float:
    """Share of the variance of the target that a linear model of the features explains."""
    design = np.column_stack([np.ones(len(target)), *features])
    left = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    return float(1 - np.square(left).sum() / np.square(target - target.mean(axis=0)).sum())


def dummies(column) -> np.ndarray:
    return np.eye(len(column.cat.categories))[column.cat.codes]


def test_is_whole_and_seeded(tmp_path):
    adata = datasets.toy_visium(n_sections=2)
    assert adata.shape == (720, 200)
    assert adata.X.format == "csr"
    assert adata.X.dtype == adata.layers["rate"].dtype == np.float32
    assert np.array_equal(adata.X.data, np.rint(adata.X.data))
    assert np.all(adata.layers["rate"] > 0)
    assert adata.obs_names.is_unique
    assert adata.obs_names.str.fullmatch("[ACGT]{16}-[12]").all()
    assert list(adata.obs) == ["in_tissue", "array_row", "array_col", "section", "region", "density", "gradient"]
    assert dict(adata.obs["section"].value_counts()) == {"section0": 360, "section1": 360}
    assert (adata.obs.groupby("section", observed=True)["region"].value_counts() == 90).all()
    small, same, other = (datasets.toy_visium(6, 5, random_state=seed) for seed in (0, np.random.default_rng(0), 1))
    assert np.array_equal(small.X.toarray(), same.X.toarray())
    assert not np.array_equal(small.X.toarray(), other.X.toarray())
    images = [each.uns["spatial"]["section0"]["images"]["hires"] for each in (small, same, other)]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    adata.write_h5ad(tmp_path / "toy.h5ad")
    read = ad.read_h5ad(tmp_path / "toy.h5ad")
    assert read.uns["toy_visium"]["dispersion"] == 0.1
    assert np.array_equal(read.uns["spatial"]["section1"]["images"]["lowres"], adata.uns["spatial"]["section1"]["images"]["lowres"])


def test_is_laid_out_as_scanpy_reads_visium():
    adata = datasets.toy_visium(n_sections=2)
    assert list(adata.uns["spatial"]) == ["section0", "section1"]
    xy = adata.obsm["spatial"]
    assert xy.shape == (720, 2)
    for entry in adata.uns["spatial"].values():
        assert set(entry) == {"images", "scalefactors", "metadata"}
        factors = entry["scalefactors"]
        assert set(factors) == {"tissue_hires_scalef", "tissue_lowres_scalef", "spot_diameter_fullres", "fiducial_diameter_fullres"}
        assert all(type(value) is float for value in factors.values())
        for name, longest in (("hires", 480), ("lowres", 160)):
            image = entry["images"][name]
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert max(image.shape) == longest
            # x to the right and y downwards, with room for the spots at the border.
            room = np.array(image.shape[1::-1]) / factors[f"tissue_{name}_scalef"] - factors["spot_diameter_fullres"] / 2
            assert np.all(xy < room)
            assert np.all(xy > factors["spot_diameter_fullres"] / 2)
    # A small array has a small image, at no finer scale.
    small = datasets.toy_visium(5, 4, 10).uns["spatial"]["section0"]
    assert small["scalefactors"]["tissue_hires_scalef"] < 0.25
    assert max(small["images"]["hires"].shape) < 250


@pytest.mark.parametrize("size", [(41, 33), (20, 18), (60, 11), (1, 60)])
def test_images_are_not_larger_than_promised(size):
    images = datasets.toy_visium(*size, 2, n_regions=1).uns["spatial"]["section0"]["images"]
    assert max(images["hires"].shape) <= 480
    assert max(images["lowres"].shape) <= 160


def test_spots_are_on_hexagons():
    adata = datasets.toy_visium()
    row, column, xy = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy(), adata.obsm["spatial"]
    assert np.all((row + column) % 2 == 0)
    assert (row.max(), column.max()) == (19, 35)
    assert np.corrcoef(xy[:, 0], column)[0, 1] > 0.9999
    assert np.corrcoef(xy[:, 1], row)[0, 1] > 0.9999
    far = np.linalg.norm(xy[:, None] - xy, axis=2)
    near = (far > 0) & (far < 105)
    assert far[near].min() > 98
    pp.spatial_rings(adata)
    assert np.array_equal(adata.obsp["spatial_connectivities"].toarray() > 0, near)
    inside = (row > 1) & (row < 18) & (column > 3) & (column < 32)
    assert np.all(near.sum(axis=1)[inside] == 6)
    assert np.all(adata.obsp["spatial_ring2"][inside].sum(axis=1) == 12)
    # Regions are of one piece, or of few: most neighbours are of the same.
    region = adata.obs["region"].cat.codes.to_numpy()
    assert (region[:, None] == region)[near].mean() > 0.75


def test_counts_are_of_the_rates():
    poisson = datasets.toy_visium(25, 25, 50, dispersion=0, depth=2000)
    broad = datasets.toy_visium(25, 25, 50, dispersion=0.3, depth=2000)
    for adata, dispersion in ((poisson, 0), (broad, 0.3)):
        rate, counts = adata.layers["rate"].astype(float), adata.X.toarray()
        assert abs(rate.sum(1).mean() / 2000 - 1) < 0.08
        well = rate > 20
        found = ((np.square(counts - rate) - rate) / np.square(rate))[well].mean()
        assert abs(found - dispersion) < 0.02


def test_has_the_planted_structure():
    adata = datasets.toy_visium(15, 15, 60, n_sections=2, n_regions=3, rank=2)
    log_rate = np.log(adata.layers["rate"].astype(float))
    log_rate -= log_rate.mean(axis=1, keepdims=True)
    design = np.column_stack([dummies(adata.obs["region"]), dummies(adata.obs["section"]), adata.obs[["density", "gradient"]]])
    left = log_rate - design @ np.linalg.lstsq(design, log_rate, rcond=None)[0]
    values = np.linalg.svd(left, compute_uv=False)
    assert values[1] > 1e3 * values[2]  # of the rank of the spots' own states
    share = explained(log_rate, design)
    assert 0.6 < share < 0.95
    # Each of them has a part of its own.
    for without in (slice(0, 3), slice(5, 6), slice(6, 7)):
        assert explained(log_rate, np.delete(design, without, axis=1)) < share - 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_image_and_position_say_different_things(seed):
    adata = datasets.toy_visium(15, 15, 10, n_sections=2, random_state=seed)
    for section in ("section0", "section1"):
        some = adata[adata.obs["section"] == section]
        region, colours = dummies(some.obs["region"]), tiles(adata, section)
        # Most spots have the colours of their region.
        means = (region.T @ colours) / region.sum(axis=0)[:, None]
        nearest = np.linalg.norm(colours[:, None] - means, axis=2).argmin(axis=1)
        assert (nearest == some.obs["region"].cat.codes).mean() > 0.6
        # Nuclei are seen in the image, and a plane through the positions does not tell them. With the gradient it is the other way.
        density, gradient = some.obs["density"].to_numpy(), some.obs["gradient"].to_numpy()
        place = some.obsm["spatial"] / 1000
        assert explained(density, region, colours) > explained(density, region, place) + 0.3
        assert explained(gradient, place) > 0.999
        assert explained(gradient, region, colours) < explained(gradient, region) + 0.1


def test_sections_differ_in_staining_and_borders():
    adata = datasets.toy_visium(n_sections=2)
    first, second = (entry["images"]["hires"].astype(float) for entry in adata.uns["spatial"].values())
    assert np.abs(first.mean(axis=(0, 1)) - second.mean(axis=(0, 1))).max() > 1
    region = adata.obs["region"].cat.codes.to_numpy()
    assert 0.02 < (region[:360] != region[360:]).mean() < 0.7
    swapped = explained(dummies(adata.obs["region"])[:360], tiles(adata, "section0", swapped=True)[:, :3])
    assert explained(dummies(adata.obs["region"])[:360], tiles(adata, "section0")[:, :3]) > swapped + 0.2


def test_at_the_smallest_size(tmp_path):
    adata = datasets.toy_visium(1, 1, 1, n_regions=1, rank=1)
    adata.write_h5ad(tmp_path / "toy.h5ad")
    assert ad.read_h5ad(tmp_path / "toy.h5ad").shape == (1, 1)
    assert np.all(datasets.toy_visium(2, 3, 4, n_regions=6).obs["region"].value_counts() == 1)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"n_rows": 0}, ValueError, "n_rows"),
        ({"n_cols": 2.5}, ValueError, "n_cols"),
        ({"n_vars": 0}, ValueError, "n_vars"),
        ({"n_sections": 0}, ValueError, "n_sections"),
        ({"n_regions": 361}, ValueError, "n_regions=361 is more than the number of spots in a section, 360"),
        ({"rank": "3"}, TypeError, "rank"),
        ({"depth": 0.0}, ValueError, "depth"),
        ({"dispersion": -0.1}, ValueError, "dispersion"),
        ({"random_state": -1}, ValueError, "random_state"),
    ],
)
def test_refuses(wrong, error, message):
    with pytest.raises(error, match=message):
        datasets.toy_visium(**wrong)
