"""A permission never makes a plan worse: what is found without it is among what is chosen from with it."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxremat
from jaxremat.base.stopwatch import Stopwatch
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planning.compilations import Compilations
from jaxremat.planning.least_search import LeastSearch
from jaxremat.planning.permitted_search import PermittedSearch

EACH = ("offload", "narrow", "project", "chunk")
PERMISSIONS = [allow for number in (1, 2, 3) for allow in itertools.combinations(EACH, number)]
LAYERS, WIDTH, ROWS = 4, 512, 16384


def unrolled(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


def scanned(ws, x):
    x = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0]
    return jnp.mean(x**2)


def returning(ws, x):
    """Layers that all read the first value again."""
    first = jnp.tanh(x @ ws[0])
    for w in ws[1:]:
        x = jnp.sin(x @ w) * first
    return jnp.mean(x**2)


@functools.cache
def predicted(fun, budget, allow):
    """The predicted plan for an H200; None where nothing is predicted to fit."""
    weight, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((WIDTH, WIDTH), (ROWS, WIDTH)))
    ws = jax.ShapeDtypeStruct((LAYERS, *weight.shape), weight.dtype) if fun is scanned else [weight] * LAYERS
    try:
        return jaxremat.plan(fun, ws, x, budget=budget, target="h200", verify="replay", allow=allow)
    except jaxremat.BudgetError:
        return None


@pytest.mark.parametrize("fun", [unrolled, scanned, returning])
@settings(max_examples=5, deadline=None)
@given(allow=st.sampled_from(PERMISSIONS), share=st.sampled_from([0.85, 0.7, 0.55]))
def test_no_permission_makes_what_is_predicted_to_fit_slower(fun, allow, share):
    without = predicted(fun, share, ())
    if without and without.peak_bytes <= without.budget_bytes:
        assert predicted(fun, share, allow).overhead <= without.overhead + 1e-9


@pytest.mark.parametrize("fun", [unrolled, scanned, returning])
@settings(max_examples=3, deadline=None)
@given(allow=st.sampled_from(PERMISSIONS))
def test_no_permission_makes_the_least_that_is_predicted_larger(fun, allow):
    assert predicted(fun, "least", allow).peak_bytes <= predicted(fun, "least", ()).peak_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """An outcome, with what its compilation will say."""

    peak_bytes: int
    cost: float
    compiled_bytes: int
    seconds: float = 1.0
    replayed_bytes: int = 0


PLAIN = Told(2000, 1.0, 2000)


def compilations_of():
    def compile(outcome):
        report = MemoryReport("h200", 0, 0, outcome.compiled_bytes, 0, outcome.compiled_bytes, 0.0)
        return dataclasses.replace(report, seconds=outcome.seconds)

    return Compilations(compile, Stopwatch(), lambda outcome: outcome is PLAIN)


def chosen(own, *permitted):
    """(what is chosen within 1000 bytes, what is compiled beside what is found without the permission)."""

    def propose(limit):
        within = [outcome for outcome in permitted if outcome.peak_bytes <= limit]
        return min(within, key=lambda outcome: outcome.cost, default=None)

    compilations = compilations_of()
    search = PermittedSearch(propose, lambda outcome, report: report.seconds, compilations, PLAIN)
    answer = search.beside(own, 1000)
    return answer, [each.candidate for each in compilations.trials if each.candidate not in (own, PLAIN)]


OWN = Told(900, 1.3, 990, 1.3)


def test_what_is_faster_with_a_permission_is_chosen():
    faster = Told(900, 1.2, 980, 1.2)
    assert chosen(OWN, faster) == (faster, [faster])


def test_what_is_predicted_to_be_faster_and_is_not_as_compiled_is_not_chosen():
    slow = Told(900, 1.1, 980, 1.4)
    assert chosen(OWN, slow) == (OWN, [slow])


@pytest.mark.parametrize("cost", [1.3, 1.295])
def test_what_is_predicted_to_win_next_to_nothing_is_not_compiled(cost):
    assert chosen(OWN, Told(900, cost, 980, cost)) == (OWN, [])


def test_what_took_longer_than_predicted_is_compared_by_what_it_took():
    own, other = Told(900, 1.1, 990, 1.5), Told(900, 1.2, 980, 1.2)
    assert chosen(own, other)[0] is other


def test_predictions_are_as_far_off_as_without_the_permission():
    """What was compiled took a tenth more than predicted: what is predicted to take all of the limit is not tried."""
    too_large, small = Told(950, 1.1, 1060, 1.1), Told(905, 1.2, 1000, 1.2)
    assert chosen(OWN, too_large, small) == (small, [small])


def test_one_more_is_compiled_where_the_first_does_not_fit():
    large, small, smaller = Told(900, 1.1, 1100, 1.1), Told(800, 1.2, 980, 1.2), Told(700, 1.25, 900, 1.25)
    assert chosen(OWN, large, small, smaller) == (small, [large, small])
    too_large = dataclasses.replace(small, compiled_bytes=1001)
    assert chosen(OWN, large, too_large, smaller) == (OWN, [large, too_large])


def least(own, permitted):
    """(what is found as the least with a permission, how many are compiled beside the program as written)."""
    planner = SimpleNamespace(plain=PLAIN, least=lambda: [*own, *permitted])
    without = SimpleNamespace(plain=PLAIN, least=lambda: own)
    request, compilations = SimpleNamespace(refuses=True), compilations_of()
    bare = SimpleNamespace(planner=without, request=request, unpermitted=None)
    subject = SimpleNamespace(planner=planner, request=request, unpermitted=bare)
    return LeastSearch(subject, compilations).compiled().candidate, len(compilations.trials) - 1


def test_the_least_without_a_permission_is_among_those_with_it():
    own = [Told(1000 - 20 * k, 1.0, 1000 - 10 * k) for k in range(6)]
    permitted = [Told(800 - 10 * k, 1.0, 1500) for k in range(6)]
    assert least(own, ())[0] is least(own, permitted)[0] is own[-1]
    assert least(own, permitted)[1] <= least(own, ())[1] + 3


def test_what_is_smaller_with_a_permission_is_the_least():
    own, permitted = [Told(1000, 1.0, 1000), Told(990, 1.0, 995)], Told(700, 1.0, 710)
    assert least(own, [permitted])[0] is permitted
