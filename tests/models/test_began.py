"""The losses of BEGAN against their formulas, and the generator that holds several settings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scimpute.models.batch import Batch
from scimpute.models.began import Began, Candidates
from scimpute.models.dense import Discriminator, Generator
from scimpute.models.drop import drop
from scimpute.models.head import BlockGenerator, PoissonHead
from scimpute.models.layers import BlockLinear
from scimpute.models.likelihood import poisson_deviance

BLOCKS, CELLS, GENES, CONTEXT, LEVELS = 2, 6, 9, 4, (3, 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def make_removed(seed: int = 0) -> torch.Tensor:
    """Dense removed molecules ``(P, b, m)``, most of them zero."""
    return torch.poisson(torch.full((BLOCKS, CELLS, GENES), 0.7), generator=seeded(seed))


def sparse(removed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    place = removed.flatten().nonzero()[:, 0]
    return place, removed.flatten()[place]


def make_batch() -> Batch:
    removed = make_removed()
    labels = tuple(torch.arange(CELLS) % n for n in LEVELS)
    return Batch(normal(BLOCKS, CELLS, GENES + CONTEXT, seed=1).abs(), labels, *sparse(removed), removed.sum((0, 2)) + 1)


def make_generator(blocks: int = BLOCKS, seed: int = 2) -> Generator:
    """One whose output is not the null model."""
    net = Generator(blocks, GENES, CONTEXT, LEVELS, torch.full((blocks, 1, GENES), -4.0), seeded(seed), width=8)
    with torch.no_grad():
        net.output.weight.normal_(std=0.1, generator=seeded(seed + 1))
    return net


def make_began(generator: nn.Module, discriminator: nn.Module | None, **changes) -> Began:
    settings = {
        "penalty": 0.01,
        "adversarial_weight": 0.3,
        "reconstruction_weight": 2.0,
        "gamma": 0.6,
        "drop_quantile": 40.0,
        "drop_shape": 1.5,
        "rng": seeded(7),
    }
    return Began(generator, discriminator, **settings | changes)


def train_step(module: Began | Candidates, batch: Batch, lr: float = 1e-2) -> list[str]:
    """What ``_train.fit`` does with a minibatch."""
    optimizers = {name: torch.optim.AdamW(part, lr=lr) for name, part in module.parameter_groups().items()}
    names = []
    for name, loss in module.losses(batch):
        optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        optimizers[name].step()
        names.append(name)
    return names


class Table(BlockGenerator):
    """A generator that gives the same log rate whatever it reads; its penalty is known."""

    def __init__(self, log_rate: torch.Tensor) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(log_rate)

    def forward(self, inputs, labels, features=()):
        return self.log_rate + 0

    def penalty(self) -> torch.Tensor:
        return torch.tensor([2.0, 3.0])


class Scale(nn.Module):
    """An autoencoder ``D(v) = a v``, so that ``L(v) = |1 - a| mean|v|``; remembers the labels it was told."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.told: list[list[list[int]]] = []

    def forward(self, values, labels):
        self.told.append([codes.tolist() for codes in labels])
        return self.a * values


def expected_fake(log_rate: torch.Tensor, seen: int) -> torch.Tensor:
    """Imputed cells in log1p(CP10k) after Drop, as the settings of ``make_began`` say."""
    assert 1 <= seen <= CELLS
    return drop(torch.log1p(1e4 * log_rate[:, :seen].exp().clamp(max=1)), 40.0, 1.5, seeded(7))


def test_poisson_deviance_equals_the_dense_form_and_its_gradient():
    removed, exposure = make_removed(), torch.rand(CELLS, generator=seeded(1)) * 30
    fast = (normal(BLOCKS, CELLS, GENES, seed=2) - 5).clamp(max=-0.01).requires_grad_()
    naive = fast.detach().clone().requires_grad_()
    loss = poisson_deviance(fast, exposure, *sparse(removed))
    expected = (exposure[:, None] * naive.exp() - removed * naive).sum()
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(fast.grad, naive.grad)


def test_the_head_has_the_deviance_of_its_layer_and_its_gradients():
    """With a layer whose log rates are partly above 0: capped there, but not in the gradient."""
    removed, exposure = make_removed(), torch.rand(CELLS, generator=seeded(1)) * 30
    layer = BlockLinear(BLOCKS, 5, GENES, seeded(3))
    hidden = normal(BLOCKS, CELLS, 5, seed=2).requires_grad_()
    deviance, squares = PoissonHead.apply(hidden, layer.weight, layer.bias, exposure, *sparse(removed))
    (3 * deviance + 0.5 * squares).backward()
    found = [part.grad.clone() for part in (hidden, *layer.parameters())]
    for part in (hidden, *layer.parameters()):
        part.grad = None
    log_rate = layer(hidden)
    assert (log_rate > 0).any()
    expected = poisson_deviance(log_rate, exposure, *sparse(removed))
    torch.testing.assert_close(deviance, expected)
    torch.testing.assert_close(squares, layer.weight.square().sum())
    (3 * expected + 0.5 * layer.weight.square().sum()).backward()
    for one, other in zip(found, (hidden, *layer.parameters()), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-4, atol=1e-4)


def test_poisson_deviance_is_least_at_the_true_rate():
    removed, exposure = make_removed(), torch.full((CELLS,), 50.0)
    rate = (removed.mean(1, keepdim=True) / 50).clamp(min=1e-3).expand_as(removed)
    place = sparse(removed)
    best = poisson_deviance(rate.log(), exposure, *place)
    assert best < poisson_deviance(rate.log() + 0.2, exposure, *place)
    assert best < poisson_deviance(rate.log() - 0.2, exposure, *place)


def test_poisson_deviance_of_nothing_removed():
    log_rate = torch.zeros(1, 2, 3, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    loss = poisson_deviance(log_rate, torch.tensor([1.0, 4.0]), *nothing)
    loss.backward()
    assert loss.item() == 15
    assert log_rate.grad[0, :, 0].tolist() == [1, 4]


def test_a_share_above_one_is_capped_and_pushed_back():
    log_rate = torch.full((1, 1, 2), 200.0, requires_grad=True)
    loss = poisson_deviance(log_rate, torch.tensor([5.0]), torch.tensor([0]), torch.tensor([2.0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert log_rate.grad.flatten().tolist() == [3, 5]


def test_the_dense_generator_starts_at_the_null_model():
    share = normal(BLOCKS, 1, GENES, seed=1)
    net = Generator(BLOCKS, GENES, CONTEXT, LEVELS, share, seeded(), width=8)
    batch = make_batch()
    assert torch.equal(net(batch.inputs, batch.labels), share.expand(-1, CELLS, -1))
    assert net.penalty().tolist() == [0, 0]
    torch.testing.assert_close(make_generator().penalty(), torch.stack([(w**2).sum() for w in make_generator().output.weight]))


@pytest.mark.parametrize("k", [0.0, 0.25])
def test_losses_balance_and_convergence_measure_by_hand(k):
    batch, gamma = make_batch(), 0.6
    generator, adversary = Table(normal(BLOCKS, CELLS, GENES, seed=3) - 3), Scale(0.5)
    module = make_began(generator, adversary, gamma=gamma)
    module.k = torch.tensor(k)
    steps = module.losses(batch)
    name, loss = next(steps)
    assert name == "discriminator"
    log_rate, seen = generator.log_rate.detach(), len(adversary.told[0][0]) // 2  # real cells, then fake ones
    fake, real = expected_fake(log_rate, seen), batch.inputs[:, :seen, :GENES]
    mean_real, mean_fake = real.abs().mean(), fake.abs().mean()
    torch.testing.assert_close(loss, 0.5 * (mean_real - k * mean_fake))
    loss.backward()
    assert generator.log_rate.grad is None
    with torch.no_grad():
        adversary.a.fill_(0.8)

    name, loss = next(steps)
    assert name == "generator"
    deviance = (batch.exposure[:, None] * log_rate.exp() - make_removed() * log_rate).sum() / batch.exposure.sum()
    expected = 2.0 * deviance + 0.01 * 5.0 + 0.3 * 0.2 * mean_fake
    torch.testing.assert_close(loss, expected)
    loss_real, loss_fake = 0.5 * mean_real.item(), 0.2 * mean_fake.item()
    balance = gamma * loss_real - loss_fake
    assert module.k.item() == pytest.approx(min(1, max(0, k + 0.001 * balance)))
    assert float(module.metrics["M"]) == pytest.approx(loss_real + abs(balance))
    assert float(module.metrics["loss_real"]) == pytest.approx(loss_real)
    assert float(module.metrics["loss_fake"]) == pytest.approx(loss_fake)
    assert float(module.metrics["reconstruction"]) == pytest.approx(deviance.item())
    assert next(steps, None) is None
    assert adversary.told == [[codes[:seen].tolist() * times for codes in batch.labels] for times in (2, 1)]
    assert all(parameter.requires_grad for parameter in adversary.parameters())


def test_the_adversary_teaches_the_generator_through_what_was_kept_only():
    batch = make_batch()
    generator, adversary = Table(normal(BLOCKS, CELLS, GENES, seed=3) - 3), Scale(0.5)
    module = make_began(generator, adversary, penalty=0.0, reconstruction_weight=0.0, adversarial_weight=1.0)
    loss = dict(module.losses(batch))["generator"]
    loss.backward()
    seen = len(adversary.told[-1][0])
    dropped = expected_fake(generator.log_rate.detach(), seen) == 0
    gradient = generator.log_rate.grad
    assert dropped.any()
    assert not gradient[:, :seen][dropped].any()
    assert gradient[:, :seen][~dropped].all()
    assert not gradient[:, seen:].any()


@pytest.mark.parametrize(("gamma", "a", "end"), [(1.0, 0.5, 1.0), (0.0, 0.5, 0.0)])
def test_k_stays_between_zero_and_one(gamma, a, end):
    generator = Table(torch.full((BLOCKS, CELLS, GENES), -12.0))
    module = make_began(generator, Scale(a), gamma=gamma)
    module.K_RATE = 100.0
    for _ in range(3):
        for _ in module.losses(make_batch()):
            pass
        assert 0 <= module.k <= 1
    assert module.k == end


def test_stepping_between_the_losses_does_not_break_the_second():
    generator, adversary = make_generator(), Discriminator(BLOCKS, GENES, LEVELS, seeded(5))
    module, batch = make_began(generator, adversary), make_batch()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    runs = [train_step(module, batch) for _ in range(5)]
    assert runs[0] == ["discriminator", "generator"]
    # The adversary need not look at every minibatch.
    assert all(run in (["generator"], runs[0]) for run in runs)
    for name in ("generator.output.weight", "discriminator.output.weight", "generator.embeddings.0.table"):
        assert not torch.equal(module.state_dict()[name], start[name])


def test_the_adversary_alone_trains_on_every_minibatch():
    module = make_began(make_generator(), Discriminator(BLOCKS, GENES, LEVELS, seeded(5)), penalty=0.0, reconstruction_weight=0.0)
    for _ in range(4):
        train_step(module, make_batch())


def test_training_lowers_the_reconstruction():
    module, batch = make_began(make_generator(), None, adversarial_weight=0.0), make_batch()
    first = None
    for _ in range(10):
        train_step(module, batch)
        first = first or float(module.metrics["reconstruction"])
    assert float(module.metrics["reconstruction"]) < first


def test_without_an_adversary_there_is_one_loss():
    generator, batch = make_generator(), make_batch()
    module = make_began(generator, None, adversarial_weight=0.0)
    (name, loss), *rest = module.losses(batch)
    assert (name, rest) == ("generator", [])
    assert set(module.parameter_groups()) == {"generator"}
    assert set(module.metrics) == {"reconstruction"}
    log_rate = generator(batch.inputs, batch.labels)
    deviance = (batch.exposure[:, None] * log_rate.exp() - make_removed() * log_rate).sum() / batch.exposure.sum()
    torch.testing.assert_close(loss, 2 * deviance + 0.01 * generator.output.weight.square().sum())


def test_the_groups_hold_every_parameter_once():
    module = make_began(make_generator(), Discriminator(BLOCKS, GENES, LEVELS, seeded()))
    groups = module.parameter_groups()
    assert {id(p) for part in groups.values() for p in part} == {id(p) for p in module.parameters()}
    assert sum(map(len, groups.values())) == len(list(module.parameters()))


def test_the_discriminator_rebuilds_block_by_block_and_knows_the_labels():
    net, batch = Discriminator(BLOCKS, GENES, LEVELS, seeded()), make_batch()
    values = batch.inputs[..., :GENES]
    out = net(values, batch.labels)
    other = values.clone()
    other[0] += 1
    assert out.shape == values.shape
    assert torch.equal(net(other, batch.labels)[1], out[1])
    assert not torch.allclose(net(values, (batch.labels[0], 1 - batch.labels[1])), out)


def test_candidates_equal_separate_generators():
    batch, penalty = make_batch(), torch.tensor([0.1, 0.0, 2.0])
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1]])
    given = batch.inputs.clone()
    together = make_generator(3 * BLOCKS)
    module = Candidates(together, mask, penalty)
    rates = module.log_rate(batch)
    assert rates.shape == (3, BLOCKS, CELLS, GENES)

    expected = torch.zeros(())
    for i in range(3):
        alone = make_generator()
        alone.load_state_dict({k: v.view(3, BLOCKS, *v.shape[1:])[i] if "norm" not in k else v for k, v in together.state_dict().items()})
        inputs = batch.inputs.clone()
        inputs[..., GENES:] *= mask[i]
        log_rate = alone(inputs, batch.labels)
        torch.testing.assert_close(rates[i], log_rate)
        deviance = (batch.exposure[:, None] * log_rate.exp() - make_removed() * log_rate).sum() / batch.exposure.sum()
        expected = expected + deviance + penalty[i] * alone.penalty().sum()
    ((name, loss),) = module.losses(batch)
    assert name == "generator"
    torch.testing.assert_close(loss, expected)
    assert train_step(module, batch) == ["generator"]
    assert torch.equal(batch.inputs, given)


def test_seed_decides_and_the_global_generator_is_left_alone():
    state, batch = torch.get_rng_state(), make_batch()
    runs = []
    for _ in range(2):
        module = make_began(make_generator(), Discriminator(BLOCKS, GENES, LEVELS, seeded(5)))
        train_step(module, batch)
        runs.append(module.generator(batch.inputs, batch.labels))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert F.l1_loss(runs[0], make_generator()(batch.inputs, batch.labels)) > 0
