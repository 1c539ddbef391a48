"""The rows of a table: which methods there are, how one row is imputed, and how rows are run, each in a process of its own.

A CSV in docs/benchmarks grows with its rows. A row that is there is not run again, unless its code has changed or ``--again`` is given.
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
    """What the method of a task makes of the counts in X, and the settings it took; one or two of ``posterior``."""
    if task["method"] == "began":
        for step in task.get("posterior", [None]):
            options = task["options"] | ({} if step is None else {"posterior": step})
            found = began(work, random_state=task["seed"], **options)
            chosen = work.uns["began"]["params"]
            described = {name: chosen[name] for name in ("n_context", "width", "penalty", "max_epochs")}
            yield {"posterior": options.get("posterior", True), "setting": text(described)}, found
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

    It is another one in another version of Python: rows that are added to must be run by the version that began them.
    """
    package = ROOT / "scimpute"
    if method == "began":
        # The engine is private modules and models; what is beside it imputes nothing.
        paths = [*sorted(package.glob("_[a-z]*.py")), *sorted((package / "models").glob("*.py")), package / "tl" / "_began.py"]
        sources = [path.read_text() for path in paths if path.name not in ("_cli.py", "_version.py")]
    else:
        paths = [Path(__file__).with_name("tuning.py"), package / "models" / "posterior.py", package / "models" / "sizes.py"]
        sources = [path.read_text() for path in paths] + ([inspect.getsource(PEERS[method])] if method in PEERS else [])
        sources.append(repr(GRIDS.get(method)))
    return hashlib.sha256("\n".join(map(_bare, sources)).encode()).hexdigest()[:12]


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


def answer(one: Callable[[dict], list[dict]], asked: argparse.Namespace) -> None:
    """Run one row in this process and print it: how :func:`run` calls a script."""
    import warnings

    warnings.filterwarnings("ignore")
    print(json.dumps(one(json.loads(asked.task)), default=float))


def run(script: str, table: str, tasks: list[dict[str, Any]], asked: argparse.Namespace, *, timed: bool = False) -> pd.DataFrame:
    """Run the tasks that are asked for and not yet in the CSV, which grows with them."""
    path = ROOT / "docs" / "benchmarks" / f"{table}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    tasks = [{"tuned": False, **task, "table": table} for task in tasks]
    identities = {_identity(task): task for task in tasks}
    done: dict[tuple, list[dict]] = {}
    if path.exists():
        for row in pd.read_csv(path, keep_default_na=False, dtype=str).to_dict("records"):
            done.setdefault(tuple(row.get(key, "") for key in KEYS), []).append(row)
    # What is no row of this table any more goes; further seeds of what is stay.
    kinds = {_kind(identity) for identity in identities}
    done = {identity: rows for identity, rows in done.items() if _kind(identity) in kinds}

    def wanted(identity: tuple, task: dict[str, Any]) -> bool:
        chosen = {"data": asked.data, "method": asked.methods, "seed": range(asked.seeds)}
        if any(values and task[key] not in values for key, values in chosen.items()) or (asked.defaults and task["tuned"]):
            return False
        here = done.get(identity, [])
        fresh = here and all(row.get("code") == code(task["method"]) and row.get("failed", "") in ("", _stopped()) for row in here)
        return asked.again or not fresh

    todo = {identity: task for identity, task in identities.items() if wanted(identity, task)}
    print(f"{table}: {len(todo)} of {len(tasks)} rows to run", flush=True)
    with ThreadPoolExecutor(1 if timed else asked.jobs) as pool:
        pending = {pool.submit(_run, script, task, alone=timed or asked.jobs == 1): identity for identity, task in todo.items()}
        for future in as_completed(pending):
            identity = pending[future]
            told = dict(zip(KEYS, identity)) | {"code": code(identities[identity]["method"])}
            done[identity] = [told | row for row in future.result()]
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
        found = subprocess.run(
            [sys.executable, script, "one", json.dumps(task)], capture_output=True, text=True, timeout=LIMIT, env=os.environ | one_thread
        )
    except subprocess.TimeoutExpired:
        return [{"failed": _stopped()}]
    lines = [line for line in found.stdout.splitlines() if line.startswith("[{")]
    return json.loads(lines[-1]) if lines else [{"failed": (found.stderr.strip().splitlines() or [f"exit {found.returncode}"])[-1]}]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Numbers of new rows with six digits; those that were read back stay as they were written."""
    short = [{name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows]
    frame = pd.DataFrame(short)
    frame = frame[[name for name in frame if not frame[name].isin(["", None, np.nan]).all()]]
    partial = path.with_suffix(".partial")
    frame.to_csv(partial, index=False)
    partial.replace(path)
