"""Two processes on the loopback emit the same program: process 0 decides."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import jax
import pytest

from jaxremat.planning.hosts import agree

PROCESS = """
import hashlib, sys
import jax
port, index, fails = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "fails"
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
import jax.numpy as jnp
from jax import lax
import jaxremat

def loss(w):
    return jnp.sum(lax.scan(lambda c, _: (jnp.tanh(c @ w), None), jnp.ones((2, 64)), None, length=32)[0])

shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
# each process would decide otherwise: only process 0 is asked
budget = 1 if fails else (0.85 if index == 0 else 0.95)
try:
    plan = jaxremat.plan(loss, shape, budget=budget, verify="replay")
except jaxremat.JaxrematError as error:
    print("RESULT", type(error).__name__)
else:
    program = str(jax.make_jaxpr(jax.grad(plan.apply(loss)))(shape))
    print("RESULT", plan.peak_bytes, hashlib.sha256(program.encode()).hexdigest(), plan.budget_bytes)
"""


def run_two(environment, fails: str) -> list[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", PROCESS, port]
    processes = [
        subprocess.Popen([*command, str(i), fails], env=environment, text=True, stdout=-1, stderr=-1) for i in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    lines = [[line for line in out.splitlines() if line.startswith("RESULT")] for out, _ in outputs]
    assert all(lines), "\n".join(error[-2000:] for _, error in outputs)
    return [found[0] for found in lines]


@pytest.fixture
def environment():
    return {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "XLA_FLAGS": ""}


def test_others_receive_the_plan_of_process_0(environment):
    first, second = run_two(environment, "works")
    assert first == second
    peak_bytes, _, budget_bytes = first.split()[1:]
    assert int(peak_bytes) <= int(budget_bytes)


def test_failure_reaches_every_process(environment):
    assert run_two(environment, "fails") == ["RESULT BudgetError", "RESULT JaxrematError"]


def test_one_process_asks_nobody():
    assert jax.process_count() == 1
    assert agree(lambda: b"plan") == b"plan"
