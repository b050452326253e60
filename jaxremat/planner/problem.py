"""A program with its loops decided, as a graph that the planner can search."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.budget import format_bytes
from jaxremat.base.telling import tell
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.flops import contractions
from jaxremat.cost.pricing import price
from jaxremat.cost.sharding import again_seconds
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import ScheduledProgram, in_order
from jaxremat.loops.decide import Loops
from jaxremat.loops.decision import LoopDecision
from jaxremat.loops.find import find
from jaxremat.planner.prediction import Predictor
from jaxremat.trace.joint import Joint, differentiate
from jaxremat.trace.primal import Primal
from jaxremat.trace.round_trips import UNDONE


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is searched.

    Attributes:
      primal: the program.
      loops: one decision per differentiable loop; empty where every loop is left alone.
      joint: forward and backward, with the loops as decided.
      graph: the joint program in bytes and seconds on the device.
      device: what it is planned for.
      storages: forms in which values may wait for the backward.
      known: bodies of loops whose costs on the device are known.
    """

    primal: Primal
    loops: tuple[LoopDecision, ...]
    joint: Joint
    graph: Graph
    device: Device
    storages: tuple[str, ...] = ()
    known: KnownBodies = dataclasses.field(default_factory=KnownBodies)

    @functools.cached_property
    def run_seconds(self) -> np.ndarray:
        """[N] what running each node again is taken to cost: more than its time where that is to be avoided.

        Effects never run again, nor do loops whose recomputation was decided with them, nor what the backend
        leaves unfenced; collectives only if nothing else fits.
        """
        seconds = again_seconds(self.joint.eqns, self.graph.costs)
        unfenced = self.device.backend.unfenced(self.joint.eqns)
        for node, eqn in enumerate(self.joint.eqns):
            decided = self.loops and eqn.primitive.name in ("scan", "shard_map")
            if self.graph.pinned[node] or decided or not unfenced.isdisjoint(eqn.outvars):
                seconds[node] = np.inf
        return seconds

    @functools.cached_property
    def contracts(self) -> np.ndarray:
        """[N] bool: equations that are contractions."""
        return contractions(self.joint.eqns)

    def predicted(self, program: ScheduledProgram) -> Timeline:
        """The timeline of a schedule as compiled."""
        late_writes = {} if self.is_as_written(program) else self.device.backend.late_writes(self.joint)
        timeline = self._predictor.predict(program, late_writes)
        tell(f"{format_bytes(timeline.peak_bytes)} predicted")
        return timeline

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.joint, self.graph, self.device, self.known)

    def is_as_written(self, program: ScheduledProgram) -> bool:
        """Whether a schedule leaves the program alone."""
        return program.is_in_order and not self.loops and self.primal.epilogues_after is None

    @functools.cached_property
    def in_order(self) -> ScheduledProgram:
        """The program as it stands."""
        return in_order(self.graph)


def pose(
    primal: Primal,
    device: Device,
    decisions: tuple[LoopDecision, ...] = (),
    loops: Loops | None = None,
    storages: tuple[str, ...] = (),
    known: KnownBodies | None = None,
) -> Problem:
    """The problem of a program for a device, with its loops decided, or left alone.

    Args:
      primal: the program.
      device: what costs and bytes are for.
      decisions: one per loop, or none.
      loops: the program's loops on the device, where they were found before.
      storages: forms in which values may wait for the backward.
      known: bodies of loops whose costs on the device are known from another problem.
    """
    known = known or KnownBodies()
    run = (loops or Loops(primal, device, storages)).emitted(decisions) if decisions else None
    joint = differentiate(primal, run, outside_loops(primal, device, storages))
    return Problem(primal, decisions, joint, price(joint, device, known), device, storages, known)


def outside_loops(primal: Primal, device: Device, storages: tuple[str, ...]) -> tuple[str, ...]:
    """The forms in which values outside of loops may wait.

    There XLA undoes copies to the host, and rounding, unless they are tied to what runs around them: it is known how to
    do that in programs without loops, where the backend lets it.
    """
    if set(storages).isdisjoint(UNDONE) or (device.backend.ties_transfers and not find(primal)):
        return storages
    return tuple(form for form in storages if form not in UNDONE)
