"""The scans, branches and shard_maps of a program that its gradient passes through, each with its body as a program."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple

import jax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.loops.body import Body, Loop
from jaxremat.trace import activity
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.fingerprint import fingerprint
from jaxremat.trace.masks import NO_MASKS, is_invariant, masks_among
from jaxremat.trace.primal import Primal
from jaxremat.trace.projections import views_of

_FEWEST_EQUATIONS = 3  # in a branch: of two, one makes what is kept and the other the result; benchmarks/constants.py


def find(primal: Primal) -> tuple[Loop, ...]:
    """The loops of a program that its gradient passes through, without those that have effects."""
    return _find(primal, _Bodies(primal.masks_before_loops), range(len(primal.jaxpr.invars)))


def with_masks_before_loops(primal: Primal) -> Primal:
    """The same program, whose loops are given masks of positions, which wait in memory; itself where none makes such.

    Kernels that compare indices themselves take rows that lie apart: see `trace.masks`.
    """
    moved = dataclasses.replace(primal, masks_before_loops=True)
    bodies = [[loop.body.primal.fingerprint for loop in find(each)] for each in (primal, moved)]
    return primal if bodies[0] == bodies[1] else moved


def _find(primal: Primal, bodies: _Bodies, weights: Sequence[int]) -> tuple[Loop, ...]:
    jaxpr = primal.jaxpr
    views = views_of(jaxpr.eqns, (jaxpr.invars[i] for i in weights))
    perturbed = activity.perturbed_vars(jaxpr, [i in primal.wrt for i in range(len(jaxpr.invars))])
    wanted = activity.wanted_vars(jaxpr, [i in primal.cotangents_of for i in range(len(jaxpr.outvars))], perturbed)
    loops: list[Loop] = []
    for position, eqn in enumerate(jaxpr.eqns):
        inputs = [_given(v, perturbed, views) for v in eqn.invars]
        outputs = [v in wanted for v in eqn.outvars]
        if jaxprs.has_effects(eqn) or not any(given.is_perturbed for given in inputs) or not any(outputs):
            continue
        if eqn.primitive.name == "scan" and eqn.params["length"]:
            loop = _read_loop(position, eqn, inputs, outputs, bodies)
            before, after = _axes(jaxpr, eqn)
            loops.append(dataclasses.replace(loop, scanned_axes=before, result_axes=after))
        elif eqn.primitive.name == "cond":
            for branch, closed in enumerate(eqn.params["branches"]):
                loops.extend(_read_once(position, closed, inputs[1:], bodies, "cond", branch))
        elif eqn.primitive.name == "shard_map":
            with compat.in_body_of(eqn):
                loops.extend(_read_once(position, eqn.params["jaxpr"], inputs, bodies.inside(eqn), "shard_map"))
    return tuple(loops)


class _Given(NamedTuple):
    """What a body is given.

    Attributes:
      is_perturbed: whether it depends on what is differentiated.
      is_weight: whether it is an argument of the whole program, in another shape or type, or a part of one.
    """

    is_perturbed: bool
    is_weight: bool


def _given(atom: Any, perturbed: Set[Var], views: Set[Var]) -> _Given:
    return _Given(isinstance(atom, Var) and atom in perturbed, isinstance(atom, Var) and atom in views)


def _axes(jaxpr: Jaxpr, eqn: Eqn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Along which axes the scanned inputs and the results of a scan lie in memory."""
    first = sum(compat.scan_arity(eqn))
    made_by = {v: made for made in jaxpr.eqns for v in made.outvars}
    readers: dict[Var, list[Eqn | None]] = collections.defaultdict(list)
    for var in jaxprs.vars_of(jaxpr.outvars):
        readers[var].append(None)
    for reader in jaxpr.eqns:
        for var in jaxprs.vars_of(reader.invars):
            readers[var].append(reader)
    sources = [made_by.get(v) if isinstance(v, Var) else None for v in eqn.invars[first:]]
    only_reader = [readers[v][0] if len(readers[v]) == 1 else None for v in eqn.outvars[compat.scan_arity(eqn)[1] :]]
    before = tuple(_moved_axis(source, to_front=True) for source in sources)
    return before, tuple(_moved_axis(reader, to_front=False) for reader in only_reader)


def _moved_axis(eqn: Eqn | None, *, to_front: bool) -> int:
    """The axis that a transposition moves to the front, or back from there; 0 for any other equation. Entries along the
    last axis are scattered over memory: there a copy in order is worth its bytes."""
    if eqn is None or eqn.primitive.name != "transpose":
        return 0
    order = list(eqn.params["permutation"])
    axis = order[0] if to_front else order.index(0)
    rank = range(len(order))
    front = [axis, *(i for i in rank if i != axis)]
    moved = front if to_front else [front.index(i) for i in rank]
    return axis if order == moved and axis < len(order) - 1 else 0


def _read_once(
    position: int, closed: Jaxpr, inputs: Sequence[_Given], bodies: _Bodies, kind: str, branch: int = 0
) -> Iterator[Loop]:
    """A loop of one iteration over what runs once, where that holds anything for its backward."""
    flat = jaxprs.inline_calls(closed)
    if len(flat.eqns) < _FEWEST_EQUATIONS and not any(map(jaxprs.subjaxprs, flat.eqns)):
        return
    body = bodies.read(flat, len(flat.invars), 0, inputs, [True] * len(flat.outvars))
    if body.primal.wrt and body.primal.cotangents_of:
        same = _section(flat, (), flat.invars, flat.invars)
        yield Loop(position, 1, False, 1, same, body, kind, branch)


def _read_loop(position: int, eqn: Eqn, inputs: Sequence[_Given], outputs: list[bool], bodies: _Bodies) -> Loop:
    num_consts, num_carry = compat.scan_arity(eqn)
    source = jaxprs.inline_calls(eqn.params["jaxpr"])
    invariants, flat, num_body_consts = _without_invariants(source, num_consts, bodies.masks_before_loops)
    made = activity.perturbed_vars(invariants, [given.is_perturbed for given in inputs[:num_consts]])
    weights = (v for v, given in zip(invariants.invars, inputs) if given.is_weight)
    views = views_of(invariants.eqns, weights)
    consts = [_given(v, made, views) for v in invariants.outvars]
    carried, scanned = inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]
    entering = [given._replace(is_weight=False) for given in carried]
    body = bodies.read(flat, num_body_consts, num_carry, [*consts, *entering, *scanned], outputs)
    params = eqn.params
    return Loop(position, params["length"], params["reverse"], int(params["unroll"]), invariants, body)


class _Bodies:
    """The bodies of one program: equal ones are one object.

    Args:
      masks_before_loops: whether loops are given their masks.
      within: the shard_map equations around what is read.
    """

    def __init__(self, masks_before_loops: bool, within: tuple[Eqn, ...] = ()) -> None:
        self.masks_before_loops = masks_before_loops
        self.within = within
        self._read: dict[tuple[Any, ...], Body] = {}
        self._inside: dict[int, _Bodies] = {}

    def inside(self, eqn: Eqn) -> _Bodies:
        """Those inside a shard_map equation."""
        return self._inside.setdefault(id(eqn), _Bodies(self.masks_before_loops, (*self.within, eqn)))

    def read(self, flat: Jaxpr, num_consts: int, num_carry: int, inputs: Sequence[_Given], outputs: list[bool]) -> Body:
        """The body of a flat jaxpr, of which some inputs are perturbed and some outputs wanted."""
        weights = tuple(i for i, given in enumerate(inputs) if given.is_weight)
        is_perturbed = [given.is_perturbed for given in inputs]
        perturbed, produced = activity.scan_perturbed(flat, num_consts, num_carry, is_perturbed)
        used, received = activity.scan_wanted(flat, num_consts, num_carry, perturbed, outputs)
        wrt = tuple(i for i, (a, b) in enumerate(zip(perturbed, used)) if a and b)
        cotangents_of = tuple(i for i, (a, b) in enumerate(zip(produced, received)) if a and b)
        what = fingerprint(flat), _identities(flat), num_consts, num_carry
        key = what, wrt, cotangents_of, tuple(perturbed), weights
        if key not in self._read:
            wrt = _with_matching_carries(wrt, cotangents_of, num_consts, num_carry)
            primal = Primal(flat, (), wrt, cotangents_of, None, None, masks_before_loops=self.masks_before_loops)
            self._read[key] = Body(
                primal,
                num_consts=num_consts,
                num_carry=num_carry,
                perturbed=tuple(i for i, flag in enumerate(perturbed) if flag),
                constant_results=tuple(i for i, flag in enumerate(produced) if not flag),
                loops=_find(primal, self, weights),
                within=self.within,
                weights=weights,
            )
        return self._read[key]


def _identities(jaxpr: Jaxpr) -> tuple[int, ...]:
    """What a fingerprint does not see: which constants and which functions a jaxpr holds."""
    own = [id(const) for const in compat.consts_of(jaxpr)]
    for eqn in jaxpr.eqns:
        own += [id(value) for value in eqn.params.values() if callable(value)]
        own += [identity for inner in jaxprs.subjaxprs(eqn) for identity in _identities(inner)]
    return tuple(own)


def _with_matching_carries(wrt: Any, cotangents_of: Any, num_consts: int, num_carry: int) -> tuple[int, ...]:
    """Inputs to differentiate: a carry exactly where its output has a cotangent."""
    carries = {num_consts + i for i in cotangents_of if i < num_carry}
    return tuple(sorted(carries | {i for i in wrt if not num_consts <= i < num_consts + num_carry}))


def _without_invariants(body: Jaxpr, num_consts: int, with_masks: bool) -> tuple[Jaxpr, Jaxpr, int]:
    """Splits off what an iteration computes from constants alone, where the result is not larger than its sources, and
    masks where they are wanted before the loop.

    Returns:
      (from the constants to those of the remaining body, the remaining body, how many constants it has).
    """
    masks = masks_among(body.eqns, body.outvars) if with_masks else NO_MASKS
    constant = set(body.invars[:num_consts])
    before, inside = [], []
    for eqn in body.eqns:
        if is_invariant(eqn, constant):
            constant.update(eqn.outvars)
            before.append(eqn)
        elif masks.made.isdisjoint(eqn.outvars):
            inside.append(eqn)
    made = [v for eqn in before for v in eqn.outvars]
    candidates = [*body.invars[:num_consts], *masks.in_order, *made]
    read = {v for eqn in inside for v in jaxprs.vars_of(eqn.invars)} | set(jaxprs.vars_of(body.outvars))
    consts = [v for v in candidates if v in read]
    invariants = _section(body, [*masks.numbers, *masks.eqns, *before], body.invars[:num_consts], consts)
    rest = _section(body, inside, [*consts, *body.invars[num_consts:]], body.outvars)
    return invariants, rest, len(consts)


def _section(jaxpr: Jaxpr, eqns: Sequence[Eqn], inputs: Sequence[Var], outputs: Sequence[Any]) -> Jaxpr:
    """A jaxpr of some of the equations."""

    def run(*values: Any) -> Any:
        env = dict(zip(jaxpr.constvars, compat.consts_of(jaxpr))) | dict(zip(inputs, values, strict=True))
        for eqn in eqns:
            results = compat.bind(eqn, [jaxprs.value_of(env, v) for v in eqn.invars])
            env.update(zip(eqn.outvars, results, strict=True))
        return [jaxprs.value_of(env, v) for v in outputs]

    return compat.without_dead_code(jax.make_jaxpr(run)(*map(jaxprs.shape_of, inputs)))
