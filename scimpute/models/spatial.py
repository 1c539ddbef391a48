"""The losses of `tl.spatial` and `tl.nmf`: the likelihood of hidden molecules or entries, and the neighbour loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from .batch import Batch
from .factor import FactorGenerator
from .likelihood import Likelihood
from .multimodal import MultimodalGenerator


class SpatialModel(nn.Module):
    r"""A generator and its loss: the likelihood of the hidden molecules or entries, the penalty of the output weights, the neighbour loss

    .. math:: \lambda \sum_o w_o \sum_j s_j (d_{ij} - \mathrm{mean}_{k \in N_o(i)} d_{kj})^2

    per spot (:func:`neighbour_loss`). Here :math:`d` is the log of the rate over the share :math:`s_j` of the gene, so the sum is a
    divergence in nats.

    Parameters
    ----------
    penalty
        Weight of the squared output weights.
    spatial_weight
        Weight :math:`\lambda` of the neighbour loss.
    share
        Share of every gene of all molecules (entries), ``(P, 1, m)``.
    """

    def __init__(
        self,
        generator: MultimodalGenerator | FactorGenerator,
        likelihood: Likelihood,
        *,
        penalty: float,
        spatial_weight: float,
        share: Tensor,
    ) -> None:
        super().__init__()
        self.generator, self.likelihood, self.penalty, self.spatial_weight = generator, likelihood, penalty, spatial_weight
        self.share: Tensor
        self.register_buffer("share", share)
        self.metrics: dict[str, Tensor | float] = {}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"generator": list(self.generator.parameters())}

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of the generator."""
        head = self.generator.head(batch.inputs, batch.labels, batch.features)
        # The rows of neighbours follow the spots with targets.
        deviance, squares = self.likelihood.objective(self.generator, head.rows(len(batch.exposure)), batch)
        reconstruction = deviance / self.likelihood.scale(batch).clamp(min=1)
        self.metrics = {"reconstruction": reconstruction.detach()}
        loss = reconstruction + self.penalty * squares
        spot_penalty = self.generator.spot_penalty()
        if spot_penalty is not None:
            loss = loss + spot_penalty
        if batch.neighbours is not None:
            roughness = neighbour_loss(head.log_rate(), self.share, batch.neighbours, batch.ring_weights)
            self.metrics["spatial"] = roughness.detach()
            loss = loss + self.spatial_weight * roughness
        yield "generator", loss


def neighbour_loss(log_rate: Tensor, share: Tensor, neighbours: Tensor, ring_weights: Sequence[float]) -> Tensor:
    """Squared distance of each spot from the mean of its neighbours, summed over rings with their weights, mean over spots.

    Two random neighbours estimate the mean over a ring: the product of two independent differences is an unbiased estimate of the
    square.

    Parameters
    ----------
    log_rate
        Log shares of spots and their neighbours, ``(P, b, m)``.
    share
        Share of every gene of all molecules, ``(P, 1, m)``.
    neighbours
        Rows of the two neighbours in each ring for the first ``a`` spots, ``(rings, 2, a)``.
    """
    total = log_rate.new_zeros(())
    own = log_rate[:, : neighbours.shape[-1]]
    for weight, (one, other) in zip(ring_weights, neighbours, strict=True):
        product = (own - log_rate[:, one]) * (own - log_rate[:, other])
        total = total + weight * (share * product).sum() / own.shape[1]
    return total
