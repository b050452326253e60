"""CompAct: compressed activations for any loss and any optimizer.

`linen` and `nnx` hold layers for models that want to say in themselves what is compressed; they need Flax and are
imported when they are first used.
"""

import importlib
from typing import Any

from jaxremat.compact.projection import projection as projection
from jaxremat.compact.selection import Compression as Compression
from jaxremat.compact.selection import default_select as default_select
from jaxremat.compact.training import CompAct as CompAct
from jaxremat.compact.training import CompActState as CompActState

__all__ = ["CompAct", "CompActState", "Compression", "default_select", "linen", "nnx", "projection"]


def __getattr__(name: str) -> Any:
    if name in ("linen", "nnx"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
