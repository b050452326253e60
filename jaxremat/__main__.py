"""Command line: `python -m jaxremat targets`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jaxremat.verify.targets import list_targets


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="jaxremat", description="Gradients of JAX functions that fit in your memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    targets = commands.add_parser("targets", help="list the devices that this machine can compile for")
    targets.set_defaults(run=show_targets)
    options = parser.parse_args(argv)
    return options.run(options)


def show_targets(_: argparse.Namespace) -> int:
    """Prints every target: whether it works here, and what to install where it does not."""
    for device, problem in list_targets():
        memory = f"{device.memory_bytes / 2**30:.0f} GiB" if device.memory_bytes else "this machine"
        print(f"{device.name:<8}  {device.platform:<5} {memory:>12}  {'works' if not problem else 'no: ' + problem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
