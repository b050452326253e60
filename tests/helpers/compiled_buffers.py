"""What a compiled program writes to memory, read from its optimized HLO; and what the model says that it writes."""

import re
from collections.abc import Callable

import jax
import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.cost.fused import Fusion
from jaxremat.cost.fusion import fuse
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.hlo_ops import Templates
from jaxremat.cost.hlo_rewrites import rewritten

SMALLEST = 1024  # bytes; scalars and values per row are beside the point
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8, "s64": 8, "u64": 8}
_LINE = re.compile(r"^\s*(?:ROOT )?%\S+ = (\(.*?\)|\S+) ([\w-]+)\(")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
_OTHER_NAMES = {"barrier", "fenced", "bitcast"}
_NOT_WRITTEN = {"parameter", "bitcast", "get-tuple-element", "constant", "tuple", "after-all"}


def compiled_buffers(hlo_text: str, several: bool = False) -> list[int]:
    """Bytes of what the entry computation writes, in the order of its schedule; small ones left out, and what has
    several results unless they count."""
    entry = hlo_text[hlo_text.index("\nENTRY ") :].splitlines()[1:]
    found = [match.groups() for line in entry if (match := _LINE.match(line))]
    made = [(shape, opcode) for shape, opcode in found if opcode not in _NOT_WRITTEN]
    written = [shape for shape, opcode in made if shape[0] != "(" or (several and opcode == "fusion")]
    arrays = [array for shape in written for array in _ARRAY.findall(shape)]
    return [size for dtype, dims in arrays if (size := _size(dtype, dims)) >= SMALLEST]


def modelled_fusion(fun: Callable, args, device: Device) -> Fusion:
    """A function's program as the model fuses it."""
    templates = Templates()
    program = lower(jax.make_jaxpr(fun)(*args).jaxpr, device.backend, templates)
    return fuse(rewritten(program, device, templates), device)


def modelled_buffers(fun: Callable, args, device: Device) -> list[int]:
    """The same by the fusion model, in the order of the program."""
    fusion = modelled_fusion(fun, args, device)
    named = [kernel for kernel in fusion.kernels if len(fusion.runs(kernel)) == 1]
    others = {kernel for kernel in named if fusion.program.ops[kernel].kind in _OTHER_NAMES}
    written = [fusion.program.ops[kernel].size_bytes for kernel in fusion.kernels if kernel not in others]
    return [size for size in written if size >= SMALLEST]


def _size(dtype: str, dims: str) -> int:
    return _BYTES[dtype] * int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64))
