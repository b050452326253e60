"""Shapes and dtypes of public arrays, as their annotations say them: `Float[Array, "tokens width"]`.

They are those of `jaxtyping` where it is installed. It is not required: without it an annotation says "any array".
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or importlib.util.find_spec("jaxtyping"):
    from jaxtyping import Bool, Float, Float64, Inexact, Int32, Int64, Integer
else:

    class _Any:
        def __class_getitem__(cls, _: Any) -> Any:
            return Any

    Bool = Float = Float64 = Inexact = Int32 = Int64 = Integer = _Any

__all__ = ["Bool", "Float", "Float64", "Inexact", "Int32", "Int64", "Integer"]
