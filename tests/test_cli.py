import gzip
import inspect
import os
import re
import subprocess
import sys
import warnings
from functools import wraps
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.io import mmwrite

import scimpute
from scimpute import __version__, _cli, datasets, pp, tl

QUICK = ["--n-repeats=1", "--max-epochs=2", "--n-context=5", "--width=16", "--penalty=200", "--device=cpu"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.h5ad"
    datasets.toy_counts().write_h5ad(path)
    return str(path)


@pytest.fixture
def fails(capsys):
    """Run what must fail: the exit code, and the one line that says why."""

    def run(*argv):
        code = _cli.main(list(argv))
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("scimpute: error: "), err
        return code, err

    return run


@pytest.fixture
def no_training(monkeypatch):
    """Whatever is wrong with the files must be found before the work."""

    @wraps(tl.began)
    def began(*args, **kwargs):
        raise AssertionError("the training was started")

    monkeypatch.setattr(tl, "began", began)


def test_began_writes_the_object_with_its_result(source, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    assert _cli.main(["began", source, str(out), "--batch-key", "batch", "--celltype_key=cell_type", "--output", "log1p", *QUICK]) == 0
    result, before = ad.read_h5ad(out), ad.read_h5ad(source)
    assert result.layers["began"].shape == result.shape
    assert result.uns["began"]["params"]["output"] == "log1p"
    assert result.uns["began"]["params"]["celltype_key"] == "cell_type"
    assert np.array_equal(result.X.toarray(), before.X.toarray())
    assert capsys.readouterr().out == f"Wrote layers['began'] (60 x 40), its standard deviation and uns['began'] to {out}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]


def test_what_is_stored(source, tmp_path, capsys):
    out, model = str(tmp_path / "out.h5ad"), str(tmp_path / "model.safetensors")
    assert _cli.main(["began", source, out, "--sd", "false", "--dtype", "float16", "--save", model, *QUICK]) == 0
    assert capsys.readouterr().out == f"Wrote layers['began'] (60 x 40) and uns['began'] to {out}\n"
    result = ad.read_h5ad(out)
    assert result.layers["began"].dtype == np.float16
    assert "began_sd" not in result.layers
    assert _cli.main(["apply", source, model, out, "--sd", "true", "--device=cpu"]) == 0
    result = ad.read_h5ad(out)
    assert result.layers["began_sd"].dtype == np.float16


@pytest.mark.parametrize("method", ["pmi", "gain"])
def test_bulk_methods_and_their_models(method, tmp_path, capsys):
    cohort, panel, out, model = (str(tmp_path / name) for name in ("cohort.h5ad", "panel.h5ad", "out.h5ad", "model.safetensors"))
    adata = datasets.toy_bulk(40, 30)
    pp.hide(adata, of="all")
    adata.write_h5ad(cohort)
    adata[:8, :16].copy().write_h5ad(panel)
    quick = ["--n-models=1", "--n-hidden=8", "--max-epochs=1", "--device=cpu"]
    covariates = ["--categorical-covariates", "[tissue, sex]", "--continuous-covariates", "age", "--mask-rate", "[0.4, 0.8]"]
    assert _cli.main([method, cohort, out, "--layer", "hidden", "--save", model, *covariates, *quick]) == 0
    result = ad.read_h5ad(out)
    assert np.isfinite(result.layers[method]).all()
    assert result.uns[method]["params"]["categorical_covariates"].tolist() == ["tissue", "sex"]
    assert result.uns[method]["params"]["mask_rate"].tolist() == [0.4, 0.8]
    assert _cli.main(["apply", panel, model, out]) == 0
    assert ad.read_h5ad(out).obsm[method].shape == (8, 30)
    assert f"Wrote obsm['{method}'] (8 x 30)" in capsys.readouterr().out


def test_spatial_and_its_model(tmp_path, capsys):
    source, out, model = (str(tmp_path / name) for name in ("in.h5ad", "out.h5ad", "model.safetensors"))
    datasets.toy_visium(6, 6, 30).write_h5ad(source)
    told = ["--image-key", "hires", "--modalities", "[counts, image]", "--ring-weights", "[1.0]", "--edge-weight", "image"]
    assert _cli.main(["spatial", source, out, "--save", model, *told, *QUICK]) == 0
    result = ad.read_h5ad(out)
    assert list(result.uns["spatial_imputed"]["contribution"].index) == ["counts", "image"]
    assert _cli.main(["apply", source, model, out]) == 0
    assert capsys.readouterr().out.count("Wrote layers['spatial_imputed'] (36 x 30), its standard deviation") == 2
    np.testing.assert_allclose(ad.read_h5ad(out).layers["spatial_imputed"], result.layers["spatial_imputed"], rtol=1e-4)


def test_nmf(tmp_path, capsys):
    source, out = (str(tmp_path / name) for name in ("in.h5ad", "out.h5ad"))
    datasets.toy_visium(6, 6, 30).write_h5ad(source)
    assert _cli.main(["nmf", source, out, "--n-factors", "3", "--max-epochs", "2", "--likelihood", "squared"]) == 0
    assert capsys.readouterr().out.startswith("Wrote layers['nmf'] (36 x 30), its standard deviation")
    result = ad.read_h5ad(out)
    assert result.obsm["X_nmf"].shape == (36, 3)
    assert result.varm["NMF"].shape == (30, 3)
    assert result.uns["nmf"]["params"]["n_factors"] == 3


@pytest.fixture
def model(source, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    assert _cli.main(["began", source, str(tmp_path / "trained.h5ad"), "--batch-key=batch", f"--save={path}", *QUICK]) == 0
    capsys.readouterr()
    return str(path)


@pytest.mark.parametrize("key", ["began", "again"])
def test_apply_writes_the_object_with_its_result(source, model, tmp_path, capsys, key):
    out = tmp_path / "out.h5ad"
    named = [] if key == "began" else ["--key-added", key]
    assert _cli.main(["apply", source, model, str(out), "--unseen=average", "--device=cpu", *named]) == 0
    assert capsys.readouterr().out == f"Wrote layers['{key}'] (60 x 40), its standard deviation and uns['{key}'] to {out}\n"
    result, trained = ad.read_h5ad(out), ad.read_h5ad(tmp_path / "trained.h5ad")
    np.testing.assert_allclose(result.layers[key], trained.layers["began"], rtol=1e-4)
    assert result.uns[key]["params"]["model"] == model


def test_every_parameter_of_apply_is_an_option(capsys):
    assert _cli.main(["apply", "--help"]) == 0
    text = capsys.readouterr().out
    wanted = set(inspect.signature(tl.apply).parameters) - {"adata", "copy", "model"}
    assert all(f"--{name.replace('_', '-')} " in text for name in wanted), text
    assert "IN.h5ad MODEL OUT.h5ad" in text
    assert "--random" not in text
    assert "pickles are refused" in text


def test_apply_refuses(fails, source, model, tmp_path):
    out, cut = tmp_path / "out.h5ad", tmp_path / "cut"
    cut.write_bytes(Path(model).read_bytes()[:500])
    before = Path(model).read_bytes()
    for argv, message in (
        ((source, "missing", str(out)), "model: 'missing' does not exist"),
        ((source, str(cut), str(out)), "is cut short or damaged"),
        (("missing.h5ad", model, str(out)), "IN: 'missing.h5ad' does not exist"),
        ((source, model, str(tmp_path)), "is a directory"),
        ((source, model, model), "is the input or the output"),
        ((source, model, str(out), "--unseen=mean"), "argument --unseen: invalid value 'mean'"),
        ((source, model, str(out), "--layer=x"), "layer 'x' not found"),
    ):
        code, line = fails("apply", *argv)
        assert code == 2
        assert message in line
    assert not out.exists()
    assert Path(model).read_bytes() == before


def test_out_may_be_in_and_genes_may_be_a_list(source, capsys):
    assert _cli.main(["began", source, source, "--genes", "[gene1, gene3]", *QUICK]) == 0
    assert list(ad.read_h5ad(source).obsm["began"]) == ["gene1", "gene3"]
    assert "obsm['began'] (60 x 2)" in capsys.readouterr().out


def test_names_of_genes_may_be_numbers(tmp_path):
    adata = datasets.toy_counts()
    adata.var_names = [str(1000 + j) for j in range(adata.n_vars)]
    path = str(tmp_path / "numbers.h5ad")
    adata.write_h5ad(path)
    assert _cli.main(["began", path, path, "--genes", "[1003, 1001]", *QUICK]) == 0
    assert list(ad.read_h5ad(path).obsm["began"]) == ["1003", "1001"]


def test_every_parameter_is_an_option(capsys):
    assert _cli.main(["began", "--help"]) == 0
    text = capsys.readouterr().out
    wanted = set(inspect.signature(tl.began).parameters) - {"adata", "copy"}
    assert all(f"--{name.replace('_', '-')} " in text for name in wanted), text
    assert "--adata" not in text
    assert "--copy" not in text
    assert "low-rank scores" in text
    assert "``" not in text


def test_options_arrive_as_what_they_are(source, tmp_path, monkeypatch):
    got = {}

    @wraps(tl.began)
    def stub(adata, **options):
        got.update(options)
        adata.layers["began"] = adata.X

    monkeypatch.setattr(tl, "began", stub)
    given = [
        "--batch-key=1",
        "--n-context",
        "auto",
        "--penalty",
        "3",
        "--posterior=false",
        "--random-state",
        "null",
        "--target_batch",
        "true",
    ]
    assert _cli.main(["began", source, str(tmp_path / "o.h5ad"), *given, "--learning-rate=1e-3"]) == 0
    defaults = {name: p.default for name, p in inspect.signature(tl.began).parameters.items() if name not in ("adata", "copy")}
    want = {"batch_key": "1", "penalty": 3.0, "posterior": False, "random_state": None, "target_batch": "true", "learning_rate": 1e-3}
    assert got == defaults | want


LEAN = """
import sys
sys.argv = ["-m"]
from scimpute import _cli
code = _cli.main({argv})
heavy = {{"torch", "scanpy", "anndata", "pandas", "matplotlib", "scipy"}} & set(sys.modules)
sys.exit(f"{{heavy}} were imported" if heavy else code)
"""


@pytest.mark.parametrize(
    "argv", [[], ["--help"], *([name, "--help"] for name in _cli.parser.COMMANDS), ["began", "a", "b", "--fill=x"]], ids=str
)
def test_help_needs_no_library_that_takes_seconds(argv):
    run = subprocess.run([sys.executable, "-c", LEAN.format(argv=argv)], capture_output=True, text=True)
    assert run.returncode == (2 if "--fill=x" in argv else 0), run.stderr


def test_the_parts_are_there_when_the_command_line_has_not_imported_them():
    code = "import sys; sys.argv = ['-m']; import scimpute; assert 'torch' not in sys.modules; scimpute.tl.began; scimpute.pl.imputed"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    with pytest.raises(AttributeError, match="module 'scimpute' has no attribute 'nothing'"):
        getattr(scimpute, "nothing")  # noqa: B009


@pytest.mark.parametrize("command", _cli.parser.COMMANDS)
def test_every_option_and_paragraph_is_listed_once(command, capsys):
    assert _cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    listed = re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert [name for name in listed if "_" in name] == ["--print_config"]
    # What an option says, without its type and default.
    said = [" ".join(part.split("(type:")[0].split()[2:]) for part in re.split(r"\n  --", text)[1:]]
    long = [part for part in said if len(part) > 60]
    assert len(long) == len(set(long))


@pytest.mark.parametrize(
    ("command", "data"), [("began", "single cells"), ("spatial", "positions"), ("nmf", "positions"), ("pmi", "bulk"), ("gain", "bulk")]
)
def test_help_says_what_data_a_command_is_for(command, data, capsys):
    assert _cli.main([]) == 0
    overview = " ".join(capsys.readouterr().out.split())
    assert _cli.main([command, "--help"]) == 0
    assert data in " ".join(capsys.readouterr().out.split()).split("positional arguments")[0]
    assert data in overview.split(f" {command} impute ")[1].split(" impute ")[0]


def test_the_command_alone_prints_the_help(capsys):
    assert _cli.main(["--help"]) == 0
    expected = capsys.readouterr().out
    assert _cli.main([]) == 0
    assert capsys.readouterr().out.strip() == expected.strip()


def test_options_from_a_file(source, tmp_path, monkeypatch, capsys):
    got = {}

    @wraps(tl.began)
    def stub(adata, **options):
        got.update(options)
        adata.layers["began"] = adata.X

    monkeypatch.setattr(tl, "began", stub)
    out, config = tmp_path / "out.h5ad", tmp_path / "run.yaml"
    config.write_text("fill: zeros\nn_repeats: 5\nbatch_key: batch\ngenes: [gene1, gene2]\n")
    assert _cli.main(["began", source, str(out), "--config", str(config), "--n-repeats", "7"]) == 0
    assert (got["fill"], got["n_repeats"], got["batch_key"], got["genes"]) == ("zeros", 7, "batch", ["gene1", "gene2"])
    # What is printed is a file that does the same, with the names of the files in it.
    for option in ("--print_config", "--print-config"):
        capsys.readouterr()
        assert _cli.main(["began", source, str(out), "--config", str(config), "--n_repeats=7", option]) == 0
        printed = capsys.readouterr().out
    whole = dict(got)
    got.clear()
    config.write_text(printed)
    out.unlink()
    assert _cli.main(["began", "--config", str(config)]) == 0
    assert got == whole
    assert out.exists()


@pytest.mark.parametrize("text", ["fil: zeros", "fill: everything", "n_repeats: [1", "- fill"])
def test_a_bad_file_of_options(source, tmp_path, fails, text):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert fails("began", source, str(tmp_path / "out.h5ad"), "--config", str(config))[0] == 2


def test_without_a_terminal_every_phase_is_a_line(source, tmp_path, capsys):
    out = str(tmp_path / "out.h5ad")
    assert _cli.main(["began", source, out, *QUICK]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "scimpute: tl.began: 60 cells x 40 genes, 1 repeats, cpu"
    assert "scimpute: tl.began: training 1 repeats" in lines
    assert "scimpute: tl.began: predicting" in lines
    assert re.fullmatch(r"scimpute: tl.began: \d+ s", lines[-1])
    assert _cli.main(["began", source, out, *QUICK, "--progress=false"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("before", "new"), [(0o600, 0o600), (0o640, 0o640), (0o644, 0o644), (0o666, 0o644)])
def test_what_is_written_is_no_more_open_than_the_input(source, tmp_path, before, new):
    os.chmod(source, before)
    mask = os.umask(0o022)
    try:
        out, saved = tmp_path / "out.h5ad", tmp_path / "model.safetensors"
        assert _cli.main(["began", source, str(out), "--save", str(saved), *QUICK]) == 0
        assert [path.stat().st_mode & 0o777 for path in (out, saved)] == [new, new]
        # What is there keeps its own.
        out.chmod(0o660)
        assert _cli.main(["apply", source, str(saved), str(out)]) == 0
        assert out.stat().st_mode & 0o777 == 0o660
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)


@pytest.mark.parametrize("kind", ["10x folder", "zarr"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
def test_private_files_in_an_open_folder(kind, tmp_path):
    name, write = FORMATS[kind]
    folder, out = tmp_path / name, tmp_path / "out.h5ad"
    mask = os.umask(0o022)
    try:
        write(folder, datasets.toy_counts())
        (folder / "notes.txt").touch(0o600)
        with _cli.read.as_private_as(str(folder)):
            out.touch()
        assert out.stat().st_mode & 0o777 == (0o644 if kind == "10x folder" else 0o600)
        out.unlink()
        private = folder / "matrix.mtx.gz" if kind == "10x folder" else next(p for p in folder.rglob("*") if p.parent != folder)
        private.chmod(0o700 if private.is_dir() else 0o600)
        with _cli.read.as_private_as(str(folder)):
            out.touch()
        assert out.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(mask)


def test_a_write_protected_output_is_refused(source, tmp_path, fails, no_training):
    out = tmp_path / "out.h5ad"
    out.write_bytes(Path(source).read_bytes())
    out.chmod(0o444)
    code, line = fails("began", source, str(out))
    assert code == 2
    assert "is write-protected" in line
    assert out.read_bytes() == Path(source).read_bytes()


def test_an_output_replaces_a_file_of_its_kind_only(source, model, tmp_path, fails, no_training, monkeypatch):
    notes = tmp_path / "notes.txt"
    notes.write_text("three years of work")
    before = Path(model).read_bytes()
    for out in (str(notes), model):
        code, line = fails("began", source, out)
        assert code == 2
        assert f"OUT: {out!r} exists and is not an h5ad file" in line
    (tmp_path / "scimpute_demo.png").write_text("three years of work")
    assert "scimpute_demo.png' exists and is not a png file" in fails("demo", "--out-dir", str(tmp_path))[1]
    assert notes.read_text() == (tmp_path / "scimpute_demo.png").read_text() == "three years of work"
    assert Path(model).read_bytes() == before


def test_what_others_put_in_the_place_of_the_output_meanwhile_stays(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.h5ad"

    @wraps(tl.began)
    def began(adata, **options):
        out.write_text("three years of work")
        adata.layers["began"] = adata.X

    monkeypatch.setattr(tl, "began", began)
    out.touch()
    assert _cli.main(["began", source, str(out)]) == 2
    assert "exists and is not an h5ad file" in capsys.readouterr().err
    assert out.read_text() == "three years of work"


def test_save_replaces_models_only(source, tmp_path, fails):
    notes = tmp_path / "notes.txt"
    notes.write_text("three years of work")
    code, line = fails("began", source, str(tmp_path / "out.h5ad"), "--save", str(notes), *QUICK)
    assert code == 2
    assert "exists and is not a model of scimpute" in line
    assert notes.read_text() == "three years of work"


def test_a_model_that_cannot_be_saved_costs_no_result(source, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("scimpute._save.save_file", full)
    out = tmp_path / "out.h5ad"
    assert _cli.main(["began", source, str(out), "--save", str(tmp_path / "model"), *QUICK]) == 1
    assert "scimpute: warning: the result is in the object, but its model could not be saved: no space left" in capsys.readouterr().err
    assert "began" in ad.read_h5ad(out).layers


def folder_of_10x(path, adata):
    path.mkdir()
    mmwrite(path / "matrix.mtx", sp.coo_matrix(adata.X.T).astype(int))
    pd.DataFrame({0: adata.obs_names}).to_csv(path / "barcodes.tsv", header=False, index=False)
    names = pd.DataFrame({0: [f"ENSG{j}" for j in range(adata.n_vars)], 1: adata.var_names, 2: "Gene Expression"})
    names.to_csv(path / "features.tsv", sep="\t", header=False, index=False)
    for name in ("matrix.mtx", "barcodes.tsv", "features.tsv"):
        with open(path / name, "rb") as plain, gzip.open(path / f"{name}.gz", "wb") as packed:
            packed.write(plain.read())
        (path / name).unlink()


def h5_of_10x(path, adata):
    csc = sp.csc_matrix(adata.X.T)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["data"], matrix["indices"], matrix["indptr"] = csc.data.astype(np.int32), csc.indices, csc.indptr
        matrix["shape"], matrix["barcodes"] = csc.shape, adata.obs_names.to_numpy(dtype="S")
        genes = adata.var_names.to_numpy(dtype="S")
        for name, values in {
            "id": genes,
            "name": genes,
            "feature_type": ["Gene Expression"] * adata.n_vars,
            "genome": ["x"] * adata.n_vars,
        }.items():
            matrix[f"features/{name}"] = np.asarray(values, dtype="S")


FORMATS = {
    "10x folder": ("filtered", folder_of_10x),
    "10x h5": ("filtered.h5", h5_of_10x),
    "csv": ("counts.csv", lambda path, adata: adata.to_df().to_csv(path)),
    "csv.gz": ("counts.csv.gz", lambda path, adata: adata.to_df().to_csv(path)),
    "tsv": ("counts.tsv", lambda path, adata: adata.to_df().to_csv(path, sep="\t")),
    "zarr": ("data.zarr", lambda path, adata: adata.write_zarr(path)),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
def test_other_formats_are_read(kind, tmp_path):
    adata = datasets.toy_counts()
    name, write = FORMATS[kind]
    write(tmp_path / name, adata)
    found = _cli.read.read(str(tmp_path / name))
    assert list(found.var_names) == list(adata.var_names)
    assert list(found.obs_names) == list(adata.obs_names)
    np.testing.assert_array_equal(found.to_df(), adata.to_df())


def test_genes_that_10x_names_alike(tmp_path):
    adata = datasets.toy_counts()
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]
    folder_of_10x(tmp_path / "filtered", adata)
    assert list(_cli.read.read(str(tmp_path / "filtered")).var_names[:3]) == ["twice", "twice-1", "gene2"]


def test_version_and_help(capsys):
    assert _cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"scimpute {__version__}\n"
    assert _cli.main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bogus"], "invalid choice: 'bogus'"),
        (["began"], "required: IN.h5ad, OUT.h5ad"),
        (["apply"], "required: IN.h5ad, MODEL, OUT.h5ad"),
        (["began", "a", "b", "--nope"], "--nope"),
        (["began", "a", "b", "--n-context", "many"], "argument --n-context: invalid value 'many', must be a whole number or auto"),
        (["began", "a", "b", "--fill", "everything"], "argument --fill: invalid value 'everything', must be all, zeros or expressed"),
        (["began", "a", "b", "--output", "x"], "argument --output: invalid value 'x'"),
        (["began", "a", "b", "--random-state", "x"], "argument --random-state: invalid value 'x'"),
        (["demo", "--out-dir", "/does/not/exist"], "'/does/not/exist' does not exist"),
        (["demo", "--out-dir", __file__], "test_cli.py' is a file, not a directory"),
        (["began", "a", "b", "--config", "missing.yaml"], "argument --config: File does not exist: '"),
    ],
)
def test_bad_usage(fails, argv, message):
    code, line = fails(*argv)
    assert code == 2
    assert message in line


def test_bad_files_are_found_before_the_work(fails, source, tmp_path, no_training):
    text, hdf5 = tmp_path / "text.h5ad", tmp_path / "cut.h5ad"
    text.write_text("no")
    hdf5.write_bytes(Path(source).read_bytes()[:3000])
    out = str(tmp_path / "out.h5ad")
    for pair, message in (
        (("missing.h5ad", out), "'missing.h5ad' does not exist"),
        ((str(text), out), "is not an h5ad file"),
        ((str(tmp_path), out), "is not an h5ad file"),
        ((str(hdf5), out), "cannot be read as h5ad"),
        ((source, str(tmp_path)), "is a directory"),
        ((source, str(tmp_path / "no" / "out.h5ad")), "does not exist"),
        ((source, os.devnull), "exists and is not an h5ad file"),
        ((source, out, "--save", source), "a file of its own"),
    ):
        code, line = fails("began", *pair)
        assert code == 2
        assert message in line
    assert not os.path.exists(out)


def test_files_of_other_programs(fails, tmp_path, no_training):
    groups = {"x.loom": ("matrix", "row_attrs", "col_attrs", "layers"), "x.h5mu": ("obs", "var", "mod")}
    for name, inside in groups.items():
        with h5py.File(tmp_path / name, "w") as file:
            for group in inside:
                file.create_group(group)
    for name, text in (("empty.csv", ""), ("blank.tsv", "\n\n"), ("names.csv", "a,b\n")):
        (tmp_path / name).write_text(text)
    for name, message in (
        ("x.loom", "is not an h5ad file, .*; write it as h5ad: anndata.io.read_loom"),
        ("x.h5mu", "is not an h5ad file, .*; write a modality as h5ad: mudata"),
        *((name, "has no row of numbers under a row of names") for name in ("empty.csv", "blank.tsv", "names.csv")),
    ):
        code, line = fails("began", str(tmp_path / name), str(tmp_path / "out.h5ad"))
        assert code == 2
        assert re.search(message, line), line


def test_a_key_error_is_told_without_quotes_around_it(fails, source, tmp_path):
    code, line = fails("began", source, str(tmp_path / "o.h5ad"), "--batch-key", "bach")
    assert code == 2
    assert line.startswith("scimpute: error: batch_key: obs column 'bach' not found")
    assert "did you mean 'batch'?\n" in line


def test_debug_shows_the_traceback(source, tmp_path, capsys):
    for argv in (["--debug", "began", "missing", "o"], ["began", "missing", "o", "--debug"]):
        assert _cli.main(argv) == 2
        assert "Traceback" in capsys.readouterr().err


def interrupt(*args):
    raise KeyboardInterrupt


def full(*args):
    raise OSError("no space\nleft on device")


@pytest.mark.parametrize(("failure", "code"), [(full, 1), (interrupt, 130)])
def test_a_failure_in_writing_leaves_what_was_there(source, tmp_path, monkeypatch, capsys, failure, code):
    out = tmp_path / "out.h5ad"
    out.write_bytes(Path(source).read_bytes())

    def write(self, path):
        path.write_bytes(b"half of it")
        failure()

    monkeypatch.setattr(ad.AnnData, "write_h5ad", write)
    assert _cli.main(["began", source, str(out), *QUICK]) == code
    assert out.read_bytes() == Path(source).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]
    assert capsys.readouterr().err.splitlines()[-1] in ("scimpute: error: no space left on device", "scimpute: interrupted")


def test_a_failure_in_training_leaves_what_was_there(source, fails):
    before = Path(source).read_bytes()
    code, line = fails("began", source, source, "--gamma", "2")
    assert code == 2
    assert "gamma must be in [0, 1], got 2.0" in line
    assert Path(source).read_bytes() == before


def test_a_closed_pipe_is_no_failure(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert _cli.main(["--version"]) == 0
        _cli.output.say("more")


STUB = """
import sys, warnings
from functools import wraps
from scimpute import _check, _cli, tl
@wraps(tl.began)
def began(adata, **options):
    from scimpute import _progress
    warnings.warn("look out", _check.NotSavedWarning)
    _progress.say("training")
    adata.layers["began"] = adata.X
tl.began = began
sys.exit(_cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("stderr", ["closed", "full", "broken"])
def test_a_stderr_that_takes_nothing_costs_no_run(source, tmp_path, stderr):
    if stderr == "full" and not os.path.exists("/dev/full"):
        pytest.skip("this system has no such file")
    out, script = tmp_path / "out.h5ad", tmp_path / "stub.py"
    script.write_text(STUB)
    read, broken = os.pipe()
    os.close(read)
    call = '"$0" "$@" ' + {"closed": "2>&-", "full": "2>/dev/full", "broken": ""}[stderr]

    def run(*argv):
        done = subprocess.run(["bash", "-c", call, sys.executable, script, *argv], stdout=subprocess.PIPE, stderr=broken, text=True)
        return done.stdout, done.returncode

    # 1: the model was not saved
    assert run("began", source, out) == (f"Wrote layers['began'] (60 x 40) and uns['began'] to {out}\n", 1)
    assert "began" in ad.read_h5ad(out).layers
    if stderr == "broken":  # a traceback meets the same stream
        assert run("--debug", "began", "none", out) == ("", 2)
    os.close(broken)


def test_warnings_are_told_in_one_line(source, monkeypatch, capsys):
    def stub(argv):
        warnings.simplefilter("always")
        warnings.warn("look\nout", UserWarning, stacklevel=1)
        raise SystemExit(0)

    monkeypatch.setattr(_cli.parser, "parser_for", stub)
    assert _cli.main([]) == 0
    assert capsys.readouterr().err == "scimpute: warning: look out\n"


def test_demo(tmp_path, monkeypatch, capsys):
    slow, whole = tl.began, datasets.pbmc68k

    @wraps(slow)
    def quick(adata, **options):
        slow(adata, **options, n_repeats=1, max_epochs=2, n_context=5, width=16, penalty=200.0, device="cpu")

    monkeypatch.setattr(tl, "began", quick)
    monkeypatch.setattr(datasets, "pbmc68k", lambda: whole()[::3].copy())
    assert _cli.main(["demo", "--out-dir", str(tmp_path), "--random-state", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["raw", "gene_mean", "began"]
    assert lines[-2].startswith("Lower is better")
    assert "scimpute_demo.png; next: sc.pl.umap" in lines[-1]
    adata = ad.read_h5ad(tmp_path / "scimpute_demo.h5ad")
    assert adata.layers["began"].shape == (234, 765)
    assert adata.uns["thin"]["params"]["random_state"] == 1
    assert (tmp_path / "scimpute_demo.png").read_bytes()[16:24] == (1600).to_bytes(4, "big") + (1100).to_bytes(4, "big")
    assert len(list(tmp_path.iterdir())) == 2
