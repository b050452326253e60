"""What an iteration reads of stacks and writes into them, as XLA:GPU compiles it."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.hlo_ops import bodies_of
from jaxremat.cost.memory import estimate_body, estimate_memory

H200 = resolve_target("h200")
LENGTH, SIDE = 4, 2048
STACK = jax.ShapeDtypeStruct((LENGTH, SIDE, SIDE), jnp.float32)
X = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
ENTRY_BYTES = 4 * SIDE * SIDE


def body_of(step):
    """The body of a scan of `step` over a stack."""
    jaxpr = jax.make_jaxpr(lambda x, stack: lax.scan(step, x, stack))(X, STACK)
    (scan,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    (body,) = bodies_of(scan)
    return body


def traffic_seconds(entries):
    return entries * ENTRY_BYTES / H200.bandwidth_bytes_per_second


def test_a_loop_reads_a_slice_where_it_is():
    estimate = estimate_body(body_of(lambda x, w: (jnp.sin(x) + w, None)), H200, KnownBodies())
    assert estimate.temp_bytes == 0
    assert estimate.seconds == pytest.approx(traffic_seconds(3) + H200.launch_seconds)


def test_a_product_reads_a_copy_of_its_slice():
    estimate = estimate_body(body_of(lambda x, w: (x @ w, None)), H200, KnownBodies())
    assert estimate.temp_bytes == ENTRY_BYTES


def test_what_is_stacked_is_written_in_place_by_a_kernel_of_its_own():
    stacking = estimate_body(body_of(lambda x, w: (jnp.sin(x) + w, x)), H200, KnownBodies())
    assert stacking.seconds == pytest.approx(traffic_seconds(5) + 2 * H200.launch_seconds)


def test_stacks_begin_as_zeros():
    def stacked(x, stack):
        return lax.scan(lambda x, w: (jnp.sin(x) + w, x), x, stack)[1].sum()

    def left(x, stack):
        return lax.scan(lambda x, w: (jnp.sin(x) + w, None), x, stack)[0].sum()

    with_stack, without = (estimate_memory(jax.make_jaxpr(f)(X, STACK).jaxpr, H200).seconds for f in (stacked, left))
    written_and_read = traffic_seconds(LENGTH) + traffic_seconds(LENGTH - 1)
    assert with_stack - without >= written_and_read + LENGTH * traffic_seconds(2)


def test_an_iteration_counts_in_the_larger_of_two_orders():
    """In that of the program `first` is read for the last time early; found from the outputs, it waits for the sum."""

    def step(x, w):
        first = x @ w
        summed = jnp.sum(jnp.sort(first, 0))
        second = first @ x
        return (second @ w) @ second, summed

    slice_first_second_and_third = 4 * ENTRY_BYTES
    assert estimate_body(body_of(step), H200, KnownBodies()).temp_bytes == slice_first_second_and_third


def test_weight_gradients_wait_for_what_the_next_iteration_needs():
    """Their operands are held until then."""
    wave = lambda x: jnp.sin(x) * jnp.cos(x)
    both = estimate_body(body_of(lambda x, w: (wave(x) @ w @ w @ w, wave(x).T @ x)), H200, KnownBodies())
    one = estimate_body(body_of(lambda x, w: (wave(x) @ w @ w @ w, None)), H200, KnownBodies())
    assert both.temp_bytes > one.temp_bytes
