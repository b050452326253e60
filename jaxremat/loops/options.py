"""One iteration of a loop as a graph, and the hull of what it can stack against what it then runs again.

The carry that enters an iteration is the output of the one before: in the graph it is a value that only stacking
makes available. Constants and slices of what is scanned over are free.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Var
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.memory import estimate_memory
from jaxremat.cost.pricing import price
from jaxremat.cost.sharding import again_seconds
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.loops.body import Body, scripted
from jaxremat.loops.decision import Piece
from jaxremat.loops.stacking import judged_by_kernels
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.cut import CutNetwork
from jaxremat.solvers.mincut.structure import Structure, ends_of_groups
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint

SMALLEST_PRICE, LARGEST_PRICE = 1e-20, 1e3  # seconds per byte: below any compute, above any
_MOST_OPTIONS = 48  # benchmarks/constants.py
_SINGLE_ITERATION_SURCHARGE = 0.05  # of the first value of what runs once over its last; benchmarks/constants.py
_LITTLE = 0.01  # less than predicted bytes and seconds are off by; benchmarks/constants.py
_PARTS = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (6, 1), (6, 3), (8, 1), (8, 2), (8, 4))
"""Parts in which an iteration may run again, and groups of them; benchmarks/constants.py."""


@dataclasses.dataclass(frozen=True)
class IterationOption:
    """What one iteration may do.

    Attributes:
      stacked_bytes: what it leaves for the backward.
      transient_bytes: what its backward needs at most beyond that.
      seconds: what it runs again.
      forward, backward: its schedule, as node ids of the body's joint program.
      premium_bytes: what a price counts beyond these bytes.
    """

    stacked_bytes: int
    transient_bytes: int
    seconds: float
    forward: tuple[int, ...]
    backward: tuple[int, ...]
    premium_bytes: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class IterationHull:
    """The lower convex hull of an iteration's options, from the most stacked bytes to the fewest.

    Attributes:
      options: its corners.
      checkpointed: what a checkpoint around the iteration does: only what enters it is stacked, all runs again, once.
      carry_bytes: what enters an iteration from the one before.
      forward_seconds: one run of the forward.
      gradient: the fingerprint of its forward and backward.
    """

    options: tuple[IterationOption, ...]
    checkpointed: IterationOption
    carry_bytes: int
    forward_seconds: float
    gradient: str


def iteration_hull(body: Body, joint: Joint, device: Device, has_barriers: bool) -> IterationHull:
    """Solves one iteration for every price of a byte.

    Args:
      body: the iteration.
      joint: its forward and backward, its own loops emitted as decided.
      device: what costs and bytes are for.
      has_barriers: whether what runs again will wait behind barriers.
    """
    known = KnownBodies()
    priced = price(joint, device, known)
    if device.backend.element_work is not None and not body.is_single:
        priced = judged_by_kernels(joint, priced, device, known)
    graph = _with_ends(body, joint, priced)
    run_seconds = graph.costs.copy()
    run_seconds[: body.num_carry] = np.inf
    run_seconds[body.num_carry : -1] = again_seconds(joint.eqns, run_seconds[body.num_carry : -1])
    early = 1 - graph.producer / graph.num_nodes
    surcharge = _SINGLE_ITERATION_SURCHARGE * body.is_single * early * graph.value_bytes
    kept = _apart(graph, _hull(body, graph, run_seconds, graph.value_bytes + surcharge))
    options = [_option(body, graph, *assemble_parts(graph, each), each) for each in kept]
    if body.is_single:
        options = _walkable(options, [float(surcharge[each].sum()) for each in kept])
    checkpointed = options[-1]
    options += _checkpointed(body, graph, run_seconds, kept[-1])
    if not has_barriers:
        options = [_fused(option, body, joint, device, known) for option in options]
    carry = joint.inputs[body.num_consts : body.num_consts + body.num_carry]
    forward_seconds = sum(graph.costs[node + body.num_carry] for node in options[-1].forward)
    carry_bytes = sum(map(jaxprs.size_bytes, carry))
    return IterationHull(tuple(options), checkpointed, carry_bytes, float(forward_seconds), joint.fingerprint)


def _with_ends(body: Body, joint: Joint, graph: Graph) -> Graph:
    """The graph between two kinds of extra nodes: one before it per carry, and a last one that reads every gradient
    that does not depend on a cotangent, so that it is not taken for an output of the forward. An output of an
    iteration is a value like any other: to stack it takes its bytes."""
    number = body.num_carry
    carry = {v: i for i, v in enumerate(joint.inputs[body.num_consts : body.num_consts + number])}
    value_of: dict[Var, int] = dict(carry)
    made = [v for eqn in joint.eqns for v in eqn.outvars]
    value_of.update((v, number + i) for i, v in enumerate(made))
    last = number + graph.num_nodes
    forward = {v for eqn, late in zip(joint.eqns, joint.backward) if not late for v in eqn.outvars}
    reads = [(value + number, node + number) for value, node in graph.reads.tolist()]
    for node, eqn in enumerate(joint.eqns, number):
        reads += [(carry[v], node) for v in set(jaxprs.vars_of(eqn.invars)) & carry.keys()]
    early = {v for v in jaxprs.vars_of(joint.gradients) if v in carry or v in forward}
    reads += [(value_of[v], last) for v in early]
    is_output = np.zeros(number + graph.num_values, bool)
    is_output[[value_of[v] for v in jaxprs.vars_of(joint.outputs) if v in forward]] = True
    return Graph(
        costs=np.concatenate([np.zeros(number), graph.costs, [0.0]]),
        workspace_bytes=np.concatenate([np.zeros(number, np.int64), graph.workspace_bytes, [0]]),
        value_bytes=np.asarray([jaxprs.size_bytes(v) for v in (*carry, *made)], np.int64),
        producer=np.concatenate([np.arange(number), graph.producer + number]).astype(np.int32),
        reads=np.asarray(sorted(reads, key=lambda read: (read[1], read[0])), np.int32).reshape(-1, 2),
        is_output=is_output,
        backward=np.concatenate([np.zeros(number, bool), graph.backward, [True]]),
        pinned=np.concatenate([np.zeros(number, bool), graph.pinned, [False]]),
        keep_costs=np.concatenate([np.zeros(number), graph.keep_costs]),
    )


def _apart(graph: Graph, kept: list[np.ndarray]) -> list[np.ndarray]:
    """Corners that differ: where a few bytes more save next to no time, the model is not exact enough to tell, and the
    smaller one stays. The first corner, which repeats nothing, stays too."""
    forward_seconds = graph.costs[~graph.backward].sum()
    stays: list[np.ndarray] = []
    for corner in reversed(kept[1:]):
        if stays:
            size, least = (graph.value_bytes[values].sum() for values in (corner, stays[-1]))
            more, fewer = (_again_seconds(graph, values) for values in (stays[-1], corner))
            if size <= (1 + _LITTLE) * least and more - fewer <= _LITTLE * forward_seconds:
                continue
        stays.append(corner)
    return [*kept[:1], *reversed(stays)]


def _again_seconds(graph: Graph, kept: np.ndarray) -> float:
    """What a set of kept values leaves to run again."""
    steps, start = assemble_parts(graph, kept)
    again = steps[start:][~graph.backward[steps[start:]]]
    return float(graph.costs[again].sum())


def _fused(option: IterationOption, body: Body, joint: Joint, device: Device, known: KnownBodies) -> IterationOption:
    """The option with what its backward needs at most after fusion; barriers between repeats keep values apart (on an
    H200, a scanned transformer: 352 MiB predicted and 643 replayed without repeats, 402 compiled; with some 537
    replayed, 508 compiled)."""
    piece = Piece(1, option.forward, option.backward)
    if piece.repeats:
        return option
    backward = scripted(body, joint, piece, False, device.backend).traced_backward()
    estimate = estimate_memory(backward, device, known)
    return dataclasses.replace(option, transient_bytes=estimate.temp_bytes + estimate.output_bytes)


def _walkable(options: list[IterationOption], surcharges: list[float]) -> list[IterationOption]:
    """The options of what runs once, such that a rising price reaches one after the other: equal layers inside change
    their mind at different prices, the earliest first, and what the backward needs at most counts the same for all."""
    return [
        dataclasses.replace(option, premium_bytes=extra + options[-1].transient_bytes - option.transient_bytes)
        for option, extra in zip(options, surcharges, strict=True)
    ]


def _hull(body: Body, graph: Graph, run_seconds: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
    """The sets of kept values at the corners of the hull of size against seconds, by falling size."""
    needed = np.zeros(graph.num_values, bool)
    values, nodes = graph.reads.T
    needed[values[graph.backward[nodes]]] = True
    needed &= ~graph.backward[graph.producer]
    only_kept = np.zeros(graph.num_values, bool)
    only_kept[: body.num_carry] = True

    network = CutNetwork(graph, run_seconds, needed)

    def cut(seconds_per_byte: float) -> tuple[float, float, np.ndarray]:
        kept, again = network.cheapest(seconds_per_byte * size + graph.keep_costs, only_kept)
        seconds = run_seconds[again & np.isfinite(run_seconds)].sum() + graph.keep_costs[kept].sum()
        return float(size[kept].sum()), float(seconds), kept

    corners = _corners(cut, cut(SMALLEST_PRICE), cut(LARGEST_PRICE), _MOST_OPTIONS)
    return [kept for _, _, kept in corners]


def _corners(cut: Any, most: tuple[Any, ...], least: tuple[Any, ...], limit: int) -> list[tuple[Any, ...]]:
    """The corners from `most` to `least` stacked bytes, both included."""
    saved_bytes, added_seconds = most[0] - least[0], least[1] - most[1]
    if saved_bytes <= 0:
        return [min(most, least, key=lambda point: point[:2])]
    if added_seconds <= 0:
        return [least]
    if limit <= 2:
        return [most, least]
    price = added_seconds / saved_bytes
    between = cut(price)
    gain = (most[1] + price * most[0]) - (between[1] + price * between[0])
    if gain <= 1e-6 * (most[1] + price * most[0]) or not least[0] < between[0] < most[0]:
        return [most, least]
    left = _corners(cut, most, between, limit // 2 + 1)
    return left + _corners(cut, between, least, limit // 2 + 1)[1:]


def _checkpointed(body: Body, graph: Graph, run_seconds: np.ndarray, kept: np.ndarray) -> list[IterationOption]:
    """Ways to run an iteration again in parts, where it leaves as little as it can: its backward is a program of its
    own, with a forward that keeps what passes between parts, so that one part at a time is live."""
    forward, start = assemble_parts(graph, kept)
    alone = dataclasses.replace(graph, is_output=np.zeros_like(graph.is_output))
    structure = Structure(alone)
    network = CutNetwork(alone, run_seconds, structure.needed)
    found: dict[bytes, IterationOption] = {}
    for (parts, groups), keep_price in itertools.product(_PARTS, (graph.mean_price, LARGEST_PRICE)):
        ends = structure.boundaries(parts)
        passing = structure.crossing_values(ends) | kept
        inside, _ = network.cheapest(keep_price * alone.value_bytes + alone.keep_costs, passing)
        ends = ends_of_groups(ends, groups)
        group = np.searchsorted(ends, np.arange(graph.num_nodes))
        steps = assemble_parts(alone, inside | kept, group, structure.crossing_values(ends) | kept)[0]
        both = np.concatenate([forward[:start], steps])
        found.setdefault(steps.tobytes(), _option(body, graph, both, start, kept))
    return list(found.values())


def _option(body: Body, graph: Graph, steps: np.ndarray, start: int, kept: np.ndarray) -> IterationOption:
    again = steps[start:][~graph.backward[steps[start:]]]
    inside = (steps >= body.num_carry) & (steps < graph.num_nodes - 1)
    position = np.arange(steps.size)
    forward, backward = (steps[inside & part] - body.num_carry for part in (position < start, position >= start))
    return IterationOption(
        int(graph.value_bytes[kept].sum()),
        _transient_bytes(graph, kept, steps, start),
        float(graph.costs[again].sum() + graph.keep_costs[kept].sum()),
        tuple(forward.tolist()),
        tuple(backward.tolist()),
    )


def _transient_bytes(graph: Graph, kept: np.ndarray, steps: np.ndarray, start: int) -> int:
    """The most that the backward of a schedule holds at once, beyond what is kept; gradients stay to the end."""
    read = np.zeros(graph.num_values, bool)
    read[graph.reads[:, 0]] = True
    beyond = dataclasses.replace(
        graph,
        value_bytes=np.where(kept, 0, graph.value_bytes),
        is_output=~read & graph.backward[graph.producer],
        resident_bytes=0,
    )
    return int(replay(beyond, steps).live_bytes[start:].max(initial=0))
