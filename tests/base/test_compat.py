"""The version table of `base.compat`: each form keeps its saving on the installed JAX, whatever the remat flags."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxremat.base import compat

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
for form in {forms!r}:
    plan = jaxremat.plan(loss, *args, budget=0.7, emit=form)
    print(form, peak(plan.apply(loss)) / peak(loss))
"""
DOCS = Path(__file__).resolve().parents[2] / "docs" / "limits.md"


def table_of(lines, split):
    """{(form, flag): promise} of the lines from the table's header on."""
    rows = [split(line) for line in lines]
    start = next(i for i, row in enumerate(rows) if row[:1] == ["form"])
    flags = rows[start][1:]
    body = [row for row in rows[start + 1 : start + 5] if len(row) == len(flags) + 1 and row[0].isalpha()]
    return {(row[0], flag): promise for row in body for flag, promise in zip(flags, row[1:], strict=True)}


TABLE = table_of(compat.__doc__.splitlines(), lambda line: re.split(r"\s{2,}", line.strip()))
FLAGS = tuple(dict.fromkeys(flag for _, flag in TABLE))


def test_the_documentation_has_the_same_table():
    text = DOCS.read_text()
    ours = table_of(text.splitlines(), lambda line: [cell.strip() for cell in line.strip("|").split("|")])
    assert ours == TABLE and {form for form, _ in TABLE} == {"schedule", "segments", "names"}
    assert re.search(r"jax [\d.]+ and [\d.]+\d", compat.__doc__)[0] in text


@pytest.mark.parametrize("flag", FLAGS)
def test_saving_survives_the_flags(flag):
    forms = [form for (form, f), promise in TABLE.items() if f == flag and promise.startswith("yes")]
    assert "schedule" in forms
    flags = {} if flag == "default" else {"JAX_REMAT3": "1", **dict([flag.split("=")])}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(forms=forms)],
        env={**os.environ, **flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    ratios = dict(line.split() for line in run.stdout.splitlines() if line.split()[0] in forms)
    assert list(ratios) == forms and all(float(ratio) <= 0.7 for ratio in ratios.values()), ratios
