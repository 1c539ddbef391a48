"""All commands except ``demo``. Each reads a file, calls the function of the same name, and writes the result."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .. import _check
from .._anndata import keys
from .._methods import METHODS
from .output import Output, say
from .read import as_private_as, read

if TYPE_CHECKING:
    from anndata import AnnData


def impute(name: str, in_file: str, out_file: str, **options: Any) -> None:
    """Run a function of ``scimpute.tl`` on a file."""
    from .. import tl

    save = options.get("save")
    if save is not None and os.path.realpath(save) in map(os.path.realpath, (in_file, out_file)):
        raise ValueError(f"--save {save!r} is the input or the output; give the model a file of its own")
    target = Output(out_file)
    genes = options.get("genes")
    if isinstance(genes, str) and genes.startswith("["):
        # The parser keeps a list as text if its names look like numbers.
        options["genes"] = [gene.strip(" '\"") for gene in genes.strip("[] ").split(",")]
    adata = read(in_file)
    with as_private_as(in_file):
        getattr(tl, name)(adata, **options)
        target.write(adata.write_h5ad)
    _say_what_was_written(adata, options["key_added"], out_file)


def apply(in_file: str, model: str, out_file: str, **options: Any) -> None:
    """Apply a saved model to a file."""
    from .. import tl
    from .._save import load_metadata

    if os.path.realpath(model) in map(os.path.realpath, (in_file, out_file)):
        raise ValueError(f"MODEL: {model!r} is the input or the output; give the file that was written with --save")
    target = Output(out_file)
    method = str(load_metadata(model).get("method"))
    adata = read(in_file)
    tl.apply(adata, model, **options)
    with as_private_as(in_file):
        target.write(adata.write_h5ad)
    _say_what_was_written(adata, options["key_added"] or METHODS[method].key, out_file)


def report(in_file: str, **options: Any) -> None:
    """Write a report on the imputation in a file."""
    from .. import metrics
    from ..metrics._replay import find

    adata = read(in_file)
    if options["key"] is None:
        names = find(adata)
        if len(names) != 1:
            raise ValueError(f"{in_file!r} holds {len(names)} imputations of counts, {_check.listing(names)}; name one with --key")
        options["key"] = names[0]
    with as_private_as(in_file):
        numbers = metrics.report(adata, **options)
    say(numbers["verdict"], *(f"- {reason}" for reason in numbers["reasons"]["reason"]), f"Wrote {options['save']}")


def _say_what_was_written(adata: AnnData, key: str, out_file: str) -> None:
    slot = "obsm" if key in adata.obsm else "layers"
    shape = " x ".join(map(str, getattr(adata, slot)[key].shape))
    spread = ", its standard deviation" if keys.sd(key) in getattr(adata, slot) else ""
    say(f"Wrote {slot}[{key!r}] ({shape}){spread} and uns[{key!r}] to {out_file}")
