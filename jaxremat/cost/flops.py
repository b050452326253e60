"""FLOPs, bytes and seconds of equations, counted on the jaxpr: trip counts multiplied, worst branch taken.

The compiler's own count sees a loop body once and misses library calls, so it is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primitives import ALIASING, CUMULATIVE, EXPENSIVE, MOVING

_EXPENSIVE_FLOPS = 10  # about the multiply-adds of XLA's fast tanh (`llvm_ir/math_ops.cc`)
_MATRIX = frozenset({"dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated", "triangular_solve"})


def program_flops(jaxpr: Jaxpr, *, matrix_only: bool = False) -> float:
    """FLOPs of a whole program; with `matrix_only`, of contractions and convolutions alone."""
    return sum(equation_flops(eqn, matrix_only=matrix_only) for eqn in jaxpr.eqns)


def equation_flops(eqn: Eqn, *, matrix_only: bool = False) -> float:
    """FLOPs of one run of an equation: loops all trips, conditionals the worst branch, calls their body."""
    name = compat.primitive_name(eqn)
    if name in _COUNTED:
        return 0.0 if matrix_only and name not in _MATRIX else _COUNTED[name](eqn)
    if bodies := _bodies(eqn):
        counts = [program_flops(body, matrix_only=matrix_only) for body in bodies]
        return max(counts) if name == "cond" else trip_count(eqn) * sum(counts)
    if matrix_only or name in ALIASING or name in MOVING or name == "broadcast_in_dim":
        return 0.0
    elements = max([_elements(v) for v in (*eqn.invars, *eqn.outvars)], default=0)
    return float(elements * (_EXPENSIVE_FLOPS if name in EXPENSIVE else 1))


def is_contraction(eqn: Eqn) -> bool:
    """Whether matrix units do the work: dots and convolutions."""
    return eqn.primitive.name in _MATRIX


def contractions(eqns: Sequence[Eqn]) -> np.ndarray:
    """[N] bool: equations that are contractions."""
    return np.asarray([is_contraction(eqn) for eqn in eqns], bool)


def equation_bytes(eqn: Eqn) -> int:
    """Bytes that one run of an equation reads and writes, inner loops and branches included."""
    name = compat.primitive_name(eqn)
    if name in ALIASING:
        return 0
    if bodies := _bodies(eqn):
        counts = [sum(map(equation_bytes, body.eqns)) for body in bodies]
        return max(counts) if name == "cond" else trip_count(eqn) * sum(counts)
    written = sum(written_bytes(eqn, var) for var in eqn.outvars)
    if name in ("gather", "slice", "dynamic_slice", "dynamic_update_slice"):
        return 2 * written
    return written + sum(map(jaxprs.size_bytes, jaxprs.vars_of(eqn.invars)))


def written_bytes(eqn: Eqn, var: Var) -> int:
    """Bytes that an equation writes of one of its results: an update in place writes the update."""
    return jaxprs.size_bytes(eqn.invars[1] if eqn.primitive.name == "dynamic_update_slice" else var)


def equation_seconds(eqn: Eqn, device: Device) -> float:
    """Roofline time of one equation on a device: the slower of arithmetic and memory, plus a launch."""
    name = compat.primitive_name(eqn)
    if name in ALIASING:
        return 0.0
    if _bodies(eqn):
        return device.launch_seconds + body_seconds(
            eqn, lambda body: sum(equation_seconds(inner, device) for inner in body.eqns)
        )
    matrix = name in _MATRIX
    peak = device.matrix_flops(_widest(eqn)) if matrix else device.vector_flops_per_second
    arithmetic = equation_flops(eqn) / peak
    return max(arithmetic, equation_bytes(eqn) / device.bandwidth_bytes_per_second) + device.launch_seconds


def body_seconds(eqn: Eqn, seconds_of: Callable[[Jaxpr], float]) -> float:
    """Time of what an equation runs inside: all trips of a loop, the slowest branch of a conditional."""
    times = [seconds_of(body) for body in _bodies(eqn)]
    return max(times) if eqn.primitive.name == "cond" else trip_count(eqn) * sum(times)


def _bodies(eqn: Eqn) -> list[Jaxpr]:
    """Jaxprs that an equation runs; update functions of scatters and reductions are counted with their elements."""
    name = eqn.primitive.name
    if name.startswith(("scatter", "reduce")) or name in ("select_and_scatter", "select_and_gather_add", "sort"):
        return []
    body = jaxprs.computed_body(eqn)
    return jaxprs.subjaxprs(eqn) if body is None else [body]


def trip_count(eqn: Eqn) -> int:
    """How often an equation's body runs: a scan's length, a kernel's grid; once where it cannot be known."""
    if eqn.primitive.name == "scan":
        return int(eqn.params["length"])
    if eqn.primitive.name == "pallas_call":
        grid = getattr(eqn.params.get("grid_mapping"), "grid", ())
        return math.prod(size for size in grid if isinstance(size, int))
    return 1


def _dot(eqn: Eqn) -> float:
    (contract, _), _ = eqn.params["dimension_numbers"]
    shape = _shape(eqn.invars[0])
    return 2.0 * _elements(eqn.outvars[0]) * math.prod(shape[dim] for dim in contract)


def _ragged_dot(eqn: Eqn) -> float:
    """Every row meets one group's matrix: rows × contracted × columns; a ragged contraction counts likewise."""
    lhs, rhs = _shape(eqn.invars[0]), _shape(eqn.invars[1])
    return 2.0 * math.prod(lhs) * (rhs[-1] if len(rhs) else 1)


def _conv(eqn: Eqn) -> float:
    kernel = _shape(eqn.invars[1])
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * _elements(eqn.outvars[0]) * math.prod(kernel) / max(features, 1)


def _cumulative(eqn: Eqn) -> float:
    length = _shape(eqn.invars[0])[eqn.params["axis"]]
    return float(_elements(eqn.invars[0]) * max(1, math.ceil(math.log2(max(length, 2)))))


def _window(eqn: Eqn) -> float:
    return float(_elements(eqn.outvars[0]) * math.prod(eqn.params["window_dimensions"]))


def _select_and_scatter(eqn: Eqn) -> float:
    return float(_elements(eqn.invars[0]) * math.prod(eqn.params["window_dimensions"]))


def _fft(eqn: Eqn) -> float:
    length = math.prod(eqn.params["fft_lengths"])
    return 5.0 * max(map(_elements, (eqn.invars[0], eqn.outvars[0]))) * math.log2(max(length, 2))


def _sort(eqn: Eqn) -> float:
    length = _shape(eqn.invars[0])[eqn.params["dimension"]] if _shape(eqn.invars[0]) else 1
    return float(_elements(eqn.invars[0]) * max(1.0, math.log2(max(length, 2)) ** 2 / 2))


def _factorisation(cube: float) -> Callable[[Eqn], float]:
    def count(eqn: Eqn) -> float:
        *batch, rows, columns = _shape(eqn.invars[0])
        return cube * math.prod(batch) * max(rows, columns) * min(rows, columns) ** 2

    return count


def _triangular_solve(eqn: Eqn) -> float:
    return float(_elements(eqn.invars[1]) * _shape(eqn.invars[0])[-1])


_COUNTED = {
    "dot_general": _dot,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
    "reduce_window_sum": _window,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window": _window,
    "select_and_scatter_add": _select_and_scatter,
    "fft": _fft,
    "sort": _sort,
    "cholesky": _factorisation(1 / 3),
    "lu": _factorisation(2 / 3),
    "qr": _factorisation(4 / 3),
    "geqrf": _factorisation(4 / 3),
    "householder_product": _factorisation(4 / 3),
    "eigh": _factorisation(9.0),
    "eig": _factorisation(25.0),
    "svd": _factorisation(20.0),
    "triangular_solve": _triangular_solve,
} | dict.fromkeys(CUMULATIVE, _cumulative)


def _shape(atom: Atom) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))


def _elements(atom: Atom) -> int:
    return math.prod(_shape(atom))


def _widest(eqn: Eqn) -> np.dtype:
    """The operand dtype that sets a contraction's rate."""
    dtypes = [np.dtype(getattr(atom.aval, "dtype", np.float32)) for atom in eqn.invars[:2]]
    return max(dtypes, key=lambda dtype: dtype.itemsize)
