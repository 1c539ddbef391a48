"""The expected log1p of a Poisson count, against the sum over all counts."""

from __future__ import annotations

import numpy as np
from scipy.stats import poisson

from scimpute._counts.expected import expected_log1p

MEANS = np.array([0, 1e-7, 1e-4, 0.01, 0.3, 1, 2.7, 8, 30, 63, 64, 65, 100, 1000, 5000])


def test_expected_log1p_against_the_poisson_sum():
    scale = np.array([0.01, 0.5, 1.0, 7.0, 100.0, 1e4])
    got = expected_log1p(np.tile(MEANS, (len(scale), 1)).astype(np.float32), scale)
    assert got.dtype == np.float32
    support = np.arange(7000)
    weights = poisson.pmf(support[None, :], MEANS[:, None])
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-9)
    expected = np.log1p(scale[:, None] * support) @ weights.T
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-12)
    assert (got[:, 0] == 0).all()
    # Below log1p of the mean (Jensen), by far more than the tolerance where counts are small.
    assert np.log1p(100 * 0.3) - got[4, 4] > 1


def test_expected_log1p_rises_with_the_mean():
    """Also across the end of the table."""
    mean = np.linspace(0, 80, 4001, dtype=np.float32)[None, :]
    for scale in (0.1, 10.0, 1000.0):
        assert (np.diff(expected_log1p(mean, np.array([scale]))) > -1e-4).all()


def test_expected_log1p_where_numpy_raises():
    with np.errstate(all="raise"):
        assert np.isfinite(expected_log1p(MEANS[None, :].astype(np.float32), np.array([1.0]))).all()
