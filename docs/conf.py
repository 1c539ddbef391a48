"""How sphinx builds the site: ``sphinx-build -W --keep-going -n docs docs/_build/html``."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
from pathlib import Path

from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style
from pybtex.style.labels import BaseLabelStyle

import scimpute
from scimpute._cli import main

HERE = Path(__file__).parent


class Names(BaseLabelStyle):
    """Labels of the bibliography as the pages cite: authors and year."""

    def format_labels(self, sorted_entries):
        for entry in sorted_entries:
            names = [" ".join(map(str, person.rich_prelast_names + person.rich_last_names)) for person in entry.persons["author"]]
            who = names[0] if len(names) == 1 else f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} et al."
            yield ", ".join([who, *([entry.fields["year"]] if "year" in entry.fields else [])])


class Named(Style):
    """Sorted by author, with these labels."""

    default_label_style = Names


register_plugin("pybtex.style.formatting", "named", Named)

project = "scimpute"
author = "The scimpute developers"
copyright = author
version = release = scimpute.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

# Pages and notebooks. Tests execute the notebooks; here they are shown as they are.
myst_enable_extensions = ["colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "off"

# Docstrings. "Returns" is prose and a list of what is written where, not a type, so it is left as it is; parameters that share
# a paragraph stay together.
autosummary_generate = True
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_custom_sections = ["Returns"]
python_maximum_signature_line_length = 80

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "named"
bibtex_reference_style = "author_year"

html_theme = "sphinx_book_theme"
html_title = "scimpute"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "show_navbar_depth": 1, "navbar_persistent": []}


def online() -> bool:
    """Whether the inventories of other projects can be had: a build without network links to our own pages only."""
    with contextlib.suppress(OSError), socket.create_connection(("docs.python.org", 443), timeout=3):
        return True
    return False


intersphinx_mapping = {
    name: (url, None)
    for name, url in {
        "anndata": "https://anndata.readthedocs.io/en/stable/",
        "matplotlib": "https://matplotlib.org/stable/",
        "numpy": "https://numpy.org/doc/stable/",
        "pandas": "https://pandas.pydata.org/docs/",
        "python": "https://docs.python.org/3/",
        "scanpy": "https://scanpy.readthedocs.io/en/stable/",
        "scipy": "https://docs.scipy.org/doc/scipy/",
        "sklearn": "https://scikit-learn.org/stable/",
        "squidpy": "https://squidpy.readthedocs.io/en/stable/",
        "torch": "https://docs.pytorch.org/docs/stable/",
    }.items()
    if online()
}
# What belongs to other packages resolves online only.
nitpick_ignore_regex = [
    (r"py:.*", r"(AnnData|Axes|Colormap|Sequence|Mapping|Callable|Any|np|pd|os|torch|anndata|numpy|scanpy|squidpy)(\..*)?"),
]


def copy_notebooks(app, config) -> None:
    """Notebooks live beside docs/, and sphinx reads only what is in it."""
    shutil.rmtree(HERE / "tutorials", ignore_errors=True)
    (HERE / "tutorials").mkdir()
    for notebook in (HERE.parent / "tutorials").glob("*.ipynb"):
        shutil.copy2(notebook, HERE / "tutorials")


def write_help(app) -> None:
    """What ``scimpute COMMAND --help`` prints, for the page of the command line."""
    folder = HERE / "generated"
    folder.mkdir(exist_ok=True)
    os.environ["COLUMNS"] = "100"
    for command in ("", "demo", "began", "spatial", "nmf", "pmi", "gain", "apply", "report"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main([*command.split(), "--help"])
        (folder / f"help_{command or 'scimpute'}.txt").write_text(printed.getvalue())


def link_within(app, docname: str, source: list[str]) -> None:
    """Make links that are right in a file browser, where the notebooks are beside docs/, right on the site, where they are in it."""
    source[0] = source[0].replace("](../tutorials/", "](tutorials/").replace("](../docs/", "](../")


def setup(app) -> None:
    """Called by sphinx."""
    app.connect("config-inited", copy_notebooks)
    app.connect("builder-inited", write_help)
    app.connect("source-read", link_within)
