"""What was fused before on a device: layers are alike, and so are the schedules of one program."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

from jaxremat.cost.fused import Merged
from jaxremat.cost.kernel_graph import Singles

Islands = dict[Hashable, tuple[Merged, ...]]
"""Kernels that may become one, directly or by way of others, by all that decides about them: which of them are left."""


@dataclasses.dataclass(frozen=True, eq=False)
class FusedBefore:
    """What is known of one device.

    Attributes:
      singles: operations as kernels of their own.
      islands: how kernels are fused.
    """

    singles: Singles = dataclasses.field(default_factory=Singles)
    islands: Islands = dataclasses.field(default_factory=dict)
