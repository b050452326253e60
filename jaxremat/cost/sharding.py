"""Which part of each value one device of a mesh holds, and which equations communicate.

XLA's partitioner decides at compile time; this is a cheap forecast of it. The shardings of the arguments are carried
forward through the program: along dimensions that an equation keeps, through loops and calls, and wherever the
program itself constrains a sharding. What an equation does with a dimension is unknown where it is not listed here:
then dimensions of unchanged position and size keep their axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.primitives import ELEMENTWISE

Axes = tuple[tuple[str, int], ...]  # mesh axes (name, size) along one dimension
Spec = tuple[Axes, ...]  # one entry per dimension

_COLLECTIVES = frozenset(
    (
        *("psum", "psum2", "psum_invariant", "pmax", "pmin", "ppermute", "pbroadcast", "pgather", "all_to_all"),
        *("all_gather", "all_gather_invariant", "all_gather_reduced", "ragged_all_to_all", "reduce_scatter"),
        *("psum_scatter", "unreduced_psum", "unreduced_reduce_scatter", "reshard"),
    )
)
_SPREADING = frozenset({"broadcast_in_dim", "iota"})
_RESIZING = frozenset({"concatenate", "pad", "slice", "split"})
_UPDATING = frozenset({"scatter-add", "scatter", "dynamic_update_slice", "convert_element_type"})


def is_collective(eqn: Eqn) -> bool:
    """Whether an equation, or one inside it, moves data between devices by name."""
    if eqn.primitive.name in _COLLECTIVES:
        return True
    return any(is_collective(inner) for sub in jaxprs.subjaxprs(eqn) for inner in sub.eqns)


def again_seconds(eqns: Sequence[Eqn], seconds: np.ndarray) -> np.ndarray:
    """[N] what running each equation of a program again is taken to cost, of what it costs once: a collective, on which
    every device waits for every other, counts as much as all equations together, so that it runs again last of all."""
    collective = np.asarray([is_collective(eqn) for eqn in eqns], bool)
    return np.where(collective, seconds + seconds.sum(), seconds)


def device_fraction(joint: Joint, shardings: Sequence[jax.sharding.Sharding | None]) -> np.ndarray:
    """The part of each value that one device holds.

    Args:
      joint: the program.
      shardings: one per flat input of `joint.primal`, None where the input is on every device.

    Returns:
      [V] float64 in (0, 1], one per value, in the order in which the equations of `joint.jaxpr` produce them.
    """
    layouts = _layouts(joint, shardings)
    made = [v for eqn in joint.eqns for v in eqn.outvars]
    return np.asarray([1.0 / _parts(layouts[v]) for v in made], np.float64)


def summed_over_devices(joint: Joint, shardings: Sequence[jax.sharding.Sharding | None]) -> np.ndarray:
    """[N] bool: whether what an equation makes is a sum of what the devices along some axis of the mesh hold, such as
    the gradient of a parameter that all have, of examples that each has some of. Arguments as of `device_fraction`."""
    layouts = _layouts(joint, shardings)
    return np.asarray([bool(_axes(eqn.invars, layouts) - _axes(eqn.outvars, layouts)) for eqn in joint.eqns], bool)


def fraction_inside(joint: Joint, shardings: Sequence[jax.sharding.Sharding | None]) -> np.ndarray:
    """[N] the part that one device holds of what the bodies of each equation make, by bytes; nan without bodies.
    Arguments as of `device_fraction`."""
    layouts = _layouts(joint, shardings)
    given = (
        [layouts.get(v, _replicated(v)) if isinstance(v, Var) else _replicated(v) for v in e.invars] for e in joint.eqns
    )
    return np.asarray([_inside(eqn, inputs) for eqn, inputs in zip(joint.eqns, given)], np.float64)


def _inside(eqn: Eqn, inputs: list[Spec]) -> float:
    within: dict[Var, Spec] = {}
    for body, given in _bodies(eqn, inputs):
        within.update(zip(body.invars, given))
        _propagate(body, within, {})
        for var in body.invars:
            del within[var]
    whole = np.asarray([jaxprs.size_bytes(v) for v in within], np.float64)
    part = np.asarray([1.0 / _parts(layout) for layout in within.values()], np.float64)
    return float(whole @ part / whole.sum()) if whole.any() else float("nan")


def _bodies(eqn: Eqn, inputs: list[Spec]) -> list[tuple[Jaxpr, list[Spec]]]:
    """The bodies of a loop or conditional, with the layouts of their inputs."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        first = sum(compat.scan_arity(eqn))
        return [(params["jaxpr"], [*inputs[:first], *(layout[1:] for layout in inputs[first:])])]
    if name == "while":
        return [(params["body_jaxpr"], inputs[params["cond_nconsts"] :])]
    return [(branch, inputs[1:]) for branch in params["branches"]] if name == "cond" else []


def _axes(atoms: Sequence[Any], layouts: dict[Var, Spec]) -> set[str]:
    """The axes of the mesh along which any of some values is divided."""
    return {name for v in jaxprs.vars_of(atoms) for axes in layouts.get(v, ()) for name, _ in axes}


def _layouts(joint: Joint, shardings: Sequence[jax.sharding.Sharding | None]) -> dict[Var, Spec]:
    layouts = {v: _of_sharding(v, s) for v, s in zip(joint.inputs, shardings, strict=True)}
    results = [joint.outputs[i] for i in joint.primal.cotangents_of]
    late = {cotangent: result for cotangent, result in zip(joint.cotangents, results) if isinstance(result, Var)}
    _propagate(joint.jaxpr, layouts, late)
    _follow_readers(joint.eqns, layouts)
    return layouts


def device_share(var: Var, sharding: Any) -> float:
    """The part of an input that one device holds."""
    return 1.0 / _parts(_of_sharding(var, sharding))


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))


def _parts(layout: Spec) -> int:
    return math.prod(size for axes in layout for _, size in axes)


def _of_sharding(var: Var, sharding: Any) -> Spec:
    shape = _shape(var)
    if isinstance(sharding, NamedSharding):
        return _of_spec(sharding.mesh, sharding.spec, len(shape))
    if not isinstance(sharding, jax.sharding.Sharding):
        return _replicated(var)
    divisors = [n // max(m, 1) for n, m in zip(shape, sharding.shard_shape(shape))]
    return tuple(((f"dimension {i}", parts),) if parts > 1 else () for i, parts in enumerate(divisors))


def _of_spec(mesh: Any, spec: PartitionSpec, rank: int) -> Spec:
    entries = [*spec, *[None] * (rank - len(spec))]
    return tuple(_named_axes(mesh, entry) for entry in entries)


def _named_axes(mesh: Any, entry: Any) -> Axes:
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    names = (entry,) if isinstance(entry, str) else tuple(entry)
    return tuple((str(name), int(mesh.shape[name])) for name in names)


def _replicated(atom: Atom) -> Spec:
    return ((),) * len(_shape(atom))


def _propagate(jaxpr: Jaxpr, layouts: dict[Var, Spec], late: dict[Var, Var]) -> list[Spec]:
    """Fills in the layout of every variable; returns those of the outputs."""

    def layout(atom: Any) -> Spec:
        if not isinstance(atom, Var):
            return _replicated(atom)
        if atom not in layouts:
            layouts[atom] = layouts.get(late.get(atom, atom), _replicated(atom))
        return layouts[atom]

    for eqn in jaxpr.eqns:
        outputs = _outputs(eqn, [layout(v) for v in eqn.invars])
        layouts.update(zip(eqn.outvars, map(_without_repeats, outputs), strict=True))
    return [layout(v) for v in jaxpr.outvars]


def _follow_readers(eqns: Sequence[Eqn], layouts: dict[Var, Spec]) -> None:
    """What is made from nothing, or spread, is made in the parts in which it is read; so are updates of such."""
    spread: set[Var] = set()
    for eqn in eqns:
        into = [v for v in jaxprs.vars_of(eqn.invars[:1]) if v in spread]
        if eqn.primitive.name in _SPREADING or (into and eqn.primitive.name in _UPDATING):
            spread.update(eqn.outvars)
    for eqn in reversed(eqns):
        followers = eqn.invars[:1] if eqn.primitive.name in _UPDATING else eqn.invars
        if eqn.primitive.name not in ELEMENTWISE | _UPDATING or len(eqn.outvars) != 1:
            continue
        layout = layouts[eqn.outvars[0]]
        for var in jaxprs.vars_of(followers):
            same = _shape(var) == _shape(eqn.outvars[0])
            if var in spread and same and _parts(layouts[var]) < _parts(layout):
                layouts[var] = layout


def _outputs(eqn: Eqn, inputs: list[Spec]) -> list[Spec]:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _through_scan(eqn, inputs)
    if name == "while":
        return inputs[params["cond_nconsts"] + params["body_nconsts"] :]
    if name == "cond":
        return _through(*_bodies(eqn, inputs)[-1])
    if name == "shard_map":
        return [_of_spec(params["mesh"], spec, len(_shape(v))) for v, spec in zip(eqn.outvars, params["out_specs"])]
    inner = [sub for sub in jaxprs.subjaxprs(eqn) if _is_called(sub, eqn)]
    if inner:
        return _through(inner[0], inputs)
    if name == "sharding_constraint":
        return [_constrained(eqn, inputs[0])]
    one = _BY_NAME.get(name)
    return [one(eqn, inputs)] if one else [_kept(eqn, v, inputs) for v in eqn.outvars]


def _is_called(sub: Jaxpr, eqn: Eqn) -> bool:
    """Whether a jaxpr among the parameters takes what the equation takes and returns what it returns."""
    given, made = ([_shape(v) for v in part] for part in (sub.invars, sub.outvars))
    return given == [_shape(v) for v in eqn.invars] and made == [_shape(v) for v in eqn.outvars]


def _through(jaxpr: Jaxpr, inputs: list[Spec]) -> list[Spec]:
    return _propagate(jaxpr, dict(zip(jaxpr.invars, inputs, strict=True)), {})


def _through_scan(eqn: Eqn, inputs: list[Spec]) -> list[Spec]:
    _, num_carry = compat.scan_arity(eqn)
    outputs = _through(*_bodies(eqn, inputs)[0])
    return [*outputs[:num_carry], *(((), *layout) for layout in outputs[num_carry:])]


def _constrained(eqn: Eqn, given: Spec) -> Spec:
    sharding = eqn.params["sharding"]
    if not isinstance(sharding, NamedSharding):
        return _of_sharding(eqn.outvars[0], sharding)
    wanted = _of_spec(sharding.mesh, sharding.spec, len(given))
    free = PartitionSpec.UNCONSTRAINED
    entries = [*sharding.spec, *[None] * (len(given) - len(sharding.spec))]
    return tuple(old if entry is free else new for old, new, entry in zip(given, wanted, entries))


def _dot_general(eqn: Eqn, inputs: list[Spec]) -> Spec:
    (left_contract, right_contract), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = inputs
    batch = [left[i] or right[j] for i, j in zip(left_batch, right_batch)]
    left_free = [axes for i, axes in enumerate(left) if i not in (*left_contract, *left_batch)]
    right_free = [axes for i, axes in enumerate(right) if i not in (*right_contract, *right_batch)]
    return (*batch, *left_free, *right_free)


def _convolution(eqn: Eqn, inputs: list[Spec]) -> Spec:
    numbers = eqn.params["dimension_numbers"]
    out: list[Axes] = [()] * len(inputs[0])
    out[numbers.out_spec[0]] = inputs[0][numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = inputs[1][numbers.rhs_spec[0]]
    return tuple(out)


def _broadcast(eqn: Eqn, inputs: list[Spec]) -> Spec:
    out: list[Axes] = [()] * len(_shape(eqn.outvars[0]))
    shape = _shape(eqn.invars[0])
    for i, target in enumerate(eqn.params["broadcast_dimensions"]):
        if shape[i] == _shape(eqn.outvars[0])[target]:
            out[target] = inputs[0][i]
    return tuple(out)


def _reshape(eqn: Eqn, inputs: list[Spec]) -> Spec:
    """A dimension's axes go to the first dimension of those that it is split or merged into."""
    before, after = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    start = {offset: i for i, offset in reversed(list(enumerate(_strides(after))))}
    out: list[Axes] = [()] * len(after)
    for i, offset in enumerate(_strides(before)):
        parts = _parts((inputs[0][i],))
        target = start.get(offset)
        while target is not None and target + 1 < len(after) and after[target] == 1:
            target += 1
        if parts > 1 and target is not None and after[target] % parts == 0:
            out[target] = inputs[0][i]
    return tuple(out)


def _strides(shape: Sequence[int]) -> list[int]:
    """Product of the dimensions before each one: equal products begin at the same place in memory."""
    return [math.prod(shape[:i]) for i in range(len(shape))]


def _reduced(eqn: Eqn, inputs: list[Spec]) -> Spec:
    axes = eqn.params["axes"]
    return tuple(kept for i, kept in enumerate(inputs[0]) if i not in axes)


def _transpose(eqn: Eqn, inputs: list[Spec]) -> Spec:
    return tuple(inputs[0][i] for i in eqn.params["permutation"])


def _squeeze(eqn: Eqn, inputs: list[Spec]) -> Spec:
    return tuple(kept for i, kept in enumerate(inputs[0]) if i not in eqn.params["dimensions"])


def _kept(eqn: Eqn, var: Var, inputs: list[Spec]) -> Spec:
    """Each dimension keeps the axes of an operand of the same rank that has the same size there, or another one where
    that is what the equation is for."""
    shape, resizes = _shape(var), eqn.primitive.name in _RESIZING
    peers = [(_shape(v), layout) for v, layout in zip(eqn.invars, inputs) if len(_shape(v)) == len(shape)]
    if not peers and shape:  # a gather, say: the batch stays where it was
        peers = [(_shape(v), layout) for v, layout in zip(eqn.invars, inputs) if _shape(v)]
    fits = lambda old, new, axes: old == new or (resizes and new % _parts((axes,)) == 0)
    return tuple(
        next((kept[i] for there, kept in peers if i < len(there) and kept[i] and fits(there[i], size, kept[i])), ())
        for i, size in enumerate(shape)
    )


def _without_repeats(layout: Spec) -> Spec:
    """A mesh axis divides one dimension only: the first."""
    seen: set[str] = set()
    out = []
    for axes in layout:
        out.append(tuple(axis for axis in axes if axis[0] not in seen))
        seen.update(name for name, _ in axes)
    return tuple(out)


_BY_NAME = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    **{f"reduce_{kind}": _reduced for kind in ("sum", "max", "min", "prod", "and", "or", "xor")},
    **{name: _reduced for name in ("argmax", "argmin")},
}
