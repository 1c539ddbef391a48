"""The Drop operator: which entries it keeps, and what it lets through backwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scimpute.models.drop import _SAMPLE, drop, percentile


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("percent", [0.0, 10.0, 50.0, 97.5, 100.0])
def test_percentile_of_few_values_is_numpys(percent):
    values = torch.randn(4, 5, 50, generator=seeded())
    assert percentile(values, percent, seeded()).item() == pytest.approx(np.percentile(values.numpy(), percent), abs=1e-5)


@pytest.mark.parametrize("shape", [(5, 40, 400), (300_007,), (1 << 18,)])
@pytest.mark.parametrize("percent", [5.0, 60.0, 99.0])
def test_percentile_of_many_values_is_close_to_numpys(shape, percent):
    values = torch.randn(shape, generator=seeded())
    rank = (values.numpy() <= percentile(values, percent, seeded()).item()).mean() * 100
    assert rank == pytest.approx(percent, abs=2.5)


def test_percentile_samples_the_whole_tensor():
    values = torch.cat([torch.zeros(_SAMPLE), torch.ones(_SAMPLE - 1)])
    assert percentile(values, 60.0, seeded()) == 1


def test_percentile_samples_every_gene():
    genes = 16
    values = torch.arange(genes, dtype=torch.float32).repeat(_SAMPLE)
    assert percentile(values, 50.0, seeded()) == pytest.approx(7.5, abs=1.0)


def kept(values: torch.Tensor, *, quantile: float = 50.0, shape: float = 2.0, times: int = 1000) -> torch.Tensor:
    """How often each entry was kept."""
    rng = seeded(1)
    return torch.stack([drop(values, quantile, shape, rng) != 0 for _ in range(times)]).float().mean(0)


def test_the_higher_the_value_the_more_often_it_is_kept():
    values = torch.linspace(0.5, 5.5, 11)
    share = kept(values)
    expected = torch.sigmoid(2.0 * (values - 3.0))
    assert (share - expected).abs().max() < 0.06
    assert (expected.diff() > 0).all()
    # Steps of a tenth of a chance are far above the error of 1,000 draws, the flat ends are not.
    assert (share[2:9].diff() > 0).all()


@pytest.mark.parametrize("quantile", [10.0, 50.0, 90.0])
def test_half_of_the_entries_at_the_percentile_are_kept(quantile):
    values = torch.arange(1.0, 12.0)
    at = int(quantile / 10)
    assert kept(values, quantile=quantile)[at] == pytest.approx(0.5, abs=0.06)


def test_equal_values_are_kept_half_of_the_time():
    assert drop(torch.full((100, 200), 3.0), 30.0, 10.0, seeded()).gt(0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_a_large_shape_is_a_threshold():
    values = torch.arange(1.0, 102.0)
    out = drop(values, 50.0, 1e6, seeded())
    assert not out[:50].any()
    assert torch.equal(out[51:], values[51:])


def test_what_is_kept_is_unchanged_and_zeros_stay_zero():
    values = torch.rand(3, 4, 100, generator=seeded()) + 1
    values[:, :, ::3] = 0
    out = drop(values, 40.0, 3.0, seeded(2))
    assert not out[values == 0].any()
    assert out.shape == values.shape
    assert out.dtype == torch.float32
    assert torch.equal(out[out != 0], values[out != 0])
    assert 0 < (out[values != 0] == 0).float().mean() < 1


def test_the_gradient_is_the_mask():
    values = (torch.rand(2, 3, 50, generator=seeded()) + 1).requires_grad_()
    out = drop(values, 50.0, 2.0, seeded(1))
    out.sum().backward()
    assert torch.equal(values.grad, (out.detach() != 0).float())


def test_the_generator_decides_and_the_global_one_is_left_alone():
    values, state = torch.rand(1000, generator=seeded()) + 1, torch.get_rng_state()
    first = drop(values, 50.0, 2.0, seeded(1))
    assert torch.equal(first, drop(values, 50.0, 2.0, seeded(1)))
    assert not torch.equal(first, drop(values, 50.0, 2.0, seeded(2)))
    assert torch.equal(torch.get_rng_state(), state)
