"""The memory that is available to this process, and the memory that a run on counts needs.

This module uses the operating system and the sizes of arrays. It uses no other part of the package.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

MIB = 2**20


def available() -> float:
    """Bytes that this process can still allocate; infinite if the system does not report them.

    This is the minimum over the free memory of the system and the rest under each limit. Limits are those of the control group and its
    parents (containers, Slurm) and of the process (``ulimit -v`` and ``-d``).
    """
    return max(0.0, min(_of_system(), _of_groups(), _of_process()))


def _of_system() -> float:
    try:
        meminfo = _table(Path("/proc/meminfo"))
        if "MemAvailable" in meminfo:
            return meminfo["MemAvailable"] * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return math.inf


def _of_process(process: Path = Path("/proc/self")) -> float:
    """Bytes under ``ulimit`` that are still free; infinite if the system does not report the memory in use."""
    try:
        import resource

        status = _table(process / "status")
        free = math.inf
        for limit, usage in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            maximum, _ = resource.getrlimit(limit)
            if maximum != resource.RLIM_INFINITY:
                free = min(free, maximum - status[usage] * 1024)
        return free
    except (ImportError, OSError, ValueError, KeyError, AttributeError):
        return math.inf


def _of_groups(process: Path = Path("/proc/self")) -> float:
    """Free bytes in the control groups of the process, of version 1 or 2."""
    free = math.inf
    try:
        mounts = (process / "mountinfo").read_text().splitlines()
        for group in (process / "cgroup").read_text().splitlines():
            _, controllers, path = group.split(":", 2)
            # Version 2 has one tree for all resources. Version 1 has a tree for the memory, perhaps together with other resources.
            if controllers and "memory" not in controllers.split(","):
                continue
            for mount in mounts:
                for folder in _folders(mount, path, "memory" if controllers else ""):
                    free = min(free, _of_group(folder))
    except (OSError, ValueError):
        pass
    return free


def _folders(mount: str, path: str, controller: str) -> Iterator[Path]:
    """Folders of the group at ``path`` and of its parents, if they are visible under ``mount`` (a line of mountinfo)."""
    before, _, after = mount.partition(" - ")
    root, point = before.split()[3:5]
    kind, _, options = after.split()[:3]
    if kind != ("cgroup" if controller else "cgroup2") or (controller and controller not in options.split(",")):
        return
    # In a container the group may be mounted as the root, while its path is still the path outside of the container.
    inside = Path(path).parts[1:]
    within = Path(root).parts[1:]
    inside = inside[len(within) :] if inside[: len(within)] == within else ()
    top = Path(point.replace("\\040", " "))
    for depth in range(len(inside), -1, -1):
        if ".." not in inside[:depth]:
            yield top.joinpath(*inside[:depth])


def _of_group(folder: Path) -> float:
    """Free bytes in one group. Cached pages of files count as free, because the system drops them when it needs memory."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", ("inactive_file", "active_file")),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    ):
        try:
            maximum = (folder / limit).read_text().strip()
            if maximum == "max":
                return math.inf
            used, pages = int((folder / usage).read_text()), _table(folder / "memory.stat")
            return int(maximum) - max(0, used - sum(pages.get(name, 0) for name in cached))
        except (OSError, ValueError):
            continue
    return math.inf


def _table(file: Path) -> dict[str, int]:
    """The names and numbers in a file of the kernel. Each line has one name and one number."""
    numbers = {}
    for line in file.read_text().splitlines():
        name, *rest = line.replace(":", " ").split() or [""]
        if rest and rest[0].isdecimal():
            numbers[name] = int(rest[0])
    return numbers


LOADED = 150 * MIB
"""Bytes that the first run loads: modules that are imported late, and code of torch."""
MARGIN = 1.1
ENTRIES = 4_000_000
"""Entries of a chunk that becomes dense (see `_sparse.chunks`)."""


def of_counts(
    n: int,
    k: int,
    n_counts: int,
    *,
    arrays: int,
    half: bool,
    workers: int,
    training: int | None = None,
    batch_size: int = 0,
    width: int = 0,
    copied: int = 0,
) -> float:
    """Bytes that the imputation of ``k`` genes in ``n`` cells needs beside the counts.

    tests/test_memory.py measures the true need: this estimate is never below the need, and at most half above the need.

    Parameters
    ----------
    n_counts
        Number of non-zero counts.
    arrays
        Number of dense float32 arrays ``(n, k)`` in memory at the same time.
    half
        Whether a float16 result is made beside the first of the arrays.
    workers, training
        Number of parts that work side by side, and number of repeats to train; None without training.
    batch_size, width
        Cells in a minibatch, and width of the hidden layers.
    copied
        Bytes of the object if it is copied, otherwise 0.
    """
    predicting = 5 * 4 * workers * min(ENTRIES, n * k)
    # For each gene: the activations of a minibatch in both networks, and the weights with the state of the optimiser.
    learning = 0 if training is None else min(workers, training) * k * (28 * 4 * min(batch_size, n) + 64 * width)
    # The split stores the counts a second time, as a training and a held-out part. It draws them in wider types.
    split = 20 * n_counts
    return MARGIN * (LOADED + max(predicting, learning) + split + (4 * arrays + 2 * half) * n * k + copied)
