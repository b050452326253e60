"""A program with its loops decided, as a graph that the planner can search."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxremat.cost.pricing import price
from jaxremat.emit.loops import LoopDecision, rewritten
from jaxremat.graph import Graph
from jaxremat.trace.joint import Joint, Primal, differentiate


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is searched.

    Attributes:
      primal: the program.
      loops: one decision per differentiable loop; empty where every loop is left alone.
      joint: forward and backward, with the loops as decided.
      graph: the joint program in bytes and seconds on the target.
    """

    primal: Primal
    loops: tuple[LoopDecision, ...]
    joint: Joint
    graph: Graph

    @functools.cached_property
    def in_order(self) -> np.ndarray:
        """[N] the schedule that recomputes nothing."""
        return np.arange(self.graph.num_nodes, dtype=np.int32)


def pose(primal: Primal, device, loops: tuple[LoopDecision, ...] = ()) -> Problem:
    """The problem of a program for a device, with its loops decided, or left alone."""
    joint = differentiate(primal, rewritten(primal, loops) if loops else None)
    return Problem(primal, loops, joint, price(joint, device))
