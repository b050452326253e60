"""Computing a part of a value: which parts of which other values it needs, equation by equation.

A tiled subgraph is a cone of equations above some outputs. Asked for one tile of the outputs, it computes every value
inside for that tile only, from blocks of its *sources*, the values that it reads as they lie. Elementwise equations,
iotas, broadcasts, slices, matrix products and row-wise reductions pass a window on to their operands; any other
equation ends the subgraph there, and its result is a source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Literal, Var
from jaxremat.chunk.tiling import own_rules
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window
from jaxremat.trace.jaxpr import shape_of
from jaxremat.trace.primitives import ELEMENTWISE, REDUCTIONS

_PASSING = ELEMENTWISE | {"name", "optimization_barrier", "stop_gradient"}

Need = tuple[Var, Window]


@dataclasses.dataclass(frozen=True, eq=False)
class TiledSubgraph:
    """Equations with the windows under which they run.

    Attributes:
      sources: what is read as it lies, with its window.
      steps: (equation, window of its output, windows of its operands), in order.
      outputs: what is computed.
    """

    sources: tuple[Need, ...]
    steps: tuple[tuple[Eqn, Window, tuple[Window, ...]], ...]
    outputs: tuple[Need, ...]

    @property
    def eqns(self) -> list[Eqn]:
        return [eqn for eqn, _, _ in self.steps]

    def compute(self, blocks: Sequence[Any], reads: Sequence[Any], tiling: Tiling) -> list[Any]:
        """The outputs' blocks of the tile that reads at `reads`, from the sources' blocks."""
        env = dict(zip(self.sources, blocks, strict=True))
        for eqn, window, operand_windows in self.steps:
            inputs = [
                atom.val if isinstance(atom, Literal) else env[atom, w] for atom, w in zip(eqn.invars, operand_windows)
            ]
            env[eqn.outvars[0], window] = _run(eqn, window, inputs, reads, tiling)
        return [env[need] for need in self.outputs]


def tiled_subgraph(
    made_by: dict[Var, Eqn], outputs: Sequence[Need], inside: Callable[[Var, Window], bool]
) -> TiledSubgraph:
    """The subgraph above `outputs` of all values for which `inside(var, window)` and whose equation can be windowed."""
    sources: dict[Need, None] = {}
    steps: dict[Need, tuple[Eqn, Window, tuple[Window, ...]]] = {}
    stack = [(need, False) for need in reversed(outputs)]
    while stack:
        (var, window), expanded = stack.pop()
        if (var, window) in steps or (var, window) in sources:
            continue
        eqn = made_by.get(var)
        windows = operand_windows(eqn, window) if eqn is not None and inside(var, window) else None
        if eqn is None or windows is None:
            sources[var, window] = None
        elif expanded:
            steps[var, window] = (eqn, window, windows)
        else:
            stack.append(((var, window), True))
            stack.extend(((a, w), False) for a, w in zip(eqn.invars, windows) if not isinstance(a, Literal))
    return TiledSubgraph(tuple(sources), tuple(steps.values()), tuple(outputs))


def operand_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    """The window of each operand that the windowed output needs, or None where this equation cannot be cut so."""
    if len(eqn.outvars) != 1 or eqn.effects:
        return None
    name = compat.primitive_name(eqn)
    if name in _PASSING or own_rules.is_elementwise(eqn):
        return tuple(_broadcasting(shape_of(atom).shape, shape_of(eqn.outvars[0]).shape, window) for atom in eqn.invars)
    if name in REDUCTIONS:
        return (_inserted(window, eqn.params["axes"], len(shape_of(eqn.invars[0]).shape)),)
    rule = _WINDOWS.get(name)
    return rule(eqn, window) if rule else None


def _broadcasting(shape: Any, out_shape: Any, window: Window) -> Window:
    if not shape:
        return ()
    return tuple(None if n == 1 and out != 1 else span for n, out, span in zip(shape, out_shape, window))


def _inserted(window: Window, axes: Any, rank: int) -> Window:
    spans, axes = iter(window), {int(axis) for axis in axes}
    return tuple(None if i in axes else next(spans) for i in range(rank))


def _iota_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    return () if not eqn.invars else None


def _broadcast_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    if len(eqn.invars) != 1:
        return None
    out_shape = shape_of(eqn.outvars[0]).shape
    dims = [int(d) for d in eqn.params["broadcast_dimensions"]]
    shape = shape_of(eqn.invars[0]).shape
    return (tuple(None if n == 1 and out_shape[d] != 1 else window[d] for n, d in zip(shape, dims)),)


def _transpose_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    operand: list[Span | None] = [None] * len(window)
    for i, axis in enumerate(eqn.params["permutation"]):
        operand[int(axis)] = window[i]
    return (tuple(operand),)


def _squeeze_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    return (_inserted(window, eqn.params["dimensions"], len(shape_of(eqn.invars[0]).shape)),)


def _slice_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    if eqn.params["strides"] is not None and any(stride != 1 for stride in eqn.params["strides"]):
        return None
    starts = eqn.params["start_indices"]
    return (tuple(span and Span(span.axis, span.offset + int(start)) for span, start in zip(window, starts)),)


def _reshape_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    """Axes that survive keep their span; an axis that is merged or split must be read whole."""
    shape, out_shape = shape_of(eqn.invars[0]).shape, shape_of(eqn.outvars[0]).shape
    if len(eqn.invars) != 1 or 0 in shape:
        return None
    operand: list[Span | None] = [None] * len(shape)
    for inner, outer in _reshape_groups(shape, out_shape):
        if len(inner) == len(outer) == 1:
            operand[inner[0]] = window[outer[0]]
        elif any(window[i] is not None for i in outer):
            return None
    return (tuple(operand),)


def _reshape_groups(shape: Any, out_shape: Any) -> Iterator[Any]:
    """Pairs of axis lists, operand's and result's, of equal product and as short as possible; unit axes left out."""
    left, right = ([i for i, n in enumerate(dims) if n != 1] for dims in (shape, out_shape))
    while left:
        inner, outer = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(shape[i] for i in inner)) != (b := math.prod(out_shape[i] for i in outer)):
            if a < b:
                inner.append(left.pop(0))
            else:
                outer.append(right.pop(0))
        yield inner, outer


def _dot_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    (contract, batch) = eqn.params["dimension_numbers"]
    windows, free_at = [], len(batch[0])
    for side, atom in enumerate(eqn.invars):
        operand: list[Span | None] = [None] * len(shape_of(atom).shape)
        for at, axis in enumerate(batch[side]):
            operand[axis] = window[at]
        free = [
            axis for axis in range(len(shape_of(atom).shape)) if axis not in contract[side] and axis not in batch[side]
        ]
        for axis in free:
            operand[axis] = window[free_at]
            free_at += 1
        windows.append(tuple(operand))
    return tuple(windows)


def _gather_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    """`take_along_axis`: one entry per index, from operand axes that the indices share, pick from, or read whole."""
    dims, slices = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = shape_of(eqn.invars[0]).shape
    picked = (*dims.collapsed_slice_dims, *dims.operand_batching_dims)
    whole = all(slices[axis] == n for axis, n in enumerate(shape) if axis not in picked)
    if not whole or any(window[i] is not None for i in dims.offset_dims):
        return None
    indices = [span for i, span in enumerate(window) if i not in dims.offset_dims]
    operand: list[Span | None] = [None] * len(shape)
    for axis, at in zip(dims.operand_batching_dims, dims.start_indices_batching_dims):
        operand[axis] = indices[at]
    return tuple(operand), (*indices, None)


def _scatter_windows(eqn: Eqn, window: Window) -> tuple[Window, ...] | None:
    """The derivative of `take_along_axis`: entries are added along axes that the indices do not share."""
    dims = eqn.params["dimension_numbers"]
    if any(span is not None and axis not in dims.operand_batching_dims for axis, span in enumerate(window)):
        return None
    indices: list[Span | None] = [None] * len(shape_of(eqn.invars[1]).shape)
    for axis, at in zip(dims.operand_batching_dims, dims.scatter_indices_batching_dims):
        indices[at] = window[axis]
    places = iter(indices)
    rank = len(shape_of(eqn.invars[2]).shape)
    updates = tuple(None if i in dims.update_window_dims else next(places) for i in range(rank))
    return window, tuple(indices), updates


_WINDOWS = {
    "iota": _iota_windows,
    "broadcast_in_dim": _broadcast_windows,
    "transpose": _transpose_windows,
    "squeeze": _squeeze_windows,
    "slice": _slice_windows,
    "reshape": _reshape_windows,
    "dot_general": _dot_windows,
    "gather": _gather_windows,
    "scatter-add": _scatter_windows,
}


def _run(eqn: Eqn, window: Window, inputs: list[Any], reads: Sequence[Any], tiling: Tiling) -> jax.Array:
    """One equation on blocks."""
    sizes = tiling.block_sizes(window, shape_of(eqn.outvars[0]).shape)
    name, params = compat.primitive_name(eqn), eqn.params
    with compat.at_position_of(eqn):
        if name == "iota":
            axis = params["dimension"]
            start = tiling.starts((window[axis],), reads)[0]
            return lax.broadcasted_iota(params["dtype"], sizes, axis) + lax.convert_element_type(start, params["dtype"])
        if name == "broadcast_in_dim":
            return lax.broadcast_in_dim(inputs[0], sizes, [int(d) for d in params["broadcast_dimensions"]])
        if name == "reshape":
            return lax.reshape(inputs[0], sizes)
        if name == "slice":
            starts = [0 if span else start for span, start in zip(window, params["start_indices"])]
            return lax.slice(inputs[0], starts, [start + size for start, size in zip(starts, sizes)])
        if name == "custom_jvp_call":
            return own_rules.on_blocks(eqn, inputs)
        if name == "name":  # JAX_REMAT3's names know their shape; inside a tile nothing is saved by name
            return inputs[0]
        return compat.bind(eqn, inputs)[0]
