"""The command line. The options of a command are the parameters of the function it calls."""

from __future__ import annotations

import argparse
import functools
import inspect
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docstring_parser
from jsonargparse import ArgumentParser

from . import _check, _keys
from ._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import pandas as pd
    from anndata import AnnData

# scanpy, torch and matplotlib are imported by the commands that need them.

_MARKERS = ("CD79A", "CD3D", "GNLY", "FCER1A")
"""B cells, T cells, NK cells, dendritic cells."""

_IMPUTERS = ("began", "spatial", "nmf", "pmi", "gain")
_BAD_INPUT = (argparse.ArgumentError, ValueError, KeyError, TypeError, FileNotFoundError, FileExistsError, IsADirectoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when done, 2 for bad usage or input, 130 when interrupted, 1 for any other failure."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"scimpute: warning: {_one_line(message)}", file=sys.stderr)
            options = _parser().parse_args(argv)
            commands: dict[str, Callable[..., None]] = {"demo": demo, "apply": _apply, "report": _judge}
            commands |= {name: functools.partial(_impute, name) for name in _IMPUTERS}
            commands[options.command](**{name: value for name, value in options[options.command].items() if name != "debug"})
        return 0
    except SystemExit as end:  # --help and --version
        _say()
        return int(end.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in argv:
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            print("scimpute: interrupted", file=sys.stderr)
            return 130
        print(f"scimpute: error: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, _BAD_INPUT) else 1


def demo(out_dir: str = ".", random_state: int = 0) -> None:
    """Impute 700 real blood cells and score it on molecules that were held out: under a minute, no download.

    Parameters
    ----------
    out_dir
        Existing directory for scimpute_demo.h5ad and scimpute_demo.png.
    random_state
        Seed.
    """
    from . import datasets, metrics, pp, tl
    from ._save import replace_file

    table, picture = (Path(out_dir, f"scimpute_demo.{kind}") for kind in ("h5ad", "png"))
    targets = _output(table), _output(picture)
    adata = datasets.pbmc68k()
    pp.thin(adata, random_state=random_state)
    tl.began(adata, layer="thin_train", size_key="n_counts", key_added="began", random_state=random_state, progress=True)
    scores = metrics.heldout(adata, ["began"])
    replace_file(targets[1], lambda path: _draw(adata, scores, path))
    replace_file(targets[0], adata.write_h5ad)
    _say(
        f"{adata.n_obs} cells x {adata.n_vars} genes (Zheng et al. 2017), imputed from nine tenths of their molecules, scored on the rest:",
        scores.to_string(float_format="{:.4f}".format),
        "Lower is better, and poisson is the column to trust (why: help(scimpute.metrics.heldout)); "
        "raw (the counts as they are) and gene_mean (every cell the average cell) are the baselines.",
        f"Wrote {table} and {picture}; next: sc.pl.umap(sc.read_h5ad({str(table)!r}), color={_MARKERS[0]!r}, layer='began')",
    )


def _draw(adata: AnnData, scores: pd.DataFrame, path: Path) -> None:
    """Left: markers before and after. Right: held-out scores and training curves. 1600 x 1100 pixels."""
    from matplotlib.figure import Figure

    from . import pl

    figure = Figure(figsize=(14.4, 9.9), dpi=1600 / 14.4, layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.3, 1), wspace=0.05).flat
    left.suptitle(f"Marker genes of B, T, NK and dendritic cells, {adata.n_obs} blood cells", fontweight="bold")
    right.suptitle("Score and training", fontweight="bold")
    pl.imputed(adata, _MARKERS, ax=list(left.subplots(len(_MARKERS), 2).flat), size=14, show=False)
    dots, *curves = right.subplots(4, 1)
    # Dots, not bars: the score is known up to a constant, so its zero means nothing.
    for place, (name, score) in enumerate(scores["poisson"].iloc[::-1].items()):
        color = "#0072B2" if name == "began" else "0.45"
        dots.plot(score, place, "o", color=color, ms=9)
        dots.annotate(f"{score:.3f}", (score, place), xytext=(9, 0), textcoords="offset points", va="center", color=color)
    dots.set_yticks(range(len(scores)), scores.index[::-1])
    dots.set(title="Score on held-out molecules (lower is better)", xlabel="Poisson deviance per entry, up to a constant")
    dots.margins(x=0.2, y=0.35)
    dots.grid(axis="y", color="0.9")
    dots.set_axisbelow(True)
    dots.spines[["top", "right"]].set_visible(False)
    pl.training(adata, ax=curves, show=False)
    figure.savefig(path, format="png")


def _impute(name: str, in_file: str, out_file: str, **options: Any) -> None:
    from . import tl
    from ._save import replace_file

    target = _output(out_file)
    save = options.get("save")
    if save is not None and os.path.realpath(save) in (os.path.realpath(in_file), str(target)):
        raise ValueError(f"--save {save!r} is the input or the output; give the model a file of its own")
    genes = options.get("genes")
    if isinstance(genes, str) and genes.startswith("["):
        # A list in which the parser has seen numbers, and not names.
        options["genes"] = [gene.strip(" '\"") for gene in genes.strip("[] ").split(",")]
    adata = _read(in_file)
    getattr(tl, name)(adata, **options)
    replace_file(target, adata.write_h5ad)
    _report(adata, options["key_added"], out_file)


def _apply(in_file: str, model: str, out_file: str, **options: Any) -> None:
    from . import tl
    from ._save import load_metadata, replace_file
    from .tl._apply import default_key

    target = _output(out_file)
    if os.path.realpath(model) in (os.path.realpath(in_file), str(target)):
        raise ValueError(f"MODEL: {model!r} is the input or the output; give the file that was written with --save")
    method = str(load_metadata(model).get("method"))
    adata = _read(in_file)
    tl.apply(adata, model, **options)
    replace_file(target, adata.write_h5ad)
    _report(adata, options["key_added"] or default_key(method), out_file)


def _judge(in_file: str, **options: Any) -> None:
    from . import metrics
    from .metrics._replay import find

    adata = _read(in_file)
    if options["key"] is None:
        found = find(adata)
        if len(found) != 1:
            raise ValueError(f"{in_file!r} holds {len(found)} imputations of counts, {_check.listing(found)}; name one with --key")
        options["key"] = found[0]
    numbers = metrics.report(adata, **options)
    _say(numbers["verdict"], *(f"- {reason}" for reason in numbers["reasons"]["reason"]), f"Wrote {options['save']}")


def _report(adata: AnnData, key: str, out_file: str) -> None:
    slot = "obsm" if key in adata.obsm else "layers"
    shape = " x ".join(map(str, getattr(adata, slot)[key].shape))
    spread = ", its standard deviation" if _keys.sd(key) in getattr(adata, slot) else ""
    _say(f"Wrote {slot}[{key!r}] ({shape}){spread} and uns[{key!r}] to {out_file}")


def _read(path: str) -> AnnData:
    import anndata
    import h5py

    if not os.path.exists(path):
        raise FileNotFoundError(f"IN: {path!r} does not exist")
    if not os.path.isfile(path) or not h5py.is_hdf5(path):
        raise ValueError(f"IN: {path!r} is not an h5ad file")
    try:
        return anndata.read_h5ad(path)
    except Exception as error:
        raise ValueError(f"IN: {path!r} cannot be read as h5ad: {error}") from error


def _output(path: str | Path) -> Path:
    """Where to write, links followed; whether it can be written is found out before any work is done."""
    found = Path(os.path.realpath(_check.writable_file("OUT", path)))
    if found.exists() and not found.is_file():
        raise ValueError(f"OUT: {str(path)!r} is not a regular file")
    if not os.access(found.parent, os.W_OK):
        raise PermissionError(f"OUT: no permission to write in {str(found.parent)!r}")
    return found


class _Parser(ArgumentParser):
    """Takes ``--batch-key`` as well as ``--batch_key``, help from a docstring, and raises where argparse exits."""

    def __init__(self, *args: Any, function: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        self._help: dict[str, str] = {}
        if function is not None:
            docs = docstring_parser.parse(inspect.getdoc(function) or "")
            kwargs["description"] = docs.short_description
            # numpydoc lets parameters share a paragraph: "n_context, width".
            for entry in docs.params:
                text = re.sub(r"``|\*\*|:[\w:]+:(?=`)", "", entry.description or "").replace("%", "%%")
                self._help |= dict.fromkeys(entry.arg_name.split(", "), text)
        super().__init__(*args, exit_on_error=False, **kwargs)
        self.add_argument("--debug", action="store_true", help="Show the traceback of an error.")

    def add_argument(self, *names: str, **kwargs: Any) -> Any:
        name = names[0].lstrip("-")
        if name in self._help:
            kwargs["help"] = self._help[name]
        dashed = [other.replace("_", "-") for other in names if other.startswith("--") and "_" in other]
        return super().add_argument(*dict.fromkeys([*dashed, *names]), **kwargs)

    def add_function(self, function: Callable[..., Any], skip: Collection[str] = ()) -> None:
        self.add_function_arguments(function, as_group=False, skip={*skip, "random_state"})
        # A Generator, which the functions take as well, has no spelling on a command line.
        seed = inspect.signature(function).parameters.get("random_state")
        if seed is not None:
            self.add_argument("--random_state", type=int | None, default=seed.default)


def _parser() -> ArgumentParser:
    from . import metrics, tl

    parser = _Parser(prog="scimpute", version=__version__, description="Impute single-cell, spatial or bulk expression in an h5ad file.")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    run = _Parser(function=demo)
    run.add_function(demo)
    commands.add_subcommand("demo", run, help="try it on real data that come with scanpy")
    for name in _IMPUTERS:
        commands.add_subcommand(name, _parser_of(getattr(tl, name)), help=f"impute with scimpute.tl.{name}")
    commands.add_subcommand("apply", _parser_of(tl.apply, ("model", "MODEL")), help="impute other cells with a model that --save wrote")
    judge = _Parser(function=metrics.report, epilog="Without --key the file must hold one imputation of counts.")
    judge.add_argument("in_file", metavar="FILE.h5ad", help="File with counts and their imputation; it is not changed.")
    judge.add_argument("--key", type=str | None, help="Name of the imputation; needed where the file holds several.")
    judge.add_function(metrics.report, skip={"adata", "key"})
    judge.set_defaults(progress=_in_terminal())
    commands.add_subcommand("report", judge, help="judge an imputation of your data on one HTML page")
    return parser


def _parser_of(function: Callable[..., Any], *between: tuple[str, str]) -> _Parser:
    """IN, parameters that come between (name, metavar), OUT, and every other parameter as an option."""
    parser = _Parser(function=function, epilog="A list is written '[CD3D, NKG7]', None is written null.")
    parser.add_argument("in_file", metavar="IN.h5ad", help="File with counts (pmi, gain: log expression; spatial, nmf: positions too).")
    for name, metavar in between:
        parser.add_argument(name, metavar=metavar)
    parser.add_argument("out_file", metavar="OUT.h5ad", help="File to write; it may be IN, and is replaced only by a whole new one.")
    parser.add_function(function, skip={"adata", "copy", *(name for name, _ in between)})
    parser.set_defaults(progress=_in_terminal())
    return parser


def _in_terminal() -> bool:
    """Whether to show progress: a minute without a sign of life is long."""
    return sys.stderr is not None and sys.stderr.isatty()


def _one_line(error: object) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    # What jsonargparse says of a bad value is a list of all that it is not.
    bad = re.search(r'Parser key "(?:\w+\.)?(\w+)".*?(?:Given|Got) value: (.*)', text, re.DOTALL)
    if bad:
        text = f"argument --{bad[1].replace('_', '-')}: invalid value {bad[2]!r}, see --help"
    text = re.sub(r"\b\w+\.(in|out)_file\b", lambda found: f"{found[1].upper()}.h5ad", text)
    text = re.sub(r"\bapply\.model\b", "MODEL", text)
    return " ".join(text.split()) or type(error).__name__


def _say(*lines: str) -> None:
    """Print, quietly where the reader of our output has gone away (``| head``): the work is done by then."""
    try:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    except BrokenPipeError:
        # Nor may the flush at exit complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
