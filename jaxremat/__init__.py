"""Give any JAX function and a number of bytes; get back the same function whose compiled gradient fits.

The public names are those of the stub beside this file. Each is imported when it is first asked for: `import jaxremat`
takes next to no time, and a command line that prints its version does not load JAX.
"""

import importlib
import importlib.metadata
import re
import sys
import types
from pathlib import Path
from typing import Any

_HOME_OF = {
    name: home for home, name in re.findall(r"^from (\S+) import (\w+)", Path(__file__ + "i").read_text(), re.MULTILINE)
}
_WITH_FLAX = ("linen", "nnx")


class _Package(types.ModuleType):
    """The package: a public name comes before a room of that name, which imports would put in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        is_room = isinstance(value, types.ModuleType) and _HOME_OF.get(name, "jaxremat") != "jaxremat"
        if not is_room:
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _WITH_FLAX or _HOME_OF.get(name) == "jaxremat":
        return importlib.import_module(f"jaxremat.{name}")
    if name == "__version__":
        found = _version()
    elif name in _HOME_OF:
        found = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'jaxremat' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*_HOME_OF, *_WITH_FLAX, "__version__"])


def _version() -> str:
    try:
        return importlib.metadata.version("jaxremat")
    except importlib.metadata.PackageNotFoundError:  # imported from a folder that nobody installed
        return "unknown"


sys.modules[__name__].__class__ = _Package
