"""Command line: `python -m jaxremat plan module:function`, `show plan.json`, `targets`, `selftest`.

Its version and its help are told without loading JAX; the commands are in `commands`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jaxremat.base.commands import COMMANDS, front


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] not in COMMANDS:
        parser, commands = front()
        for name, what in COMMANDS.items():
            commands.add_parser(name, help=what)
        parser.parse_args(given)  # tells the version, the help, or what is wrong, and leaves
    return importlib.import_module("jaxremat.commands").main(given)


if __name__ == "__main__":
    sys.exit(main())
