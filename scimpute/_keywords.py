"""Errors for unknown keyword arguments, with a suggestion."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from . import _check

P = ParamSpec("P")
R = TypeVar("R")

# Names of parameters in other packages, and the names in scimpute.
_FOREIGN_NAMES = {
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
    """The same function, but its error for an unknown keyword suggests a parameter. Python's own error does not always."""
    parameters = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in parameters:
                suggestion = _FOREIGN_NAMES.get(name)
                suggestion = suggestion if suggestion in parameters else _check.closest(name, parameters)
                hint = f"; did you mean {suggestion!r}?" if suggestion else f"; there are: {', '.join(parameters[1:])}"
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{hint}")
        return function(*args, **kwargs)

    return call
