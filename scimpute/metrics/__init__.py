"""Scores of an imputation: what was gained, and what was invented."""

from ._heldout import heldout

__all__ = ["heldout"]
