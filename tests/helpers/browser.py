"""Pages in a headless browser: what is drawn over what, and how well it can be read."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AUDIT = (Path(__file__).parent / "audit.js").read_text()


def notebook(*outputs: str, theme: str = "light", template: str = "lab") -> str:
    """An executed notebook with HTML outputs, as JupyterLab renders it in a theme, or as another template does."""
    import nbconvert  # here, because no test but those of browsers should wait for it
    import nbformat

    book = nbformat.v4.new_notebook()
    for html in outputs:
        cell = nbformat.v4.new_code_cell("plan", execution_count=1)
        cell.outputs = [nbformat.v4.new_output("execute_result", {"text/html": html}, execution_count=1)]
        book.cells.append(cell)
    page = nbconvert.HTMLExporter(template_name=template, theme=theme).from_notebook_node(book)[0]
    return re.sub(r'<script src="https?://[^"]*"></script>', "", page)  # nothing here needs the network


VSCODE = {
    "light": {"kind": "vscode-light", "foreground": "#3b3b3b", "background": "#ffffff"},
    "dark": {"kind": "vscode-dark", "foreground": "#cccccc", "background": "#1f1f1f"},
    "contrast": {"kind": "vscode-high-contrast", "foreground": "#ffffff", "background": "#000000"},
}
"""Attributes and colours of VS Code's default themes, as its notebooks set them on the page of an output."""


def vscode(*outputs: str, theme: str) -> str:
    """The page in which VS Code shows the outputs of a cell."""
    named = VSCODE[theme]
    colours = "".join(f"--vscode-editor-{name}:{named[name]};" for name in ("foreground", "background"))
    body = "background:var(--vscode-editor-background);color:var(--vscode-editor-foreground)"
    return (
        f'<!doctype html><html style="{colours}"><head><style>body{{{body}}}table,tr:nth-child(odd){{background:#fff}}'
        f'</style></head><body class="{named["kind"]}" data-vscode-theme-kind="{named["kind"]}">'
        f"{''.join(f'<div>{html}</div>' for html in outputs)}</body></html>"
    )


def colab(*outputs: str, theme: str) -> str:
    """The frame in which Colab shows the outputs of a cell."""
    style = "html[theme=dark] body{background:#383838}html[theme=light] body{background:#fff}"
    cells = "".join(f'<div class="output_subarea output_html rendered_html">{html}</div>' for html in outputs)
    return f'<!doctype html><html theme="{theme}"><head><style>{style}</style></head><body>{cells}</body></html>'


def audit(page: str, folder: Path, width: int, dark_system: bool = False) -> dict:
    """What the browser finds in a page: overlapping texts, contrasts that are too low, texts that are too small, texts
    outside of their frame, and the share of the column that the charts fill.

    Args:
      page: the document.
      folder: where to put it.
      width: of the page, in pixels.
      dark_system: whether the system prefers dark pages, whatever the page does.
    """
    path = folder / "page.html"
    narrow = f"<style>html{{width:{width}px}}</style>"  # the window itself has a smallest width
    path.write_text(page.replace("</body>", f"{narrow}<script>{AUDIT}</script></body>"))
    flags = ["--blink-settings=preferredColorScheme=0"] if dark_system else []
    dom = _run(path, [*flags, "--dump-dom"], width)
    found = re.search(r'<pre id="audit">(.*?)</pre>', dom, re.S)
    assert found, dom[-2000:]
    return json.loads(unescape(found[1]))


def picture(path: Path, image: Path, width: int) -> None:
    """Writes a picture of a page, for people to look at."""
    _run(path, [f"--screenshot={image}"], width)


def _run(path: Path, flags: list[str], width: int) -> str:
    headless = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=4000")
    own = (f"--window-size={max(width, 600)},1500", f"--user-data-dir={path.parent / 'profile'}")
    command = [str(CHROMIUM), *headless, *own, *flags, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
