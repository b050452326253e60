"""Measured rates: kept per user, preferred to data sheets, harmless when damaged."""

import json
import logging

import pytest

from jaxremat.backends.devices import DEVICES, resolve_target
from jaxremat.backends.measured import keep_rates, measured_rates, rates_file


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_without_a_file_the_data_sheet_counts():
    assert resolve_target("h200") == DEVICES["h200"] and not rates_file().exists()


def test_measured_rates_are_preferred_and_other_targets_stay():
    keep_rates("h200", {"bandwidth_bytes_per_second": 4e12, "matrix_flops_per_second": [1e15, 6e14, 3e14, 5e13]})
    keep_rates("l4", {"launch_seconds": 3e-6})
    h200, sheet = resolve_target("h200"), DEVICES["h200"]
    assert h200.bandwidth_bytes_per_second == 4e12 and h200.matrix_flops_per_second[1] == 6e14
    assert h200.launch_seconds == sheet.launch_seconds and h200.memory_bytes == sheet.memory_bytes
    assert resolve_target("l4").launch_seconds == 3e-6 and resolve_target("a100") == DEVICES["a100"]


def test_compilers_go_by_data_sheets():
    keep_rates("h200", {"bandwidth_bytes_per_second": 4e12, "vector_flops_per_second": 1e13})
    assert resolve_target("h200") != DEVICES["h200"] == resolve_target("h200").as_described


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"h200": 3}', '{"h200": {"launch_seconds": "fast", "matrix_flops_per_second": [1, 2]}}',
     '{"h200": {"bandwidth_bytes_per_second": -1, "launch_seconds": NaN}}'],
)  # fmt: skip
def test_a_damaged_file_does_no_harm(text, caplog):
    rates_file().parent.mkdir(parents=True)
    rates_file().write_text(text)
    with caplog.at_level(logging.WARNING, "jaxremat"):
        assert resolve_target("h200") == DEVICES["h200"]
    assert bool(caplog.records) == (text in ("", "{")), "what is no JSON is said"
    keep_rates("h200", {"launch_seconds": 2e-6})
    assert measured_rates("h200") == {"launch_seconds": 2e-6} and json.loads(rates_file().read_text())
