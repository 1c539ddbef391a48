"""The losses of PMI and GAIN against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scimpute.models import pmi_gain as masked
from scimpute.models.pmi_gain import Gain, Network, Pmi, Samples

SAMPLES, GENES, LEVELS, NUMBERS = 6, 11, (4, 3), 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_samples(seed: int = 1) -> Samples:
    observed = torch.rand(SAMPLES, GENES, generator=seeded(seed)) < 0.7
    values = torch.randn(SAMPLES, GENES, generator=seeded(seed + 1)) * observed
    codes = torch.stack([torch.arange(SAMPLES) % n for n in LEVELS], dim=1)
    return Samples(values, observed, codes, torch.randn(SAMPLES, NUMBERS, generator=seeded(seed + 2)))


def make_network(seed: int = 3, **changes) -> Network:
    settings = {"n_layers": 2, "n_hidden": 8, "dropout": 0.0, "rescale": False, "zero": False, "rng": seeded(9)}
    return Network(GENES, LEVELS, NUMBERS, seeded(seed), **settings | changes)


class Watched(nn.Module):
    """A stand-in that keeps what it is shown and gives what it was told."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, values: Tensor, mask: Tensor, samples: Samples) -> Tensor:
        self.seen.append((values.detach(), mask.detach()))
        return self.output + 0.5 * values


def answer(seed: int) -> Tensor:
    return torch.randn(SAMPLES, GENES, generator=seeded(seed))


# The network


@pytest.mark.parametrize(("levels", "size"), [(1, 2), (2, 2), (3, 2), (4, 3), (8, 3), (9, 4), (49, 8), (50, 8)])
def test_embeddings_have_the_published_size(levels, size):
    covariates = masked.Covariates([levels], 0, seeded())
    assert covariates.tables[0].shape == (levels, size)
    assert size == int(math.sqrt(levels)) + 1


def test_covariates_are_looked_up_and_joined():
    samples = make_samples()
    covariates = masked.Covariates(LEVELS, NUMBERS, seeded())
    found = covariates(samples.codes, samples.numbers)
    assert found.shape == (SAMPLES, covariates.size)
    expected = [torch.cat([covariates.tables[0][i % 4], covariates.tables[1][i % 3], samples.numbers[i]]) for i in range(SAMPLES)]
    assert torch.equal(found, torch.stack(expected))


def test_network_is_the_formula():
    samples, net = make_samples(), make_network().eval()
    mask = samples.observed.float()
    x = torch.cat([samples.values, net.covariates(samples.codes, samples.numbers), mask], dim=1)
    for layer, norm in zip(net.layers[:-1], net.norms, strict=True):
        x = torch.relu(norm(x @ layer.weight.T + layer.bias))
    torch.testing.assert_close(net(samples.values, mask, samples), x @ net.layers[-1].weight.T + net.layers[-1].bias)
    assert len(net.layers) == 3


def test_rescaling_divides_by_the_observed_fraction():
    samples = make_samples()
    mask = samples.observed.float()
    plain, rescaled = make_network().eval(), make_network(rescale=True).eval()
    scaled = samples.values / mask.mean(1, keepdim=True)
    torch.testing.assert_close(rescaled(samples.values, mask, samples), plain(scaled, mask, samples))


def test_zero_starts_at_the_mean():
    samples = make_samples()
    assert not make_network(zero=True)(samples.values, samples.observed.float(), samples).any()


def test_dropout_is_seeded_off_in_use_and_keeps_the_mean(states):
    samples = make_samples()
    before = states()
    net = make_network(dropout=0.4)
    hidden = torch.ones(500, 200)
    first, second = net._drop(hidden), net._drop(hidden)
    assert not torch.equal(first, second)
    assert torch.equal(first, make_network(dropout=0.4)._drop(hidden))
    torch.testing.assert_close(first.unique(), torch.tensor([0, 1 / 0.6]))
    assert abs(float(first.mean()) - 1) < 0.02
    net.eval()
    assert torch.equal(net._drop(hidden), hidden)
    net(samples.values, samples.observed.float(), samples)
    assert states() == before, "torch's global generator is left alone"


def test_masked_error_by_hand():
    output, target = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0], [7.0, 7.0, 7.0]]), torch.zeros(3, 3)
    wanted = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    # (1 + 4) / 2 and 25; the third sample is asked nothing.
    assert float(masked._masked_error(output, target, wanted)) == (2.5 + 25) / 2
    assert float(masked._masked_error(output, target, torch.zeros(3, 3))) == 0


# PMI


def test_pmi_asks_for_observed_entries_that_it_hides():
    samples = make_samples()
    net = Watched(answer(5))
    module = Pmi(net, (0.4, 0.8), seeded(7))
    ((name, loss),) = module.losses(samples)
    assert name == "network"
    ((values, mask),) = net.seen
    shown = mask.bool()
    assert not (shown & ~samples.observed).any()
    assert torch.equal(values, samples.values * mask)
    wanted = samples.observed & ~shown
    assert wanted.any()
    by_hand = [
        float((net.output.detach()[i] + 0.5 * values[i] - samples.values[i])[wanted[i]].square().mean())
        for i in range(SAMPLES)
        if wanted[i].any()
    ]
    assert abs(float(loss.detach()) - sum(by_hand) / len(by_hand)) < 1e-5
    loss.backward()
    assert ((net.output.grad != 0) == wanted).all(), "nothing is asked that is missing or shown"


def test_pmi_shows_the_fraction_asked_for():
    n = 400
    samples = Samples(torch.ones(n, 300), torch.ones(n, 300, dtype=torch.bool), torch.zeros(n, 0, dtype=torch.long), torch.zeros(n, 0))
    net = Watched(torch.zeros(n, 300))
    list(Pmi(net, (0.4, 0.8), seeded()).losses(samples))
    fraction = net.seen[0][1].mean(1)
    assert abs(float(fraction.mean()) - 0.6) < 0.02
    assert fraction.min() < 0.45
    assert fraction.max() > 0.75
    assert fraction.min() > 0.25
    assert fraction.max() < 0.95


@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("kind", ["pmi", "gain", "gain published"])
def test_all_or_nothing_observed_is_finite(kind, share):
    samples = make_samples()
    observed = torch.full_like(samples.observed, bool(share))
    samples = Samples(answer(4) * observed, observed, samples.codes, samples.numbers)
    module = Pmi(make_network(rescale=True), (0.3, 0.9), seeded()) if kind == "pmi" else make_gain(None if "pub" in kind else (0.3, 0.9))
    for _, loss in module.losses(samples):
        assert torch.isfinite(loss)
        loss.backward()
    for parameter in module.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    module.eval()
    assert torch.isfinite(module(samples)).all()


# GAIN


def make_gain(mask_rate: tuple[float, float] | None, generator: nn.Module | None = None, judge: nn.Module | None = None, **changes) -> Gain:
    settings = {"supervised_weight": 2.5, "hint_rate": 0.5, "mask_rate": mask_rate, "rng": seeded(7)}
    return Gain(generator or make_network(), judge or make_network(4), **settings | changes)


@pytest.mark.parametrize("mask_rate", [None, (0.4, 0.8)], ids=["published", "default"])
def test_gain_losses_by_hand(mask_rate):
    samples = make_samples()
    generator, judge = Watched(answer(5)), Watched(answer(6))
    module = make_gain(mask_rate, generator, judge)
    (first, loss_d), (second, loss_g) = module.losses(samples)
    assert (first, second) == ("discriminator", "generator")
    ((shown, mask),) = generator.seen
    seen = mask.bool()
    assert not (seen & ~samples.observed).any()
    assert torch.equal(seen, samples.observed) == (mask_rate is None)
    # Noise where nothing is shown.
    assert torch.equal(shown[seen], samples.values[seen])
    assert (shown[~seen] != 0).all()
    assert shown[~seen].abs().max() < 0.06
    # Twice the same filled sample, with the observed values as they are, and the same hint.
    output = (generator.output + 0.5 * shown).detach()
    filled = torch.where(seen, samples.values, output)
    assert len(judge.seen) == 2
    hints = [hint for _, hint in judge.seen]
    for values, _ in judge.seen:
        torch.testing.assert_close(values, filled)
    assert torch.equal(*hints)
    told = hints[0] != 0.5
    assert torch.equal(hints[0][told], mask[told])
    assert told.any()
    assert not told.all()
    guess = (judge.output + 0.5 * filled).detach().sigmoid()
    entropy = -(mask * guess.log() + (1 - mask) * (1 - guess).log())
    assert abs(float(loss_d.detach()) - float(entropy[~told].mean())) < 1e-5
    fooled = -guess.log()[~told & ~seen].mean()
    wanted = seen if mask_rate is None else samples.observed & ~seen
    errors = [(output - samples.values)[i][wanted[i]].square().mean() for i in range(SAMPLES) if wanted[i].any()]
    assert abs(float(loss_g.detach()) - float(fooled + 2.5 * torch.stack(errors).mean())) < 1e-4
    assert abs(float(module.metrics["loss"]) - float(torch.stack(errors).mean())) < 1e-5


@pytest.mark.parametrize("mask_rate", [None, (0.4, 0.8)], ids=["published", "default"])
def test_each_network_is_trained_by_its_own_loss_only(mask_rate):
    module = make_gain(mask_rate)
    groups = module.parameter_groups()
    assert sum(map(len, groups.values())) == len(list(module.parameters()))
    for name, loss in module.losses(make_samples()):
        module.zero_grad(set_to_none=True)
        loss.backward()
        other = "generator" if name == "discriminator" else "discriminator"
        assert all(parameter.grad is None for parameter in groups[other])
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in groups[name])
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_no_hint_leaves_all_entries_open():
    judge = Watched(answer(6))
    module = make_gain(None, Watched(answer(5)), judge, hint_rate=0.0)
    (_, loss), _ = module.losses(make_samples())
    assert (judge.seen[0][1] == 0.5).all()
    filled, mask = judge.seen[0][0], make_samples().observed.float()
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits((judge.output + 0.5 * filled), mask))


def test_forward_is_without_noise_and_shows_all_that_is_observed():
    samples = make_samples()
    for module in (make_gain((0.4, 0.8)), Pmi(make_network(), (0.4, 0.8), seeded())):
        module.eval()
        net = module.generator if isinstance(module, Gain) else module.network
        expected = net(samples.values, samples.observed.float(), samples)
        assert torch.equal(module(samples), expected)
        assert torch.equal(module(samples), expected)
