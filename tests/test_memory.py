"""What a process may still take, and that a run takes what it was said to take."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scimpute
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


# What a run takes


MEASURE = """
import json
import sys
import numpy as np
import anndata as ad
import scipy.sparse as sp
import scimpute

options = json.loads(sys.argv[1])
n, g = options.pop("shape")
rng = np.random.default_rng(0)
counts = sp.random(n, g, 0.05, "csr", np.float32, rng, data_rvs=lambda size: rng.integers(1, 4, size).astype(np.float32))
adata = ad.AnnData(counts.toarray() if options.pop("dense", False) else counts)
adata.obs["batch"] = [f"b{i % 2}" for i in range(n)]
del counts

def kilobytes(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

told, check = [], scimpute._check.memory
scimpute._check.memory = lambda needed, hint: (told.append(needed), check(needed, hint))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = kilobytes("VmRSS")
scimpute.tl.began(adata, max_epochs=1, n_repeats=2, n_context=2, penalty=1.0, progress=False, adversarial_weight=0.1, **options)
print(max(told), 1024 * (kilobytes("VmHWM") - before))
"""


@linux
@pytest.mark.parametrize(
    "options",
    [
        {"shape": [1000, 500]},
        {"shape": [4000, 4000]},
        {"shape": [4000, 4000], "sd": False},
        {"shape": [4000, 4000], "dtype": "float16", "dense": True, "copy": True},
        {"shape": [4000, 2000], "batch_key": "batch", "target_batch": "average"},
    ],
    ids=str,
)
def test_a_run_takes_what_it_was_said_to_take(options):
    """Of a process of its own, as the highest that it ever took is asked for."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the highest need of a process cannot be reset here")
    done = subprocess.run([sys.executable, "-c", MEASURE, json.dumps(options)], capture_output=True, text=True, check=True)
    told, taken = map(float, done.stdout.split())
    assert taken <= told <= 1.5 * taken, f"{taken / 2**20:.0f} MiB taken, {told / 2**20:.0f} said"


def estimate(adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch, **options: object) -> float:
    """What the run is said to take beside modules that are loaded."""
    told: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr("scimpute._memory.LOADED", 0)
        patch.setattr("scimpute._check.memory", lambda needed, hint: told.append(needed))
        scimpute.tl.began(adata.copy(), **QUICK | options)
    return told[0]


@pytest.mark.filterwarnings("ignore:adata is a view")
def test_what_counts(monkeypatch):
    adata = scimpute.datasets.toy_counts()
    adata.layers["more"] = np.ones(adata.shape)
    layer, whole = 4 * adata.n_obs * adata.n_vars, estimate(adata, monkeypatch)
    more = {
        "sd": ({"sd": False}, -layer),
        "half": ({"dtype": "float16"}, layer / 2),
        "target": ({"batch_key": "batch", "target_batch": "average"}, layer),
        "no posterior": ({"batch_key": "batch", "target_batch": "average", "posterior": False}, 0),
    }
    for name, (options, expected) in more.items():
        assert estimate(adata, monkeypatch, **options) - whole == pytest.approx(1.1 * expected), name
    # A copy of the object has its other layer, too.
    copied = estimate(adata, monkeypatch, copy=True) - whole
    assert copied >= 1.1 * (2 * layer + adata.X.data.nbytes)
    view = ad.AnnData(adata.X, obs=adata.obs, layers={"more": adata.layers["more"]})[:50]
    told: list[float] = []
    monkeypatch.setattr("scimpute._memory.LOADED", 0)
    monkeypatch.setattr("scimpute._check.memory", lambda needed, hint: told.append(needed))
    for given in (view, view.copy()):
        scimpute.tl.began(given, **QUICK)
    assert told[0] > told[1] + 8 * 50 * adata.n_vars


@pytest.mark.parametrize("method", ["began", "spatial", "nmf"])
@pytest.mark.parametrize(
    ("options", "ways"), [({}, "pass sd=False, or impute"), ({"sd": False, "copy": True}, "pass copy=False, or impute")]
)
def test_the_message_says_what_would_help(refused, monkeypatch, method, options, ways):
    adata = scimpute.datasets.toy_visium(5, 5, 30)
    monkeypatch.setattr("scimpute._check._available_memory", lambda: 2**20)
    refused(adata, lambda adata: getattr(scimpute.tl, method)(adata, **options), MemoryError, f"available; {ways} fewer genes with genes=")


@pytest.mark.parametrize("method", ["pmi", "gain"])
@pytest.mark.filterwarnings("ignore:adata is a view")
def test_a_copy_of_bulk_data_counts_as_well(refused, monkeypatch, method):
    adata = scimpute.datasets.toy_bulk(30, 20)
    adata.X[::3, 5] = np.nan
    adata.layers["more"] = np.zeros(adata.shape)
    needed = 8 * 4 * adata.n_obs * adata.n_vars
    monkeypatch.setattr("scimpute._check._available_memory", lambda: needed)
    options = {"n_models": 1, "n_hidden": 8, "max_epochs": 1}
    getattr(scimpute.tl, method)(adata, **options)
    for other, more, ways in ((adata, {"copy": True}, "pass copy=False, or impute"), (adata[:], {}, "available; impute")):
        refused(other, lambda a, more=more: getattr(scimpute.tl, method)(a, key_added="other", **more), MemoryError, f"{ways} fewer genes")
