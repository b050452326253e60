"""A report as HTML that needs nothing else: no script, no font, no request.

It is made of `div`s alone, because notebooks style tables and lists with rules that win over those of an output. It
takes colours from the notebook around it (JupyterLab, VS Code, Colab, MkDocs), never from the system's preference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from html import escape

from jaxremat.report.report import Report
from jaxremat.report.rows import ACTIONS, Row
from jaxremat.show.figure import COLOURS, REVEAL, to_svg
from jaxremat.show.sentences import (
    PAST,
    Fact,
    facts_of,
    loop_sentence,
    peak_sentence,
    rest_sentence,
    shape_of,
    source_of,
    total_sentence,
)
from jaxremat.show.timeline import LEGEND, panels
from jaxremat.show.units import format_bytes, format_seconds

MOST_ROWS = 12
_COLOUR_OF = {"save": "saved", "recompute": "recomputed", "defer": "transient"}
_STYLE = f"""
.jaxremat{{container-type:inline-size;max-width:1100px;font:14px/1.45 system-ui,sans-serif;box-sizing:border-box;
color:var(--jp-content-font-color1,var(--vscode-editor-foreground,var(--md-default-fg-color,inherit)));
border:1px solid rgba(128,128,128,.4);border-radius:8px;padding:14px 16px;text-align:left}}
[theme=dark] .jaxremat{{color:#e3e3e3}}
.jaxremat *{{box-sizing:border-box}}
.jaxremat .jr-facts{{display:flex;flex-wrap:wrap;gap:10px 22px}}.jaxremat .jr-facts>div{{width:164px}}
.jaxremat .jr-label,.jaxremat .jr-note{{font-size:12px;line-height:1.35}}
.jaxremat .jr-big{{font-size:20px;font-weight:600;line-height:1.3}}
.jaxremat .jr-line{{margin:10px 0 0}}
.jaxremat .jr-legend{{display:flex;flex-wrap:wrap;gap:4px 18px;margin:12px 0 4px;font-size:12px}}
.jaxremat .jr-key{{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}}
.jaxremat .jr-charts{{display:flex;flex-wrap:wrap;gap:4px 12px}}.jaxremat .jr-charts>div{{flex:1 1 330px;min-width:0}}
.jaxremat .jr-grid{{display:grid;font-size:13px;margin:8px 0 0}}
.jaxremat .jr-row{{display:contents}}
.jaxremat .jr-cell{{padding:4px 6px;border-top:1px solid rgba(128,128,128,.3);min-width:0;overflow-wrap:anywhere}}
.jaxremat .jr-head .jr-cell{{border-top:0;border-bottom:1px solid rgba(128,128,128,.7);font-weight:600}}
.jaxremat .jr-right{{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}}
.jaxremat .jr-mono{{font-family:ui-monospace,monospace;font-size:12px}}.jaxremat .jr-small{{font-size:12px}}
.jaxremat .jr-decisions{{grid-template-columns:7.6em minmax(0,1fr) 4em 6em 6em 7.2em 6em minmax(0,11em) minmax(0,9em)}}
.jaxremat .jr-points{{grid-template-columns:minmax(0,1fr) repeat(5,auto)}}
.jaxremat details>summary{{cursor:pointer;margin:8px 0 0}}
.jaxremat .jr-filter{{position:absolute;opacity:0;pointer-events:none}}
.jaxremat .jr-choices{{display:flex;flex-wrap:wrap;gap:6px;margin:14px 0 0}}
.jaxremat .jr-choices>label{{border:1px solid rgba(128,128,128,.6);border-radius:12px;padding:1px 10px;cursor:pointer;
font-size:12px;margin:0}}
.jaxremat .jr-warn{{border-left:3px solid #d55e00;padding-left:10px;margin:10px 0 0}}
@container (max-width:800px){{.jaxremat .jr-wide{{display:none}}
.jaxremat .jr-points{{grid-template-columns:minmax(0,1fr) repeat(3,auto)}}
.jaxremat .jr-decisions{{grid-template-columns:7.6em minmax(0,1fr) 4em 6em 6em 7.2em}}}}
@container (max-width:520px){{.jaxremat .jr-middling{{display:none}}
.jaxremat .jr-decisions{{grid-template-columns:7.4em minmax(0,1fr) 6em 6em}}.jaxremat .jr-facts>div{{width:45%}}}}
{REVEAL}
""".strip()

Cell = tuple[str, str]
"""(HTML, classes)."""


def to_html(report: Report) -> str:
    """The report as one element, for a notebook."""
    return framed(
        f'<div class="jr-facts">{"".join(map(_fact, facts_of(report.numbers)))}</div>',
        f'<div class="jr-line">{escape(peak_sentence(report))}</div>',
        _legend(),
        f'<div class="jr-charts">{"".join(f"<div>{to_svg(panel)}</div>" for panel in panels(report))}</div>',
        _decisions(report),
        *(f'<div class="jr-line">{escape(loop_sentence(loop))}</div>' for loop in report.loops),
        *(f'<div class="jr-warn">{escape(warning)}</div>' for warning in report.warnings),
    )


def framed(*parts: str) -> str:
    """Elements in the frame that carries their style."""
    return f'<style>{_STYLE}</style><div class="jaxremat">{"".join(parts)}</div>'


def page(title: str, body: str) -> str:
    """A document of its own around an element; light or dark as the reader's system is."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>body{{margin:24px;color:#1f2328;background:#fff}}"
        "@media (prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def grid(
    columns: Sequence[Cell], rows: Iterable[tuple[str, Sequence[Cell]]], classes: str = "", style: str = ""
) -> str:
    """A table made of `div`s.

    Args:
      columns: the head's cells.
      rows: (classes, cells) of each row; cells are HTML already.
      classes, style: of the whole.
    """
    head = _row("head", "columnheader", columns)
    body = "".join(_row(kind, "cell", cells) for kind, cells in rows)
    styled = f' style="{style}"' if style else ""
    return f'<div class="{_prefixed(f"grid {classes}")}" role="table"{styled}>{head}{body}</div>'


def _row(kind: str, role: str, cells: Sequence[Cell]) -> str:
    inside = "".join(
        f'<div class="{_prefixed(f"cell {classes}")}" role="{role}">{html}</div>' for html, classes in cells
    )
    return f'<div class="{_prefixed(f"row {kind}")}" role="row">{inside}</div>'


def _prefixed(classes: str) -> str:
    """Names of classes that no style of a notebook knows: `row` and `label` mean something to Bootstrap."""
    return " ".join(f"jr-{name}" for name in classes.split())


def _fact(fact: Fact) -> str:
    value = f'<div class="jr-big">{escape(fact.value)}</div><div class="jr-note">{escape(fact.note)}</div>'
    return f'<div><div class="jr-label">{escape(fact.label)}</div>{value}</div>'


def _legend() -> str:
    keys = (f"<span>{_key(kind)}{escape(text)}</span>" for kind, text in LEGEND.items())
    return f'<div class="jr-legend">{"".join(keys)}<span>point at a moment to see what is live there</span></div>'


def _key(kind: str) -> str:
    return f'<span class="jr-key" style="background:{COLOURS[kind]}"></span>'


def _decisions(report: Report) -> str:
    """The rows of the most bytes, filtered by what becomes of them; the others folded."""
    chief = report.table.largest(MOST_ROWS)
    shown = {id(row) for row in chief.rows}
    others = [row for row in report.table.rows if id(row) not in shown]
    number, size = chief.left_out
    folded = (
        f"<details><summary>{number} smaller values, {format_bytes(size)}</summary>{_grid_of(others)}"
        f'<div class="jr-line">{escape(rest_sentence(report.table.left_out))}</div></details>'
        if others
        else f'<div class="jr-line">{escape(rest_sentence(chief.left_out))}</div>'
    )
    return f"<div>{_filter(report)}{_grid_of(chief.rows)}{folded}</div>"


def _filter(report: Report) -> str:
    """Buttons that leave the rows of one action: radio buttons and rules of style, no script."""
    actions = [total.action for total in report.table.totals]
    if len(actions) < 2:
        return f'<div class="jr-line">{escape("".join(map(total_sentence, report.table.totals)))}</div>'
    name = "jaxremat" + hashlib.sha256(repr(report.table).encode()).hexdigest()[:10]
    chosen = (None, *actions)
    texts = ("all", *map(total_sentence, report.table.totals))
    inputs = "".join(
        f'<input class="jr-filter" type="radio" name="{name}" id="{name}{i}"{"" if i else " checked"}>'
        for i in range(len(chosen))
    )
    labels = "".join(f'<label for="{name}{i}">{escape(text)}</label>' for i, text in enumerate(texts))
    rules = "".join(_filter_rules(name, i, action) for i, action in enumerate(chosen))
    return f'<style>{rules}</style>{inputs}<div class="jr-choices">{labels}</div>'


def _filter_rules(name: str, number: int, action: str | None) -> str:
    mark = f"#{name}{number}:checked~.jr-choices>label[for={name}{number}]{{outline:2px solid currentColor}}"
    hidden = [other for other in ACTIONS if action is not None and other != action]
    return mark + "".join(f"#{name}{number}:checked~* .jr-row.jr-{other}{{display:none}}" for other in hidden)


_HEAD: tuple[Cell, ...] = (
    ("", ""), ("value", ""), ("", "right middling"), ("bytes", "right"), ("costs", "right"),
    ("would cost", "right middling"), ("per GiB", "right wide"), ("shape", "wide"), ("source", "wide"),
)  # fmt: skip


def _grid_of(rows: Sequence[Row]) -> str:
    return grid(_HEAD, ((row.action, _cells(row)) for row in rows), "decisions")


def _cells(row: Row) -> tuple[Cell, ...]:
    seconds = lambda number: "" if number is None else format_seconds(number)
    path = f'<span class="jr-mono">{escape(row.path)}</span> ' if row.path else ""
    iterations = f' <span class="jr-small">(iterations {escape(row.iterations)})</span>' if row.iterations else ""
    return (
        (f'<span title="{PAST[row.action]}">{_key(_COLOUR_OF[row.action])}{row.action}</span>', "small"),
        (f"{path}{escape(row.what)}{iterations}", ""),
        (f"×&nbsp;{row.count}" if row.count > 1 else "", "right middling"),
        (format_bytes(row.all_bytes), "right"),
        (seconds(row.costs_seconds), "right"),
        (seconds(row.would_cost_seconds), "right middling"),
        ("" if row.action == "defer" else format_seconds(row.seconds_per_gib), "right wide"),
        (f'<span class="jr-mono">{escape(shape_of(row))}</span>', "wide"),
        (f'<span class="jr-mono">{escape(source_of(row))}</span>', "wide"),
    )
