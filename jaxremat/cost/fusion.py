"""Which values of a program become buffers: the fusion decisions of a device's compiler."""

from __future__ import annotations

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Jaxpr, Var
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.fused import Fusion
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.loop_fusion import fuse_by_rule
from jaxremat.cost.priority_fusion import fuse_by_priority


def fuse(program: HloProgram, device: Device, known: KnownBodies | None = None) -> Fusion:
    """Decides which operations of a program write buffers; `known`: what was worked out for the device before."""
    if device.backend.element_work is None:
        return fuse_by_rule(program, device.backend)
    return fuse_by_priority(program, device.as_described, (known or KnownBodies()).fused_before)


def fused(jaxpr: Jaxpr, device: Device, known: KnownBodies) -> Fusion:
    """A program as it stands, lowered and fused: once, among all that is known for the device."""
    if jaxpr not in known.fusions:
        known.fusions[jaxpr] = fuse(lower(jaxpr, device.backend, known.templates), device, known)
    return known.fusions[jaxpr]


def materialised(jaxpr: Jaxpr, device: Device, known: KnownBodies | None = None) -> dict[Var, bool]:
    """For each variable that an equation defines, whether it has a buffer on a device or names one; `known`: what was
    worked out for the device before."""
    fusion = fused(jaxpr, device, known or KnownBodies())
    program = fusion.program
    buffers = set(fusion.kernels) | {i for i, op in enumerate(program.ops) if op.kind == "input"}
    return {v: program.op_of[v] in buffers for eqn in jaxpr.eqns for v in eqn.outvars if v in program.op_of}
