"""Softmaxes among the kernels of a program for a GPU."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.memory import estimate_memory

H200 = resolve_target("h200")
SCORES = jax.ShapeDtypeStruct((64, 512, 512), jnp.float32)
TRAFFIC = 4 * 64 * 512 * 512 / H200.bandwidth_bytes_per_second


def seconds(fun):
    return estimate_memory(jax.make_jaxpr(fun)(SCORES).jaxpr, H200).seconds


def test_rows_are_read_once_and_written_once():
    assert seconds(jax.nn.softmax) == pytest.approx(2 * TRAFFIC + H200.launch_seconds, rel=0.01)


def test_shares_are_converted_on_the_way():
    half = seconds(lambda x: jax.nn.softmax(x).astype(jnp.bfloat16))
    assert half == pytest.approx(1.5 * TRAFFIC + H200.launch_seconds, rel=0.01)


def test_exponentials_that_someone_else_reads_are_written():
    def both(x):
        exponentials = jnp.exp(x - x.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True), exponentials

    assert seconds(both) >= 4 * TRAFFIC  # rows read and written, read for their sums, and again for their shares


def test_sums_of_exponentials_alone_write_nothing_large():
    assert (
        seconds(jax.nn.logsumexp) < 2.1 * TRAFFIC + 6 * H200.launch_seconds
    )  # two steps for each reduction to one number
