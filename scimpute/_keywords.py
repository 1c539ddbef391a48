"""Unknown arguments, with the one that was meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from . import _check

P = ParamSpec("P")
R = TypeVar("R")

# What other packages call it.
_ELSEWHERE = {
    "seed": "random_state",
    "random_seed": "random_state",
    "verbose": "progress",
    "gpu": "device",
    "use_gpu": "device",
    "accelerator": "device",
    "epochs": "max_epochs",
    "n_epochs": "max_epochs",
    "lr": "learning_rate",
    "cell_type": "celltype_key",
    "celltype": "celltype_key",
    "labels_key": "celltype_key",
    "labels": "celltype_key",
    "batches": "batch_key",
    "use_raw": "layer",
    "gene_list": "genes",
    "var_names": "genes",
    "size_factor_key": "size_key",
    "key": "key_added",
}


def helpful(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which says of an unknown argument which one was meant. Python names it only."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                meant = _ELSEWHERE.get(name)
                meant = meant if meant in known else _check.closest(name, known)
                hint = f"; did you mean {meant!r}?" if meant else f"; there are: {', '.join(known[1:])}"
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{hint}")
        return function(*args, **kwargs)

    return call
