"""``metrics.report``: the page and its numbers, what is refused, and that nothing else changes."""

from __future__ import annotations

import html
import re
from functools import wraps
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from matplotlib import pyplot as plt

import scimpute
from scimpute import _cli
from scimpute.metrics import _replay, _report, report
from scimpute.metrics._report.verdict import verdict

QUICK: dict[str, Any] = {"max_epochs": 2, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0, "block_size": 16}
SECTIONS = (
    "What was run",
    "Hidden molecules",
    "Which genes",
    "The null test",
    "Training",
    "Markers before and after",
    "When not to use it",
)


@pytest.fixture
def imputed(adata: ad.AnnData) -> ad.AnnData:
    scimpute.tl.began(adata, "batch", "cell_type", **QUICK)
    return adata


@pytest.fixture
def save(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


@pytest.fixture
def drawn() -> None:
    """For tests that look at figures."""


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere they are not drawn, which takes most of the time."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("scimpute.metrics._report.figures._uri", lambda figure: ("data:image/png;base64,", 100))


def quick(adata: ad.AnnData, save: Any, key: str = "began", **options: Any) -> dict[str, Any]:
    return report(adata, key, save=save, **{"basis": "pca", "n_splits": 0} | options)


class Page(HTMLParser):
    """Tags with their attributes, and that every tag is closed."""

    EMPTY = ("meta", "img", "!doctype")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.mark.usefixtures("drawn")
def test_every_section_is_there_and_nothing_from_outside(imputed, save):
    found = quick(imputed, save, n_splits=2)
    page = Page(save.read_text())
    headings = re.findall(r"<h2[^>]*>\d\. ([^<]*)</h2>", save.read_text())
    assert len(headings) == len(SECTIONS)
    assert all(heading.startswith(wanted) for heading, wanted in zip(headings, SECTIONS, strict=True))
    text = "".join(page.text)
    assert found["verdict"] in text
    assert all(reason in text for reason in found["reasons"]["reason"])
    images = page.of("img")
    assert len(images) == 4
    for image in images:
        assert image["src"].startswith("data:image/png;base64,iVBOR")
        assert len(image["alt"]) > 30
    assert not page.of("script")
    assert not page.of("link")
    assert not re.search(r"https?://|url\(|@import", save.read_text())
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.of("th"))
    assert len(page.of("table")) == len(page.of("caption")) >= 6
    # What it was told, and that this is not to be tested.
    assert "obs['batch'], as batch_key" in text
    assert "never test differences between its levels" in text


def test_the_numbers_are_those_of_the_scores(imputed, save):
    found = quick(imputed, save, random_state=3)
    by_hand = imputed.copy()
    scimpute.pp.thin(by_hand, random_state=3)
    scimpute.tl.began(by_hand, "batch", "cell_type", layer="thin_train", key_added="again", **QUICK)
    scores = scimpute.metrics.heldout(by_hand, "again").rename(index={"again": "imputed"})
    pd.testing.assert_frame_equal(found["heldout"].loc[scores.index, list(scores.columns)], scores)
    pd.testing.assert_frame_equal(found["gene_trust"], scimpute.metrics.gene_trust(by_hand, "again"))
    # The lead is the difference of the deviances, in nats per hidden molecule.
    kept = np.asarray(by_hand.layers["thin_train"].sum(axis=0)).ravel() > 0
    entries, molecules = adata_entries(by_hand, kept)
    lead = (found["heldout"]["poisson"] - found["heldout"].loc["imputed", "poisson"]) * entries / molecules
    np.testing.assert_allclose(found["heldout"]["lead"].iloc[:4], lead.iloc[:4], rtol=1e-4)
    assert found["heldout"].index.to_list() == ["raw", "gene_mean", "own_count", "knn", "imputed"]
    shown = "".join(Page(save.read_text()).text)
    assert f"{found['heldout'].loc['knn', 'poisson']:.3f}" in shown
    best = found["gene_trust"].query("molecules >= 10")["trust"].idxmax()
    assert best in shown


def adata_entries(adata: ad.AnnData, kept: np.ndarray) -> tuple[int, float]:
    return adata.n_obs * int(kept.sum()), float(adata.layers["thin_test"][:, kept].sum())


def test_knn_is_the_sum_of_the_nearest_cells(save):
    """Two kinds of cells that share no gene: of the other kind nothing is predicted."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(6, (60, 30)) * (np.arange(60)[:, None] % 2 == np.arange(30) % 2)
    adata = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)))
    adata.obsm["X_pca"] = rng.normal(size=(60, 2))
    scimpute.tl.began(adata, **QUICK)
    found = quick(adata, save)["heldout"]
    # Two epochs of training do not reach it.
    assert found.loc["knn", "poisson"] < found.loc["imputed", "poisson"] < found.loc["gene_mean", "poisson"] * 1.02
    assert found.loc["knn", "lead"] < 0


def test_the_null_test_is_that_of_false_signal(imputed, save):
    found = quick(imputed, save, n_splits=2, random_state=1)

    def again(given: ad.AnnData, label: str | None) -> np.ndarray:
        work = ad.AnnData(given.X, obs=imputed.obs[["batch", "cell_type"]].set_axis(given.obs_names))
        work.obs = work.obs.join(given.obs)
        scimpute.tl.began(work, "batch", label or "cell_type", **QUICK)
        return work.layers["began"]

    by_hand = scimpute.metrics.false_signal(ad.AnnData(imputed.X), again, n_splits=2, n_labelled=1, random_state=1)
    pd.testing.assert_frame_equal(found["false_signal"], by_hand)


@pytest.mark.parametrize(("options", "runs"), [({}, 5), ({"n_labelled": 0}, 3), ({"n_labelled": 2}, 6), ({"n_splits": 0}, 1)])
def test_how_often_it_is_imputed(imputed, save, monkeypatch, options, runs):
    calls = []
    function = scimpute.tl.began

    @wraps(function)
    def counted(adata: ad.AnnData, *positional: Any, **arguments: Any) -> Any:
        calls.append(arguments)
        return function(adata, *positional, **arguments)

    monkeypatch.setattr(scimpute.tl, "began", counted)
    quick(imputed, save, **{"n_splits": 2} | options)
    assert len(calls) == runs
    assert all(call["batch_key"] == "batch" and call["width"] == 16 for call in calls)


def test_how_often_it_will_be_imputed_is_said_first(imputed, save, capsys):
    """One bar, whatever it runs."""
    quick(imputed, save, n_splits=1, progress=True)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert lines[0] == "metrics.report: 5 imputations (tl.began) of 60 cells x 40 genes, of copies"
    said = "".join(lines[1:])
    assert "tl.began" not in said
    places = [
        said.index(phase) for phase in ("groups and embedding", "imputation 1 of 5", "imputation 5 of 5", "markers and page", "done: ")
    ]
    assert places == sorted(places)


def test_without_a_bar_there_is_a_line_for_each_phase(imputed, save, monkeypatch):
    lines = []
    monkeypatch.setattr("scimpute._progress.logg.info", lambda text, **_: lines.append(text))
    quick(imputed, save, progress=False)
    lines = [line for line in lines if line.startswith("metrics.report")]
    assert lines[0] == "metrics.report: 1 imputation (tl.began) of 60 cells x 40 genes, of copies"
    phases = ("groups and embedding of the counts", "imputation 1 of 1", "markers and page")
    assert lines[1:-1] == [f"metrics.report: {phase}" for phase in phases]


def test_what_was_left_to_the_data_is_left_to_them_again(adata, save, monkeypatch):
    given = {name: value for name, value in QUICK.items() if name not in ("penalty", "max_epochs")}
    scimpute.tl.began(adata, **given)
    adata.write_h5ad(save.with_suffix(".h5ad"))
    seen = {}

    def look(self: Any, *_: Any, **__: Any) -> None:
        seen.update(self.arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(scimpute.metrics._replay.Imputation, "run", look)
    with pytest.raises(KeyboardInterrupt):
        quick(ad.read_h5ad(save.with_suffix(".h5ad")), save)
    assert (seen["penalty"], seen["max_epochs"], seen["width"], seen["n_context"]) == ("auto", "auto", 16, 5)


def test_no_standard_deviations_are_made_to_be_thrown_away(imputed, save, monkeypatch):
    given, began = [], scimpute.tl.began

    @wraps(began)
    def look(*args: Any, **options: Any) -> Any:
        given.append((options["sd"], options["dtype"]))
        return began(*args, **options)

    monkeypatch.setattr(scimpute.tl, "began", look)
    quick(imputed, save)
    assert given == [(False, "float32")]


def test_library_sizes_do_not_tell_what_was_hidden(adata, save, monkeypatch):
    counts = adata.X.toarray()
    counts[7] = 0
    counts[7, 0] = 1
    adata.X = sp.csr_matrix(counts)
    adata.obs["total"] = (counts.sum(axis=1) + np.arange(adata.n_obs) % 3).astype(int)
    scimpute.tl.began(adata, size_key="total", **QUICK)
    seen = []

    def look(self: Any, given: ad.AnnData, layer: str, **_: Any) -> None:
        seen.append((given.obs["total"], given.layers["thin_train"].toarray()))
        raise KeyboardInterrupt

    monkeypatch.setattr(scimpute.metrics._replay.Imputation, "run", look)
    for seed in range(9):
        with pytest.raises(KeyboardInterrupt):
            quick(adata, save, random_state=seed)
    for size, kept in seen:
        # What is not among these genes stays; and no library is empty.
        np.testing.assert_allclose(size, np.maximum(kept.sum(axis=1) + np.arange(adata.n_obs) % 3, 1))
    assert any(not kept[7].any() for _, kept in seen)


# What can be reported on


def matrices(counts: sp.csr_matrix) -> dict[str, Any]:
    return {"dense": counts.toarray(), "csc": counts.tocsc(), "int": counts.astype(np.int64), "array": sp.csr_array(counts)}


@pytest.mark.parametrize("kind", ["dense", "csc", "int", "array"])
def test_any_kind_of_matrix(imputed, save, kind, fingerprint):
    expected = quick(imputed, save)["heldout"]
    imputed.X = matrices(imputed.X)[kind]
    before = fingerprint(imputed)
    pd.testing.assert_frame_equal(quick(imputed, save)["heldout"], expected, rtol=1e-5)
    assert fingerprint(imputed) == before


def test_counts_that_were_moved_to_a_layer(imputed, save):
    expected = quick(imputed, save)
    imputed.layers["counts"] = imputed.X.copy()
    imputed.X = imputed.X.log1p()
    # Found by their fingerprint; another layer may be named as well.
    pd.testing.assert_frame_equal(quick(imputed, save)["heldout"], expected["heldout"])
    pd.testing.assert_frame_equal(quick(imputed, save, layer="counts")["heldout"], expected["heldout"])
    scimpute.tl.began(imputed, "batch", layer="counts", key_added="of_layer", **QUICK)
    quick(imputed, save, "of_layer")
    assert "'of_layer' was written by tl.began" in "".join(Page(save.read_text()).text)


@pytest.mark.parametrize(
    "options",
    [
        {"output": "log1p", "fill": "zeros"},
        {"output": "rate", "posterior": False},
        {"fill": "expressed"},
        {"batch_key": "batch", "target_batch": "average"},
        {"size_key": "total"},
        {"sd": False, "dtype": "float16"},
        {"random_state": np.random.default_rng(0)},
        {"key_added": "raw"},
    ],
    ids=lambda options: ",".join(options),
)
def test_any_setting_of_began(adata, save, options):
    adata.obs["total"] = 2 * adata.obs["depth"]
    scimpute.tl.began(adata, **QUICK | options)
    found = quick(adata, save, options.get("key_added", "began"), n_splits=1)
    assert np.isfinite(found["heldout"]["poisson"]).all()
    # Of some genes there is no null test.
    assert found["false_signal"] is None if "genes" in options else len(found["false_signal"]) == 3
    assert np.isfinite(found["markers"].drop(columns=["group", "gene", "trust"]).to_numpy(dtype=float)).all()


def test_after_h5ad_it_is_the_same(imputed, save):
    expected = quick(imputed, save)
    page = save.read_bytes()
    imputed.write_h5ad(save.with_suffix(".h5ad"))
    found = quick(ad.read_h5ad(save.with_suffix(".h5ad")), save)
    pd.testing.assert_frame_equal(found["heldout"], expected["heldout"])
    assert sorted(Page(save.read_text()).text) == sorted(Page(page.decode()).text)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_some_genes(adata, save, dtype):
    scimpute.tl.began(adata, genes="marked", dtype=dtype, **QUICK)
    found = quick(adata, save, n_splits=1)
    assert list(found["gene_trust"].index) == list(adata.var_names[adata.var["marked"]])
    assert found["false_signal"] is None
    assert "only some were imputed" in save.read_text()
    assert set(found["markers"]["gene"]) <= set(adata.var_names[adata.var["marked"]])


@pytest.mark.parametrize("genes", [["gene3"], ["gene7", "gene1", "gene30"]], ids=len)
def test_some_genes_are_scored_at_the_depth_of_all(adata, save, genes):
    """Whatever else was imputed, the baselines of a gene are the same."""
    from scimpute.metrics import _own_count_baseline, _thinned

    scimpute.tl.began(adata, genes=genes, **QUICK)
    found = quick(adata, save)
    scimpute.pp.thin(adata)
    scimpute.tl.began(adata, genes=genes, layer="thin_train", key_added="again", **QUICK)
    x, y = (adata.layers[f"thin_{part}"].toarray() for part in ("train", "test"))
    assert x.sum(axis=0).all()
    places, ratio = [adata.var_names.get_loc(gene) for gene in genes], y.sum() / x.sum()
    predictions = {
        "raw": x[:, places],
        "gene_mean": x.sum(axis=1, keepdims=True) * x.sum(axis=0)[places] / x.sum(),
        "own_count": _own_count_baseline.own_count(_thinned.read(adata, "thin"), np.random.default_rng(0))(slice(0, adata.n_obs))[
            :, places
        ],
        "imputed": adata.obsm["again"].to_numpy(),
    }
    for name, p in predictions.items():
        q = p * ratio
        assert found["heldout"].loc[name, "poisson"] == pytest.approx((q - y[:, places] * np.log(q + 1e-6)).mean(), rel=1e-4), name
    assert found["heldout"]["poisson"].nunique() == 5
    # To renormalise a prediction all genes of it are needed.
    assert "mse_log_renormalized" not in found["heldout"]
    assert np.isfinite(found["heldout"]["mse_log"]).all()
    adata.layers["again"] = np.zeros(adata.shape, np.float32)
    adata.layers["again"][:, places] = adata.obsm.pop("again")
    with pytest.warns(UserWarning, match="does not look like expected counts"):  # of the other genes it holds none
        pd.testing.assert_frame_equal(found["gene_trust"], scimpute.metrics.gene_trust(adata, "again").loc[genes])
    scimpute.tl.began(adata, **QUICK)
    everything = quick(adata, save)
    if len(genes) == 1:
        ahead = found["heldout"]["poisson"] - found["heldout"].loc["imputed", "poisson"]
        np.testing.assert_allclose(found["heldout"]["lead"][:4], (ahead * adata.n_obs / y[:, places].sum())[:4], rtol=1e-4)
    assert list(everything["heldout"].columns).count("mse_log_renormalized") == 1


def test_genes_of_which_nothing_was_hidden(adata, save, refused):
    counts = adata.X.toarray()
    counts[:, 3] = 0
    counts[0, 3] = 1
    adata.X = sp.csr_matrix(counts)
    scimpute.tl.began(adata, genes=["gene3"], **QUICK)
    refused(adata, lambda a: quick(a, save), ValueError, "the 1 imputed genes have no hidden molecule, or no other")


def test_a_model_that_was_applied(adata, save, tmp_path):
    model = tmp_path / "model.safetensors"
    scimpute.tl.began(adata.copy(), "batch", save=model, **QUICK)
    scimpute.tl.apply(adata, model)
    found = quick(adata, save, n_splits=1)
    assert list(found["false_signal"].index) == ["raw", "imputed"]
    text = "".join(Page(save.read_text()).text)
    assert "it has seen the hidden molecules" in text
    assert "nothing was trained" in text
    model.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"model: .*model.safetensors', which was applied, does not exist; pass model="):
        quick(adata, save)
    quick(adata, save, model=tmp_path / "moved")


@pytest.mark.parametrize("option", [{"output": "log1p"}, {"fill": "expressed"}], ids=str)
def test_a_model_that_writes_no_counts(adata, save, tmp_path, refused, option):
    scimpute.tl.began(adata, save=tmp_path / "model", **option, **QUICK)
    scimpute.tl.apply(adata, tmp_path / "model")
    ((name, value),) = option.items()
    refused(adata, lambda a: quick(a, save), ValueError, f"was trained with {name}={value!r}")


def test_zeros_of_genes_that_are_not_expressed_are_not_scored(adata, save, monkeypatch):
    """They are no expected counts: what they were made of is."""
    monkeypatch.setattr("scimpute._counts.expressed.COUNT_RATIO", 0.0)
    monkeypatch.setattr("scimpute._counts.expressed.RATE_RATIO", 0.0)
    scimpute.tl.began(adata, **QUICK)
    expected = quick(adata, save)["heldout"]
    scimpute.tl.began(adata, fill="expressed", **QUICK)
    assert (adata.layers["began"] == 0).mean() > 0.1
    pd.testing.assert_frame_equal(quick(adata, save)["heldout"], expected)
    assert "fill='all' was used here" in "".join(Page(save.read_text()).text)


@pytest.mark.parametrize("sections", [1, 2])
def test_spatial_with_the_image(save, sections, fingerprint):
    adata = scimpute.datasets.toy_visium(8, 8, 30, n_sections=sections)
    told = {"library_key": "section"} if sections > 1 else {}
    scimpute.tl.spatial(adata, "hires", **told, **QUICK)
    before = fingerprint(adata)
    found = report(adata, "spatial_imputed", groupby="region", n_splits=1, save=save)
    assert fingerprint(adata) == before
    text = "".join(Page(save.read_text()).text)
    assert "Contributions of the modalities" in text
    assert "the positions of the spots" in text
    assert ("obs['section'], as library_key" in text) == (sections > 1)
    assert list(found["false_signal"].index) == ["raw", "imputed"]
    by_hand = adata.copy()
    scimpute.pp.thin(by_hand)
    scimpute.tl.spatial(by_hand, "hires", **told, layer="thin_train", key_added="again", **QUICK)
    assert found["heldout"].loc["imputed", "poisson"] == scimpute.metrics.heldout(by_hand, "again").loc["again", "poisson"]


@pytest.mark.parametrize("options", [{}, {"likelihood": "squared"}, {"spatial_weight": 0.0}], ids=str)
def test_nmf(save, options):
    adata = scimpute.datasets.toy_visium(6, 6, 30)
    scimpute.tl.nmf(adata, max_epochs=2, n_factors=3, **options)
    found = report(adata, "nmf", groupby="region", n_splits=1, save=save)
    assert np.isfinite(found["heldout"]["poisson"]).all()


@pytest.mark.parametrize("method", ["spatial", "nmf"])
def test_squared_errors_are_called_so(save, method):
    """No molecules are held out then, and there is no posterior; only what is said of hidden molecules is a deviance."""
    adata = scimpute.datasets.toy_visium(6, 6, 30)
    options = {"n_factors": 3} if method == "nmf" else {"n_repeats": 1, "n_context": "auto"}
    getattr(scimpute.tl, method)(adata, max_epochs=2, key_added="key", **options, likelihood="squared")
    report(adata, "key", groupby="region", n_splits=0, save=save)
    page = save.read_text()
    run, training = (page.split("</h2>")[i] for i in (1, 5))
    for section in (run, training):
        assert "nats" not in section
        assert "deviance" not in re.sub("complexity: [^<]*", "", section)
        assert "squared error" in section
    assert "there is no posterior" in run
    assert "The deviance of held-out molecules should fall" not in page


@pytest.mark.usefixtures("greedy_scanpy")
def test_clusters_of_the_counts_and_a_umap(adata, save, other_scanpy):
    scimpute.tl.began(adata, **QUICK)
    threads = torch.get_num_threads()
    found = report(adata, "began", n_splits=0, save=save)
    assert torch.get_num_threads() == threads
    text = "".join(Page(save.read_text()).text)
    assert "k-means clusters of the raw counts" in text
    assert "a UMAP of the raw counts" in text
    assert found["markers"]["group"].str.startswith("cluster ").all()
    # Whatever was imputed, the groups and their markers are the same.
    adata.layers["began"] = adata.layers["began"][::-1].copy()
    again = quick(adata, save)["markers"]
    columns = ["group", "gene", "before_in", "before_out"]
    pd.testing.assert_frame_equal(again[columns], found["markers"][columns])
    # And whatever scanpy takes where nothing is said, or calls what it writes.
    first = _report.numbers.embedding(adata, _replay.read(adata, "began", None, None, 0, "cpu"), None, 0)
    other_scanpy()
    pd.testing.assert_frame_equal(quick(adata, save)["markers"], again)
    second = _report.numbers.embedding(adata, _replay.read(adata, "began", None, None, 0, "cpu"), None, 0)
    np.testing.assert_array_equal(first[0], second[0])


def test_markers_are_means_of_groups(imputed, save):
    found = quick(imputed, save)["markers"]
    assert set(found["group"]) == set(imputed.obs["cell_type"])
    row = found.iloc[0]
    inside = (imputed.obs["cell_type"] == row["group"]).to_numpy()
    depth = np.asarray(imputed.X.sum(axis=1))
    before = np.log1p(imputed[:, row["gene"]].X.toarray() * 1e4 / depth).ravel()
    after = np.log1p(imputed[:, row["gene"]].layers["began"] * 1e4 / depth).ravel()
    expected = [before[inside].mean(), before[~inside].mean(), after[inside].mean(), after[~inside].mean()]
    np.testing.assert_allclose(row[["before_in", "before_out", "after_in", "after_out"]].astype(float), expected, rtol=1e-4)


def test_the_caption_of_the_heat_map_says_what_is_drawn(imputed, save):
    quick(imputed, save)
    text = "".join(Page(save.read_text()).text)
    assert "Means of log1p(CP10k), as shares of the highest mean that the gene has in any group, before or after." in text
    assert "on one scale for both." not in text


# Names, files, and what must not change


NASTY = "<script>alert('$x_1$ & \"co\"')</script>"


@pytest.mark.usefixtures("drawn")
def test_names_are_escaped(adata, save):
    adata.var_names = [f"{NASTY}{i}" if i else "$\\frac" for i in range(adata.n_vars)]
    adata.obs["kind<b>"] = adata.obs["cell_type"].astype(str) + "<i>$y"
    scimpute.tl.began(adata, celltype_key="kind<b>", key_added="a<u>b", **QUICK)
    quick(adata, save, "a<u>b", n_splits=1)
    page = Page(save.read_text())
    assert {tag for tag, _ in page.found}.isdisjoint({"script", "b", "i", "u"})
    assert html.escape("obs['kind<b>']") in save.read_text()
    assert NASTY in "".join(page.text)
    assert any("'$x_1$ &" in str(image["alt"]) for image in page.of("img"))


def test_names_that_are_not_unique(adata, save):
    adata.var_names = ["same"] * adata.n_vars
    scimpute.tl.began(adata, **QUICK)
    assert quick(adata, save)["gene_trust"].shape[0] == adata.n_vars


@pytest.mark.usefixtures("drawn")
def test_the_same_seed_gives_the_same_page(imputed, save):
    first = quick(imputed, save, n_splits=1), save.read_bytes()
    second = quick(imputed, save, n_splits=1), save.read_bytes()
    assert first[1] == second[1]
    pd.testing.assert_frame_equal(first[0]["heldout"], second[0]["heldout"])
    third = quick(imputed, save, random_state=1)
    assert third["heldout"].loc["raw", "poisson"] != first[0]["heldout"].loc["raw", "poisson"]


@pytest.mark.usefixtures("drawn")
def test_nothing_else_changes(imputed, save, fingerprint, states):
    quick(imputed, save)  # whatever the libraries do at their first use
    before, numbers, settings, backend = fingerprint(imputed), states(), dict(mpl.rcParams), mpl.get_backend()
    figures = plt.get_fignums()
    report(imputed, "began", n_splits=1, save=save)
    assert fingerprint(imputed) == before
    assert states() == numbers
    assert dict(mpl.rcParams) == settings
    assert mpl.get_backend() == backend
    assert plt.get_fignums() == figures
    assert [path.name for path in save.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("what", ["a page of others", "<!DOCTYPE html><html>theirs</html>", ""])
def test_a_file_of_others_is_left(imputed, save, refused, what):
    save.write_text(what)
    refused(imputed, lambda a: quick(a, save), FileExistsError, r"page.html' exists and was not written by scimpute.metrics.report")
    assert save.read_text() == what


def test_a_report_is_replaced_and_a_link_followed(imputed, save):
    quick(imputed, save)
    link = save.with_name("link.html")
    link.symlink_to(save)
    first = save.read_bytes()
    quick(imputed, link, random_state=5)
    assert link.is_symlink()
    assert save.read_bytes() != first


@pytest.mark.parametrize(
    ("save", "error", "message"),
    [
        ("no/folder/page.html", FileNotFoundError, "the directory 'no/folder' does not exist"),
        (".", IsADirectoryError, "is a directory"),
        ("", ValueError, "save is empty"),
        (None, TypeError, "save must be the path of a file"),
        (True, TypeError, "save must be the path of a file"),
        ("/dev/null", FileExistsError, "was not written by"),
    ],
)
def test_places_that_cannot_be_written(imputed, refused, save, error, message):
    refused(imputed, lambda a: quick(a, save), error, message)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("step", ["_replay.Imputation.run", "_report.page.page", "_report.figures.heatmap", "_report._is_report"])
def test_a_failure_leaves_nothing_behind(imputed, save, fingerprint, monkeypatch, failure, step):
    quick(imputed, save)
    earlier, before, settings = save.read_bytes(), fingerprint(imputed), dict(mpl.rcParams)

    calls = []

    def fail(*_: Any, **__: Any) -> bool:
        calls.append(1)
        # The file is looked at twice: at the second time it is about to be replaced.
        if step != "_report._is_report" or len(calls) > 1:
            raise failure
        return True

    module, name = step.rsplit(".", 1)
    monkeypatch.setattr(f"scimpute.metrics.{module}.{name}", fail)
    with pytest.raises(failure):
        quick(imputed, save, random_state=9)
    assert save.read_bytes() == earlier
    assert fingerprint(imputed) == before
    assert dict(mpl.rcParams) == settings
    assert [path.name for path in save.parent.iterdir()] == ["page.html"]


def test_a_file_that_appeared_meanwhile_is_left(imputed, save, monkeypatch):
    write = _report.page.page
    monkeypatch.setattr(_report.page, "page", lambda *given: save.write_text("theirs") and write(*given))
    with pytest.raises(FileExistsError):
        quick(imputed, save)
    assert save.read_text() == "theirs"


# What is refused


def without_layer(adata: ad.AnnData) -> None:
    del adata.layers["began"]


def of_bulk(adata: ad.AnnData) -> None:
    adata.layers["log"] = adata.X.log1p()
    scimpute.tl.pmi(adata, layer="log", missing="zero", n_models=1, n_hidden=8, max_epochs=1)


def without_label(adata: ad.AnnData) -> None:
    del adata.obs["batch"]


@pytest.mark.parametrize(
    ("edit", "options", "error", "message"),
    [
        (None, {"key": "began2"}, KeyError, r"imputation 'began2' not found; available: \['began'\]; did you mean 'began'"),
        (None, {"key": None}, TypeError, "key must be the name of an imputation"),
        (None, {"key": "rate"}, ValueError, "uns\\['rate'\\] does not say how this layer was imputed"),
        (of_bulk, {"key": "pmi"}, ValueError, "written by tl.pmi.*metrics.recovery"),
        (without_layer, {}, KeyError, "neither layers\\['began'\\] nor obsm"),
        (without_label, {}, KeyError, "obs column 'batch' not found"),
        (None, {"groupby": "nope"}, KeyError, "groupby: obs column 'nope' not found"),
        (None, {"basis": "nope"}, KeyError, "obsm key 'nope' not found"),
        (None, {"layer": "nope"}, KeyError, "layer 'nope' not found"),
        (None, {"frac": 1.0}, ValueError, "frac must be in"),
        (None, {"n_splits": -1}, ValueError, "n_splits must be at least 0"),
        (None, {"n_labelled": 0.5}, ValueError, "n_labelled must be a whole number"),
        (None, {"model": "model"}, ValueError, "was trained on this object"),
        (None, {"device": "gpu"}, ValueError, "device 'gpu'"),
        (None, {"random_state": -1}, ValueError, "random_state must not be negative"),
        (None, {"progress": 1}, TypeError, "progress must be True or False"),
        (None, {"frac": 1 - 1e-12}, ValueError, "all or none of the"),
    ],
)
def test_bad_arguments(imputed, save, refused, edit, options, error, message):
    if edit is not None:
        edit(imputed)
    if edit is None and options.get("key") == "rate":
        imputed.layers["rate"] = imputed.layers["began"].copy()
    refused(imputed, lambda a: quick(a, save, **options), error, message)
    assert not save.exists()


def test_no_object(save):
    with pytest.raises(TypeError, match="expected AnnData, got str"):
        quick("file.h5ad", save)


# The verdict


def scores(**leads: float) -> pd.DataFrame:
    table = pd.DataFrame({"lead": {"raw": 1.0, "gene_mean": 0.3, "own_count": 0.2, "knn": 0.1} | leads})
    return table.assign(lead_se=0.01)


def trusts(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"trust": values, "z": np.multiply(values, 10), "molecules": 50})


def signals(imputed: float, raw: float = 0.0) -> pd.DataFrame:
    table = pd.DataFrame({"differential_genes": [raw, imputed], "tested_genes": 100, "correlation": [0.03, 0.03]})
    return table.set_axis(["raw", "imputed"])


GOOD = trusts(0.2, 0.3, -0.01)


@pytest.mark.parametrize(
    ("given", "expected", "because"),
    [
        ((scores(), GOOD, signals(0)), "The held-out molecules support this imputation.", "2 of 3 genes (67%)"),
        ((scores(), GOOD, None), "The held-out molecules support this imputation.", "It was not tested"),
        ((scores(gene_mean=0.01), GOOD, signals(0)), "Do not use this imputation.", "clearly better than the gene mean"),
        ((scores(gene_mean=-0.1), GOOD, signals(0)), "Do not use this imputation.", "worse than the gene mean, by 0.100"),
        ((scores(knn=-0.1), GOOD, signals(0)), "Do not use this imputation.", "worse than the mean of similar cells"),
        ((scores(raw=0.0), GOOD, signals(0)), "Do not use this imputation.", "clearly better than the counts themselves"),
        ((scores(knn=0.01), GOOD, signals(0)), "Use this imputation with care.", "clearly better than the mean of similar cells"),
        ((scores(), trusts(-0.1, -0.1, 0.2), signals(0)), "Use this imputation with care.", "1 of 3 genes (33%)"),
        ((scores(), trusts(0.1, 0.1, -0.5), signals(0)), "Use this imputation with care.", "1 clearly worse"),
        ((scores(), GOOD, signals(5)), "Use this imputation with care.", "it makes differences"),
        ((scores(), GOOD, signals(2, raw=3)), "The held-out molecules support this imputation.", "as it should be"),
    ],
)
def test_verdict(given, expected, because):
    sentence, reasons = verdict(*given, {})
    assert sentence == expected
    assert reasons["reason"].str.contains(because, regex=False).any()


@pytest.mark.parametrize(
    ("lead", "posterior", "sentence", "because"),
    [
        (0.1, True, "The held-out molecules support", "Other genes add information"),
        (0.01, True, "Use this imputation with care", "other genes seem to add no information"),
        (
            -0.1,
            True,
            "Use this imputation with care",
            "is worse than the gene mean combined with the cell's own count (lead -0.100 ± 0.010",
        ),
        (-0.1, False, "The held-out molecules support", "leaves the own count out"),
    ],
)
def test_a_gain_of_the_own_count_alone(lead, posterior, sentence, because):
    found, reasons = verdict(scores(own_count=lead), GOOD, None, {}, posterior=posterior)
    assert found.startswith(sentence)
    assert reasons["reason"].str.contains(because, regex=False).any()


def test_of_genes_without_relation_only_the_own_count_tells(save):
    """Every gene's counts dealt anew over the cells; the genes differ between cells, so their own counts tell a lot."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(1.0, 4.0, size=(200, 40))
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)))
    adata.obsm["X_pca"] = rng.normal(size=(200, 2))
    scimpute.tl.began(adata, **QUICK | {"max_epochs": 20})
    found = quick(adata, save)
    assert found["heldout"].loc["own_count", "poisson"] < found["heldout"].loc["gene_mean", "poisson"] - 0.01
    assert found["heldout"].loc["own_count", "lead"] < 2 * found["heldout"].loc["own_count", "lead_se"]
    assert found["verdict"] == "Use this imputation with care."


def test_the_own_count_baseline_is_the_posterior_mean_around_the_gene_mean():
    """Counts of one gene-wise Gamma, so that the size is known: the baseline draws as far as this size says."""
    from scimpute.metrics import _own_count_baseline, _thinned

    rng = np.random.default_rng(0)
    size, mean = 2.0, np.linspace(2, 20, 50)
    rates = rng.gamma(size, mean / size, size=(800, 50))
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)))
    scimpute.pp.thin(adata)
    parts = _thinned.read(adata, "thin")
    found = _own_count_baseline.own_count(parts, rng)(slice(0, 800))
    seen, mu = parts.train.toarray(), parts.gene_mean(slice(0, 800))
    exact = (seen + size) / (1 + size / mu)
    assert np.abs(found / exact - 1).mean() < 0.05


def test_the_gene_mean_in_disguise_is_not_to_be_used(adata, save):
    """So strong a prior that every cell gets the mean, and no posterior."""
    adata.X = sp.csr_matrix(np.random.default_rng(0).poisson(2, adata.shape).astype(np.float32))
    scimpute.tl.began(adata, **QUICK | {"penalty": 1e7}, posterior=False)
    found = quick(adata, save)
    assert found["verdict"] == "Do not use this imputation."
    assert "Do not use this imputation." in save.read_text()


# The command line


def test_command(imputed, save, tmp_path, capsys):
    source = tmp_path / "in.h5ad"
    imputed.write_h5ad(source)
    assert _cli.main(["report", str(source), "--save", str(save), "--n-splits=0", "--basis=pca"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Wrote {save}"
    assert lines[0].endswith(("imputation.", "care."))
    assert lines[0] in save.read_text()
    assert "Traceback" not in "".join(lines)


def test_command_refuses(imputed, save, tmp_path, capsys):
    source, none = tmp_path / "in.h5ad", tmp_path / "none.h5ad"
    scimpute.tl.began(imputed, key_added="second", **QUICK)
    imputed.write_h5ad(source)
    scimpute.datasets.toy_counts().write_h5ad(none)
    before = source.read_bytes()
    for argv, message in (
        ([str(source)], "holds 2 imputations of counts, ['began', 'second']; name one with --key"),
        ([str(none)], "holds 0 imputations of counts, []; name one with --key"),
        ([str(source), "--key=third"], "imputation 'third' not found"),
        ([str(source), "--key=began", f"--save={source}"], "was not written by scimpute.metrics.report"),
        (["missing.h5ad"], "'missing.h5ad' does not exist"),
    ):
        assert _cli.main(["report", "--save", str(save), *argv]) == 2
        assert message in capsys.readouterr().err
    assert source.read_bytes() == before
    assert not save.exists()


def test_states_of_numpy_and_torch_do_not_matter(imputed, save, default_dtype):
    expected = quick(imputed, save, random_state=2**33)
    default_dtype(torch.float64)
    with np.errstate(all="raise"):
        found = quick(imputed, save, random_state=2**33)
    pd.testing.assert_frame_equal(found["heldout"], expected["heldout"])
    pd.testing.assert_frame_equal(found["gene_trust"], expected["gene_trust"])
