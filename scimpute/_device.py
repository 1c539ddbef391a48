"""The device of the networks, the number of threads, and the state of torch during a run."""

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
Output = TypeVar("Output")


def resolve(device: str) -> torch.device:
    """``"auto"`` (a CUDA device if there is one, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device == "auto":
        return torch.device(devices[1] if len(devices) > 1 else "cpu")
    name = "cuda:0" if device == "cuda" else device
    if name not in devices:
        raise ValueError(f"device {device!r} not available; found: {', '.join(devices)}")
    return torch.device(name)


def _one_thread() -> None:
    # A new Python thread takes the number of the process at its first operation. Reading the number first prevents this.
    torch.get_num_threads()
    torch.set_num_threads(1)


class _Threads:
    """One thread for each operation of torch and BLAS during all runs. The last run restores the user's numbers.

    Threads inside an operation (OpenMP) wait for each other by spinning. If other processes use the cores, a run of many small operations
    then takes ten to fifty times as long, and the waiting uses the processor. The number of threads also decides the order of summation. A
    library that changes the number, such as numba, would change the last digits of the result. Therefore each operation has one thread.
    Independent parts of a run work side by side (see :func:`side_by_side`), which changes no digit.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs, self.before = 0, 1
        self.thread = threading.local()
        self.blas: threadpool_limits | None = None

    def begin(self) -> None:
        with self.lock:
            depth = getattr(self.thread, "depth", 0)
            number = torch.get_num_threads()
            # Calls that can fail come before the run is counted.
            _one_thread()
            if not self.runs:
                self.before = number
                self.blas = threadpool_limits(1, user_api="blas")
            if not depth:
                # A new thread may read the 1 that a run in another thread has set for the process.
                self.thread.before = self.before if self.runs and number == 1 else number
            self.runs += 1
            self.thread.depth = depth + 1

    def end(self) -> None:
        with self.lock:
            self.runs -= 1
            self.thread.depth -= 1
            if not self.runs and self.blas is not None:
                self.blas.restore_original_limits()
            # Each Python thread has its own number. Restore this thread's number after its last run. This comes last, because BLAS may
            # share the threads of torch.
            if not self.thread.depth:
                torch.set_num_threads(self.thread.before)


_threads = _Threads()


def _after_fork() -> None:
    # In the parent, another thread may have held the lock or may have been in a run. The child does not have this thread.
    global _threads
    if _threads.runs and _threads.blas is not None:
        _threads.blas.restore_original_limits()
    _threads = _Threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _default_device_is_cpu() -> bool:
    try:
        return torch.get_default_device() == torch.device("cpu")
    except (AssertionError, RuntimeError):  # torch asks the device for its number, and this machine may not have the device
        return False


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Turn gradients on and autocast off, use one thread per operation, and unset the default device; restore the caller's state.

    The default dtype is of the whole process, and other threads of the user may need it. So it stays, and every part of the package names
    the dtype of a new tensor. If the device runs out of memory, one clear error says so.
    """
    threads = _threads
    threads.begin()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in {"cpu", device.type}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            if not _default_device_is_cpu():
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
def keep_threads() -> Iterator[None]:
    """Restore torch's number of threads after calls of scanpy. Parallel numba functions change it, because they share OpenMP with torch."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def workers(device: torch.device) -> int:
    """Number of parts of a run that work at the same time: on a CPU the number of usable cores, otherwise 1."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, min(cores, int(limit) if limit.isdecimal() else cores))


class Stopped(Exception):
    """Another part of the run has failed, or the user has interrupted it."""


def side_by_side(function: Callable[[Item, Callable[[], None]], Output], items: Iterable[Item], device: torch.device) -> list[Output]:
    """Call ``function(item, alive)`` for every item, in threads. Results are in the order of the items.

    The number of threads does not change the results. ``alive()`` raises :class:`Stopped` if another item has failed or the user has
    interrupted the run; a long function calls it now and then. After all threads have ended, the first error is raised.
    """
    items = list(items)
    n = min(workers(device), len(items))
    stop = threading.Event()

    def alive() -> None:
        if stop.is_set():
            raise Stopped

    if n <= 1:
        return [function(item, alive) for item in items]

    def work(item: Item) -> Output:
        alive()
        _one_thread()
        return function(item, alive)

    futures: list[Future[Output]] = []
    with ThreadPoolExecutor(n, thread_name_prefix="scimpute") as pool:
        try:
            futures += [pool.submit(work, item) for item in items]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # After an error or an interruption the other results are not needed. After the last result the event has no effect.
            stop.set()
    errors = [error for future in futures if (error := future.exception()) is not None and not isinstance(error, Stopped)]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]
