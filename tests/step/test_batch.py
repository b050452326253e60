import dataclasses
import sys

import jax
import jax.numpy as jnp
import pytest
import step_programs

import jaxremat
from jaxremat.compiled.compile import compile_jitted


def args_for(size):
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    return [shape(256, 256)] * 12, shape(size, 256)


def step(params, x):
    value, grads = jax.value_and_grad(step_programs._loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


@pytest.mark.slow
def test_batch_grows_beyond_what_fits_as_written_and_keeps_to_the_budget():
    written = jaxremat.jit(step, budget=1.0, donate_argnums=0).plan(*args_for(4096)).compiled.peak_bytes
    found = jaxremat.largest_batch(
        step, args_for, sizes=range(4096, 40961, 4096), budget=written, donate_argnums=0, tolerance=0.5
    )
    assert found.size >= 1.5 * 4096
    assert found.plan.compiled.peak_bytes <= written == found.budget_bytes
    assert found.plan.compilations <= 6
    chosen = next(row for row in found.table if row.size == found.size)
    assert chosen.is_compiled and chosen.written_bytes > written
    assert any(not row.fits and row.planned_bytes > written for row in found.table)
    text, page = str(found), found._repr_html_()
    assert f"batch {found.size} in" in text and "does not fit" in text and "chosen" in page


def test_smallest_size_that_does_not_fit_is_refused_with_its_holders():
    with pytest.raises(jaxremat.BudgetError, match="params"):
        jaxremat.largest_batch(step, args_for, sizes=[4096], budget="1MiB", donate_argnums=0, verify="replay")


def test_without_tolerance_the_fastest_size_per_example_is_taken():
    found = jaxremat.largest_batch(
        step, args_for, sizes=(4096, 8192), budget="124MiB", donate_argnums=0, tolerance=0, verify="replay"
    )
    fitting = [row for row in found.table if row.fits]
    assert found.size == min(fitting, key=lambda row: row.seconds_per_example).size


@pytest.mark.parametrize(("sizes", "budget"), [([], "1GiB"), ([0, 4], "1GiB"), ([4], 0.5), ([4], "least")])
def test_bad_questions_are_refused(sizes, budget):
    with pytest.raises(jaxremat.ArgumentError):
        jaxremat.largest_batch(step, args_for, sizes=sizes, budget=budget)


class Heavier:
    """A compiler by which all temporaries take some times as much, as predictions may be off; it counts its calls."""

    def __init__(self, factor):
        self.calls = 0
        self.factor = factor

    def __call__(self, *args):
        self.calls += 1
        compiled = compile_jitted(*args)
        more = int((self.factor - 1) * compiled.report.temp_bytes)
        report = dataclasses.replace(compiled.report, peak_bytes=compiled.report.peak_bytes + more)
        return dataclasses.replace(compiled, report=report)


@pytest.mark.parametrize("factor", [1.2, 1.6, 3.0])
def test_sizes_that_are_refused_once_compiled_cost_few_compilations(monkeypatch, factor):
    compiler = Heavier(factor)
    monkeypatch.setattr(sys.modules["jaxremat.step.planned_step"], "compile_jitted", compiler)
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    few = lambda size: ([shape(64, 64)] * 6, shape(size, 64))
    limit = jaxremat.jit(step, budget=1.0, verify="replay").plan(*few(8192)).baseline_peak_bytes
    found = jaxremat.largest_batch(step, few, sizes=range(1024, 32768, 1024), budget=limit, tolerance=9)
    assert found.compilations == compiler.calls <= 6
    assert found.plan.compiled.peak_bytes <= limit
    refused = [row for row in found.table if row.size > found.size]
    assert refused and not any(row.fits for row in refused)
    assert all(row.planned_bytes > limit for row in refused)
