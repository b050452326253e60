"""Budgets as people write them."""

import numpy as np
import pytest

from jaxremat.base.budget import budget_bytes, format_bytes, keep_bytes, parse_budget
from jaxremat.base.errors import ArgumentError


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (12, 12),
        (np.int64(7), 7),
        ("12GiB", 12 * 2**30),
        ("1.5 KiB", 1536),
        ("800MB", 800_000_000),
        ("1e3b", 1000),
        ("2 tib", 2**41),
        ("4096", 4096),
        (0.5, 0.5),
        (1.0, 1.0),
        (np.float32(0.25), 0.25),
        ("least", "least"),
        ("device", "device"),
    ],
)
def test_what_is_meant(given, meant):
    found = parse_budget(given)
    assert found == meant and type(found) in (int, float, str)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (True, "is no size"),
        (0, "leaves no byte"),
        (-3, "leaves no byte"),
        ("0GiB", "leaves no byte"),
        (1.5, "not a fraction"),
        (0.0, "not a fraction"),
        (float("nan"), "not a fraction"),
        ("0.5", "0.5 without quotes is a fraction"),
        ("40%", "0.4 is that share"),
        ("leest", "Did you mean 'least'"),
        ("12 giga", "cannot be read"),
        (None, "cannot be read"),
        ([1], "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_told_with_what_can(given, told):
    with pytest.raises(ArgumentError, match=told):
        parse_budget(given)


@pytest.mark.parametrize(("given", "size"), [(0.5, 499), ("device", 70), (123, 123), (1e-9, 1)])
def test_fractions_are_of_the_plain_peak_and_rounded_down(given, size):
    assert budget_bytes(given, 999, 70) == size


@pytest.mark.parametrize(("given", "size"), [(0, 0), (0.4, 39), (1.0, 99), ("1KiB", 1024), (12, 12)])
def test_a_block_may_leave_nothing_behind(given, size):
    assert keep_bytes(given, 99) == size


@pytest.mark.parametrize("given", [-1, 1.5, True, "least", None])
def test_what_a_block_cannot_leave_behind(given):
    with pytest.raises(ArgumentError, match="keep="):
        keep_bytes(given, 99)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (-2048, "-2.0 KiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (2**42, "4.0 TiB"),
    ],
)
def test_bytes_are_told_in_the_largest_unit_that_they_fill(number, text):
    assert format_bytes(number) == text
