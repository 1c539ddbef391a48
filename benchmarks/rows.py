"""The rows of a table: the methods, the imputation of one row, and the run of rows, each in a process of its own.

A CSV in docs/benchmarks grows with its rows. A row is run again only if its code has changed or with ``--again``.

    python benchmarks/rows.py renew EARLIER    after a change of code that changes no number: rows that were made by the code of the
                                               checkout EARLIER get the fingerprint of the code here; all other rows stay as they are
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from peers import GRIDS, PEERS

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SCIMPUTE_DATA", ROOT.parent / "shared" / "data"))
LABELS = {"batch_key": "batch", "celltype_key": "cell_type"}
# scVI takes 400 epochs at these sizes by default. On pbmc3k that is more than half an hour of two cores a fit; there it gets these.
CAPS = {"pbmc3k": {"max_epochs": 100}}
SEEDS = 3
LIMIT = 3 * 3600
"""Seconds after which a row is stopped."""
KEYS = ("data", "method", "options", "tuned", "seed", "n_obs", "n_vars")


def began(adata: ad.AnnData, labels: bool = True, **options: Any) -> np.ndarray:
    """tl.began with the labels that the object has."""
    import scimpute

    keys = {
        argument: column for argument, column in LABELS.items() if labels and column in adata.obs and len(adata.obs[column].unique()) > 1
    }
    scimpute.tl.began(adata, **keys, **options)
    return adata.layers["began"]


def every_method(data: str) -> list[dict[str, Any]]:
    """Tasks for all methods on a data set: at their defaults, and at the best of a grid; with and without the posterior step."""
    cap = CAPS.get(data, {})
    tasks = [{"method": "raw", "posterior": [False]}, {"method": "gene_mean"}]
    variants: dict[str, list[dict]] = {"magic": [{"norm": "sqrt"}, {"norm": "log"}, {"norm": "linear"}], "scvi": [cap]}
    for method in GRIDS:
        tasks += [{"method": method, "options": options} for options in variants.get(method, [{}])]
        tasks.append({"method": method, "tuned": True, "limits": cap if method == "scvi" else {}})
    tasks += [{"method": "began"}, {"method": "began", "options": {"fill": "expressed"}, "posterior": [True]}]
    return [{"options": {}, "tuned": False, "posterior": [False, True], **task, "data": data} for task in tasks]


def predictions(task: dict[str, Any], work: ad.AnnData) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Predictions of the method of a task from the counts in X, with its settings: one for each entry of ``posterior``."""
    if task["method"] == "began":
        for step in task.get("posterior", [None]):
            options = task["options"] | ({} if step is None else {"posterior": step})
            prediction = began(work, random_state=task["seed"], **options)
            chosen = work.uns["began"]["params"]
            described = {name: chosen[name] for name in ("n_context", "width", "penalty", "max_epochs")}
            yield {"posterior": options.get("posterior", True), "setting": text(described)}, prediction
        return
    from tuning import fit

    setting = None if task["tuned"] else task["options"]
    fitted = fit(work, task["method"], setting, task["seed"], with_posterior=True in task["posterior"], limits=task.get("limits", {}))
    yield {"posterior": False, "setting": text(fitted.setting)}, fitted.plain
    if fitted.posterior is not None:
        yield {"posterior": True, "setting": text(fitted.setting), "floor": fitted.floor}, fitted.posterior


def text(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def code(method: str) -> str:
    """Fingerprint of the code that makes a prediction, without comments and docstrings. Metrics and versions of peers are not in it.

    The code is ``tl.began``, or ``tuning.py`` and the peer, with every module of the package that these import, directly or through
    others. The fingerprint differs between versions of Python: add rows to a table with the version that made the first.
    """
    start = ROOT / "scimpute" / "tl" / "_began.py" if method == "began" else ROOT / "benchmarks" / "tuning.py"
    sources = [path.read_text() for path in sorted(_with_imports(start))]
    if method != "began":
        sources += [inspect.getsource(PEERS[method])] if method in PEERS else []
        sources.append(repr(GRIDS.get(method)))
    return hashlib.sha256("\n".join(map(_bare, sources)).encode()).hexdigest()[:12]


def _with_imports(start: Path) -> set[Path]:
    """A file and the modules of the package that it imports by ``from``, directly or through others, without ``_version.py``."""
    found, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path in found or path.name == "_version.py":
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                base = path.parents[node.level - 1] if node.level else ROOT
                module = base.joinpath(*node.module.split(".")) if node.module else base
                files = [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
                waiting += [file for file in files if file.is_file() and file.is_relative_to(ROOT / "scimpute")]
    return found


def _bare(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))]
    return ast.dump(tree)


def arguments(description: str, tables: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*tables, "one"])
    parser.add_argument("task", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="the first so many seeds only; the other rows stay")
    parser.add_argument("--data", nargs="+", help="these data sets only; the other rows stay")
    parser.add_argument("--methods", nargs="+", help="these methods only; the other rows stay")
    parser.add_argument("--defaults", action="store_true", help="methods at their defaults only; the other rows stay")
    parser.add_argument("--again", action="store_true", help="run rows anew that are there")
    parser.add_argument("--jobs", type=int, default=1, help="rows side by side, one thread each; not for rows that are timed")
    return parser


def answer(one: Callable[[dict], list[dict]], args: argparse.Namespace) -> None:
    """Run one row in this process and print it: how :func:`run` calls a script."""
    import warnings

    warnings.filterwarnings("ignore")
    print(json.dumps(one(json.loads(args.task)), default=float))


def run(script: str, table: str, tasks: list[dict[str, Any]], args: argparse.Namespace, *, timed: bool = False) -> pd.DataFrame:
    """Run the tasks that were requested and are not yet in the CSV, which grows with them."""
    path = ROOT / "docs" / "benchmarks" / f"{table}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    tasks = [{"tuned": False, **task, "table": table} for task in tasks]
    identities = {_identity(task): task for task in tasks}
    codes = {method: code(method) for method in {task["method"] for task in tasks}}
    done: dict[tuple, list[dict]] = {}
    if path.exists():
        for row in pd.read_csv(path, keep_default_na=False, dtype=str).to_dict("records"):
            done.setdefault(tuple(row.get(key, "") for key in KEYS), []).append(row)
    # Rows that this table no longer has are dropped; further seeds of a row stay.
    kinds = {_kind(identity) for identity in identities}
    done = {identity: rows for identity, rows in done.items() if _kind(identity) in kinds}

    def wanted(identity: tuple, task: dict[str, Any]) -> bool:
        chosen = {"data": args.data, "method": args.methods, "seed": range(args.seeds)}
        if any(values and task[key] not in values for key, values in chosen.items()) or (args.defaults and task["tuned"]):
            return False
        here = done.get(identity, [])
        fresh = here and all(row.get("code") == codes[task["method"]] and row.get("failed", "") in ("", _stopped()) for row in here)
        return args.again or not fresh

    todo = {identity: task for identity, task in identities.items() if wanted(identity, task)}
    print(f"{table}: {len(todo)} of {len(tasks)} rows to run", flush=True)
    with ThreadPoolExecutor(1 if timed else args.jobs) as pool:
        pending = {pool.submit(_run, script, task, alone=timed or args.jobs == 1): identity for identity, task in todo.items()}
        for future in as_completed(pending):
            identity = pending[future]
            head = dict(zip(KEYS, identity)) | {"code": codes[identities[identity]["method"]]}
            done[identity] = [head | row for row in future.result()]
            for row in done[identity]:
                print(json.dumps(row, default=float), flush=True)
            _write(path, [row for identity in dict.fromkeys([*identities, *done]) for row in done.get(identity, [])])
    return pd.read_csv(path, keep_default_na=False, na_values=[""]) if path.exists() else pd.DataFrame()


def _identity(task: dict[str, Any]) -> tuple[str, ...]:
    return tuple(text(task[key]) if key == "options" else str(task.get(key, "")) for key in KEYS)


def _kind(identity: tuple[str, ...]) -> tuple[str, ...]:
    """All of it but the seed."""
    return tuple(value for key, value in zip(KEYS, identity, strict=True) if key != "seed")


def _stopped() -> str:
    return f"stopped after {LIMIT} s"


def _run(script: str, task: dict[str, Any], *, alone: bool) -> list[dict[str, Any]]:
    one_thread = {} if alone else {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        process = subprocess.run(
            [sys.executable, script, "one", json.dumps(task)], capture_output=True, text=True, timeout=LIMIT, env=os.environ | one_thread
        )
    except subprocess.TimeoutExpired:
        return [{"failed": _stopped()}]
    lines = [line for line in process.stdout.splitlines() if line.startswith("[{")]
    return json.loads(lines[-1]) if lines else [{"failed": (process.stderr.strip().splitlines() or [f"exit {process.returncode}"])[-1]}]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Numbers of new rows with six digits; those that were read back stay as they were written."""
    short = [{name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows]
    frame = pd.DataFrame(short)
    frame = frame[[name for name in frame if not frame[name].isin(["", None, np.nan]).all()]]
    partial = path.with_suffix(".partial")
    frame.to_csv(partial, index=False)
    partial.replace(path)


def renew(earlier: Path) -> None:
    """Give rows that were made by the code of another checkout the fingerprint of the code here, which has to give the same numbers."""
    for path in sorted((ROOT / "docs" / "benchmarks").glob("*.csv")):
        frame = pd.read_csv(path, keep_default_na=False, dtype=str)
        if "code" not in frame:
            continue
        methods = frame["method"].unique().tolist()
        before, now = frame["method"].map(_codes(earlier, methods)), frame["method"].map({method: code(method) for method in methods})
        same = frame["code"] == before
        frame.loc[same, "code"] = now[same]
        frame.to_csv(path, index=False)
        print(f"{path.name}: {same.sum()} of {len(frame)} rows renewed", flush=True)


def _codes(checkout: Path, methods: list[str]) -> dict[str, str]:
    """Fingerprints of the code of a checkout, as its own rows.py takes them."""
    script = "import json, sys, rows; print(json.dumps({method: rows.code(method) for method in sys.argv[1:]}))"
    process = subprocess.run(
        [sys.executable, "-c", script, *methods], capture_output=True, text=True, check=True, cwd=checkout / "benchmarks"
    )
    return json.loads(process.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["renew"])
    parser.add_argument("earlier", type=Path, help="a checkout of the code that made the rows")
    renew(parser.parse_args().earlier)


if __name__ == "__main__":
    main()
