"""The bar of a run, and what happens where it cannot be drawn."""

from __future__ import annotations

import io
import multiprocessing
import sys
import threading
import time

import pytest
import scanpy as sc

import scimpute
from scimpute import _progress

QUICK = {"max_epochs": 2, "n_repeats": 2, "n_context": 5, "width": 16, "penalty": 100.0, "block_size": 16, "copy": True}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Broken(Terminal):
    """A terminal that has gone away."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.fixture
def verbosity():
    def set_to(level):
        sc.settings.verbosity = level

    before = sc.settings.verbosity
    yield set_to
    sc.settings.verbosity = before


@pytest.mark.parametrize("stream", [Broken, closed, lambda: None], ids=["broken pipe", "closed", "none"])
@pytest.mark.parametrize("progress", [True, False, None])
def test_a_bar_that_cannot_be_drawn_stops_nothing(monkeypatch, stream, progress):
    monkeypatch.setattr(sys, "stderr", stream())
    for _ in range(2):
        got = scimpute.tl.began(scimpute.datasets.toy_counts(), progress=progress, **QUICK)
    assert "began" in got.layers
    # Nor is a lock left taken.
    thread = threading.Thread(target=lambda: scimpute.tl.began(scimpute.datasets.toy_counts(), progress=True, **QUICK))
    thread.start()
    thread.join(120)
    assert not thread.is_alive()


def test_one_bar_from_0_to_100(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    scimpute.tl.began(scimpute.datasets.toy_counts(), progress=True, **QUICK)
    lines = stream.getvalue()
    assert "tl.began: 60 cells x 40 genes" in lines
    assert "100%" in lines
    assert "tl.began: done" in lines
    percents = [int(part.split("%")[0].split()[-1]) for part in lines.split("\r") if "%|" in part]
    assert percents == sorted(percents)


def test_a_run_that_fails_says_so(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)

    def fail():
        with _progress.Progress("tl.began: 3 cells", show=True) as bar:
            bar.phase("training", 0.5, 3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "tl.began: stopped" in stream.getvalue()


def test_shown_in_a_terminal_unless_scanpy_is_silent(monkeypatch, verbosity):
    for stream, level, expected in ((Terminal(), 1, True), (Terminal(), 0, False), (io.StringIO(), 1, False), (None, 1, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        verbosity(level)
        assert _progress.show_bar(None) is expected
        assert _progress.show_bar(True)
        assert not _progress.show_bar(False)


def test_lines_where_there_is_no_bar(verbosity):
    stream, before = io.StringIO(), sc.settings.logfile
    sc.settings.logfile = stream
    verbosity(2)
    with _progress.Progress("tl.began: 3 cells", show=False) as bar:
        bar.phase("training", 0.5, 3)
        bar.step()
        bar.phase("predicting", 0.5)
    sc.settings.logfile = before
    lines = stream.getvalue().splitlines()
    assert [line.strip() for line in lines[:3]] == ["tl.began: 3 cells", "tl.began: training", "tl.began: predicting"]
    assert lines[3].strip().endswith(" s")


def test_steps_of_several_threads_add_up():
    with _progress.Progress("x", show=False) as bar:
        bar.phase("work", 0.8, 400)
        threads = [threading.Thread(target=lambda: [bar.step() for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bar.done == pytest.approx(80)


class Slow(Terminal):
    """A terminal behind a slow line; ``drawing`` is set once something is on its way."""

    def __init__(self, drawing, seconds):
        super().__init__()
        self.drawing, self.seconds = drawing, seconds

    def write(self, text):
        self.drawing.set()
        time.sleep(self.seconds)
        return len(text)


def draw():
    with _progress.Progress("a run: of a test", show=True) as progress:
        progress.phase("a", 1.0, 1)
        progress.step()


FORK = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
FORKED = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")


@FORK
@FORKED
def test_a_child_that_is_killed_while_it_draws_holds_nobody(monkeypatch):
    context = multiprocessing.get_context("fork")
    drawing = context.Event()
    monkeypatch.setattr(sys, "stderr", Slow(threading.Event(), 0))
    draw()  # what is made once is there before the fork

    def in_child():
        sys.stderr = Slow(drawing, 60)
        draw()

    child = context.Process(target=in_child)
    child.start()
    assert drawing.wait(30)
    child.kill()
    child.join(30)
    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


@FORK
@FORKED
def test_a_child_forked_while_a_bar_is_drawn_draws_its_own(monkeypatch):
    context = multiprocessing.get_context("fork")
    drawing = threading.Event()
    monkeypatch.setattr(sys, "stderr", Slow(drawing, 0.3))
    thread = threading.Thread(target=draw)
    thread.start()
    assert drawing.wait(30)

    def in_child():
        sys.stderr = Slow(threading.Event(), 0)
        draw()

    child = context.Process(target=in_child)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    child.kill()
    thread.join(60)
    assert not thread.is_alive()
