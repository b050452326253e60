"""The version table of `_compat`: each form keeps its saving on the installed JAX, whatever the remat flags."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, jaxremat
def loss(ws, x):
    for w in ws:
        x = jnp.sin(x @ w)
    return jnp.sum(x**2)
shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
args = [shape(32, 32)] * 12, shape(2048, 32)
def peak(fun):
    memory = jax.jit(jax.value_and_grad(fun)).lower(*args).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
plan = jaxremat.plan(loss, *args, budget=0.7, emit={form!r})
print(peak(plan.apply(loss)) / peak(loss))
"""
REMAT3 = {"JAX_REMAT3": "1"}
NO_COTANGENTS = {"JAX_REMAT3": "1", "JAX_REMAT_BARRIER_NO_COTANGENTS": "1"}


@pytest.mark.parametrize(
    ("form", "flags"),
    [("schedule", REMAT3), ("schedule", NO_COTANGENTS), ("segments", {}), ("segments", REMAT3), ("names", REMAT3)],
    ids=lambda value: "+".join(value) or "default" if isinstance(value, dict) else value,
)
def test_saving_survives_the_flags(form, flags):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(form=form)],
        env={**os.environ, **flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[-1]) <= 0.7
