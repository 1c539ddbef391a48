"""Counts, position and image in one network: an encoder a modality, their codes summed with learned weights, the blocks of `began`.

Shapes: P gene blocks, m genes a block, b spots, c context values, d size of a code.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from .began import Batch, Generator, poisson_deviance

CODE = 32
"""Size of the code of a modality."""
DROPPED = 0.1
"""Probability by which a spot is shown without a modality in training, so that the others learn to do without it."""


class Encoder(nn.Module):
    """Features of a spot to its code: ``(b, n) -> (b, d)``."""

    def __init__(self, n_in: int, generator: torch.Generator, width: int = 64) -> None:
        super().__init__()
        self.first, self.last = _linear(n_in, width, generator), _linear(width, CODE, generator)
        self.norm = nn.LayerNorm(width, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.gelu(self.norm(self.first(x))))


class TileEncoder(nn.Module):
    """The image around a spot to its code: uint8 ``(b, 3, h, w) -> (b, d)``, by three convolutions of stride 2."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        self.convolutions = nn.ModuleList(
            skip_init(nn.Conv2d, a, b, 3, stride=2, padding=1, dtype=torch.float32) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, n, dtype=torch.float32) for n in widths[1:])
        for convolution in self.convolutions:
            _start(convolution, generator)  # type: ignore[arg-type]
        self.last = _linear(2 * widths[-1], CODE, generator)

    def forward(self, tiles: Tensor) -> Tensor:
        x = tiles.to(self.last.weight) / 127.5 - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nn.functional.gelu(norm(convolution(x)))
        # How much of a texture there is on average, and at its strongest.
        return self.last(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))


def _start(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    bound = layer.weight[0].numel() ** -0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        assert layer.bias is not None
        layer.bias.zero_()


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    # Without the layer's own start, which draws from the global generator.
    layer = skip_init(nn.Linear, n_in, n_out, dtype=torch.float32)
    _start(layer, generator)
    return layer


def squared_error(log_rate: Tensor, exposure: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """Squared differences of the logs of predicted and measured counts, summed over the entries that were hidden.

    Takes what :func:`~scimpute.models.began.poisson_deviance` takes; ``exposure`` is the library size, ``values`` the hidden counts.
    """
    _, spots, genes = log_rate.shape
    spot = place // genes % spots
    return (log_rate.reshape(-1)[place] + exposure[spot].log() - values.log()).square().sum()


LOST = {"poisson": poisson_deviance, "squared": squared_error}
"""What is lost of the hidden molecules, or entries, summed over them."""


def asked(likelihood: str, batch: Batch) -> Tensor:
    """How much was asked for: molecules or entries."""
    return batch.removed.sum() if likelihood == "poisson" else batch.removed.new_tensor(float(len(batch.removed)))


class ModalGenerator(nn.Module):
    """The generator of `began` that is told, beside its context, the weighted sum of the codes of all modalities.

    Parameters
    ----------
    features
        Shape of what is told of a spot in each modality, in the order in which it is given to :meth:`forward`: a length, or
        ``(3, h, w)`` for tiles. ``"counts"`` has the low-rank scores of its neighbours there, beside its own which are in the inputs;
        without ``"counts"`` the generator does not look at the inputs at all.
    rng
        Draws which modalities a spot is shown without.
    depth_slope
        By how much all log shares change with the log of the library size, which is the last of the context values.
    """

    def __init__(
        self,
        blocks: int,
        genes: int,
        context: int,
        levels: Sequence[int],
        features: Mapping[str, tuple[int, ...]],
        log_share: Tensor,
        generator: torch.Generator,
        rng: torch.Generator,
        *,
        width: int,
        depth_slope: float = 0.0,
    ) -> None:
        super().__init__()
        self.depth_slope: Tensor
        self.register_buffer("depth_slope", torch.tensor(depth_slope, dtype=torch.float32))
        self.genes, self.names, self.n_labels, self.rng = genes, tuple(features), len(levels), rng
        self.missing: str | None = None
        self.encoders = nn.ModuleDict()
        for name, shape in features.items():
            n_in = shape[0] + (context if name == "counts" else 0)
            self.encoders[name] = TileEncoder(generator) if len(shape) == 3 else Encoder(n_in, generator)
        self.logits = nn.Parameter(torch.zeros(len(self.names), dtype=torch.float32))
        self.inner = Generator(blocks, genes, context + CODE, levels, log_share, generator, width=width)

    @property
    def weights(self) -> Tensor:
        """Weight of the code of each modality; they sum to 1."""
        return self.logits.softmax(0)

    @contextlib.contextmanager
    def without(self, name: str | None) -> Iterator[None]:
        """As if there were nothing to see in one modality (None: as it is)."""
        self.missing = name
        try:
            yield
        finally:
            self.missing = None

    def forward(self, inputs: Tensor, told: Sequence[Tensor]) -> Tensor:
        """Log share of every gene, ``(P, b, m)``, of inputs ``(P, b, m + c)``; ``told`` are the codes of labels, then the modalities."""
        labels, features = told[: self.n_labels], told[self.n_labels :]
        spots = inputs.shape[1]
        shown = torch.ones(len(self.names), spots, 1, dtype=torch.float32, device=inputs.device)
        if self.training and len(self.names) > 1:
            drawn = torch.rand(shown.shape, generator=self.rng, dtype=torch.float32, device=inputs.device)
            shown = (drawn >= DROPPED).to(inputs)
        if self.missing is not None:
            shown[self.names.index(self.missing)] = 0
        fused = inputs.new_zeros(spots, CODE)
        own = inputs.new_zeros(spots, 1)
        for row, (name, weight, part) in enumerate(zip(self.names, self.weights, features, strict=True)):
            if name == "counts":
                own = shown[row]
                part = torch.cat([inputs[0, :, self.genes :], part], dim=1)
            fused = fused + weight * shown[row] * self.encoders[name](part)
        fused = fused.expand(len(inputs), -1, -1)
        return self.inner(torch.cat([inputs * own, fused], dim=-1), labels) + self.depth_slope * inputs[..., -1:]

    def penalty(self) -> Tensor:
        """Squared output weights summed within each block, ``(P,)``."""
        return self.inner.penalty()

    def shift(self, by: Tensor) -> None:
        """Add to the log share of every gene, ``(P, 1, m)``, whatever the spot."""
        self.inner.shift(by)


class FactorGenerator(nn.Module):
    r"""Neural matrix factorisation: log share of a gene in a spot from a vector of each.

    .. math:: d_{ij} = u_i \cdot v_j + w \cdot \mathrm{gelu}(A u_i + B v_j + c)

    added to the gene's log share. Spots are told by their number, so that there are none but those of the training.

    Parameters
    ----------
    start
        Vectors the spots start from, ``(n, f)``; those of the genes start at 0.
    spot_penalty
        Weight of the squared vectors of the spots in the loss.
    """

    PAIRS = 8
    """Hidden units of the network on pairs."""
    PACE = 10.0
    """A spot is seen once an epoch, a gene in every minibatch: its vector moves by larger steps."""

    def __init__(
        self, genes: int, start: Tensor, log_share: Tensor, generator: torch.Generator, *, spot_penalty: float, depth_slope: float
    ) -> None:
        super().__init__()
        factors = start.shape[1]
        self.spot_penalty, self.depth_slope = spot_penalty, depth_slope
        self.steps = nn.Parameter(start / self.PACE)
        self.of_genes = nn.Parameter(torch.zeros(genes, factors, dtype=torch.float32))
        self.bias = nn.Parameter(log_share.clone())
        self.left, self.right = _linear(factors, self.PAIRS, generator), _linear(factors, self.PAIRS, generator)
        self.last = nn.Parameter(torch.zeros(self.PAIRS, dtype=torch.float32))

    @property
    def of_spots(self) -> Tensor:
        """Vectors of the spots, ``(n, f)``."""
        return self.steps * self.PACE

    def forward(self, inputs: Tensor, told: Sequence[Tensor]) -> Tensor:
        """Log share of every gene, ``(1, b, m)``; of the inputs only the depth is looked at, ``told`` are the numbers of the spots."""
        # A spot may be there twice: the gradient of an index would be summed in any order.
        u, v = nn.functional.embedding(told[-1], self.steps) * self.PACE, self.of_genes
        d = u @ v.T
        # One unit after the other: all pairs of all units would be as many times the minibatch.
        for left, right, weight in zip(self.left(u).T, self.right(v).T, self.last, strict=True):
            d = d + weight * nn.functional.gelu(left[:, None] + right)
        return self.bias + d + self.depth_slope * inputs[..., -1:]

    def shift(self, by: Tensor) -> None:
        """Add to the log share of every gene, ``(1, 1, m)``, whatever the spot."""
        with torch.no_grad():
            self.bias.add_(by)

    def penalty(self) -> Tensor:
        """Squared vectors of the genes, ``(1,)``."""
        return (self.of_genes.square().sum() + self.last.square().sum())[None]


class Modal(nn.Module):
    r"""The generator with its loss: hidden molecules or entries, the penalty of the output weights, and the spatial contribution

    .. math:: \lambda \sum_o w_o \sum_j s_j (d_{ij} - \mathrm{mean}_{k \in N_o(i)} d_{kj})^2

    per spot, with :math:`d` the log rate over the gene's share :math:`s_j` of all molecules, which makes the sum a divergence in nats. The
    mean over a ring is estimated from two neighbours drawn at random: the product of two independent differences is an
    unbiased estimate of the square.

    Parameters
    ----------
    share
        Share of every gene of all molecules (entries), ``(P, 1, m)``.
    likelihood
        ``"poisson"``: molecules are hidden; ``"squared"``: whole entries.
    """

    def __init__(
        self,
        generator: ModalGenerator | FactorGenerator,
        *,
        penalty: float,
        spatial_weight: float,
        share: Tensor,
        likelihood: str = "poisson",
    ) -> None:
        super().__init__()
        self.generator, self.penalty, self.spatial_weight, self.likelihood = generator, penalty, spatial_weight, likelihood
        self.share: Tensor
        self.register_buffer("share", share)
        self.metrics: dict[str, Tensor | float] = {}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"generator": list(self.generator.parameters())}

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the only loss, that of the generator."""
        log_rate = self.generator(batch.inputs, batch.labels)
        spots = len(batch.exposure)
        lost = LOST[self.likelihood](log_rate[:, :spots], batch.exposure, batch.place, batch.removed)
        # Of all genes, those that are not imputed too: the exposure has their molecules.
        lost = lost / (batch.exposure.sum() if self.likelihood == "poisson" else asked(self.likelihood, batch)).clamp(min=1)
        self.metrics = {"reconstruction": lost.detach()}
        loss = lost + self.penalty * self.generator.penalty().sum()
        if isinstance(self.generator, FactorGenerator):
            loss = loss + self.generator.spot_penalty * self.generator.of_spots.square().sum()
        if batch.neighbours is not None:
            apart = log_rate.new_zeros(())
            own = log_rate[:, : batch.neighbours.shape[-1]]
            for weight, (one, other) in zip(batch.ring_weights, batch.neighbours, strict=True):
                product = (own - log_rate[:, one]) * (own - log_rate[:, other])
                apart = apart + weight * (self.share * product).sum() / own.shape[1]
            self.metrics["spatial"] = apart.detach()
            loss = loss + self.spatial_weight * apart
        yield "generator", loss
