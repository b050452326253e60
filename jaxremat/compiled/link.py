"""Copies over the link to the host's memory in a compiled program, and what its schedule waits for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxremat.compiled.hlo_text import Array, Instruction

_NAMES = frozenset({"parameter", "tuple", "get-tuple-element", "bitcast", "custom-call", "while", "opt-barrier"})


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What one instruction copies.

    Attributes:
      size_bytes: of what is copied.
      to_host: the direction.
      runs_beside: it begins here, and the instruction that ends it comes later.
    """

    size_bytes: int
    to_host: bool
    runs_beside: bool


def transfer_of(instruction: Instruction, operands: Sequence[Instruction]) -> Transfer | None:
    """The copy over the link that an instruction is, or begins; None for any other.

    A program begins one by `copy-start`, or where a loop slices a stack on the host or updates it, by `fusion-start` of
    that; what comes to be is the first array, or the last one but a token.
    """
    runs_beside = instruction.opcode.endswith("-start")
    own = instruction.arrays
    if instruction.opcode in _NAMES or instruction.opcode.endswith("-done"):
        return None
    touched = own if runs_beside else (*own, *(array for each in operands for array in each.arrays))
    if not any(array.on_host for array in touched):
        return None
    result = own[-2] if runs_beside and instruction.opcode != "copy-start" else own[0]
    return Transfer(max(map(_device_bytes, touched)), result.on_host, runs_beside)


def _device_bytes(array: Array) -> int:
    return 0 if array.on_host else array.size_bytes


class Link:
    """The link of a device while one computation runs: copies in either direction run one after another.

    Args:
      bytes_per_second: each way; None where there is no link.
    """

    def __init__(self, bytes_per_second: float | None) -> None:
        self._rate = bytes_per_second or float("inf")
        self._free = {True: 0.0, False: 0.0}
        self._arrives: dict[str, float] = {}

    def begin(self, name: str, transfer: Transfer, now: float) -> None:
        """A copy begins at a time, in seconds from the start of the computation."""
        begin = max(now, self._free[transfer.to_host])
        self._free[transfer.to_host] = self._arrives[name] = begin + transfer.size_bytes / self._rate

    def wait_for(self, names: Sequence[str], now: float) -> float:
        """Seconds from now until the copies of these names, if there are such, are there."""
        return max((self._arrives.pop(name) - now for name in names if name in self._arrives), default=0.0)
