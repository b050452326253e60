"""Rates of this machine as `calibrate` measures them."""

import dataclasses

import jax
import pytest

from jaxremat.backends import calibration
from jaxremat.backends.devices import DEVICES, resolve_target
from jaxremat.backends.measured import measured_rates


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_calibrate_measures_this_machine(monkeypatch):
    monkeypatch.setattr(calibration, "_SECONDS", 0.0)
    measured = calibration.calibrate()
    assert measured.name == "cpu" and measured.host_bytes_per_second is None
    assert resolve_target(None) == measured == resolve_target("cpu")
    for rate in (*measured.matrix_flops_per_second, measured.vector_flops_per_second):
        assert 1e6 < rate < 1e14
    assert 1e8 < measured.bandwidth_bytes_per_second < 1e13 and 0 < measured.launch_seconds < 0.1
    assert (
        dataclasses.replace(measured, **{k: getattr(DEVICES["cpu"], k) for k in measured_rates("cpu")})
        == DEVICES["cpu"]
    )


def test_the_device_that_is_asked_for_is_measured(monkeypatch):
    monkeypatch.setattr(calibration, "_SECONDS", 0.0)
    assert calibration.calibrate(jax.devices("cpu")[0]).name == "cpu"
