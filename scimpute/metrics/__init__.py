"""Scores of an imputation: what was gained, and what was invented."""

from ._agreement import agreement
from ._autocorrelation import spatial_autocorrelation
from ._clusters import cluster_agreement
from ._false_signal import false_signal
from ._gene_trust import gene_trust
from ._heldout import heldout
from ._recovery import recovery
from ._report import report

__all__ = ["agreement", "cluster_agreement", "false_signal", "gene_trust", "heldout", "recovery", "report", "spatial_autocorrelation"]
