"""What a schedule will occupy once it is compiled: the emitted program under the target's memory model.

The replay ranks schedules value by value; a compiler fuses values away, copies others and chooses its own order. The
prediction writes the program that would be emitted and follows the compiler's rules through it. Toy programs are
replayed instead, which is about as near for them and takes no time (`benchmarks/threshold.py`), except where the
compiler works in a wider dtype than the program's.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping, Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Eqn
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.flops import contractions, is_contraction
from jaxremat.cost.memory import MemoryEstimate, estimate_listing, live_bytes
from jaxremat.cost.pricing import shares
from jaxremat.emit.scheduled import put_script
from jaxremat.emit.script import Script, ScriptWriter
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline, replay
from jaxremat.graph.scheduled import ScheduledProgram
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.listing import Listing


def predict(joint: Joint, graph: Graph, program: ScheduledProgram, device: Device) -> Timeline:
    """The timeline of a scheduled program as compiled; see `Predictor`."""
    return Predictor(joint, graph, device, KnownBodies()).predict(program)


class Predictor:
    """Predicts the schedules of one program on one device; what they have in common is worked out once.

    Args:
      joint, graph: the program.
      device: what it is compiled for.
      known: bodies of loops whose costs on the device are known already.
    """

    def __init__(self, joint: Joint, graph: Graph, device: Device, known: KnownBodies) -> None:
        self._joint, self._graph, self._device, self._known = joint, graph, device, known

    def predict(
        self, program: ScheduledProgram, late_writes: Mapping[int, Eqn] = types.MappingProxyType({})
    ) -> Timeline:
        """The timeline of a schedule as compiled: one step per kernel, one span per buffer.

        Args:
          program: the schedule.
          late_writes: what is emitted in the place of what writes into zeros, by node.
        """
        if self._is_replayed:
            return replay(self._graph, program.steps)
        joint, device = self._joint, self._device
        script = self._writer.write(program, late_writes)
        listing = Listing(joint.jaxpr)
        listing.outputs = put_script(listing, joint, script)
        estimate = estimate_listing(listing, joint.jaxpr, device, self._known, shared=script.forward_lines)
        replayed = float(self._graph.costs[program.steps].sum())
        computing = estimate.seconds if device.backend.barrier_parts else replayed
        cost = computing + device.first_touch_seconds(estimate.temp_bytes)
        return self._timelines.of(estimate, self._nodes(listing, script, late_writes), cost)

    @functools.cached_property
    def _timelines(self) -> Timelines:
        return Timelines(self._joint, self._graph)

    @functools.cached_property
    def _is_replayed(self) -> bool:
        return is_below_model_threshold(self._joint, self._graph, self._device)

    @functools.cached_property
    def _writer(self) -> ScriptWriter:
        joint, backend = self._joint, self._device.backend
        return ScriptWriter(joint, backend.unfenced(joint.eqns), backend.masks(joint))

    @functools.cached_property
    def _node_of(self) -> dict[Eqn, int]:
        return {eqn: node for node, eqn in enumerate(self._joint.eqns)}

    def _nodes(self, listing: Listing, script: Script, late_writes: Mapping[int, Eqn]) -> np.ndarray:
        """[E] the joint program's node of each line."""
        others = {zeros.seeded: self._node_of[zeros.eqn] for zeros in script.zeros}
        others |= {eqn: node for node, eqn in late_writes.items()}
        others |= {eqn: self._node_of[instead_of] for eqn, instead_of in script.in_place_of.items()}
        node_of = self._node_of | others if others else self._node_of
        return np.asarray([node_of[eqn] for eqn in listing.sources], np.int64)


class Timelines:
    """Timelines of what is emitted for one program.

    Args:
      joint, graph: the program.
    """

    def __init__(self, joint: Joint, graph: Graph) -> None:
        self._graph, self._shares = graph, shares(joint)
        self._made_bytes = np.asarray([max(map(jaxprs.size_bytes, eqn.outvars), default=0) for eqn in joint.eqns])
        self._contracts = contractions(joint.eqns)

    def of(self, estimate: MemoryEstimate, node_of: np.ndarray, cost: float) -> Timeline:
        """A timeline from an estimate and the node that each emitted equation stems from."""
        live, span_bytes = self._on_one_device(estimate, node_of)
        gap_bytes = round(estimate.gap_bytes * live.max() / estimate.live_bytes.max()) if estimate.gap_bytes else 0
        live[live.argmax()] += gap_bytes
        made_by = estimate.spans[:, 0]
        value = np.where(made_by >= 0, self._first_value[node_of[made_by]], -1)
        known = value >= 0
        return Timeline(
            schedule=node_of[estimate.steps].astype(np.int32),
            live_bytes=live + self._graph.resident_bytes,
            cost=cost,
            spans=np.stack([value, *estimate.spans[:, 2:].T], 1)[known].astype(np.int32),
            span_bytes=span_bytes[known],
            gap_bytes=gap_bytes,
        )

    @functools.cached_property
    def _first_value(self) -> np.ndarray:
        """[N] the first value of each node; -1 where it has none."""
        start = self._graph.value_start
        return np.where(start[1:] > start[:-1], start[:-1], -1)

    def _on_one_device(self, estimate: MemoryEstimate, node_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([T] live bytes, [S] bytes of spans) on one device, which holds a part of what each equation makes and
        copies; of constants, the part that it holds on average."""
        part = self._shares
        made_by, whole = estimate.spans[:, :2].T
        node, known = node_of[made_by], made_by >= 0
        copied = self._contracts[node] & (whole != self._made_bytes[node])
        share = np.where(copied, part.read[node], part.run[node])
        typical = np.average(share[known], weights=whole[known]) if whole[known].sum() else 1.0
        span_bytes = np.ceil(whole * np.where(known, share, typical)).astype(np.int64)
        workspace_bytes = np.ceil(estimate.workspace_bytes * part.inside[node_of[estimate.steps]]).astype(np.int64)
        return live_bytes(span_bytes, estimate.spans, workspace_bytes), span_bytes


def is_below_model_threshold(joint: Joint, graph: Graph, device: Device) -> bool:
    """Whether a program is too small for the memory model of a device: copies in a wider dtype matter at any size."""
    small = graph.resident_bytes + int(graph.value_bytes.sum()) < device.backend.smallest_modelled_bytes
    return small and not _is_widened(joint.eqns, device.backend.widened_products)


def _is_widened(eqns: Sequence[Eqn], dtypes: frozenset[str]) -> bool:
    """Whether some contraction, in loops too, is of one of the dtypes."""
    products = [eqn for eqn in eqns if is_contraction(eqn)]
    inside = (body.eqns for eqn in eqns for body in jaxprs.subjaxprs(eqn))
    return any(str(jaxprs.dtype_of(atom)) in dtypes for eqn in products for atom in eqn.invars) or any(
        _is_widened(body, dtypes) for body in inside
    )
