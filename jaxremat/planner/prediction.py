"""What a schedule will occupy once it is compiled: the emitted program under the target's memory model.

The replay ranks schedules value by value; a compiler fuses values away, copies others and chooses its own order. The
prediction writes the program that would be emitted and follows the compiler's rules through it. Toy programs are
replayed instead, which is about as near for them and takes no time (`benchmarks/threshold.py`), except where the
compiler works in a wider dtype than the program's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Eqn, Jaxpr
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.flops import is_contraction
from jaxremat.cost.memory import MemoryEstimate, estimate_memory, live_bytes
from jaxremat.cost.pricing import Shares, shares
from jaxremat.emit.scheduled import Script, Segment, emitted_program, write_script
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline, replay
from jaxremat.graph.scheduled import ScheduledProgram
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint


def predict(
    joint: Joint, graph: Graph, program: ScheduledProgram, device: Device, known: KnownBodies | None = None
) -> Timeline:
    """The timeline of a scheduled program as compiled: one step per kernel, one span per buffer.

    Args:
      joint, graph: the program.
      program: its schedule.
      device: what it is compiled for.
      known: bodies of loops whose costs on the device are known already.
    """
    if is_below_model_threshold(joint, graph, device):
        return replay(graph, program.steps)
    script = write_script(joint, program, device.backend.unfenced(joint.eqns))
    emitted = emitted_program(joint, script)
    node_of = _nodes_of_equations(joint, script, len(emitted.eqns))
    estimate = estimate_memory(emitted, device, known)
    replayed = float(graph.costs[program.steps].sum())
    cost = estimate.seconds if device.backend.barrier_parts else replayed
    return timeline_of(joint, graph, estimate, emitted, node_of, cost)


def timeline_of(
    joint: Joint, graph: Graph, estimate: MemoryEstimate, emitted: Jaxpr, node_of: np.ndarray, cost: float
) -> Timeline:
    """The timeline of an emitted program, from its estimate and the node that each of its equations stems from."""
    live, span_bytes = _on_one_device(estimate, emitted, shares(joint), node_of)
    first_value = np.asarray([values[0] if values else -1 for values in graph.values_of])
    made_by = estimate.spans[:, 0]
    value = np.where(made_by >= 0, first_value[node_of[made_by]], -1)
    known = value >= 0
    return Timeline(
        schedule=node_of[estimate.steps].astype(np.int32),
        live_bytes=live + graph.resident_bytes,
        cost=cost,
        spans=np.stack([value, *estimate.spans[:, 2:].T], 1)[known].astype(np.int32),
        span_bytes=span_bytes[known],
    )


def _on_one_device(
    estimate: MemoryEstimate, emitted: Jaxpr, part: Shares, node_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """([T] live bytes, [S] bytes of spans) on one device, which holds a part of what each equation makes and copies; of
    constants, the part that it holds on average."""
    made_by, whole = estimate.spans[:, :2].T
    known = made_by >= 0
    made = np.asarray([max(map(jaxprs.size_bytes, eqn.outvars), default=0) for eqn in emitted.eqns], np.int64)
    copied = np.asarray([is_contraction(eqn) for eqn in emitted.eqns])[made_by] & (whole != made[made_by])
    share = np.where(copied, part.read[node_of[made_by]], part.run[node_of[made_by]])
    typical = np.average(share[known], weights=whole[known]) if whole[known].sum() else 1.0
    share = np.where(known, share, typical)
    span_bytes = np.ceil(whole * share).astype(np.int64)
    workspace_bytes = np.ceil(estimate.workspace_bytes * part.run[node_of[estimate.steps]]).astype(np.int64)
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


def _nodes_of_equations(joint: Joint, script: Script, number: int) -> np.ndarray:
    """[E] the joint program's node of each emitted equation; a barrier counts as the node that follows it."""
    node = {id(eqn): index for index, eqn in enumerate(joint.eqns)}
    node |= {id(zeros.seeded): node[id(zeros.eqn)] for zeros in script.zeros}
    constants = [node[id(eqn)] for eqn in script.constants]

    def run(segments: Sequence[Segment]) -> list[int]:
        eqns = [eqn for segment in segments for eqn in (*segment.eqns[: bool(segment.through)], *segment.eqns)]
        return [node[id(eqn)] for eqn in eqns]

    nodes = [*constants, *run(script.forward), *constants, *run(script.backward)]
    if len(nodes) != number:
        raise AssertionError(f"emission wrote {number} equations for {len(nodes)} steps")
    return np.asarray(nodes, np.int64)
