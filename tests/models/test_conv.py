"""The image-shaped networks: the null start, the independence of the blocks, the start from a seed alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scimpute.models.batch import Batch
from scimpute.models.began import Began
from scimpute.models.conv import ConvDiscriminator, ConvGenerator, join, to_blocks, to_images

BLOCKS, GENES, CONTEXT, CELLS, LEVELS = 3, 64, 5, 6, (4, 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float32)


def log_share() -> torch.Tensor:
    return normal(BLOCKS, 1, GENES, seed=1) - 6


def labels(cells: int = CELLS) -> tuple[torch.Tensor, ...]:
    return tuple(torch.arange(cells) % n for n in LEVELS)


def inputs(cells: int = CELLS) -> torch.Tensor:
    return normal(BLOCKS, cells, GENES + CONTEXT, seed=2).abs()


def make_generator(**changes) -> ConvGenerator:
    return ConvGenerator(BLOCKS, GENES, CONTEXT, LEVELS, log_share(), seeded(3), **changes)


def trained_generator() -> ConvGenerator:
    """One whose last layer is not zero, so that everything before it counts."""
    net = make_generator()
    with torch.no_grad():
        net.output.weight.copy_(normal(*net.output.weight.shape, seed=4))
    return net


def make_discriminator() -> ConvDiscriminator:
    return ConvDiscriminator(BLOCKS, GENES, LEVELS, seeded(5))


def of_block(net: torch.nn.Module, block: int) -> dict[str, torch.Tensor]:
    """The state of one block: the blocks lie along the first dimension of every parameter."""
    return {k: v.chunk(BLOCKS)[block] if v.ndim else v for k, v in net.state_dict().items()}


def test_layout_round_trip_keeps_each_gene_in_its_block_and_cell():
    values = torch.arange(BLOCKS * 2 * 5 * 16, dtype=torch.float32).view(BLOCKS, 2, 5 * 16)
    images = to_images(values, 5)
    assert images.shape == (2, BLOCKS * 5, 4, 4)
    assert torch.equal(images[1, 2 * 5 + 3], values[2, 1].view(5, 4, 4)[3])
    assert torch.equal(to_blocks(images, BLOCKS), values)
    both = join([images, images[:, ::5]], BLOCKS)
    assert torch.equal(both[:, 6:11], images[:, 5:10])
    assert torch.equal(both[:, 11], images[:, 5])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [32, 16, 5])
def test_starts_at_the_null_model(training, width):
    out = make_generator(width=width).train(training)(inputs(), labels())
    assert out.shape == (BLOCKS, CELLS, GENES)
    assert out.is_contiguous()
    assert torch.equal(out, log_share().expand_as(out))


def test_penalty_is_the_squared_last_layer_of_each_block():
    assert torch.equal(make_generator().penalty(), torch.zeros(BLOCKS))
    net = trained_generator()
    torch.testing.assert_close(net.penalty(), torch.stack([(part**2).sum() for part in net.output.weight]))


def test_a_generator_of_many_blocks_equals_as_many_of_one():
    net, x = trained_generator(), inputs()
    whole = net(x, labels())
    for block in range(BLOCKS):
        one = ConvGenerator(1, GENES, CONTEXT, LEVELS, log_share()[:1], seeded(9))
        one.load_state_dict(of_block(net, block))
        torch.testing.assert_close(one(x[block : block + 1], labels())[0], whole[block], rtol=1e-4, atol=1e-4)


def test_a_discriminator_of_many_blocks_equals_as_many_of_one():
    net, x = make_discriminator(), inputs()[..., :GENES]
    whole = net(x, labels())
    assert whole.shape == x.shape
    assert whole.is_contiguous()
    for block in range(BLOCKS):
        one = ConvDiscriminator(1, GENES, LEVELS, seeded(9))
        one.load_state_dict(of_block(net, block))
        torch.testing.assert_close(one(x[block : block + 1], labels())[0], whole[block], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [trained_generator, make_discriminator])
def test_blocks_are_independent(make):
    net = make()
    x = inputs() if make is trained_generator else inputs()[..., :GENES]
    x.requires_grad_()
    other = x.detach().clone()
    other[0] += 1
    before, after = net(x, labels()), net(other, labels())
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])
    # Squares, because a BatchNorm makes the gradient of a plain sum vanish.
    before[1].square().sum().backward()
    assert x.grad[1].abs().sum() > 0
    assert not x.grad[[0, 2]].any()
    for name, parameter in net.named_parameters():
        first, own, last = parameter.grad.chunk(BLOCKS)
        assert own.any(), name
        assert not first.any(), name
        assert not last.any(), name


@pytest.mark.parametrize("make", [trained_generator, make_discriminator])
def test_labels_and_own_value_reach_the_output(make):
    net = make().eval()
    x = inputs()[..., : GENES + CONTEXT if make is trained_generator else GENES]
    out = net(x, labels())
    for i in range(len(LEVELS)):
        moved = list(labels())
        moved[i] = (moved[i] + 1) % LEVELS[i]
        assert not torch.allclose(net(x, moved), out)
    assert not torch.allclose(net(x + torch.eye(x.shape[2])[7], labels()), out)


def test_no_labels():
    net = ConvGenerator(BLOCKS, GENES, CONTEXT, (), log_share(), seeded())
    assert net(inputs(), ()).shape == (BLOCKS, CELLS, GENES)
    assert ConvDiscriminator(BLOCKS, GENES, (), seeded())(inputs()[..., :GENES], ()).shape == (BLOCKS, CELLS, GENES)


def test_one_label_too_few_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        make_generator()(inputs(), labels()[:1])


def test_the_smallest_image_and_a_single_cell():
    net = ConvGenerator(2, 16, 1, (2,), torch.zeros(2, 1, 16), seeded())
    adversary = ConvDiscriminator(2, 16, (2,), seeded())
    x, codes = torch.rand(2, 1, 17, generator=seeded()), (torch.tensor([1]),)
    assert net(x, codes).shape == adversary(x[..., :16], codes).shape == (2, 1, 16)


@pytest.mark.parametrize("genes", [0, 4, 15, 36, 128])
def test_a_side_that_is_no_multiple_of_four_is_an_error(genes):
    with pytest.raises(ValueError, match=f"square of a multiple of 4.*got {genes}"):
        ConvGenerator(1, genes, CONTEXT, (), torch.zeros(1, 1, genes), seeded())
    with pytest.raises(ValueError, match=f"square of a multiple of 4.*got {genes}"):
        ConvDiscriminator(1, genes, (), seeded())


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    first, second = trained_generator(), trained_generator()
    adversary = make_discriminator()
    out = first(inputs(), labels())
    adversary(out, labels())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(out, second(inputs(), labels()))
    other = ConvGenerator(BLOCKS, GENES, CONTEXT, LEVELS, log_share(), seeded(99))
    assert not torch.equal(other.linear.weight, first.linear.weight)


def test_the_default_dtype_makes_no_difference():
    expected = trained_generator()(inputs(), labels())
    reconstructed = make_discriminator()(expected.detach(), labels())
    share = log_share()
    torch.set_default_dtype(torch.float64)
    try:
        net, adversary = ConvGenerator(BLOCKS, GENES, CONTEXT, LEVELS, share.double(), seeded(3)), make_discriminator()
        with torch.no_grad():
            net.output.weight.copy_(normal(*net.output.weight.shape, seed=4))
        found = net(inputs(), labels())
        again = adversary(found.detach(), labels())
    finally:
        torch.set_default_dtype(torch.float32)
    floating = [t for m in (net, adversary) for t in m.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {torch.float32}
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, reconstructed, rtol=1e-5, atol=1e-5)


def test_log_share_is_copied():
    share = log_share()
    net = ConvGenerator(BLOCKS, GENES, CONTEXT, LEVELS, share, seeded())
    with torch.no_grad():
        net.bias.add_(1)
    assert torch.equal(share, log_share())


def test_one_step_lowers_the_loss():
    net, target = make_generator(), normal(BLOCKS, CELLS, GENES, seed=6) - 6
    adversary, values = make_discriminator(), inputs()[..., :GENES]
    for module, loss in (
        (net, lambda: F.mse_loss(net(inputs(), labels()), target)),
        (adversary, lambda: F.l1_loss(adversary(values, labels()), values)),
    ):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
        before = loss()
        before.backward()
        optimizer.step()
        with torch.no_grad():
            assert loss() < before


def test_they_fit_into_the_losses_of_began():
    net, adversary = make_generator(), make_discriminator()
    module = Began(
        net,
        adversary,
        penalty=1e-3,
        adversarial_weight=0.1,
        reconstruction_weight=1.0,
        gamma=0.5,
        drop_quantile=50.0,
        drop_shape=2.0,
        rng=seeded(7),
    )
    place = torch.arange(0, BLOCKS * CELLS * GENES, 11)
    batch = Batch(inputs(), labels(), place, torch.ones(len(place)), torch.full((CELLS,), 20.0))
    optimizers = {name: torch.optim.AdamW(part, lr=1e-3) for name, part in module.parameter_groups().items()}
    seen = []
    for name, loss in module.losses(batch):
        optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        optimizers[name].step()
        seen.append(name)
    assert seen == ["discriminator", "generator"]
    assert not torch.equal(net(inputs(), labels()), log_share().expand(-1, CELLS, -1))
