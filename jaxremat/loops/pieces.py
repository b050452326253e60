"""A scan whose gradient follows a decision: what each iteration stacks, and where iterations run again.

A decision is a sequence of pieces that together cover the iterations. A plain piece stacks what the schedule of its
body leaves for the backward. A nested piece runs segments: the forward stacks only the carry that enters each
segment, the backward runs a segment again, with stacks of its own. Pieces neither slice what is scanned over nor
concatenate what they produce: they index into the whole arrays, so that XLA works in place.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Atom
from jaxremat.base.errors import EmissionError
from jaxremat.loops.body import Body, Iteration, Loop
from jaxremat.loops.decision import LoopDecision, Piece, length_of
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.stack import Stack, arrays_of, stacks, zeros_like


def differentiable(
    loop: Loop, decision: LoopDecision, iteration: Callable[[Piece], Iteration]
) -> Callable[..., list[Any]]:
    """The loop from the body's constants, the carry and what is scanned over, with a gradient of its own."""
    body = loop.body

    @jax.custom_vjp
    def run(*inputs: Any) -> Any:
        return _plain(loop, *body.split(list(inputs)))

    def forward(*inputs: Any) -> Any:
        _refuse_unforeseen(i for i, x in enumerate(inputs) if x.perturbed and i not in body.perturbed)
        consts, carry, scanned = body.split([i.value for i in inputs])
        way = Way(loop, iteration, consts, stacks(scanned, loop.scanned_axes))
        carry, results, saved = way.forward(decision.pieces, 0, carry, empty_results(loop))
        return [*carry, *arrays_of(results)], (consts, scanned, saved)

    def backward(kept: Any, cotangents: Any) -> Any:
        consts, scanned, saved = kept
        _refuse_unforeseen(i for i, x in enumerate(cotangents) if i not in body.primal.cotangents_of and _is_given(x))
        active = [compat.instantiated(cotangents[i]) for i in body.primal.cotangents_of]
        num_carry, slices = len(body.active_carry), stacks(scanned, loop.scanned_axes)
        late = stacks(active[num_carry:], [loop.result_axis(i) for i in body.active_results])
        way = Way(loop, iteration, consts, slices, late)
        totals = [zeros_like(consts[i]) for i in body.active_consts]
        gradients = [dataclasses.replace(slices[i], array=zeros_like(slices[i].array)) for i in body.active_slices]
        found = way.backward(decision.pieces, 0, saved, Sums(totals, active[:num_carry], gradients))
        return _placed(body, [*found.totals, *found.cotangents, *arrays_of(found.gradients)])

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """What the backward carries from iteration to iteration.

    Attributes:
      totals: gradients of the active constants so far.
      cotangents: of the active carries.
      gradients: of what is scanned over, filled in so far.
    """

    totals: list[Any]
    cotangents: list[Any]
    gradients: list[Stack]


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """A loop under way, in either direction, with what does not change between iterations."""

    loop: Loop
    iteration: Callable[[Piece], Iteration]
    consts: list[Any]
    scanned: list[Stack]
    result_cotangents: list[Stack] = dataclasses.field(default_factory=list)

    def forward(
        self, pieces: Sequence[Piece], start: Any, carry: list[Any], results: list[Stack] | None
    ) -> tuple[list[Any], Any, list[Any]]:
        """(carry, results, what each piece saved for its backward) from iteration `start`, counted as they run, on.

        `results` are written into place; None where they are not wanted.
        """
        saved = []
        for piece, first in zip(pieces, _starts(pieces, start)):
            run = self._segments_forward if piece.inside else self._leaf_forward
            carry, results, kept = run(piece, first, carry, results)
            saved.append(kept)
        return carry, results, saved

    def backward(self, pieces: Sequence[Piece], start: Any, saved: list[Any], sums: Sums) -> Sums:
        """The sums before the pieces, from those after them."""
        for piece, first, kept in reversed(list(zip(pieces, _starts(pieces, start), saved, strict=True))):
            run = self._segments_backward if piece.inside else self._leaf_backward
            sums = run(piece, first, kept, sums)
        return sums

    def _leaf_forward(
        self, piece: Piece, start: Any, carry: list[Any], results: list[Any] | None, save: bool = True
    ) -> Any:
        iteration = self.iteration(piece)

        def step(carry: Any, slices: Any, _: Any) -> Any:
            carry, made, stacked = iteration.forward(self.consts, carry, slices)
            return carry, made if results is not None else [], stacked if save else []

        carry, written, stacked = self._scan(step, piece, start, carry, self.scanned, results or [], [])
        return carry, results if results is None else written, stacked

    def _leaf_backward(self, piece: Piece, start: Any, stacked: list[Any], sums: Sums) -> Sums:
        iteration, number = self.iteration(piece), len(self.scanned)

        def step(running: Any, slices: Any, stacked: Any) -> Any:
            totals, cotangents = running
            cotangents = [*cotangents, *slices[number:]]
            added, cotangents, gradients = iteration.backward(self.consts, slices[:number], stacked, cotangents)
            return ([a + b for a, b in zip(totals, added)], cotangents), gradients, []

        running, read = (sums.totals, sums.cotangents), [*self.scanned, *self.result_cotangents]
        running, gradients, _ = self._scan(step, piece, start, running, read, sums.gradients, stacked, backwards=True)
        totals, cotangents = running
        return Sums(totals, cotangents, gradients)

    def _segments_forward(self, piece: Piece, start: Any, carry: list[Any], results: list[Any] | None) -> Any:
        length = length_of(piece.inside)
        again = dataclasses.replace(piece.leaf, count=length)  # nothing is saved: any schedule will do

        def step(running: Any, segment: Any) -> Any:
            carry, results = running
            after, results, _ = self._leaf_forward(again, start + segment * length, carry, results, save=False)
            return (after, results), carry

        (carry, results), entering = lax.scan(step, (carry, results), jnp.arange(piece.count))
        return carry, results, entering

    def _segments_backward(self, piece: Piece, start: Any, entering: list[Any], sums: Sums) -> Sums:
        length = length_of(piece.inside)

        def step(sums: Any, slices: Any) -> Any:
            segment, carry = slices
            first = start + segment * length
            _, _, saved = self.forward(piece.inside, first, carry, None)
            return self.backward(piece.inside, first, saved, sums), None

        return lax.scan(step, sums, (jnp.arange(piece.count), entering), reverse=True)[0]

    def _scan(
        self,
        step: Any,
        piece: Piece,
        start: Any,
        carry: Any,
        read: list[Stack],
        written: list[Stack],
        own: list[Any],
        *,
        backwards: Any = False,
    ) -> Any:
        """(carry, what was written, what was stacked) over the iterations of a plain piece.

        Args:
          step: from (carry, slices of `read`, slices of `own`) to (carry, what to write, what to stack).
          piece, start: the iterations.
          carry: at first.
          read: stacks.
          written: stacks, written into place; a piece that is the whole loop makes its own.
          own: arrays over the iterations of the piece.
          backwards: whether the last iteration comes first.
        """
        loop, count, unroll = self.loop, piece.count, min(self.loop.unroll, piece.count)
        if not loop.repeats:  # one entry, which is the whole array
            carry, made, stacked = step(carry, arrays_of(read), own)
            return carry, stacks(made), stacked

        def over_all(carry: Any, slices: Any) -> Any:
            carry, made, stacked = step(carry, *slices)
            return carry, (made, stacked)

        def over_some(running: Any, slices: Any) -> Any:
            carry, written = running
            offset, own = slices
            index = loop.length - 1 - start - offset if loop.reverse else start + offset
            carry, made, stacked = step(carry, [stack.at(index) for stack in read], own)
            return (carry, [stack.put(value, index) for stack, value in zip(written, made)]), stacked

        if count == loop.length:
            reverse = loop.reverse != backwards
            entries = [stack.in_order for stack in read]
            carry, (made, stacked) = lax.scan(over_all, carry, (entries, own), count, reverse, unroll)
            written = [stack.filled(new) for stack, new in zip(written, made)]
        else:
            slices = jnp.arange(count), own
            (carry, written), stacked = lax.scan(over_some, (carry, written), slices, count, backwards, unroll)
        return carry, written, stacked


def _starts(pieces: Sequence[Piece], start: Any) -> list[Any]:
    """The first iteration of each piece."""
    before = itertools.accumulate((piece.length for piece in pieces[:-1]), initial=0)
    return [start + length for length in before]


def _refuse_unforeseen(indices: Iterable[int]) -> None:
    unforeseen = list(indices)
    if unforeseen:
        raise EmissionError(
            f"a planned loop is differentiated through {len(unforeseen)} values that the plan's gradient does not pass"
            " through. Plan again with argnums=... naming every argument that you differentiate."
        )


def _is_given(cotangent: Any) -> bool:
    return not isinstance(cotangent, jax.custom_derivatives.SymbolicZero) and cotangent.dtype != jax.dtypes.float0


def _plain(loop: Loop, consts: list[Any], carry: list[Any], scanned: list[Any]) -> list[Any]:
    jaxpr, num_carry = loop.body.primal.jaxpr, loop.body.num_carry
    if not loop.repeats:
        return jaxprs.evaluate(jaxpr, consts)

    def step(carry: Any, slices: Any) -> Any:
        outputs = jaxprs.evaluate(jaxpr, [*consts, *carry, *slices])
        return outputs[:num_carry], outputs[num_carry:]

    slices = [stack.in_order for stack in stacks(scanned, loop.scanned_axes)]
    carry, results = lax.scan(step, carry, slices, loop.length, loop.reverse, loop.unroll)
    return [*carry, *(stack.filled(made).array for stack, made in zip(empty_results(loop), results))]


def _placed(body: Body, gradients: list[Any]) -> tuple[Any, ...]:
    """Gradients in the order of the inputs, None where there is none."""
    out: list[Any] = [None] * len(body.primal.jaxpr.invars)
    for i, gradient in zip(body.primal.wrt, gradients, strict=True):
        out[i] = gradient
    return tuple(out)


def empty_results(loop: Loop) -> list[Stack]:
    results = loop.body.primal.jaxpr.outvars[loop.body.num_carry :]
    return [_empty(v, loop.length, loop.result_axis(i)) for i, v in enumerate(results)]


def _empty(entry: Atom, length: int, axis: int) -> Stack:
    zeros = compat.zeros_of(entry.aval)
    shape = (*zeros.shape[:axis], length, *zeros.shape[axis:])
    others = [i for i in range(len(shape)) if i != axis]
    return Stack(lax.broadcast_in_dim(zeros, shape, others), axis)
