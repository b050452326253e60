"""A scheduled step as a JAX function: straight-line evaluation with barriers, no derivative rule of its own."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Literal, Var
from jaxremat.emit.orders import Order
from jaxremat.emit.scheduled import put_segments, run_segments
from jaxremat.emit.script import Segment, opening_of
from jaxremat.step.scheduling import FlatSchedule
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.listing import Listing
from jaxremat.trace.masks import NO_MASKS, Masks
from jaxremat.trace.splice import Puts, Splice, at


@dataclasses.dataclass(frozen=True, eq=False)
class FlatScript:
    """A scheduled program in terms of equations.

    Attributes:
      jaxpr: the program.
      stretches: what runs, in order: the opening, and then all but the first behind a barrier.
      anywhere: ids of the equations that are constants: they run first, wherever the schedule has them.
      orders: of what passes barriers, in which order of axes it does where that is not as written.
    """

    jaxpr: Jaxpr
    stretches: tuple[Segment, ...]
    anywhere: frozenset[int]
    orders: Mapping[Var, Order] = types.MappingProxyType({})

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """From flat inputs to flat outputs."""
        env = dict(zip(self.jaxpr.constvars, compat.consts_of(self.jaxpr)))
        env.update(zip(self.jaxpr.invars, inputs, strict=True))
        run_segments(self.stretches, env, given=frozenset(self.jaxpr.invars), orders=self.orders)
        return [jaxprs.value_of(env, v) for v in self.jaxpr.outvars]

    @functools.cached_property
    def emitted(self) -> Jaxpr:
        """What `run` emits."""
        program = Splice(self.jaxpr)
        return program.program(self._put_into(program))

    @functools.cached_property
    def listing(self) -> Listing:
        """The same as a listing."""
        listing = Listing(self.jaxpr)
        listing.outputs = self._put_into(listing)
        return listing

    def _put_into[Stand](self, program: Puts[Stand]) -> list[Stand | Literal]:
        env = program.inputs
        put_segments(program, self.stretches, env)
        return [at(env, atom) for atom in self.jaxpr.outvars]


def script_of(
    joint: Joint,
    schedule: FlatSchedule,
    unfenced: Set[Var] = frozenset(),
    late_writes: Mapping[int, Eqn] = types.MappingProxyType({}),
    orders: Mapping[Var, Order] = types.MappingProxyType({}),
    masks: Masks = NO_MASKS,
) -> FlatScript:
    """The script of a schedule of a flat program; one that repeats nothing has no barrier.

    Args:
      joint: the program.
      schedule: how it runs.
      unfenced: what enters no barrier; see `Backend.unfenced`.
      late_writes: what runs in the place of what writes into zeros, by node; see `Backend.late_writes`.
      orders: in which order of axes values pass barriers.
      masks: what is written before anything else; see `Backend.masks`.
    """
    opening = opening_of(joint, masks, has_barriers=bool(schedule.barriers))
    anywhere = frozenset(id(eqn) for segment in opening for eqn in segment.eqns)
    enters = _sources if schedule.barrier_scope == "sources" else _read_from_outside
    made = (v for segment in opening for eqn in segment.eqns for v in eqn.outvars)
    free = {*joint.jaxpr.constvars, *made, *unfenced}
    instead = late_writes if schedule.barriers else {}
    eqns = [instead.get(node, joint.eqns[node]) for node in schedule.steps.tolist()]
    bounds = sorted({0, *schedule.barriers, len(eqns)})
    parts = [tuple(eqn for eqn in eqns[a:b] if id(eqn) not in anywhere) for a, b in itertools.pairwise(bounds)]
    early, *late = parts
    before = itertools.accumulate(parts, lambda a, b: (*a, *b))
    stretches = (Segment(eqns, enters(eqns, free, earlier)) for eqns, earlier in zip(late, before))
    segments = tuple(s for s in (Segment(early, ()), *stretches) if s.eqns)
    if schedule.barrier_scope == "order":
        segments = _in_order(segments, jaxprs.vars_of(joint.jaxpr.outvars), free)
    waiting = {v for segment in segments for v in segment.through}
    taken = {v: order for v, order in orders.items() if v in waiting}
    return FlatScript(joint.jaxpr, (*opening, *segments), anywhere, taken)


def _in_order(segments: Sequence[Segment], given_out: Sequence[Var], free: Set[Var]) -> tuple[Segment, ...]:
    """The segments such that all of one is made before the next begins, and summed over the devices of a mesh: what
    later ones read, or is given out, passes the next one's barrier; a copy to the host that of the one after, so that
    it runs beside the next one."""
    wanted, ordered = set(given_out), list(segments)
    for k in range(len(segments) - 1, 0, -1):
        segment = segments[k]
        wanted -= {v for eqn in segment.eqns for v in eqn.outvars}
        wanted.update(_read_from_outside(segment.eqns, free, ()))
        ahead = wanted.difference(segment.barrier_operands)
        made = dict.fromkeys(v for v in _awaited(segments[max(k - 2, 0) : k]) if v in ahead and v not in free)
        ordered[k] = dataclasses.replace(segment, passed=tuple(made))
    return tuple(ordered)


def _awaited(before: Sequence[Segment]) -> Iterator[Var]:
    """What is to be there after one or two segments: what the last makes on the device, and the other on the host."""
    for segment in before:
        made = (v for eqn in segment.eqns for v in eqn.outvars)
        yield from (v for v in made if jaxprs.is_on_host(v) == (segment is not before[-1]))


def _read_from_outside(eqns: Sequence[Eqn], free: Set[Var], before: Sequence[Eqn]) -> tuple[Var, ...]:
    own = {v for eqn in eqns for v in eqn.outvars} | free
    read = dict.fromkeys(v for eqn in eqns for v in jaxprs.vars_of(eqn.invars))
    return tuple(v for v in read if v not in own)


def _sources(eqns: Sequence[Eqn], free: Set[Var], before: Sequence[Eqn]) -> tuple[Var, ...]:
    """What the repeats of a stretch read from outside, and what it reads that was made for the first time right before
    it: that says when the repeats may begin."""
    ran = {id(eqn) for eqn in before}
    wanted = {v for eqn in eqns if id(eqn) in ran for v in jaxprs.vars_of(eqn.invars)}
    if not wanted:
        return ()
    outside = _read_from_outside(eqns, free, before)
    made = {v: position for position, eqn in enumerate(before) for v in eqn.outvars}
    newest = max((made[v] for v in outside if v in made and v not in wanted), default=-1)
    return tuple(v for v in outside if v in wanted or made.get(v) == newest)
