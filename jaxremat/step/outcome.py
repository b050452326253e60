"""A flat program with a schedule, and what it will occupy once it is compiled."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.budget import format_bytes
from jaxremat.base.compat import Jaxpr
from jaxremat.base.telling import tell
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.flops import contractions
from jaxremat.cost.memory import MemoryEstimate, estimate_listing
from jaxremat.cost.pricing import price, shares
from jaxremat.emit.orders import orders_for
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline, replay
from jaxremat.planner.prediction import Timelines, is_below_model_threshold
from jaxremat.planner.problem import Problem
from jaxremat.solvers.mincut.barriers import PARTS
from jaxremat.step.decision import ProgramDecision
from jaxremat.step.emission import FlatScript, script_of
from jaxremat.step.order import SHARED, groups_of_results
from jaxremat.step.program import NOT_ALIASED, Aliased, whole_program
from jaxremat.step.scheduling import FlatSchedule
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint


@dataclasses.dataclass(frozen=True, eq=False)
class Posed:
    """A flat program on a device, with its loops as decided.

    Attributes:
      joint: the program.
      graph: the same in bytes and seconds.
      device: what they are for.
      is_body: whether it runs inside a loop, where inputs and outputs are counted outside.
      known: bodies of loops whose costs on the device are known.
      aliased: outputs that live in the buffers of donated inputs.
    """

    joint: Joint
    graph: Graph
    device: Device
    is_body: bool
    known: KnownBodies
    aliased: frozenset[int]

    @functools.cached_property
    def timelines(self) -> Timelines:
        """What writes the timelines of its schedules."""
        return Timelines(self.joint, self.graph)

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """[N] bool: nodes after which a stretch ends in schedules that are followed closely: where enough has been
        summed over devices, or a group of results is done."""
        made = np.asarray([sum(map(jaxprs.size_bytes, eqn.outvars)) for eqn in self.joint.eqns], float)
        group = groups_of_results(self.joint.jaxpr)
        own = group != SHARED
        last = np.flatnonzero(own & (group != np.append(group[1:], SHARED)))
        done = np.zeros(made.size)
        done[last] = np.diff(np.cumsum(made * own)[last], prepend=0)
        return _in_parts(made * shares(self.joint).summed) | _in_parts(done)

    @property
    def contracts(self) -> np.ndarray:
        """[N] bool: equations that are contractions."""
        return contractions(self.joint.eqns)

    def run_seconds(self, *, again_scans: bool = True) -> np.ndarray:
        """[N] what running each node again is taken to cost; `again_scans`: whether loops may."""
        seconds = Problem(self.joint.primal, (), self.joint, self.graph, self.device).run_seconds
        is_scan = np.asarray([eqn.primitive.name == "scan" for eqn in self.joint.eqns])
        return seconds if again_scans else np.where(is_scan, np.inf, seconds)


def _in_parts(weights: np.ndarray) -> np.ndarray:
    """[N] bool: where the sum of weights passes each of some equal parts."""
    part = np.cumsum(weights) * PARTS // max(weights.sum(), 1.0)
    return np.diff(part, prepend=0) > 0


def pose_program(
    jaxpr: Jaxpr,
    device: Device,
    shardings: tuple[Any, ...] = (),
    aliased: Aliased = NOT_ALIASED,
    *,
    is_body: bool = False,
    known: KnownBodies | None = None,
) -> Posed:
    """A flat program on a device; what lives in the buffer of a donated input is not counted twice."""
    joint, known = whole_program(jaxpr, shardings), known or KnownBodies()
    graph = price(joint, device, known)
    resident_bytes = 0 if is_body else graph.resident_bytes - aliased.size_bytes
    graph = dataclasses.replace(graph, resident_bytes=resident_bytes)
    return Posed(joint, graph, device, is_body, known, aliased.outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class StepOutcome:
    """A schedule of a program.

    Attributes:
      posed: the program.
      schedule: how it runs.
      decision: the same with what was decided for its loops, as data.
    """

    posed: Posed
    schedule: FlatSchedule
    decision: ProgramDecision

    @property
    def replayed_bytes(self) -> int:
        return self.schedule.peak_bytes

    @property
    def cost(self) -> float:
        return self.schedule.cost

    @functools.cached_property
    def script(self) -> FlatScript:
        joint, backend = self.posed.joint, self.posed.device.backend
        orders = {} if any(joint.primal.shardings) else orders_for(joint, backend)
        unfenced, late_writes = backend.unfenced(joint.eqns), backend.late_writes(joint)
        return script_of(joint, self.schedule, unfenced, late_writes, orders, backend.masks(joint))

    @property
    def jaxpr(self) -> Jaxpr:
        """The emitted program."""
        return self.script.emitted

    @functools.cached_property
    def estimate(self) -> MemoryEstimate:
        """The emitted program under the target's memory model."""
        posed = self.posed
        aliased = None if posed.is_body else posed.aliased
        found = estimate_listing(self.script.listing, posed.joint.jaxpr, posed.device, posed.known, aliased)
        tell(f"{format_bytes(found.peak_bytes)} predicted")
        return found

    @property
    def _is_small(self) -> bool:
        return is_below_model_threshold(self.posed.joint, self.posed.graph, self.posed.device)

    @functools.cached_property
    def timeline(self) -> Timeline:
        """The predicted timeline of the emitted program."""
        if not self.posed.is_body and self._is_small:
            return replay(self.posed.graph, self.schedule.steps)
        joint, late_writes = self.posed.joint, self.posed.device.backend.late_writes(self.posed.joint)
        node = {eqn: index for index, eqn in (*enumerate(joint.eqns), *late_writes.items())}
        node_of = np.asarray([node[eqn] for eqn in self.script.listing.sources], np.int32)
        return self.posed.timelines.of(self.estimate, node_of, self.cost)

    @property
    def peak_bytes(self) -> int:
        """The predicted peak."""
        return self.timeline.peak_bytes
