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

from .began import Generator
from .layers import linear, start_uniform

CODE = 32
"""Size of the code of a modality."""
DROPPED = 0.1
"""Probability by which a spot is shown without a modality in training, so that the others learn to do without it."""


class Encoder(nn.Module):
    """Features of a spot to its code: ``(b, n) -> (b, d)``."""

    def __init__(self, n_in: int, generator: torch.Generator, width: int = 64) -> None:
        super().__init__()
        self.first, self.last = linear(n_in, width, generator), linear(width, CODE, generator)
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
            start_uniform(convolution, generator)  # type: ignore[arg-type]
        self.last = linear(2 * widths[-1], CODE, generator)

    def forward(self, tiles: Tensor) -> Tensor:
        x = tiles.to(self.last.weight) / 127.5 - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nn.functional.gelu(norm(convolution(x)))
        # How much of a texture there is on average, and at its strongest.
        return self.last(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))


class MultimodalGenerator(nn.Module):
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
        self.genes, self.names, self.rng = genes, tuple(features), rng
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

    def forward(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """Log share of every gene, ``(P, b, m)``, of inputs ``(P, b, m + c)``, level codes ``(b,)`` and features ``(b, ...)``."""
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

    def spot_penalty(self) -> Tensor | None:
        """None: no spot has parameters of its own."""
        return None

    def add_to_log_share(self, by: Tensor) -> None:
        """Add ``(P, 1, m)`` to the log share of every gene in all spots."""
        self.inner.add_to_log_share(by)
