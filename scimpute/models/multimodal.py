"""Counts, position and image in one network. Each modality has an encoder. The generator of `began` reads the weighted sum of the codes.

Shapes: P gene blocks, m genes a block, b spots, c context values, d size of a code.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from .dense import Generator
from .head import BlockGenerator, Computed, Head
from .layers import linear, start_uniform

CODE_SIZE = 32
"""Size of the code of a modality."""
MODALITY_DROPOUT = 0.1
"""Probability that the training hides a modality of a spot, so that the other modalities learn to replace it."""


class Encoder(nn.Module):
    """The code of a vector of features: ``(b, n) -> (b, d)``."""

    def __init__(self, n_in: int, generator: torch.Generator, width: int = 64) -> None:
        super().__init__()
        self.first, self.last = linear(n_in, width, generator), linear(width, CODE_SIZE, generator)
        self.norm = nn.LayerNorm(width, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.gelu(self.norm(self.first(x))))


class TileEncoder(nn.Module):
    """The code of the image around a spot, by three convolutions of stride 2: uint8 ``(b, 3, h, w) -> (b, d)``."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        self.convolutions = nn.ModuleList(
            skip_init(nn.Conv2d, a, b, 3, stride=2, padding=1, dtype=torch.float32) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, n, dtype=torch.float32) for n in widths[1:])
        for convolution in self.convolutions:
            start_uniform(convolution, generator)  # type: ignore[arg-type]
        self.last = linear(2 * widths[-1], CODE_SIZE, generator)

    def forward(self, tiles: Tensor) -> Tensor:
        x = tiles.to(self.last.weight) / 127.5 - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nn.functional.gelu(norm(convolution(x)))
        # The mean and the maximum of each texture in the tile.
        return self.last(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))


class MultimodalGenerator(BlockGenerator):
    """The generator of `began`. Beside its context it reads the weighted sum of the codes of all modalities.

    Parameters
    ----------
    features
        Shape of the features of a spot in each modality, in the order of :meth:`forward`: a length, or ``(3, h, w)`` for tiles. The
        features of ``"counts"`` are the low-rank scores of the neighbours; the inputs hold those of the spot. Without ``"counts"`` the
        generator ignores the inputs.
    rng
        Draws which modalities the training hides.
    depth_slope
        Change of all log shares with the log of the library size, which is the last context value.
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
        self.sloped = bool(depth_slope)
        self.genes, self.names, self.rng = genes, tuple(features), rng
        self.hidden: str | None = None
        self.encoders = nn.ModuleDict()
        for name, shape in features.items():
            n_in = shape[0] + (context if name == "counts" else 0)
            self.encoders[name] = TileEncoder(generator) if len(shape) == 3 else Encoder(n_in, generator)
        self.logits = nn.Parameter(torch.zeros(len(self.names), dtype=torch.float32))
        self.inner = Generator(blocks, genes, context + CODE_SIZE, levels, log_share, generator, width=width)

    @property
    def weights(self) -> Tensor:
        """Weight of the code of each modality; they sum to 1."""
        return self.logits.softmax(0)

    @contextlib.contextmanager
    def without(self, name: str | None) -> Iterator[None]:
        """Hide one modality of all spots (None: hide nothing)."""
        self.hidden = name
        try:
            yield
        finally:
            self.hidden = None

    def forward(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor] = ()) -> Tensor:
        """Log share of every gene, ``(P, b, m)``, of inputs ``(P, b, m + c)``, level codes ``(b,)`` and features ``(b, ...)``."""
        return self._without_slope(inputs, labels, features).log_rate() + self.depth_slope * inputs[..., -1:]

    def head(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor] = ()) -> Head | Computed:
        return super().head(inputs, labels, features) if self.sloped else self._without_slope(inputs, labels, features)

    def _without_slope(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor]) -> Head:
        spots = inputs.shape[1]
        visible = torch.ones(len(self.names), spots, 1, dtype=torch.float32, device=inputs.device)
        if self.training and len(self.names) > 1:
            drawn = torch.rand(visible.shape, generator=self.rng, dtype=torch.float32, device=inputs.device)
            visible = (drawn >= MODALITY_DROPOUT).to(inputs)
        if self.hidden is not None:
            visible[self.names.index(self.hidden)] = 0
        fused = inputs.new_zeros(spots, CODE_SIZE)
        own = inputs.new_zeros(spots, 1)
        for row, (name, weight, part) in enumerate(zip(self.names, self.weights, features, strict=True)):
            if name == "counts":
                own = visible[row]
                part = torch.cat([inputs[0, :, self.genes :], part], dim=1)
            fused = fused + weight * visible[row] * self.encoders[name](part)
        fused = fused.expand(len(inputs), -1, -1)
        return self.inner.head(torch.cat([inputs * own, fused], dim=-1), labels)

    def penalty(self) -> Tensor:
        """Squared output weights summed within each block, ``(P,)``."""
        return self.inner.penalty()

    def spot_penalty(self) -> Tensor | None:
        """None: no spot has parameters of its own."""
        return None

    def add_to_log_share(self, by: Tensor) -> None:
        """Add ``(P, 1, m)`` to the log share of every gene in all spots."""
        self.inner.add_to_log_share(by)
