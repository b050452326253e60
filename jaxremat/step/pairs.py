"""Pairs of scans in a differentiated program: one stacks what the other reads in reverse.

Once a loop over layers has been differentiated, nothing says any more that the two belong together, except that the
second reads, slice by slice and in the opposite order, what the first stacked. Both bodies one after the other are
then the forward and the backward of one iteration: what it stacks and what it runs again is decided and emitted as for
any loop. A pair inside the iteration is decided first, at the same price.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp

from jaxremat.backends.backend import Backend
from jaxremat.backends.devices import Device
from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.base.errors import PlanMismatchError
from jaxremat.loops.body import Body, Iteration, Loop, scripted
from jaxremat.loops.decide import LoopOption, at_price
from jaxremat.loops.decision import LoopDecision, Piece
from jaxremat.loops.options import IterationHull, iteration_hull
from jaxremat.loops.pieces import Sums, Way, empty_results
from jaxremat.step.rewriting import Replacements, rewritten
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.primal import Primal
from jaxremat.trace.projections import views_of
from jaxremat.trace.round_trips import is_exact, with_round_trips
from jaxremat.trace.stack import arrays_of, stacks


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two scans over the same iterations.

    Attributes:
      first, second: their equations in the program.
      loop: the first, without the results that only the second reads.
      joint: one iteration of both; the inputs of the second, the linked ones aside, stand for cotangents, its outputs
        for gradients.
      kept: for each result of the first scan, whether others than the second read it.
      links: for each slice that the second scan reads, the result of the first that it is, or None.
      num_consts, num_carry: of the second scan.
      storages: forms in which what an iteration makes may wait for the second scan.
      weights: the inputs of an iteration that an argument of the step is given to, in another shape or type.
    """

    first: int
    second: int
    loop: Loop
    joint: Joint
    kept: tuple[bool, ...]
    links: tuple[int | None, ...]
    num_consts: int
    num_carry: int
    storages: tuple[str, ...]
    weights: tuple[int, ...]

    @functools.cached_property
    def inner(self) -> tuple[Pair, ...]:
        """The pairs inside one iteration."""
        return find_pairs(self.joint.jaxpr, self.storages, self.weights)

    def decided(self, inner: Sequence[LoopDecision], backend: Backend) -> Joint:
        """One iteration of both, the pairs inside as decided or, without decisions, left alone."""
        replacements = emit_pairs(self.joint.jaxpr, self.inner, inner, backend) if inner else {}
        joint = Joint(self.joint.primal, rewritten(self.joint.jaxpr, replacements))
        if not self.storages:
            return joint
        weights = {joint.inputs[i] for i in self.weights}
        return Joint(joint.primal, with_round_trips(joint.jaxpr, joint.backward, self.storages, weights), joint)


class Pairs:
    """The pairs of a flat program on one device, each solved once.

    Args:
      found: the pairs.
      device: what costs and bytes are for.
    """

    def __init__(self, found: Sequence[Pair], device: Device) -> None:
        self.found = tuple(found)
        self._device = device
        self._hulls: dict[tuple[Pair, tuple[LoopDecision, ...]], IterationHull] = {}
        self._inside: dict[Pair, Pairs] = {}

    def decide(self, seconds_per_byte: float) -> tuple[LoopDecision, ...]:
        """The cheapest decision for each pair when holding one byte costs so much."""
        has_barriers = self._device.backend.fences_loop_bodies
        options = [self._option(pair, seconds_per_byte) for pair in self.found]
        return tuple(dataclasses.replace(option.decision, has_barriers=has_barriers) for option in options)

    def _option(self, pair: Pair, seconds_per_byte: float) -> LoopOption:
        """The cheapest decision for one pair: what is stacked inside it lives in one iteration, or in all of them."""
        length = pair.loop.length
        prices = (seconds_per_byte, seconds_per_byte * length) if pair.inner else ()
        inner = dict.fromkeys([(), *(self._within(pair).decide(price) for price in prices)])
        options = [at_price(self._hull(pair, each), length, each, seconds_per_byte) for each in inner]
        return min(options, key=lambda option: option.price(seconds_per_byte))

    def _within(self, pair: Pair) -> Pairs:
        if pair not in self._inside:
            self._inside[pair] = Pairs(pair.inner, self._device)
        return self._inside[pair]

    def _hull(self, pair: Pair, inner: tuple[LoopDecision, ...]) -> IterationHull:
        """What an iteration may stack, against what it then runs again."""
        if (pair, inner) not in self._hulls:
            backend = self._device.backend
            joint = pair.decided(inner, backend)
            self._hulls[pair, inner] = iteration_hull(pair.loop.body, joint, self._device, backend.fences_loop_bodies)
        return self._hulls[pair, inner]


def find_pairs(jaxpr: Jaxpr, storages: tuple[str, ...] = (), weights: Sequence[int] = ()) -> tuple[Pair, ...]:
    """The pairs of a flat program, each scan in one at most; the ones that share most bytes first.

    Args:
      jaxpr: the program.
      storages: forms in which values may wait inside of them.
      weights: the inputs whose gradients may be estimated, where a form does that.
    """
    views = views_of(jaxpr.eqns, (jaxpr.invars[i] for i in weights))
    readers: dict[Var, list[int]] = collections.defaultdict(list)
    for position, eqn in enumerate(jaxpr.eqns):
        for var in set(jaxprs.vars_of(eqn.invars)):
            readers[var].append(position)
    outputs = set(jaxprs.vars_of(jaxpr.outvars))
    scans = [i for i, eqn in enumerate(jaxpr.eqns) if _is_plain_scan(eqn)]
    taken: set[int] = set()
    pairs = []
    for first in scans:
        shared: collections.Counter[int] = collections.Counter()
        for var in _results(jaxpr.eqns[first]):
            own = readers[var]
            if var not in outputs and len(own) == 1 and _reads_slices(jaxpr, first, own[0], var):
                shared[own[0]] += jaxprs.size_bytes(var)
        partners = [second for second, size in shared.most_common() if size and second not in taken]
        if first not in taken and partners:
            taken |= {first, partners[0]}
            pairs.append(_pair(jaxpr, first, partners[0], readers, outputs, storages, views))
    return tuple(pairs)


def weights_of(jaxpr: Jaxpr, is_body: bool) -> Sequence[int]:
    """The inputs of a program whose gradients may be estimated: a step's arguments. A body may be given what else has a
    gradient, with which the rest of the backward goes on."""
    return () if is_body else range(len(jaxpr.invars))


def emit_pairs(
    jaxpr: Jaxpr, pairs: Sequence[Pair], decisions: Sequence[LoopDecision], backend: Backend
) -> Replacements:
    """What runs in place of each scan of some pairs.

    Raises:
      PlanMismatchError: if there is not one decision per pair.
    """
    if len(decisions) != len(pairs):
        raise PlanMismatchError(f"{len(decisions)} decisions meet {len(pairs)} pairs of scans: plan again")
    emitted: dict[Var, Callable[[list[Any]], list[Any]]] = {}
    for pair, decision in zip(pairs, decisions, strict=True):
        way = _PairUnderWay(pair, decision, backend)
        emitted[jaxpr.eqns[pair.first].outvars[0]] = way.first
        emitted[jaxpr.eqns[pair.second].outvars[0]] = way.second
    return emitted


class _PairUnderWay:
    """Runs the first scan, then the second with what the first one saved."""

    def __init__(self, pair: Pair, decision: LoopDecision, backend: Backend) -> None:
        self.pair = pair
        self.decision = decision
        self.backend = backend
        self.joint = pair.decided(decision.inner, backend)
        self.joint.require_planned(decision.gradient)

    def first(self, inputs: list[Any]) -> list[Any]:
        """The outputs of the first scan; None for the results that only the second reads."""
        body = self.pair.loop.body
        self.consts, carry, self.scanned = body.split(inputs)
        way = Way(self.pair.loop, self._iterations([]), self.consts, stacks(self.scanned))
        results = empty_results(self.pair.loop)
        carry, results, self.saved = way.forward(self.decision.pieces, 0, carry, results)
        made = iter(arrays_of(results or ()))
        return [*carry, *(next(made) if kept else None for kept in self.pair.kept)]

    def second(self, inputs: list[Any]) -> list[Any]:
        """The outputs of the second scan."""
        pair = self.pair
        first, last = pair.num_consts, pair.num_consts + pair.num_carry
        others = [x for x, link in zip(inputs[last:], pair.links, strict=True) if link is None]
        results = [_stack(pair.loop.length, v) for v in self.joint.gradients[pair.num_carry :]]
        way = Way(pair.loop, self._iterations(inputs[:first]), self.consts, stacks(self.scanned), stacks(others))
        sums = way.backward(self.decision.pieces, 0, self.saved, Sums([], inputs[first:last], stacks(results)))
        return [*sums.cotangents, *arrays_of(sums.gradients)]

    def _iterations(self, late_consts: list[Any]) -> Callable[[Piece], Iteration]:
        body, joint, num_carry = self.pair.loop.body, self.joint, self.pair.num_carry

        def iteration(piece: Piece) -> Iteration:
            script = scripted(body, joint, piece, self.decision.has_barriers, self.backend).script
            return _PairIteration(body, joint, script, tuple(late_consts), num_carry)

        return iteration


@dataclasses.dataclass(frozen=True, eq=False)
class _PairIteration(Iteration):
    """One iteration of both scans under a schedule.

    Attributes:
      late_consts: constants of the second scan.
      num_carry: its carries.
    """

    late_consts: tuple[Any, ...]
    num_carry: int

    def backward(
        self, consts: list[Any], slices: list[Any], stacked: list[Any], cotangents: list[Any]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """No sums, the second scan's carry, its results."""
        found = self.run_backward(consts, slices, stacked, [*self.late_consts, *cotangents])
        return [], found[: self.num_carry], found[self.num_carry :]


def _is_plain_scan(eqn: Eqn) -> bool:
    return eqn.primitive.name == "scan" and eqn.params["length"] > 1 and not jaxprs.has_effects(eqn)


def _results(eqn: Eqn) -> list[Var]:
    return eqn.outvars[compat.scan_arity(eqn)[1] :]


def _reads_slices(jaxpr: Jaxpr, first: int, second: int, var: Var) -> bool:
    """Whether an equation is a scan that runs over a variable alone, against the order in which it was stacked."""
    eqn, source = jaxpr.eqns[second], jaxpr.eqns[first]
    if not _is_plain_scan(eqn) or eqn.params["length"] != source.params["length"]:
        return False
    begin = sum(compat.scan_arity(eqn))
    opposite = eqn.params["reverse"] != source.params["reverse"]
    return opposite and var in eqn.invars[begin:] and var not in eqn.invars[:begin]


def _pair(
    jaxpr: Jaxpr,
    first: int,
    second: int,
    readers: dict[Var, list[int]],
    outputs: set[Var],
    storages: tuple[str, ...],
    views: Set[Var],
) -> Pair:
    source, target = jaxpr.eqns[first], jaxpr.eqns[second]
    num_consts, num_carry = compat.scan_arity(source)
    late_consts, late_carry = compat.scan_arity(target)
    only_here = {v: i for i, v in enumerate(_results(source)) if readers[v] == [second] and v not in outputs}
    scanned = target.invars[late_consts + late_carry :]
    links = tuple(only_here.get(v) if isinstance(v, Var) else None for v in scanned)
    kept = tuple(i not in links for i in range(len(_results(source))))
    early, joint = _one_iteration(source, target, kept, links, num_carry)
    body = Body(early, num_consts, num_carry, (), (), ())
    params = source.params
    loop = Loop(first, params["length"], params["reverse"], int(params["unroll"]), params["jaxpr"], body)
    given = (*range(num_consts), *range(num_consts + num_carry, len(source.invars)))
    weights = tuple(i for i in given if not views.isdisjoint(jaxprs.vars_of(source.invars[i : i + 1])))
    return Pair(first, second, loop, joint, kept, links, late_consts, late_carry, _forms(target, storages), weights)


def _forms(second: Eqn, storages: tuple[str, ...]) -> tuple[str, ...]:
    """The forms in which values may wait for a scan. Inexact ones only for a scan that a gradient transposed: any other
    that runs in reverse, such as a smoother's or of an estimate of returns, computes values with them."""
    is_gradient = "transpose(" in compat.name_stack(second)
    return tuple(form for form in storages if is_gradient or is_exact(form))


def _one_iteration(source: Eqn, target: Eqn, kept: Any, links: Any, num_carry: int) -> tuple[Primal, Joint]:
    """An iteration of the first scan, and of both."""
    bodies = source.params["jaxpr"], target.params["jaxpr"]
    first = len(target.invars) - len(links)
    unlinked = [v for i, v in enumerate(bodies[1].invars) if i < first or links[i - first] is None]

    def early(inputs: Any) -> Any:
        made = jaxprs.evaluate(bodies[0], inputs)
        return [*made[:num_carry], *(y for y, keep in zip(made[num_carry:], kept) if keep)], made[num_carry:]

    def both(inputs: Any, late: Any) -> Any:
        outputs, stacked = early(inputs)
        given: Iterator[Any] = iter(late[first:])
        slices = [next(given) if link is None else stacked[link] for link in links]
        return outputs, jaxprs.evaluate(bodies[1], [*late[:first], *slices])

    shapes = list(map(jaxprs.shape_of, bodies[0].invars))
    alone = jax.make_jaxpr(lambda inputs: early(inputs)[0])(shapes)
    joint = jaxprs.inline_calls(jax.make_jaxpr(both)(shapes, list(map(jaxprs.shape_of, unlinked))))
    primal = Primal(alone, (), (), (), None, None)
    return primal, Joint(primal, joint)


def _stack(length: int, atom: Any) -> jax.Array:
    zeros = compat.zeros_of(atom.aval)
    return jnp.broadcast_to(zeros, (length, *zeros.shape))
