"""A random walk over slotted schedules: FastSA's moves and objective in one compiled loop.

A schedule is T slots, each with a node or nothing, T at least four times the number of nodes. For every node the
walk keeps the slots of its runs; for every slot, the bytes that are live there. Adding or removing one run changes
the lifetime of each value that it reads or makes by at most one range of slots (Imanishi et al., NeurIPS 2023), which
is found by one pass over the slots of the value's readers. Live bytes are kept in blocks: a range is added to two rows
of about sqrt(T) slots and to the offsets of the rows between them, all of it contiguous vector work.
XLA compiles the whole loop to one native function on CPU, which makes about a million moves per second. Mapping the
loop over chains would make every chain walk the longest branch (45 times slower, measured): chains are threads.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.graph.replay_jax import GraphTables, replay_q

_NEAR_SLOTS = 32  # eight nodes at four slots each
_PICKS = 8  # tries for a node that runs twice: where one in eight does, two of three find one
_FRACTION_BITS = 23  # the mantissa of a float32


class Rules(NamedTuple):
    """What a walk minimises and how it cools. All scalars, so that changing them compiles nothing.

    The energy is log(max(budget, peak)) + cost_weight * log(cost); with weight 1 it is FastSA's objective.
    """

    budget_q: jax.Array  # [] int32
    cost_weight: jax.Array  # [] float32
    hot: jax.Array  # [] float32, temperature of the first move, relative to the objective
    cold: jax.Array  # [] float32, temperature of the last move
    add_share: jax.Array  # [] float32, share of moves that add a run
    remove_share: jax.Array  # [] float32, share of moves that remove one


class Walked(NamedTuple):
    """Where a walk stands and the best schedule it has seen: the cheapest in budget, else the one of least peak."""

    node_at: jax.Array  # [T] int32
    best_node_at: jax.Array  # [T] int32
    best_peak_q: jax.Array  # [] int32
    best_cost_q: jax.Array  # [] int32


class _State(NamedTuple):
    node_at: jax.Array  # [T] int32; the size class where nothing runs
    runs: jax.Array  # [P, C] int32 slots of a node's runs, T where there are fewer; packed to the left
    num_runs: jax.Array  # [P] int32
    live: _Blocks
    cost_q: jax.Array  # []
    peak_q: jax.Array  # []
    rng: jax.Array  # [] uint32
    ranges: jax.Array  # [K, 3] int32 scratch: first slot, last slot, quanta to add
    best: Walked


class _Blocks(NamedTuple):
    """Live quanta of T slots as B rows of W slots: the level of a slot is its entry plus its row's offset."""

    entry: jax.Array  # [B, W] int32
    offset: jax.Array  # [B] int32
    top: jax.Array  # [B] int32, maximum of each row


class _Move(NamedTuple):
    """One run of `node` leaves slot `source` and appears at slot `target`; T stands for nowhere."""

    node: jax.Array
    source: jax.Array
    target: jax.Array
    is_valid: jax.Array


@functools.partial(jax.jit, static_argnames=("copies",))
def walk(
    tables: GraphTables, node_at: jax.Array, seed: jax.Array, rules: Rules, moves: jax.Array, copies: int
) -> Walked:
    """Walks a number of moves from a schedule, cooling geometrically.

    Args:
      tables: the graph.
      node_at: [T] a valid slotted schedule, T a power of two.
      seed: [] uint32; equal seeds give equal walks.
      rules: energy and temperatures.
      moves: [] int32, how many moves are proposed.
      copies: how many runs of one node a schedule may hold; no node of `node_at` runs more often.

    Returns:
      The last and the best schedule.
    """
    state = _start(tables, node_at, seed, copies)
    state = lax.fori_loop(0, moves, functools.partial(_step, tables, rules, moves), state)
    return state.best._replace(node_at=state.node_at)


def _start(tables: GraphTables, node_at: jax.Array, seed: jax.Array, copies: int) -> _State:
    slots, padded = node_at.shape[0], tables.producer.shape[0]
    replayed = replay_q(tables, node_at)

    def place(slot: Any, carry: Any) -> Any:
        runs, num_runs = carry
        node = node_at[slot]
        runs = runs.at[node, num_runs.at[node].get(mode="clip")].set(slot, mode="drop")
        return runs, num_runs.at[node].add(1, mode="drop")

    runs, num_runs = lax.fori_loop(
        0, slots, place, (jnp.full((padded, copies), slots, jnp.int32), jnp.zeros(padded, jnp.int32))
    )
    width = 1 << ((slots.bit_length() - 1) // 2)
    entry = replayed.live_q.reshape(slots // width, width)
    live = _Blocks(entry, jnp.zeros(slots // width, jnp.int32), entry.max(1))
    best = Walked(node_at, node_at, replayed.peak_q, replayed.cost_q)
    ranges = jnp.zeros((2 * (tables.inputs.shape[0] + padded) + 2, 3), jnp.int32)
    rng = _scrambled(seed * jnp.uint32(2654435761) + jnp.uint32(1))
    return _State(node_at, runs, num_runs, live, replayed.cost_q, replayed.peak_q, rng, ranges, best)


def _step(tables: GraphTables, rules: Rules, moves: jax.Array, index: jax.Array, state: _State) -> _State:
    rng, (kind, luck) = _draws(state.rng, 2)
    rng, move = _proposal(tables, rules, state, rng, kind)
    temperature = rules.hot * (rules.cold / rules.hot) ** (index.astype(jnp.float32) / moves.astype(jnp.float32))
    limit = -temperature * jnp.log(_fraction(luck) + 2.0 ** -(_FRACTION_BITS + 1))
    slots = state.node_at.shape[0]
    gain_q = jnp.where(move.source == slots, tables.cost_q[move.node], 0)
    loss_q = jnp.where(move.target == slots, tables.cost_q[move.node], 0)
    cost_q = state.cost_q + gain_q - loss_q
    before = jnp.maximum(state.cost_q, 1).astype(jnp.float32)
    rise = rules.cost_weight * (cost_q - state.cost_q).astype(jnp.float32) / before
    hopeless = (state.peak_q <= rules.budget_q) & (rise > limit)
    attempt = functools.partial(_attempt, tables, rules, move, cost_q, limit - rise)
    return lax.cond(move.is_valid & ~hopeless, attempt, lambda s: s, state._replace(rng=rng))


def _attempt(
    tables: GraphTables, rules: Rules, move: _Move, cost_q: jax.Array, limit: jax.Array, state: _State
) -> _State:
    """Makes a move, and takes it back where the relative rise of the peak is above the limit."""
    count, ranges = jnp.int32(0), state.ranges
    for slot, sign in ((move.source, -1), (move.target, 1)):
        count, ranges = _lifetime_changes(tables, state, move, slot, sign, (count, ranges))
    live = lax.fori_loop(0, count, lambda i, live: _range_add(live, ranges[i], 1), state.live)
    peak_q = jnp.max(live.top + live.offset)
    before = jnp.maximum(state.peak_q, rules.budget_q)
    rise = (jnp.maximum(peak_q, rules.budget_q) - before).astype(jnp.float32) / before.astype(jnp.float32)

    def keep(state: _State) -> _State:
        return _taken(state._replace(peak_q=peak_q, cost_q=cost_q), rules, move)

    def undo(state: _State) -> _State:
        return state._replace(live=lax.fori_loop(0, count, lambda i, live: _range_add(live, ranges[i], -1), state.live))

    return lax.cond(rise <= limit, keep, undo, state._replace(live=live, ranges=ranges))


def _taken(state: _State, rules: Rules, move: _Move) -> _State:
    """Writes a move down and remembers the schedule if it is the best so far."""
    slots, nothing = state.node_at.shape[0], state.runs.shape[0]
    adds, removes = move.source == slots, move.target == slots
    row, count = state.runs[move.node], state.num_runs[move.node]
    new_count = count + adds.astype(jnp.int32) - removes.astype(jnp.int32)
    lanes = jnp.arange(row.size)
    last_run = row[jnp.maximum(count - 1, 0)]
    moved = jnp.where(row == move.source, jnp.where(removes, last_run, move.target), row)
    moved = jnp.where(removes & (lanes == count - 1), slots, moved)
    row = jnp.where(adds, jnp.where(lanes == count, move.target, row), moved)
    node_at = state.node_at.at[move.source].set(nothing, mode="drop").at[move.target].set(move.node, mode="drop")
    state = state._replace(
        node_at=node_at,
        runs=state.runs.at[move.node].set(row),
        num_runs=state.num_runs.at[move.node].set(new_count),
    )
    best = state.best
    cheaper = (state.cost_q < best.best_cost_q) | (
        (state.cost_q == best.best_cost_q) & (state.peak_q < best.best_peak_q)
    )
    better = jnp.where(
        state.peak_q <= rules.budget_q,
        (best.best_peak_q > rules.budget_q) | cheaper,
        state.peak_q < best.best_peak_q,
    )
    remember = lambda s: s._replace(best=Walked(s.best.node_at, s.node_at, best_peak_q=s.peak_q, best_cost_q=s.cost_q))
    return lax.cond(better, remember, lambda s: s, state)


def _proposal(
    tables: GraphTables, rules: Rules, state: _State, rng: jax.Array, kind: jax.Array
) -> tuple[jax.Array, _Move]:
    """Draws a move: add a run shortly before a reader, remove one of several, or shift one."""
    slots = state.node_at.shape[0]
    fraction = _fraction(kind)
    adds = fraction < rules.add_share
    removes = ~adds & (fraction < rules.add_share + rules.remove_share)
    rng, picked = _node_to_change(tables, state, rng, removes)
    rng, (lane, which, distance, coin) = _draws(rng, 4)
    slot = state.runs[picked, lane % state.num_runs[picked]]
    first, stop = tables.input_start[picked], tables.input_start[picked + 1]
    chosen_input = tables.inputs[first + which % jnp.maximum(stop - first, 1)]
    node = jnp.where(adds & (stop > first), tables.producer[chosen_input], picked)
    row = state.runs[node]
    source = jnp.where(adds, slots, slot)
    first_left = jnp.min(jnp.where(row == source, slots, row))
    after = _latest_input(tables, state.runs, node)
    before = _earliest_reader(tables, state.runs, node)
    until = jnp.where(first_left < before, slots, before)
    anywhere = after + 1 + distance % jnp.maximum(until - after - 1, 1)
    nearby = jnp.where(
        adds, slot - 1 - distance % (_NEAR_SLOTS // 2), slot - _NEAR_SLOTS + distance % (2 * _NEAR_SLOTS)
    )
    target = jnp.where(removes, slots, jnp.where(coin % 4 == 0, anywhere, nearby))
    lands = (target > after) & (target < slots) & (state.node_at[jnp.clip(target, 0, slots - 1)] == state.runs.shape[0])
    runs_first = jnp.minimum(first_left, target)
    is_valid = (removes | lands) & (runs_first < jnp.minimum(before, slots))
    is_valid &= ~(tables.is_pinned[node] & (adds | removes))
    is_valid &= ~adds | (state.num_runs[node] < row.size)
    return rng, _Move(node, source, target, is_valid)


def _node_to_change(
    tables: GraphTables, state: _State, rng: jax.Array, removes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A node at random; for a removal, a few tries to find one that runs more than once."""

    def unlucky(carry: Any) -> Any:
        _, node, tries = carry
        return (tries == 0) | (removes & (state.num_runs[node] < 2) & (tries < _PICKS))

    def again(carry: Any) -> Any:
        rng, (node,) = _draws(carry[0], 1)
        return rng, node % tables.num_nodes, carry[2] + 1

    rng, node, _ = lax.while_loop(unlucky, again, (rng, jnp.int32(0), jnp.int32(0)))
    return rng, node


def _latest_input(tables: GraphTables, runs: jax.Array, node: jax.Array) -> jax.Array:
    """The slot after which every input of a node has been produced; -1 without inputs."""

    def later(index: Any, slot: Any) -> Any:
        return jnp.maximum(slot, jnp.min(runs[tables.producer[tables.inputs[index]]]))

    return lax.fori_loop(tables.input_start[node], tables.input_start[node + 1], later, jnp.int32(-1))


def _earliest_reader(tables: GraphTables, runs: jax.Array, node: jax.Array) -> jax.Array:
    """The first slot that reads a value of a node; values of one node lie side by side, and so do their readers."""

    def earlier(index: Any, slot: Any) -> Any:
        return jnp.minimum(slot, jnp.min(runs[tables.readers[index]]))

    first = tables.reader_start[tables.value_start[node]]
    stop = tables.reader_start[tables.value_start[node + 1]]
    return lax.fori_loop(first, stop, earlier, jnp.int32(2**30))


def _lifetime_changes(tables: Any, state: _State, move: _Move, slot: Any, sign: Any, carry: Any) -> Any:
    """Appends what one run of a move's node adds to the live bytes, given all runs but the one that it takes away.

    Args:
      slot: of the run; after the last slot it is none, and appends nothing.
      sign: 1 for a run that appears, -1 for one that goes.
      carry: (count, ranges), the list so far.

    Returns:
      The longer (count, ranges).
    """
    runs, node, hidden, slots = state.runs, move.node, move.source, state.node_at.shape[0]
    happens = slot < slots
    end = lambda start: jnp.where(happens, start[node + 1], start[node])

    def append(carry: Any, first: Any, last: Any, quanta: Any) -> Any:
        count, ranges = carry
        return count + (quanta != 0).astype(jnp.int32), ranges.at[count].set(jnp.stack([first, last, sign * quanta]))

    def read(index: Any, carry: Any) -> Any:
        value = tables.inputs[index]
        _, last_before, last_after = _around(tables, runs, value, slot, hidden, slots)
        return append(carry, last_before + 1, slot, jnp.where(last_after < 0, tables.size_q[value], 0))

    def made(value: Any, carry: Any) -> Any:
        produced_before, last_before, last_after = _around(tables, runs, value, slot, hidden, slots)
        size_q, is_first, is_read = tables.size_q[value], produced_before < 0, last_after > slot
        shrinks = ~is_first & is_read
        first = jnp.where(shrinks, last_before + 1, slot)
        last = jnp.where(shrinks, slot - 1, jnp.where(is_first & is_read, last_after, slot))
        return append(carry, first, last, jnp.where(shrinks, jnp.where(first <= last, -size_q, 0), size_q))

    carry = lax.fori_loop(tables.input_start[node], end(tables.input_start), read, carry)
    carry = lax.fori_loop(tables.value_start[node], end(tables.value_start), made, carry)
    return append(carry, slot, slot, jnp.where(happens, tables.workspace_q[node], 0))


def _around(tables: Any, runs: Any, value: Any, slot: Any, hidden: Any, slots: Any) -> Any:
    """How a value lives around a slot, the runs at `slot` and `hidden` left out.

    Returns:
      produced_before: slot of the last production before `slot`, -1 without one.
      last_before: the last slot before `slot` at which the value is read or produced, -1 without one.
      last_after: the last slot after `slot` that reads it before it is produced again, -1 without one; the end of
        the schedule for an output that is not produced again.
    """
    counts = lambda row: (row != slot) & (row != hidden) & (row < slots)
    row = runs[tables.producer[value]]
    produced_before = jnp.max(jnp.where(counts(row) & (row < slot), row, -1))
    produced_next = jnp.min(jnp.where(counts(row) & (row > slot), row, slots))

    def reader(index: Any, carry: Any) -> Any:
        before, after = carry
        row = runs[tables.readers[index]]
        before = jnp.maximum(before, jnp.max(jnp.where(counts(row) & (row < slot), row, -1)))
        return before, jnp.maximum(
            after, jnp.max(jnp.where(counts(row) & (row > slot) & (row < produced_next), row, -1))
        )

    span = (tables.reader_start[value], tables.reader_start[value + 1])
    last_before, last_after = lax.fori_loop(*span, reader, (produced_before, jnp.int32(-1)))
    last_after = jnp.where(tables.is_output[value] & (produced_next == slots), slots - 1, last_after)
    return produced_before, last_before, last_after


def _range_add(live: _Blocks, change: jax.Array, sign: int) -> _Blocks:
    """Adds quanta to a range of slots."""
    first, last, quanta = change[0], change[1], sign * change[2]
    height, width = live.entry.shape
    first_row, last_row = first // width, last // width
    rows = jnp.arange(height)
    lanes = jnp.arange(width)
    offset = live.offset + jnp.where((rows > first_row) & (rows < last_row), quanta, 0)

    def edge(which: Any, carry: Any) -> Any:
        entry, top = carry
        index = jnp.where(which == 0, first_row, last_row)
        at = index * width + lanes
        row = entry[index] + jnp.where((at >= first) & (at <= last), quanta, 0)
        return entry.at[index].set(row), top.at[index].set(jnp.max(row))

    entry, top = lax.fori_loop(0, jnp.where(first_row == last_row, 1, 2), edge, (live.entry, live.top))
    return _Blocks(entry, offset, top)


def _scrambled(rng: jax.Array) -> jax.Array:
    """The next state of a xorshift generator, never zero."""
    rng = rng ^ (rng << 13)
    rng = rng ^ (rng >> 17)
    rng = rng ^ (rng << 5)
    return jnp.where(rng == 0, jnp.uint32(1), rng)


def _draws(rng: jax.Array, count: int) -> tuple[jax.Array, list[jax.Array]]:
    """Non-negative random int32s."""
    drawn = []
    for _ in range(count):
        rng = _scrambled(rng)
        drawn.append((rng >> 1).astype(jnp.int32))
    return rng, drawn


def _fraction(drawn: jax.Array) -> jax.Array:
    """A random number in [0, 1) from a random non-negative int32."""
    return (drawn >> (31 - _FRACTION_BITS)).astype(jnp.float32) / 2.0**_FRACTION_BITS
