"""Every fact about a family of primitives: where bodies are, and how compilers treat what has none.

Names are those of `compat.primitive_name`, so that a checkpoint is the same family whatever JAX_REMAT3 says.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CHEAP = _names(
    """abs add add_any and bitcast_convert_type ceil clamp convert_element_type copy cos eq eq_to floor ge gt imag
    integer_pow is_finite le le_to lt lt_to max min mul ne neg nextafter not or population_count real
    reduce_precision rem round select_n shift_left shift_right_arithmetic shift_right_logical sign sin square sub xor"""
)
"""Element-wise, and cheaper to compute again than to read from memory."""

EXPENSIVE = _names(
    """acos acosh asin asinh atan atan2 atanh cbrt cosh digamma div erf erf_inv erfc exp exp2 expm1 lgamma log log1p
    logistic one_minus_square pow rsqrt sinh sqrt tan tanh"""
)
"""Element-wise, with divisions or transcendental functions."""

ELEMENTWISE = CHEAP | EXPENSIVE

EXACT = _names(
    """abs and bitcast_convert_type convert_element_type copy eq ge gt is_finite le lt max min ne neg not or select_n
    shift_left shift_right_arithmetic shift_right_logical sign xor"""
)
"""Element-wise primitives whose results need no rounding."""

COMMUTATIVE = _names("add add_any mul max min and or xor eq ne")

MOVING = _names(
    """broadcast transpose bitcast concatenate dynamic_slice dynamic_update_slice gather iota pad rev slice"""
)
"""Data movement that a fused loop can read through."""

CUTTING = _names("slice split dynamic_slice")
"""What gives parts of what it reads."""

REDUCTIONS = _names("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin")

CUMULATIVE = _names("cumsum cumprod cummax cummin cumlogsumexp")

ALIASING = _names("reshape squeeze expand_dims stop_gradient copy name sharding_constraint pvary")
"""The same bytes under another name or shape."""

MADE_WHERE_READ = ELEMENTWISE | MOVING | ALIASING | {"broadcast_in_dim"}
"""What a compiler need not write: readers can make it."""

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
}
"""Calls, and the parameter that holds what they call: they mean no more than it."""

CHECKPOINTS = {"remat2": "jaxpr", "checkpoint": "jaxpr"}
"""`jax.checkpoint`, and the parameter that holds what is computed again."""

OWN_RULES = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
"""Functions with a differentiation rule of their own, and the parameter that holds the function."""

LOOPS = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "shard_map": ("jaxpr",),
}
"""Control flow, and the parameters that hold bodies, which run apart from what surrounds the equation."""

REDUCTIONS_OVER_AXES = _names("psum psum_invariant pmax pmin all_gather all_gather_invariant")
"""What gives every example of a `vmap`, or every device, the same."""

IN_LIBRARY = _names(
    """abs add add_any ceil convert_element_type cos div erf exp expm1 floor integer_pow log log1p logistic max min mul
    neg one_minus_square pow round rsqrt sign sin sqrt square sub tan tanh"""
)
"""Element-wise primitives that XLA:CPU's library fusions (YNNPACK) accept."""
