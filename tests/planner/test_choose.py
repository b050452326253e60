"""Which planner answers which request."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxremat.backends.devices import resolve_target
from jaxremat.base.errors import ArgumentError
from jaxremat.planner.checkpoints import PiecePlanner
from jaxremat.planner.choose import planner_for
from jaxremat.planner.narrow import NarrowPlanner
from jaxremat.planner.own_names import OwnNamesPlanner
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planner.solver_schedules import SolverPlanner
from jaxremat.planner.timed import TimedPlanner
from jaxremat.planner.timed_loops import TimedLoopPlanner
from jaxremat.planner.timed_transfers import TimedTransferPlanner
from jaxremat.planner.transfers import TransferPlanner
from jaxremat.solvers import Chen
from jaxremat.solvers.auto import Auto
from jaxremat.trace.primal import read_primal

ARGS = [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 4, jax.ShapeDtypeStruct((16, 8), jnp.float32)
STACKED = jax.ShapeDtypeStruct((4, 8, 8), jnp.float32), ARGS[1]


def layered(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


def scanned(ws, x):
    return jnp.mean(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0] ** 2)


def named(ws, x):
    for w in ws:
        x = jax.checkpoint(lambda w, x: checkpoint_name(jnp.sin(x @ w), "layer"))(w, x)
    return jnp.mean(x)


def planner(fun, args, target, emit="schedule", allow=(), solver=None):
    primal = read_primal(fun, args, 0, False)
    return planner_for(primal, resolve_target(target), solver or Auto(), emit, 0, frozenset(allow))


@pytest.mark.parametrize(
    ("fun", "args", "target", "allow", "kind"),
    [
        (layered, ARGS, "cpu", (), SchedulePlanner),
        (layered, ARGS, "h200", (), TimedPlanner),
        (layered, ARGS, "tpu-v5e", (), SchedulePlanner),
        (scanned, STACKED, "cpu", (), SchedulePlanner),
        (scanned, STACKED, "h200", (), TimedLoopPlanner),
        (scanned, STACKED, "tpu-v5e", (), TimedLoopPlanner),
        (layered, ARGS, "h200", ("offload",), TimedTransferPlanner),
        (scanned, STACKED, "h200", ("offload",), TransferPlanner),
        (scanned, STACKED, "tpu-v5e", ("offload",), TransferPlanner),
        (layered, ARGS, "h200", ("narrow",), NarrowPlanner),
    ],
)
def test_schedules_are_planned_as_the_target_can_be_predicted(fun, args, target, allow, kind):
    assert type(planner(fun, args, target, allow=allow)) is kind


FORMS = [(layered, "segments", PiecePlanner), (layered, "names", PiecePlanner), (named, "names", OwnNamesPlanner)]


@pytest.mark.parametrize(("fun", "emit", "kind"), FORMS)
def test_other_forms_have_planners_of_their_own(fun, emit, kind):
    assert type(planner(fun, ARGS, "cpu", emit)) is kind


def test_other_solvers_decide_schedules_alone():
    assert type(planner(layered, ARGS, "cpu", solver=Chen())) is SolverPlanner
    with pytest.raises(ArgumentError, match="solver='chen' decides schedules"):
        planner(layered, ARGS, "cpu", "segments", solver=Chen())


@pytest.mark.parametrize("allow", ["offload", "narrow", "project"])
@pytest.mark.parametrize("more", [{"emit": "segments"}, {"solver": Chen()}])
def test_values_wait_in_other_forms_in_schedules_of_the_default_search_alone(allow, more):
    with pytest.raises(ArgumentError, match=f"allow='{allow}' takes emit='schedule' and solver='auto'"):
        planner(layered, ARGS, "cpu", allow=(allow,), **more)
