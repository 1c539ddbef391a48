"""Validators of arguments. Every message says what is wrong, what was found, what is allowed and what to do."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from . import _memory

GIB = 2**30
HIGHEST = 2**63 - 1
"""Whole numbers that h5ad and zarr can hold."""
_CLOSE = 0.74
"""Share of letters that are the same: one slip in four letters, two in eight."""
_PACKAGE = str(Path(__file__).parent) + os.sep


def listing(names: Iterable[Any], most: int = 10) -> str:
    """``['a', 'b', ...]``, cut to the first few."""
    items = [str(name) for name in names]
    more = f", ... ({len(items)} in all)" if len(items) > most else ""
    return "[" + ", ".join(repr(i) for i in items[:most]) + more + "]"


def closest(name: Any, existing: Iterable[Any]) -> str | None:
    """The existing name that ``name`` is likely to stand for, if any: a slip or two, another case, or a part of it."""
    plain: dict[str, str] = {}
    for other in map(str, existing):
        plain.setdefault(_plain(other), other)
    wanted = _plain(str(name))
    if wanted in plain:
        return plain[wanted]
    found = get_close_matches(wanted, plain, n=1, cutoff=_CLOSE)
    if found:
        return plain[found[0]]
    words = {other for other in plain.values() if len(wanted) > 2 and wanted in map(_plain, re.split(r"[_.\s-]+", other))}
    return min(words, key=len) if words else None


def _plain(name: str) -> str:
    return re.sub(r"[_.\s-]+", "", name).casefold()


def layers(layers: str | Sequence[str], baselines: Iterable[str]) -> list[str]:
    """The layers that a score asks for, each once, and none called as one of its baselines."""
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers must be the name of a layer or several, got {layers!r}")
    names = [layers] if isinstance(layers, str) else [name_of("layers", name, "a layer, or several") for name in layers]
    twice = [name for name, times in Counter([*baselines, *names]).items() if times > 1]
    if twice:
        raise ValueError(
            f"layers: {listing(twice)} would be more than one row of the result; name no layer more than once, and none as a baseline"
        )
    return names


def missing(what: str, name: str, existing: Collection[str]) -> KeyError:
    """A KeyError that names what exists and the closest of it."""
    close = closest(name, existing)
    hint = f"; did you mean {close!r}?" if close else ""
    return KeyError(f"{what} {name!r} not found; available: {listing(existing)}{hint}")


def number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> float:
    """A finite real number within bounds."""
    edges = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number in {edges}, got {value!r} of type {type(value).__name__}")
    try:
        value = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be in {edges}, got a whole number of more than 300 digits") from None
    below = value <= low if open_low else value < low
    above = value >= high if open_high else value > high
    if not math.isfinite(value) or below or above:
        raise ValueError(f"{name} must be in {edges}, got {value!r}")
    return value


def integer(name: str, value: Any, low: int = 1) -> int:
    """A whole number not below ``low``, of 64 bits as files have it; a float is refused even where it is whole."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        kind = ValueError if isinstance(value, float | np.floating) else TypeError
        raise kind(f"{name} must be a whole number of at least {low}, got {value!r} of type {type(value).__name__}")
    if value > HIGHEST:
        raise ValueError(f"{name} must be at most 2^63 - 1")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value if value >= -HIGHEST else 'less than -2^63'}")
    return int(value)


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def option(name: str, value: Any, allowed: Collection[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {listing(allowed)}, got {value!r}")
    return value


def auto(name: str, value: Any) -> bool:
    """Whether a setting is left to the data; any other string is refused."""
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"{name} must be a number or 'auto', got {value!r}")
    return isinstance(value, str)


class NotSavedWarning(UserWarning):
    """The result is in the object, and its model could not be saved."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the line of the user that called the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def tell(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning after the work is done. Where the user makes errors of warnings it goes to the log: the result is not lost for it."""
    try:
        warn(message, category)
    except Warning:
        from scanpy import logging as logg  # takes seconds to import, and the help of the command line needs this module

        with contextlib.suppress(Exception):
            logg.error(message)


def has_own_meaning(name: str) -> bool:
    """Whether h5ad or zarr files keep something of their own under a name."""
    return name in (".", "..", "_index") or name.startswith(".z")


def key_name(name: str, value: Any) -> str:
    """A key that can be written to h5ad and zarr and read again (a '/' makes a group that anndata does not read)."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {value!r} of type {type(value).__name__}")
    if not value or "/" in value:
        raise ValueError(f"{name} must be a non-empty string without '/', got {value!r}")
    if has_own_meaning(value):
        raise ValueError(f"{name}={value!r} has a meaning of its own in h5ad or zarr files; choose another name")
    storable(name, [value])
    return value


def storable(what: str, names: Iterable[Any]) -> None:
    """Refuse names with characters that no file can hold, before there is a result that would be lost with them."""
    names = list(map(str, names))
    try:
        whole = "".join(names)
        whole.encode()
    except UnicodeEncodeError:
        wrong = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
    else:
        if "\0" not in whole:
            return
        wrong = [name for name in names if "\0" in name]
    raise ValueError(f"{what}: {listing(wrong, 3)} cannot be written to a file (a NUL character, or half of one of two parts); rename it")


def name_of(argument: str, value: Any, what: str) -> str:
    """A single name, as of a layer or a column; a list of them, or a number, is refused."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be the name of {what}, got {value!r} of type {type(value).__name__}")
    return value


def memory(needed: float, hint: str) -> None:
    """Refuse before the work what would not fit at its end."""
    available = _available_memory()
    if needed > available:
        raise MemoryError(f"this needs about {needed / GIB:.1f} GiB of memory, {available / GIB:.1f} GiB are available; {hint}")


def _available_memory() -> float:
    return _memory.available()
