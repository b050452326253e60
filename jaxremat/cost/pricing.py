"""From a joint program to a graph of costs and bytes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Sequence

import jax
import numpy as np

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Var
from jaxremat.base.remembering import while_alive
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.flops import (
    body_seconds,
    equation_flops,
    equation_seconds,
    is_contraction,
    trip_count,
    written_bytes,
)
from jaxremat.cost.fusion import materialised
from jaxremat.cost.hlo_ops import Computation, alone, bodies_of
from jaxremat.cost.memory import estimate_body
from jaxremat.cost.sharding import device_fraction, device_share, fraction_inside, summed_over_devices
from jaxremat.graph.graph import Graph
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.primitives import ALIASING, LOOPS
from jaxremat.trace.projections import PARTS
from jaxremat.trace.round_trips import transferred_bytes

_VIEWS = ALIASING | {"transpose"}


def price(joint: Joint, device: Device | None = None, known: KnownBodies | None = None) -> Graph:
    """The joint graph: node i is equation i of `joint.jaxpr`, in seconds and bytes on a device.

    Args:
      joint: the program.
      device: None is the default backend's.
      known: bodies of loops whose costs are known on that device already.

    Inputs of the program are resident, and so are its outputs: a compiled program holds their buffers throughout.
    An output value therefore occupies nothing of its own in the graph, and nor does a constant. What a loop's body
    needs is its workspace.
    """
    device, known = device or resolve_target(None), known or KnownBodies()
    eqns = joint.eqns
    value_of: dict[Var, int] = {}
    producer: list[int] = []
    sizes: list[int] = []
    reads: set[tuple[int, int]] = set()
    for node, eqn in enumerate(eqns):
        reads.update((value_of[v], node) for v in jaxprs.vars_of(eqn.invars) if v in value_of)
        for var in eqn.outvars:
            value_of[var] = len(producer)
            producer.append(node)
            sizes.append(jaxprs.size_bytes(var))
    is_output = np.zeros(len(producer), bool)
    is_output[[value_of[v] for v in jaxprs.vars_of(joint.jaxpr.outvars) if v in value_of]] = True
    share = shares(joint)
    own_bytes = np.where(is_output, 0, np.ceil(np.asarray(sizes) * share.held)).astype(np.int64)
    own_bytes[_renamed_gradients(joint, value_of)] = 0
    own_bytes[[value_of[v] for eqn in joint.constants for v in eqn.outvars]] = 0
    return Graph(
        costs=_direct_seconds(joint, device, known) * share.inside,
        workspace_bytes=np.ceil(_workspace_bytes(eqns, device, known) * share.inside).astype(np.int64),
        value_bytes=own_bytes,
        producer=np.asarray(producer, np.int32),
        reads=np.asarray(sorted(reads, key=lambda read: (read[1], read[0])), np.int32).reshape(-1, 2),
        is_output=is_output,
        resident_bytes=resident_bytes(joint),
        backward=joint.backward,
        pinned=np.asarray([jaxprs.has_effects(eqn) for eqn in eqns]),
        names=tuple(eqn.primitive.name for eqn in eqns),
        keep_costs=_trip_seconds(joint, device),
    )


def _direct_seconds(joint: Joint, device: Device, known: KnownBodies) -> np.ndarray:
    """[N] time of each equation in the program without round trips; those take nothing unless they are taken."""
    direct = joint.direct or joint
    written = materialised(direct.jaxpr, device, known)
    seconds = np.zeros(len(joint.eqns))
    seconds[~joint.on_a_trip] = [_seconds(eqn, device, written, known) for eqn in direct.eqns]
    return seconds


def _trip_seconds(joint: Joint, device: Device) -> np.ndarray:
    """[V] what a round trip takes, there and back, at what is stored: to memory and from it, or over the link; and to
    project what is projected, less what estimates take less than products.

    Early values wait the longest, and have the most computation to hide a copy behind: a copy of the first one counts
    half as much as one of the last, so that equal values do not all change their minds at one price.
    """
    seconds = np.zeros(joint.num_values)
    value_of = {var: value for value, var in enumerate(joint.values)}
    for trip in joint.round_trips:
        value = value_of[trip.stored]
        over_link = jaxprs.is_on_host(trip.stored) and device.host_bytes_per_second
        late = 0.5 * (1 + value / joint.num_values) if over_link else 1.0
        there_and_back = 2 * jaxprs.array_bytes(trip.stored)
        seconds[value] = late * there_and_back / (over_link or device.bandwidth_bytes_per_second)
    products = [eqn for eqn in joint.eqns if is_contraction(eqn)]
    for trip in joint.round_trips:
        if trip.only_estimates:
            exact = sum(equation_flops(eqn) for eqn in products if trip.restored in eqn.invars)
            more = equation_flops(trip.way_there, matrix_only=True) - (1 - 1 / PARTS) * exact
            seconds[value_of[trip.stored]] += max(0.0, more) / device.matrix_flops(jaxprs.dtype_of(trip.source))
    return seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Shares:
    """The part of a program that one device of its mesh holds and runs.

    Attributes:
      held: [V] of each value.
      run: [N] of each equation, by the bytes that it makes; the body of a shard_map is one device's part already.
      inside: [N] the same, of loops and conditionals by the bytes that their bodies make.
      read: [N] the smallest part among the values that each equation reads: of copies that it makes of them.
      summed: [N] bool, whether what each equation makes is summed over devices.
    """

    held: np.ndarray
    run: np.ndarray
    inside: np.ndarray
    read: np.ndarray
    summed: np.ndarray


@while_alive
def shares(joint: Joint) -> Shares:
    """What one device holds and runs: everything, where nothing is sharded over a mesh."""
    numbers = [len(eqn.outvars) for eqn in joint.eqns]
    local = np.asarray([eqn.primitive.name == "shard_map" for eqn in joint.eqns], bool)
    if not any(joint.primal.shardings) and not local.any():
        whole = np.ones(len(numbers))
        return Shares(np.ones(sum(numbers)), whole, whole, whole, np.zeros(len(numbers), bool))
    shardings = joint.primal.shardings or (None,) * len(joint.inputs)
    held = device_fraction(joint, shardings)
    made = [v for eqn in joint.eqns for v in eqn.outvars]
    part = dict(zip(made, held.tolist()))
    whole = np.asarray([jaxprs.size_bytes(v) for v in made], float)
    equation = np.repeat(np.arange(len(numbers)), numbers)
    total = np.bincount(equation, whole, len(numbers))
    here = np.bincount(equation, whole * held, len(numbers))
    run = np.divide(here, total, out=np.ones(len(numbers)), where=total > 0)
    read = [min((part.get(v, 1.0) for v in jaxprs.vars_of(eqn.invars)), default=1.0) for eqn in joint.eqns]
    run = np.where(local, 1.0, run)
    inside = fraction_inside(joint, shardings)
    inside = np.where(np.isnan(inside), run, inside)
    return Shares(held, run, inside, np.asarray(read), summed_over_devices(joint, shardings))


def resident_bytes(joint: Joint) -> int:
    """Bytes of the program's inputs and outputs on one device."""
    return sum(resident_parts(joint).values())


def resident_parts(joint: Joint) -> dict[str, int]:
    """The same for arguments, results and gradients: results in the parts in which they are made, gradients in those
    of what they are gradients of."""
    shardings = joint.primal.shardings or (None,) * len(joint.inputs)
    part: dict[Atom, float] = {v: device_share(v, s) for v, s in zip(joint.inputs, shardings, strict=True)}
    part.update(zip((v for eqn in joint.eqns for v in eqn.outvars), shares(joint).held.tolist()))
    gradient_of = dict(zip(map(id, joint.gradients), (joint.inputs[i] for i in joint.primal.wrt)))

    def held(atom: Atom) -> int:
        source = gradient_of.get(id(atom), atom)
        share = part.get(source, 1.0) if isinstance(source, Var) else 1.0
        return int(np.ceil(jaxprs.size_bytes(atom) * share))

    parts = {"arguments": joint.jaxpr.invars, "results": joint.outputs, "gradients": joint.gradients}
    return {name: sum(map(held, atoms)) for name, atoms in parts.items()}


def _renamed_gradients(joint: Joint, value_of: dict[Var, int]) -> list[int]:
    """Backward values that are read once, under another shape or as a loop's first carry: what they become is the
    same buffer."""
    readers: dict[Var, list[Eqn]] = {}
    for eqn in joint.eqns:
        for var in jaxprs.vars_of(eqn.invars):
            readers.setdefault(var, []).append(eqn)
    outputs = set(jaxprs.vars_of(joint.jaxpr.outvars))
    return [
        value_of[var]
        for eqn, late in zip(joint.eqns, joint.backward)
        for var in eqn.outvars
        if late and var not in outputs and [_takes_over(reader, var) for reader in readers.get(var, ())] == [True]
    ]


def _takes_over(reader: Eqn, var: Var) -> bool:
    if reader.primitive.name == "scan":
        num_consts, num_carry = compat.scan_arity(reader)
        return var in reader.invars[num_consts : num_consts + num_carry]
    return reader.primitive.name in _VIEWS


def program_seconds(jaxpr: Jaxpr, device: Device, known: KnownBodies | None = None) -> float:
    """Time of one run of a program on a device, its fusions counted."""
    known = known or KnownBodies()
    written = materialised(jaxpr, device, known)
    return sum(_seconds(eqn, device, written, known) for eqn in jaxpr.eqns)


def _seconds(eqn: Eqn, device: Device, written: dict[Var, bool], known: KnownBodies) -> float:
    """Time of one equation; an element-wise one that is fused into its readers moves no bytes of its own."""
    if eqn.primitive.name in LOOPS:
        return device.launch_seconds + _loop_seconds(eqn, device, known)
    if transferred := sum(transferred_bytes(eqn)):
        return _transfer_seconds(transferred, device)
    if is_contraction(eqn) or jaxprs.subjaxprs(eqn):
        return equation_seconds(eqn, device)
    if _renames(eqn, written):
        return 0.0
    arithmetic = equation_flops(eqn) / device.vector_flops_per_second
    size = sum(written_bytes(eqn, v) for v in eqn.outvars if written.get(v, True))
    return max(arithmetic, size / device.bandwidth_bytes_per_second)


def _renames(eqn: Eqn, written: dict[Var, bool]) -> bool:
    """Whether an equation does nothing once it is compiled: a barrier, or one that adds or drops axes of length one of
    what has a buffer, as values do that enter barriers."""
    if eqn.primitive.name == "optimization_barrier":
        return True
    if eqn.primitive.name not in ("squeeze", "broadcast_in_dim"):
        return False
    source, result = eqn.invars[0], eqn.outvars[0]
    same_size = jaxprs.size_bytes(source) == jaxprs.size_bytes(result)
    return same_size and isinstance(source, Var) and written.get(source, True)


def _loop_seconds(eqn: Eqn, device: Device, known: KnownBodies) -> float:
    """Time of what runs inside an equation: by its kernels, where loops are fused by what that saves."""
    if device.backend.element_work is None:
        inside = functools.partial(program_seconds, device=device, known=known)
        return body_seconds(eqn, lambda body: known.once("seconds", alone(body), lambda once: inside(once.jaxpr)))
    estimate = functools.partial(estimate_body, device=device, known=known)
    seconds = [known.once("memory", body, estimate).seconds for body in bodies_of(eqn)]
    total = max(seconds) if eqn.primitive.name == "cond" else trip_count(eqn) * sum(seconds)
    return total + _transfer_seconds(sum(transferred_bytes(eqn)), device)


def _transfer_seconds(transferred_bytes: int, device: Device) -> float:
    """Time of a copy to or from the host; a device without a link has none to make."""
    return transferred_bytes / device.host_bytes_per_second if device.host_bytes_per_second else 0.0


def _workspace_bytes(eqns: Sequence[Eqn], device: Device, known: KnownBodies) -> np.ndarray:
    """[N] what each equation needs while it runs, beside what it reads and makes: the bodies of a loop or branch; the
    copies that a contraction makes of operands that lie otherwise."""
    inside = functools.partial(estimate_body, device=device, known=known)
    alike: dict[Hashable, Sequence[Computation]] = {}

    def bodies(eqn: Eqn) -> Sequence[Computation]:
        if not is_contraction(eqn):
            return bodies_of(eqn)
        shapes = tuple(map(jaxprs.shape_of, eqn.invars))
        key = (eqn.primitive.name, *((shape.shape, shape.dtype) for shape in shapes), str(eqn.params))
        if key not in alike:
            alike[key] = (alone(jax.make_jaxpr(lambda *operands: compat.bind(eqn, list(operands)))(*shapes)),)
        return alike[key]

    needed = [max((known.once("memory", body, inside).temp_bytes for body in bodies(eqn)), default=0) for eqn in eqns]
    return np.asarray(needed, np.int64)
