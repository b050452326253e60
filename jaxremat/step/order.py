"""A program in which each result is finished as soon as it can be, together with what stems from the same values.

An optimizer is written over whole trees: all moments, then all updates, then all parameters, so that what stands
between them waits for all leaves at once. Leaf by leaf, it waits for one leaf; and where nothing joins the gradients,
such as their norm, each of them only until its own leaf is done.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxremat.base.compat import Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.splice import Splice, at

SHARED = -1  # no group: groups are counted from 0


def result_by_result(jaxpr: Jaxpr) -> Jaxpr:
    """The same program in another order: what leads to one group of results alone runs at once, as soon as all that it
    reads has been made, and all others have read the inputs that it reads."""
    group, number = groups_of_results(jaxpr), len(jaxpr.eqns)
    ready = _ready(jaxpr, group)
    key = [(i, SHARED) if group[i] == SHARED else (ready[group[i]], group[i]) for i in range(number)]
    program = Splice(jaxpr)
    env = program.inputs
    for node in sorted(range(number), key=lambda i: (*key[i], i)):
        program.put(jaxpr.eqns[node], env)
    return program.program([at(env, atom) for atom in jaxpr.outvars])


def groups_of_results(jaxpr: Jaxpr) -> np.ndarray:
    """[N] the group of results that each equation leads to, and to no other; -1 where it leads to more than one, or
    where more would wait for it than it makes: a gradient's contraction is not put off.

    A group is what element-wise steps join: a leaf of the parameters, its moments and its average.
    """
    joined, readers = _joined(jaxpr), _readers(jaxpr)
    outputs = set(jaxprs.vars_of(jaxpr.outvars))
    fixed = {node for node, eqn in enumerate(jaxpr.eqns) if jaxprs.has_effects(eqn)}
    while True:
        group = np.full(len(jaxpr.eqns), SHARED)
        for node in reversed(range(len(jaxpr.eqns))):
            made = jaxpr.eqns[node].outvars
            led = {int(group[reader]) for v in made for reader in readers[v]}
            led |= set() if outputs.isdisjoint(made) else {int(joined[node])}
            if len(led) == 1 and node not in fixed:
                group[node] = led.pop()
        more = set(_collecting(jaxpr, group))
        if not more:
            return group
        fixed |= more


def _collecting(jaxpr: Jaxpr, group: np.ndarray) -> Iterator[int]:
    """Equations of groups that read more from outside than they make, what is smaller than that left out."""
    made = {v: group[node] for node, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    for node in np.flatnonzero(group != SHARED).tolist():
        eqn = jaxpr.eqns[node]
        own = max(map(_elements, eqn.outvars))
        outside = {v for v in jaxprs.vars_of(eqn.invars) if made.get(v, group[node]) != group[node]}
        if sum(size for size in map(_elements, outside) if size >= own) > own:
            yield node


def _joined(jaxpr: Jaxpr) -> np.ndarray:
    """[N] a number for each equation, equal where values of equally many elements lead from one to the other."""
    readers = _readers(jaxpr)
    sizes = [max((_elements(v) for v in eqn.outvars), default=0) for eqn in jaxpr.eqns]
    links = [
        (node, reader)
        for node, eqn in enumerate(jaxpr.eqns)
        for v in eqn.outvars
        for reader in readers[v]
        if sizes[reader] == _elements(v)
    ]
    first, second = np.asarray(links, np.int64).reshape(-1, 2).T
    shape = (len(jaxpr.eqns),) * 2
    return connected_components(coo_array((np.ones(first.size), (first, second)), shape), directed=False)[1]


def _ready(jaxpr: Jaxpr, group: np.ndarray) -> dict[int, int]:
    """The last equation outside of each group that makes what the group reads, or reads an input that it reads."""
    made = {v: node for node, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    shared = [node if group[node] == SHARED else -1 for node in range(len(jaxpr.eqns))]
    last_read: dict[Var, int] = {}
    for node, eqn in enumerate(jaxpr.eqns):
        last_read.update((v, shared[node]) for v in jaxprs.vars_of(eqn.invars) if v not in made and shared[node] >= 0)
    ready: dict[int, int] = collections.defaultdict(lambda: -1)
    for node in np.flatnonzero(group != SHARED).tolist():
        read = jaxprs.vars_of(jaxpr.eqns[node].invars)
        needed = (shared[made[v]] if v in made else last_read.get(v, -1) for v in read)
        ready[int(group[node])] = max(ready[int(group[node])], *needed, -1)
    return ready


def _readers(jaxpr: Jaxpr) -> dict[Var, list[int]]:
    readers: dict[Var, list[int]] = collections.defaultdict(list)
    for node, eqn in enumerate(jaxpr.eqns):
        for var in jaxprs.vars_of(eqn.invars):
            readers[var].append(node)
    return readers


def _elements(var: Var) -> int:
    return int(getattr(var.aval, "size", 0))
