"""What a plan shows in a notebook."""

import re
from html.parser import HTMLParser

import pytest

VOID = {"meta", "br", "img", "input"}


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parsed(page):
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def assert_self_contained(page):
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|<script|<link|<iframe", page)
    assert set(re.findall(r"https?://[^\"' ]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_page_is_balanced_and_self_contained(any_plan):
    page = any_plan._repr_html_()
    words = " ".join(parsed(page).words)
    assert_self_contained(page)
    assert page.count("<svg") == 2
    for word in (
        "budget",
        "predicted",
        "compiled",
        "as written",
        "planned",
        "forward",
        "backward",
        "arguments",
        "saved",
    ):
        assert word in words
    assert "prefers-color-scheme" not in page, "a notebook's theme is not the system's"


def test_coordinates_are_finite_and_inside(any_plan):
    page = any_plan._repr_html_()
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', page).groups())
    assert re.search(r'points="([^"]+)"', page)
    for points in re.findall(r'points="([^"]+)"', page):
        for point in points.split():
            x, y = map(float, point.split(","))
            assert -1 <= x <= width + 1
            assert -1 <= y <= height + 1


def test_show_writes_a_document(plan, tmp_path):
    plan.show(file=tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert page.startswith("<!doctype html>")
    assert_self_contained(page)
    parsed(page)


def test_show_without_a_notebook_is_the_text(plan, capsys):
    plan.show()
    assert capsys.readouterr().out == str(plan) + "\n"


def test_names_are_escaped(plan):
    assert "&quot;projection&quot;" in plan._repr_html_()
    assert "<lambda>" not in plan._repr_html_()


@pytest.mark.parametrize("attribute", ["onload", "onclick", "onerror"])
def test_no_handlers(plan, attribute):
    assert attribute not in plan._repr_html_()
