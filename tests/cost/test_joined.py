"""Which kernels a GPU runs as one."""

import jax
import jax.numpy as jnp
from fused_programs import CPU, H200

from jaxremat.cost.fusion import fuse
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.joined import run_as_one
from jaxremat.cost.memory import estimate_memory
from jaxremat.cost.run_orders import Kernels

X, W = jax.ShapeDtypeStruct((2048, 1024), jnp.float32), jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


def joined(fun, *args, device=H200):
    """The kinds of kernels that run as one."""
    fusion = fuse(lower(jax.make_jaxpr(fun)(*args).jaxpr, device.backend), device)
    ops = fusion.program.ops
    return [sorted(ops[kernel].kind for kernel in group) for group in run_as_one(fusion, device) if len(group) > 1]


def test_what_reads_the_same_runs_as_one_but_not_on_a_cpu():
    both = lambda x: (jnp.exp(x) * 2.0, jnp.sin(x))
    assert joined(both, X) == [["mul", "sin"]]
    assert joined(both, X, device=CPU) == []


def test_two_operations_stay_apart_unless_one_is_a_sum():
    assert joined(lambda x: (jnp.exp(x), jnp.sin(x)), X) == []
    assert joined(lambda x: (jnp.exp(x), jnp.sum(x, 1)), X) == [["exp", "reduce"]]


def test_however_late_one_of_them_can_run():
    """The second waits for two products more than the first does."""
    late = lambda x, y, w: (jnp.exp(x), jnp.sin(x) * (y @ w @ w))
    assert joined(late, X, X, W) == [["exp", "mul"]]


def test_loops_over_slices_of_what_they_read_run_as_one_where_one_reads_the_other():
    """Gates of a recurrence: states, and what is made of them."""

    def fun(x, w, state):
        kept, added = jnp.split(x @ w, 2, 1)
        state = jnp.tanh(kept) * state + added
        return state, jnp.tanh(state) * state

    assert joined(fun, X, W, jax.ShapeDtypeStruct((2048, 512), jnp.float32)) == [["add", "mul"]]


def test_what_several_groups_read_runs_with_one_of_them():
    def fun(x, y, z, w):
        product = x @ w
        turned = jnp.tanh(product)
        return turned * y, turned + z, product

    assert joined(fun, X, X, X, W) == [["mul", "tanh"]]


def test_what_a_group_computes_of_its_own_does_not_wait_for_it():
    """Both sines go into what reads the second and what that reads in turn."""

    def fun(x, w):
        product = x @ w
        first, second = jnp.tanh(product), jnp.sin(product)
        third = first * second
        return third, third * first + second, product

    assert joined(fun, X, W) == [["add", "mul", "sin", "tanh"]]


def test_not_what_waits_for_the_other():
    waits = lambda x, w: ((y := x * jnp.exp(x)), x * (y @ w))
    assert joined(waits, X, W) == []


def test_not_what_waits_for_the_other_by_way_of_a_third_that_was_joined():
    def fun(x, w):
        first = x * jnp.exp(x)
        second = jnp.sin(x) * (first @ w)
        return first, second, jnp.cos(x)

    (group,) = joined(fun, X, W)
    assert "cos" in group and len(group) == 2


def test_of_two_pairs_that_would_wait_for_each_other_one_is_joined():
    """What waits for one of two kernels that run as one waits for both."""

    def fun(x, y, w):
        first, fourth = x * jnp.exp(x), y * jnp.cos(y)
        return first, jnp.sin(y) * (first @ w), fourth, jnp.tanh(x) * (fourth @ w)

    assert [len(group) for group in joined(fun, X, X, W)] == [2]


def test_what_was_turned_is_written_before_it_is_read():
    """Scores that a product wrote with rows apart meet those of a later product, which are copied for two loops."""
    q, k = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 256, 2, 4, 16), (8, 256, 2, 16)))

    def fun(q, k, p, v):
        first = jnp.einsum("bqkgd,bskd->bkgqs", q, k)
        second = jax.lax.dot_general(p, v, (((3,), (3,)), ((0, 1), (0, 1)))).reshape(first.shape)
        return jnp.sum(jnp.tanh(first) * second, -1), jnp.sum(jnp.cos(first) * second, (1, 2))

    p, v = (jax.ShapeDtypeStruct((8, 2, size, 16), jnp.float32) for size in (1024, 256))
    assert not [group for group in joined(fun, q, k, p, v) if "transpose" in group]


def test_a_sum_runs_with_what_it_reads_where_others_read_that_too():
    def fun(x, w):
        made = jnp.tanh(x) * 2.0
        return made @ w, jnp.sum(made, 1), made

    assert joined(fun, X, W) == [["mul", "reduce"]]


def test_what_two_loops_of_a_kernel_read_is_computed_in_it_and_not_written():
    """A hyperbolic tangent that two loops read is dear; both read what it reads, too, and run as one."""

    def fun(x, y, w):
        product = x @ w
        turned = jnp.tanh(product)
        return turned * product, turned + product * y, product

    assert joined(fun, X, X, W) == [["add", "mul", "tanh"]]
    fusion = fuse(lower(jax.make_jaxpr(fun)(X, X, W).jaxpr, H200.backend), H200)
    kernels = Kernels(fusion, run_as_one(fusion, H200), H200.backend)
    assert [fusion.program.ops[kernel].kind for kernel in kernels.unwritten] == ["tanh"]
    assert estimate_memory(jax.make_jaxpr(fun)(X, X, W).jaxpr, H200).temp_bytes < X.size * 4


def test_what_a_loop_and_a_sum_read_is_written_before():
    """A gradient of a normalised layer, which a sum and loops read: a ResNet was predicted 12 % too high."""

    def fun(x, w):
        product = x @ w
        turned = jnp.tanh(product)
        return turned * product, turned.sum(1), product

    assert joined(fun, X, W) == [["mul", "reduce"]]


def test_what_a_loop_and_a_transpose_read_is_written_before():
    def fun(x):
        made = jnp.tanh(x) * x
        return (jnp.exp(made) * 2.0).T, made * 3.0 + x

    assert ["add", "transpose"] in joined(fun, X)


def test_nothing_is_joined_across_a_barrier():
    def fun(x):
        return jnp.exp(x), jnp.sin(jax.lax.optimization_barrier(x))

    assert joined(fun, X) == []


def test_what_is_spread_joins_one_sum_to_a_loop():
    part, tall = jax.ShapeDtypeStruct((512, 1024), jnp.float32), jax.ShapeDtypeStruct((512, 8, 1024), jnp.float32)
    spread = lambda part, x: part[:, None] * x
    summed = lambda part, x: spread(part, x).sum(-1)
    assert joined(lambda part, x, y: (spread(part, x), summed(part, y)), part, tall, tall) == [["mul", "reduce"]]
    assert joined(lambda part, x, y: (spread(part, x), -summed(part, y)), part, tall, tall) == []
    assert joined(lambda part, x, y: (summed(part, x), summed(part, y)), part, tall, tall) == []


def test_reductions_of_different_shapes_stay_apart():
    assert joined(lambda x: (x.sum(0), x.sum(1)), X) == []
