"""The layers that run one network per gene block as one product."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from scimpute.models.layers import BlockEmbedding, BlockLinear, HiddenLayer


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_block_linear_equals_separate_linear_maps():
    layer = BlockLinear(3, 7, 4, seeded())
    with torch.no_grad():
        layer.bias.normal_(generator=seeded(1))
    x = torch.randn(3, 5, 7, generator=seeded(2))
    out = layer(x)
    assert out.shape == (3, 5, 4)
    for block in range(3):
        expected = F.linear(x[block], layer.weight[block].T, layer.bias[block, 0])
        torch.testing.assert_close(out[block], expected)


def test_block_linear_known_answer():
    layer = BlockLinear(2, 2, 1, seeded(), zero=True)
    assert not layer(torch.ones(2, 3, 2)).any()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]))
        layer.bias.copy_(torch.tensor([[[10.0]], [[20.0]]]))
    out = layer(torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]]))
    assert out.flatten().tolist() == [13.0, 19.0]


def test_block_linear_starts_within_its_bound_and_differs_between_blocks():
    weight = BlockLinear(2, 25, 40, seeded()).weight
    assert 0.19 < weight.abs().max() <= 0.2
    assert not torch.equal(weight[0], weight[1])


def test_block_embedding_looks_up_the_row_of_each_block():
    embedding = BlockEmbedding(2, 3, seeded())
    codes = torch.tensor([2, 0, 2, 1])
    out = embedding(codes)
    assert embedding.size == 3
    assert out.shape == (2, 4, 3)
    for block in range(2):
        for cell, code in enumerate(codes.tolist()):
            assert torch.equal(out[block, cell], embedding.table[block, code])


def test_block_embedding_starts_near_one_hot_and_is_at_most_16_wide():
    assert torch.equal(BlockEmbedding(4, 5, seeded()).table.argmax(2), torch.arange(5).expand(4, 5))
    assert BlockEmbedding(1, 40, seeded()).table.shape == (1, 40, 16)
    assert BlockEmbedding(1, 40, seeded(), largest=7).size == 7


def test_block_embedding_trains_only_the_levels_it_saw():
    embedding = BlockEmbedding(2, 4, seeded())
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    assert embedding.table.grad[0, :, 0].tolist() == [0.0, 2.0, 0.0, 1.0]


def test_hidden_layer_is_linear_norm_gelu():
    layer = HiddenLayer(2, 6, 5, seeded())
    x = torch.randn(2, 3, 6, generator=seeded(1))
    linear = torch.stack([F.linear(x[p], layer.linear.weight[p].T) for p in range(2)])
    torch.testing.assert_close(layer(x), F.gelu(F.layer_norm(linear, (5,))))


def test_seed_decides_dtype_is_float32_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        layers = [HiddenLayer(2, 6, 5, seeded()), BlockEmbedding(2, 3, seeded())]
    finally:
        torch.set_default_dtype(torch.float32)
    again = [HiddenLayer(2, 6, 5, seeded()), BlockEmbedding(2, 3, seeded())]
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(layers, again, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert a.dtype == torch.float32
            assert torch.equal(a, b)
