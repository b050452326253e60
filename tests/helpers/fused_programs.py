"""Programs of operations by hand, and what a compiler writes of a function by the rules of fusion."""

from __future__ import annotations

import math

import jax

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.fused import Fusion
from jaxremat.cost.fusion import materialised
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_ops import Op

H200, TPU, CPU = map(resolve_target, ("h200", "tpu-v5e", "cpu"))


def written(fun, *args, device=H200):
    """Primitives whose results are written, in the order of the program."""
    jaxpr = jax.make_jaxpr(fun)(*args).jaxpr
    found = materialised(jaxpr, device)
    return [eqn.primitive.name for eqn in jaxpr.eqns if found.get(eqn.outvars[0])]


def program_of(*operations, outputs=None) -> HloProgram:
    """A program of (kind, shape, *what it reads), of numbers of four bytes; its last result is returned by default."""
    ops = [Op(kind, tuple(shape), "float32", 4 * math.prod(shape)) for kind, shape, *_ in operations]
    reads = [tuple(given) for _, _, *given in operations]
    return HloProgram(ops, reads, [-1] * len(ops), {}, tuple(outputs or (len(ops) - 1,)))


def assert_runs(fusion: Fusion) -> None:
    """Every kernel has all that it reads, and what is returned is written: by the definition alone."""
    program = fusion.program
    made = {index for index, op in enumerate(program.ops) if op.kind == "input"}
    constants = {index for index, op in enumerate(program.ops) if op.constant is not None}
    for kernel in fusion.kernels:
        inside = fusion.runs(kernel)
        read = {read for index in inside for read in program.reads[index]} - inside
        assert kernel in inside and read - constants == set(fusion.buffers_read[kernel]) - constants
        read &= set(fusion.buffers_read[kernel])  # constants may be made where they are read
        assert read <= made, "a kernel reads what no kernel before it has written"
        made.add(kernel)
    assert set(program.outputs) <= made
