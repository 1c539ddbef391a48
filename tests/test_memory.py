"""What a process may still take, and that a run takes what it was said to take."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from scimpute import _check, _memory

GIB = 2**30
QUICK = {"max_epochs": 1, "n_repeats": 1, "n_context": 2, "penalty": 1.0, "width": 4, "progress": False}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are read from /proc")


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def process(folder: Path, groups: str, *mounts: str) -> Path:
    folder.mkdir()
    (folder / "cgroup").write_text(groups)
    (folder / "mountinfo").write_text("".join(f"{number} 1 0:2{number} {mount}\n" for number, mount in enumerate(mounts)))
    return folder


def test_a_container_of_version_2(tmp_path):
    """Its group is mounted as the root; pages of files are given up when memory is needed."""
    group(tmp_path / "fs", memory__max=8 * GIB, memory__current=5 * GIB, memory__stat=f"anon 1\ninactive_file {2 * GIB}\nactive_file {GIB}")
    found = process(tmp_path / "self", "0::/\n", f"/ {tmp_path}/fs rw,nosuid - cgroup2 cgroup rw")
    assert _memory._of_groups(found) == 6 * GIB


def test_the_limit_of_a_group_further_up(tmp_path):
    """As Slurm sets it: the step has none, the job it is in has one, and another step of it has taken a part."""
    top = tmp_path / "fs"
    group(top / "job_7", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat="inactive_file 0")
    group(top / "job_7" / "step_0", memory__max="max", memory__current=GIB, memory__stat="inactive_file 0")
    group(top / "job_8", memory__max=1, memory__current=1, memory__stat="")
    found = process(tmp_path / "self", "0::/job_7/step_0\n", f"/ {top} rw - cgroup2 cgroup2 rw")
    assert _memory._of_groups(found) == GIB


@pytest.mark.parametrize("root", ["/", "/docker/12ab"])
def test_a_container_of_version_1(tmp_path, root):
    """Mounted as a whole, or only the group of the container with the path still that outside."""
    top = tmp_path / "with space"
    stat = f"cache 5\ntotal_inactive_file {GIB}\ntotal_active_file 0"
    here = top / "docker" / "12ab" if root == "/" else top
    group(here, memory__limit_in_bytes=3 * GIB, memory__usage_in_bytes=2 * GIB, memory__stat=stat)
    group(top, **({"memory__limit_in_bytes": 2**63 - 4096, "memory__usage_in_bytes": 9, "memory__stat": ""} if root == "/" else {}))
    mounts = [
        f"/ {tmp_path}/cpu rw - cgroup cgroup rw,cpu",
        f"{root} {str(top).replace(' ', chr(92) + '040')} rw shared:9 - cgroup cgroup rw,memory",
        f"/ {tmp_path}/unified rw - cgroup2 cgroup2 rw",
    ]
    found = process(tmp_path / "self", "5:cpu:/\n4:memory:/docker/12ab\n0::/\n", *mounts)
    assert _memory._of_groups(found) == 2 * GIB


@pytest.mark.parametrize(
    ("groups", "mounts"),
    [
        ("0::/\n", ()),
        ("", ("/ /nowhere rw - cgroup2 cgroup2 rw",)),
        ("0::/../other\n", ("/ /nowhere rw - cgroup2 cgroup2 rw",)),
        ("what is this", ("/ /nowhere", "nor this")),
    ],
)
def test_what_cannot_be_read_is_no_limit(tmp_path, groups, mounts):
    assert _memory._of_groups(process(tmp_path / "self", groups, *mounts)) == math.inf
    assert _memory._of_groups(tmp_path / "nowhere") == math.inf
    assert _memory._of_process(tmp_path / "nowhere") == math.inf


def test_limits_that_are_no_numbers_are_no_limit(tmp_path):
    group(tmp_path / "fs", memory__max="many", memory__current="few", memory__stat="")
    found = process(tmp_path / "self", "0::/\n", f"/ {tmp_path}/fs rw - cgroup2 cgroup2 rw")
    assert _memory._of_groups(found) == math.inf


def test_without_any_limit_nothing_is_refused(monkeypatch):
    for reader in ("_of_system", "_of_groups", "_of_process"):
        monkeypatch.setattr(_memory, reader, lambda: math.inf)
    _check.memory(2**60, "")


@linux
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_the_limit_of_the_process(limit):
    """As ``ulimit -v`` or ``-d`` sets it; what is taken already is not there any more."""
    code = f"""
import resource
import numpy as np
from scimpute import _check
resource.setrlimit(resource.{limit}, (3 * 2**30, resource.RLIM_INFINITY))
before = _check._available_memory()
taken = np.ones(2**27, np.float32)
after = _check._available_memory()
print(before, after)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert 0 < after <= before < 3 * GIB
    assert before - after == pytest.approx(GIB / 2, rel=0.1) or before < GIB / 2
