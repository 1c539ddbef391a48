import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from matplotlib import pyplot as plt

from scimpute import datasets, metrics, pl, pp


@pytest.fixture
def adata():
    adata = datasets.toy_bulk(100, 40)
    pp.hide(adata, (0.1, 0.9), of="all")
    adata.layers["mine"] = adata.layers["truth"] + np.float32(0.5)
    return adata


def medians(axis):
    """Place and height of the line within each box."""
    lines = [line for line in axis.lines if line.get_color() == "black"]
    return np.array([[line.get_xdata().mean(), line.get_ydata()[0]] for line in lines])


def test_curves_are_the_pooled_r2_of_bins(adata):
    axis = pl.recovery(adata, ["truth", "mine"], groupby="tissue", show=False)[0]
    drawn = {line.get_label(): line.get_xydata() for line in axis.lines}
    assert list(drawn) == ["group_mean", "truth", "mine", "gene_mean"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(drawn)
    mask = adata.layers["hidden_mask"]
    observed = 1 - mask.mean(axis=1)
    span = np.quantile(observed, 0.95) - np.quantile(observed, 0.05)
    bins = np.array_split(np.argsort(observed, kind="stable"), round(span / 0.1))
    assert len(bins) > 5
    visible = np.where(mask, np.nan, adata.X.astype(float))
    error = (adata.X - adata.layers["mine"]) ** 2 * mask / np.nanvar(visible, 0)
    null = (adata.X - np.nanmean(visible, 0)) ** 2 * mask / np.nanvar(visible, 0)
    expected = [(observed[some].mean(), 1 - error[some].sum() / null[some].sum()) for some in bins]
    np.testing.assert_allclose(drawn["mine"], expected, rtol=1e-4)
    np.testing.assert_array_equal(drawn["gene_mean"][:, 1], 0)


def test_one_fraction_is_one_point():
    adata = datasets.toy_bulk(30, 1000)
    adata.layers["mine"] = adata.layers["truth"]
    pp.hide(adata, 0.5, of="all")
    axis = pl.recovery(adata, "mine", show=False)[0]
    (point,) = axis.lines[0].get_xydata()
    np.testing.assert_allclose(point, [1 - adata.layers["hidden_mask"].mean(), metrics.recovery(adata, "mine").loc["mine", "r2_pooled"]])


def test_boxes_are_of_the_genes(adata):
    _, axis = pl.recovery(adata, ["truth", "mine"], show=False)
    table = metrics.recovery(adata, ["truth", "mine"], by="gene")
    np.testing.assert_allclose(medians(axis), [[0, table["truth"].median()], [1, table["mine"].median()]])
    assert [text.get_text() for text in axis.get_xticklabels()] == ["truth", "mine"]
    assert len({patch.get_facecolor() for patch in axis.patches}) == 2


def test_boxes_of_groups_are_of_their_samples(adata):
    axes = pl.recovery(adata, "mine", groupby="tissue", show=False)
    assert [text.get_text() for text in axes[1].get_xticklabels()] == ["group_mean", "mine"]
    axis = axes[2]
    assert [text.get_text() for text in axis.get_xticklabels()] == [f"tissue{i}" for i in range(4)]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["group_mean", "mine"]
    mask = adata.layers["hidden_mask"]
    mean = np.nanmean(np.where(mask, np.nan, adata.X.astype(float)), 0)
    found = medians(axis)
    for i in range(4):
        rows = (adata.obs["tissue"] == f"tissue{i}").to_numpy()
        error, null = (((adata.X - p) ** 2 * mask)[rows].sum(0) for p in (adata.layers["mine"], mean))
        near = found[np.abs(found[:, 0] - i) < 0.5]
        assert len(near) == 2
        assert near[1, 1] == pytest.approx(np.median(1 - error / null), rel=1e-4)
    # A tall panel below the other two.
    assert axis.get_position().width > 1.8 * axes[1].get_position().width


def test_counts_neighbours_and_many_layers(tmp_path):
    adata = datasets.toy_counts(80, 30)
    adata.X = adata.X.multiply(np.arange(30) != 7).tocsr()
    adata.obsp["spatial_connectivities"] = sp.random(80, 80, 0.1, format="csr", random_state=0)
    pp.hide(adata)
    names = [f"a method with a long name {i}" for i in range(8)]
    for name in names:
        adata.layers[name] = adata.layers["rate"]
    axes = pl.recovery(adata, names, groupby="cell_type", show=False, save=tmp_path / "recovery.png")
    assert [text.get_text() for text in axes[1].get_xticklabels()] == ["group_mean", "neighbour_mean", *names]
    assert all(text.get_rotation() == 35 for text in axes[1].get_xticklabels())
    # Eight layers: no two look the same in the curves.
    assert len({(line.get_color(), line.get_marker()) for line in axes[0].lines}) == 11


def test_whiskers_far_below_zero_are_cut(adata):
    adata.layers["bad"] = adata.layers["truth"] * 50
    axes = pl.recovery(adata, ["mine", "bad"], show=False)
    assert axes[1].get_ylim()[0] < medians(axes[1])[1, 1]  # not the box itself
    adata.layers["bad"] = adata.layers["truth"] + np.where(np.arange(40) % 10 == 0, 20, 0).astype(np.float32)
    axes = pl.recovery(adata, ["mine", "bad"], show=False)
    assert axes[1].get_ylim()[0] == pytest.approx(-1.05)


def test_some_genes_with_their_names(adata, tmp_path):
    """Every panel is that of an object in which nothing else was hidden."""
    genes = ["gene7", "gene2", "gene30"]
    adata.var_names = [f"gene{i}" for i in range(40)]
    axes = pl.recovery(adata, ["mine", "truth"], groupby="tissue", genes=genes, show=False, save=tmp_path / "figure.png")
    table = metrics.recovery(adata, ["mine", "truth"], groupby="tissue", by="gene")
    assert [text.get_text() for text in axes[1].get_xticklabels()] == genes
    drawn = {line.get_color(): line.get_ydata() for line in axes[1].lines[:3]}
    assert len(drawn) == 3
    for values, name in zip(drawn.values(), ["group_mean", "mine", "truth"], strict=True):
        np.testing.assert_allclose(values, table.loc[genes, name])
    other = adata.copy()
    others = ~np.isin(np.arange(40), [7, 2, 30])
    other.layers["hidden"] = np.where(others, other.X, other.layers["hidden"])
    other.layers["hidden_mask"] = other.layers["hidden_mask"] & ~others
    whole = pl.recovery(other, ["mine", "truth"], groupby="tissue", show=False)
    np.testing.assert_allclose(medians(axes[2]), medians(whole[2]))
    # As many points as genes on each of 4 x 3 boxes.
    points = [line for line in axes[2].lines if line.get_marker() == "o"]
    assert sum(len(line.get_ydata()) for line in points) == 36
    # The curves are of these genes alone, against what is observed of all.
    mask, chosen = adata.layers["hidden_mask"], ~others
    visible = np.where(mask, np.nan, adata.X.astype(float))
    variance, mean = np.nanvar(visible, 0), np.nanmean(visible, 0)
    error = ((adata.X - adata.layers["mine"]) ** 2 * mask / variance)[:, chosen].sum(1)
    null = ((adata.X - mean) ** 2 * mask / variance)[:, chosen].sum(1)
    line = next(line for line in axes[0].lines if line.get_label() == "mine")
    x, y = line.get_xdata(), line.get_ydata()
    observed = 1 - mask.mean(axis=1)
    some = np.flatnonzero(null > 0)
    order = some[np.argsort(observed[some], kind="stable")]
    bins = np.array_split(order, len(x))
    np.testing.assert_allclose(x, [observed[rows].mean() for rows in bins])
    np.testing.assert_allclose(y, [1 - error[rows].sum() / null[rows].sum() for rows in bins], rtol=1e-4)


def test_some_genes_may_be_a_column_and_many(adata):
    adata.var["pathway"] = np.arange(40) >= 5
    _, axis = pl.recovery(adata, "mine", genes="pathway", show=False)
    assert [text.get_text() for text in axis.get_xticklabels()] == list(adata.var_names[5:])
    assert axis.figure.get_figwidth() > 10
    given = plt.figure().subplots(1, 2)
    assert pl.recovery(adata, "mine", genes=[adata.var_names[0]], ax=given, show=False) == list(given)
    adata.layers["bad"] = adata.layers["truth"] * 50
    _, axis = pl.recovery(adata, "bad", genes=[adata.var_names[0]], show=False)
    assert axis.lines[0].get_ydata().tolist() == [-1]


def test_names_are_no_formulas(adata):
    adata.obs[r"$\tsse$"] = adata.obs["tissue"].astype(str).replace(adata.obs["tissue"].iloc[0], r"$\lvl$")
    adata.layers[r"$\mine$"] = adata.layers.pop("mine")
    axes = pl.recovery(adata, r"$\mine$", groupby=r"$\tsse$", show=False)
    axes[0].figure.canvas.draw()  # a formula that is none cannot be drawn


def test_draws_on_given_axes_and_changes_nothing(adata, fingerprint):
    before = fingerprint(adata)
    given = plt.figure(layout="constrained").subplots(1, 3)
    assert pl.recovery(adata, "mine", groupby="tissue", ax=given, show=False) == list(given)
    assert fingerprint(adata) == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "mne"}, KeyError, "did you mean 'mine'"),
        ({"layers": []}, ValueError, "gene_mean is the only baseline"),
        ({"layers": ["mine", "mine"]}, ValueError, "more than one row"),
        ({"key": "other"}, KeyError, "scimpute.pp.hide"),
        ({"genes": ["gne1"]}, KeyError, "1 of 1 genes not found"),
        ({"genes": []}, ValueError, "genes is empty"),
        ({"groupby": "tisue"}, KeyError, "did you mean 'tissue'"),
        ({"ax": "one"}, ValueError, r"ax must be 2 axes \(curves, genes\), got 1"),
        ({"ax": "one", "groupby": "tissue"}, ValueError, r"ax must be 3 axes \(curves, genes, genes by group\), got 1"),
    ],
)
def test_errors(adata, options, error, message):
    if "ax" in options:
        options = options | {"ax": plt.figure().subplots()}
    with pytest.raises(error, match=message):
        pl.recovery(adata, **{"layers": "mine"} | options, show=False)


def test_save_and_show(adata, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert pl.recovery(adata, "mine", show=True, save=tmp_path / "new" / "recovery.png") is None
    assert shown
    assert (tmp_path / "new" / "recovery.png").stat().st_size > 0
    before = sc.settings.autoshow, sc.settings.figdir
    try:
        sc.settings.autoshow, sc.settings.figdir = False, tmp_path
        assert len(pl.recovery(adata, "mine", save=True)) == 2
    finally:
        sc.settings.autoshow, sc.settings.figdir = before
    assert (tmp_path / f"recovery.{sc.settings.file_format_figs}").stat().st_size > 0
