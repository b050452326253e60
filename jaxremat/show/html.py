"""A report as HTML that needs nothing else: no script, no font, no request. Light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from jaxremat.base.budget import format_bytes
from jaxremat.show.figure import COLOURS, to_svg
from jaxremat.show.folding import Row
from jaxremat.show.report import Fact, Report
from jaxremat.show.text import format_seconds
from jaxremat.show.timeline import timeline_figure

_STYLE = """
.jaxremat{color-scheme:light dark;color:#1f2328;background:#fff;border:1px solid #d0d7de;border-radius:8px;
padding:16px 20px;max-width:980px;font:14px/1.45 system-ui,sans-serif;box-sizing:border-box}
.jaxremat dl{display:flex;flex-wrap:wrap;gap:10px 24px;margin:0 0 14px}.jaxremat dl>div{width:158px}
.jaxremat dt{opacity:.7;font-size:12px;margin:0}.jaxremat dd{margin:0}.jaxremat dd.v{font-size:20px;font-weight:600}
.jaxremat dd.n{opacity:.75;font-size:12px}
.jaxremat .scroll{overflow-x:auto}
.jaxremat table{border-collapse:collapse;width:100%;margin:12px 0 0;font-size:13px;color:inherit}
.jaxremat th{text-align:left;font-weight:600;opacity:.8;border-bottom:1px solid #8c959f}
.jaxremat th,.jaxremat td{padding:4px 10px 4px 0;vertical-align:top;background:none;text-align:left}
.jaxremat tr{background:none}.jaxremat tr+tr td{border-top:1px solid rgba(140,149,159,.25)}
.jaxremat .r{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.jaxremat code{font:12px ui-monospace,monospace;background:none;color:inherit;padding:0;white-space:nowrap}
.jaxremat .path{white-space:normal;overflow-wrap:anywhere}.jaxremat .what{opacity:.75;font-size:12px}
.jaxremat .k{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:6px}
.jaxremat .warn{border-left:3px solid #d55e00;padding-left:10px;margin:10px 0 0}.jaxremat p{margin:10px 0 0}
@media (prefers-color-scheme:dark){.jaxremat{color:#e6edf3;background:#0d1117;border-color:#30363d}}
""".strip()
_COLUMNS = ("", "value", "", "shape", "bytes", "running again", "per GiB", "source")
_RIGHT = (2, 4, 5, 6)


def to_html(report: Report) -> str:
    """The report as one element, for a notebook."""
    return framed(
        f"<dl>{''.join(map(_fact, report.facts))}</dl>",
        f'<div class="scroll">{to_svg(timeline_figure(report))}</div>',
        f'<div class="scroll">{_table(report)}</div>',
        *(f"<p>{escape(sentence)}</p>" for sentence in report.loops),
        *(f'<p class="warn">{escape(warning)}</p>' for warning in report.warnings),
    )


def framed(*parts: str) -> str:
    """Elements in the frame that carries their style."""
    return f'<style>{_STYLE}</style><div class="jaxremat">{"".join(parts)}</div>'


def page(title: str, body: str) -> str:
    """A document of its own around an element."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>body{{margin:24px;background:#f6f8fa}}"
        "@media (prefers-color-scheme:dark){body{background:#010409}}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[int] = ()) -> str:
    """A table of cells that are HTML already; the columns `right` are flush right."""
    right = set(right)
    align = lambda i: ' class="r"' if i in right else ""
    head = "".join(f"<th{align(i)}>{escape(name)}</th>" for i, name in enumerate(columns))
    body = "".join(f"<tr>{''.join(f'<td{align(i)}>{cell}</td>' for i, cell in enumerate(row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _fact(fact: Fact) -> str:
    value = f'<dd class="v">{escape(fact.value)}</dd><dd class="n">{escape(fact.note)}</dd>'
    return f"<div><dt>{escape(fact.label)}</dt>{value}</div>"


def _table(report: Report) -> str:
    number, size = report.left_out
    rest = f"<p>and {number} smaller values, {format_bytes(size)}</p>" if number else ""
    return table(_COLUMNS, map(_cells, report.rows), _RIGHT) + rest


def _cells(row: Row) -> tuple[str, ...]:
    colour = COLOURS["saved" if row.saved else "recomputed"]
    path = f'<code class="path">{escape(row.path)}</code> ' if row.path else ""
    return (
        f'<code><span class="k" style="background:{colour}"></span>{row.action}</code>',
        f'{path}<span class="what">{escape(row.what)}</span>',
        f"×&nbsp;{row.count}" if row.count > 1 else "",
        f"<code>{escape(row.shape)}</code>",
        format_bytes(row.total_bytes),
        f"{row.fraction:.2%} · {format_seconds(row.seconds)}",
        format_seconds(row.seconds_per_gib),
        f"<code>{escape(row.source)}</code>",
    )
