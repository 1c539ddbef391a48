"""Scores of an imputation: what was gained, and what was invented."""

from ._heldout import heldout
from ._recovery import recovery

__all__ = ["heldout", "recovery"]
