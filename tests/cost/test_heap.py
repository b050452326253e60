"""Buffers at fixed addresses: the fast packing against one that follows XLA's heap event by event."""

import numpy as np
import pytest

from jaxremat.cost.heap import beside_outputs, heap_bytes


def events_of(spans, taken_by):
    """(buffer that begins or ends, whether it ends) in the order in which `HeapSimulator::RunComputation` has them."""
    number = {kernel: k for k, (kernel, *_) in enumerate(spans)}
    takes = {number[taker]: number[kernel] for kernel, taker in taken_by.items()}
    events, given_up = [], set(takes.values())
    for step in range(1 + max(last for *_, last in spans)):
        begun = [k for k, (_, _, first, _) in enumerate(spans) if first == step]
        for k in sorted(begun, key=lambda k: (spans[k][3], k)):
            events += [(takes[k], True)] if k in takes else []
            events.append((k, False))
        events += [(k, True) for k, (*_, last) in enumerate(spans) if last == step and k not in given_up]
    return events, takes


def heap_step_by_step(spans, taken_by):
    """`GlobalDecreasingSizeBestFitHeap::Finish` for both of the orders that XLA tries."""
    events, takes = events_of(spans, taken_by)
    begins = {k: t for t, (k, ends) in enumerate(events) if not ends}
    ends = {k: t for t, (k, is_end) in enumerate(events) if is_end}
    chains = {}
    for k in sorted(begins, key=begins.get):
        chain = chains.pop(takes[k]) if k in takes else []
        chains[k] = [*chain, k]
    reach = []
    for by_size in (True, False):

        def order(chain, by_size=by_size):
            first, size = chain[0], spans[chain[0]][1]
            until = ends[first] if by_size else ends[chain[-1]]
            lives = until - begins[first]
            return (-size, -lives, first) if by_size else (-lives, -size, first)

        placed = []
        for chain in sorted(chains.values(), key=order):
            size, alive = spans[chain[0]][1], range(begins[chain[0]], ends[chain[-1]] + 1)
            taken = sorted((low, low + other) for low, other, when in placed if set(when) & set(alive))
            free, low = [], 0
            for start, end in taken:
                if start - low >= size:
                    free.append((start - low, low))
                low = max(low, end)
            placed.append((min(free)[1] if free else low, size, alive))
        reach.append(max(low + size for low, size, _ in placed))
    return min(reach)


def random_program(seed):
    """Buffers of few sizes, some of them written over by one that begins when they end."""
    rng = np.random.default_rng(seed)
    firsts = np.sort(rng.integers(0, 30, 40))
    sizes = rng.integers(1, 20, 6)
    spans = [
        (k, int(rng.choice(sizes)), int(first), int(first + rng.integers(0, 12))) for k, first in enumerate(firsts)
    ]
    taken_by = {}
    for k, (_, size, _, last) in enumerate(spans):
        takers = [j for j, (_, other, first, _) in enumerate(spans) if other == size and first == last + 1]
        if takers and takers[0] not in taken_by.values() and rng.random() < 0.7:
            taken_by[k] = takers[0]
    return spans, taken_by


@pytest.mark.parametrize("seed", range(40))
def test_buffers_lie_where_a_heap_puts_them_event_by_event(seed):
    spans, taken_by = random_program(seed)
    reached = heap_bytes(spans, taken_by)
    assert reached == heap_step_by_step(spans, taken_by)
    live = [sum(size for _, size, first, last in spans if first <= step <= last) for step in range(42)]
    assert reached >= max(live)


def test_random_programs_have_gaps_and_write_over_buffers():
    programs = [random_program(seed) for seed in range(40)]
    live = [max(sum(size for _, size, a, b in spans if a <= step <= b) for step in range(42)) for spans, _ in programs]
    assert any(heap_bytes(*program) > most for program, most in zip(programs, live))
    assert sum(len(taken_by) for _, taken_by in programs) > 20


def test_a_buffer_that_fits_into_no_gap_lies_above():
    """The two of 4 lie on either side of what ends before the one of 5 begins."""
    spans = [(0, 4, 0, 3), (1, 3, 0, 1), (2, 4, 1, 3), (3, 5, 2, 3)]
    assert heap_bytes(spans, {}) == 13
    gapped = [(0, 6, 0, 2), (1, 4, 0, 6), (2, 4, 3, 9), (3, 7, 7, 9)]
    assert heap_bytes(gapped, {}) > max(6 + 4, 4 + 4, 4 + 7)


def test_what_is_written_over_and_what_does_so_lie_at_one_place():
    apart = [(0, 8, 0, 1), (1, 8, 2, 5), (2, 4, 2, 2)]
    assert heap_bytes(apart, {0: 1}) == 12 == heap_step_by_step(apart, {0: 1})


def test_nothing_reaches_nowhere():
    assert heap_bytes([], {}) == 0 and heap_bytes([(0, 0, 0, 3)], {}) == 0


def test_what_fits_before_an_output_is_made_waits_there_the_largest_first():
    spans, outputs = [(0, 4, 0, 2), (1, 6, 1, 2), (2, 9, 0, 1)], [(3, 8, 3, 9)]
    assert beside_outputs(spans, outputs) == [(2, 9, 0, 1), (0, 4, 0, 2)]
    assert beside_outputs([(0, 4, 0, 3)], outputs) == [(0, 4, 0, 3)]
