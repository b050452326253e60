"""A schedule as a JAX function: a custom_vjp whose forward and backward run the schedule's steps.

The forward runs the steps before the first one that depends on a cotangent, and keeps what later steps still read.
The backward runs the rest, in segments. A segment receives all that it reads, kept values and the newest cotangents
together, through one optimization barrier: XLA can then neither merge a recomputation with the first computation, nor
start it, or a copy of a kept value in another layout, before the backward has come that far.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Literal, Var
from jaxremat.base.errors import EmissionError
from jaxremat.emit.transfers import Transfers
from jaxremat.emit.zeros import Zeros, with_own_zeros, zeros_written_into
from jaxremat.graph.scheduled import ScheduledProgram
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, Primal
from jaxremat.trace.splice import Puts, at


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of the program.

    Attributes:
      eqns: equations in order, recomputed ones among them.
      fenced: what enters through the barrier: all that the segment reads from outside, cotangents included.
      passed: what passes through the same barrier on its way to whoever reads it, so that it is made before.
      results: those of `passed` that the program returns, in the layout that it returns them in: what a compiler made
        in another one would wait there, beside the memory for the result.
    """

    eqns: tuple[Eqn, ...]
    fenced: tuple[Var, ...]
    passed: tuple[Var, ...] = ()
    results: frozenset[Var] = frozenset()

    @property
    def through(self) -> tuple[Var, ...]:
        """All that goes through the barrier; empty where there is none."""
        return *self.fenced, *self.passed


@dataclasses.dataclass(frozen=True, eq=False)
class Script:
    """A schedule in terms of equations.

    Attributes:
      forward: segments of the forward pass; all but the first stand behind a barrier.
      residuals: variables that the backward reads from the forward, inputs of the program included.
      backward: segments of the backward pass.
      constants: equations that both passes start with; what they make is neither kept nor fenced, so that the compiler
        can write it where it is read.
      same: for each variable of a round trip, the one that holds the same value once it is made.
      zeros: what stretches make for themselves to write into.
    """

    forward: tuple[Segment, ...]
    residuals: tuple[Var, ...]
    backward: tuple[Segment, ...]
    constants: tuple[Eqn, ...] = ()
    same: Mapping[Var, Var] = types.MappingProxyType({})
    zeros: tuple[Zeros, ...] = ()

    @property
    def numbers(self) -> dict[Var, Literal]:
        """What the seeds of zeros stand for, before they have passed a barrier."""
        return {each.seed: each.number for each in self.zeros}


def write_script(
    joint: Joint,
    program: ScheduledProgram,
    unfenced: Set[Var] = frozenset(),
    late_scans: Mapping[int, Eqn] = types.MappingProxyType({}),
) -> Script:
    """A scheduled program in terms of equations; one that repeats nothing has no barrier but those of late scans.

    Args:
      joint: the program; node i of the schedule is equation i.
      program: its schedule.
      unfenced: what enters no barrier in any case; see `Backend.unfenced`.
      late_scans: what runs in the place of scans, by node; see `Backend.late_scans`.
    """
    anywhere = set(map(id, joint.constants))
    eqns = [late_scans.get(node, joint.eqns[node]) for node in program.steps.tolist()]
    start = program.backward_start
    bounds = sorted({0, start, *program.barriers, len(eqns)})

    def part(first: int, end: int) -> tuple[Eqn, ...]:
        return tuple(eqn for eqn in eqns[first:end] if id(eqn) not in anywhere)

    bounded = list(itertools.pairwise(bounds))
    transfers = Transfers(joint, {joint.values[v] for v in program.saved})
    passes = [[part(*b) for b in bounded if (b[0] >= start) == is_late] for is_late in (False, True)]
    parts = _without_idle_trips(joint, passes, transfers.saved)
    stretches = [(first, stretch) for (first, _), stretch in zip(bounded, parts) if stretch]
    by_pass = [(first >= start, stretch) for first, stretch in stretches]
    cut = _Cut(joint, program, transfers, _available_anywhere(joint) | unfenced, by_pass)
    segments = {False: list[Segment](), True: list[Segment]()}
    for first, stretch in stretches:
        segments[first >= start].append(cut.segment(stretch, has_barrier=first > 0, is_late=first >= start))
    residuals = _residuals(joint, program, part(start, len(eqns)))
    if program.barrier_scope == "order":
        segments[False] = cut.in_order(segments[False], [*residuals, *jaxprs.vars_of(joint.outputs)])
        segments[True] = cut.in_order(segments[True], jaxprs.vars_of(joint.gradients))
    return Script(
        forward=tuple(segments[False]),
        residuals=residuals,
        backward=tuple(segments[True]),
        constants=joint.constants,
        same=transfers.same,
        zeros=tuple(cut.zeros.values()),
    )


class _Cut:
    """Stretches of a schedule on their way to segments, one after another."""

    def __init__(
        self,
        joint: Joint,
        program: ScheduledProgram,
        transfers: Transfers,
        free: Set[Var],
        stretches: Sequence[tuple[bool, Sequence[Eqn]]],
    ) -> None:
        counts = collections.Counter(id(eqn) for _, stretch in stretches for eqn in stretch)
        self.joint, self.transfers, self.free = joint, transfers, free
        self.repeated = {eqn for eqn, count in counts.items() if count > 1}
        self.enters = _sources if program.barrier_scope == "sources" else _read_from_outside
        self.zeros = zeros_written_into(joint)
        self.ran: set[int] = set()
        self.waiting: tuple[Var, ...] = ()
        self.stretches, self.number = stretches, -1

    def segment(self, stretch: tuple[Eqn, ...], *, has_barrier: bool, is_late: bool) -> Segment:
        """The next segment; in the forward, nothing enters its barrier unless something runs again there."""
        self.number += 1
        if not has_barrier or not (self.repeated or self.transfers.taken):
            made = Segment(stretch, ())
        else:
            fenced = self._entering(stretch, is_late)
            passed = self.transfers.passed(stretch, self.waiting) if fenced or self._ties(stretch) else ()
            eqns, seeds = with_own_zeros(stretch, self.zeros) if fenced or passed else (stretch, ())
            made = Segment(eqns, (*fenced, *seeds), passed, self.transfers.gradients.intersection(passed))
            self.waiting = () if made.through else self.waiting
        self.ran.update(map(id, stretch))
        self.waiting += self.transfers.left_waiting(stretch, functools.partial(self._stretches_until, is_late))
        return made

    def _entering(self, stretch: Sequence[Eqn], is_late: bool) -> tuple[Var, ...]:
        """What enters the barrier of a stretch from outside: in the forward nothing, unless something runs again there;
        in the backward cotangents at least, where something else waits for the barrier."""
        if not is_late and self.ran.isdisjoint(map(id, stretch)):
            return ()
        fenced = self.enters(self.joint, stretch, self.free, self.repeated, self.transfers)
        if fenced or not (is_late and self.waiting):
            return fenced
        read = _read_from_outside(self.joint, stretch, self.free, self.repeated, self.transfers)
        return _cotangents_among(self.joint, read)

    def _ties(self, stretch: Sequence[Eqn]) -> bool:
        """Whether more than copies pass through the barrier of a stretch: those alone would be tied to nothing."""
        return not self.transfers.waiting.issuperset(self.transfers.passed(stretch, self.waiting))

    def _stretches_until(self, is_late: bool, var: Var) -> int:
        """How many stretches on a variable is read last in a pass as it is now: none if the next one makes it again."""
        following = self.stretches[self.number + 1 : self.number + 2]
        if any(var in eqn.outvars for _, eqns in following for eqn in eqns):
            return 0
        return self._last_read.get((is_late, var), 0) - self.number

    @functools.cached_property
    def _last_read(self) -> dict[tuple[bool, Var], int]:
        """The number of the last stretch of each pass that reads each variable."""
        numbered = enumerate(self.stretches)
        return {(late, v): k for k, (late, eqns) in numbered for eqn in eqns for v in jaxprs.vars_of(eqn.invars)}

    def in_order(self, segments: Sequence[Segment], given_out: Sequence[Var]) -> list[Segment]:
        """The segments such that all of one is made before the next begins: what later ones read, or is given out,
        passes the next one's barrier."""
        wanted = {v for v in given_out if not jaxprs.is_on_host(v)}
        ordered: list[Segment] = []
        for before, segment in zip(reversed(segments[:-1]), reversed(segments[1:])):
            read = _read_from_outside(self.joint, segment.eqns, self.free, self.repeated, self.transfers)
            wanted = (wanted - {*_made(segment.eqns, self.transfers.same)}) | {*read}
            ahead = wanted.difference(segment.through)
            also = [v for v in _made(before.eqns, self.transfers.same) if v in ahead] if segment.fenced else []
            ordered.append(dataclasses.replace(segment, passed=(*segment.passed, *also)))
        return [*segments[:1], *reversed(ordered)]


def run_forward(joint: Joint, script: Script, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """(outputs, residual values) of the forward pass."""
    env = _constants(joint, script) | dict(zip(joint.inputs, inputs, strict=True))
    _run(script.constants, env)
    run_segments(script.forward, env, script.same)
    return [jaxprs.value_of(env, v) for v in joint.outputs], [env[v] for v in script.residuals]


def run_backward(joint: Joint, script: Script, residuals: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
    """One gradient per differentiated input."""
    env = _constants(joint, script) | dict(zip(script.residuals, residuals, strict=True))
    env.update(zip(joint.cotangents, cotangents, strict=True))
    _run(script.constants, env)
    run_segments(script.backward, env, script.same)
    return [jaxprs.value_of(env, v) for v in joint.gradients]


_NOTHING: Mapping[Var, Var] = types.MappingProxyType({})


def run_segments(segments: Sequence[Segment], env: dict[Var, Any], same: Mapping[Var, Var] = _NOTHING) -> None:
    """Runs segments one after another; `env` holds what is known before, and then what they have made."""
    for segment in segments:
        through = [compat.in_row_major(env[v]) if v in segment.results else env[v] for v in segment.through]
        behind = dict(zip(segment.through, behind_barrier(through)))
        env.update((v, behind[v]) for v in segment.passed)
        inside = env | behind
        _run(segment.eqns, inside, same)
        env.update((v, inside[v]) for v in _made(segment.eqns, same))


def behind_barrier(values: Sequence[Any]) -> Sequence[Any]:
    """The same behind a barrier, which they pass without axes of length one: by the shapes that a kernel reads, XLA:GPU
    chooses which rows it works on together, and with [64, 4, 512, 1] they lay apart and took twice as long as with
    [64, 4, 512] (benchmarks/results/gpu.md)."""
    if not values:
        return ()
    dropped = list(map(_unit_axes, values))
    passed = lax.optimization_barrier([lax.squeeze(v, axes) if axes else v for v, axes in zip(values, dropped)])
    return [lax.expand_dims(v, axes) if axes else v for v, axes in zip(passed, dropped)]


def _unit_axes(value: Any) -> tuple[int, ...]:
    """Axes of length one; none over a mesh, of whose axes some may be explicit for others, and not for the value."""
    over_mesh = not jax.typeof(value).sharding.mesh.empty
    return () if over_mesh else tuple(axis for axis, length in enumerate(value.shape) if length == 1)


def put_script[Stand](program: Puts[Stand], joint: Joint, script: Script) -> list[Stand | Literal]:
    """Puts forward and backward of a script into a program: what `run_forward`, then `run_backward` are traced to.

    Returns:
      What stands for the outputs, then for the gradients.
    """
    forward = program.inputs | script.numbers
    put_segments(program, (Segment(script.constants, ()), *script.forward), forward, script.same)
    backward = program.inputs | script.numbers | {v: forward[v] for v in script.residuals}
    put_segments(program, (Segment(script.constants, ()), *script.backward), backward, script.same)
    return [*(at(forward, atom) for atom in joint.outputs), *(at(backward, atom) for atom in joint.gradients)]


def put_segments[Stand](
    program: Puts[Stand],
    segments: Sequence[Segment],
    env: dict[Var, Stand | Literal],
    same: Mapping[Var, Var] = _NOTHING,
) -> None:
    """Puts what `run_segments` runs into a program."""
    for segment in segments:
        outside = {v: env[v] for v in segment.fenced if v not in segment.passed}
        env.update(program.put_barrier(segment.through, env) if segment.through else {})
        for eqn in segment.eqns:
            program.put(eqn, env)
            for v in eqn.outvars if same else ():
                if v in same:
                    env[same[v]] = env[v]
        made = set(_made(segment.eqns, same))
        env.update((v, value) for v, value in outside.items() if v not in made)


def emit_scheduled(
    primal: Primal, choose: Callable[[tuple[int, ...]], tuple[Joint, Script]]
) -> Callable[..., list[Any]]:
    """The flat primal function whose gradient runs a script.

    Args:
      primal: the program.
      choose: called when the function is differentiated, with the indices of the inputs that are; returns the joint
        program and its script. The joint program's `primal.wrt` must cover those indices, or `choose` must raise.

    Returns:
      A function from the primal's flat inputs to its flat outputs. Differentiating it through an output that was
      declared auxiliary raises EmissionError, as does forward mode. A second reverse mode around the first finds the
      program as it is written: it would keep what the first one recomputes, beside what that keeps.
    """

    @jax.custom_vjp
    def scheduled(*inputs: Any) -> Any:
        return jaxprs.evaluate(primal.jaxpr, inputs)

    def forward(*inputs: Any) -> Any:
        joint, script = choose(tuple(i for i, given in enumerate(inputs) if given.perturbed and _has_gradient(given)))
        outputs, residuals = run_forward(joint, script, [given.value for given in inputs])
        return outputs, _Residuals(tuple(residuals), joint, script)

    def backward(saved: Any, cotangents: Any) -> Any:
        planned = saved.joint.primal
        _refuse_auxiliary(planned, cotangents)
        wanted = [compat.instantiated(cotangents[i]) for i in planned.cotangents_of]
        gradients: list[Any] = [None] * len(planned.jaxpr.invars)
        for i, gradient in zip(planned.wrt, run_backward(saved.joint, saved.script, saved.values, wanted)):
            gradients[i] = gradient
        return tuple(gradients)

    scheduled.defvjp(forward, backward, symbolic_zeros=True)

    def run(*inputs: Any) -> Any:
        orders = compat.differentiations(inputs)
        if orders[:1] == ["forward"]:
            raise EmissionError(
                "a schedule is one of reverse mode, and forward mode is passing through it: plan with emit='segments'"
            )
        again = orders.count("reverse") > 1
        return jaxprs.evaluate(primal.jaxpr, inputs) if again else scheduled(*inputs)

    return run


def _has_gradient(given: Any) -> bool:
    """Integers that another planned function computed count as perturbed, too."""
    return jnp.issubdtype(jax.typeof(given.value).dtype, jnp.inexact)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class _Residuals:
    """Residual values on their way from the forward to the backward, with the script that made them."""

    values: tuple[Any, ...]
    joint: Joint
    script: Script

    def tree_flatten(self) -> Any:
        return self.values, (self.joint, self.script)

    @classmethod
    def tree_unflatten(cls, static: Any, values: Any) -> Any:
        return cls(tuple(values), *static)


def _residuals(joint: Joint, program: ScheduledProgram, tail: Sequence[Eqn]) -> tuple[Var, ...]:
    """What the forward hands to the backward: inputs that it reads, what is saved, and gradients known early."""
    inputs, anywhere = {*joint.inputs}, _available_anywhere(joint)
    made = {*joint.cotangents, *(v for eqn in tail for v in eqn.outvars)}
    read = dict.fromkeys(v for eqn in tail for v in jaxprs.vars_of(eqn.invars) if v in inputs)
    read.update(dict.fromkeys(joint.values[value] for value in program.saved))
    read.update(dict.fromkeys(v for v in jaxprs.vars_of(joint.gradients) if v not in made))
    return tuple(v for v in read if v not in anywhere)


def _read_from_outside(
    joint: Joint, eqns: Sequence[Eqn], free: Set[Var], repeated: Set[int], transfers: Transfers
) -> tuple[Var, ...]:
    own = {*_made(eqns, transfers.same)} | free
    read = dict.fromkeys(v for eqn in eqns for v in jaxprs.vars_of(eqn.invars))
    return tuple(v for v in read if v not in own and (v in transfers.ends or not jaxprs.is_on_host(v)))


def _available_anywhere(joint: Joint) -> set[Var]:
    return {*joint.jaxpr.constvars, *(v for eqn in joint.constants for v in eqn.outvars)}


def _sources(
    joint: Joint, eqns: Sequence[Eqn], free: Set[Var], repeated: Set[int], transfers: Transfers
) -> tuple[Var, ...]:
    """What the recomputed equations of a segment read from outside, what it reads that came over the link, and the
    cotangents that it reads."""
    early = joint.early_values
    again = [eqn for eqn in eqns if id(eqn) in repeated or any(v in early for v in eqn.outvars)]
    read = _read_from_outside(joint, eqns, free, repeated, transfers)
    cotangents = set(_cotangents_among(joint, read))
    if not again and transfers.ends.isdisjoint(read):
        return ()
    wanted = {v for eqn in again for v in eqn.invars if isinstance(v, Var)} | transfers.ends
    return tuple(v for v in read if v in wanted or v in cotangents)


def _cotangents_among(joint: Joint, variables: Sequence[Var]) -> tuple[Var, ...]:
    early, inputs = joint.early_values, set(joint.inputs)
    return tuple(v for v in variables if v not in early and v not in inputs)


def _constants(joint: Joint, script: Script) -> dict[Var, Any]:
    numbers = {seed: jaxprs.value_of({}, number) for seed, number in script.numbers.items()}
    return dict(zip(joint.jaxpr.constvars, compat.consts_of(joint.jaxpr))) | numbers


def _run(eqns: Sequence[Eqn], env: dict[Var, Any], same: Mapping[Var, Var] = types.MappingProxyType({})) -> None:
    """Runs equations; what is the `same` as a value that they make is known with it."""
    for eqn in eqns:
        env.update(zip(eqn.outvars, compat.bind(eqn, [jaxprs.value_of(env, v) for v in eqn.invars]), strict=True))
        env.update((same[v], env[v]) for v in eqn.outvars if v in same)


def _made(eqns: Sequence[Eqn], same: Mapping[Var, Var]) -> list[Var]:
    """What equations make, and what is the same."""
    made = [v for eqn in eqns for v in eqn.outvars]
    return [*made, *(same[v] for v in made if v in same)]


def _without_idle_trips(
    joint: Joint, passes: Sequence[Sequence[Sequence[Eqn]]], saved: Set[Var]
) -> list[tuple[Eqn, ...]]:
    """The stretches of both passes without round trips that lead nowhere."""
    if not joint.round_trips:
        return [tuple(eqns) for stretches in passes for eqns in stretches]
    there = [eqns for stretches in passes for eqns in _without_returns(joint, stretches)]
    read = {v for eqns in there for eqn in eqns for v in jaxprs.vars_of(eqn.invars)} | saved
    idle = {id(trip.way_there) for trip in joint.round_trips if trip.stored not in read}
    return [tuple(eqn for eqn in eqns if id(eqn) not in idle) for eqns in there]


def _without_returns(joint: Joint, stretches: Sequence[Sequence[Eqn]]) -> Iterator[list[Eqn]]:
    """Stretches of one pass without ways back to a value that the stretch makes, or stores after it was made before."""
    trips = {id(trip.way_back): trip for trip in joint.round_trips}
    before: set[Var] = set()
    for eqns in stretches:
        made, kept = set[Var](), []
        for eqn in eqns:
            trip = trips.get(id(eqn))
            if trip is None or not (trip.source in made or (trip.stored in made and trip.source in before)):
                kept.append(eqn)
            made.update(eqn.outvars)
        yield kept
        before |= made


def _refuse_auxiliary(primal: Primal, cotangents: Sequence[Any]) -> None:
    zero = jax.custom_derivatives.SymbolicZero
    auxiliary = set(range(len(cotangents))) - set(primal.cotangents_of)
    used = [
        i
        for i in auxiliary
        if not isinstance(cotangents[i], zero) and jnp.issubdtype(jaxprs.dtype_of(primal.jaxpr.outvars[i]), jnp.inexact)
    ]
    if used:
        raise EmissionError(
            f"{len(used)} auxiliary outputs are differentiated; the plan was made with has_aux=True, where only the"
            " first result is. Plan again with has_aux=False."
        )
