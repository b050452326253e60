"""Random programs under random budgets: the same gradients, and peaks within the budget."""

import random

import jax
import numpy as np
import pytest
from random_programs import arguments, random_program

import jaxremat

_FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5)


def relative_difference(plain, planned):
    """Largest difference relative to the largest entry of all."""
    pairs = list(zip(jax.tree.leaves(plain), jax.tree.leaves(planned), strict=True))
    scale = max(float(np.abs(a).max()) for a, _ in pairs)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs) / max(scale, 1e-30)


def check_program(seed, verify):
    """Plans one program for one budget; returns whether there was a plan, and checks what it promises."""
    fraction = random.Random(seed).choice(_FRACTIONS)
    fun, args = random_program(seed), arguments()
    told = f"seed {seed}, budget {fraction}, verify {verify}"
    print(told)  # noqa: T201  the seed is what a failure is told by
    try:
        plan = jaxremat.plan(fun, *args, budget=fraction, argnums=(0, 1), verify=verify)
    except jaxremat.BudgetError as error:
        assert error.min_peak_bytes > error.budget_bytes, told
        again = jaxremat.plan(fun, *args, budget=error.min_peak_bytes, argnums=(0, 1), verify=verify)
        assert again.budget_bytes == error.min_peak_bytes, told
        return False
    if verify == "replay":
        assert plan.peak_bytes <= plan.budget_bytes, told
    else:
        assert plan.compiled.peak_bytes <= plan.budget_bytes, told
        assert plan.peak_bytes == plan.timeline.peak_bytes, told
    plain, planned = (jax.jit(jax.grad(f, (0, 1)))(*args) for f in (fun, plan.apply(fun)))
    assert relative_difference(plain, planned) < 1e-4, told
    return True


def test_random_programs_keep_their_gradients_and_their_budgets():
    planned = sum(check_program(seed, "replay") for seed in range(1000, 1005))
    assert planned >= 2


def test_random_programs_compile_within_their_budgets():
    assert sum(check_program(seed, "compile") for seed in range(2000, 2003)) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 60, 20))
def test_many_random_programs(first):
    planned = [check_program(seed, "compile" if seed % 10 == 0 else "replay") for seed in range(first, first + 20)]
    assert sum(planned) >= 8
