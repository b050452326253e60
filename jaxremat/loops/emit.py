"""A scan whose gradient follows a decision: what each iteration stacks, and where iterations run again.

A decision is a sequence of pieces that together cover the iterations. A plain piece stacks what the schedule of its
body leaves for the backward. A nested piece runs segments: the forward stacks only the carry that enters each
segment, the backward runs a segment again, with stacks of its own. The pieces never slice what is scanned over, nor
concatenate what they produce: they index into the whole arrays, so that XLA works in place.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.base.errors import EmissionError, PlanMismatchError
from jaxremat.emit import scheduled
from jaxremat.loops.find import Body, Loop, find
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, Primal, differentiate


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some consecutive iterations.

    Attributes:
      count: iterations, or segments where `inside` is not empty.
      forward, backward: the schedule of one iteration, as node ids of the body's joint program, in two parts; empty
        for a nested piece.
      inside: the pieces that make up one segment.
    """

    count: int
    forward: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()
    inside: tuple[Piece, ...] = ()

    @property
    def length(self) -> int:
        """Iterations, all told."""
        return self.count * (sum(piece.length for piece in self.inside) or 1)


@dataclasses.dataclass(frozen=True)
class LoopDecision:
    """How a loop is differentiated.

    Attributes:
      pieces: cover the iterations, in the order in which they run.
      inner: one decision per loop inside the body.
      fenced: whether recomputation inside an iteration waits behind optimization barriers. XLA:CPU then computes it
        just in time (a scanned transformer: 4391 MiB instead of 4486); XLA:GPU orders it well by itself, and a barrier
        only keeps it from fusing (1269 MiB instead of 1085).
    """

    pieces: tuple[Piece, ...]
    inner: tuple[LoopDecision, ...] = ()
    fenced: bool = False

    @property
    def length(self) -> int:
        return sum(piece.length for piece in self.pieces)

    def to_json(self) -> dict:
        return {
            "pieces": [_piece_to_json(piece) for piece in self.pieces],
            "inner": [inner.to_json() for inner in self.inner],
            "fenced": self.fenced,
        }

    @staticmethod
    def from_json(data: dict) -> LoopDecision:
        pieces = tuple(_piece_from_json(piece) for piece in data["pieces"])
        inner = tuple(LoopDecision.from_json(inner) for inner in data["inner"])
        return LoopDecision(pieces, inner, bool(data["fenced"]))


def rewritten(primal: Primal, decisions: Sequence[LoopDecision]) -> Callable[[Sequence], list]:
    """Runs a primal program with its loops emitted as decided, one decision per loop of `find(primal)`."""
    return _rewritten(primal, find(primal), decisions)


def emit_loop(loop: Loop, decision: LoopDecision) -> Callable[[Sequence], list]:
    """The scan, from its flat inputs to its flat outputs, with a gradient of its own.

    Raises:
      PlanMismatchError: if the decision is for another number of iterations.
    """
    if decision.length != loop.length:
        raise PlanMismatchError(
            f"a decision for {decision.length} iterations meets a loop of {loop.length}: plan again"
        )
    num_consts = len(loop.invariants.invars)

    def run(inputs: Sequence) -> list:
        consts = jaxprs.evaluate(loop.invariants, inputs[:num_consts])
        outputs = _differentiable(loop, decision)(*consts, *inputs[num_consts:])
        return [lax.stop_gradient(x) if i in loop.body.constant_results else x for i, x in enumerate(outputs)]

    return run


@functools.lru_cache(maxsize=256)
def body_joint(body: Body, inner: tuple[LoopDecision, ...] = ()) -> Joint:
    """Forward and backward of one iteration, its own loops emitted as decided."""
    return differentiate(body.primal, _rewritten(body.primal, body.loops, inner) if body.loops else None)


def _rewritten(primal: Primal, loops: Sequence[Loop], decisions: Sequence[LoopDecision]) -> Callable[[Sequence], list]:
    if len(loops) != len(decisions):
        raise PlanMismatchError(f"{len(decisions)} loop decisions meet a program with {len(loops)} loops: plan again")
    emitted: dict[Var, dict[int | None, Callable[[Sequence], list]]] = {}
    for loop, decision in zip(loops, decisions):
        parts = emitted.setdefault(primal.jaxpr.eqns[loop.position].outvars[0], {})
        parts[loop.branch] = emit_loop(loop, decision)

    def rule(eqn: Eqn, inputs: list) -> list | None:
        parts = emitted.get(eqn.outvars[0]) if eqn.outvars else None
        if parts is None:
            return None
        return parts[None](inputs) if None in parts else _chosen(eqn, parts, inputs)

    return lambda inputs: jaxprs.evaluate(primal.jaxpr, inputs, rule)


def _chosen(eqn: Eqn, parts: Mapping[int | None, Callable[[Sequence], list]], inputs: list) -> list:
    """A conditional of which some branches are emitted as loops of one iteration."""

    def branch(number: int, closed: Jaxpr) -> Callable:
        if number in parts:
            return lambda *operands: [result[0] for result in parts[number](operands)]
        return lambda *operands: jaxprs.evaluate(closed, operands)

    branches = [branch(number, closed) for number, closed in enumerate(eqn.params["branches"])]
    return lax.switch(inputs[0], branches, *inputs[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class _Iteration:
    """One iteration under a schedule."""

    body: Body
    joint: Joint
    script: scheduled.Script

    @functools.cached_property
    def stacked(self) -> tuple[Var, ...]:
        """What is stacked: what the backward reads from the forward, without constants and slices."""
        inputs, first = self.joint.inputs, self.body.num_consts
        free = {*inputs[:first], *inputs[first + self.body.num_carry :]}
        return tuple(v for v in self.script.residuals if v not in free)

    def forward(self, consts: list, carry: list, slices: list) -> tuple[list, list, list]:
        """(carry, results, what is stacked)."""
        outputs, residuals = scheduled.run_forward(self.joint, self.script, [*consts, *carry, *slices])
        values = dict(zip(self.script.residuals, residuals))
        num_carry = self.body.num_carry
        return outputs[:num_carry], outputs[num_carry:], [values[v] for v in self.stacked]

    def backward(self, consts: list, slices: list, stacked: list, cotangents: list) -> tuple[list, list, list]:
        """Gradients of the active (constants, carries, slices)."""
        first = self.body.num_consts
        inputs = self.joint.inputs
        values = dict(zip(inputs[:first], consts)) | dict(zip(inputs[first + self.body.num_carry :], slices))
        values.update(zip(self.stacked, stacked))
        residuals = [values[v] for v in self.script.residuals]
        gradients = scheduled.run_backward(self.joint, self.script, residuals, cotangents)
        gradients = [
            g.astype(jaxprs.shape_of(self.joint.inputs[i]).dtype) for i, g in zip(self.body.primal.wrt, gradients)
        ]
        a, b = len(self.body.active_consts), len(self.body.active_carry)
        return gradients[:a], gradients[a : a + b], gradients[a + b :]


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """A loop under way: what does not change between iterations."""

    loop: Loop
    decision: LoopDecision
    consts: list
    scanned: list
    result_cotangents: list = dataclasses.field(default_factory=list)

    def iteration(self, piece: Piece) -> _Iteration:
        return _iteration(self.loop.body, self.decision.inner, self.decision.fenced, piece.forward, piece.backward)

    def index(self, step):
        """Where iteration `step`, counted in the order of running, reads and writes."""
        return self.loop.length - 1 - step if self.loop.reverse else step

    def slices(self, step) -> list:
        return [_at(x, self.index(step)) for x in self.scanned]

    def cotangent_slices(self, step) -> list:
        return [_at(x, self.index(step)) for x in self.result_cotangents]


@functools.lru_cache(maxsize=1024)
def _iteration(
    body: Body, inner: tuple[LoopDecision, ...], fenced: bool, forward: tuple[int, ...], backward: tuple[int, ...]
) -> _Iteration:
    joint = body_joint(body, inner)
    script = scheduled.write_script(joint, (*forward, *backward), start=len(forward))
    if not fenced and len(set(backward)) == len(backward):
        loose = tuple(dataclasses.replace(segment, fenced=()) for segment in script.backward)
        script = dataclasses.replace(script, backward=loose)
    return _Iteration(body, joint, script)


def _differentiable(loop: Loop, decision: LoopDecision) -> Callable[..., list]:
    body = loop.body
    whole = decision.pieces[0] if len(decision.pieces) == 1 and not decision.pieces[0].inside else None

    def split(inputs: Sequence) -> tuple[list, list, list]:
        a, b = body.num_consts, body.num_consts + body.num_carry
        return list(inputs[:a]), list(inputs[a:b]), list(inputs[b:])

    @jax.custom_vjp
    def run(*inputs):
        consts, carry, scanned = split(inputs)
        return _plain(loop, consts, carry, scanned)

    def forward(*inputs):
        _refuse_unforeseen(i for i, x in enumerate(inputs) if x.perturbed and i not in body.perturbed)
        consts, carry, scanned = split([i.value for i in inputs])
        state = _Run(loop, decision, consts, scanned)
        if whole:
            carry, results, saved = _whole_forward(state, whole, carry)
        else:
            carry, results, saved = _forward(state, decision.pieces, 0, carry, _empty_results(loop), save=True)
        return [*carry, *results], (consts, scanned, saved)

    def backward(saved, cotangents):
        consts, scanned, saved = saved
        _refuse_unforeseen(i for i, x in enumerate(cotangents) if i not in body.primal.cotangents_of and _is_given(x))
        active = [_instantiated(cotangents[i], _output_shape(loop, i)) for i in body.primal.cotangents_of]
        num_carry = len(body.active_carry)
        state = _Run(loop, decision, consts, scanned, active[num_carry:])
        totals = [_zeros(consts[i].shape, consts[i].dtype) for i in body.active_consts]
        if whole:
            gradients = _whole_backward(state, whole, saved, active[:num_carry], totals)
        else:
            stacks = [_zeros(scanned[i].shape, scanned[i].dtype) for i in body.active_slices]
            gradients = _backward(state, decision.pieces, 0, saved, (active[:num_carry], totals, stacks))
        return _placed(body, *gradients)

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run


def _refuse_unforeseen(indices: Iterable[int]) -> None:
    unforeseen = list(indices)
    if unforeseen:
        raise EmissionError(
            f"a planned loop is differentiated through {len(unforeseen)} values that the plan's gradient does not pass"
            " through. Plan again with argnums=... naming every argument that you differentiate."
        )


def _is_given(cotangent) -> bool:
    return not isinstance(cotangent, jax.custom_derivatives.SymbolicZero) and cotangent.dtype != jax.dtypes.float0


def _plain(loop: Loop, consts: list, carry: list, scanned: list) -> list:
    jaxpr, num_carry = loop.body.primal.jaxpr, loop.body.num_carry

    def step(carry, slices):
        outputs = jaxprs.evaluate(jaxpr, [*consts, *carry, *slices])
        return outputs[:num_carry], outputs[num_carry:]

    carry, results = lax.scan(step, carry, scanned, loop.length, loop.reverse, loop.unroll)
    return [*carry, *results]


def _whole_forward(state: _Run, piece: Piece, carry: list) -> tuple[list, list, Any]:
    loop, iteration = state.loop, state.iteration(piece)

    def step(carry, slices):
        carry, results, stacked = iteration.forward(state.consts, carry, slices)
        return carry, (results, stacked)

    carry, (results, stacked) = lax.scan(step, carry, state.scanned, loop.length, loop.reverse, loop.unroll)
    return carry, results, stacked


def _whole_backward(
    state: _Run, piece: Piece, stacked: list, cotangents: list, totals: list
) -> tuple[list, list, list]:
    loop, iteration = state.loop, state.iteration(piece)

    def step(sums, slices):
        scanned, stacked, result_cotangents = slices
        totals, cotangents, gradients = _step_back(state, iteration, sums, scanned, stacked, result_cotangents)
        return (cotangents, totals), gradients

    slices = state.scanned, stacked, state.result_cotangents
    (cotangents, totals), stacks = lax.scan(
        step, (cotangents, totals), slices, loop.length, not loop.reverse, loop.unroll
    )
    return cotangents, totals, stacks


def _forward(state: _Run, pieces: Sequence[Piece], start, carry: list, results: list | None, save: bool):
    """(carry, results written into place, what each piece saved); `results` None: they are not wanted."""
    saved = []
    for piece in pieces if save else _fused(pieces):
        run = _segments_forward if piece.inside else _leaf_forward
        carry, results, kept = run(state, piece, start, carry, results, save)
        saved.append(kept)
        start = start + piece.length
    return carry, results, saved


def _fused(pieces: Sequence[Piece]) -> list[Piece]:
    """The same iterations where nothing is saved: one piece, under any of the schedules."""
    first = pieces[0]
    while first.inside:
        first = first.inside[0]
    return [dataclasses.replace(first, count=sum(piece.length for piece in pieces))]


def _leaf_forward(state: _Run, piece: Piece, start, carry: list, results: list | None, save: bool):
    iteration = state.iteration(piece)

    def step(running, offset):
        carry, results = running
        carry, made, stacked = iteration.forward(state.consts, carry, state.slices(start + offset))
        if results is not None:
            results = [_put(x, y, state.index(start + offset)) for x, y in zip(results, made)]
        return (carry, results), stacked if save else []

    (carry, results), stacked = lax.scan(step, (carry, results), jnp.arange(piece.count), unroll=_unroll(state, piece))
    return carry, results, stacked


def _segments_forward(state: _Run, piece: Piece, start, carry: list, results: list | None, save: bool):
    length = piece.length // piece.count

    def step(running, segment):
        carry, results = running
        after, results, _ = _forward(state, piece.inside, start + segment * length, carry, results, save=False)
        return (after, results), carry

    (carry, results), entering = lax.scan(step, (carry, results), jnp.arange(piece.count))
    return carry, results, entering


def _backward(state: _Run, pieces: Sequence[Piece], start, saved: list, sums: tuple) -> tuple[list, list, list]:
    """Gradients (of the carry, of the constants so far, of what is scanned over so far) before the pieces."""
    starts = [start + sum(p.length for p in pieces[:i]) for i in range(len(pieces))]
    for piece, first, kept in reversed(list(zip(pieces, starts, saved))):
        run = _segments_backward if piece.inside else _leaf_backward
        sums = run(state, piece, first, kept, sums)
    return sums


def _leaf_backward(state: _Run, piece: Piece, start, stacked: list, sums: tuple) -> tuple:
    iteration = state.iteration(piece)

    def step(sums, slices):
        offset, stacked = slices
        cotangents, totals, stacks = sums
        step = start + offset
        totals, cotangents, gradients = _step_back(
            state, iteration, (cotangents, totals), state.slices(step), stacked, state.cotangent_slices(step)
        )
        return (cotangents, totals, [_put(x, g, state.index(step)) for x, g in zip(stacks, gradients)]), None

    return lax.scan(step, sums, (jnp.arange(piece.count), stacked), reverse=True, unroll=_unroll(state, piece))[0]


def _segments_backward(state: _Run, piece: Piece, start, entering: list, sums: tuple) -> tuple:
    length = piece.length // piece.count

    def step(sums, slices):
        segment, carry = slices
        first = start + segment * length
        _, _, saved = _forward(state, piece.inside, first, carry, None, save=True)
        return _backward(state, piece.inside, first, saved, sums), None

    return lax.scan(step, sums, (jnp.arange(piece.count), entering), reverse=True)[0]


def _step_back(state: _Run, iteration: _Iteration, sums: tuple, slices, stacked, result_cotangents) -> tuple:
    cotangents, totals = sums
    added, cotangents, gradients = iteration.backward(state.consts, slices, stacked, [*cotangents, *result_cotangents])
    return [a + b for a, b in zip(totals, added)], cotangents, gradients


def _placed(body: Body, cotangents: list, totals: list, stacks: list) -> tuple:
    """Gradients in the order of the inputs, None where there is none."""
    out: list[Any] = [None] * len(body.primal.jaxpr.invars)
    for i, gradient in zip(body.primal.wrt, [*totals, *cotangents, *stacks], strict=True):
        out[i] = gradient
    return tuple(out)


def _unroll(state: _Run, piece: Piece) -> int:
    return min(state.loop.unroll, piece.count)


def _empty_results(loop: Loop) -> list:
    shapes = [jaxprs.shape_of(v) for v in loop.body.primal.jaxpr.outvars[loop.body.num_carry :]]
    return [_zeros((loop.length, *s.shape), s.dtype) for s in shapes]


def _output_shape(loop: Loop, index: int) -> jax.ShapeDtypeStruct:
    shape = jaxprs.shape_of(loop.body.primal.jaxpr.outvars[index])
    stacked = index >= loop.body.num_carry
    return jax.ShapeDtypeStruct((loop.length, *shape.shape) if stacked else shape.shape, shape.dtype)


def _instantiated(cotangent, shape: jax.ShapeDtypeStruct):
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return _zeros(shape.shape, shape.dtype)
    return cotangent


def _zeros(shape, dtype):
    return lax.full(shape, 0, dtype)


def _at(stack, index):
    return lax.dynamic_index_in_dim(stack, index, keepdims=False)


def _put(stack, value, index):
    return lax.dynamic_update_index_in_dim(stack, value.astype(stack.dtype), index, 0)


def _piece_to_json(piece: Piece) -> list:
    return [piece.count, list(piece.forward), list(piece.backward), [_piece_to_json(p) for p in piece.inside]]


def _piece_from_json(data: list) -> Piece:
    count, forward, backward, inside = data
    return Piece(int(count), tuple(forward), tuple(backward), tuple(_piece_from_json(p) for p in inside))
