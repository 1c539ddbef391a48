"""The command line. The options of a command are the parameters of the function it calls."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import inspect
import os
import re
import stat
import sys
import traceback
import typing
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TextIO

import docstring_parser
import numpy as np
from jsonargparse import ActionConfigFile, ArgumentParser

from . import _check, _files
from ._anndata import keys
from ._methods import METHODS
from ._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    import pandas as pd
    from anndata import AnnData

# scanpy, torch and matplotlib take seconds to import: it is done by the commands that need them, and not for a help text.

_MARKERS = ("CD79A", "CD3D", "GNLY", "FCER1A")
"""B cells, T cells, NK cells, dendritic cells."""

_COMMANDS = {
    "demo": "try it on 700 blood cells that come with scanpy",
    **{name: f"impute {method.data}" for name, method in METHODS.items()},
    "apply": "impute other cells or samples with a model that --save wrote; data as in its training",
    "report": "judge an imputation of counts on one HTML page",
}
_READ = "h5ad, zarr, 10x h5, a 10x folder with matrix.mtx, or csv or tsv with a row for each cell"
_MATRIX = ("matrix.mtx", "matrix.mtx.gz")
_10X = ("matrix.mtx", "barcodes.tsv", "features.tsv", "genes.tsv")
_TABLES = (".csv", ".tsv", ".txt", ".tab")
_WAYS = {
    ".h5mu": "; write a modality as h5ad: mudata.read_h5mu(file)['rna'].write_h5ad(new_file)",
    ".loom": "; write it as h5ad: anndata.io.read_loom(file).write_h5ad(new_file)",
}
_PRINT_CONFIG = "--print_config"
_BAD_INPUT = (
    argparse.ArgumentError,
    ValueError,
    KeyError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when done, 2 for bad usage or input, 130 when interrupted, 1 for any other failure."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # Options are listed with dashes; those who write underscores are understood.
    argv = [re.sub("^--[^=]+", _dashed, word).replace("--print-config", _PRINT_CONFIG) for word in argv]
    unsaved = []

    def tell(message: object, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, _check.NotSavedWarning):
            unsaved.append(message)
        _tell(f"scimpute: warning: {_one_line(message)}")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = tell
            # Also where warnings are errors: the result is still to be written.
            warnings.simplefilter("always", _check.NotSavedWarning)
            parser = _parser(argv)
            if not argv:
                _say(parser.format_help().rstrip())
                return 0
            options = parser.parse_args(argv)
            commands: dict[str, Callable[..., None]] = {"demo": demo, "apply": _apply, "report": _judge}
            commands |= {name: functools.partial(_impute, name) for name in METHODS}
            given = {name: value for name, value in options[options.command].items() if name not in ("debug", "config")}
            with _lines_for_phases(given.get("progress")):
                commands[options.command](**given)
        return 1 if unsaved else 0
    except SystemExit as end:  # --help and --version
        _say()
        return int(end.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in argv:
            _tell(traceback.format_exc().rstrip())
        if isinstance(error, KeyboardInterrupt):
            _tell("scimpute: interrupted")
            return 130
        _tell(f"scimpute: error: {_one_line(error, _command(argv))}")
        return 2 if isinstance(error, _BAD_INPUT) else 1


@contextlib.contextmanager
def _lines_for_phases(progress: bool | None) -> Iterator[None]:
    """Where no bar is shown, a line on stderr for each phase of a run, unless ``progress`` is False."""
    if progress is False:
        yield
        return
    from . import _progress

    before, _progress.say = _progress.say, lambda line: _tell(f"scimpute: {line}")
    try:
        yield
    finally:
        _progress.say = before


@contextlib.contextmanager
def _as_private_as(path: str) -> Iterator[None]:
    """New files are open to nobody who may not read the input."""
    closed = 0
    for status in map(os.stat, _parts(path)):
        closed |= ~stat.S_IMODE(status.st_mode) & 0o066
        if hasattr(os, "getegid") and status.st_gid != os.getegid():
            # The group of a new file is another one: to it, what is closed to others is closed.
            closed |= (closed & 0o006) << 3
    before = os.umask(0o077)
    os.umask(before | closed)
    try:
        yield
    finally:
        os.umask(before)


def _parts(path: str) -> Iterator[str]:
    """The file, or the folder and what is read of it."""
    yield path
    if _is_10x(path):
        yield from (os.path.join(path, name) for name in os.listdir(path) if name.removesuffix(".gz").endswith(_10X))
    elif os.path.isdir(path):
        yield from (os.path.join(folder, name) for folder, folders, files in os.walk(path) for name in [*folders, *files])


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

    table, picture = (Path(out_dir, f"scimpute_demo.{kind}") for kind in ("h5ad", "png"))
    targets = _Output(table), _Output(picture, "png")
    adata = datasets.pbmc68k()
    pp.thin(adata, random_state=random_state)
    tl.began(adata, layer="thin_train", size_key="n_counts", key_added="began", random_state=random_state)
    scores = metrics.heldout(adata, ["began"])
    targets[1].write(lambda path: _draw(adata, scores, path))
    targets[0].write(adata.write_h5ad)
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

    save = options.get("save")
    if save is not None and os.path.realpath(save) in map(os.path.realpath, (in_file, out_file)):
        raise ValueError(f"--save {save!r} is the input or the output; give the model a file of its own")
    target = _Output(out_file)
    genes = options.get("genes")
    if isinstance(genes, str) and genes.startswith("["):
        # A list in which the parser has seen numbers, and not names.
        options["genes"] = [gene.strip(" '\"") for gene in genes.strip("[] ").split(",")]
    adata = _read(in_file)
    with _as_private_as(in_file):
        getattr(tl, name)(adata, **options)
        target.write(adata.write_h5ad)
    _report(adata, options["key_added"], out_file)


def _apply(in_file: str, model: str, out_file: str, **options: Any) -> None:
    from . import tl
    from ._save import load_metadata

    if os.path.realpath(model) in map(os.path.realpath, (in_file, out_file)):
        raise ValueError(f"MODEL: {model!r} is the input or the output; give the file that was written with --save")
    target = _Output(out_file)
    method = str(load_metadata(model).get("method"))
    adata = _read(in_file)
    tl.apply(adata, model, **options)
    with _as_private_as(in_file):
        target.write(adata.write_h5ad)
    _report(adata, options["key_added"] or METHODS[method].key, out_file)


def _judge(in_file: str, **options: Any) -> None:
    from . import metrics
    from .metrics._replay import find

    adata = _read(in_file)
    if options["key"] is None:
        found = find(adata)
        if len(found) != 1:
            raise ValueError(f"{in_file!r} holds {len(found)} imputations of counts, {_check.listing(found)}; name one with --key")
        options["key"] = found[0]
    with _as_private_as(in_file):
        numbers = metrics.report(adata, **options)
    _say(numbers["verdict"], *(f"- {reason}" for reason in numbers["reasons"]["reason"]), f"Wrote {options['save']}")


def _report(adata: AnnData, key: str, out_file: str) -> None:
    slot = "obsm" if key in adata.obsm else "layers"
    shape = " x ".join(map(str, getattr(adata, slot)[key].shape))
    spread = ", its standard deviation" if keys.sd(key) in getattr(adata, slot) else ""
    _say(f"Wrote {slot}[{key!r}] ({shape}){spread} and uns[{key!r}] to {out_file}")


def _read(path: str) -> AnnData:
    if not os.path.exists(path):
        raise FileNotFoundError(f"IN: {path!r} does not exist")
    try:
        reader = _reader(path)
        adata = None if reader is None else reader(path)
    except Exception as error:
        if isinstance(error, IndexError) and path.removesuffix(".gz").endswith(_TABLES):
            raise ValueError(f"IN: {path!r} has no row of numbers under a row of names") from error
        kind = "h5ad" if path.endswith(".h5ad") else "what it seems to be"
        raise ValueError(f"IN: {path!r} cannot be read as {kind}: {error}") from error
    if adata is None:
        way = _WAYS.get(Path(path).suffix, "")
        raise ValueError(f"IN: {path!r} is not an h5ad file, and none of the others that are read ({_READ}){way}")
    return adata


def _reader(path: str) -> Callable[[str], AnnData] | None:
    """What reads a file or folder, by what is in it; None where nothing does."""
    import anndata
    import h5py
    import scanpy

    if os.path.isdir(path):
        found = os.listdir(path)
        if _is_10x(path):
            return _with_unique_names(scanpy.read_10x_mtx, prefix=_prefix(found))
        return anndata.io.read_zarr if {".zgroup", ".zattrs", "zarr.json"} & set(found) else None
    if not os.path.isfile(path):
        return None
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            # 10x has a group "matrix", or in earlier versions one for each genome.
            tenx = "X" not in file and "obs" not in file and any("barcodes" in group for group in file.values() if hasattr(group, "keys"))
            ours = {"obs", "var"} <= file.keys() and "mod" not in file
        return _with_unique_names(scanpy.read_10x_h5) if tenx else anndata.read_h5ad if ours else None
    name = path.removesuffix(".gz")
    if name.endswith(".csv"):
        return anndata.io.read_csv
    if name.endswith(_TABLES):
        return functools.partial(anndata.io.read_csv, delimiter="\t")
    return None


def _is_10x(path: str) -> bool:
    return os.path.isdir(path) and any(name.endswith(_MATRIX) for name in os.listdir(path))


def _prefix(names: list[str]) -> str | None:
    """What is put before the three names of a 10x folder, as GEO has it."""
    name = next(name for name in names if name.endswith(_MATRIX))
    return name.split("matrix.mtx")[0] or None


def _with_unique_names(read: Callable[..., AnnData], **options: Any) -> Callable[[str], AnnData]:
    """10x names some genes alike; ids are in ``var["gene_ids"]``."""

    def reader(path: str) -> AnnData:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Variable names are not unique")
            adata = read(path, **options)
        adata.var_names_make_unique()
        return adata

    return reader


class _Output:
    """Where a file is to be written, links followed; found out before any work is done. Replaced is only a file of the same kind."""

    def __init__(self, path: str | Path, kind: str = "h5ad") -> None:
        self.rule: dict[str, Any] = {
            "ours": functools.partial(_is_of, kind),
            "else_it": {"h5ad": "is not an h5ad file", "png": "is not a png file"}[kind],
        }
        self.path = _files.target("OUT", path, **self.rule)

    def write(self, write: Callable[[Path], object]) -> None:
        _files.replace_file(self.path, write, **self.rule)


def _is_of(kind: str, path: Path) -> bool:
    """Whether a file looks like one, or is empty."""
    with path.open("rb") as file:
        start = file.read(8)
    if kind == "png":
        return start in (b"", b"\x89PNG\r\n\x1a\n")
    import h5py

    return not start or bool(h5py.is_hdf5(path))


def _declared(module: str, name: str) -> Callable[..., Any]:
    """The signature and docstring of a function of ours, from its source: to import its module takes seconds."""
    tree = ast.parse(Path(__file__).parent.joinpath(module).read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    function.body, function.decorator_list = function.body[:1], []
    known: dict[str, Any] = {
        "__name__": __name__,
        "AnnData": Any,
        "Any": Any,
        "Literal": Literal,
        "Mapping": Mapping,
        "Sequence": Sequence,
        "np": np,
        "os": os,
    }
    code = compile(ast.Module([function], []), module, "exec", dont_inherit=True)
    exec(code, known)
    return typing.cast("Callable[..., Any]", known[name])


def _function(command: str) -> Callable[..., Any]:
    return _declared({"demo": "_cli.py", "report": "metrics/_report.py"}.get(command, f"tl/_{command}.py"), command)


class _Parser(ArgumentParser):
    """Options with dashes, help from a docstring, and raises where argparse exits."""

    def __init__(self, *args: Any, function: Callable[..., Any] | None = None, data: str = "", **kwargs: Any) -> None:
        self._help: dict[str, str] = {}
        if function is not None:
            docs = docstring_parser.parse(inspect.getdoc(function) or "")
            kwargs["description"] = " ".join(_plain(docs.short_description or "").split()) + data
            # numpydoc lets parameters share a paragraph, "n_context, width", which is said once.
            for entry in docs.params:
                first, *others = entry.arg_name.split(", ")
                self._help[first] = _plain(entry.description or "")
                self._help |= dict.fromkeys(others, f"See --{first.replace('_', '-')}.")
        super().__init__(*args, exit_on_error=False, **kwargs)
        self.add_argument("--debug", action="store_true", help="Show the traceback of an error.")

    def add_argument(self, *names: str, **kwargs: Any) -> Any:
        name = names[0].lstrip("-")
        if name in self._help:
            kwargs["help"] = self._help[name]
        return super().add_argument(*(re.sub("^--[^=]+", _dashed, other) for other in names), **kwargs)

    def add_function(self, function: Callable[..., Any], skip: Collection[str] = ()) -> None:
        self.add_argument("--config", action=ActionConfigFile, help="YAML file with options; those after it on the command line win.")
        self.add_function_arguments(function, as_group=False, skip={*skip, "random_state"})
        # A Generator, which the functions take as well, has no spelling on a command line.
        seed = inspect.signature(function).parameters.get("random_state")
        if seed is not None:
            self.add_argument("--random_state", type=int | None, default=seed.default)


def _dashed(option: re.Match[str]) -> str:
    # jsonargparse knows this one by its underscore.
    return option[0] if option[0] == _PRINT_CONFIG else "--" + option[0][2:].replace("_", "-")


def _plain(text: str) -> str:
    return re.sub(r"``|\*\*|:[\w:]+:(?=`)", "", text).replace("%", "%%")


def _parser(argv: Sequence[str]) -> _Parser:
    """All commands, with the options of the one that is asked for."""
    parser = _Parser(
        prog="scimpute",
        version=__version__,
        description="Impute single-cell, spatial or bulk expression in a file. Help on a command: scimpute COMMAND --help",
    )
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    asked = _command(argv)
    for name, text in _COMMANDS.items():
        commands.add_subcommand(name, _parser_of(name) if name == asked else _Parser(), help=text)
    return parser


def _command(argv: Sequence[str]) -> str | None:
    return next((word for word in argv if not word.startswith("-")), None)


def _parser_of(name: str) -> _Parser:
    """IN, for apply the model, OUT, and every other parameter of a function as an option."""
    if name == "demo":
        function = _function(name)
        parser = _Parser(function=function)
        parser.add_function(function)
        return parser
    epilog = "A list is written '[CD3D, NKG7]', None is written null."
    if name == "report":
        function = _function(name)
        parser = _Parser(function=function, epilog=f"{epilog} Without --key the file must hold one imputation of counts.")
        parser.add_argument("in_file", metavar="FILE.h5ad", help="File with counts and their imputation; it is not changed.")
        parser.add_argument("--key", type=str | None, help="Name of the imputation; needed where the file holds several.")
        parser.add_function(function, skip={"adata", "key"})
        return parser
    function = _function(name)
    data = METHODS[name].data if name in METHODS else "as in the training of the model"
    parser = _Parser(function=function, data=f" For data: {data}.", epilog=epilog)
    parser.add_argument("in_file", metavar="IN.h5ad", help=f"File to read: {_READ}.")
    if name == "apply":
        parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out_file", metavar="OUT.h5ad", help="File to write; it may be IN, and is replaced only by a whole new one.")
    parser.add_function(function, skip={"adata", "copy", *(["model"] if name == "apply" else [])})
    return parser


def _allowed(command: str | None, option: str) -> str:
    """What an option can be, in words."""
    if command not in _COMMANDS:
        return ""
    hint = typing.get_type_hints(_function(command)).get(option)
    parts = typing.get_args(hint) if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    words: list[str] = []
    for part in parts:
        if typing.get_origin(part) is Literal:
            words += [str(choice) for choice in typing.get_args(part)]
        else:
            name = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}.get(part)
            words += [name] if name else []
    return f", must be {', '.join(words[:-1])}{' or ' if words[1:] else ''}{words[-1]}" if words else ""


def _one_line(error: object, command: str | None = None) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    # What jsonargparse says of a bad value is a list of all that it is not.
    bad = re.search(r'Parser key "(?:\w+\.)?(\w+)".*?(?:Given|Got) value: (.*)', text, re.DOTALL)
    if bad:
        text = f"argument --{bad[1].replace('_', '-')}: invalid value {bad[2]!r}{_allowed(command, bad[1])}; see --help"
    text = re.sub(r'Parser key "(?:\w+\.)?(\w+)":', lambda found: f"argument --{found[1].replace('_', '-')}:", text)
    text = re.sub(r"\b\w+\.(in|out)_file\b", lambda found: f"{found[1].upper()}.h5ad", text)
    text = re.sub(r"\bapply\.model\b", "MODEL", text)
    return " ".join(text.split()) or type(error).__name__


def _tell(text: str) -> None:
    """A line on stderr; lost where nobody can read it, which is no reason to lose the run."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)
    except ValueError:  # closed
        pass


def _give_up(stream: TextIO) -> None:
    """Lose what is left of a stream that cannot be written: nor may the flush at exit complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(*lines: str) -> None:
    """Print, quietly where the reader of our output has gone away (``| head``): the work is done by then."""
    try:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    except BrokenPipeError:
        _give_up(sys.stdout)
    except (OSError, ValueError):  # a full disk; closed
        pass
