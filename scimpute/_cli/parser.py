"""Commands and their options, made from the signatures and docstrings of their functions."""

from __future__ import annotations

import ast
import inspect
import os
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal

import docstring_parser
import numpy as np
from jsonargparse import ActionConfigFile, ArgumentParser

from .._methods import METHODS
from .._version import __version__
from .read import READABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

COMMANDS = {
    "demo": "try it on 700 blood cells that come with scanpy",
    **{name: f"impute {method.data}" for name, method in METHODS.items()},
    "apply": "impute other cells or samples with a model that --save wrote; data as in its training",
    "report": "judge an imputation of counts on one HTML page",
}
PRINT_CONFIG = "--print_config"


def parser_for(argv: Sequence[str]) -> Parser:
    """A parser for all commands. Only the command in ``argv`` gets its options."""
    parser = Parser(
        prog="scimpute",
        version=__version__,
        description="Impute single-cell, spatial or bulk expression in a file. Help on a command: scimpute COMMAND --help",
    )
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    command = command_of(argv)
    for name, text in COMMANDS.items():
        commands.add_subcommand(name, _parser_of(name) if name == command else Parser(), help=text)
    return parser


def command_of(argv: Sequence[str]) -> str | None:
    """The first word that is not an option."""
    return next((word for word in argv if not word.startswith("-")), None)


def _parser_of(name: str) -> Parser:
    """The parser of a command: the files are arguments (IN, MODEL for apply, OUT), and all other parameters are options."""
    if name == "demo":
        function = function_of(name)
        parser = Parser(function=function)
        parser.add_function(function)
        return parser
    epilog = "A list is written '[CD3D, NKG7]', None is written null."
    if name == "report":
        function = function_of(name)
        parser = Parser(function=function, epilog=f"{epilog} Without --key the file must hold one imputation of counts.")
        parser.add_argument("in_file", metavar="FILE.h5ad", help="File with counts and their imputation; it is not changed.")
        parser.add_argument("--key", type=str | None, help="Name of the imputation; needed if the file holds several.")
        parser.add_function(function, skip={"adata", "key"})
        return parser
    function = function_of(name)
    data = METHODS[name].data if name in METHODS else "as in the training of the model"
    parser = Parser(function=function, data=f" For data: {data}.", epilog=epilog)
    parser.add_argument("in_file", metavar="IN.h5ad", help=f"File to read: {READABLE}.")
    if name == "apply":
        parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out_file", metavar="OUT.h5ad", help="File to write. It may be IN; only a whole new file replaces it.")
    parser.add_function(function, skip={"adata", "copy", *(["model"] if name == "apply" else [])})
    return parser


class Parser(ArgumentParser):
    """A parser with dashes in its options and help from a docstring. It raises errors instead of exiting."""

    def __init__(self, *args: Any, function: Callable[..., Any] | None = None, data: str = "", **kwargs: Any) -> None:
        self._help: dict[str, str] = {}
        if function is not None:
            docs = docstring_parser.parse(inspect.getdoc(function) or "")
            kwargs["description"] = " ".join(_plain(docs.short_description or "").split()) + data
            # In numpydoc, several parameters can share a paragraph ("n_context, width"). The help shows it once.
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
        return super().add_argument(*(re.sub("^--[^=]+", dashed, other) for other in names), **kwargs)

    def add_function(self, function: Callable[..., Any], skip: Collection[str] = ()) -> None:
        self.add_argument("--config", action=ActionConfigFile, help="YAML file with options; those after it on the command line win.")
        self.add_function_arguments(function, as_group=False, skip={*skip, "random_state"})
        # The functions also accept a Generator, which cannot be written on a command line.
        seed = inspect.signature(function).parameters.get("random_state")
        if seed is not None:
            self.add_argument("--random_state", type=int | None, default=seed.default)


def dashed(option: re.Match[str]) -> str:
    """An option with dashes instead of underscores."""
    # jsonargparse needs the underscore in this option.
    return option[0] if option[0] == PRINT_CONFIG else "--" + option[0][2:].replace("_", "-")


def _plain(text: str) -> str:
    return re.sub(r"``|\*\*|:[\w:]+:(?=`)", "", text).replace("%", "%%")


def _without_body(module: str, name: str) -> Callable[..., Any]:
    """A function of this package with its signature and docstring only. It is read from the source, because an import takes seconds."""
    tree = ast.parse(Path(__file__).parents[1].joinpath(module).read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    function.body, function.decorator_list = function.body[:1], []
    namespace: dict[str, Any] = {
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
    exec(code, namespace)
    return typing.cast("Callable[..., Any]", namespace[name])


def function_of(command: str) -> Callable[..., Any]:
    """The function that a command calls, without its body."""
    return _without_body({"demo": "_cli/demo.py", "report": "metrics/_report/__init__.py"}.get(command, f"tl/_{command}.py"), command)


def _allowed(command: str | None, option: str) -> str:
    """The values of an option, in words."""
    if command not in COMMANDS:
        return ""
    hint = typing.get_type_hints(function_of(command)).get(option)
    parts = typing.get_args(hint) if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    words: list[str] = []
    for part in parts:
        if typing.get_origin(part) is Literal:
            words += [str(choice) for choice in typing.get_args(part)]
        else:
            name = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}.get(part)
            words += [name] if name else []
    return f", must be {', '.join(words[:-1])}{' or ' if words[1:] else ''}{words[-1]}" if words else ""


def one_line(error: object, command: str | None = None) -> str:
    """The message of an error on one line, with options and files in the spelling of the command line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    # jsonargparse lists every type that does not fit. One short sentence replaces the list.
    invalid = re.search(r'Parser key "(?:\w+\.)?(\w+)".*?(?:Given|Got) value: (.*)', text, re.DOTALL)
    if invalid:
        text = f"argument --{invalid[1].replace('_', '-')}: invalid value {invalid[2]!r}{_allowed(command, invalid[1])}; see --help"
    text = re.sub(r'Parser key "(?:\w+\.)?(\w+)":', lambda match: f"argument --{match[1].replace('_', '-')}:", text)
    text = re.sub(r"\b\w+\.(in|out)_file\b", lambda match: f"{match[1].upper()}.h5ad", text)
    text = re.sub(r"\bapply\.model\b", "MODEL", text)
    return " ".join(text.split()) or type(error).__name__
