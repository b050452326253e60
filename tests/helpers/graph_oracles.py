"""Truth by enumeration for small graphs: staged schedules, and graphs of every kind to compare on."""

import itertools

import numpy as np

from jaxremat import Graph, GraphError, replay


def staged_schedules(graph):
    """Every frontier-advancing schedule: before each first run, and after the last, any subset of earlier nodes."""
    n = graph.num_nodes
    stages = []
    for stage in range(n + 1):
        again = [node for node in range(stage) if not graph.pinned[node]]
        first = (stage,) if stage < n else ()
        subsets = itertools.chain.from_iterable(itertools.combinations(again, k) for k in range(len(again) + 1))
        stages.append([subset + first for subset in subsets])
    for parts in itertools.product(*stages):
        yield sum(parts, ())


def replayed(graph, schedules):
    """(peak, cost) of those schedules that can be run."""
    points = []
    for schedule in schedules:
        try:
            timeline = replay(graph, schedule)
        except GraphError:
            continue
        points.append((timeline.peak_bytes, timeline.cost))
    return points


def gradient_chain(length):
    """A chain of equal layers and its backward, unmarked."""
    n = 2 * length
    edges = {(i, i + 1) for i in range(n - 1)} | {(i - 1, n - 1 - i) for i in range(1, length)}
    return Graph.from_arrays([1] * n, [1] * n, sorted(edges))


def first_runs_in_order(schedule):
    """Whether nodes run for the first time in the given order."""
    firsts = list(dict.fromkeys(np.asarray(schedule).tolist()))
    return firsts == sorted(firsts)
