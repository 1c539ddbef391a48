import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from matplotlib import pyplot as plt

from scimpute import datasets, pl, pp, tl


@pytest.fixture
def adata():
    """An object as tl.began leaves it, without the training."""
    adata = datasets.toy_counts()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    adata.layers["began"] = adata.layers["rate"].copy()
    epochs = [
        {"repeat": r, "epoch": e, "loss_real": 1 / (e + 1), "loss_fake": 2.0, "k": 0.1, "M": 1.0, "heldout": -e}
        for r in range(3)
        for e in range(4)
    ]
    adata.uns["began"] = {"method": "began", "params": {"layer": "X", "output": "counts"}, "history": pd.DataFrame(epochs)}
    return adata


def drawn(axis):
    """Colours of the points in the order of the cells' first coordinate."""
    points = axis.collections[0]
    return points.get_array()[np.argsort(points.get_offsets()[:, 0])]


def expected(adata, values, size, gene):
    order = np.argsort(adata.obsm["X_umap"][:, 0])
    return np.log1p(np.asarray(values[:, adata.var_names.get_loc(gene)]) / size * 1e4)[order]


def test_training_draws_a_line_for_each_repeat(adata):
    axes = pl.training(adata, show=False)
    assert [a.get_title() for a in axes] == ["Deviance of held-out molecules", "BEGAN losses", "BEGAN balance"]
    assert [len(a.lines) for a in axes] == [3, 9, 3]
    assert [t.get_text() for t in axes[1].get_legend().get_texts()] == ["$L(x)$", "$L(\\mathrm{Drop}(G(x)))$", "$M$"]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), [0, -1, -2, -3])


def test_training_leaves_out_what_was_not_recorded(adata):
    adata.uns["began"]["history"] = adata.uns["began"]["history"][["repeat", "epoch", "heldout"]]
    (axis,) = pl.training(adata, show=False)
    assert "held-out" in axis.get_title()
    assert axis.get_legend() is None
    adata.uns["began"]["history"] = adata.uns["began"]["history"][["repeat", "epoch"]]
    with pytest.raises(ValueError, match="nothing to draw"):
        pl.training(adata, show=False)


def test_training_on_squared_errors(adata):
    adata.uns["began"] |= {"history": adata.uns["began"]["history"][["repeat", "epoch", "heldout"]]}
    adata.uns["began"]["params"]["likelihood"] = "squared"
    (axis,) = pl.training(adata, show=False)
    assert (axis.get_title(), axis.get_ylabel()) == ("Error of held-out entries", "squared error of logs")


def test_training_of_a_bulk_method_is_refused():
    adata = datasets.toy_bulk(60, 40)
    pp.hide(adata, of="all")
    tl.pmi(adata, layer="hidden", n_models=1, n_hidden=8, max_epochs=1)
    with pytest.raises(ValueError, match="has nothing to draw"):
        pl.training(adata, "pmi", show=False)


def test_training_errors(adata):
    with pytest.raises(KeyError, match="did you mean 'began'"):
        pl.training(adata, "begn", show=False)
    with pytest.raises(ValueError, match=r"ax must be 3 axes \(one for each of: Deviance"):
        pl.training(adata, ax=plt.figure().subplots(), show=False)


def test_imputed_shows_both_on_one_scale_highest_last(adata):
    axes = pl.imputed(adata, ["gene1", "gene3"], show=False)
    assert [a.get_title() for a in axes] == ["gene1 before", "gene1 after", "gene3 before", "gene3 after"]
    counts = adata.X.toarray()
    size = counts.sum(1)
    np.testing.assert_allclose(drawn(axes[2]), expected(adata, counts, size, "gene3"), rtol=1e-5)
    np.testing.assert_allclose(drawn(axes[3]), expected(adata, adata.layers["rate"], size, "gene3"), rtol=1e-5)
    for before, after in (axes[:2], axes[2:]):
        assert before.collections[0].get_clim() == after.collections[0].get_clim()
        assert np.all(np.diff(after.collections[0].get_array()) >= 0)
    assert len(axes[0].figure.axes) == 6  # a colour bar for each row


@pytest.mark.parametrize("output", ["rate", "log1p"])
def test_imputed_puts_every_output_on_the_same_scale(adata, output):
    size = adata.X.toarray().sum(1, keepdims=True)
    want = drawn(pl.imputed(adata, "gene1", show=False)[1])
    share = adata.layers["rate"] / size
    adata.layers["began"] = share if output == "rate" else np.log1p(share * 1e4)
    adata.uns["began"]["params"]["output"] = output
    np.testing.assert_allclose(drawn(pl.imputed(adata, "gene1", show=False)[1]), want, rtol=1e-5)


def test_imputed_uses_the_recorded_layer_and_library_size(adata):
    counts = adata.X.toarray()
    adata.layers["half"] = np.floor(counts / 2)
    adata.X = np.log1p(counts)
    adata.obs["total"] = counts.sum(1) * 3
    adata.uns["began"]["params"] |= {"layer": "half", "size_key": "total"}
    before, after = pl.imputed(adata, "gene1", show=False)
    np.testing.assert_allclose(drawn(before), expected(adata, adata.layers["half"], adata.obs["total"].to_numpy(), "gene1"), rtol=1e-5)
    np.testing.assert_allclose(drawn(after), expected(adata, adata.layers["began"], adata.obs["total"].to_numpy(), "gene1"), rtol=1e-5)
    # Shown beside another layer, the imputed values stay at the depth they were made at.
    del adata.uns["began"]["params"]["size_key"]
    adata.layers["counts"] = counts
    before, after = pl.imputed(adata, "gene1", layer="counts", show=False)
    np.testing.assert_allclose(drawn(before), expected(adata, counts, counts.sum(1), "gene1"), rtol=1e-5)
    np.testing.assert_allclose(drawn(after), expected(adata, adata.layers["began"], adata.layers["half"].sum(1), "gene1"), rtol=1e-5)


@pytest.mark.parametrize("size_key", [None, "total"])
def test_imputed_beside_counts_that_were_moved(adata, size_key):
    """What was recorded holds no counts any more: the depth is that of the layer that is named."""
    adata.obs["total"] = adata.X.toarray().sum(1) * 3
    if size_key:
        adata.uns["began"]["params"]["size_key"] = size_key
    want = [drawn(axis) for axis in pl.imputed(adata, "gene1", show=False)]
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    for source in ("X", "gone"):
        adata.uns["began"]["params"]["layer"] = source
        found = [drawn(axis) for axis in pl.imputed(adata, "gene1", layer="counts", show=False)]
        np.testing.assert_allclose(found, want, rtol=1e-6)
    adata.uns["began"]["params"]["layer"] = "X"
    found = [drawn(axis) for axis in pl.imputed(adata, "gene1", show=False)]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    # Which of two it was is not recorded here.
    adata.layers["others"] = adata.layers["counts"][::-1]
    with pytest.raises(ValueError, match="counts are in: layer='counts', layer='others'"):
        pl.imputed(adata, "gene1", show=False)


@pytest.mark.parametrize("store", [np.asarray, sp.csr_matrix])
def test_imputed_of_others_is_scaled_by_its_own_totals(adata, store):
    """Molecules, shares or 10,000 a cell: of a layer of another package nobody has recorded which."""
    values = adata.layers["began"]
    totals = values.sum(1)
    del adata.uns["began"]
    adata.layers["half"] = np.floor(adata.X.toarray() / 2)
    for scaled in (values, values * 10, 1e4 * values / totals[:, None]):
        adata.layers["began"] = store(scaled)
        _, after = pl.imputed(adata, "gene1", layer="half", show=False)
        np.testing.assert_allclose(drawn(after), expected(adata, values, totals, "gene1"), rtol=1e-5)
    adata.layers["began"] = store(np.log1p(1e4 * values / totals[:, None]))
    with pytest.raises(ValueError, match="'began' must hold expected counts, and holds log1p"):
        pl.imputed(adata, "gene1", layer="half", show=False)


@pytest.mark.parametrize("total", [1e4, None])
def test_imputed_shows_a_layer_that_was_normalised_since(adata, total):
    values = adata.layers["began"].copy()
    values[3] = 0  # a cell without molecules stays so
    totals = values.sum(1)
    adata.layers["began"] = (total or np.median(totals)) * values / np.maximum(totals, 1)[:, None]
    shown = drawn(pl.imputed(adata, "gene1", show=False)[1])
    np.testing.assert_allclose(shown, expected(adata, values, np.maximum(totals, 1), "gene1"), rtol=1e-5)


def test_imputed_reads_a_table_of_some_genes(adata):
    want = drawn(pl.imputed(adata, "gene3", show=False)[1])
    adata.obsm["began"] = pd.DataFrame(adata.layers["began"][:, [3, 5]], index=adata.obs_names, columns=["gene3", "gene5"])
    del adata.layers["began"]
    np.testing.assert_array_equal(drawn(pl.imputed(adata, "gene3", show=False)[1]), want)
    with pytest.raises(KeyError, match=r"'gene4' not found; available: .*gene3"):
        pl.imputed(adata, "gene4", show=False)


def test_imputed_draws_on_given_axes_any_basis_and_changes_nothing(adata):
    adata.obsm["spatial"] = adata.obsm["X_umap"][:, ::-1]
    adata.X = adata.X.multiply(np.arange(40) != 7).tocsr()  # a gene without counts still has a scale
    adata.layers["began"][:, 7] = 0
    before = adata.copy()
    given = plt.figure(layout="constrained").subplots(2, 2)
    axes = pl.imputed(adata, ["gene7", "gene1"], basis="spatial", ax=given, size=3, show=False)
    assert axes == list(given.flat)
    assert axes[0].collections[0].get_clim() == (0, 1)
    assert np.array_equal(adata.X.toarray(), before.X.toarray())
    assert list(adata.uns) == list(before.uns)
    assert list(adata.layers) == list(before.layers)
    assert list(adata.obsm) == list(before.obsm)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"genes": "gne1"}, KeyError, "did you mean 'gene1'"),
        ({"genes": "gene1", "key": "bgan"}, KeyError, "imputed layer or obsm table 'bgan' not found.*did you mean 'began'"),
        ({"genes": "gene1", "basis": "umpa"}, KeyError, "did you mean 'umap'"),
        ({"genes": "gene1", "layer": "rate"}, ValueError, "counts are in: adata.X"),
        ({"genes": []}, ValueError, "genes is empty"),
        ({"genes": ["gene1", "gene2"], "ax": "one"}, ValueError, r"ax must be 4 axes \(two for each gene\)"),
    ],
)
def test_imputed_errors(adata, options, error, message):
    if "ax" in options:
        options = options | {"ax": plt.figure().subplots()}
    with pytest.raises(error, match=message):
        pl.imputed(adata, **options, show=False)


def test_save_and_show(adata, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert pl.training(adata, show=True, save=tmp_path / "new" / "curves.png") is None
    assert shown
    assert (tmp_path / "new" / "curves.png").stat().st_size > 0
    before = sc.settings.autoshow, sc.settings.figdir
    try:
        sc.settings.autoshow, sc.settings.figdir = False, tmp_path
        assert len(pl.imputed(adata, "gene1", save=True)) == 2
    finally:
        sc.settings.autoshow, sc.settings.figdir = before
    assert (tmp_path / f"imputed.{sc.settings.file_format_figs}").stat().st_size > 0


def test_names_are_no_formulas(adata):
    adata.var_names = [r"$\frac$" if name == "gene1" else name for name in adata.var_names]
    adata.obsm[r"X_$\nomap$"] = adata.obsm.pop("X_umap")
    axes = pl.imputed(adata, r"$\frac$", basis=r"$\nomap$", show=False)
    axes[0].figure.canvas.draw()  # a formula that is none cannot be drawn


@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")  # of scanpy
@pytest.mark.parametrize("basis", ["umap", "tsne", "pca", "diffmap", "draw_graph_fa", "umap_counts", "X_scVI"])
def test_axes_are_called_as_scanpy_calls_them(adata, basis):
    adata.obsm[f"X_{basis.removeprefix('X_')}"] = adata.obsm["X_umap"]
    shown = sc.pl.embedding(adata, basis.removeprefix("X_"), show=False)
    for axis in pl.imputed(adata, "gene1", basis=basis, show=False):
        assert (axis.get_xlabel(), axis.get_ylabel()) == (shown.get_xlabel(), shown.get_ylabel())


FIGURES = {
    "training": lambda a, **options: pl.training(a, **options),
    "imputed": lambda a, **options: pl.imputed(a, "gene1", **options),
    "clusters": lambda a, **options: pl.clusters(a, "began", "cell_type", **options),
    "spatial": lambda a, **options: pl.spatial(a, "gene1", "began", **options),
    "recovery": lambda a, **options: pl.recovery(a, "began", **options),
    "embeddings": lambda a, **options: pl.embeddings(a, "pmi", **options),
}


@pytest.mark.filterwarnings("ignore:.*was made from")
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_that_fails_is_closed_and_others_stay(adata, tmp_path, name):
    adata.obsm["spatial"] = adata.obsm["X_umap"]
    adata.uns["pmi"] = {"method": "pmi", "embeddings": {"tissue": pd.DataFrame(np.eye(3))}}
    pp.hide(adata)
    mine, drawn_on = plt.figure(), plt.figure()
    before = plt.get_fignums()
    with pytest.raises(ValueError, match="is not supported"):
        FIGURES[name](adata, show=False, save=tmp_path / "figure.nonsense")
    assert plt.get_fignums() == before
    axes = FIGURES[name](adata, show=False)
    assert plt.get_fignums() == [*before, axes[0].figure.number]
    # Axes of the user's own are his to close.
    given = drawn_on.subplots(1, len(axes), squeeze=False).ravel()
    with pytest.raises(ValueError, match="is not supported"):
        FIGURES[name](adata, show=False, ax=given, save=tmp_path / "figure.nonsense")
    assert plt.get_fignums() == [*before, axes[0].figure.number]
    assert plt.fignum_exists(mine.number)


@pytest.mark.filterwarnings("ignore:.*was made from")
@pytest.mark.parametrize("name", FIGURES)
def test_no_name_of_a_file(adata, tmp_path, name, monkeypatch):
    adata.obsm["spatial"] = adata.obsm["X_umap"]
    adata.uns["pmi"] = {"method": "pmi", "embeddings": {"tissue": pd.DataFrame(np.eye(3))}}
    pp.hide(adata)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="save: the directory '.*file/folder' cannot be made: "):
        FIGURES[name](adata, show=False, save=tmp_path / "file" / "folder" / "a.png")
    monkeypatch.setattr(plt, "figure", None)  # nothing is drawn
    with pytest.raises(TypeError, match="save must be the path of a file or True, got 3 of type int"):
        FIGURES[name](adata, show=False, save=3)


def test_every_figure_is_tried_above():
    assert set(FIGURES) == set(pl.__all__)


def test_a_figure_that_cannot_be_written_leaves_the_earlier_one(adata, tmp_path, monkeypatch):
    path = tmp_path / "genes.png"
    pl.imputed(adata, "gene1", show=False, save=path)
    before = path.read_bytes()
    plt.close("all")
    own = plt.figure()

    def full(self, to, **_):
        to.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space left"):
        pl.imputed(adata, "gene2", show=False, save=path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["genes.png"]
    # Nor does a figure of ours stay open; the user's does.
    assert plt.get_fignums() == [own.number]


def test_names_of_figures(adata, tmp_path):
    """Without an ending it is that of matplotlib's own setting; a write-protected figure is left."""
    pl.imputed(adata, "gene1", show=False, save=tmp_path / "genes")
    path = tmp_path / "genes.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="is write-protected"):
        pl.imputed(adata, "gene1", show=False, save=path)
    with pytest.raises(ValueError, match="[Ff]ormat"):
        pl.imputed(adata, "gene1", show=False, save=tmp_path / "genes.h5ad")
    assert [file.name for file in tmp_path.iterdir()] == ["genes.png"]
