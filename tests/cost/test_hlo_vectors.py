"""Products of vectors: no matrices are multiplied, so whatever is computed entry by entry is computed with them."""

import jax
import jax.numpy as jnp
import pytest
from fused_programs import H200, TPU, written

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.memory import estimate_memory

CPU = resolve_target("cpu")


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


OUTER = {
    "of vectors": (lambda a, b: jnp.einsum("m,n->mn", jnp.tanh(a), b) + 1.0, (array(6400), array(128))),
    "of matrices": (lambda a, b: jnp.tanh(a) @ b + 1.0, (array(6400, 1), array(1, 128))),
    "in batches": (lambda a, b: jnp.einsum("bm,bn->bmn", jnp.tanh(a), b) + 1.0, (array(64, 128), array(64, 128))),
}


@pytest.mark.parametrize("device", [CPU, H200, TPU], ids=["cpu", "h200", "tpu"])
@pytest.mark.parametrize("name", OUTER)
def test_outer_products_are_computed_with_what_follows(name, device):
    fun, args = OUTER[name]
    assert "dot_general" not in written(fun, *args, device=device)


def test_a_transposed_outer_product_is_spread_the_other_way():
    """As gradients of weights are, example by example."""

    def clipped(a, b):
        each = jnp.einsum("bm,bn->bmn", a, b).swapaxes(1, 2)
        return jnp.einsum("bij,b->ij", each, jax.lax.rsqrt(jnp.sum(each**2, (1, 2))))

    x = array(256, 128)
    one_of_them = 4 * 256 * 128 * 128
    assert estimate_memory(jax.make_jaxpr(clipped)(x, x).jaxpr, H200).temp_bytes < 0.1 * one_of_them


SMALL = {
    "rows": (lambda a, b: jnp.tanh(a) @ b, (array(70000, 128), array(128))),
    "columns": (lambda a, b: b @ jnp.tanh(a), (array(16000, 128), array(16000))),
    "of any rank": (lambda a, b: jnp.tanh(a) @ b, (array(16, 1000, 128), array(128))),
    "in batches": (lambda a, b: jnp.einsum("bmk,bk->bm", jnp.tanh(a), b), (array(64, 128, 128), array(64, 128))),
    "one column": (lambda a, b: jnp.tanh(a) @ b, (array(16000, 128), array(128, 1))),
    "of vectors": (lambda a, b: jnp.tanh(a) @ b, (array(2 * 10**7), array(2 * 10**7))),
}


@pytest.mark.parametrize("name", SMALL)
def test_few_entries_by_a_vector_are_a_sum_on_a_gpu(name):
    fun, args = SMALL[name]
    whole = jax.make_jaxpr(fun)(*args).jaxpr
    on_gpu, on_cpu = (estimate_memory(whole, device).temp_bytes for device in (H200, CPU))
    matrix = 4 * max(arg.size for arg in args)
    assert on_gpu < 0.1 * matrix
    assert on_cpu >= matrix


@pytest.mark.parametrize(
    ("fun", "args"),
    [
        (lambda a, b: jnp.tanh(a) @ b, (array(100000, 128), array(128))),
        (lambda a, b: jnp.einsum("bmk,bk->bm", a, b), (array(8, 20000, 1000), array(8, 1000))),
        (lambda a, b: jnp.tanh(a) @ b, (array(16, 16), array(16, 16))),
    ],
    ids=["many entries", "of each batch", "two matrices"],
)
def test_others_are_products(fun, args):
    assert "dot_general" in written(fun, *args)
