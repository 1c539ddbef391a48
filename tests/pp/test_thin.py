"""Splitting the molecules of an object."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scimpute import pp


@pytest.mark.parametrize("frac", [0.2, 0.9])
def test_parts_sum_to_the_counts_and_are_numpys_binomial(adata, frac):
    pp.thin(adata, frac, random_state=3)
    train, test = adata.layers["thin_train"], adata.layers["thin_test"]
    np.testing.assert_array_equal((train + test).toarray(), adata.X.toarray())
    expected = adata.X.copy()
    expected.data = np.random.default_rng(3).binomial(adata.X.data.astype(np.int64), frac)
    np.testing.assert_array_equal(train.toarray(), expected.toarray())
    total = adata.X.sum()
    assert abs(train.sum() - frac * total) < 5 * np.sqrt(total * frac * (1 - frac))
    for part in (train, test):
        assert sp.issparse(part)
        assert part.format == "csr"
        assert part.dtype == np.float32
        assert (part.data > 0).all()
    assert adata.uns["thin"]["method"] == "thin"
    assert adata.uns["thin"]["params"] == {"frac": frac, "layer": "X", "random_state": 3}


def test_only_the_promised_keys_are_new(adata, fingerprint):
    before = fingerprint(adata)
    assert pp.thin(adata, key_added="half", random_state=np.random.default_rng(0)) is None
    after = fingerprint(adata)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"layers/half_train", "layers/half_test", "uns/half"}
    assert adata.uns["half"]["params"]["random_state"] == "Generator"


def test_copy_seed_and_layer(adata, fingerprint):
    adata.layers["doubled"] = adata.X * 2
    before = fingerprint(adata)
    first, second, other = (pp.thin(adata, 0.5, random_state=seed, copy=True) for seed in (0, 0, 1))
    assert fingerprint(adata) == before
    assert fingerprint(first) == fingerprint(second)
    assert (first.layers["thin_train"] != other.layers["thin_train"]).nnz
    done = pp.thin(adata, 0.5, layer="doubled", copy=True)
    np.testing.assert_array_equal((done.layers["thin_train"] + done.layers["thin_test"]).toarray(), 2 * adata.X.toarray())
    assert done.uns["thin"]["params"]["layer"] == "doubled"


@pytest.mark.parametrize("kind", [np.asarray, sp.csc_matrix, lambda x: sp.csr_array(x.astype(np.int32))])
def test_every_kind_of_matrix_gives_the_same(adata, kind):
    pp.thin(adata)
    train = adata.layers["thin_train"].toarray()
    adata.X = kind(adata.X.toarray())
    pp.thin(adata)  # replaces its own earlier result
    np.testing.assert_array_equal(adata.layers["thin_train"].toarray(), train)


def test_a_second_split_of_a_part_is_a_split(adata):
    pp.thin(adata, 0.9)
    pp.thin(adata, 0.9, layer="thin_train", key_added="inner")
    parts = [adata.layers[name].toarray() for name in ("inner_train", "inner_test", "thin_test")]
    np.testing.assert_array_equal(sum(parts), adata.X.toarray())
