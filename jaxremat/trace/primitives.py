"""Primitives by how compilers treat them."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CHEAP = _names(
    """abs add add_any and ceil clamp convert_element_type copy cos eq eq_to floor ge gt imag integer_pow is_finite le
    le_to lt lt_to max min mul ne neg nextafter not or population_count real reduce_precision rem round select_n
    shift_left shift_right_arithmetic shift_right_logical sign sin square sub xor"""
)
"""Element-wise, and cheaper to compute again than to read from memory."""

EXPENSIVE = _names(
    """acos acosh asin asinh atan atan2 atanh cbrt cosh digamma div erf erf_inv erfc exp exp2 expm1 lgamma log log1p
    logistic one_minus_square pow rsqrt sinh sqrt tan tanh"""
)
"""Element-wise, with divisions or transcendental functions."""

ELEMENTWISE = CHEAP | EXPENSIVE

MOVING = _names(
    """broadcast transpose bitcast concatenate dynamic_slice dynamic_update_slice gather iota pad rev slice"""
)
"""Data movement that a fused loop can read through."""

REDUCTIONS = _names("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin")

CUMULATIVE = _names("cumsum cumprod cummax cummin cumlogsumexp")

RENAMING = _names("reshape squeeze expand_dims stop_gradient copy name sharding_constraint pvary")
"""The same bytes under another name or shape."""

CALLS = _names(
    """jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr remat2 checkpoint
    custom_lin"""
)
"""Equations that mean the body they carry."""

LOOPS = frozenset({"scan", "while", "cond"})
"""Control flow: an equation whose bodies run apart from what surrounds it."""

IN_LIBRARY = _names(
    """abs add add_any ceil convert_element_type cos div erf exp expm1 floor integer_pow log log1p logistic max min mul
    neg one_minus_square pow round rsqrt sign sin sqrt square sub tan"""
)
"""Element-wise primitives that XLA:CPU's library fusions (YNNPACK) accept."""
