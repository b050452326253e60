"""A loop and one of its iterations, as programs.

A branch of a conditional, and the body of a shard_map, are loops too, of one iteration that carries nothing: what they
keep for their backward and what they run again is decided and emitted in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from jaxremat.backends.backend import Backend
from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.emit.scheduled import run_backward, run_forward
from jaxremat.emit.script import Script, write_script
from jaxremat.graph.scheduled import schedule_program
from jaxremat.loops.decision import Piece
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.primal import Primal


@dataclasses.dataclass(frozen=True, eq=False)
class Body:
    """One iteration. Equal bodies of one program are one object.

    Attributes:
      primal: inputs are constants, carries, then slices of what is scanned over; outputs are carries, then slices.
        What is differentiated is what a gradient really passes through, in any iteration.
      num_consts, num_carry: how many of the inputs are constants and carries.
      perturbed, constant_results: the inputs that depend on what is differentiated, and the outputs that do not,
        whether a gradient is wanted or not.
      loops: the differentiable loops inside.
      within: the shard_map equations around it, the outermost first; what it holds are shards.
      weights: the inputs that an argument of the whole program is given to, in another shape or type, or in parts.
    """

    primal: Primal
    num_consts: int
    num_carry: int
    perturbed: tuple[int, ...]
    constant_results: tuple[int, ...]
    loops: tuple[Loop, ...]
    within: tuple[Eqn, ...] = ()
    weights: tuple[int, ...] = ()

    @property
    def active_consts(self) -> tuple[int, ...]:
        """Constants that are differentiated."""
        return tuple(i for i in self.primal.wrt if i < self.num_consts)

    @property
    def active_carry(self) -> tuple[int, ...]:
        """Carries that have a cotangent in some iteration."""
        return tuple(i for i in self.primal.cotangents_of if i < self.num_carry)

    @property
    def active_slices(self) -> tuple[int, ...]:
        """Scanned inputs that are differentiated, counted from the first one."""
        first = self.num_consts + self.num_carry
        return tuple(i - first for i in self.primal.wrt if i >= first)

    @property
    def active_results(self) -> tuple[int, ...]:
        """Stacked results that have a cotangent, counted from the first one."""
        return tuple(i - self.num_carry for i in self.primal.cotangents_of if i >= self.num_carry)

    @property
    def is_single(self) -> bool:
        """Whether it neither carries nor scans over anything, as what runs once."""
        return self.num_consts == len(self.primal.jaxpr.invars)

    def split[T](self, inputs: list[T]) -> tuple[list[T], list[T], list[T]]:
        """One entry per input, as (constants, carries, slices)."""
        first, last = self.num_consts, self.num_consts + self.num_carry
        return inputs[:first], inputs[first:last], inputs[last:]


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A scan that a gradient passes through, a branch of a conditional, or the body of a shard_map.

    Attributes:
      position: index of its equation in the program.
      branch: which of the bodies of a conditional it is; 0 where there is but one.
      kind: name of the equation's primitive: "scan", "cond" or "shard_map".
      length, reverse, unroll: as in `lax.scan`.
      invariants: from the scan's constants to the body's: what depends on constants only and is no larger than what
        it is made of is computed once, before the loop.
      body: one iteration.
      scanned_axes, result_axes: the axis of each scanned input and of each result along which iterations lie in
        memory, where the program transposes it for the loop's sake; empty where all are the first.
    """

    position: int
    length: int
    reverse: bool
    unroll: int
    invariants: Jaxpr
    body: Body
    kind: str = "scan"
    branch: int = 0
    scanned_axes: tuple[int, ...] = ()
    result_axes: tuple[int, ...] = ()

    def result_axis(self, result: int) -> int:
        """The axis along which iterations lie in a result."""
        return self.result_axes[result] if self.result_axes else 0

    @property
    def repeats(self) -> bool:
        """Whether it is a loop in the compiled program."""
        return self.kind == "scan"


@dataclasses.dataclass(frozen=True, eq=False)
class Iteration:
    """One iteration under a schedule.

    Attributes:
      body: the iteration.
      joint: its forward and backward, the loops inside emitted as decided.
      script: the schedule.
    """

    body: Body
    joint: Joint
    script: Script

    @functools.cached_property
    def stacked(self) -> tuple[Var, ...]:
        """What is stacked: what the backward reads from the forward, without constants and slices."""
        consts, _, slices = self.body.split(self.joint.inputs)
        given = {*consts, *slices}
        return tuple(v for v in self.script.residuals if v not in given)

    def forward(self, consts: list[Any], carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """(carry, results, what is stacked)."""
        outputs, residuals = run_forward(self.joint, self.script, [*consts, *carry, *slices])
        values = dict(zip(self.script.residuals, residuals))
        num_carry = self.body.num_carry
        return outputs[:num_carry], outputs[num_carry:], [values[v] for v in self.stacked]

    def backward(
        self, consts: list[Any], slices: list[Any], stacked: list[Any], cotangents: list[Any]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Gradients of the active (constants, carries, slices)."""
        found = self.run_backward(consts, slices, stacked, cotangents)
        wrt = [jaxprs.dtype_of(self.joint.inputs[i]) for i in self.body.primal.wrt]
        gradients = [gradient.astype(dtype) for gradient, dtype in zip(found, wrt, strict=True)]
        a, b = len(self.body.active_consts), len(self.body.active_carry)
        return gradients[:a], gradients[a : a + b], gradients[a + b :]

    def run_backward(
        self, consts: list[Any], slices: list[Any], stacked: list[Any], cotangents: list[Any]
    ) -> list[Any]:
        """The joint program's gradients."""
        own_consts, _, own_slices = self.body.split(self.joint.inputs)
        values = dict(zip((*own_consts, *own_slices, *self.stacked), (*consts, *slices, *stacked), strict=True))
        residuals = [values[v] for v in self.script.residuals]
        return run_backward(self.joint, self.script, residuals, cotangents)

    def traced_backward(self) -> Jaxpr:
        """The backward of one iteration as a program: from (constants, slices, what is stacked, cotangents)."""
        consts, _, slices = self.body.split(self.joint.inputs)
        inputs = [list(map(jaxprs.shape_of, part)) for part in (consts, slices, self.stacked, self.joint.cotangents)]
        with compat.in_body_of(*self.body.within):
            return jax.make_jaxpr(self.run_backward)(*inputs)


def scripted(body: Body, joint: Joint, piece: Piece, has_barriers: bool, backend: Backend) -> Iteration:
    """An iteration of a plain piece.

    Args:
      body, joint: the iteration.
      piece: its schedule.
      has_barriers: whether what runs again waits behind barriers; it does in any case where the backward repeats
        itself.
      backend: whose compiler it is for.
    """
    unfenced, late_writes = (
        (backend.unfenced(joint.eqns), backend.late_writes(joint)) if has_barriers else (frozenset(), {})
    )
    program = schedule_program(joint, (*piece.forward, *piece.backward), backward_start=len(piece.forward))
    script = write_script(joint, program, unfenced, late_writes)
    if not has_barriers and not piece.repeats:
        loose = tuple(dataclasses.replace(segment, barrier_operands=()) for segment in script.backward)
        script = dataclasses.replace(script, backward=loose)
    return Iteration(body, joint, script)
