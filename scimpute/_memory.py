"""How much memory this process may still take, and how much a run on counts will.

Knows the operating system and the sizes of arrays, nothing else of the package.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

MIB = 2**20


def available() -> float:
    """Bytes that this process may still take; infinite where that cannot be read.

    The least of what the system has and of what is left under each limit: that of the control group (containers, Slurm) and
    of those it is in, and those of the process (``ulimit -v`` and ``-d``).
    """
    return max(0.0, min(_of_system(), _of_groups(), _of_process()))


def _of_system() -> float:
    try:
        found = _table(Path("/proc/meminfo"))
        if "MemAvailable" in found:
            return found["MemAvailable"] * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return math.inf


def _of_process(process: Path = Path("/proc/self")) -> float:
    """What is left under ``ulimit``; of a system that does not say how much is taken, nothing is known."""
    try:
        import resource

        taken = _table(process / "status")
        left = math.inf
        for limit, what in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            most, _ = resource.getrlimit(limit)
            if most != resource.RLIM_INFINITY:
                left = min(left, most - taken[what] * 1024)
        return left
    except (ImportError, OSError, ValueError, KeyError, AttributeError):
        return math.inf


def _of_groups(process: Path = Path("/proc/self")) -> float:
    """What is left in the control groups of the process, of version 1 or 2."""
    left = math.inf
    try:
        mounts = (process / "mountinfo").read_text().splitlines()
        for group in (process / "cgroup").read_text().splitlines():
            _, controllers, path = group.split(":", 2)
            # In version 2 there is one tree for everything; in version 1 one for the memory, maybe with others.
            if controllers and "memory" not in controllers.split(","):
                continue
            for mount in mounts:
                for folder in _folders(mount, path, "memory" if controllers else ""):
                    left = min(left, _of_group(folder))
    except (OSError, ValueError):
        pass
    return left


def _folders(mount: str, path: str, controller: str) -> Iterator[Path]:
    """The group at ``path`` and those it is in, as far as they can be seen where ``mount`` (a line of mountinfo) mounts them."""
    before, _, after = mount.partition(" - ")
    root, point = before.split()[3:5]
    kind, _, options = after.split()[:3]
    if kind != ("cgroup" if controller else "cgroup2") or (controller and controller not in options.split(",")):
        return
    # In a container the group may be mounted as the root, and its path still be that outside.
    inside = Path(path).parts[1:]
    within = Path(root).parts[1:]
    inside = inside[len(within) :] if inside[: len(within)] == within else ()
    top = Path(point.replace("\\040", " "))
    for depth in range(len(inside), -1, -1):
        if ".." not in inside[:depth]:
            yield top.joinpath(*inside[:depth])


def _of_group(folder: Path) -> float:
    """What is left in one group: pages of files are given up when memory is needed."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", ("inactive_file", "active_file")),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    ):
        try:
            most = (folder / limit).read_text().strip()
            if most == "max":
                return math.inf
            taken, pages = int((folder / usage).read_text()), _table(folder / "memory.stat")
            return int(most) - max(0, taken - sum(pages.get(name, 0) for name in cached))
        except (OSError, ValueError):
            continue
    return math.inf


def _table(file: Path) -> dict[str, int]:
    """Numbers by name of a file of the kernel, a name and a number a line."""
    found = {}
    for line in file.read_text().splitlines():
        name, *rest = line.replace(":", " ").split() or [""]
        if rest and rest[0].isdecimal():
            found[name] = int(rest[0])
    return found


LOADED = 150 * MIB
"""Of a first run: modules that are read only then, code of torch."""
MARGIN = 1.1
ENTRIES = 4_000_000
"""Of a part that is made dense at once (see `_counts.chunks`)."""


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
    """Bytes that imputing ``k`` genes of ``n`` cells takes beside the counts, of which ``n_counts`` are not zero.

    Measured (tests/test_memory.py): the need is at most this, and this at most half more.

    Parameters
    ----------
    arrays
        Dense float32 arrays ``(n, k)`` that are held at a time.
    half
        Whether the result becomes float16, beside the first of them.
    workers, training
        Parts of the work that are done side by side, and repeats that are trained side by side; None without training.
    batch_size, width
        Of the training: cells of a minibatch and width of the hidden layers.
    copied
        Bytes of the object, where it is copied.
    """
    predicting = 5 * 4 * workers * min(ENTRIES, n * k)
    # For each gene: what a minibatch becomes on its way through both networks, and their weights with what the optimiser keeps of them.
    learning = 0 if training is None else min(workers, training) * k * (28 * 4 * min(batch_size, n) + 64 * width)
    # The counts are held once more as a training and a held-out part, which are drawn in wider types.
    split = 20 * n_counts
    return MARGIN * (LOADED + max(predicting, learning) + split + (4 * arrays + 2 * half) * n * k + copied)
