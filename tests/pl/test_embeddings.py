"""``pl.embeddings``: where the levels of covariates lie, their names, and what is refused."""

import matplotlib as mpl

mpl.use("Agg")

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from scimpute import datasets, pl

TISSUES = [f"{part} {i}" for part in ("Brain", "Heart", "Skin", "Colon") for i in range(6)]


@pytest.fixture
def adata() -> ad.AnnData:
    """With embeddings as tl.pmi leaves them: 24 tissues of four organs in 5 dimensions, and two sexes in 2."""
    adata = datasets.toy_bulk(30, 20)
    rng = np.random.default_rng(0)
    organs = np.repeat(rng.normal(size=(4, 5)) * 3, 6, axis=0)
    tissues = pd.DataFrame(organs + rng.normal(size=organs.shape) * 0.2, index=TISSUES)
    sexes = pd.DataFrame([[0.0, 1.0], [2.0, 1.0]], index=["female", "male"])
    adata.uns["pmi"] = {"method": "pmi", "params": {}, "embeddings": {"tissue": tissues, "sex": sexes}}
    return adata


def points(axis) -> np.ndarray:
    return np.asarray(axis.collections[0].get_offsets())


def test_the_first_two_components_of_each_with_the_names(adata, fingerprint, tmp_path):
    before = fingerprint(adata)
    axes = pl.embeddings(adata, "pmi", show=False, save=tmp_path / "figure.png")
    assert fingerprint(adata) == before
    assert (tmp_path / "figure.png").stat().st_size > 0
    assert [axis.get_title() for axis in axes] == ["tissue", "sex"]
    assert [text.get_text() for text in axes[0].texts] == TISSUES
    values = adata.uns["pmi"]["embeddings"]["tissue"].to_numpy()
    found, centred = points(axes[0]), values - values.mean(0)
    variance, directions = np.linalg.eigh(centred.T @ centred)
    expected = centred @ directions[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    share = variance[-1] / variance.sum()
    assert axes[0].get_xlabel() == f"PC1 ({share:.0%})"
    # Two levels lie on a line.
    np.testing.assert_allclose(points(axes[1]), [[-1, 0], [1, 0]], atol=1e-12)
    assert axes[1].get_xlabel() == "PC1 (100%)"
    assert axes[1].get_ylabel() == "PC2 (0%)"
    # The sign of a component is always the same.
    adata.uns["pmi"]["embeddings"]["sex"] = adata.uns["pmi"]["embeddings"]["sex"].iloc[::-1]
    (axis,) = pl.embeddings(adata, "pmi", columns="sex", show=False)
    np.testing.assert_allclose(points(axis), [[1, 0], [-1, 0]], atol=1e-12)


def test_names_stand_beside_their_points_and_apart(adata):
    """Where there is room: as many as there are tissues in a figure of 4 inches."""
    rng = np.random.default_rng(0)
    adata.uns["pmi"]["embeddings"] = {"tissue": pd.DataFrame(rng.normal(size=(24, 4)), index=TISSUES)}
    (axis,) = pl.embeddings(adata, "pmi", show=False)
    figure = axis.figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in axis.texts]
    dots = axis.transData.transform(points(axis))
    for box, dot in zip(boxes, dots, strict=True):
        assert box.padded(25).contains(*dot)
    pairs = sum(a.padded(-1).overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert pairs <= 2
    whole = axis.get_window_extent()
    assert all(whole.padded(15).contains(*corner) for box in boxes for corner in box.corners())


def test_a_umap_is_that_of_the_report(adata, monkeypatch):
    calls = []
    monkeypatch.setattr("scimpute.metrics._clusters.umap", lambda *given: calls.append(given) or given[0][:, :2].astype(float))
    (axis,) = pl.embeddings(adata, "pmi", columns=["tissue"], method="umap", random_state=3, show=False)
    ((values, n_neighbors, seed),) = calls
    assert n_neighbors == 15
    np.testing.assert_allclose(values, adata.uns["pmi"]["embeddings"]["tissue"], rtol=1e-6)
    np.testing.assert_array_equal(points(axis), values[:, :2])
    assert axis.get_xlabel() == "UMAP1"
    pl.embeddings(adata, "pmi", columns=["tissue"], method="umap", random_state=3, show=False)
    assert calls[1][2] == seed


def test_names_are_no_formulas_and_a_file_keeps_them(adata, tmp_path):
    adata.uns["pmi"]["embeddings"] = {r"$\no$": pd.DataFrame(np.eye(3), index=[r"$\frac$", "a", "b"], columns=["0", "1", "2"])}
    adata.write_h5ad(tmp_path / "a.h5ad")
    (axis,) = pl.embeddings(ad.read_h5ad(tmp_path / "a.h5ad"), "pmi", show=False, ax=plt.figure().subplots())
    axis.figure.canvas.draw()
    assert [text.get_text() for text in axis.texts] == [r"\$\frac\$", "a", "b"]


def set_to(**tables):
    return lambda a: a.uns["pmi"].update(embeddings=tables)


@pytest.mark.parametrize(
    ("edit", "options", "error", "message"),
    [
        (None, {"key": "pmii"}, KeyError, "did you mean 'pmi'"),
        (None, {"key": 3}, TypeError, r"those with embeddings: \['pmi'\]"),
        (None, {"columns": "tisue"}, KeyError, "did you mean 'tissue'"),
        (None, {"columns": []}, ValueError, "columns is empty"),
        (None, {"columns": 3}, TypeError, "columns must be"),
        (None, {"method": "tsne"}, ValueError, "method must be one of"),
        (None, {"method": "umap"}, ValueError, r"\['sex'\] has 2 level.*at least 10 are needed; take method='pca'"),
        (None, {"random_state": -1}, ValueError, "random_state"),
        (lambda a: a.uns.update(pmi={"method": "pmi"}), {}, KeyError, "has no embeddings of covariates: tl.pmi and tl.gain learn them"),
        (set_to(), {}, KeyError, "has no embeddings of covariates"),
        (set_to(sex=np.eye(3)), {}, TypeError, "must be a DataFrame of levels x dimensions, got ndarray"),
        (set_to(sex=pd.DataFrame(np.full((3, 2), np.nan))), {}, ValueError, r"\['sex'\] is empty or has NaN"),
        (set_to(sex=pd.DataFrame(np.ones((1, 2)))), {}, ValueError, "at least 2 are needed"),
        (lambda a: a.uns.update(pmi=3), {}, KeyError, "imputation with embeddings"),
    ],
)
def test_faults(adata, edited, refused, edit, options, error, message):
    adata = edited(adata, edit)
    refused(adata, lambda a: pl.embeddings(a, **{"key": "pmi", "show": False} | options), error, message)
    assert not plt.get_fignums()


def test_axes_given(adata):
    with pytest.raises(ValueError, match=r"ax must be 2 axes \(one for each of: tissue, sex\)"):
        pl.embeddings(adata, "pmi", ax=plt.figure().subplots(), show=False)
