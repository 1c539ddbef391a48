"""Threads and other state of torch while a run goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import scimpute
from scimpute import _device

CPU = torch.device("cpu")
QUICK = {"max_epochs": 2, "n_repeats": 3, "n_context": 5, "width": 16, "penalty": 100.0, "block_size": 16, "copy": True}


@pytest.fixture
def two(monkeypatch):
    """Two workers, whatever the machine has."""
    monkeypatch.setattr(_device, "workers", lambda device: 2)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_one_thread_in_a_run_and_the_users_after_it(three_threads):
    with _device.session(CPU):
        assert torch.get_num_threads() == 1
        with _device.session(CPU):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_threads_are_restored_after_a_failure(three_threads):
    with pytest.raises(ZeroDivisionError), _device.session(CPU):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_threads_of_another_python_thread_are_left(three_threads):
    """Two runs at the same time: each gives back what it found."""
    found, inside, go_on = [], threading.Event(), threading.Event()

    def run():
        torch.set_num_threads(3)
        with _device.session(CPU):
            inside.set()
            go_on.wait(30)
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=run)
    with _device.session(CPU):
        thread.start()
        assert inside.wait(30)
    assert torch.get_num_threads() == 3
    go_on.set()
    thread.join(30)
    assert found == [1, 3]


def test_each_python_thread_gets_back_its_own_number(three_threads):
    found, inside, go_on = [], threading.Event(), threading.Event()

    def run(number):
        if number:
            torch.set_num_threads(number)
        with _device.session(CPU):
            inside.set()
            go_on.wait(30)
        found.append(torch.get_num_threads())

    for number, expected in ((2, 2), (None, 3)):
        inside.clear()
        go_on.clear()
        thread = threading.Thread(target=run, args=(number,))
        with _device.session(CPU):
            thread.start()
            assert inside.wait(30)
        go_on.set()
        thread.join(30)
        assert found.pop() == expected
        assert torch.get_num_threads() == 3


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_forked_in_a_run_has_the_threads_of_before():
    def threads_of_blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def in_child(queue):
        queue.put(threads_of_blas())

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with threadpool_limits(2, user_api="blas"):
        expected = threads_of_blas()
        with _device.session(CPU):
            child = context.Process(target=in_child, args=(queue,))
            child.start()
            found = queue.get(timeout=30)
            child.join(30)
            assert set(threads_of_blas()) == {1}
    assert found == expected


def test_results_do_not_depend_on_the_number_of_workers(monkeypatch):
    adata = scimpute.datasets.toy_counts()
    found = []
    for workers in (1, 2, 5):
        monkeypatch.setattr(_device, "workers", lambda device, n=workers: n)
        found.append(scimpute.tl.began(adata, **QUICK).layers)
    for other in found[1:]:
        for name in ("began", "began_sd"):
            np.testing.assert_array_equal(other[name], found[0][name])


def test_side_by_side_keeps_the_order(two):
    def work(item, alive):
        time.sleep(0.01 * (5 - item))
        assert torch.get_num_threads() == 1
        return item * item

    assert _device.side_by_side(work, range(5), CPU) == [0, 1, 4, 9, 16]


def test_the_first_error_stops_the_others(two):
    done = []

    def work(item, alive):
        if item == 1:
            raise KeyError("one")
        for _ in range(3000):
            time.sleep(0.01)
            alive()
        done.append(item)

    with pytest.raises(KeyError, match="one"):
        _device.side_by_side(work, range(6), CPU)
    assert done == []


def test_an_interruption_ends_all_threads(two, monkeypatch):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    def work(item, alive):
        for _ in range(3000):
            time.sleep(0.01)
            alive()

    monkeypatch.setattr(_device, "wait", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        _device.side_by_side(work, range(6), CPU)
    assert threading.active_count() == before


@pytest.mark.parametrize(("asked", "expected"), [("1", 1), ("2,1", 2), ("1000", None), ("", None), ("many", None)])
def test_workers_are_cores_or_fewer_where_asked(monkeypatch, asked, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    cores = len(os.sched_getaffinity(0))
    assert _device.workers(CPU) == (cores if expected is None else min(cores, expected))
    assert _device.workers(torch.device("cuda:0")) == 1


RUN = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np, scanpy as sc, scimpute, torch
options = dict(max_epochs=3, n_repeats=2, n_context=5, width=16, penalty=100.0, block_size=16, copy=True)
adata = scimpute.datasets.toy_counts()
first = scimpute.tl.began(adata, **options).layers["began"]
start = time.process_time()
scimpute.tl.began(adata, **options)
seconds = time.process_time() - start
threads = torch.get_num_threads()
# A parallel function of numba, which sets the threads of the OpenMP that torch uses.
other = adata.copy()
sc.pp.normalize_total(other)
sc.pp.log1p(other)
again = scimpute.tl.began(adata, **options).layers["began"]
print(json.dumps({"seconds": seconds, "same": bool(np.array_equal(first, again)), "threads": threads}))
"""


def spin(stop) -> None:
    while not stop.is_set():
        sum(range(1000))


def test_a_busy_machine_costs_its_share():
    """Without the variables that the tests run under; processor seconds, which are those of the run alone."""
    environment = {name: value for name, value in os.environ.items() if "THREADS" not in name and "OMP" not in name}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    def run() -> dict:
        done = subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=300, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    alone = run()
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    neighbours = [context.Process(target=spin, args=(stop,), daemon=True) for _ in range(2 * len(os.sched_getaffinity(0)))]
    for neighbour in neighbours:
        neighbour.start()
    try:
        busy = run()
    finally:
        stop.set()
        for neighbour in neighbours:
            neighbour.join(30)
    assert alone["same"]
    assert busy["same"]
    assert busy["seconds"] < 5 * alone["seconds"] + 1
