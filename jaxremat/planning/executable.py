"""The one way from a planned program to an executable: compile its gradient for a device, read the bytes."""

from __future__ import annotations

from typing import Any

import jax

from jaxremat.backends.devices import Device
from jaxremat.base.errors import TargetError
from jaxremat.compiled.compile import CompiledGradient, compile_for
from jaxremat.planner.decision import FlatFunction
from jaxremat.trace.primal import Primal


def compile_program(primal: Primal, flat: FlatFunction, has_aux: bool, device: Device) -> CompiledGradient:
    """The gradient program of a primal program, run by a flat function of the same inputs and outputs.

    Args:
      primal: the program; its function is not traced again.
      flat: from its flat inputs to its flat outputs.
      has_aux: whether its results are a pair (result, auxiliary data).
      device: what to compile for; the inputs keep their shardings.

    Raises:
      TargetError: if this machine cannot compile for the device, with what to install; and inside a shard_map.
    """
    if axes := jax.sharding.get_abstract_mesh().manual_axes:
        raise TargetError(
            f"a part of a shard_map over {', '.join(map(repr, axes))} cannot be compiled by itself: plan the whole"
            ' function, or trust the prediction with verify="replay"'
        )

    def program(*inputs: Any) -> Any:
        return jax.tree.unflatten(primal.out_tree, flat(*inputs))

    return compile_for(program, primal.inputs, argnums=primal.wrt, has_aux=has_aux, target=device.name)
