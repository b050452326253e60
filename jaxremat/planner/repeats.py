"""The layers of a program that names no modules: contractions that repeat, and what stands between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint


def repeated_layers(joint: Joint, structure: Structure, contracts: np.ndarray) -> list[np.ndarray]:
    """[N] each: number of the layer that each forward node lies in; -1 for backward nodes, and where there are not two.

    Contractions repeat in rows, stages of a network say. The layers of a row are as long as what repeats, and, in the
    second answer, twice as long: both halves of a residual layer may contract alike. They begin where the least passes
    on from contraction to contraction, at the narrowest place between the two. What contracts after the last row, as
    the head of a loss does, is in no layer: its gradient is the first to run, and finds all that it needs.

    Args:
      joint, structure: a program and its graph.
      contracts: [N] bool, the nodes that are contractions.
    """
    nodes = np.flatnonzero(contracts & ~joint.backward)
    places = [structure.narrowest(*pair) for pair in itertools.pairwise(nodes.tolist())]
    passes_bytes = np.asarray([passed for _, passed in places])
    number: dict[object, int] = {}
    kinds = np.asarray([number.setdefault(_kind(joint, node), len(number)) for node in nodes.tolist()])
    rows = list(_rows(kinds, 0, kinds.size))
    layers = []
    for times in (1, 2):
        begins = {k for row in rows for k in _begins(*row, times, passes_bytes)}
        ends = np.asarray(sorted(places[k - 1][0] for k in begins), np.int64)
        layer = structure.parted(ends)
        has_head = max(begins, default=0) == max((end for _, end, _ in rows), default=-1)
        layers.append(np.where(has_head & (layer == ends.size), -1, layer))
    return layers


def _kind(joint: Joint, node: int) -> object:
    """What contractions have in common that repeat."""
    eqn = joint.eqns[node]
    return eqn.primitive, *(jaxprs.shape_of(atom) for atom in (*eqn.invars, *eqn.outvars))


def _rows(kinds: np.ndarray, first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(first, end, period) of the longest row in which something repeats, of equal ones that with the shortest period,
    and then of those before it and after it."""
    row = max((_longest(kinds[first:end], period) for period in range(1, (end - first) // 2 + 1)), default=(0, 0, 0))
    length, less_period, start = row
    if length:
        yield first + start, first + start + length, -less_period
        yield from _rows(kinds, first, first + start)
        yield from _rows(kinds, first + start + length, end)


def _longest(kinds: np.ndarray, period: int) -> tuple[int, int, int]:
    """(length, less the period, start) of the longest row that repeats with a period; of length 0 where none does."""
    changes = np.flatnonzero(kinds[:-period] != kinds[period:])
    edges = np.concatenate([[-1], changes, [kinds.size - period]])
    lengths = np.diff(edges) - 1
    longest = int(lengths.argmax())
    same = int(lengths[longest])
    return (same + period, -period, int(edges[longest]) + 1) if same >= period else (0, 0, 0)


def _begins(first: int, end: int, period: int, times: int, passes_bytes: np.ndarray) -> list[int]:
    """The contractions of a row, and the one after it, with which layers begin; none of them is the program's first."""
    length = times * period
    inside = range(max(first, 1), min(end, passes_bytes.size) + 1)
    each = [[k for k in inside if (k - first) % length == shift] for shift in range(length)]
    return min(filter(None, each), key=lambda begins: np.mean(passes_bytes[np.asarray(begins) - 1]), default=[])
