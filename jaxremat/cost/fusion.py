"""Which values of a program become buffers: the fusion decisions of a device's compiler."""

from __future__ import annotations

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Jaxpr, Var
from jaxremat.cost.fused import Fusion
from jaxremat.cost.hlo_model import Program, lower
from jaxremat.cost.hlo_ops import Templates
from jaxremat.cost.loop_fusion import fuse_by_rule
from jaxremat.cost.priority_fusion import fuse_by_priority


def fuse(program: Program, device: Device) -> Fusion:
    """Decides which operations of a program write buffers."""
    backend = device.backend
    return fuse_by_priority(program, device) if backend.element_work is not None else fuse_by_rule(program, backend)


def materialised(jaxpr: Jaxpr, device: Device, templates: Templates | None = None) -> dict[Var, bool]:
    """For each variable that an equation defines, whether it has a buffer on a device or names one; `templates`: what
    is known of the equations."""
    fusion = fuse(lower(jaxpr, device.backend, templates), device)
    program = fusion.program
    buffers = set(fusion.kernels) | {i for i, op in enumerate(program.ops) if op.kind == "input"}
    return {v: program.op_of[v] in buffers for eqn in jaxpr.eqns for v in eqn.outvars if v in program.op_of}
