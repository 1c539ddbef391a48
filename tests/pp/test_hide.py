"""Hiding entries of an object."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scimpute import _sparse, datasets, pp


@pytest.fixture
def bulk() -> ad.AnnData:
    """With zeros, which are values, and gaps."""
    adata = datasets.toy_bulk(30, 20, random_state=2)
    adata.X[:4, 3] = 0
    adata.X[5:9, 7] = np.nan
    return adata


def test_nonzero_by_hand():
    adata = ad.AnnData(sp.csr_matrix(np.array([[0, 1, 2], [3, 0, -4.5]], np.float32)))
    pp.hide(adata, 0.5, random_state=1)
    drawn = np.random.default_rng(1).random(4) < 0.5  # 1, 2, 3, -4.5
    assert set(drawn) == {False, True}
    np.testing.assert_array_equal(adata.layers["hidden_mask"].toarray(), [[False, *drawn[:2]], [drawn[2], False, drawn[3]]])
    np.testing.assert_array_equal(adata.layers["hidden"].toarray(), np.where(adata.layers["hidden_mask"].toarray(), 0, adata.X.toarray()))


def test_all_by_hand():
    adata = ad.AnnData(np.array([[0, 1, np.nan], [3, 0, -4.5]], np.float32))
    pp.hide(adata, 0.5, of="all", random_state=1)
    drawn = np.random.default_rng(1).random((2, 3)) < 0.5
    drawn[0, 2] = False
    assert drawn.any()
    np.testing.assert_array_equal(adata.layers["hidden_mask"], drawn)
    np.testing.assert_array_equal(adata.layers["hidden"], np.where(drawn, np.nan, adata.X))


def test_nonzero_stays_sparse(adata):
    pp.hide(adata, 0.3, random_state=3)
    visible, mask = adata.layers["hidden"], adata.layers["hidden_mask"]
    for part, dtype in ((visible, np.float32), (mask, np.bool_)):
        assert sp.issparse(part)
        assert part.format == "csr"
        assert part.dtype == dtype
        assert part.data.all()
    np.testing.assert_array_equal((visible + adata.X.multiply(mask)).toarray(), adata.X.toarray())
    assert mask.nnz + visible.nnz == adata.X.nnz
    assert abs(mask.nnz - 0.3 * adata.X.nnz) < 5 * np.sqrt(adata.X.nnz * 0.3 * 0.7)
    assert adata.uns["hidden"] == {"method": "hide", "params": {"frac": 0.3, "of": "nonzero", "layer": "X", "random_state": 3}}


def test_all_is_dense_and_leaves_the_gaps(bulk):
    pp.hide(bulk, 0.4, of="all")
    visible, mask = bulk.layers["hidden"], bulk.layers["hidden_mask"]
    assert (visible.dtype, mask.dtype) == (np.float32, np.bool_)
    np.testing.assert_array_equal(np.isnan(visible), mask | np.isnan(bulk.X))
    assert not mask[5:9, 7].any()
    np.testing.assert_array_equal(visible[~mask], bulk.X[~mask])
    assert mask[bulk.X == 0].any()
    n_values = (~np.isnan(bulk.X)).sum()
    assert abs(mask.sum() - 0.4 * n_values) < 5 * np.sqrt(n_values * 0.4 * 0.6)


@pytest.mark.parametrize("of", ["nonzero", "all"])
def test_with_a_pair_every_cell_has_a_fraction_of_its_own(of):
    adata = datasets.toy_bulk(200, 1000, random_state=0)
    pp.hide(adata, (0.2, 0.8), of=of, random_state=4)
    hidden = np.asarray(adata.layers["hidden_mask"].mean(axis=1)).ravel()
    np.testing.assert_allclose(hidden, np.random.default_rng(4).uniform(0.2, 0.8, 200), atol=5 * np.sqrt(0.25 / 1000))
    assert adata.uns["hidden"]["params"]["frac"] == [0.2, 0.8]
    pp.hide(adata, [0.5, 0.5], of=of)
    mask = adata.layers["hidden_mask"]
    pp.hide(adata, np.array([0.5, 0.5]), of=of)
    assert (mask != adata.layers["hidden_mask"]).sum() == 0
    assert adata.uns["hidden"]["params"]["frac"] == 0.5


@pytest.mark.parametrize("of", ["nonzero", "all"])
@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        np.asfortranarray,
        sp.csc_matrix,
        sp.csr_array,
        lambda x: sp.csr_array(x.astype(np.int32)),
        lambda x: x.astype(">f8"),
        lambda x: pytest.importorskip("dask.array").from_array(x, chunks=(7, 40)),
    ],
    ids=["dense", "fortran", "csc", "csr_array", "int", "big-endian", "dask"],
)
def test_every_kind_of_matrix_gives_the_same(adata, fingerprint, of, kind):
    pp.hide(adata, of=of)
    expected = fingerprint(adata)
    adata.X = kind(adata.X.toarray())
    before = fingerprint(adata)
    pp.hide(adata, of=of)  # replaces its own earlier result
    after = fingerprint(adata)
    assert after["X"] == before["X"]
    assert {name: after[name] for name in after if name != "X"} == {name: expected[name] for name in expected if name != "X"}


def test_explicit_zeros_are_no_entries(adata, fingerprint):
    pp.hide(adata)
    expected = fingerprint(adata)
    padded = adata.X.toarray() + np.eye(60, 40, dtype=np.float32)
    padded = sp.csr_matrix(padded)
    dense = adata.X.toarray()
    padded.data = dense[np.repeat(np.arange(60), np.diff(padded.indptr)), padded.indices]
    assert (padded.data == 0).any()
    adata.X = padded
    pp.hide(adata)
    assert fingerprint(adata)["layers/hidden"] == expected["layers/hidden"]
    assert fingerprint(adata)["layers/hidden_mask"] == expected["layers/hidden_mask"]


@pytest.mark.parametrize("of", ["nonzero", "all"])
def test_only_the_promised_keys_are_new(adata, fingerprint, of):
    before = fingerprint(adata)
    assert pp.hide(adata, of=of, key_added="half", random_state=np.random.default_rng(0)) is None
    after = fingerprint(adata)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"layers/half", "layers/half_mask", "uns/half"}
    assert adata.uns["half"]["params"]["random_state"] == "Generator"
    if of == "nonzero":
        for name in ("half", "half_mask"):
            for part in ("data", "indices", "indptr"):
                assert not np.shares_memory(getattr(adata.layers[name], part), getattr(adata.X, part))


@pytest.mark.parametrize("of", ["nonzero", "all"])
def test_copy_seed_and_layer(adata, fingerprint, states, of):
    adata.layers["doubled"] = adata.X * 2
    before, state = fingerprint(adata), states()
    first, second, other = (pp.hide(adata, of=of, random_state=seed, copy=True) for seed in (0, 0, 1))
    assert fingerprint(adata) == before
    assert states() == state
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first)["layers/hidden_mask"] != fingerprint(other)["layers/hidden_mask"]
    done = pp.hide(adata, of=of, layer="doubled", copy=True)
    assert fingerprint(done)["layers/hidden_mask"] == fingerprint(first)["layers/hidden_mask"]
    shown = [np.asarray(each.layers["hidden"].todense() if of == "nonzero" else each.layers["hidden"]) for each in (first, done)]
    np.testing.assert_array_equal(2 * shown[0], shown[1])
    assert done.uns["hidden"]["params"]["layer"] == "doubled"


@pytest.mark.parametrize("of", ["nonzero", "all"])
def test_the_size_of_the_chunks_does_not_matter(adata, fingerprint, replace_everywhere, of):
    adata.X = adata.X.toarray()
    expected = fingerprint(pp.hide(adata, (0.2, 0.9), of=of, copy=True))
    original = _sparse.chunks
    replace_everywhere(original, lambda n, width: original(n, width, 7 * width))
    assert fingerprint(pp.hide(adata, (0.2, 0.9), of=of, copy=True)) == expected


@pytest.mark.parametrize("of", ["nonzero", "all"])
def test_survives_a_file(adata, fingerprint, tmp_path, of):
    pp.hide(adata, (0.2, 0.9), of=of)
    adata.write_h5ad(tmp_path / "hidden.h5ad")
    read = ad.read_h5ad(tmp_path / "hidden.h5ad")
    for name in ("layers/hidden", "layers/hidden_mask"):
        assert fingerprint(read)[name] == fingerprint(adata)[name]
    params = read.uns["hidden"]["params"]
    assert list(params.pop("frac")) == [0.2, 0.9]
    assert params == {"of": of, "layer": "X", "random_state": 0}


@pytest.mark.parametrize("of", ["nonzero", "all"])
@pytest.mark.parametrize("kind", [sp.csr_matrix, np.asarray], ids=["csr", "dense"])
def test_backed(adata, fingerprint, tmp_path, of, kind):
    adata.X = kind(adata.X.toarray())
    adata.write_h5ad(tmp_path / "backed.h5ad")
    on_disk = ad.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    with pytest.warns(UserWarning, match="in memory only"):
        pp.hide(on_disk, of=of)
    pp.hide(adata, of=of)
    for name in ("layers/hidden", "layers/hidden_mask"):
        assert fingerprint(on_disk)[name] == fingerprint(adata)[name]
    on_disk.file.close()


def with_entry(value: float):
    def edit(adata: ad.AnnData) -> None:
        adata.X[3, 5] = value

    return edit


def nothing(adata: ad.AnnData) -> None:
    return None


@pytest.mark.parametrize(
    ("edit", "options", "error", "message"),
    [
        (nothing, {"frac": 0.0}, ValueError, r"frac must be in \(0, 1\), got 0.0"),
        (nothing, {"frac": 1}, ValueError, "frac must be in"),
        (nothing, {"frac": "half"}, TypeError, "frac must be a number"),
        (nothing, {"frac": (0.1, 0.5, 0.9)}, ValueError, r"a pair \(low, high\) of such, got 3 values"),
        (nothing, {"frac": (0.9, 0.1)}, ValueError, r"in this order, got \(0.9, 0.1\)"),
        (nothing, {"frac": (0.1, 1.5)}, ValueError, r"frac\[1\] must be in"),
        (nothing, {"frac": (True, 0.5)}, TypeError, r"frac\[0\] must be a number"),
        (nothing, {"of": "zero"}, ValueError, r"of must be one of \['nonzero', 'all'\], got 'zero'"),
        (nothing, {"layer": "trut"}, KeyError, "'trut' not found.*did you mean 'truth'"),
        (nothing, {"key_added": "truth"}, ValueError, "were not written by hide"),
        (nothing, {"key_added": "hid/den"}, ValueError, "without '/'"),
        (nothing, {"layer": "truth", "key_added": "truth"}, ValueError, "would overwrite the layer that is read"),
        (nothing, {"random_state": -1}, ValueError, "random_state"),
        (nothing, {"copy": 1}, TypeError, "copy must be True or False"),
        (with_entry(np.nan), {}, ValueError, "adata.X has 1 values.*NaN.*first: cell 'sample3', gene 'gene5'"),
        (with_entry(np.inf), {}, ValueError, "infinite.*first: cell 'sample3', gene 'gene5'"),
        (with_entry(-np.inf), {"of": "all"}, ValueError, "adata.X has 1 infinite values.*first: cell 'sample3', gene 'gene5'"),
        (lambda a: a.X.fill(0), {}, ValueError, "no non-zero entry to hide; .*of='all'"),
        (lambda a: a.X.fill(np.nan), {"of": "all"}, ValueError, "all entries are NaN"),
        (lambda a: setattr(a, "X", None), {}, ValueError, "adata.X is empty; pass layer="),
        (lambda a: setattr(a, "X", a.X.astype(complex)), {"of": "all"}, TypeError, "dtype complex.*real numbers"),
    ],
)
def test_errors(fingerprint, edit, options, error, message):
    adata = datasets.toy_bulk(20, 10)
    edit(adata)
    before = fingerprint(adata)
    with pytest.raises(error, match=message):
        pp.hide(adata, **options)
    assert fingerprint(adata) == before


def test_errors_of_the_object(monkeypatch):
    with pytest.raises(TypeError, match="expected AnnData, got ndarray"):
        pp.hide(np.ones((3, 3)))
    monkeypatch.setattr("scimpute._check._available_memory", lambda: 100)
    with pytest.raises(MemoryError, match="of='nonzero'"):
        pp.hide(datasets.toy_bulk(20, 10), of="all")
