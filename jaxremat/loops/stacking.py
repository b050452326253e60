"""What an iteration's values take to stack and to make again, kernel by kernel.

Where loops are fused by what that saves, what a kernel computes on its way costs nothing to make again and much to
keep: it has to be written and read. A stack begins as zeros; a product does not write into it but is copied there, and
does not read from it but from a copy of the slice.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.fused import Fusion
from jaxremat.cost.fusion import fused
from jaxremat.cost.hlo_ops import CONTRACTIONS
from jaxremat.cost.kernels import seconds_again, seconds_by_equation
from jaxremat.graph.graph import Graph
from jaxremat.trace.joint import Joint


def judged_by_kernels(joint: Joint, graph: Graph, device: Device, known: KnownBodies) -> Graph:
    """The priced graph of an iteration with the time of kernels: of its equations, and of what it keeps."""
    seconds, written = seconds_by_equation(joint.jaxpr, device, known)
    moved = _times_moved(joint, fused(joint.jaxpr, device, known)) * graph.value_bytes
    keep_costs = graph.keep_costs + moved / device.bandwidth_bytes_per_second
    costs = seconds_again(joint.jaxpr, seconds, written, graph.costs)
    estimated = {trip.way_back for trip in joint.round_trips if trip.only_estimates}
    costs = np.where([eqn in estimated for eqn in joint.eqns], 0.0, costs)
    return dataclasses.replace(graph, costs=costs, keep_costs=keep_costs)


def _times_moved(joint: Joint, fusion: Fusion) -> np.ndarray:
    """[V] how often the bytes of each value are read or written for its stack's sake."""
    kernels = set(fusion.kernels)
    made = [fusion.program.op_of[v] for v in joint.values]
    copied_in = [index not in kernels or index in fusion.products for index in made]
    copied_out = [any(_is_late_product(joint, fusion, user) for user in fusion.users[index]) for index in made]
    return 1 + 2 * np.asarray(copied_in, int) + 2 * np.asarray(copied_out, int)


def _is_late_product(joint: Joint, fusion: Fusion, index: int) -> bool:
    program = fusion.program
    return program.ops[index].kind in CONTRACTIONS and bool(joint.backward[program.equations[index]])
