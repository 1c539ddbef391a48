"""What the docs say was measured is what the CSV files have, and a peer's posterior step is the arithmetic it claims to be."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scimpute

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
if not BENCHMARKS.is_dir():  # the source archive has the tests without them
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other as they do when run; their names are not left for other tests to find."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_tables_of_the_docs_are_those_of_the_csv_files(page: str) -> None:
    import tables

    text = (ROOT / page).read_text()
    names = [found[2] for found in tables.MARKED.finditer(text)]
    assert names
    assert set(names) <= set(tables.TABLES)
    assert tables.filled(text) == text, "run python benchmarks/tables.py"


def test_a_number_changed_by_hand_is_written_over() -> None:
    import tables

    text = (ROOT / "README.md").read_text()
    assert tables.filled(text.replace("**0.", "**0.9", 1)) == text


def test_numbers_below_one_have_their_zero() -> None:
    import tables

    tables_of_readme = "".join(found[3] for found in tables.MARKED.finditer((ROOT / "README.md").read_text()))
    for text in (tables_of_readme, (ROOT / "docs" / "benchmarks.md").read_text()):
        assert re.findall(r"(?<![\w.])-?\.\d.*", text) == []


def test_readme_has_ours_without_the_posterior_step_beside_peers_that_have_none() -> None:
    import results
    import tables

    frame = results.read("accuracy")
    plain = frame[(frame["method"] == "began") & ~frame["posterior"]].groupby("data")["poisson"].median()
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {tables.PLAIN} |"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [f"{plain[data]:.4f}" for data in results.DATA]


def test_no_script_imports_one_that_imports_it() -> None:
    """Imports inside functions too; ``static_order`` raises CycleError and names the circle."""
    scripts = {path.stem: path for path in BENCHMARKS.glob("*.py")}
    imports: dict[str, set[str]] = {name: set() for name in scripts}
    for name, path in scripts.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                imports[name].add(str(node.module))
            elif isinstance(node, ast.Import):
                imports[name] |= {alias.name for alias in node.names}
        imports[name] &= set(scripts)
    assert set(TopologicalSorter(imports).static_order()) == set(scripts)


@pytest.fixture
def cells() -> ad.AnnData:
    """Two kinds of cells, 120 x 60."""
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.7, size=(2, 60))
    rates = profiles[np.arange(120) % 2]
    return ad.AnnData(sp.csr_matrix(rng.poisson(150 * rates / rates.sum(1, keepdims=True)).astype(np.float32)))


def test_alra_keeps_counts_preserves_zeros_and_matches_the_moments_of_non_zeros(cells: ad.AnnData) -> None:
    import peers

    found = peers.alra(cells, k=2)
    counts = cells.X.toarray()
    assert found.shape == counts.shape
    assert (found >= 0).all()
    assert (found[counts > 0] > 0).all()
    # A gene that half of the cells lack stays lacking there.
    rare = counts.copy()
    rare[::2, :5] = 0
    again = peers.alra(ad.AnnData(sp.csr_matrix(rare)), k=2)
    assert (again[::2, :5] == 0).mean() > 0.9
    logged = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    of_found = np.log1p(1e4 * found / counts.sum(1, keepdims=True))
    gene = int(counts.sum(0).argmax())
    assert of_found[of_found[:, gene] > 0, gene].mean() == pytest.approx(logged[logged[:, gene] > 0, gene].mean(), rel=0.05)


def test_posterior_step_of_a_peer_lowers_the_heldout_deviance_and_a_zero_is_no_trap(cells: ad.AnnData) -> None:
    import tuning

    scimpute.pp.thin(cells)
    work = ad.AnnData(cells.layers["thin_train"])
    fitted = tuning.fit(work, "knn", {"k": 3, "n_pcs": 2}, 0, with_posterior=True, limits={})
    cells.layers["plain"], cells.layers["step"] = fitted.plain, fitted.posterior
    scores = scimpute.metrics.heldout(cells, ["plain", "step"])["poisson"]
    assert scores["step"] < scores["plain"]
    floor, prior = tuning.choose(*_halves(work), np.zeros(work.shape, dtype=np.float32))
    found = tuning.apply(work.X, np.zeros(work.shape, dtype=np.float32), floor, prior)
    seen = work.X.toarray() > 0
    assert (found[seen] > 0).all()
    assert np.isfinite(found).all()


def _halves(work: ad.AnnData) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    import tuning

    inner, test = tuning.inner_split(work, 0)
    assert (inner.X + test != work.X).nnz == 0
    return inner.X, test


def test_tuning_takes_the_grid_point_that_predicts_the_inner_split_best(cells: ad.AnnData) -> None:
    import peers
    import tuning

    inner, test = tuning.inner_split(cells, 0)
    setting, prediction = tuning.tuned(inner, test, "knn", 0, {})
    scores = [tuning.deviance(inner, test, tuning.predict(inner, "knn", point, 0)) for point in peers.GRIDS["knn"]]
    assert setting == peers.GRIDS["knn"][int(np.argmin(scores))]
    assert tuning.deviance(inner, test, prediction) == pytest.approx(min(scores))


def test_rows_that_are_there_are_not_run_again_until_their_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rows

    monkeypatch.setattr(rows, "ROOT", tmp_path)
    monkeypatch.setattr(rows, "code", lambda method: "1")
    script = tmp_path / "script.py"
    script.write_text("import json, sys\ntask = json.loads(sys.argv[2])\nprint(json.dumps([{'score': task['seed'] / 3}]))\n")
    tasks = [{"data": "a", "method": "knn", "options": {"k": 3}, "seed": seed} for seed in range(3)]

    def run(*options: str) -> int:
        seen: list[str] = []
        monkeypatch.setattr(rows, "_run", lambda script, task, *, alone: seen.append(task) or real(script, task, alone=alone))
        rows.run(str(script), "table", tasks, rows.arguments("", ["table"]).parse_args(["table", *options]))
        return len(seen)

    real = rows._run
    assert run("--seeds", "1") == 1
    assert run() == 2
    assert run("--jobs", "2") == 0
    assert run("--again", "--methods", "svd") == 0
    assert run("--again", "--defaults") == 3
    written = (tmp_path / "docs" / "benchmarks" / "table.csv").read_text().splitlines()
    assert len(written) == 4
    assert written[-1].endswith("0.666667")
    monkeypatch.setattr(rows, "code", lambda method: "2")
    assert run("--again", "--jobs", "2") == 3
    script.write_text("raise SystemExit('no peer')")
    assert run("--again") == 3
    assert run("--seeds", "1") == 1, "a row that failed is run again"


def test_rows_of_further_seeds_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    import pandas as pd
    import rows

    monkeypatch.setattr(rows, "ROOT", tmp_path)
    monkeypatch.setattr(rows, "code", lambda method: "code")
    monkeypatch.setattr(rows, "_run", lambda script, task, *, alone: [{"score": float(task["seed"])}])

    def run(seeds: int, names: tuple[str, ...], **changes: object) -> pd.DataFrame:
        args = {"data": None, "methods": None, "seeds": seeds, "defaults": False, "again": False, "jobs": 1} | changes
        tasks = [{"data": "d", "method": method, "options": {}, "seed": seed} for method in names for seed in range(seeds)]
        return rows.run("script", "table", tasks, argparse.Namespace(**args))

    assert len(run(5, ("knn", "svd", "old"))) == 15
    again = run(3, ("knn", "svd"), methods=["knn"], again=True)
    assert again.groupby("method").size().to_dict() == {"knn": 5, "svd": 5}


@pytest.fixture
def checkouts(tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of the code that makes rows, without results."""
    for name in ("earlier", "here"):
        for folder in ("benchmarks", "scimpute"):
            shutil.copytree(ROOT / folder, tmp_path / name / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "earlier", tmp_path / "here"


def test_fingerprint_is_that_of_the_code_that_makes_a_row(checkouts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import rows

    here = checkouts[1]
    monkeypatch.setattr(rows, "ROOT", here)

    def changed(*changes: tuple[str, str]) -> set[str]:
        """Methods whose fingerprint is another one with a line more at the end of files."""
        before = {method: rows.code(method) for method in ("began", "knn")}
        for path, line in changes:
            with (here / path).open("a") as file:
                file.write(f"\n{line}\n")
        return {method for method, fingerprint in before.items() if rows.code(method) != fingerprint}

    assert changed(("scimpute/models/began.py", "CHANGED = 1")) == {"began"}, "imported by what tl.began imports"
    assert changed(("scimpute/models/posterior.py", "CHANGED = 1")) == {"began", "knn"}
    of_none = [
        ("scimpute/pl/_clusters.py", "CHANGED = 1"),
        ("scimpute/_version.py", "CHANGED = 1"),
        ("scimpute/tl/_began.py", "# a comment"),
    ]
    assert changed(*of_none) == set()


def test_rows_of_earlier_code_are_renewed_and_no_others(checkouts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import rows

    earlier, here = checkouts
    with (here / "scimpute" / "tl" / "_began.py").open("a") as file:
        file.write("\nMOVED = 1\n")
    codes = {}
    for checkout in (earlier, here):
        monkeypatch.setattr(rows, "ROOT", checkout)
        codes[checkout] = {method: rows.code(method) for method in ("began", "knn")}
    old, new = codes[earlier], codes[here]
    assert new["began"] != old["began"]
    assert new["knn"] == old["knn"]
    results = here / "docs" / "benchmarks"
    results.mkdir(parents=True)
    written = f"""data,method,options,code,setting,score
a,began,,{old["began"]},"n_context=15, width=64",0.100
a,began,posterior=False,000000000000,,
a,began,seed=1,,,1e-07
a,knn,,{old["knn"]},,0.300
"""
    (results / "table.csv").write_text(written)
    (results / "without_fingerprints.csv").write_text("method,score\nbegan,0.10\n")
    monkeypatch.setattr(sys, "argv", ["rows.py", "renew", str(earlier)])
    rows.main()
    assert (results / "table.csv").read_text() == written.replace(old["began"], new["began"])
    assert (results / "without_fingerprints.csv").read_text() == "method,score\nbegan,0.10\n"
