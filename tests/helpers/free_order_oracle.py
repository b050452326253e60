"""Truth for tiny graphs with free order: the cheapest schedule by Dijkstra over what is live and what has run."""

import heapq
import itertools

import numpy as np


def slow_peak(graph, schedule):
    """The peak by the definition alone: at each step, every value that is held for a later reader or the end."""
    steps = list(map(int, schedule))
    peak = 0
    for now, node in enumerate(steps):
        live = set(graph.values_of[node]) | set(graph.values_read[node])
        for value in range(graph.num_values):
            producer = int(graph.producer[value])
            if producer not in steps[: now + 1]:
                continue
            for later in range(now + 1, len(steps) + 1):
                if later == len(steps):
                    live |= {value} if graph.is_output[value] else set()
                elif value in graph.values_read[steps[later]]:
                    live.add(value)
                elif steps[later] != producer:
                    continue
                break
        held = sum(int(graph.value_bytes[value]) for value in live) + int(graph.workspace_bytes[node])
        peak = max(peak, held + graph.resident_bytes)
    return peak


def least_cost(graph, budget_bytes, *, first_runs_in_order=False):
    """The cost of the cheapest schedule within a budget, one value per node; None if there is none.

    With `first_runs_in_order`, of the schedules in which nodes run for the first time in the given order.
    """
    n = graph.num_nodes
    sizes, costs = graph.value_bytes.tolist(), graph.costs.tolist()
    inputs = [frozenset(values) for values in graph.values_read]
    outputs = frozenset(np.flatnonzero(graph.is_output).tolist())
    queue, seen = [(0.0, 0, frozenset(), frozenset())], set()
    ties = itertools.count(1)
    while queue:
        cost, _, ran, live = heapq.heappop(queue)
        if (ran, live) in seen:
            continue
        seen.add((ran, live))
        if len(ran) == n and outputs <= live:
            return cost
        for node in range(n):
            if node in live or not inputs[node] <= live:
                continue
            if first_runs_in_order and node not in ran and node != len(ran):
                continue
            spare = live - inputs[node]
            for size in range(len(spare) + 1):
                for dropped in itertools.combinations(sorted(spare), size):
                    after = live - set(dropped) | {node}
                    if sum(sizes[v] for v in after) + graph.resident_bytes <= budget_bytes:
                        heapq.heappush(queue, (cost + costs[node], next(ties), ran | {node}, after))
    return None
