"""What a reader sees: an executed notebook in a headless browser, in both themes, wide and narrow."""

import importlib.util
import json

import browser
import pytest
import show_programs

import jaxremat

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("nbconvert") is None, reason="needs nbconvert"),
    pytest.mark.skipif(browser.CHROMIUM is None, reason="needs chromium"),
]


def assert_legible(found):
    assert found["texts"] > 20
    assert found["overlaps"] == []
    assert found["outside"] == []
    assert found["faint"] == []
    assert found["small"] == []


@pytest.fixture(scope="module")
def outputs(plan, loop_plan, plain_plan):
    """What a notebook with plans and a curve shows."""
    loss, args = show_programs.tower(layers=3)
    front = jaxremat.pareto(loss, *args, budgets=(0.8, 0.6, 0.1))
    return [shown._repr_html_() for shown in (plan, loop_plan, plain_plan, front)]


@pytest.mark.parametrize("width", [420, 760, 1300])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_notebook_is_legible_in_its_own_theme(outputs, theme, width, tmp_path):
    """Whatever the system prefers: here, the opposite of what the notebook shows."""
    found = browser.audit(browser.notebook(*outputs, theme=theme), tmp_path, width, dark_system=theme == "light")
    assert_legible(found)
    assert min(found["fill"][:3]) > 0.95


def test_the_classic_notebook_too(outputs, tmp_path):
    assert_legible(browser.audit(browser.notebook(*outputs, template="classic"), tmp_path, 1000))


@pytest.mark.parametrize("theme", browser.VSCODE)
def test_vscode_too(outputs, theme, tmp_path):
    page = browser.vscode(*outputs, theme=theme)
    assert_legible(browser.audit(page, tmp_path, 760, dark_system=theme == "light"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colab_too(outputs, theme, tmp_path):
    page = browser.colab(*outputs, theme=theme)
    assert_legible(browser.audit(page, tmp_path, 760, dark_system=theme == "light"))


@pytest.mark.parametrize("dark_system", [False, True])
def test_a_page_of_its_own_follows_the_system(plan, dark_system, tmp_path):
    plan.show(file=tmp_path / "plan.html")
    assert_legible(browser.audit((tmp_path / "plan.html").read_text(), tmp_path, 900, dark_system))


def test_the_audit_sees_what_is_wrong(tmp_path):
    bad = (
        '<div class="jaxremat" style="width:300px"><div style="color:#ccc;background:#fff">faint</div>'
        '<div style="position:relative;height:20px"><span style="position:absolute;left:0">one upon</span>'
        '<span style="position:absolute;left:5px">another</span></div><div style="font-size:5px">tiny</div></div>'
    )
    found = browser.audit(browser.notebook(bad), tmp_path, 800)
    assert [text for text, _ in found["faint"]] == ["faint"]
    assert found["overlaps"] == [["one upon", "another"]]
    assert "tiny" in [text for text, _ in found["small"]]


def test_resting_on_a_moment_tells_what_is_live_there(plan, tmp_path):
    pointer = pytest.importorskip("pointer", reason="needs websocket-client")
    page = tmp_path / "page.html"
    page.write_text(browser.notebook(plan._repr_html_(), theme="dark"))
    shown = "[...document.querySelectorAll('{}')].filter(e => getComputedStyle(e).visibility == 'visible').length"
    spot = "JSON.stringify(document.querySelectorAll('.jaxremat-spots')[1].children[20].getBoundingClientRect())"
    with pointer.Page(page, tmp_path) as opened:
        assert opened.evaluate(shown.format(".jaxremat-shown")) == 0
        assert opened.evaluate(shown.format(".jaxremat-rest")) == 2
        box = json.loads(opened.evaluate(spot))
        opened.rest_on(box["x"] + box["width"] / 2, box["y"] + 60)
        assert opened.evaluate(shown.format(".jaxremat-shown")) == 1
        assert opened.evaluate(shown.format(".jaxremat-rest")) == 1
