"""Where the networks run, with how many threads, and under what state of torch."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Found = TypeVar("Found")


def resolve(device: str) -> torch.device:
    """``"auto"`` (a CUDA device if there is one, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device == "auto":
        return torch.device(found[1] if len(found) > 1 else "cpu")
    name = "cuda:0" if device == "cuda" else device
    if name not in found:
        raise ValueError(f"device {device!r} not available; found: {', '.join(found)}")
    return torch.device(name)


def _one_thread() -> None:
    # A thread of Python that never asked would take the number of the process at its first operation, whatever was set before.
    torch.get_num_threads()
    torch.set_num_threads(1)


class _Threads:
    """One thread for each operation of torch and BLAS while any run goes on; what the user had is restored at its end.

    Threads inside an operation (OpenMP) wait for each other by spinning. Where other processes use the cores, a run of many small
    operations then takes ten to fifty times as long and burns the processor while it waits. And the number of threads decides
    the order of summation: a library that changes it (numba does) would change the last digits of the result. So operations have
    one thread, and independent parts of a run are worked on side by side (see :func:`side_by_side`), which changes no digit.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs, self.before = 0, 1
        self.here = threading.local()
        self.blas: threadpool_limits | None = None

    def begin(self) -> None:
        with self.lock:
            depth = getattr(self.here, "depth", 0)
            found = torch.get_num_threads()
            # What can fail comes before the run is counted.
            _one_thread()
            if not self.runs:
                self.before = found
                self.blas = threadpool_limits(1, user_api="blas")
            if not depth:
                # A new thread finds the 1 that a run elsewhere has set for the process.
                self.here.before = self.before if self.runs and found == 1 else found
            self.runs += 1
            self.here.depth = depth + 1

    def end(self) -> None:
        with self.lock:
            self.runs -= 1
            self.here.depth -= 1
            if not self.runs and self.blas is not None:
                self.blas.restore_original_limits()
            # The number belongs to a thread of Python: this one gets back what it had, once none of its runs goes on. This comes last:
            # a BLAS may have the same threads.
            if not self.here.depth:
                torch.set_num_threads(self.here.before)


_threads = _Threads()


def _after_fork() -> None:
    # In the parent another thread may have held the lock, or have been in a run: neither exists in the child.
    global _threads
    if _threads.runs and _threads.blas is not None:
        _threads.blas.restore_original_limits()
    _threads = _Threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off, one thread an operation, no default device, whatever the caller has set; all restored.

    A device out of memory becomes one clear error.
    """
    threads = _threads
    threads.begin()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(device.type, enabled=False))
            if torch.get_default_device() != torch.device("cpu"):
                stack.enter_context(torch.device("cpu"))
            yield
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise RuntimeError(
            "the device ran out of memory; try a smaller batch_size or block_size, or device='cpu'. Nothing was written."
        ) from error
    finally:
        threads.end()


@contextlib.contextmanager
def kept_threads() -> Iterator[None]:
    """Around calls of scanpy: numba's parallel functions give their number of threads to the OpenMP that torch uses too."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def workers(device: torch.device) -> int:
    """Parts of a run that are worked on at the same time: as many as there are cores to use, on a CPU."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, min(cores, int(asked) if asked.isdecimal() else cores))


class Stopped(Exception):
    """Another part of the run has failed, or the user has interrupted it."""


def side_by_side(function: Callable[[Item, Callable[[], None]], Found], items: Iterable[Item], device: torch.device) -> list[Found]:
    """``function(item, alive)`` of every item, in threads; results are in the order of the items and do not depend on their number.

    ``alive()`` raises :class:`Stopped` once there is no use in going on; a function that takes long calls it now and then. The first
    error is raised, after all threads have ended.
    """
    items = list(items)
    n = min(workers(device), len(items))
    stop = threading.Event()

    def alive() -> None:
        if stop.is_set():
            raise Stopped

    if n <= 1:
        return [function(item, alive) for item in items]

    def work(item: Item) -> Found:
        alive()
        _one_thread()
        return function(item, alive)

    futures: list[Future[Found]] = []
    with ThreadPoolExecutor(n, thread_name_prefix="scimpute") as pool:
        try:
            futures += [pool.submit(work, item) for item in items]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # After an error or an interruption nothing of this is needed; after the last result nobody asks.
            stop.set()
    failed = [error for future in futures if (error := future.exception()) is not None and not isinstance(error, Stopped)]
    if failed:
        raise failed[0]
    return [future.result() for future in futures]
