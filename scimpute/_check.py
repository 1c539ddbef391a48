"""Checks of arguments. Every error says what is wrong, which value was passed, which values are allowed, and what to do."""

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
"""The largest whole number that h5ad and zarr can hold."""
_MIN_SIMILARITY = 0.74
"""Smallest similarity of two names that are taken for the same: one wrong letter in four, or two in eight."""
_PACKAGE = str(Path(__file__).parent) + os.sep


def listing(names: Iterable[Any], most: int = 10) -> str:
    """The first ``most`` names as text: ``['a', 'b', ...]``."""
    items = [str(name) for name in names]
    more = f", ... ({len(items)} in all)" if len(items) > most else ""
    return "[" + ", ".join(repr(i) for i in items[:most]) + more + "]"


def closest(name: Any, existing: Iterable[Any]) -> str | None:
    """The existing name that ``name`` probably means; None if there is none.

    One or two letters may differ, the case may differ, or ``name`` may be a part of the existing name.
    """
    plain: dict[str, str] = {}
    for other in map(str, existing):
        plain.setdefault(_plain(other), other)
    plain_name = _plain(str(name))
    if plain_name in plain:
        return plain[plain_name]
    matches = get_close_matches(plain_name, plain, n=1, cutoff=_MIN_SIMILARITY)
    if matches:
        return plain[matches[0]]
    words = {other for other in plain.values() if len(plain_name) > 2 and plain_name in map(_plain, re.split(r"[_.\s-]+", other))}
    return min(words, key=len) if words else None


def _plain(name: str) -> str:
    return re.sub(r"[_.\s-]+", "", name).casefold()


def layers(layers: str | Sequence[str], baselines: Iterable[str]) -> list[str]:
    """The names of the layers to score. A name must not occur twice and must not be the name of a baseline."""
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
    """A KeyError that lists the existing names and suggests the closest one."""
    close = closest(name, existing)
    hint = f"; did you mean {close!r}?" if close else ""
    return KeyError(f"{what} {name!r} not found; available: {listing(existing)}{hint}")


def number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> float:
    """Check that the value is a finite real number within the bounds."""
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
    """Check that the value is a whole number of at least ``low`` that fits 64 bits, as files need. Floats are refused, even 3.0."""
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
    """Whether the value is ``"auto"``. Any other string is refused."""
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"{name} must be a number or 'auto', got {value!r}")
    return isinstance(value, str)


class NotSavedWarning(UserWarning):
    """The result is in the object, but its model could not be saved."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def tell(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn after the work is done. If the user turns warnings into errors, the message goes to the log, so that no result is lost."""
    try:
        warn(message, category)
    except Warning:
        # The import takes seconds, and the help of the command line needs this module.
        from scanpy import logging as logg

        with contextlib.suppress(Exception):
            logg.error(message)


def has_own_meaning(name: str) -> bool:
    """Whether h5ad or zarr files reserve this name."""
    return name in (".", "..", "_index") or name.startswith(".z")


def key_name(name: str, value: Any) -> str:
    """Check that h5ad and zarr can store this key and read it again. A '/' would make a group, which anndata does not read."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {value!r} of type {type(value).__name__}")
    if not value or "/" in value:
        raise ValueError(f"{name} must be a non-empty string without '/', got {value!r}")
    if has_own_meaning(value):
        raise ValueError(f"{name}={value!r} has a meaning of its own in h5ad or zarr files; choose another name")
    storable(name, [value])
    return value


def storable(what: str, names: Iterable[Any]) -> None:
    """Refuse names with characters that no file can hold. Call this before the work, so that no result is lost."""
    names = list(map(str, names))
    try:
        text = "".join(names)
        text.encode()
    except UnicodeEncodeError:
        wrong = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
    else:
        if "\0" not in text:
            return
        wrong = [name for name in names if "\0" in name]
    raise ValueError(f"{what}: {listing(wrong, 3)} cannot be written to a file (a NUL character or half of a surrogate pair); rename it")


def name_of(argument: str, value: Any, what: str) -> str:
    """Check that the value is one name, such as the name of a layer or a column. Lists and numbers are refused."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be the name of {what}, got {value!r} of type {type(value).__name__}")
    return value


def memory(needed: float, hint: str) -> None:
    """Raise MemoryError before the work starts if its result would not fit."""
    available = _available_memory()
    if needed > available:
        raise MemoryError(f"this needs about {needed / GIB:.1f} GiB of memory, {available / GIB:.1f} GiB are available; {hint}")


def _available_memory() -> float:
    return _memory.available()
