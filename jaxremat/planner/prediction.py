"""What a schedule will occupy once it is compiled: the emitted program under the target's memory model.

The replay ranks schedules value by value; a compiler fuses values away, copies others and chooses its own order. The
prediction writes the program that would be emitted and follows the compiler's rules through it. Toy programs are
replayed instead: there the compiler's alignment and fixed buffers outweigh what fusion saves.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from jaxremat._compat import Jaxpr
from jaxremat.cost.memory import estimate_memory
from jaxremat.emit.scheduled import Script, run_backward, run_forward, write_script
from jaxremat.graph import Graph
from jaxremat.schedule import Timeline, replay
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint

_SMALLEST_MODELLED_BYTES = 32 * 2**20  # all values of the program together


def predict(
    joint: Joint,
    graph: Graph,
    schedule: Sequence[int] | np.ndarray,
    platform: str,
    fences: Sequence[int] | None = None,
    start: int | None = None,
    fenced: str = "all",
) -> Timeline:
    """The timeline of a schedule as compiled: one step per kernel, one span per buffer.

    Args:
      joint, graph: the program.
      schedule: [T] node ids.
      platform: "cpu", "cuda" or "tpu".
      fences, start, fenced: as in `write_script`.
    """
    if is_toy(graph):
        return replay(graph, schedule)
    script = write_script(joint, schedule, fences, start, fenced)
    emitted = _emitted(joint, script)
    node_of = _nodes_of_equations(joint, script, len(emitted.eqns))
    estimate = estimate_memory(emitted, platform)
    resident_bytes = estimate.argument_bytes + estimate.output_bytes
    first_value = np.asarray([values[0] if values else -1 for values in graph.values_of])
    made_by = estimate.spans[:, 0]
    value = np.where(made_by >= 0, first_value[node_of[made_by]], -1)
    known = value >= 0
    return Timeline(
        schedule=node_of[estimate.steps].astype(np.int32),
        live_bytes=estimate.live_bytes + resident_bytes,
        cost=float(graph.costs[np.asarray(schedule)].sum()),
        spans=np.stack([value, *estimate.spans[:, 2:].T], 1)[known].astype(np.int32),
        span_bytes=estimate.spans[known, 1],
    )


def is_toy(graph: Graph) -> bool:
    """Whether a program is too small for the memory model."""
    return graph.resident_bytes + int(graph.value_bytes.sum()) < _SMALLEST_MODELLED_BYTES


def _emitted(joint: Joint, script: Script) -> Jaxpr:
    """The emitted gradient program."""

    def gradient(inputs, cotangents):
        outputs, residuals = run_forward(joint, script, inputs)
        return outputs, run_backward(joint, script, residuals, cotangents)

    return jax.make_jaxpr(gradient)(
        [jaxprs.shape_of(v) for v in joint.inputs], [jaxprs.shape_of(v) for v in joint.cotangents]
    )


def _nodes_of_equations(joint: Joint, script: Script, number: int) -> np.ndarray:
    """[E] the joint program's node of each emitted equation; a barrier counts as the node that follows it."""
    node = {id(eqn): index for index, eqn in enumerate(joint.eqns)}
    constants = [node[id(eqn)] for eqn in script.constants]
    nodes = [*constants, *(node[id(eqn)] for eqn in script.forward), *constants]
    for segment in script.backward:
        if segment.fenced:
            nodes.append(node[id(segment.eqns[0])])
        nodes.extend(node[id(eqn)] for eqn in segment.eqns)
    if len(nodes) != number:
        raise AssertionError(f"emission wrote {number} equations for {len(nodes)} steps")
    return np.asarray(nodes, np.int64)
