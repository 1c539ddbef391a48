"""Genes and clusters on the tissue."""

import matplotlib as mpl

mpl.use("Agg")

import inspect

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from scipy.optimize import linear_sum_assignment

from scimpute import metrics, pl, tl
from scimpute._anndata.obs import Categorical
from scimpute.pl import _clusters, _tissue
from scimpute.pl._palette import palette

SIDE = 8
LABELS = np.array(["a", "b", "c"])


def entry(shape=(100, 80, 3), scale=0.1) -> dict:
    """An image, whose pixels are ten of the full resolution."""
    factors = {"tissue_hires_scalef": scale, "tissue_lowres_scalef": scale / 2, "spot_diameter_fullres": 60.0}
    image = np.full(shape, 200, np.uint8)
    return {"images": {"hires": image, "lowres": image[::2, ::2]}, "scalefactors": factors}


@pytest.fixture
def adata() -> ad.AnnData:
    """Two sections of 8 x 8 spots in three bands, 100 units apart, with an imputation as one of our functions leaves it."""
    rng = np.random.default_rng(0)
    row, column = np.divmod(np.arange(2 * SIDE**2) % SIDE**2, SIDE)
    band = np.minimum(row // 3, 2)
    share = np.exp(rng.normal(size=(3, 30)))[band]
    depth = 200 + 2 * (np.arange(2 * SIDE**2) % 5)
    rate = depth[:, None] * share / share.sum(1, keepdims=True)
    obs = pd.DataFrame({"section": np.repeat(["s1", "s2"], SIDE**2), "band": LABELS[band]})
    obs.index = [f"spot{i}" for i in range(len(obs))]
    return ad.AnnData(
        sp.csr_matrix(rng.poisson(rate).astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=[f"gene{j}" for j in range(30)]),
        layers={"spatial_imputed": rate.astype(np.float32)},
        obsm={"spatial": np.column_stack([column, row]) * 100 + 50},
        uns={
            "spatial": {"s1": entry(), "s2": entry()},
            "spatial_imputed": {"method": "spatial", "params": {"output": "counts", "layer": None}},
        },
    )


WHICH = {"library_key": "section", "library_id": "s2", "show": False}


def discs(axis):
    (found,) = axis.collections
    return found


def limits(axis) -> tuple:
    return *axis.get_xlim(), *axis.get_ylim()


def test_both_columns_on_the_image_of_the_section(adata, fingerprint):
    before = fingerprint(adata)
    axes = pl.spatial(adata, ["gene1", "gene3"], **WHICH)
    assert fingerprint(adata) == before
    assert [a.get_title() for a in axes] == ["gene1 measured", "gene1 imputed", "gene3 measured", "gene3 imputed"]
    assert len(axes[0].figure.axes) == 6  # a colour bar for each row
    counts, second = adata.X.toarray(), slice(SIDE**2, None)
    size = counts.sum(1, keepdims=True)
    for axis, values, gene in zip(axes, [counts, adata.layers["spatial_imputed"]] * 2, (1, 1, 3, 3), strict=True):
        np.testing.assert_allclose(discs(axis).get_array(), np.log1p(1e4 * values / size)[second, gene], rtol=1e-5)
        np.testing.assert_allclose(discs(axis).get_offsets(), adata.obsm["spatial"][second] * 0.1)
        assert axis.images[0].get_array().shape == (100, 80, 3)
        # Spots from 5 to 75, and 1.5 of the 10 from one to the next around them; within the image, y downwards.
        assert limits(axis) == (0, 80, 90, 0)
    for row in (axes[:2], axes[2:]):
        assert discs(row[0]).get_clim() == discs(row[1]).get_clim()
        assert discs(row[0]).get_clim() == (0, max(discs(a).get_array().max() for a in row))


def test_the_default_is_what_the_imputation_writes():
    written, shown = (inspect.signature(function).parameters for function in (tl.spatial, pl.spatial))
    assert shown["key"].default == written["key_added"].default


def test_spots_are_as_large_as_on_the_tissue(adata):
    def diameter(**options):
        read = {"image_key": "hires", "library_key": "section", "library_id": "s1", "spot_size": None}
        return _tissue.read(adata, **read | options).diameter

    assert diameter() == pytest.approx(6)
    assert diameter(image_key="lowres") == pytest.approx(3)
    assert diameter(spot_size=20) == pytest.approx(2)
    assert diameter(image_key=None) == 60
    # As drawn: 6 of the 80 pixels that the panel is wide.
    axis = pl.spatial(adata, "gene1", **WHICH)[0]
    axis.figure.canvas.draw()
    radius = discs(axis).get_transforms()[0] @ discs(axis).get_transform().get_matrix()
    assert 2 * radius[0, 0] == pytest.approx(6 / 80 * axis.get_window_extent().width, rel=1e-3)
    del adata.uns["spatial"]
    assert diameter() == 100  # the distance of neighbours
    adata.obsm["spatial"] = np.ones((adata.n_obs, 2))
    assert diameter() == 1


def test_one_section_needs_no_name_and_no_image(adata):
    one = adata[adata.obs["section"] == "s1"].copy()
    # Of the column's only section, whatever uns has of others.
    assert len(pl.spatial(one, "gene1", library_key="section", show=False)[0].images) == 1
    del one.uns["spatial"]["s2"]
    axes = pl.spatial(one, "gene1", show=False)
    assert len(axes[0].images) == 1
    assert pl.spatial(one, "gene1", library_id="s1", show=False)[0].images[0].get_array().shape == (100, 80, 3)
    del one.uns["spatial"]["s1"]["images"]["hires"], one.uns["spatial"]["s1"]["images"]["lowres"]
    assert not pl.spatial(one, "gene1", show=False)[0].images  # as of squidpy without images
    del one.uns["spatial"]
    axes = pl.spatial(one, "gene1", show=False)
    assert not axes[0].images
    np.testing.assert_array_equal(discs(axes[0]).get_offsets(), one.obsm["spatial"])
    assert limits(axes[0]) == (-100, 900, 900, -100)
    one.obsm["spatial"] = pd.DataFrame(one.obsm["spatial"], index=one.obs_names, columns=["x", "y"])
    assert limits(pl.spatial(one, "gene1", show=False)[0]) == (-100, 900, 900, -100)


@pytest.mark.parametrize(
    ("image", "highest"),
    [
        (np.full((100, 80), 200, np.uint8), 200),
        (np.full((100, 80, 1), 200, np.uint8), 200),
        (np.full((100, 80, 4), 200, np.uint8), 200),
        (np.full((100, 80, 3), 65535, np.uint16), 255),
        (np.full((100, 80, 3), 255.0), 255),
        (np.full((100, 80, 3), 0.6, np.float32), 153),
    ],
    ids=["grey", "grey_3d", "rgba", "uint16", "float255", "float1"],
)
def test_any_image(adata, image, highest):
    adata.uns["spatial"]["s2"]["images"]["hires"] = image
    axis = pl.spatial(adata, "gene1", **WHICH)[0]
    axis.figure.canvas.draw()
    assert axis.images[0].get_array().shape == (100, 80, 3)
    assert int(axis.images[0].get_array().max()) == highest


def test_outputs_scale_and_axes(adata, tmp_path):
    size = adata.X.toarray().sum(1, keepdims=True)
    want = discs(pl.spatial(adata, "gene1", **WHICH)[1]).get_array()
    adata.layers["mine"] = np.log1p(1e4 * adata.layers["spatial_imputed"] / size)
    adata.uns["mine"] = {"method": "began", "params": {"output": "log1p", "layer": "X"}}
    given = plt.figure(layout="constrained").subplots(1, 2)
    axes = pl.spatial(adata, "gene1", "mine", ax=given, vmax=2.5, save=tmp_path / "genes.png", **WHICH)
    assert axes == list(given)
    np.testing.assert_allclose(discs(axes[1]).get_array(), want, rtol=1e-5)
    assert discs(axes[1]).get_clim() == (0, 2.5)
    assert (tmp_path / "genes.png").stat().st_size > 0
    adata.X = adata.X.multiply(np.arange(30) != 7).tocsr()  # a gene without counts still has a scale
    adata.layers["mine"][:, 7] = 0
    assert discs(pl.spatial(adata, "gene7", "mine", **WHICH)[0]).get_clim() == (0, 1)


def colours(axis) -> list:
    return [tuple(colour) for colour in discs(axis).get_facecolors()]


def test_clusters_have_the_colours_of_the_labels(adata, fingerprint):
    adata.obs["band"] = adata.obs["band"].where(np.arange(adata.n_obs) != 70)
    adata.obs["same"] = adata.obs["band"].map({"a": "2", "b": "0", "c": "1"}).astype("category")
    before = fingerprint(adata)
    axes = pl.clusters(adata, "spatial_imputed", "band", columns="same", **WHICH)
    assert fingerprint(adata) == before
    table = metrics.cluster_agreement(adata, "spatial_imputed", "band")
    titles = ["band", "same\nARI 1.00", f"raw\nARI {table.loc['raw', 'kmeans_ari']:.2f}", "spatial_imputed\nARI 1.00"]
    assert [a.get_title() for a in axes] == titles
    labelled = np.arange(SIDE**2) != 70 - SIDE**2
    for axis in (axes[1], axes[3]):
        assert np.array(colours(axis))[labelled].tolist() == np.array(colours(axes[0]))[labelled].tolist()
    # The spot without a label is grey, and has a cluster.
    grey = to_rgba("#D0D0D0")
    assert [i for i, colour in enumerate(colours(axes[0])) if colour == grey] == [70 - SIDE**2]
    assert grey not in colours(axes[3])
    legend = axes[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c", "no label"]
    assert [patch.get_facecolor() for patch in legend.get_patches()][:3] == [colours(axes[0])[i * 3 * SIDE] for i in range(3)]


def test_clusters_without_labels(adata):
    axes = pl.clusters(adata, "spatial_imputed", n_clusters=4, **WHICH)
    assert [a.get_title() for a in axes] == ["raw", "spatial_imputed"]
    assert axes[-1].get_legend() is None
    assert len(set(colours(axes[0]))) <= 4
    adata.obs["raw"] = pd.Categorical(adata.obs["band"])
    adata.obs["swapped"] = adata.obs["band"].map({"a": "b", "b": "a", "c": "c"})
    axes = pl.clusters(adata, "spatial_imputed", columns=["raw", "swapped"], n_clusters=3, **WHICH)
    assert [a.get_title() for a in axes] == ["raw", "swapped", "raw (layer)", "spatial_imputed"]
    assert colours(axes[0]) == colours(axes[1]) == colours(axes[3])


def test_names_are_no_formulas(adata):
    adata.var_names = [r"$\frac$" if name == "gene1" else name for name in adata.var_names]
    adata.obs[r"$\bnd$"] = adata.obs["band"].replace("a", r"$\lvl$").astype("category")
    for axes in (pl.spatial(adata, r"$\frac$", **WHICH), pl.clusters(adata, "spatial_imputed", r"$\bnd$", **WHICH)):
        axes[0].figure.canvas.draw()  # a formula that is none cannot be drawn


def test_matching_keeps_as_many_cells_as_possible():
    def known(codes, n):
        return Categorical("x", [str(i) for i in range(n)], np.array(codes))

    # Cluster 0 shares most with level 1, and so does cluster 1, which has more of it.
    reference = known([0, 0, 1, 1, 1, 1, 1, -1], 2)
    panel = known([0, 0, 0, 0, 0, 1, 1, 2], 3)
    # 0 -> 0 and 1 -> 1 keeps 2 + 2 cells, 0 -> 1 and 1 -> 0 keeps 3: the former. The third cluster is new.
    assert _clusters.match(panel, reference).tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
    # Fewer clusters than levels; spots without either.
    assert _clusters.match(known([1, 1, 0, 0, 0, 0, -1, 0], 2), known([2, 2, 1, 1, 1, 0, 0, -1], 3)).tolist() == [2, 2, 1, 1, 1, 1, -1, 1]
    rng = np.random.default_rng(0)
    panel, reference = (known(rng.integers(5, size=200), 5) for _ in range(2))
    matched = _clusters.match(panel, reference)
    shared = pd.crosstab(panel.codes, reference.codes).to_numpy()
    assert (matched == reference.codes).sum() == shared[linear_sum_assignment(-shared)].sum()
    # Beyond the levels, the larger cluster comes first.
    assert _clusters.match(known([0, 0, 0, 1, 2, 2], 3), known([0, 0, 0, -1, -1, -1], 1)).tolist() == [0, 0, 0, 2, 1, 1]


def test_there_are_colours_for_all():
    for n in (3, 7, 8, 20, 21, 102):
        assert len(set(palette(n))) == n
    assert len(palette(150)) == 150


def shift(adata) -> None:
    adata.obsm["spatial"] = adata.obsm["spatial"] * 3


def nan(adata) -> None:
    adata.layers["spatial_imputed"][3, 2] = np.nan


def hires(image):
    return lambda a: a.uns["spatial"]["s2"]["images"].update(hires=image)


@pytest.mark.parametrize(
    ("edit", "options", "error", "message"),
    [
        (lambda a: a.X, {}, TypeError, "expected AnnData"),
        (None, {"genes": "gne1"}, KeyError, "did you mean 'gene1'"),
        (None, {"key": "sptial_imputed"}, KeyError, "obsm table 'sptial_imputed' not found.*did you mean 'spatial_imputed'"),
        (None, {"layer": "spatial_imputed"}, ValueError, "counts are in: adata.X"),
        (None, {"library_key": None}, ValueError, r"has several sections, \['s1', 's2'\]; pass library_key="),
        (None, {"library_id": None}, ValueError, r"choose one with library_id=: \['s1', 's2'\]"),
        (None, {"library_id": "s3"}, KeyError, "'s3' not found"),
        (None, {"library_key": "sectoin"}, KeyError, "did you mean 'section'"),
        (None, {"image_key": "highres"}, KeyError, "did you mean 'hires'"),
        (lambda a: a.uns["spatial"].pop("s2") and None, {}, KeyError, "no section 's2'.*Pass image_key=None"),
        (lambda a: a.uns["spatial"]["s2"]["scalefactors"].pop("tissue_hires_scalef") and None, {}, KeyError, "tissue_hires_scalef"),
        (hires(np.zeros((3, 100, 80))), {}, ValueError, r"shape \(3, 100, 80\), which looks channel-first"),
        (lambda a: a.obsm.__delitem__("spatial"), {}, KeyError, "'spatial' not found"),
        (shift, {}, ValueError, "are outside of image 'hires' of section 's2', which is 80 pixels wide.*x=225, y=225"),
        (lambda a: a.obsm.update(spatial=(a.obsm["spatial"] * (1, 1.25))[:, ::-1]), {}, ValueError, "x and y look swapped"),
        (nan, {"genes": "gene2", "library_id": "s1"}, ValueError, "1 imputed values"),
        (None, {"spot_size": 0}, ValueError, "spot_size must be in"),
        (None, {"alpha": 2}, ValueError, "alpha must be in"),
        (None, {"vmax": 0}, ValueError, "vmax must be in"),
        (None, {"ax": "one"}, ValueError, r"ax must be 2 axes \(two for each gene\)"),
    ],
)
def test_spatial_faults(adata, edited, refused, edit, options, error, message):
    adata = edited(adata, edit)
    options = {"genes": "gene1"} | WHICH | options
    if "ax" in options:
        options["ax"] = plt.figure().subplots()
    refused(adata, lambda a: pl.spatial(a, **options), error, message)


def test_a_single_spot_outside_the_image(adata):
    adata.obsm["spatial"][70, 0] = -(10**9)
    with pytest.warns(UserWarning, match="1 of .* spots are outside .* They are not drawn"):
        assert len(pl.spatial(adata, "gene1", **WHICH)) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": ()}, ValueError, "nothing to draw beside the labels"),
        ({"layers": "sptial_imputed"}, KeyError, "did you mean 'spatial_imputed'"),
        ({"labels": None}, ValueError, "give labels or n_clusters"),
        ({"labels": None, "unlabelled": "a"}, ValueError, "unlabelled says which labels are none"),
        ({"labels": "bnd"}, KeyError, "did you mean 'band'"),
        ({"layers": (), "columns": "bnd"}, KeyError, "columns: obs column 'bnd'.*did you mean 'band'"),
        (
            {"layers": (), "columns": "section", "n_clusters": 3, "output": "rate"},
            ValueError,
            r"\['n_clusters', 'output'\] only apply to layers",
        ),
        ({"method": ["kmeans"]}, ValueError, "method must be one of"),
        ({"library_id": None}, ValueError, "choose one with library_id="),
        ({"ax": "one"}, ValueError, r"ax must be 3 axes \(band, raw, spatial_imputed\)"),
    ],
)
def test_clusters_faults(adata, refused, options, error, message):
    options = {"layers": "spatial_imputed", "labels": "band"} | WHICH | options
    if "ax" in options:
        options["ax"] = plt.figure().subplots()
    refused(adata, lambda a: pl.clusters(a, **options), error, message)


@pytest.mark.parametrize("figure", ["spatial", "clusters"])
@pytest.mark.parametrize("by", ["position", "array"])
def test_joined_sections_are_not_drawn_over_one_another(adata, figure, by):
    """As after anndata.concat, which drops uns."""
    del adata.uns["spatial"]
    draw = {
        "spatial": lambda **w: pl.spatial(adata, "gene0", show=False, **w),
        "clusters": lambda **w: pl.clusters(adata, columns="band", show=False, **w),
    }
    row, column = np.divmod(np.arange(2 * SIDE**2) % SIDE**2, SIDE)
    second = np.arange(2 * SIDE**2) >= SIDE**2
    if by == "array":
        adata.obs["array_row"], adata.obs["array_col"] = row, column
        adata.obsm["spatial"] = adata.obsm["spatial"] + np.outer(second, [137, 41])
    with pytest.raises(ValueError, match="drawn over one another.*pass library_key='section' and the section to draw as library_id"):
        draw[figure]()
    assert draw[figure](library_key="section", library_id="s1")
    adata.obsm["spatial"] = adata.obsm["spatial"] + np.outer(second, [950, 0])
    assert draw[figure]()
