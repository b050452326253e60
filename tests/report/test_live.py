"""Live bytes by kind, the turn from forward to backward, and who is live at a moment."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.graph.scheduled import in_order
from jaxremat.planner.prediction import predict
from jaxremat.planner.problem import pose
from jaxremat.report.live import KINDS, kernel_seconds, live_bytes_of
from jaxremat.trace.primal import read_primal

RECOMPUTED, SAVED = KINDS.index("recomputed"), KINDS.index("saved")


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(32, (7, 7), (2, 2))(x)), (3, 3), (2, 2))
        for features in (32, 64):
            y = nn.relu(nn.GroupNorm(8)(nn.Conv(features, (3, 3), (2, 2))(x)))
            x = nn.Conv(features, (1, 1), (2, 2))(x) + nn.Conv(features, (3, 3))(y)
        return nn.Dense(10)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def convolutions():
    """(graph, scheduled as written, timeline predicted for a CPU) of a network of convolutions."""
    model, images = Residual(), jax.ShapeDtypeStruct((8, 96, 96, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    primal = read_primal(lambda p, x: (model.apply(p, x) ** 2).mean(), (params, images), 0, False)
    device = resolve_target("cpu")
    problem = pose(primal, device)
    timeline = predict(problem.joint, problem.graph, problem.in_order, device)
    return problem.graph, in_order(problem.graph), timeline


def test_kinds_add_up_to_the_live_bytes(any_plan):
    live = any_plan.report.planned.live
    np.testing.assert_array_equal(live.total_bytes, any_plan.timeline.live_bytes)
    assert live.by_kind.min() >= 0
    assert live.peak_bytes == any_plan.peak_bytes
    assert np.all(np.diff(live.end_seconds) >= 0)


def test_the_forward_of_convolutions_has_its_width(convolutions):
    """Copies of weights and images for weight gradients come first of all kernels, and take hardly any time."""
    graph, scheduled, timeline = convolutions
    live = live_bytes_of(graph, scheduled, timeline)
    forward = graph.costs[~graph.backward].sum() / graph.costs.sum()
    assert 0.5 * forward < live.forward_seconds / live.seconds < 1.5 * forward


def test_a_program_as_written_recomputes_nothing(convolutions, plain_plan):
    assert live_bytes_of(*convolutions).by_kind[RECOMPUTED].max() == 0
    assert live_bytes_of(*convolutions).by_kind[SAVED].max() > 0
    assert plain_plan.report.planned.live.by_kind[RECOMPUTED].max() == 0


def test_plans_that_recompute_hold_recomputed_bytes(plan):
    assert plan.report.planned.live.by_kind[RECOMPUTED].max() > 0
    assert plan.report.written.live.by_kind[RECOMPUTED].max() == 0


def test_the_kernels_of_a_node_take_its_time_once(convolutions):
    graph, scheduled, timeline = convolutions
    seconds = kernel_seconds(graph, scheduled, timeline.schedule)
    each = np.zeros(graph.num_nodes)
    np.add.at(each, timeline.schedule, seconds)
    np.testing.assert_allclose(each, np.where(np.isin(np.arange(graph.num_nodes), timeline.schedule), graph.costs, 0))


@pytest.mark.parametrize("columns", [1, 7, 60, 5000])
def test_samples_hold_the_peak(plan, columns):
    live = plan.report.planned.live
    sampled = live.sampled(columns, 1.3 * live.seconds)
    assert sampled.sum(0).max() == live.peak_bytes
    assert sampled.shape == (len(KINDS), columns)


def test_the_peak_is_told_in_parts_that_add_up(any_plan):
    assert sum(size for _, size in any_plan.report.peak) == any_plan.peak_bytes


def test_moments_name_who_is_live(plan):
    course = plan.report.planned
    moments = [moment for moment in course.moments if moment is not None]
    assert course.peak.total_bytes == plan.peak_bytes
    assert any("Tower/block_0" in holder.what for moment in moments for holder in moment.holders)
    for moment in moments:
        assert sum(holder.size_bytes for holder in moment.holders) + moment.rest_bytes == moment.total_bytes
        assert moment.rest_bytes >= 0
