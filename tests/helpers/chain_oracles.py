"""Rotor's truth by enumeration: all persistent plans of short chains, and a simulator that knows nothing of ours."""

import functools
import itertools

import numpy as np
from hypothesis import strategies as st

from jaxremat import Chain


def unit_chain(length, **changes):
    fields = {name: np.ones(length, int) for name in ("forward_seconds", "backward_seconds", "output_bytes")}
    fields |= {name: np.ones(length, int) for name in ("saved_bytes", "gradient_bytes")}
    fields |= {name: np.zeros(length, int) for name in ("forward_overhead_bytes", "backward_overhead_bytes")}
    return Chain(**(fields | {"input_bytes": 1} | changes))


@st.composite
def chains(draw, most_stages=5):
    """Small random chains with zero sizes, free stages and overheads."""
    length = draw(st.integers(1, most_stages))
    column = lambda low, high: np.array(draw(st.lists(st.integers(low, high), min_size=length, max_size=length)))
    output = column(0, 5)
    return Chain(
        forward_seconds=column(0, 5),
        backward_seconds=column(0, 5),
        output_bytes=output,
        saved_bytes=output + column(0, 5),
        gradient_bytes=column(0, 5),
        forward_overhead_bytes=column(0, 3),
        backward_overhead_bytes=column(0, 3),
        input_bytes=draw(st.integers(0, 4)),
    )


@functools.cache
def persistent_plans(start, end):
    """Every persistent plan for stages start..end, as tuples of operations."""
    plans = []
    for rest in persistent_plans(start + 1, end) if start < end else [()]:
        plans.append((("forward_all", start), *rest, ("backward", start)))
    for split in range(start + 1, end + 1):
        forwards = (("forward_checkpoint", start), *(("forward_none", stage) for stage in range(start + 1, split)))
        for late, early in itertools.product(persistent_plans(split, end), persistent_plans(start, split - 1)):
            plans.append(forwards + late + early)
    return plans


def simulated(chain, operations):
    """(peak bytes, seconds) of operations, held values looked up one by one."""
    length = chain.num_stages
    activation = [chain.input_bytes, *map(int, chain.output_bytes)]
    gradient = [chain.input_bytes, *map(int, chain.gradient_bytes)]
    activations, tapes, gradients = {0}, set(), {length}
    peak = seconds = 0
    for kind, stage in operations:
        assert stage - 1 in activations or stage - 1 in tapes
        own = stage - 1
        transient = chain.backward_overhead_bytes[own] if kind == "backward" else chain.forward_overhead_bytes[own]
        if kind == "backward":
            assert stage in tapes and stage in gradients
            gradients.add(stage - 1)
            seconds += chain.backward_seconds[own]
        else:
            (tapes if kind == "forward_all" else activations).add(stage)
            seconds += chain.forward_seconds[own]
        held = sum(activation[s] for s in activations) + sum(int(chain.saved_bytes[s - 1]) for s in tapes)
        peak = max(peak, held + sum(gradient[s] for s in gradients) + int(transient))
        if kind == "backward":
            tapes.remove(stage)
            gradients.remove(stage)
        if kind in ("backward", "forward_none") and stage > 1:
            activations.discard(stage - 1)
    assert gradients == {0}
    return peak, float(seconds)
