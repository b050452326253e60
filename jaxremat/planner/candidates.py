"""What the planners of plain JAX share: a choice of kept values, priced as any other schedule.

A candidate says which values the forward keeps. The joint program prices it with one restriction: only a value that the
backward reads under a name can be kept inside a checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.cost.memory import estimate_memory
from jaxremat.cost.pricing import price
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline, replay
from jaxremat.graph.scheduled import ScheduledProgram, schedule_program
from jaxremat.planner.contract import Outcome, fastest_bytes
from jaxremat.planner.correction import DOUBT
from jaxremat.planner.decision import AsWritten, Form
from jaxremat.planner.prediction import is_below_model_threshold
from jaxremat.planner.problem import Problem
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace.joint import gradient_jaxpr
from jaxremat.trace.origins import Origins
from jaxremat.trace.primal import Primal

_ROUNDING = 1e-9  # relative: sums of costs in another order differ by less


@dataclasses.dataclass(frozen=True, eq=False)
class CheckpointOutcome:
    """A schedule that checkpoints can express.

    Attributes:
      problem: the program.
      program: the schedule that JAX's checkpoints amount to.
      form: the checkpoints and names.
      replayed_bytes, cost: of the replay.
      settings: what the planner made it from.
    """

    problem: Problem
    program: ScheduledProgram
    form: Form
    replayed_bytes: int
    cost: float
    settings: Any = None

    def at_cost(self, seconds: float) -> CheckpointOutcome:
        """The same checkpoints at another cost."""
        return dataclasses.replace(self, cost=seconds)

    @functools.cached_property
    def timeline(self) -> Timeline:
        """The replay, value by value."""
        return replay(self.problem.graph, self.program.steps)

    @functools.cached_property
    def peak_bytes(self) -> int:
        """The predicted peak of the emitted program, as JAX differentiates it."""
        if is_below_model_threshold(self.problem.joint, self.problem.graph, self.problem.device):
            return self.timeline.peak_bytes
        emitted = self.form.emitted(self.problem.primal, self.problem.device)
        estimate = estimate_memory(
            gradient_jaxpr(self.problem.primal, lambda inputs: emitted(*inputs)), self.problem.device
        )
        return int(estimate.live_bytes.max(initial=0)) + estimate.argument_bytes + estimate.output_bytes


class CheckpointCandidates:
    """The outcomes that a planner of checkpoints has made, and how to choose among them.

    Args:
      primal: the program.
      device: what its costs and bytes are for.
      origins: its joint program, with groups and marks.
      plain: the form without recomputation.
    """

    def __init__(self, primal: Primal, device: Device, origins: Origins, plain: Form | None = None) -> None:
        self.device = device
        self._plain = plain or AsWritten()
        self.graph = _without_marks(price(origins.joint, device), origins)
        self.problem = Problem(primal, (), origins.joint, self.graph, device)
        self.structure = Structure(self.graph)
        self._made: dict[Hashable, CheckpointOutcome] = {}

    @functools.cached_property
    def plain(self) -> CheckpointOutcome:
        """The program without recomputation."""
        return self._outcome(self.problem.in_order, self._plain, None)

    def once(self, settings: Hashable, make: Callable[[], tuple[np.ndarray, Form]]) -> CheckpointOutcome:
        """The outcome of some settings; `make` returns ([T] node ids, form) where it is not there yet."""
        if settings not in self._made:
            schedule, form = make()
            self._made[settings] = self._outcome(schedule_program(self.graph, schedule), form, settings)
        return self._made[settings]

    @property
    def all(self) -> list[CheckpointOutcome]:
        """What was made so far."""
        return list(self._made.values())

    def _outcome(self, program: ScheduledProgram, form: Form, settings: Hashable) -> CheckpointOutcome:
        timeline = replay(self.graph, program.steps)
        return CheckpointOutcome(self.problem, program, form, timeline.peak_bytes, timeline.cost, settings)


class PlansCheckpoints:
    """What the planners of checkpoints share.

    Attributes:
      candidates: the outcomes, of which the plain one is theirs.
    """

    candidates: CheckpointCandidates

    @property
    def outcomes(self) -> Sequence[CheckpointOutcome]:
        """Every outcome that was worth a look so far."""
        raise NotImplementedError

    @property
    def plain(self) -> CheckpointOutcome:
        """The program without recomputation."""
        return self.candidates.plain

    @functools.cached_property
    def fastest_bytes(self) -> int:
        """The replayed peak above which no outcome is faster."""
        return fastest_bytes(self.plain, self.outcomes)

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Iterator[CheckpointOutcome]:
        """Cheaper outcomes that may fit all the same: checkpoints leave little to predict by."""
        return cheaper_that_may_fit(self.outcomes, best, cost, peak_bytes)


def cheaper_that_may_fit(
    outcomes: Sequence[CheckpointOutcome], best: Outcome, cost: float, peak_bytes: int
) -> Iterator[CheckpointOutcome]:
    """Cheaper outcomes beside one that fits: first those that are predicted to fit, the cheapest first, then those that
    are predicted to take little more, the smallest first. What is replayed with far more is not predicted."""
    most = (1 + DOUBT) * peak_bytes
    room = max(most - best.peak_bytes, 0)
    cheaper = [outcome for outcome in outcomes if outcome.cost < (1 - _ROUNDING) * cost]
    near = [outcome for outcome in cheaper if outcome.replayed_bytes <= best.replayed_bytes + room]
    too_large = []
    for outcome in sorted(near, key=lambda outcome: outcome.cost):
        if outcome.peak_bytes <= peak_bytes:
            yield outcome
        elif outcome.peak_bytes <= most:
            too_large.append(outcome)
    yield from sorted(too_large, key=lambda outcome: outcome.peak_bytes)


def _without_marks(graph: Graph, origins: Origins) -> Graph:
    """Marks cost nothing, and hold nothing beside what they mark unless that is read by itself."""
    marks = np.asarray([mark is not None for mark in origins.marks])
    costs = np.where(marks, 0.0, graph.costs)
    value_bytes = graph.value_bytes.copy()
    for node in np.flatnonzero(marks).tolist():
        for source in graph.values_read[node]:
            if graph.readers[source] == (node,):
                value_bytes[source] = 0
    return dataclasses.replace(graph, costs=costs, value_bytes=value_bytes)
