"""The command line. The options of a command are the parameters of its function.

scanpy, torch and matplotlib take seconds to import. Only the commands that need them import them, so the help appears at once.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from .. import _check
from .._methods import METHODS
from . import commands, demo, parser
from .output import lines_for_phases, say, tell

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


_RUN: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    **{name: functools.partial(commands.impute, name) for name in METHODS},
    "apply": commands.apply,
    "report": commands.report,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 after success, 2 for bad usage or input, 130 after an interruption, 1 for any other failure."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # The help lists options with dashes; underscores work as well.
    argv = [re.sub("^--[^=]+", parser.dashed, word).replace("--print-config", parser.PRINT_CONFIG) for word in argv]
    unsaved = []

    def show_warning(message: object, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, _check.NotSavedWarning):
            unsaved.append(message)
        tell(f"scimpute: warning: {parser.one_line(message)}")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            # The result must be written even if the user turns warnings into errors.
            warnings.simplefilter("always", _check.NotSavedWarning)
            all_commands = parser.parser_for(argv)
            if not argv:
                say(all_commands.format_help().rstrip())
                return 0
            command = all_commands.parse_args(argv)
            options = {name: value for name, value in command[command.command].items() if name not in ("debug", "config")}
            with lines_for_phases(options.get("progress")):
                _RUN[command.command](**options)
        return 1 if unsaved else 0
    except SystemExit as end:  # --help and --version
        say()
        return int(end.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in argv:
            tell(traceback.format_exc().rstrip())
        if isinstance(error, KeyboardInterrupt):
            tell("scimpute: interrupted")
            return 130
        tell(f"scimpute: error: {parser.one_line(error, parser.command_of(argv))}")
        return 2 if isinstance(error, _BAD_INPUT) else 1
