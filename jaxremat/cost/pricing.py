"""From a joint program to a graph of costs and bytes."""

from __future__ import annotations

import numpy as np

from jaxremat._compat import Eqn, Var
from jaxremat.graph import Graph
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint


def price(joint: Joint, device=None) -> Graph:
    """The joint graph: node i is equation i of `joint.jaxpr`, in seconds and bytes on a device.

    Inputs of the program are resident, and so are its outputs: a compiled program holds their buffers throughout.
    An output value therefore occupies nothing of its own in the graph.
    """
    eqns = joint.eqns
    value_of: dict[Var, int] = {}
    producer, size, reads = [], [], set()
    for node, eqn in enumerate(eqns):
        reads.update((value_of[v], node) for v in jaxprs.vars_of(eqn.invars) if v in value_of)
        for var in eqn.outvars:
            value_of[var] = len(producer)
            producer.append(node)
            size.append(jaxprs.size_bytes(var))
    is_output = np.zeros(len(producer), bool)
    is_output[[value_of[v] for v in jaxprs.vars_of(joint.jaxpr.outvars) if v in value_of]] = True
    own_bytes = np.where(is_output, 0, np.asarray(size, np.int64))
    return Graph(
        costs=np.asarray([_seconds(eqn) for eqn in eqns]),
        workspace_bytes=np.zeros(len(eqns), np.int64),
        value_bytes=own_bytes,
        producer=np.asarray(producer, np.int32),
        reads=np.asarray(sorted(reads, key=lambda read: (read[1], read[0])), np.int32).reshape(-1, 2),
        is_output=is_output,
        resident_bytes=sum(map(jaxprs.size_bytes, (*joint.jaxpr.invars, *joint.jaxpr.outvars))),
        backward=joint.is_backward,
        pinned=np.asarray([jaxprs.has_effects(eqn) for eqn in eqns]),
        names=tuple(eqn.primitive.name for eqn in eqns),
    )


def _seconds(eqn: Eqn) -> float:
    """Placeholder roofline until cost/flops.py lands."""
    heavy = {"exp", "tanh", "log", "div", "erf", "logistic", "rsqrt", "pow"}
    inner = sum(sum(map(_seconds, sub.eqns)) * eqn.params.get("length", 1) for sub in jaxprs.subjaxprs(eqn))
    written = sum(map(jaxprs.size_bytes, eqn.outvars))
    return _flops(eqn) / 1e11 + written / 2e10 * (3 if eqn.primitive.name in heavy else 1) + 1e-6 + inner


def _flops(eqn: Eqn) -> float:
    out = eqn.outvars[0].aval
    if eqn.primitive.name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        return 2 * np.prod(out.shape, dtype=float) * np.prod([eqn.invars[0].aval.shape[i] for i in contract], dtype=float)
    if eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        return 2 * np.prod(out.shape, dtype=float) * np.prod(kernel, dtype=float) / kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 0.0
