"""Plans of loops for GPUs: the fastest of what is emitted, where what is kept has to be stacked."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxremat.backends.devices import resolve_target
from jaxremat.planner.choose import planner_for
from jaxremat.planner.contract import left_behind
from jaxremat.planner.timed_loops import TimedLoopPlanner
from jaxremat.solvers.auto import Auto
from jaxremat.trace.primal import read_primal

H200 = resolve_target("h200")
LAYERS, ROWS, WIDTH = 8, 8192, 512
WEIGHTS = tuple(jax.ShapeDtypeStruct((LAYERS, *shape), jnp.bfloat16) for shape in ((WIDTH, 1024), (1024, WIDTH)))
X = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16)


def loss(weights, x):
    def step(x, w):
        return x + jax.nn.gelu(jnp.sin(x) @ w[0]) @ w[1], None

    return jnp.mean(lax.scan(step, x, weights)[0].astype(jnp.float32) ** 2)


@pytest.fixture(scope="module")
def planner():
    return planner_for(read_primal(loss, (WEIGHTS, X), 0, False), H200, Auto(), "schedule", 0)


def test_loops_for_gpus_are_planned_by_time(planner):
    assert isinstance(planner, TimedLoopPlanner)
    assert planner.plain.cost == planner.plain.timeline.cost


def test_outcomes_fit_and_no_smaller_one_is_faster(planner):
    peak_bytes = planner.plain.peak_bytes
    outcomes = [planner.fit(int(share * peak_bytes)) for share in (0.3, 0.5, 0.8)]
    assert all(o.peak_bytes <= share * peak_bytes for o, share in zip(outcomes, (0.3, 0.5, 0.8)))
    costs = [outcome.cost for outcome in outcomes]
    assert all(after <= 1.01 * before for before, after in itertools.pairwise(costs))


def recurrent(weights, xs):
    def step(carry, x):
        state, cell = carry
        into, keep, out, new = jnp.split(jnp.concatenate([x, state], -1) @ weights, 4, -1)
        cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(into) * jnp.tanh(new)
        state = jax.nn.sigmoid(out) * jnp.tanh(cell)
        return (state, cell), state

    zeros = jnp.zeros(xs.shape[1:])
    return jnp.mean((lax.scan(step, (zeros, zeros), xs)[1] - xs) ** 2)


def test_no_budget_of_a_recurrence_is_slower_than_a_smaller_one():
    """Each asked of a planner of its own: what was found for another budget does not help."""
    args = jax.ShapeDtypeStruct((256, 512), jnp.float32), jax.ShapeDtypeStruct((256, 256, 128), jnp.float32)
    primal = read_primal(recurrent, args, 0, False)
    costs = []
    for share in (0.2, 0.22, 0.25, 0.27, 0.3, 0.35, 0.4, 0.5):
        planner = TimedLoopPlanner(primal, H200)
        costs.append(planner.fit(int(share * planner.plain.peak_bytes)).cost)
    assert all(after <= 1.01 * before for before, after in itertools.pairwise(costs))


def test_making_again_beats_stacking_where_kernels_make_it_on_the_way(planner):
    """Everything stacked is written and read once more: with half of the bytes the loop is faster than as written."""
    assert planner.fit(planner.plain.peak_bytes // 2).cost < planner.plain.cost


def test_checkpoints_around_every_iteration_are_a_candidate(planner):
    schedules = planner._schedules
    decisions = schedules._loops.checkpointed(schedules._loops.found)
    (by_hand,) = (outcome for outcome in schedules.at_all_prices() if outcome.problem.loops == decisions)
    (piece,) = decisions[0].pieces
    assert piece.count == LAYERS and not piece.inside
    found = planner.fit(by_hand.peak_bytes)
    assert found.peak_bytes <= by_hand.peak_bytes
    assert found.cost <= 1.01 * by_hand.timeline.cost


def test_what_is_left_behind_can_be_bounded(planner):
    saved_bytes = left_behind(planner.plain) // 4
    outcome = planner.leaving(saved_bytes)
    assert 0 < left_behind(outcome) <= saved_bytes


@pytest.mark.parametrize(
    ("target", "slower", "proposed"), [("tpu-v5e", 1.08, True), ("h200", 1.08, False), ("h200", 1.03, True)]
)
def test_checkpoints_are_proposed_where_they_may_be_faster(target, slower, proposed):
    """On a TPU times are replayed ones: what is predicted to be a little slower may well be faster."""
    primal = read_primal(loss, (WEIGHTS, X), 0, False)
    planner = planner_for(primal, resolve_target(target), Auto(), "schedule", 0)
    assert isinstance(planner, TimedLoopPlanner)
    by_hand = planner._at_its_time(planner._schedules.checkpointed)
    assert list(planner.near_misses(planner.plain, by_hand.cost / slower, by_hand.peak_bytes)) == (
        [by_hand] if proposed else []
    )
    assert not list(planner.near_misses(planner.plain, by_hand.cost / slower, by_hand.peak_bytes // 2))


def masked_loss(weights, x):
    """Iterations that compare positions for a mask of several heads."""

    def step(x, w):
        positions = jnp.arange(x.shape[-1])
        scores = jnp.where(positions[:, None] >= positions[None], jnp.einsum("bhi,bhj->bhij", x, jnp.sin(x @ w)), -1e9)
        return x + jnp.einsum("bhij,bhj->bhi", jax.nn.softmax(scores), x), None

    return jnp.mean(lax.scan(step, x, weights)[0] ** 2)


MASKED = jax.ShapeDtypeStruct((4, 64, 64), jnp.float32), jax.ShapeDtypeStruct((64, 8, 64), jnp.float32)


@pytest.mark.parametrize(("target", "before"), [("h200", [True, False]), ("tpu-v5e", [False])])
def test_masks_are_made_before_loops_on_gpus_and_inside_where_these_bytes_are_wanted(target, before):
    planner = planner_for(read_primal(masked_loss, MASKED, 0, False), resolve_target(target), Auto(), "schedule", 0)
    proposed = list(planner.near_misses(planner.plain, 10 * planner.plain.cost, planner.plain.peak_bytes))
    assert [outcome.form.has_masks_before_loops for outcome in proposed] == before


def test_a_form_is_read_back_with_its_masks():
    primal = read_primal(masked_loss, MASKED, 0, False)
    planner = planner_for(primal, H200, Auto(), "schedule", 0)
    form = planner.fit(planner.plain.peak_bytes // 2).form
    again = type(form).from_json(form.to_json())
    assert again.has_masks_before_loops
    joint, script = again.script(primal, H200)
    assert joint.fingerprint == form.gradient and len(script.backward) == len(form.script(primal, H200)[1].backward)
