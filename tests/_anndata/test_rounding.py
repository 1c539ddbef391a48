"""Values that are not whole numbers: rounding errors, decimals that are counts, one stray entry, normalised values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scimpute
from scimpute._anndata.counts import read_counts
from scimpute._anndata.rounding import ROUNDINGS, nearest_counts, round_counts
from scimpute.metrics import _replay

QUICK: dict[str, Any] = {"max_epochs": 1, "n_repeats": 1, "n_context": 2, "penalty": 1.0, "width": 4}


def toy() -> np.ndarray:
    return scimpute.datasets.toy_counts().X.toarray()


def of(values: Any) -> ad.AnnData:
    """A fresh object with such values in X, and places of spots."""
    adata = ad.AnnData(np.asarray(values, dtype=np.float32))
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(adata.n_obs, 2))
    return adata


def soup(counts: np.ndarray) -> np.ndarray:
    """As SoupX leaves counts: less a little of everything."""
    return np.maximum(counts - np.random.default_rng(0).uniform(0, 0.4, counts.shape), 0)


def shared_out(counts: np.ndarray) -> np.ndarray:
    """As an EM leaves counts: some molecules are halves and thirds."""
    return counts * np.random.default_rng(0).choice([1, 1, 1, 1, 0.5, 1 / 3], counts.shape)


def normalised(counts: np.ndarray, target: float = 1e4) -> np.ndarray:
    return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * target).astype(np.float32)


def undone(counts: np.ndarray) -> np.ndarray:
    """Logs of normalised values taken back, all in float32."""
    depth = np.maximum(counts.sum(axis=1, keepdims=True), 1).astype(np.float32)
    return np.expm1(np.log1p(normalised(counts))) * (depth / np.float32(1e4))


@pytest.mark.parametrize("scale", [1, 50, 3000])
def test_rounding_errors_are_put_right(scale):
    counts = toy() * scale
    errors = undone(counts)
    assert not np.array_equal(errors, counts)
    np.testing.assert_array_equal(nearest_counts(errors.ravel()), counts.ravel())


def test_counts_with_rounding_errors_are_imputed_as_the_counts_they_are():
    counts, errors = of(toy()), of(undone(toy()))
    before = errors.X.copy()
    for adata in (counts, errors):
        scimpute.tl.began(adata, **QUICK)
    np.testing.assert_array_equal(errors.layers["began"], counts.layers["began"])
    np.testing.assert_array_equal(errors.X, before)
    assert "rounding" not in errors.uns["began"]["params"]


def test_small_rates_are_no_rounding_errors():
    assert nearest_counts(np.full(100, 1e-4, np.float32)) is None
    with pytest.raises(ValueError, match="not whole numbers"):
        scimpute.tl.began(of(normalised(toy(), 1e-3)), **QUICK)


DIAGNOSES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "decimals": (
        soup,
        r"\([\d,]+ of [\d,]+; farthest from one: cell '\d+', gene '\d+' is [\d.]+\): if these are counts .*pass rounding='nearest' or",
    ),
    "halves": (shared_out, r"if these are counts with decimals"),
    "CP10k": (normalised, r"looks normalised or logged \(every cell adds up to 10,000\); counts are needed"),
    "log1p of CP10k": (
        lambda counts: np.log1p(normalised(counts)),
        r"expm1 of them: every cell adds up to 10,000: log1p of normalised counts",
    ),
    "log1p of counts": (np.log1p, r"log1p of counts; take them back with np.expm1"),
    "CP10k of some genes": (lambda counts: normalised(counts)[:, :30], r"the values of a cell are multiples of its lowest"),
    "logs of some genes": (lambda counts: np.log1p(normalised(counts))[:, :30], r"multiples of its lowest: log1p of normalised"),
}


@pytest.mark.parametrize("row", DIAGNOSES)
def test_what_they_are_is_said(row, refused):
    change, message = DIAGNOSES[row]
    refused(
        of(change(toy())), lambda adata: scimpute.tl.began(adata, **QUICK), ValueError, "has values that are not whole numbers.*" + message
    )


@pytest.mark.parametrize("row", [row for row in DIAGNOSES if row not in ("decimals", "halves")])
def test_rounding_does_not_make_counts_of_what_is_none(row, refused):
    change, _ = DIAGNOSES[row]
    for how in ROUNDINGS:
        refused(
            of(change(toy())), lambda adata, how=how: scimpute.tl.began(adata, rounding=how), ValueError, "which rounding does not undo"
        )


@pytest.mark.parametrize("n", [1, 3])
def test_stray_entries_are_named(n, refused):
    counts = toy()
    counts[range(3, 3 + n), 5] = 2.5
    adata = of(counts)
    named = "; ".join(f"cell '{i}', gene '5' is 2.5" for i in range(3, 3 + n))
    message = (
        rf"\({n} of [\d,]+; farthest from one: {named}\): all others are counts. Correct {'it' if n == 1 else 'them'}, or pass rounding="
    )
    refused(adata, lambda adata: scimpute.tl.began(adata, **QUICK), ValueError, message)


def test_who_cannot_round_says_so(refused):
    refused(of(soup(toy())), lambda adata: scimpute.metrics.false_signal(adata, lambda a: a.X), ValueError, "round them first")


@pytest.mark.parametrize("value", ["up", True, 1, ["nearest"]])
def test_other_ways_are_refused(value, refused):
    refused(
        of(toy()), lambda adata: scimpute.tl.began(adata, rounding=value), ValueError, r"rounding must be one of \['nearest', 'random'\]"
    )


CALLS: dict[str, Callable[..., Any]] = {
    "began": lambda adata, **more: scimpute.tl.began(adata, **QUICK, **more),
    "spatial": lambda adata, **more: scimpute.tl.spatial(adata, **QUICK, key_added="began", **more),
    "nmf": lambda adata, **more: scimpute.tl.nmf(adata, n_factors=2, max_epochs=1, penalty=1.0, key_added="began", **more),
}


@pytest.mark.parametrize("how", ROUNDINGS)
@pytest.mark.parametrize("call", CALLS)
def test_rounded_counts_are_imputed_recorded_and_replayed(call, how):
    adata, stored = of(soup(toy())), soup(toy()).astype(np.float32)
    CALLS[call](adata, rounding=how, random_state=3)
    np.testing.assert_array_equal(adata.X, stored)
    assert adata.uns["began"]["params"]["rounding"] == how
    counts = _replay.read(adata, "began", None, None, 0, "cpu").counts
    assert np.array_equal(counts.data, np.rint(counts.data))
    if how == "nearest":
        np.testing.assert_array_equal(counts.toarray(), np.rint(stored))
        again = of(np.rint(stored))
        CALLS[call](again, random_state=3)
        np.testing.assert_array_equal(again.layers["began"], adata.layers["began"])
    else:
        expected = sp.csr_matrix(stored)
        expected.data = round_counts(expected.data, how, np.random.default_rng(3))
        np.testing.assert_array_equal(counts.toarray(), expected.toarray())
    # Also where decimals were moved, and X normalised.
    adata.layers["decimals"] = adata.X
    adata.X = normalised(adata.X)
    moved = _replay.read(adata, "began", None, None, 0, "cpu").counts
    np.testing.assert_array_equal(moved.toarray(), counts.toarray())


def test_random_rounding_is_unbiased_and_next_to_the_value():
    values = np.repeat(np.float32([0.1, 1.5, 2.0, 7.75, 0.0]), 40_000)
    found = round_counts(values, "random", np.random.default_rng(0))
    assert (np.abs(found - values) < 1).all()
    np.testing.assert_array_equal(found, np.rint(found))
    np.testing.assert_allclose(found.reshape(5, -1).mean(axis=1), [0.1, 1.5, 2.0, 7.75, 0.0], atol=0.01)


@pytest.mark.parametrize("how", ROUNDINGS)
def test_rounding_errors_below_0_are_no_counts_below_0(how):
    values = soup(toy())
    values[toy() == 0] = -0.009
    counts = read_counts(of(values), None, how, np.random.default_rng(0))
    assert counts.data.min() > 0


@pytest.mark.parametrize("how", ROUNDINGS)
def test_a_model_rounds_as_in_its_training(how, tmp_path):
    adata = of(soup(toy()))
    scimpute.tl.began(adata, rounding=how, random_state=3, save=tmp_path / "model.safetensors", **QUICK)
    scimpute.tl.apply(adata, tmp_path / "model.safetensors", key_added="again")
    np.testing.assert_allclose(adata.layers["again"], adata.layers["began"], rtol=1e-4, atol=1e-5)
    assert adata.uns["again"]["params"]["rounding"] == how
    whole = of(toy())
    scimpute.tl.began(whole, save=tmp_path / "model.safetensors", **QUICK)
    with pytest.raises(ValueError, match="pass rounding="):
        scimpute.tl.apply(adata, tmp_path / "model.safetensors", key_added="third")
    scimpute.tl.apply(adata, tmp_path / "model.safetensors", key_added="third", rounding="nearest")
    assert adata.uns["third"]["params"]["rounding"] == "nearest"


def test_whole_counts_are_the_same_with_and_without():
    plain, asked = of(toy()), of(toy())
    scimpute.tl.began(plain, **QUICK)
    scimpute.tl.began(asked, rounding="random", **QUICK)
    np.testing.assert_array_equal(plain.layers["began"], asked.layers["began"])


def test_library_sizes_may_be_of_the_decimals():
    adata = of(soup(toy()))
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel()
    scimpute.tl.began(adata, rounding="random", size_key="total", **QUICK)


def test_nothing_left_once_rounded(refused):
    rng = np.random.default_rng(0)
    refused(
        of(rng.uniform(0.2, 0.4, (30, 20))),
        lambda adata: scimpute.tl.began(adata, rounding="nearest"),
        ValueError,
        "no non-zero entry once",
    )


def test_thin_rounds():
    adata = of(soup(toy()))
    expected = np.rint(adata.X)
    scimpute.pp.thin(adata, rounding="nearest")
    np.testing.assert_array_equal((adata.layers["thin_train"] + adata.layers["thin_test"]).toarray(), expected)
    assert adata.uns["thin"]["params"]["rounding"] == "nearest"


@pytest.mark.parametrize("value", [2.0**53 * 1.01, 1e20, 1e38])
def test_more_molecules_than_there_can_be(value, refused):
    counts = toy()
    counts[3, 5] = value
    adata = of(counts)
    message = r"adata.X has 1 values above 2\^53.*\(first: cell '3', gene '5' is "
    for call in (lambda adata: scimpute.tl.began(adata), lambda adata: scimpute.pp.thin(adata), lambda adata: scimpute.tl.spatial(adata)):
        refused(adata, call, ValueError, message)
