"""The batches for which every cell is imputed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .. import _check


@dataclass(frozen=True)
class Target:
    """Batches for which every cell is imputed.

    Attributes
    ----------
    label
        Position of the batch among the labels.
    levels
        Codes of the batches. The result is the mean over them.
    """

    label: int
    levels: list[int]


def target_of(target_batch: str | None, levels: Mapping[str, Sequence[str]]) -> Target | None:
    """The batches that ``target_batch`` names. ``levels`` maps the argument of each label to its levels."""
    if target_batch is None or "batch_key" not in levels:
        return None
    label, names = list(levels).index("batch_key"), list(levels["batch_key"])
    if target_batch == "average":
        if "average" in names:
            raise ValueError("target_batch='average' is the mean over all batches, but one batch has this name, too; rename the level")
        return Target(label, list(range(len(names))))
    if target_batch not in names:
        raise ValueError(f"target_batch must be 'average' or one of {_check.listing(names)}, got {target_batch!r}")
    return Target(label, [names.index(target_batch)])
