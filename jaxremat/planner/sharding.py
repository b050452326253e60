"""Which part of each value one device of a mesh holds, and which equations communicate."""

from __future__ import annotations

from jaxremat._compat import Eqn
from jaxremat.trace import jaxpr as jaxprs

_COLLECTIVES = frozenset(
    """psum psum2 psum_invariant pmax pmin ppermute pbroadcast pgather all_gather all_gather_invariant
    all_gather_reduced all_to_all ragged_all_to_all reduce_scatter psum_scatter unreduced_psum
    unreduced_reduce_scatter reshard""".split()
)


def is_collective(eqn: Eqn) -> bool:
    """Whether an equation, or one inside it, moves data between devices."""
    if eqn.primitive.name in _COLLECTIVES:
        return True
    return any(is_collective(inner) for sub in jaxprs.subjaxprs(eqn) for inner in sub.eqns)
