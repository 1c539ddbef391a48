"""The page of a report: one HTML file without any other file. All text from the user's data is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from ..._version import __version__
from .verdict import worst

MARKER = '<meta name="generator" content="scimpute.metrics.report'
"""Mark near the start of the file that makes it a report."""

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.verdict { padding: .6rem 1rem; border: 1px solid #ccc; border-left-width: .5rem; background: #f7f7f7; }
.verdict p { margin: .2rem 0; font-weight: bold; font-size: 1.15rem; }
.bad { border-left-color: #b3261e; } .care { border-left-color: #b26a00; } .good { border-left-color: #1b6e3c; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: bold; padding-bottom: .3rem; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }
th[scope=row], th:first-child, .text { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { font-size: .9rem; color: #444; max-width: 46rem; }
"""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def items(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def number(value: Any, digits: int = 3) -> str:
    """A whole number without decimals, any other with so many decimals; ``"n/a"`` for NaN and infinity."""
    if isinstance(value, str | bool):
        return str(value)
    if not math.isfinite(value):
        return "n/a"
    return f"{int(value):,}" if value == int(value) else f"{value:.{digits}f}" if abs(value) >= 0.01 else f"{value:.3g}"


def _column(values: pd.Series) -> list[str]:
    """The values of a column as text, all with the same number of decimals."""
    if not pd.api.types.is_numeric_dtype(values.dtype):
        return [number(value) for value in values]
    finite = values[np.isfinite(values)].abs()
    if (finite == finite.round()).all():
        return [number(value, 0) for value in values]
    digits = 4 if finite.max() < 1 else 3 if finite.max() < 10 else 2
    return [f"{value:.{digits}f}" if math.isfinite(value) else "n/a" for value in values]


def table(frame: pd.DataFrame, caption: str, *, index: str) -> str:
    """A table with column heads and row heads; ``index`` is the head of the column of row heads."""
    columns = [_column(frame.iloc[:, i]) for i in range(frame.shape[1])]
    kinds = ["" if pd.api.types.is_numeric_dtype(kind) else ' class="text"' for kind in frame.dtypes]
    heads = (f'<th scope="col"{kind}>{escape(str(name))}</th>' for name, kind in zip(frame.columns, kinds, strict=True))
    rows = []
    for name, *row in zip(frame.index, *columns, strict=True):
        cells = (f"<td{kind}>{escape(value)}</td>" for value, kind in zip(row, kinds, strict=True))
        rows.append(f'<tr><th scope="row">{escape(str(name))}</th>{"".join(cells)}</tr>')
    title = escape(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table><caption>{title}</caption>'
        f'<thead><tr><th scope="col">{escape(index)}</th>{"".join(heads)}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def figure(picture: tuple[str, int], alt: str, caption: str) -> str:
    """An image. A narrow window scrolls the image instead of shrinking it."""
    uri, width = picture
    image = f'<div class="scroll"><img src="{uri}" alt="{escape(alt)}" width="{width}" style="min-width: {min(width, 560)}px"></div>'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def page(title: str, verdict: str, reasons: pd.DataFrame, sections: Mapping[str, str]) -> str:
    """The whole page; ``sections`` has the HTML of each heading."""
    kinds = {"good": "For it", "care": "Take care", "bad": "Against it", "note": "Know"}
    entries = "".join(
        f"<li><strong>{kinds[kind]}:</strong> {escape(reason)}</li>"
        for kind, reason in zip(reasons["kind"], reasons["reason"], strict=True)
    )
    body = "".join(
        f'<section aria-labelledby="s{i}"><h2 id="s{i}">{i}. {escape(heading)}</h2>{content}</section>'
        for i, (heading, content) in enumerate(sections.items(), 1)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{MARKER} {__version__}">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<div class="verdict {worst(reasons)}"><p>{escape(verdict)}</p></div>
<ul>{entries}</ul>
{body}
</main>
</body>
</html>
"""
