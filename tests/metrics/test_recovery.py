"""Scores on hidden entries, by hand and against dense formulas."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scimpute import datasets, metrics, pp, tl
from scimpute.metrics import _hidden


def small(values, mask, of="all", groups=None, **layers) -> ad.AnnData:
    """Values by gene, as ``pp.hide`` leaves them where it hides what is in the mask."""
    values, mask = np.array(values, np.float32).T, np.array(mask, bool).T
    adata = ad.AnnData(values, layers={name: np.array(layer, np.float32).T for name, layer in layers.items()})
    if of == "all":
        adata.layers["hidden"], adata.layers["hidden_mask"] = np.where(mask, np.nan, values), mask
    else:
        adata.layers["hidden"], adata.layers["hidden_mask"] = sp.csr_matrix(np.where(mask, 0, values)), sp.csr_matrix(mask)
    adata.uns["hidden"] = {"method": "hide", "params": {"frac": 0.5, "of": of, "layer": "X", "random_state": 0}}
    if groups is not None:
        adata.obs["group"] = list(groups)
    return adata


LAST_TWO = [0, 0, 0, 0, 1, 1]


def test_all_by_hand():
    # Visible means 4 and 1, variances 5 and 3; the second gene's hidden values are at its mean.
    adata = small(
        [[1, 3, 5, 7, 2, 6], [0, 0, 0, 4, 1, 1]], [LAST_TWO, LAST_TWO], mine=[[0, 0, 0, 0, 3, 5], [0, 0, 0, 0, 2, 0]], groups="aabbab"
    )
    table = metrics.recovery(adata, "mine")
    assert list(table.index) == ["gene_mean", "mine"]
    assert list(table.columns) == ["rmse", "r2", "r2_pooled", "correlation"]
    np.testing.assert_allclose(table.loc["mine"], [np.sqrt((1 + 1 + 1 + 1) / 4), 1 - 2 / 8, 1 - (2 / 5 + 2 / 3) / (8 / 5), 1], rtol=1e-6)
    np.testing.assert_allclose(table.loc["gene_mean"], [np.sqrt(8 / 4), 0, 0, 0], atol=1e-12)
    # Group means 2 and 6, right of the first gene, and 0 and 2 of the second.
    table = metrics.recovery(adata, ["mine"], groupby="group")
    assert list(table.index) == ["gene_mean", "group_mean", "mine"]
    assert list(table.columns) == ["rmse", "r2", "r2_pooled", "correlation", "r2_within"]
    np.testing.assert_allclose(table.loc["group_mean"], [np.sqrt(2 / 4), 1, 1 - (2 / 3) / (8 / 5), 1, 0], rtol=1e-6)
    np.testing.assert_allclose(table["r2_within"], [1, 0, 0], atol=1e-12)
    genes = metrics.recovery(adata, ["mine"], groupby="group", by="gene")
    assert list(genes.index) == list(adata.var_names)
    np.testing.assert_allclose(genes, [[0, 1, 0.75], [np.nan] * 3], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*does not look like expected counts:UserWarning")
def test_counts_by_hand():
    # The zeros are visible: means 4 / 3 and 1.
    adata = small(
        [[4, 0, 0, 2, 6], [1, 1, 1, 0, 1]], [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], "nonzero", mine=[[9, 9, 9, 2, 3], [9, 9, 9, 9, -1]]
    )
    table = metrics.recovery(adata, "mine")
    assert list(table.columns) == ["rmse", "rmse_log1p_cp10k", "r2", "r2_pooled", "correlation"]
    assert table.loc["mine", "rmse"] == pytest.approx(np.sqrt((0 + 9 + 4) / 3))
    full, logs = np.log1p(1e4), np.log1p(1e4 * np.array([6, 3, 1]) / 7)
    assert table.loc["mine", "rmse_log1p_cp10k"] == pytest.approx(np.sqrt(((logs[0] - logs[1]) ** 2 + logs[2] ** 2) / 3))
    null = np.log1p(1e4 * np.array([4 / 3 / 2, 4 / 3 / 7, 3 / 4 / 7]))
    assert table.loc["gene_mean", "rmse_log1p_cp10k"] == pytest.approx(np.sqrt(np.mean((np.array([full, logs[0], logs[2]]) - null) ** 2)))
    # The second gene has but one hidden entry: it counts in the pooled score alone.
    first = ((2 - 4 / 3) ** 2, (6 - 4 / 3) ** 2)
    assert table.loc["mine", "r2"] == pytest.approx(1 - 9 / sum(first))
    variances = np.var([4, 0, 0]), np.var([1, 1, 1, 0])
    assert table.loc["mine", "r2_pooled"] == pytest.approx(
        1 - (9 / variances[0] + 4 / variances[1]) / (sum(first) / variances[0] + 0.25**2 / variances[1])
    )
    assert metrics.recovery(adata, "mine", by="gene")["mine"].isna().tolist() == [False, True]
    # Negative or broken values are no counts: no depth to divide by.
    adata = small([[4, 0.5, 0, 2, 6]], [[0, 0, 0, 1, 1]], "nonzero")
    assert "rmse_log1p_cp10k" not in metrics.recovery(adata, [])


def test_neighbours_by_hand():
    adata = small([[1, 3, 5, 7, 2, 6]], [LAST_TWO])
    graph = np.zeros((6, 6))
    graph[4, [0, 1, 4, 5]] = [0.5, 2, 1, 1]  # of these 1 and 3 are visible, and the cell is not its own neighbour
    adata.obsp["spatial_connectivities"] = sp.csr_matrix(graph)
    table = metrics.recovery(adata, [])
    # The last cell has no neighbour: the gene's mean, 4.
    assert list(table.index) == ["gene_mean", "neighbour_mean"]
    assert table.loc["neighbour_mean", "r2"] == pytest.approx(1 - (0 + 4) / 8)
    adata.obsp["spatial_connectivities"] = graph
    pd.testing.assert_frame_equal(metrics.recovery(adata, []), table)
    graph[0, 1] = np.nan
    with pytest.raises(ValueError, match="spatial_connectivities.*NaN"):
        metrics.recovery(adata, [])


def test_groups_without_visible_values_fall_back_to_the_gene():
    adata = small([[1, 3, 5, 7, 2, 6], [1, 2, 3, 4, 5, 6]], [LAST_TWO, [1, 0, 0, 0, 0, 1]], groups="aaaabb")
    with pytest.warns(UserWarning, match=r"groupby='group': \['b'\] have 1 or 2 cells"):
        genes = metrics.recovery(adata, [], groupby="group", by="gene")
    assert genes.loc["0", "group_mean"] == 0
    # Visible 2, 3, 4 in the group of the first hidden entry, 5 in that of the second; mean 3.5.
    assert genes.loc["1", "group_mean"] == pytest.approx(1 - (4 + 1) / (2.5**2 + 2.5**2))


def test_constant_genes_are_undefined_whatever_the_rounding():
    constant = np.full(60, 0.1, np.float32)
    mask = np.arange(60) % 2 == 0
    adata = small([constant, np.arange(60)], [mask, mask], mine=[constant * 1.5, np.full(60, 3.3)])
    table = metrics.recovery(adata, "mine")
    assert metrics.recovery(adata, "mine", by="gene").loc["0"].isna().all()
    assert table.loc["mine", "correlation"] == 0
    assert np.isfinite(table).all(axis=None)
    adata = adata[:, :1].copy()
    table = metrics.recovery(adata, "mine")
    assert table[["r2", "r2_pooled", "correlation"]].isna().all(axis=None)
    assert np.isfinite(table["rmse"]).all()


def naive(x, mask, p, null, totals=None):
    """Every score, gene by gene."""
    visible = np.where(mask, np.nan, x)
    mean, sd = np.nanmean(visible, 0), np.nanstd(visible, 0)
    r2, within, correlation, above, below = [], [], [], 0.0, 0.0
    for j in range(x.shape[1]):
        hid = mask[:, j]
        truth, found = x[hid, j], p[hid, j]
        above, below = above + ((truth - found) ** 2).sum() / sd[j] ** 2, below + ((truth - mean[j]) ** 2).sum() / sd[j] ** 2
        r2.append(1 - ((truth - found) ** 2).sum() / ((truth - mean[j]) ** 2).sum())
        within.append(1 - ((truth - found) ** 2).sum() / ((truth - null[hid, j]) ** 2).sum())
        correlation.append(np.corrcoef(truth, found)[0, 1] if np.ptp(found) > 1e-6 else 0)
    scores = {"rmse": np.sqrt(np.mean((x - p)[mask] ** 2))}
    if totals is not None:
        logs = (np.log1p(np.maximum(values, 0) / totals[:, None] * 1e4)[mask] for values in (x, p))
        scores["rmse_log1p_cp10k"] = np.sqrt(np.mean(np.subtract(*logs) ** 2))
    return scores | {"r2": np.mean(r2), "r2_pooled": 1 - above / below, "correlation": np.mean(correlation), "r2_within": np.mean(within)}


@pytest.fixture(params=["all", "nonzero"])
def hidden(request) -> ad.AnnData:
    rng = np.random.default_rng(0)
    if request.param == "all":
        adata = datasets.toy_bulk(80, 30)
        adata.X[rng.random(adata.shape) < 0.1] = np.nan
        adata.X += 1000  # far from zero
        adata.obs["group"] = adata.obs["tissue"]
    else:
        adata = datasets.toy_counts(80, 30, depth=1000)
        adata.obs["group"] = adata.obs["cell_type"]
    adata.obsp["spatial_connectivities"] = sp.random(80, 80, 0.05, format="csr", random_state=0)
    pp.hide(adata, (0.2, 0.8), of=request.param)
    level = 1000 if request.param == "all" else 0
    adata.layers["mine"] = (level + rng.gamma(2, 3, size=adata.shape)).astype(np.float32)
    adata.layers["good"] = (np.nan_to_num(dense(adata.X), nan=level) + rng.normal(size=adata.shape)).astype(np.float32)
    return adata


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def test_against_the_dense_formulas(hidden):
    x, mask = dense(hidden.X).astype(np.float64), dense(hidden.layers["hidden_mask"])
    visible = np.where(mask, np.nan, x)
    mean = np.nanmean(visible, 0)
    predictions = {name: np.tile(mean, (80, 1)) for name in ("gene_mean", "group_mean", "neighbour_mean")}
    graph = dense(hidden.obsp["spatial_connectivities"]) > 0
    for i in range(80):
        for name, others in (
            ("group_mean", (hidden.obs["group"] == hidden.obs["group"].iloc[i]).to_numpy()),
            ("neighbour_mean", graph[i] & (np.arange(80) != i)),
        ):
            for j in range(30):
                seen = visible[others, j][~np.isnan(visible[others, j])]
                predictions[name][i, j] = seen.mean() if seen.size else mean[j]
    predictions |= {name: hidden.layers[name].astype(np.float64) for name in ("mine", "good")}
    counts = hidden.uns["hidden"]["params"]["of"] == "nonzero"
    table = metrics.recovery(hidden, ["mine", "good"], groupby="group")
    assert list(table.index) == list(predictions)
    for name, p in predictions.items():
        expected = naive(x, mask, p, predictions["group_mean"], x.sum(1) if counts else None)
        assert list(table.columns) == list(expected)
        for column, value in expected.items():
            assert table.loc[name, column] == pytest.approx(value, rel=1e-6, abs=1e-9), (name, column)
    assert table.loc["group_mean", "r2_within"] == 0, "not a rounding error"
    assert table.loc["good", "r2"] > table.loc["mine", "r2"]


@pytest.mark.parametrize("by", [None, "gene"])
def test_the_size_of_the_chunks_does_not_matter(hidden, monkeypatch, by):
    options = {"layers": ["mine", "good"], "groupby": "group", "by": by}
    table = metrics.recovery(hidden, **options)
    original = _hidden.chunks
    for rows in (1, 7):
        with monkeypatch.context() as patch:
            patch.setattr(_hidden, "chunks", lambda n, width, rows=rows: original(n, width, rows * width))
            pd.testing.assert_frame_equal(metrics.recovery(hidden, **options), table, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        sp.csr_matrix,
        sp.csc_matrix,
        sp.csc_array,
        lambda x: x.astype(">f8"),
        lambda x: pytest.importorskip("dask.array").from_array(x, chunks=(7, 30)),
    ],
    ids=["dense", "csr", "csc", "csc_array", "big-endian", "dask"],
)
def test_every_kind_of_matrix_gives_the_same(hidden, kind):
    table = metrics.recovery(hidden, ["mine", "good"], groupby="group")
    hidden.X = kind(dense(hidden.X))
    for name in ("mine", "good", "hidden"):
        hidden.layers[name] = kind(dense(hidden.layers[name]))
    hidden.layers["hidden_mask"] = (np.asarray if kind is np.asarray else sp.csc_matrix)(dense(hidden.layers["hidden_mask"]))
    pd.testing.assert_frame_equal(metrics.recovery(hidden, ["mine", "good"], groupby="group"), table, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix], ids=["dense", "csr", "csc"])
def test_backed(hidden, tmp_path, kind):
    table = metrics.recovery(hidden, "mine", groupby="group")
    hidden.X = kind(dense(hidden.X))
    hidden.write_h5ad(tmp_path / "backed.h5ad")
    on_disk = ad.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    pd.testing.assert_frame_equal(metrics.recovery(on_disk, "mine", groupby="group"), table)
    on_disk.file.close()


def test_reads_other_keys_and_changes_nothing(hidden, fingerprint, states, tmp_path):
    hidden.layers["source"] = hidden.X.copy()
    of = hidden.uns["hidden"]["params"]["of"]
    pp.hide(hidden, of=of, layer="source", key_added="other", random_state=1)
    hidden.X = None
    before, state = fingerprint(hidden), states()
    table = metrics.recovery(hidden, "good", key="other", groupby="group")
    assert fingerprint(hidden) == before
    assert states() == state
    hidden.write_h5ad(tmp_path / "hidden.h5ad")
    pd.testing.assert_frame_equal(metrics.recovery(ad.read_h5ad(tmp_path / "hidden.h5ad"), "good", key="other", groupby="group"), table)
    part = hidden[10:70, ::2]
    pd.testing.assert_frame_equal(metrics.recovery(part, "good", key="other"), metrics.recovery(part.copy(), "good", key="other"))


def test_the_truth_is_best_and_what_is_hidden_is_not_seen(hidden):
    hidden.layers["truth_itself"] = dense(hidden.X).copy()
    hidden.layers["truth_itself"][~dense(hidden.layers["hidden_mask"])] = np.nan  # only hidden entries count
    table = metrics.recovery(hidden, ["truth_itself", "mine"], groupby="group")
    np.testing.assert_allclose(table.loc["truth_itself", ["r2", "r2_pooled", "correlation", "r2_within"]].to_numpy(float), 1, atol=1e-9)
    assert table.loc["truth_itself", "rmse"] == 0


def test_genes_without_visible_values_are_left_out():
    adata = small([[1, 3, 5, 7, 2, 6], [1, 2, 3, 4, 5, 6]], [LAST_TWO, [1] * 6], mine=[[0, 0, 0, 0, 3, 5], [9] * 6])
    table = metrics.recovery(adata, "mine")
    pd.testing.assert_frame_equal(table, metrics.recovery(adata[:, :1].copy(), "mine"))
    assert metrics.recovery(adata, "mine", by="gene").loc["1"].isna().all()
    with pytest.raises(ValueError, match="no entry is hidden"):
        metrics.recovery(adata[:, 1:].copy(), "mine")
    with pytest.raises(ValueError, match="no entry is hidden"):
        metrics.recovery(adata[:4, :1].copy(), "mine")


def test_a_group_of_one_level_is_left_out():
    adata = small([[1, 3, 5, 7, 2, 6]], [LAST_TWO], groups="aaaaaa")
    pd.testing.assert_frame_equal(metrics.recovery(adata, [], groupby="group"), metrics.recovery(adata, []))


def test_scores_a_method_on_counts(adata):
    pp.hide(adata, 0.3)
    quick = {"max_epochs": 2, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0, "progress": False}
    tl.began(adata, layer="hidden", **quick)
    assert np.isfinite(metrics.recovery(adata, "began")).all(axis=None)
    tl.began(adata, layer="hidden", output="rate", **quick)
    with pytest.raises(ValueError, match="output='counts' is needed"):
        metrics.recovery(adata, "began")


@pytest.mark.parametrize("of", ["nonzero", "all"])
def test_warns_of_a_layer_that_has_seen_the_answers(of):
    bulk = {"n_models": 1, "n_hidden": 8, "max_epochs": 1, "progress": False}
    adata = datasets.toy_bulk(60, 40)
    pp.hide(adata, of=of)
    missing = {"missing": "zero"} if of == "nonzero" else {}
    with pytest.warns(UserWarning, match="no value is missing"):
        tl.pmi(adata, **missing, **bulk)
    with pytest.warns(
        UserWarning, match=r"'pmi' was made from adata.X and has seen the hidden entries.*tl.pmi\(adata, ..., layer='hidden'"
    ):
        metrics.recovery(adata, "pmi")
    # Unless a mask hid the same.
    adata.layers["shown"] = ~dense(adata.layers["hidden_mask"]).astype(bool)
    tl.pmi(adata, mask_layer="shown", **missing, **bulk)
    metrics.recovery(adata, "pmi")
    adata.layers["copy"] = dense(adata.layers["hidden"]).astype(np.float64)
    for layer in ("copy", "hidden"):
        tl.pmi(adata, layer=layer, **missing, **bulk)
        metrics.recovery(adata, "pmi")


def edited(**changes):
    def edit(adata: ad.AnnData) -> None:
        for name, (row, column, value) in changes.items():
            (adata.X if name == "X" else adata.layers[name])[row, column] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "options", "error", "message"),
    [
        (edited(), {"layers": 3}, TypeError, "layers must be the name of a layer or several, got 3"),
        (edited(), {"layers": "mne"}, KeyError, "layer 'mne' not found.*did you mean 'mine'"),
        (edited(), {"layers": ["mine", "mine"]}, ValueError, r"\['mine'\] would be more than one row"),
        (edited(), {"layers": ["gene_mean"]}, ValueError, r"\['gene_mean'\] would be more than one row"),
        (edited(), {"key": "other"}, KeyError, r"scimpute.pp.hide\(adata, key_added='other'\).*Keys that have: \['hidden'\]"),
        (edited(), {"key": "mine"}, KeyError, r"scimpute.pp.hide\(adata, key_added='mine'\)"),
        (edited(), {"by": "cell"}, ValueError, r"by must be one of \['gene'\], got 'cell'"),
        (edited(), {"groupby": "grup"}, KeyError, "groupby: obs column 'grup' not found.*did you mean 'group'"),
        (edited(), {"groupby": "gaps"}, ValueError, "groupby='gaps' is missing in 1 cells"),
        (edited(mine=(4, 0, np.nan)), {}, ValueError, "'mine' has NaN or infinite values at hidden entries .first: cell '4', gene '0'"),
        (edited(mine=(5, 0, -np.inf)), {}, ValueError, "'mine' has NaN or infinite values at hidden entries .first: cell '5', gene '0'"),
        (
            edited(X=(1, 0, 9.0)),
            {},
            ValueError,
            "adata.X was changed since scimpute.pp.hide.*first: cell '1', gene '0'.*call scimpute.pp.hide again",
        ),
        (edited(hidden=(1, 0, np.nan)), {}, ValueError, r"or adata.layers\['hidden'\] was.*first: cell '1', gene '0'"),
        (edited(X=(4, 0, np.nan)), {}, ValueError, "adata.X was changed"),
        (lambda a: a.layers.pop("hidden_mask"), {}, KeyError, "key='hidden' has no hidden entries; call"),
        (lambda a: a.uns["hidden"]["params"].update(layer="gone"), {}, KeyError, "layer 'gone' not found"),
    ],
)
def test_errors(fingerprint, edit, options, error, message):
    adata = small([[1, 3, 5, 7, 2, 6]], [LAST_TWO], groups="aabbab", mine=[[0, 0, 0, 0, 3, 5]])
    adata.obs["gaps"] = adata.obs["group"].where(np.arange(6) != 2)
    edit(adata)
    before = fingerprint(adata)
    with pytest.raises(error, match=message):
        metrics.recovery(adata, **{"layers": "mine"} | options)
    assert fingerprint(adata) == before


def test_refuses_what_is_no_anndata():
    with pytest.raises(TypeError, match="expected AnnData, got DataFrame"):
        metrics.recovery(pd.DataFrame(), "mine")


def test_warns_of_a_layer_on_another_scale(adata):
    """Where counts were hidden; of other values nothing is known."""
    pp.hide(adata)
    rate = adata.layers["rate"] / adata.layers["rate"].sum(axis=1, keepdims=True)
    metrics.recovery(adata, "rate")
    # Somewhat lower totals are right: the hidden molecules are not there.
    adata.layers["low"] = adata.layers["rate"] * 0.3
    metrics.recovery(adata, "low")
    # A method may say the same of all cells, or fill the hidden entries alone.
    adata.layers["same"] = np.broadcast_to(adata.X.toarray().mean(axis=0), adata.shape).copy()
    metrics.recovery(adata, "same")
    adata.layers["alone"] = np.where(adata.layers["hidden_mask"].toarray(), adata.layers["rate"] * 0.1, 0)
    metrics.recovery(adata, "alone")
    for total in (1e4, np.median(np.asarray(adata.X.sum(axis=1))), 1):
        adata.layers["other"] = rate * total
        with pytest.warns(
            UserWarning, match=f"'other' does not look like expected counts: every cell of it has the same total, {total:g}, "
        ):
            metrics.recovery(adata, "other")
    for times in (9, 0.05):
        adata.layers["other"] = adata.layers["rate"] * times
        with pytest.warns(UserWarning, match="the totals of its cells are .* times those of the counts .median."):
            metrics.recovery(adata, "other")
    adata.X = adata.X.toarray() + 0.5
    pp.hide(adata, of="all")
    metrics.recovery(adata, "other")
