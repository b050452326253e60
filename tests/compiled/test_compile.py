"""Compiling gradients for this machine and reading their bytes."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_programs import arguments, random_program

from jaxremat import commands as command_line
from jaxremat.backends.devices import DEVICES
from jaxremat.base.errors import ArgumentError, TargetError
from jaxremat.compiled import compile as compile_module
from jaxremat.compiled import targets
from jaxremat.compiled.compile import compile_for, compile_gradient
from jaxremat.compiled.targets import is_here

W, X = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((32, 64), jnp.float32)


def loss(w, x):
    return jnp.mean(jnp.tanh(x @ w) ** 2)


def test_report_is_what_the_compiler_says():
    report = compile_gradient(loss, (W, X), argnums=(0, 1))
    stats = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(W, X).compile().memory_analysis()
    assert report.argument_bytes == stats.argument_size_in_bytes == 4 * (64 * 64 + 32 * 64)
    assert report.temp_bytes == stats.temp_size_in_bytes
    assert report.output_bytes == stats.output_size_in_bytes
    assert report.peak_bytes == report.argument_bytes + report.output_bytes + report.temp_bytes - report.alias_bytes
    assert report.target == "cpu" and "peak" in str(report) and "KiB" in str(report)


@pytest.mark.parametrize("seed", range(4))
def test_what_xla_decides_is_the_same_however_little_llvm_does(seed):
    """So that tests may compile with the least of it, as `conftest` has them do."""
    lowered = jax.jit(jax.value_and_grad(random_program(seed))).lower(*arguments())
    least, usual = (
        lowered.compile({"xla_backend_optimization_level": level, "xla_llvm_disable_expensive_passes": level == 0})
        for level in (0, 3)
    )
    assert least.as_text() == usual.as_text()
    assert least.memory_analysis().temp_size_in_bytes == usual.memory_analysis().temp_size_in_bytes


def test_concrete_arrays_and_trees_are_accepted():
    report = compile_gradient(
        lambda p, x: loss(p["w"], x), ({"w": np.zeros((64, 64), np.float32)}, np.zeros((32, 64), np.float32))
    )
    assert report.peak_bytes == compile_gradient(loss, (W, X)).peak_bytes


def test_auxiliary_output():
    report = compile_gradient(lambda w, x: (loss(w, x), x * 2), (W, X), has_aux=True)
    assert report.output_bytes >= 4 * (64 * 64 + 32 * 64)


def test_outputs_other_than_a_scalar_take_cotangents():
    report = compile_gradient(lambda w, x: (x @ w, jnp.argmax(x)), (W, X), argnums=(0, 1))
    assert report.argument_bytes >= 4 * (64 * 64 + 2 * 32 * 64)


def test_optimized_text_is_available():
    assert "ENTRY" in compile_for(loss, (W, X)).hlo_text()


def test_unknown_target_lists_the_known_ones():
    with pytest.raises(ArgumentError, match="h200"):
        compile_gradient(loss, (W, X), target="gtx")


def test_a_missing_plugin_names_the_pip_line(monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    targets._topology.cache_clear()
    with pytest.raises(TargetError, match="pip install"):
        targets.target_devices("h200")
    with pytest.raises(TargetError, match="pip install libtpu"):
        targets.target_devices("tpu-v5e")
    targets._topology.cache_clear()


def test_the_command_lists_every_target(monkeypatch, capsys):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    targets._topology.cache_clear()
    environment = dict(os.environ)
    assert command_line.main(["targets"]) == 0
    targets._topology.cache_clear()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(DEVICES)
    assert "works" in lines[0] and all("pip install" in line for line in lines[1:])
    assert dict(os.environ) == environment


@pytest.mark.parametrize(("is_here", "options"), [(True, None), (False, {"xla_gpu_autotune_level": 0})])
def test_programs_for_a_device_that_is_here_are_compiled_as_they_will_run(is_here, options, monkeypatch):
    class Lowered(Exception):
        """What the compiler was asked for."""

    def refuse(self, compiler_options=None):
        raise Lowered(compiler_options)

    monkeypatch.setattr(compile_module, "is_here", lambda device: is_here)
    monkeypatch.setattr(compile_module, "target_devices", lambda target: jax.devices())
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    with pytest.raises(Lowered) as asked:
        compile_for(lambda x: x.sum(), (jax.ShapeDtypeStruct((8,), jnp.float32),), target="h200")
    assert asked.value.args[0] == options


def test_this_machines_processor_is_here_and_a_gpu_is_not():
    assert is_here(DEVICES["cpu"]) and not is_here(DEVICES["h200"])
