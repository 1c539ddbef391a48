"""The page of a report: HTML that needs nothing else. Everything that comes from the user's data is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pandas as pd

from .._version import __version__

MARKER = '<meta name="generator" content="scimpute.metrics.report'
"""By this, near its beginning, a file is known as a report."""

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
th[scope=row], th:first-child, td.text { text-align: left; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { font-size: .9rem; color: #444; max-width: 46rem; }
"""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def items(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def number(value: Any) -> str:
    """Four digits that count; nothing where there is no number."""
    if isinstance(value, str):
        return value
    if value is None or value != value:  # NaN
        return "n/a"
    if isinstance(value, bool) or float(value) != int(value):
        return str(value) if isinstance(value, bool) else f"{value:.4g}"
    return f"{int(value):,}"


def table(frame: pd.DataFrame, caption: str, *, index: str) -> str:
    """A table with a head and row heads; ``index`` is the head of the latter."""
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in (index, *frame.columns))
    rows = []
    for name, row in zip(frame.index, frame.itertuples(index=False), strict=True):
        cells = (f'<td class="text">{escape(v)}</td>' if isinstance(v, str) else f"<td>{escape(number(v))}</td>" for v in row)
        rows.append(f'<tr><th scope="row">{escape(str(name))}</th>{"".join(cells)}</tr>')
    title = escape(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def figure(uri: str, alt: str, caption: str) -> str:
    return f'<figure><img src="{uri}" alt="{escape(alt)}"><figcaption>{escape(caption)}</figcaption></figure>'


def page(title: str, verdict: str, reasons: pd.DataFrame, sections: Mapping[str, str]) -> str:
    """The whole of it; ``sections`` are HTML by their headings."""
    kinds = {"good": "For it", "care": "Take care", "bad": "Against it", "note": "Know"}
    worst = next(kind for kind in ("bad", "care", "good") if kind in set(reasons["kind"]))
    listed = "".join(
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
<div class="verdict {worst}"><p>{escape(verdict)}</p></div>
<ul>{listed}</ul>
{body}
</main>
</body>
</html>
"""
