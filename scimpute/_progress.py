"""The progress of a run: one bar for the whole run, or a line for each phase if no bar is drawn."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from scanpy import logging as logg
from scanpy import settings

from . import _check


def _log(line: str) -> None:
    logg.info(line)


say: Callable[[str], object] = _log
"""Prints the line of a phase if no bar is drawn. The command line replaces this function."""


def show_bar(progress: bool | None) -> bool:
    """Whether to draw a bar. None draws it in a terminal or a notebook, unless ``scanpy.settings.verbosity`` is 0."""
    if progress is not None:
        return _check.boolean("progress", progress)
    return settings.verbosity >= 1 and (_in_notebook() or _in_terminal())


def _in_notebook() -> bool:
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _in_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError, OSError):  # stderr does not exist or is closed
        return False


class _SafeStream:
    """A stream that ignores failures of writing, because the terminal may close during a run."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(Exception):
            self.stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(Exception):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@functools.cache
def _bar_class() -> Any:
    """A bar of tqdm with its own lock.

    Child processes share the lock of tqdm. If a child is killed while it draws, the lock is never released, and all other processes wait
    for ever.
    """
    # The import warns in a notebook without ipywidgets.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no monitor thread, which would not survive a fork

        @classmethod
        def renew(cls) -> None:
            cls.set_lock(threading.RLock())

    Bar.renew()
    if hasattr(os, "register_at_fork"):
        # In the parent, another thread may have held the lock. The child does not have this thread.
        os.register_at_fork(after_in_child=Bar.renew)
    return Bar


_outer: ContextVar[Progress | None] = ContextVar("outer", default=None)


class Progress:
    """The progress of a run in percent.

    A phase is a share of the whole run and has a number of steps. Several threads may report steps. If drawing the bar fails, the run goes
    on without a bar.

    Parameters
    ----------
    title
        Title of the run, such as ``"tl.began: 2,638 cells x 13,714 genes"``.
    show
        Draw a bar. Otherwise a line for each phase goes to scanpy's log (level info).
    """

    def __init__(self, title: str, *, show: bool) -> None:
        self.title, self.name, self.show = title, title.split(":")[0], show
        self.bar: Any = None
        self.outer: Progress | None = None
        self.lock = threading.Lock()
        self.done, self.end, self.percent_per_step = 0.0, 0.0, 0.0

    def __enter__(self) -> Progress:
        self.start = time.perf_counter()
        self.outer = _outer.get()
        if self.outer is not None:
            self.show = self.outer.show
        if not self.show:
            say(self.title)
        elif self.outer is None:
            self._draw(self._open)
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._to(100.0)
        seconds = time.perf_counter() - self.start
        if self.bar is not None:
            self._draw(lambda: self.bar.set_description(f"{self.name}: {'stopped' if error[0] else 'done'}"))
            self._draw(self.bar.close)
        elif error[0] is None and not (self.outer is not None and self.show):
            say(f"{self.name}: {seconds:.0f} s")

    @contextlib.contextmanager
    def one_step(self) -> Iterator[None]:
        """A step of the phase that is itself a run. The inner run moves this bar and draws no other."""
        token = _outer.set(self)
        try:
            yield
        finally:
            _outer.reset(token)

    def phase(self, name: str, share: float, steps: int = 1) -> None:
        """Begin a phase that is a share (0 to 1) of the run. The rest of the previous phase is skipped."""
        self._to(self.end)
        self.end, self.percent_per_step = self.end + 100 * share, 100 * share / max(1, steps)
        if self.bar is not None:
            self._draw(lambda: self.bar.set_description(f"{self.name}: {name}"))
        elif not self.show:
            say(f"{self.name}: {name}")

    def step(self, part: float = 1.0) -> None:
        """Report that a step of the phase, or a part of a step (0 to 1), is done."""
        with self.lock:
            self._to(min(self.done + part * self.percent_per_step, self.end))

    def _to(self, percent: float) -> None:
        increase, self.done = percent - self.done, percent
        if self.outer is not None and increase > 0:
            self.outer.step(increase / 100)
        if self.bar is not None and increase > 0:
            self._draw(lambda: self.bar.update(increase))

    def _open(self) -> None:
        bar = _bar_class()
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        stream = None if _in_notebook() else _SafeStream(sys.stderr)
        bar.write(self.title, file=stream or sys.stdout)
        self.bar = bar(total=100, desc=self.name, bar_format=form, file=stream, leave=True)

    def _draw(self, action: Any) -> None:
        try:
            action()
        except Exception:
            # An error of the progress bar must not stop the run.
            self.bar = None
