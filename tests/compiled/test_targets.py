"""Devices to compile for: what is here, what is missing, and what is said then."""

import os

import jax
import pytest

from jaxremat.backends.devices import DEVICES, resolve_target
from jaxremat.base.errors import ArgumentError, TargetError
from jaxremat.compiled import targets
from jaxremat.compiled.targets import compiler_lock, is_here, list_targets, target_devices


def test_a_cpu_is_always_here():
    assert target_devices("cpu") == jax.devices("cpu") == target_devices()
    assert is_here(resolve_target("cpu")) and not is_here(resolve_target("h200"))


def test_unknown_targets_are_told_the_names():
    with pytest.raises(ArgumentError, match="h200"):
        target_devices("h201")


@pytest.mark.parametrize(("target", "line"), [("h200", "jax\\[cuda12"), ("tpu-v5e", "pip install libtpu")])
def test_a_missing_compiler_is_named_with_what_to_install(target, line, monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(TargetError, match=line):
        target_devices(target)


def test_every_target_is_listed_with_why_it_does_not_work(monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda module: None)
    found = {device.name: reason for device, reason in list_targets()}
    assert set(found) == set(DEVICES) and found["cpu"] == ""
    assert all("not installed" in reason for name, reason in found.items() if DEVICES[name].platform != "cpu")


def test_a_compiler_that_refuses_is_quoted(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no such topology\nand more")

    monkeypatch.setattr(targets, "_require_plugin", lambda device: None)
    monkeypatch.setattr(targets.topologies, "get_topology_desc", refuse)
    targets._topology.cache_clear()
    with pytest.raises(TargetError, match=r"refused: no such topology\. Check that its version matches jax"):
        target_devices("h200")


def test_variables_are_set_while_a_block_runs_and_given_ones_stay(monkeypatch):
    monkeypatch.setenv("GIVEN", "before")
    with targets._environment({"GIVEN": "other", "NEW": "1"}):
        assert os.environ["GIVEN"] == "before" and os.environ["NEW"] == "1"
    assert "NEW" not in os.environ and os.environ["GIVEN"] == "before"


def test_only_tpus_need_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(targets.tempfile, "gettempdir", lambda: str(tmp_path))
    with compiler_lock(resolve_target("h200")):
        assert not list(tmp_path.iterdir())
    with compiler_lock(resolve_target("tpu-v5e")):
        assert len(list(tmp_path.iterdir())) == 1
